"""Why a request is refused: one table of status, reason and metric.

Owns `ClientError` and every one there is. Promises that each is made in one place. Never touches a connection.
"""

from __future__ import annotations

from typing import Final, NamedTuple

RETRY_AFTER: Final = ("Retry-After", "1")


class ClientError(NamedTuple):
    """Why a request is refused: what the client reads, the metric that counts it, and whether the connection ends."""

    status: int
    reason: str
    metric: str
    close: bool = True
    headers: tuple[tuple[str, str], ...] = ()


MALFORMED: Final = ClientError(400, "malformed HTTP request", "http_requests_rejected_malformed_total")
BAD_HOST: Final = ClientError(400, "HTTP/1.1 needs exactly one Host", "http_requests_rejected_malformed_total")
BAD_FRAMING: Final = ClientError(400, "HTTP/1.0 has no Transfer-Encoding", "http_requests_rejected_malformed_total")
BAD_JSON: Final = ClientError(400, "the body is not JSON", "http_requests_rejected_not_json_total", close=False)
NOT_FOUND: Final = ClientError(
    404, "no such path; events go to /collect", "http_requests_rejected_other_total", close=False
)
BODY_TOO_LARGE: Final = ClientError(
    413, "body larger than MAX_BODY_SIZE", "http_requests_rejected_body_too_large_total"
)
HEAD_TOO_LARGE: Final = ClientError(
    431, "head larger than MAX_HEADER_BYTES", "http_requests_rejected_head_too_large_total"
)
UNAVAILABLE: Final = ClientError(
    503,
    "cannot take events now; try again",
    "http_requests_rejected_queue_full_total",
    close=False,
    headers=(RETRY_AFTER,),
)
UNAVAILABLE_CLOSE: Final = UNAVAILABLE._replace(close=True)


def method_not_allowed(allowed: str) -> ClientError:
    """Return the 405 of a path, which must name the methods it has (RFC 9110 §15.5.6)."""
    return ClientError(
        405,
        f"allowed here: {allowed}",
        "http_requests_rejected_other_total",
        close=False,
        headers=(("Allow", allowed),),
    )
