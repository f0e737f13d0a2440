"""From a request to a line, or to a refusal. Pure: nothing here does I/O."""

from ingest.event.client import Peer
from ingest.event.line import COOKIE, EventEncoder
from ingest.event.refusals import (
    BAD_FRAMING,
    BAD_HOST,
    BAD_JSON,
    BODY_TOO_LARGE,
    HEAD_TOO_LARGE,
    MALFORMED,
    NOT_FOUND,
    UNAVAILABLE_CLOSE,
    ClientError,
    method_not_allowed,
)

__all__ = [
    "BAD_FRAMING",
    "BAD_HOST",
    "BAD_JSON",
    "BODY_TOO_LARGE",
    "COOKIE",
    "HEAD_TOO_LARGE",
    "MALFORMED",
    "NOT_FOUND",
    "UNAVAILABLE_CLOSE",
    "ClientError",
    "EventEncoder",
    "Peer",
    "method_not_allowed",
]
