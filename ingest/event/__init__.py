"""From a request to a line, or to a refusal. Pure: nothing here does I/O."""

from ingest.event.client import Peer
from ingest.event.codings import Coding, coding_of, inflate, is_plain
from ingest.event.line import COOKIE, EventEncoder, Line
from ingest.event.pages import EMPTY, PIXEL, Page, Pages
from ingest.event.refusals import (
    BAD_FRAMING,
    BAD_HOST,
    BAD_VERSION,
    BODY_TOO_LARGE,
    HEAD_TOO_LARGE,
    MALFORMED,
    NOT_FOUND,
    RETRY_AFTER,
    UNAVAILABLE,
    UNAVAILABLE_CLOSE,
    UNKNOWN_CODING,
    UNKNOWN_TRANSFER_CODING,
    ClientError,
)
from ingest.event.routes import COLLECT, ROUTES, Event, Handler, Preflight, Router, Show, Takes

__all__ = [
    "BAD_FRAMING",
    "BAD_HOST",
    "BAD_VERSION",
    "BODY_TOO_LARGE",
    "COLLECT",
    "COOKIE",
    "EMPTY",
    "HEAD_TOO_LARGE",
    "MALFORMED",
    "NOT_FOUND",
    "PIXEL",
    "RETRY_AFTER",
    "ROUTES",
    "UNAVAILABLE",
    "UNAVAILABLE_CLOSE",
    "UNKNOWN_CODING",
    "UNKNOWN_TRANSFER_CODING",
    "ClientError",
    "Coding",
    "Event",
    "EventEncoder",
    "Handler",
    "Line",
    "Page",
    "Pages",
    "Peer",
    "Preflight",
    "Router",
    "Show",
    "Takes",
    "coding_of",
    "inflate",
    "is_plain",
]
