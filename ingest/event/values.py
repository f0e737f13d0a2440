"""One JSON value of many bytes, read in steps and without a tree of it.

Owns what is asked of a body that is too large to be parsed at once: whether it is JSON, how it stands in a line, and
which strings in it may be a write key. Promises the verdict that `bodies` and `access` have on a smaller one; that
what is asked together is found in one reading, but that an object in which a key may stand further in is read once
more; and that no step costs more than one of `elements`. Never compares a key.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from ingest.event.bodies import LINE_BREAKS, Sound, has_long_number, json_value, mend_surrogates, mended_in_steps
from ingest.event.elements import PIECE_BYTES, elements, end_of_space, members, unheard
from ingest.event.refusals import BAD_JSON, NUMBER_TOO_LONG, ClientError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from ingest.event.elements import Reach

AT_ONCE: Final = 8192
"""A body of so many bytes at most is parsed at once."""
PROPERTIES: Final = "properties"
LONGEST_NAME: Final = 6 * len(PROPERTIES)
"""Bytes of the longest name that is looked at, when each letter is escaped."""

_NAME: Final = re.compile(rb'"([^"]*+)"[ \t\r\n]*+:[ \t\r\n]*+')
_ESCAPE: Final = rb"\u"


class Asked(NamedTuple):
    """A question about a body."""

    in_line: bool = False
    """How it stands in a line."""
    names: tuple[str, ...] = ()
    """Strings on the first level of an object, by their names."""
    nested: bool = False
    """Those of the first element of an array too, and those in the `properties` of either."""
    longest: int = 0
    """Bytes of the longest string that is asked for, as it stands there."""


class Looked(NamedTuple):
    """The answer for a body that is JSON."""

    line: Sound | ClientError | None
    """Its value in a line, or why readers would fail at it; None when that was not asked."""
    strings: Sequence[str]
    """The strings, in the order of the names. The last of a name counts, as for readers of JSON."""


Looking: TypeAlias = "Generator[int, None, Looked | ClientError]"
"""Yields how many bytes are held, after each step; returns what was found, or why the body is not JSON."""

_Members: TypeAlias = "dict[str, bytes]"
_Found: TypeAlias = "Generator[None, None, _Members | ClientError]"


def look(body: bytes, asked: Asked) -> Looking:
    """Look at a body. Where none of its strings can be one that is asked for, nothing is read."""
    at = end_of_space(body, 0)
    first = body[at : at + 1]
    if asked.names and first != b"{" and not (first == b"[" and asked.nested):
        return Looked(None, ())
    if first not in (b"{", b"["):
        return (yield from _look_at_bare(body))
    line = _Line(body)
    search = _search(body, at, asked, line.reach if asked.in_line else unheard)
    held = len(body) * (1 + asked.nested)
    while True:
        try:
            next(search)
        except StopIteration as end:
            found: list[_Members] | ClientError = end.value
            break
        for _ in line.take():
            yield held + line.size
    if isinstance(found, ClientError):
        return found
    there = (one.get(name, b"") for one in found for name in asked.names)
    strings = [json_value(text) for text in there if text[:1] == b'"' and len(text) <= asked.longest]
    return Looked(line.value() if asked.in_line else None, [one for one in strings if isinstance(one, str)])


def _look_at_bare(body: bytes) -> Looking:
    """Look at a value that is no object and no array: it is the only element of an array that is made of it."""
    body = b"[%b]" % body
    line = _Line(body)
    texts = 0
    for found in elements(body, 1, line.reach):
        if isinstance(found, ClientError):
            return found
        if found is not None:
            texts += len(found) if found != [b""] and isinstance(found, list) else isinstance(found, tuple)
        for _ in line.take():
            yield 2 * len(body) + line.size
    value = line.value()
    if texts != 1:
        return BAD_JSON
    return Looked(value if isinstance(value, ClientError) else Sound(value[1:-1]), ())


def _search(body: bytes, at: int, asked: Asked, reach: Reach) -> Generator[None, None, list[_Members] | ClientError]:
    """Read all of a body; return the members of each object in it that may hold a string that is asked for."""
    names = (*asked.names, PROPERTIES) if asked.nested else asked.names
    if body[at : at + 1] == b"{":
        found = yield from _members(body, at, names, reach)
    else:
        element = yield from _first_element(body, at, reach)
        if isinstance(element, ClientError):
            return element
        if not asked.nested or not element.startswith(b"{"):
            return []
        found = yield from _members(element, 0, names)
    if isinstance(found, ClientError):
        return found
    properties = found.get(PROPERTIES, b"")
    if not properties.startswith(b"{"):
        return [found]
    inner = yield from _members(properties, 0, asked.names)
    return inner if isinstance(inner, ClientError) else [found, inner]


def _first_element(body: bytes, at: int, reach: Reach) -> Generator[None, None, bytes | ClientError]:
    """Read an array; return its first element."""
    first: bytes | None = None
    for found in elements(body, at + 1, reach):
        if isinstance(found, ClientError):
            return found
        if first is None and found is not None:
            first = found[0] if isinstance(found, list) else body[slice(*found)]
        yield
    return first or b""


def _members(body: bytes, at: int, names: tuple[str, ...], reach: Reach = unheard) -> _Found:
    """Read an object; return the texts of those of its members that have one of these names."""
    there: _Members = {}
    plain = tuple(b'"%b"' % name.encode() for name in names)
    for found in members(body, at + 1, reach):
        if isinstance(found, ClientError):
            return found
        if isinstance(found, list):
            for text in found:
                if text.startswith(plain) or _ESCAPE in text[:LONGEST_NAME]:
                    _note(there, names, text, 0, len(text))
        elif found is not None:
            _note(there, names, body, *found)
        yield
    return there


def _note(there: _Members, names: tuple[str, ...], body: bytes, start: int, end: int) -> None:
    """Note the member that stands there, if it has one of these names."""
    match = _NAME.match(body, start, end)
    if match is None or len(match[1]) > LONGEST_NAME:
        return
    name = json_value(b'"%b"' % match[1]) if _ESCAPE in match[1] else match[1].decode()
    if name in names:
        there[str(name)] = body[match.end() : end]


class _Line:
    """A JSON value on its way into a line, as far as it was read."""

    __slots__ = ("_at", "_body", "_is_long", "_joined", "_mended", "_reached")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = self._reached = 0
        """How much of it was taken, and how much is known to be sound."""
        self._joined = bytearray()
        self._mended = 0
        """Bytes that are held to be mended."""
        self._is_long = False
        """A number was met that is too long."""

    @property
    def size(self) -> int:
        """Bytes that are held beside the body."""
        return len(self._joined) + self._mended

    def reach(self, at: int) -> None:
        """Note that all is sound that stands before `at`, where no token is cut."""
        self._reached = at

    def take(self) -> Iterator[None]:
        """Take what is sound, in steps: one, but for a long string that has to be mended."""
        piece = self._body[self._at : self._reached]
        self._at = self._reached
        self._is_long = self._is_long or has_long_number(piece)
        if _ESCAPE not in piece:
            self._joined += piece.translate(None, LINE_BREAKS)
        elif len(piece) <= PIECE_BYTES:
            self._joined += mend_surrogates(piece).translate(None, LINE_BREAKS)
        else:
            self._mended = 2 * len(piece)
            for mended in mended_in_steps(piece):
                self._joined += mended.translate(None, LINE_BREAKS)
                yield
            self._mended = 0
        yield

    def value(self) -> Sound | ClientError:
        """Return the value, all of which was taken."""
        return NUMBER_TOO_LONG if self._is_long else Sound(self._joined)
