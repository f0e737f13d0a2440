"""Figures and log lines: all that the process tells of itself.

The exposition is not imported here: loading prometheus_client takes 40 ms, and only a scrape needs it.
"""

from ingest.telemetry.books import Books, DropReason, Place
from ingest.telemetry.budget import Budget
from ingest.telemetry.counters import Answer, BreakerState, Counters, Handshake, Overdue, PutError, Reason, SealReason
from ingest.telemetry.health import StoreHealth
from ingest.telemetry.metrics import Metrics
from ingest.telemetry.page import Page
from ingest.telemetry.status import About, Status
from ingest.telemetry.story import Story
from ingest.telemetry.together import SharedBooks, Together

__all__ = [
    "About",
    "Answer",
    "Books",
    "BreakerState",
    "Budget",
    "Counters",
    "DropReason",
    "Handshake",
    "Metrics",
    "Overdue",
    "Page",
    "Place",
    "PutError",
    "Reason",
    "SealReason",
    "SharedBooks",
    "Status",
    "StoreHealth",
    "Story",
    "Together",
]
