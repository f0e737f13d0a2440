"""One JSON value of many bytes, read in steps and without a tree of it.

Owns what is asked of a body that is too large to be parsed at once: whether it is JSON, how it stands in a line, and
which strings in it may be a write key. Promises the verdict that `bodies` and `access` have on a smaller one; that
what is asked together is found in one reading, but that an object in which a key may stand further in is read once
more; and that no step costs more than one of `elements`. Never compares a key.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from ingest.event.bodies import LINE_BREAKS, Sound, has_long_number, json_item, json_value, mend_surrogates
from ingest.event.elements import elements, end_of_space, members, unheard
from ingest.event.refusals import BAD_JSON, NUMBER_TOO_LONG, ClientError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

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
    line = _Line(body)
    if first not in (b"{", b"["):
        return line.at_once()
    search = _search(body, at, asked, line.reach if asked.in_line else unheard)
    held = len(body) * (1 + asked.nested)
    while True:
        try:
            next(search)
        except StopIteration as end:
            found: list[_Members] | ClientError = end.value
            break
        yield held + line.size
    if isinstance(found, ClientError):
        return found
    there = (one.get(name, b"") for one in found for name in asked.names)
    strings = [json_value(text) for text in there if text[:1] == b'"' and len(text) <= asked.longest]
    return Looked(line.value() if asked.in_line else None, [one for one in strings if isinstance(one, str)])


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

    __slots__ = ("_at", "_body", "_is_long", "_joined")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0
        self._joined = bytearray()
        self._is_long = False
        """A number was met that is too long."""

    @property
    def size(self) -> int:
        return len(self._joined)

    def reach(self, at: int) -> None:
        """Take what stands before `at`, where no token is cut."""
        piece = self._body[self._at : at]
        self._at = at
        if _ESCAPE in piece:
            piece = bytes(mend_surrogates(piece))
        self._is_long = self._is_long or has_long_number(piece)
        self._joined += piece.translate(None, LINE_BREAKS)

    def value(self) -> Sound | ClientError:
        """Return the value, all of which was read."""
        return NUMBER_TOO_LONG if self._is_long else Sound(self._joined)

    def at_once(self) -> Looked | ClientError:
        """Return a value that is neither an object nor an array."""
        value = json_item(self._body)
        if isinstance(value, ClientError):
            return BAD_JSON if value is BAD_JSON else Looked(value, ())
        return Looked(Sound(value), ())
