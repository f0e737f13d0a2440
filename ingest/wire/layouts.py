"""Where the values stand in an event that came whole: learned from requests that the parser has read.

Owns one question. Clients and load balancers write the same headers in the same order, request after request; a
*layout* is such a sequence of names. If a read is one whole event in a known layout, one match of one regular
expression tells which of its bytes are the values that somebody reads. The expression is a trie of all layouts learned,
so that dozens cost what one costs.

Promises that what is found is what the parser would tell: a layout is learned from a head that the parser accepted, in
which no header that is read or frames the message stands twice, and none asks for more than a plain request. Never
decides whether a request is sound: `ShortWay` has a parser read the same bytes before what is found is believed.

Clients choose what is learned, so that it is bounded, in number and in time: compiling costs milliseconds, and after a
lesson nothing is learned for a hundred times as long as it took. When no layout fits in any more, the one goes that was
met least; that is most often the last, so that a flood of new layouts takes the place of one.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final, TypeAlias

from ingest.wire.headers import (
    CONNECTION,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    EXPECT,
    HOST,
    ORIGIN,
    PLAIN_HOST,
    PROXY_CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LAYOUTS_KEPT: Final = 32
LINES_KEPT: Final = 48
"""Headers of a layout; a browser behind two proxies sends about 25."""
HEAD_KEPT: Final = 4096
LINES_KNOWN: Final = 512
"""Lines of all layouts together: they decide how long a lesson takes, which holds up the loop."""
PAUSE: Final = 100
"""How many times as long as a lesson took nothing is learned after it."""
LEAST_PAUSE: Final = 0.02
"""Seconds."""

EMPTY: Final = 1
"""The number of the group that is always empty: the value of a header which a layout does not have."""

_POST: Final = rb"POST %b HTTP/1\."
_GET: Final = rb"GET %b\?([!\"$-\xff]*) HTTP/1\."
_END_OF_POST: Final = rb"\r\n((?s:.*))"
_END_OF_GET: Final = rb"\r\n()\Z"
"""The group that closes last tells which layout it was; of a POST it is the body."""

_VALUE: Final = rb"[^ \t\r\n][^\r]*+(?<![ \t])"
"""White space around a value is no part of it (RFC 9110 §5.5): there is one space before it, and none at its ends. It
ends before the first CR, which is found fastest; were there a LF in it, the parser would refuse the request."""
_QUERY: Final = b"?"
_UNFIT: Final = frozenset({TRANSFER_ENCODING, CONTENT_ENCODING, EXPECT, UPGRADE, PROXY_CONNECTION})


Layout: TypeAlias = "tuple[bool, bool, int, tuple[int, ...]]"
"""Which groups of a match hold what: whether it is a POST; whether its connection ends with it; its Origin, or `EMPTY`;
and then what the event encoder takes (body or query, then its headers, `EMPTY` for those not there), with the
Content-Length of a POST behind it.

A plain tuple, since it is taken apart for every event."""

_Line: TypeAlias = "tuple[bytes, bytes, bool]"
"""A line of a layout: its pattern; the lower-case name of the value in its group, if it has one; and whether it says
that the connection ends."""


class _Node:
    """The continuations of a line in the trie: other lines, or the end of the head of the layout that `ends` here."""

    __slots__ = ("ends", "following")

    def __init__(self) -> None:
        self.following: dict[_Line, _Node] = {}
        self.ends: tuple[_Line, ...] | None = None


class Layouts:
    """The layouts a process knows. `match` and `found` go together: `found[match(data).lastindex]`."""

    __slots__ = (
        "_clock",
        "_headers",
        "_heeded",
        "_known",
        "_learn_at",
        "_learns",
        "_numbers",
        "_paths",
        "found",
        "match",
        "met",
    )

    def __init__(
        self,
        headers: tuple[bytes, ...],
        paths: Sequence[str] = ("/collect",),
        clock: Callable[[], float] = time.perf_counter,
        *,
        learns: bool = True,
    ) -> None:
        self._headers = headers
        self._paths = tuple(re.escape(path.encode()) for path in paths)
        """The paths of single events, as patterns. A layout has one of them."""
        self._learns = learns
        """Whether `headers` are all that is read of a head; else no layout can tell where the values stand."""
        self._heeded = frozenset({*headers, HOST, ORIGIN, CONNECTION, CONTENT_LENGTH, *_UNFIT})
        self._clock = clock
        self._learn_at = 0.0
        self._known: dict[tuple[_Line, ...], int] = {}
        """How often each was met before the last lesson; what was frequent once counts less with each."""
        self._numbers: dict[int | None, tuple[_Line, ...]] = {}
        self.met: dict[int | None, int] = {None: 0}
        """How often each number was met since, counted by who matches: once a turn, so that what is frequent is counted
        often."""
        self.found: dict[int | None, Layout] = {}
        self.match = re.compile(b"(?!)").match

    def learn(self, data: bytes, now: float) -> None:
        """Learn the layout of a read that the parser took for one event, unless it is too early for a lesson."""
        if now < self._learn_at or not self._learns:
            return
        began = self._clock()
        lines = self._lines_of(data)
        if lines is not None and self.match(data) is None:
            for number, known in self._numbers.items():
                self._known[known] += self.met[number]
            self._known = {known: count // 2 for known, count in self._known.items()}  # what was frequent once may go
            self._make_room(lines)
            self._known[lines] = 0
            self._compile()
        # Also if nothing came of it, because looking costs too.
        self._learn_at = now + max(PAUSE * (self._clock() - began), LEAST_PAUSE)

    def _make_room(self, lines: tuple[_Line, ...]) -> None:
        """Forget what was met least, until the new layout fits in."""
        room = LINES_KNOWN - len(lines)
        while self._known and (len(self._known) >= LAYOUTS_KEPT or sum(map(len, self._known)) > room):
            newest_first = reversed(self._known)
            del self._known[min(newest_first, key=self._known.__getitem__)]

    def _lines_of(self, data: bytes) -> tuple[_Line, ...] | None:
        """Take a layout from a head; None when it is not worth one, or asks for more than a plain request."""
        first, *headers = data[: max(0, data.find(b"\r\n\r\n", 0, HEAD_KEPT))].split(b"\r\n")
        post = first.startswith(b"POST")
        old = first.endswith(b"0")
        of_any = _POST if post else _GET
        targets = (of_any % path for path in self._paths)
        target = next((target for target in targets if re.fullmatch(target + b"[01]", first)), None)
        if target is None:
            return None
        # Without a word HTTP/1.0 ends the connection (RFC 9112 §9.3).
        lines: list[_Line] = [(target + (rb"0\r\n" if old else rb"1\r\n"), b"" if post else _QUERY, old)]
        names: list[bytes] = []
        for header in headers:
            spelling, _, value = header.partition(b":")
            name = spelling.lower()
            line = self._line(spelling, name, value, old=old)
            if name in _UNFIT or line is None:
                return None
            if name in (HOST, CONNECTION) or line[1]:
                names.append(name)
            lines.append(line)
        framed = HOST in names and (CONTENT_LENGTH in names) is post
        return tuple(lines) if framed and len(names) == len(set(names)) and len(lines) <= LINES_KEPT else None

    def _line(self, spelling: bytes, name: bytes, value: bytes, *, old: bool) -> _Line | None:
        """Return the pattern of a header's line, and the name of the value in it if that is read."""
        start = re.escape(spelling) + b":"
        if name in (HOST, CONNECTION) and name in self._headers:
            return None
        if name == CONNECTION:
            # Whether a connection is kept is for the parser to tell, unless it is said in one plain word.
            closes = value.lower() == b" close"
            plain = closes or (value.lower() == b" keep-alive" and not old)
            return (start + re.escape(value) + rb"\r\n", b"", closes) if plain else None
        if name == CONTENT_LENGTH:
            return start + rb" ([0-9]{1,9})\r\n", name, False
        if name == HOST:
            return (
                (start + b" " + PLAIN_HOST + rb"\r\n", b"", False) if re.fullmatch(b" " + PLAIN_HOST, value) else None
            )
        if name in self._heeded:
            return (start + b" (" + _VALUE + rb")\r\n", name, False) if re.fullmatch(b" " + _VALUE, value) else None
        return re.escape(self._shortest(spelling + b":")) + rb".*+\n", b"", False

    def _shortest(self, start: bytes) -> bytes:
        """Return as much of a line's start as tells that it is no header that is heeded.

        So what nobody reads may come in any order, and be anything, as long as it begins alike.
        """
        length = 1
        while any(name.startswith(start[:length].lower()) for name in self._heeded):
            length += 1
        return start[:length]

    def _compile(self) -> None:
        root = _Node()
        for lines in self._known:
            node = root
            for line in lines:
                node = node.following.setdefault(line, _Node())
            node.ends = lines
        self.found, self._numbers = {}, {}
        parts = [b"()"]
        self._write(root, parts, {}, EMPTY)
        self.met = dict.fromkeys((None, *self._numbers), 0)
        re.purge()  # it keeps every pattern that was compiled, up to 512 of these
        self.match = re.compile(b"".join(parts)).match

    def _write(self, node: _Node, parts: list[bytes], groups: dict[bytes, int], count: int) -> int:
        """Write what follows a line, with `groups` before it; return the number of groups there are then."""
        branches: list[tuple[_Line, _Node | None]] = [*node.following.items()]
        if node.ends is not None:
            branches.append(((_END_OF_GET if _QUERY in groups else _END_OF_POST, b"", False), None))
        parts.append(b"(?:" if len(branches) > 1 else b"")
        for number, ((pattern, name, _), follower) in enumerate(branches):
            parts += (b"|" if number else b"", pattern)
            if follower is not None:
                count += bool(name)
                count = self._write(follower, parts, groups | {name: count} if name else groups, count)
            else:
                count += 1
                lines = node.ends or ()
                self.found[count] = self._layout(groups, count, closes=any(closes for _, _, closes in lines))
                self._numbers[count] = lines
        parts.append(b")" if len(branches) > 1 else b"")
        return count

    def _layout(self, groups: dict[bytes, int], last: int, *, closes: bool) -> Layout:
        post = _QUERY not in groups
        body = last if post else groups[_QUERY]
        where = (body, *(groups.get(name, EMPTY) for name in (*self._headers, CONTENT_LENGTH)))
        return post, closes, groups.get(ORIGIN, EMPTY), where
