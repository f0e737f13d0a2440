"""All that the process tells of itself: figures and log lines.

The exposition is not imported here: loading prometheus_client takes 40 ms, and only a scrape needs it.
"""

from ingest.telemetry.metrics import Metrics
from ingest.telemetry.page import Page

__all__ = [
    "Metrics",
    "Page",
]
