"""The elements of a JSON array, or the members of an object: where each ends, found without a loop over its tokens.

Owns the way from the bytes of one array to those of its elements, and from those of an object to those of its members:
all that is said here of an array holds for an object. Promises that an array is read to its end and is JSON, or is
refused; that an element is its own bytes; that none is nested deeper than `JSON_DEPTH`, the array counted.
Promises that a byte costs much the same whatever stands there, because some kilobytes of gzip may hold a megabyte of
the worst; that no step checks more than 64 KiB of a string, or 32 KiB of all else but one scalar or space that is
longer; and that no more is built than a step looks at. Never knows what an element is for.

Objects side by side, the ordinary case. A group that ends before some `},{` is checked in one call, in brackets of its
own. If it is JSON, its elements are whole, and their number is known. Each `},{` may part two of them or may stand
elsewhere. If there are just as many as part the elements, none stands elsewhere.

All else, window by window. Strings are taken out, and the depth before each byte that is left is a running sum. Commas
at depth 1 part elements. A window ends behind a bracket or comma, so that how it may go on depends on two things only:
the brackets that are open, and that last byte. Each window is checked as one document, with openings before it that
lead to where it begins and closings behind it that lead out of where it ends. The array is JSON if each of these is.

| behind            | a document begins, in `[` | in `{`   | and ends, before the closings |
| ----------------- | ------------------------- | -------- | ----------------------------- |
| an opening        | `[`                       | `{`      |                               |
| a comma           | `[0,`                     | `{"":0,` | `0`, or `"":0`                |
| a closing         | `[0`                      | `{"":0`  |                               |
"""

from __future__ import annotations

import re
from array import array
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import orjson

from ingest.event.bodies import JSON_DEPTH, sound_json
from ingest.event.refusals import BAD_JSON, JSON_TOO_DEEP, ClientError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

GROUP_BYTES: Final = 32 * 1024
WINDOW_BYTES: Final = 8 * 1024
PIECE_BYTES: Final = 64 * 1024
"""So much of one string is built at once."""
GUESSES: Final = 2
"""After so many groups that were none, all is looked at by windows."""

_WHITE: Final = b" \t\r\n"
_SPACE: Final = re.compile(rb"[ \t\r\n]*+")
_SPACES: Final = re.compile(rb"[ \t\r\n]{2,}+")
_STRUCTURE: Final = (b"[", b"]", b"{", b"}", b",")
_LIST, _LIST_END, _OBJECT, _OBJECT_END, _COMMA = b"[]{},"
_MARK: Final = b"\1"
"""Stands for a comma between two elements, once it is known that no such byte came."""

_BETWEEN: Final = re.compile(rb"\}[ \t\r\n]*+,[ \t\r\n]*+\{")
_TIGHT: Final = b"},{"
_LOOSE: Final = b"}, {"
_MARKED: Final = b"}\1{"
_TO_SPACE: Final = bytes.maketrans(b"\t\r\n", b"   ")
_TO_OPENING: Final = bytes.maketrans(b"{", b"[")
_NO_OPENING: Final = bytes(set(range(256)) - set(b"[{\1"))
_MAYBE_DEEP: Final = b"[" * JSON_DEPTH

_ESCAPED: Final = ((rb"\\", b"\0\2"), (rb"\"", b"\0\3"))
"""Masks of an escaped backslash or quote, so that each quote left begins or ends a string."""
_CHANGE: Final = bytes(1 if byte in b"[{" else 0xFF if byte in b"]}" else 0 for byte in range(256))
"""By how much a byte changes the depth, as signed bytes."""
_ESCAPE: Final = len(rb"\u0000")
_NOT_DEEP: Final = bytes(range(JSON_DEPTH + 1))
_IS_COMMA: Final = bytes(byte == _COMMA for byte in range(256))
_IS_OUTERMOST: Final = bytes(byte == 1 for byte in range(256))
_COMMA_TO_MARK: Final = _COMMA ^ 1
_CLOSING: Final = bytes.maketrans(b"[{", b"]}")
_OUTER: Final = {_LIST: b"[", _OBJECT: b'{"":'}
_BEHIND_COMMA: Final = {_LIST: b"[0,", _OBJECT: b'{"":0,'}
_BEHIND_VALUE: Final = {_LIST: b"[0", _OBJECT: b'{"":0'}
_REST: Final = {_LIST: b"0", _OBJECT: b'"":0'}

Found: TypeAlias = "list[bytes] | tuple[int, int] | ClientError | None"
"""Some elements; where one begins and ends that is longer than a window; why there is no array; or nothing yet."""

Reach: TypeAlias = "Callable[[int], None]"
"""Told how far all is known to be JSON, where no token is cut."""


def unheard(_at: int) -> None:
    """Take the place of who hears how far all is JSON."""


def elements(body: bytes, at: int, reach: Reach = unheard) -> Iterator[Found]:
    """Find the elements of an array whose first one, or the space before it, stands at `at`."""
    return _parts(body, at, _Place(b"[", _LIST), reach)


def members(body: bytes, at: int, reach: Reach = unheard) -> Iterator[Found]:
    """Find the members of an object, each with its name, as `elements` finds those of an array."""
    return _parts(body, at, _Place(b"{", _OBJECT), reach)


def _parts(body: bytes, at: int, place: _Place, reach: Reach) -> Iterator[Found]:
    size = len(body)
    start = at  # of the element that has not ended yet
    guesses = GUESSES
    while at < size:
        if start == at:
            start = at = end_of_space(body, at)
            if guesses and place.around == b"[":
                group = _group(body, at)
                if group is not None:
                    reach(group.end)
                    yield group.elements
                    if group.end == size:
                        return
                    place, start, at = _Place(b"[", _COMMA), group.end, group.end
                    continue
                guesses -= 1
        width = WINDOW_BYTES
        while (window := (yield from _window(body, at, width, place))) is None:
            width *= 4
            yield None
        if isinstance(window, ClientError):
            yield window
            return
        place = window.place
        end = at + len(window.text)
        pieces = window.text.split(_MARK)
        rest = pieces.pop()
        if not place.around:
            pieces.append(rest[:-1])
        reach(end if place.around else size)
        if pieces:
            if start < at:
                yield end_of_space(body, start), at + len(pieces.pop(0).rstrip(_WHITE))
            start = end - len(rest)
        yield _plain(pieces, window.text) or None
        if not place.around:
            return
        at = end
    yield BAD_JSON


def end_of_space(body: bytes, at: int) -> int:
    """Return where the space ends that stands at `at`, if any does."""
    space = _SPACE.match(body, at)
    return at if space is None else space.end()


# Objects side by side.


class _Group(NamedTuple):
    elements: list[bytes]
    end: int
    """Where the next element begins; the end of the body behind the last."""


def _group(body: bytes, at: int) -> _Group | None:
    """Find some objects that begin at `at`, if they are easily told apart."""
    if body[at : at + 1] != b"{":
        return None
    end = len(body)
    if end - at <= GROUP_BYTES:
        text = body[at:].rstrip(_WHITE)
        if text[-1] != _LIST_END:
            return None
        text = text[:-1].rstrip(_WHITE)
    else:
        stop = body.rfind(_TIGHT, at, at + GROUP_BYTES)
        if stop < 0:
            stop = body.rfind(_LOOSE, at, at + GROUP_BYTES)
        if stop < 0:
            return None
        text = body[at : stop + 1]
        end = end_of_space(body, stop + 2)
    try:
        built = orjson.loads(b"[%b]" % text)
    except orjson.JSONDecodeError:
        return None
    spaced = text.translate(_TO_SPACE)
    is_loose = b"} " in spaced or b" {" in spaced
    marked = _BETWEEN.sub(_MARKED, text) if is_loose else text.replace(_TIGHT, _MARKED)
    found = marked.split(_MARK)
    if len(found) != len(built) or {*map(type, built)} != {dict}:
        return None
    if _MAYBE_DEEP in marked.translate(_TO_OPENING, _NO_OPENING):
        return None
    return _Group(found, end)


# All else.


class _Place(NamedTuple):
    """A place in an array: all that what stands before it says of what may stand behind it."""

    around: bytes
    """The brackets that are open, the outermost first."""
    last: int
    """The bracket or comma just before."""

    def before(self) -> bytes:
        """Return the beginning of a document that leads here."""
        innermost = self.around[-1]
        if self.last == _COMMA:
            inner = _BEHIND_COMMA[innermost]
        elif self.last in (_LIST, _OBJECT):
            inner = self.around[-1:]
        else:
            inner = _BEHIND_VALUE[innermost]
        return b"".join([_OUTER[bracket] for bracket in self.around[:-1]]) + inner

    def behind(self) -> bytes:
        """Return the end of a document that comes here."""
        rest = _REST[self.around[-1]] if self.last == _COMMA else b""
        return rest + self.around[::-1].translate(_CLOSING)


class _Window(NamedTuple):
    text: bytes
    """Its bytes, with marks in place of the commas between elements, and of escapes."""
    place: _Place
    """Where it ends; no bracket is open behind the end of the array."""


def _window(body: bytes, at: int, width: int, place: _Place) -> Generator[None, None, _Window | ClientError | None]:
    """Look at some bytes that begin at `at`; None if neither a bracket nor a comma stands there.

    Only where none stood in the first `WINDOW_BYTES` more are looked at: one string, scalar or space is longer.
    """
    parts = _masked(body[at : at + width]).split(b'"')
    if len(parts) % 2 == 0:
        parts.pop()  # a string that has not ended
    outside = b'"'.join(parts[::2])
    end = max(map(outside.rfind, _STRUCTURE)) + 1
    if not end:
        return None if at + width < len(body) else BAD_JSON
    if width == WINDOW_BYTES:
        seen = _many(outside[:end], place.around)
    else:
        end = min(found for found in map(outside.find, _STRUCTURE) if found >= 0) + 1
        seen = _one(outside[:end], place.around)
    if isinstance(seen, ClientError):
        return seen
    marked = seen.marked.split(b'"')
    del parts[2 * len(marked) - 1 :]
    parts[::2] = marked
    text = b'"'.join(parts)
    held = body[at : at + len(text)] if width == WINDOW_BYTES else (yield from _shortened(body, at, parts))
    if held is None or sound_json(b"%b%b%b" % (place.before(), held, seen.place.behind())) is None:
        return BAD_JSON
    if not seen.place.around and end_of_space(body, at + len(text)) != len(body):
        return BAD_JSON
    return _Window(text, seen.place)


class _Seen(NamedTuple):
    marked: bytes
    """All outside of strings, with marks in place of the commas between elements."""
    place: _Place


def _many(outside: bytes, around: bytes) -> _Seen | ClientError:
    """Follow the brackets of a window up to its last bracket or comma, or to the end of the array."""
    depths = _depths(outside, len(around))
    if isinstance(depths, ClientError):
        return depths
    closed = depths.find(0)
    if closed > 0:
        outside, depths = outside[:closed], depths[: closed + 1]
    if depths.translate(None, _NOT_DEEP):
        return JSON_TOO_DEEP
    size = len(outside)
    commas = int.from_bytes(outside.translate(_IS_COMMA), "big")
    commas &= int.from_bytes(depths[:size].translate(_IS_OUTERMOST), "big")
    if closed < 0:
        # Ends between two elements, unless that leaves out much.
        comma = commas.to_bytes(size, "big").rfind(1)
        if comma > size * 3 // 4:
            commas >>= 8 * (size - comma - 1)
            outside, depths, size = outside[: comma + 1], depths[: comma + 2], comma + 1
    marked = (int.from_bytes(outside, "big") ^ commas * _COMMA_TO_MARK).to_bytes(size, "big")
    low = next(level for level in range(depths[-1] + 1) if level in depths)
    opened = bytes([outside[depths.rfind(level)] for level in range(low, depths[-1])])
    return _Seen(marked, _Place(around[:low] + opened, outside[-1]))


def _one(outside: bytes, around: bytes) -> _Seen | ClientError:
    """Follow the only bracket or comma, which stands at the end."""
    last = outside[-1]
    if last == _COMMA:
        if len(around) == 1:
            outside = outside[:-1] + _MARK
    elif last not in (_LIST, _OBJECT):
        around = around[:-1]
    elif len(around) == JSON_DEPTH:
        return JSON_TOO_DEEP
    else:
        around += outside[-1:]
    return _Seen(outside, _Place(around, last))


def _shortened(body: bytes, at: int, parts: list[bytes]) -> Generator[None, None, bytes | None]:
    """Return what the parts stand for, without space and long strings; None if such a string is none."""
    short = []
    for number, part in enumerate(parts):
        end = at + len(part)
        if number % 2 == 0:
            text = body[at:end]
            short.append(_SPACES.sub(b" ", text) if b"  " in text.translate(_TO_SPACE) else text)
        elif len(part) <= WINDOW_BYTES:
            short.append(body[at:end])
        elif (yield from _is_sound_string(body[at:end], part)):
            short.append(b"")
        else:
            return None
        at = end + 1
    return b'"'.join(short)


def _is_sound_string(text: bytes, masked: bytes) -> Generator[None, None, bool]:
    """Tell whether this is a JSON string without its quotes, in pieces that cut no character and no escape.

    A piece is a step.
    """
    at, end = 0, len(text)
    while at < end:
        cut = min(at + PIECE_BYTES, end)
        if cut < end:
            escape = masked.rfind(b"\\", cut - _ESCAPE + 1, cut)
            if escape >= 0:
                cut = escape
            else:
                cut -= masked[cut - 1] == 0  # the first byte of a mask; a NUL that came is a fault anywhere
                for _ in range(3):
                    cut -= text[cut] & 0xC0 == 0x80  # within a character
        if sound_json(b'"%b"' % text[at:cut]) is None:
            return False
        at = cut
        yield
    return True


def _depths(outside: bytes, depth: int) -> bytes | ClientError:
    """Return the depth before each byte and behind the last; or why none of that is an array."""
    changes = array("b", outside.translate(_CHANGE))
    try:
        return bytes(accumulate(changes, initial=depth))
    except ValueError:
        for now in accumulate(changes, initial=depth):
            if not now:
                break
            if now > JSON_DEPTH:
                return JSON_TOO_DEEP
        return BAD_JSON


def _masked(text: bytes) -> bytes:
    if b"\\" in text:
        for escaped, mask in _ESCAPED:
            text = text.replace(escaped, mask)
    return text


def _plain(pieces: list[bytes], text: bytes) -> list[bytes]:
    """Return pieces of a text without the space around them and without masks."""
    if b"\0" in text:
        for escaped, mask in _ESCAPED:
            pieces = [piece.replace(mask, escaped) for piece in pieces]
    return [piece.strip(_WHITE) for piece in pieces]
