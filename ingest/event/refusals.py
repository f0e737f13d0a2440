"""Why a request is refused: one table of status, reason and the label that counts it.

Owns `ClientError` and every one there is. Promises that each is made in one place. Never touches a connection.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ingest.telemetry import Reason

RETRY_AFTER: Final = ("Retry-After", "1")


class ClientError(NamedTuple):
    """Why a request is refused: what the client reads, the label that counts it, and whether the connection ends."""

    status: int
    reason: str
    counted: Reason
    close: bool = True
    headers: tuple[tuple[str, str], ...] = ()


MALFORMED: Final = ClientError(400, "malformed HTTP request", Reason.MALFORMED)
BAD_HOST: Final = ClientError(400, "HTTP/1.1 needs exactly one Host, and a sound one", Reason.MALFORMED)
BAD_VERSION: Final = ClientError(400, "HTTP/1.1 and HTTP/1.0 are spoken here", Reason.MALFORMED)
BAD_FRAMING: Final = ClientError(400, "HTTP/1.0 has no Transfer-Encoding", Reason.MALFORMED)
BAD_PROXY_HEADER: Final = ClientError(400, "no sound PROXY protocol header", Reason.MALFORMED)
BAD_JSON: Final = ClientError(400, "the body is not JSON", Reason.NOT_JSON, close=False)
JSON_TOO_DEEP: Final = ClientError(400, "the JSON is nested deeper than 64 levels", Reason.NOT_JSON, close=False)
NUMBER_TOO_LONG: Final = ClientError(400, "the JSON has a number of more than 100 digits", Reason.NOT_JSON, close=False)
NOT_A_BATCH: Final = ClientError(
    400, "many events are lines, of type application/x-ndjson, or a JSON array", Reason.NOT_JSON, close=False
)
BAD_KEY: Final = ClientError(
    401,
    "a known write key is needed",
    Reason.BAD_KEY,
    close=False,
    headers=(("WWW-Authenticate", "Bearer"),),
)
BAD_ORIGIN: Final = ClientError(403, "this Origin is not among CORS_ORIGINS", Reason.BAD_ORIGIN, close=False)
NOT_FOUND: Final = ClientError(404, "no such path; events go to /collect", Reason.OTHER, close=False)
BROKEN_CODING: Final = ClientError(400, "the body is not what its Content-Encoding says", Reason.MALFORMED, close=False)
NOT_HERE: Final = ClientError(404, "no such path on ADMIN_ADDR; events go to HTTP_ADDR", Reason.OTHER, close=False)
BODY_TOO_LARGE: Final = ClientError(413, "body larger than MAX_BODY_SIZE", Reason.BODY_TOO_LARGE)
BODY_TOO_LARGE_DECODED: Final = BODY_TOO_LARGE._replace(
    reason="body larger than MAX_BODY_SIZE when decoded", close=False
)
BATCH_TOO_LARGE: Final = BODY_TOO_LARGE._replace(reason="body larger than MAX_BATCH_BODY_SIZE")
BATCH_TOO_LARGE_DECODED: Final = BATCH_TOO_LARGE._replace(
    reason="body larger than MAX_BATCH_BODY_SIZE when decoded", close=False
)
TRACKED_TOO_LARGE: Final = ClientError(
    422, "larger than MAX_BATCH_BODY_SIZE, or as a query than MAX_BODY_SIZE", Reason.BODY_TOO_LARGE
)
TRACKED_TOO_LARGE_DECODED: Final = TRACKED_TOO_LARGE._replace(
    reason="larger than MAX_BATCH_BODY_SIZE when decoded", close=False
)
TOO_MANY_ITEMS: Final = BODY_TOO_LARGE._replace(reason="more than 10,000 events in one request", close=False)
LINES_TOO_LARGE: Final = BODY_TOO_LARGE._replace(reason="the lines of these events exceed BATCH_BYTES", close=False)
HEAD_TOO_LARGE: Final = ClientError(431, "headers larger than MAX_HEADER_BYTES", Reason.HEAD_TOO_LARGE)
TRACKED_HEAD_TOO_LARGE: Final = ClientError(422, "larger than MAX_HEADER_BYTES in its headers", Reason.HEAD_TOO_LARGE)
TARGET_TOO_LONG: Final = ClientError(
    414, "request line longer than one with a query of MAX_BODY_SIZE", Reason.HEAD_TOO_LARGE
)
UNKNOWN_CODING: Final = ClientError(
    415,
    "a Content-Encoding here is gzip or deflate, once",
    Reason.OTHER,
    close=False,
    headers=(("Accept-Encoding", "gzip, deflate"),),
)
TOO_MANY: Final = ClientError(
    429,
    "more events than RATE_LIMIT lets an address send",
    Reason.RATE_LIMITED,
    close=False,
    headers=(RETRY_AFTER,),
)
UNKNOWN_TRANSFER_CODING: Final = ClientError(501, "the only Transfer-Encoding here is chunked", Reason.OTHER)
UNAVAILABLE: Final = ClientError(
    503,
    "cannot take events now; try again",
    Reason.QUEUE_FULL,
    close=False,
    headers=(RETRY_AFTER,),
)
UNAVAILABLE_CLOSE: Final = UNAVAILABLE._replace(close=True)


class Oversize(NamedTuple):
    """The refusals of a request that is too large: as it came, when decoded, for its query, and for its headers."""

    body: ClientError
    decoded: ClientError
    query: ClientError
    head: ClientError = HEAD_TOO_LARGE


ONE: Final = Oversize(BODY_TOO_LARGE, BODY_TOO_LARGE_DECODED, BODY_TOO_LARGE)
MANY: Final = Oversize(BATCH_TOO_LARGE, BATCH_TOO_LARGE_DECODED, BODY_TOO_LARGE)
TRACKED: Final = Oversize(TRACKED_TOO_LARGE, TRACKED_TOO_LARGE_DECODED, TRACKED_TOO_LARGE, TRACKED_HEAD_TOO_LARGE)
"""For clients that send what got a 413 or a 431 again, for ever, before anything else, but not what got a 422."""


def method_not_allowed(allowed: str) -> ClientError:
    """Return the 405 of a path, which must name the methods it has (RFC 9110 §15.5.6)."""
    return ClientError(
        405,
        f"allowed here: {allowed}",
        Reason.OTHER,
        close=False,
        headers=(("Allow", allowed),),
    )
