"""A sample of refused requests for the log: who runs a client finds in it what was sent where, and why it was refused.

Owns the line `request_refused`. Promises at most one a reason in `EVERY` seconds, the first at once, and that each
refusal is in the count of one of them: what a flood leaves untold is told when its time has come, or at the end.
Never shows a query, a header but the request's id, or a write key; never tells of want of room, which `refusing_events`
does.

The request's id is believed where a client's address is: it comes from a trusted proxy, in `X-Request-Id` or
`X-Amzn-Trace-Id`. Only plain characters of a path or an id are shown, and `SHOWN` of them at most.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import structlog

from ingest.wire.headers import TRACE_ID, X_REQUEST_ID

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ingest.event import ClientError

EVERY: Final = 60.0
SHOWN: Final = 128
"""Bytes of a path, or of an id, that a line has at most."""

_AUTHORITY: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_PLAIN_PATH: Final = re.compile(rb"[A-Za-z0-9/._~*-]*")
_PLAIN_ID: Final = re.compile(rb"[A-Za-z0-9=;:._+/*-]*")
_HIDDEN: Final = b"***"
_CUT: Final = "…"
_UNAVAILABLE: Final = 503
_NO_HEAD: Final[dict[bytes, bytes]] = {}

log = structlog.get_logger()


class _Told:
    """The refusals since the last line of one reason, and until when there is no other line."""

    __slots__ = ("count", "line", "until")

    def __init__(self) -> None:
        self.until = 0.0
        self.count = 0
        self.line: dict[str, object] = {}
        """That of the first request that is untold."""


class Refused:
    """See the module's text. `hidden`: the write keys."""

    __slots__ = ("_hidden", "_told")

    def __init__(self, hidden: Sequence[bytes] = ()) -> None:
        self._hidden = sorted(hidden, key=len, reverse=True)  # one may be the start of another
        self._told: dict[str, _Told] = {}
        """By reason; there are as many as the tables of refusals and routes have."""

    def __repr__(self) -> str:
        return f"<Refused {sum(told.count for told in self._told.values())} untold, {len(self._told)} reasons>"

    def add(
        self,
        error: ClientError,
        now: float,
        method: bytes = b"",
        target: bytes = b"",
        head: Mapping[bytes, bytes] = _NO_HEAD,
        *,
        trusted: bool = False,
    ) -> None:
        """Take note of a refusal. `trusted`: whether the peer's headers are believed."""
        if error.status == _UNAVAILABLE:
            return
        told = self._told.get(error.reason)
        if told is None:
            told = self._told[error.reason] = _Told()
        told.count += 1
        if told.count == 1:
            told.line = self._line(error, method, target, head, trusted=trusted)
        if now >= told.until:
            _tell(told, now)

    def sweep(self, now: float) -> None:
        """Tell what nobody has told in time, because nothing came after it."""
        for told in self._told.values():
            if told.count and now >= told.until:
                _tell(told, now)

    def finish(self) -> None:
        """Tell what is untold: the process ends."""
        for told in self._told.values():
            if told.count:
                _tell(told, told.until)

    def _line(
        self, error: ClientError, method: bytes, target: bytes, head: Mapping[bytes, bytes], *, trusted: bool
    ) -> dict[str, object]:
        line: dict[str, object] = {"status": error.status, "reason": error.reason}
        if target:
            line |= {"method": method.decode("latin-1"), "path": self._path(target)}
        request_id = (head.get(X_REQUEST_ID) or head.get(TRACE_ID)) if trusted else None
        if request_id:
            line["request_id"] = self._plain(_PLAIN_ID, request_id)
        return line

    def _path(self, target: bytes) -> str:
        """Return the path of a target: what stands behind it is the client's alone, before it may stand a password."""
        authority = _AUTHORITY.match(target)
        path = target[authority.end() :] if authority else target
        return self._plain(_PLAIN_PATH, path.partition(b"?")[0].partition(b"#")[0])

    def _plain(self, plain: re.Pattern[bytes], text: bytes) -> str:
        """Return a text without keys, if it is plain; else its parts before the first that is not.

        A part goes whole, because a key may stand in it, too, of which not all is plain.
        """
        for secret in self._hidden:
            text = text.replace(secret, _HIDDEN)
        if len(text) <= SHOWN and plain.fullmatch(text):
            return text.decode("ascii")
        found = plain.match(text[:SHOWN])
        end = 0 if found is None else text.rfind(b"/", 0, found.end()) + 1
        return text[:end].decode("ascii") + _CUT


def _tell(told: _Told, now: float) -> None:
    log.info("request_refused", **told.line, refused=told.count)
    told.until = now + EVERY
    told.count = 0
