"""Every answer there is, built once and then only written.

Owns the bytes of all answers, with their CORS headers; what they say is `event`'s. Promises that
an answer to a request with `Origin` carries the CORS headers, errors too, and that every answer carries `Date`
(RFC 9110 §6.6.1): the prebuilt answers of an origin live for one second. Never touches a connection.
"""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from ingest.event import EMPTY, PIXEL, RETRY_AFTER, UNAVAILABLE, UNAVAILABLE_CLOSE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingest.event import ClientError, Page

PREFLIGHT_MAX_AGE_SECONDS: Final = 86400
_ORIGINS_KEPT: Final = 512
_ORIGIN_KEPT_BYTES: Final = 256

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Answers:
    """The answers to requests of one origin (or of none), for one second.

    The four an event can get are attributes, for the hot path; anything else is built by `build`.
    """

    __slots__ = ("_common", "_readable", "pixel", "pixel_close", "refused", "refused_close", "stored", "stored_close")

    def __init__(self, date: str, cors: Sequence[tuple[str, str]] = (), *, readable: bool = False) -> None:
        self._common: tuple[tuple[str, str], ...] = (("Date", date), *cors)
        self._readable = readable
        """Whether scripts of this origin may read answers, and so have to be told which headers too (Fetch §3.2)."""
        self.stored = self.show(EMPTY)
        self.stored_close = self.show(EMPTY, close=True)
        self.pixel = self.show(PIXEL)
        self.pixel_close = self.show(PIXEL, close=True)
        self.refused = self.refuse(UNAVAILABLE)
        self.refused_close = self.refuse(UNAVAILABLE_CLOSE)

    def refuse(self, error: ClientError, *, close: bool | None = None, head_only: bool = False) -> bytes:
        """Return the answer that tells a client why; `close` overrides whether the connection is said to end."""
        return self.build(
            error.status,
            (("Content-Type", "text/plain; charset=utf-8"), *error.headers),
            error.reason.encode() + b"\n",
            close=error.close if close is None else close,
            head_only=head_only,
        )

    def show(self, page: Page, *, close: bool = False, head_only: bool = False) -> bytes:
        """Return the answer that shows a page."""
        return self.build(page.status, page.headers, page.body, close=close, head_only=head_only)

    def build(
        self,
        status: int,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        close: bool = False,
        head_only: bool = False,
    ) -> bytes:
        """Return a whole answer; a 204 has no Content-Length (RFC 9110 §8.6), an answer to HEAD no body."""
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        lines += [f"{name}: {value}" for name, value in (*self._common, *headers)]
        if status != HTTPStatus.NO_CONTENT:
            lines.append(f"Content-Length: {len(body)}")
        if self._readable and RETRY_AFTER in headers:
            lines.append(f"Access-Control-Expose-Headers: {RETRY_AFTER[0]}")
        if close:
            lines.append("Connection: close")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        return head if head_only else head + body


class AnswerBook:
    """Finds the answers for an origin; forgets them when the second has passed."""

    __slots__ = ("_allowed", "_any", "_by_origin", "_date", "plain")

    def __init__(self, cors_origins: Sequence[str]) -> None:
        self._any = "*" in cors_origins
        self._allowed = frozenset(cors_origins)
        self._by_origin: dict[bytes, Answers] = {}
        self.turn(0)

    def turn(self, seconds: int) -> None:
        """Begin a new second: `Date` has changed, so every prebuilt answer has."""
        self._date = formatdate(seconds, usegmt=True)
        self._by_origin.clear()
        self.plain = Answers(self._date)

    def of(self, origin: bytes) -> Answers:
        """Return the answers for requests with this `Origin`; few origins make up nearly all traffic."""
        answers = self._by_origin.get(origin)
        if answers is None:
            text = origin.decode("latin-1")
            answers = Answers(self._date, self._cors(text), readable=self._allows(text))
            if len(self._by_origin) < _ORIGINS_KEPT and len(origin) <= _ORIGIN_KEPT_BYTES:
                self._by_origin[origin] = answers
        return answers

    def _allows(self, origin: str) -> bool:
        return self._any or origin in self._allowed

    def _cors(self, origin: str) -> tuple[tuple[str, str], ...]:
        """Echo an allowed origin: with credentials, which `sendBeacon` always sends, `*` is not valid (Fetch §3.2)."""
        if self._allows(origin):
            return (
                ("Vary", "Origin"),
                ("Access-Control-Allow-Origin", origin),
                ("Access-Control-Allow-Credentials", "true"),
            )
        return (("Vary", "Origin"),)

    def preflight(self, origin: bytes | None, methods: str, requested_headers: bytes | None, *, close: bool) -> bytes:
        """Return the answer to `OPTIONS`: what a browser may then send (Fetch §4.8)."""
        headers = [("Allow", methods)]
        if origin is not None and self._allows(origin.decode("latin-1")):
            wanted = requested_headers.decode("latin-1") if requested_headers else "Content-Type"
            headers += [
                ("Access-Control-Allow-Methods", methods),
                ("Access-Control-Allow-Headers", wanted),
                ("Access-Control-Max-Age", str(PREFLIGHT_MAX_AGE_SECONDS)),
            ]
        answers = self.plain if origin is None else self.of(origin)
        return answers.build(204, headers, close=close)
