"""Every answer there is, built once and then only written.

Owns the bytes of all answers, with their CORS headers; what they say is `event`'s. Promises that an answer to a request
with `Origin` carries the CORS headers, errors too; that an answer which a cache may keep says that it depends on
`Origin`, also where the request had none; and that every answer carries `Date` (RFC 9110 §6.6.1): the prebuilt answers
of an origin live for one second, and a new origin costs little more than a look-up. Never touches a connection.
"""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeAlias

from ingest.event import EMPTY, PIXEL, RETRY_AFTER, UNAVAILABLE, UNAVAILABLE_CLOSE, Origins, Page

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingest.event import ClientError, Preflight

PREFLIGHT_MAX_AGE_SECONDS: Final = 86400
_ORIGINS_KEPT: Final = 512
_ORIGIN_KEPT_BYTES: Final = 256

_WITHOUT_LENGTH: Final = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

Frame: TypeAlias = "tuple[bytes, bytes]"
"""An answer in two pieces; the headers of its second and its origin go between them."""


def _frame(page: Page, *, close: bool = False, head_only: bool = False, readable: bool = False) -> Frame:
    """Return the frame of a page's answer; an answer to HEAD has no body.

    A 204 may not have a Content-Length, and that of a 304 would be the page's (RFC 9110 §8.6).
    """
    lines = [f"{name}: {value}" for name, value in page.headers]
    if page.status not in _WITHOUT_LENGTH:
        lines.append(f"Content-Length: {len(page.body)}")
    if readable:
        names = {name for name, _ in page.headers}
        if RETRY_AFTER[0] in names:
            lines.append(f"Access-Control-Expose-Headers: {RETRY_AFTER[0]}")
        if "Timing-Allow-Origin" not in names:
            lines.append("Timing-Allow-Origin: *")
    if close:
        lines.append("Connection: close")
    status = f"HTTP/1.1 {page.status} {HTTPStatus(page.status).phrase}\r\n"
    rest = "\r\n".join((*lines, "", "")).encode("latin-1")
    return status.encode(), rest if head_only else rest + page.body


def _refusal(error: ClientError) -> Page:
    return Page(
        error.status,
        (("Content-Type", "text/plain; charset=utf-8"), *error.headers),
        error.reason.encode() + b"\n",
    )


def _frames(page: Page, *, close: bool = False) -> tuple[Frame, Frame]:
    return _frame(page, close=close), _frame(page, close=close, readable=True)


_STORED: Final = _frames(EMPTY)
_STORED_CLOSE: Final = _frames(EMPTY, close=True)
_PIXEL: Final = _frames(PIXEL)
_PIXEL_CLOSE: Final = _frames(PIXEL, close=True)
_REFUSED: Final = _frames(_refusal(UNAVAILABLE))
_REFUSED_CLOSE: Final = _frames(_refusal(UNAVAILABLE_CLOSE), close=True)
"""The frames of the answers to an event: for whom nothing is readable, and for scripts that may read."""


def said_kept(answer: bytes) -> bytes:
    """Return an answer that says to a client of HTTP/1.0 that its connection is kept (RFC 9112 §9.3)."""
    return answer.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n", 1)


class Answers:
    """The answers to requests of one origin (or of none), for one second.

    Those an event can get are attributes, for the hot path.
    """

    __slots__ = (
        "_common",
        "_events",
        "_of_refusals",
        "_readable",
        "pixel",
        "pixel_close",
        "refused",
        "refused_close",
        "stored",
        "stored_close",
    )

    def __init__(self, date: bytes, cors: bytes = b"", *, readable: bool = False) -> None:
        self._common = common = date + cors
        self._of_refusals = of_refusals = date + (cors or _VARY)
        """A cache may keep a refusal that does not forbid it, and what is stored or shown here it may not."""
        self._readable = readable
        """Whether scripts of this origin may read answers: then they are told which headers too (Fetch §3.2), and how
        long it took (Resource Timing §4.5.1)."""
        self._events: dict[tuple[Page, bool], bytes] = {}
        """Those to events of SDKs that came."""
        self.stored = common.join(_STORED[readable])
        self.stored_close = common.join(_STORED_CLOSE[readable])
        self.pixel = common.join(_PIXEL[readable])
        self.pixel_close = common.join(_PIXEL_CLOSE[readable])
        self.refused = of_refusals.join(_REFUSED[readable])
        self.refused_close = of_refusals.join(_REFUSED_CLOSE[readable])

    def event(self, page: Page, *, close: bool) -> bytes:
        """Return the answer to an event whose client expects a page of its own; one for all, as the others are."""
        answer = self._events.get((page, close))
        if answer is None:
            answer = self._events[page, close] = self.show(page, close=close)
        return answer

    def refuse(self, error: ClientError, *, close: bool | None = None, head_only: bool = False) -> bytes:
        """Return the answer that tells a client why; `close` overrides whether the connection is said to end."""
        ends = error.close if close is None else close
        return self._of_refusals.join(_frame(_refusal(error), close=ends, head_only=head_only, readable=self._readable))

    def show(self, page: Page, *, close: bool = False, head_only: bool = False) -> bytes:
        """Return the answer that shows a page."""
        return self._common.join(_frame(page, close=close, head_only=head_only, readable=self._readable))


_VARY: Final = b"Vary: Origin\r\n"
_CORS: Final = _VARY + b"Access-Control-Allow-Origin: %b\r\nAccess-Control-Allow-Credentials: true\r\n"
"""An allowed origin is echoed: with credentials, which `sendBeacon` always sends, `*` is not valid (Fetch §3.2)."""


class AnswerBook:
    """Finds the answers for an origin; forgets them when the second has passed."""

    __slots__ = ("_allows", "_by_origin", "_date", "plain")

    def __init__(self, cors_origins: Sequence[str]) -> None:
        self._allows = Origins(cors_origins).allow
        self._by_origin: dict[bytes, Answers] = {}
        self.turn(0)

    def turn(self, seconds: int) -> None:
        """Begin a new second: `Date` has changed, so every prebuilt answer has."""
        self._date = b"Date: %b\r\n" % formatdate(seconds, usegmt=True).encode()
        self._by_origin.clear()
        self.plain = Answers(self._date)

    def of(self, origin: bytes) -> Answers:
        """Return the answers for requests with this `Origin`; few origins make up nearly all traffic."""
        answers = self._by_origin.get(origin)
        if answers is None:
            allowed = self._allows(origin)
            answers = Answers(self._date, _CORS % origin if allowed else _VARY, readable=allowed)
            if len(self._by_origin) < _ORIGINS_KEPT and len(origin) <= _ORIGIN_KEPT_BYTES:
                self._by_origin[origin] = answers
        return answers

    def preflight(
        self,
        origin: bytes | None,
        asked: Preflight,
        requested_headers: bytes | None,
        *,
        to_private: bool,
        close: bool,
    ) -> bytes:
        """Return the answer to `OPTIONS`: what a browser may then send (Fetch §4.8).

        `to_private`: it also asks whether a page from outside may send into the network that this server stands in.
        """
        headers = [("Allow", asked.methods)]
        if origin is None:
            headers.append(("Vary", "Origin"))
        if origin is not None and self._allows(origin):
            wanted = requested_headers.decode("latin-1") if requested_headers else "Content-Type"
            named = asked.headers
            more = (name for name in wanted.split(",") if name.strip().lower() not in named) if named else (wanted,)
            headers += [
                ("Access-Control-Allow-Methods", asked.methods),
                ("Access-Control-Allow-Headers", ", ".join((*named, *(name.strip() for name in more)))),
                ("Access-Control-Max-Age", str(PREFLIGHT_MAX_AGE_SECONDS)),
            ]
            if to_private:
                headers.append(("Access-Control-Allow-Private-Network", "true"))
        answers = self.plain if origin is None else self.of(origin)
        return answers.show(Page(204, tuple(headers)), close=close)
