"""A large JSON value, checked without being built.

Owns the question whether bytes are a JSON value where they are more than one item may have. To build such a value would
take many times its size: 64 bytes for each `[]`. So each token is looked at, and no more than 64 KiB of strings and
numbers are built at once. Promises the answer of `sound_json`, and that the work can be left after any step.

| what may stand there | string | scalar | `[`     | `{`    | `]`    | `}`    | `,`            | `:`   |
| -------------------- | ------ | ------ | ------- | ------ | ------ | ------ | -------------- | ----- |
| value                | behind | behind | element | member |        |        |                |       |
| element              | behind | behind | element | member | behind |        |                |       |
| key                  | colon  |        |         |        |        |        |                |       |
| member               | colon  |        |         |        |        | behind |                |       |
| colon                |        |        |         |        |        |        |                | value |
| behind               |        |        |         |        | behind | behind | value, or key  |       |
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from ingest.event.bodies import sound_json

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

WHOLE_BYTES: Final = 256 * 1024
"""Up to here a value is built instead: at worst, 90,000 empty arrays, that takes 15 ms and 8 MiB."""
STEP_BYTES: Final = 64 * 1024
STEP_TOKENS: Final = 4096

_TOKEN: Final = re.compile(rb"""[ \t\r\n]*+("[^"]*"|[^]\[{},:" \t\r\n]++|[][{},:])""")
_STRING, _LIST, _LIST_END, _OBJECT, _OBJECT_END, _COMMA, _COLON = b'"[]{},:'
_SCALAR: Final = 0
_MARKS: Final = frozenset(b'"[]{},:')
_OPENING_OF: Final = {_LIST_END: _LIST, _OBJECT_END: _OBJECT}
_ESCAPE: Final = len(rb"\u0000")


class _Place(Enum):
    """A place in a value, by the token that may stand there. See the table of the module."""

    VALUE = auto()
    ELEMENT = auto()
    KEY = auto()
    MEMBER = auto()
    COLON = auto()
    BEHIND = auto()


_A_VALUE: Final = {
    _STRING: _Place.BEHIND,
    _SCALAR: _Place.BEHIND,
    _LIST: _Place.ELEMENT,
    _OBJECT: _Place.MEMBER,
}
_LEADS: Final[Mapping[_Place, Mapping[int, _Place]]] = {
    _Place.VALUE: _A_VALUE,
    _Place.ELEMENT: {**_A_VALUE, _LIST_END: _Place.BEHIND},
    _Place.KEY: {_STRING: _Place.COLON},
    _Place.MEMBER: {_STRING: _Place.COLON, _OBJECT_END: _Place.BEHIND},
    _Place.COLON: {_COLON: _Place.VALUE},
    _Place.BEHIND: {_LIST_END: _Place.BEHIND, _OBJECT_END: _Place.BEHIND, _COMMA: _Place.VALUE},
}


class _Grammar:
    """Where one value stands, token by token."""

    __slots__ = ("_around", "_place")

    def __init__(self) -> None:
        self._place = _Place.VALUE
        self._around: list[int] = []

    @property
    def is_whole(self) -> bool:
        """The value has ended."""
        return self._place is _Place.BEHIND and not self._around

    def takes(self, kind: int) -> bool:
        """Take a token, if it may stand here."""
        place = _LEADS[self._place].get(kind)
        around = self._around
        if place is None:
            return False
        if kind in (_LIST, _OBJECT):
            around.append(kind)
        elif kind in _OPENING_OF:
            if not around or around.pop() != _OPENING_OF[kind]:
                return False
        elif kind == _COMMA:
            if not around:
                return False
            if around[-1] == _OBJECT:
                place = _Place.KEY
        self._place = place
        return True


def is_sound(body: bytes, masked: bytes, start: int, end: int) -> Generator[None, None, bool]:
    """Tell whether these bytes are a JSON value; `masked` has NULs in place of escaped quotes and backslashes."""
    grammar = _Grammar()
    built: list[bytes] = []
    size = 0
    for number, token in enumerate(_TOKEN.finditer(masked, start, end), 1):
        if token.start() != start:
            return False  # there no token begins
        at, start = token.span(1)
        kind = masked[at] if masked[at] in _MARKS else _SCALAR
        if not grammar.takes(kind):
            return False
        if kind == _STRING and start - at > STEP_BYTES:
            if not (yield from _is_sound_string(body, masked, at + 1, start - 1)):
                return False
        elif kind in (_STRING, _SCALAR):
            built.append(body[at:start])
            size += start - at
        if size >= STEP_BYTES or not number % STEP_TOKENS:
            if not _are_sound(built):
                return False
            built.clear()
            size = 0
            yield None
    return start == end and grammar.is_whole and _are_sound(built)


def _are_sound(built: list[bytes]) -> bool:
    """Tell whether each is a string or a scalar: none has a comma or a bracket, but in a string."""
    return sound_json(b"[%b]" % b",".join(built)) is not None


def _is_sound_string(body: bytes, masked: bytes, at: int, end: int) -> Generator[None, None, bool]:
    """Tell whether these bytes are a JSON string without its quotes, in parts that cut no character and no escape."""
    while at < end:
        cut = min(at + STEP_BYTES, end)
        if cut < end:
            escape = masked.rfind(b"\\", cut - _ESCAPE + 1, cut)
            if escape >= 0:
                cut = escape
            else:
                # An escaped quote or backslash is two NULs; a NUL that came in the body is a fault wherever it stands.
                cut -= (cut - at - len(masked[at:cut].rstrip(b"\0"))) % 2
                for _ in range(3):
                    cut -= body[cut] & 0xC0 == 0x80  # within a character
        if sound_json(b'"%b"' % body[at:cut]) is None:
            return False
        at = cut
        yield None
    return True
