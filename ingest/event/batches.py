"""Many events in one request: from a body to the values of their lines, and to the reason for each that is none.

Owns what an item is, and where it begins and ends. A body of one of `LINES_TYPES` is lines; any other has to be one
JSON array. Promises that an item is stored byte for byte as it stood in the body; that an array is read to its end, and
is refused as a whole if it is no JSON; that one bad item fails itself only; and that the work can be left after any
step, of which none looks at much more than 64 KiB, 256 items, or one element of 256 KiB. Never knows who sent it, nor
makes a line.

Where an element of an array ends. No proper beginning of a JSON object is a JSON object. So if what stands before some
`},` is one, the element ends there; counting braces tells which `},` is worth a try. That needs a few calls an element,
none of which builds more than the element does. Where it fails (other elements than objects, braces in strings, nesting
that is deep or wide) each string and each bracket is looked at. An element that is larger than an item may be is none,
but may be the fault of the whole array: `large` looks into it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeAlias

from orjson import dumps

from ingest.event.bodies import FORMS, JSON_DEPTH, sound_json
from ingest.event.large import STEP_BYTES, STEP_TOKENS, WHOLE_BYTES, is_sound
from ingest.event.pages import Page
from ingest.event.refusals import (
    BAD_JSON,
    BODY_TOO_LARGE,
    JSON_TOO_DEEP,
    NOT_A_BATCH,
    TOO_MANY_ITEMS,
    ClientError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from ingest.event.bodies import Raw

MOST_ITEMS: Final = 10_000
LINES_TYPES: Final = frozenset(
    {
        b"application/x-ndjson",
        b"application/ndjson",
        b"application/jsonl",
        b"application/x-jsonl",
        b"application/jsonlines",
        b"application/x-jsonlines",
    }
)
"""The media types of lines, parameters left out."""

STEP_ITEMS: Final = 256

_WHITE: Final = b" \t\r\n\f\v"
_RETURN: Final = 0x0D
_BLANK: Final = re.compile(rb"[ \t\r\n\f\v]*+")
_SPACE: Final = rb"[ \t\r\n]*+"
_BEGIN: Final = re.compile(_SPACE + rb"\[" + _SPACE)
_EMPTY: Final = re.compile(_SPACE + rb"\[" + _SPACE + rb"\]" + _SPACE)
_NEXT: Final = re.compile(_SPACE + rb"(?:,|(\]))" + _SPACE)
_TOKEN: Final = re.compile(rb'"[^"]*"|[][{}]')
_SCALAR: Final = re.compile(rb"[^]\[{},\" \t\r\n]++")
_ESCAPED: Final = (b"\\\\", b'\\"')
_MASK: Final = b"\0\0"
"""Stands for an escaped backslash or quote, so that each quote left begins or ends a string."""
_QUOTE, _OBJECT = b'"{'
_OPENING: Final = b"[{"
_END: Final = b"},"
_NEXT_OBJECT: Final = b",{"
_TRIES: Final = 8
"""So many `},` of one element are looked at before its tokens are."""
_FAILURES: Final = 16
"""After so many elements for which that was in vain, the tokens of all others are looked at."""

Place: TypeAlias = "tuple[int, int]"
Found: TypeAlias = "Place | list[bytes] | ClientError | None"
"""Where an item begins and ends; the values of some items; why there is no array; or nothing yet, after a step."""


class Items:
    """The items of one request: those that become lines, and those that do not."""

    __slots__ = ("count", "rejected", "values")

    def __init__(self) -> None:
        self.count = 0
        """How many are good."""
        self.values = b""
        """Their values behind `"body":`, with a line feed between two. A value is JSON in one line; or, of an item that
        is no UTF-8, a NUL and its base64."""
        self.rejected: list[tuple[int, ClientError]] = []
        """The numbers of the others, and why."""

    def told(self) -> Page:
        """Return the page that tells a client what became of each."""
        rejected = [{"index": index, "reason": error.reason} for index, error in self.rejected]
        return Page(
            200 if self.count else 400,
            (("Content-Type", "application/json"),),
            dumps({"accepted": self.count, "rejected": rejected}),
        )


Unpacking: TypeAlias = "Generator[int, None, Items | ClientError]"
"""Yields how many bytes are held, after each step; returns the items, or why there are none."""


class Unpacker:
    """Finds the items of bodies."""

    __slots__ = ("_element_value", "_is_text", "_item_limit", "_item_value")

    def __init__(self, body_format: str, item_limit: int) -> None:
        self._item_limit = item_limit
        self._is_text = body_format == "text"
        form = FORMS[body_format]
        self._item_value: Callable[[Raw], bytes | ClientError] = form.item
        self._element_value: Callable[[Raw], bytes | ClientError] = form.element

    def unpack(self, body: Raw, content_type: Raw) -> Unpacking:
        """Find the items of a body of some media type."""
        if content_type.partition(b";")[0].strip().lower() in LINES_TYPES:
            found = _text_lines(body, self._item_limit) if self._is_text else _lines(body, 0, len(body))
            value_of = self._item_value
        elif _EMPTY.fullmatch(body):
            return Items()
        elif begin := _BEGIN.match(body):
            found, value_of = _elements(bytes(body), begin.end(), self._item_limit), self._element_value
        else:
            return NOT_A_BATCH
        return (yield from self._collect(body, found, value_of))

    def _collect(self, body: Raw, found: Iterator[Found], value_of: Callable[[Raw], bytes | ClientError]) -> Unpacking:
        items = Items()
        groups: list[bytes] = []
        values: list[bytes] = []
        limit = self._item_limit
        index = held = 0
        step = STEP_BYTES
        for one in found:
            if isinstance(one, ClientError):
                return one
            if isinstance(one, tuple):
                start, end = one
                value = value_of(body[start:end]) if end - start <= limit else BODY_TOO_LARGE
                if isinstance(value, ClientError):
                    items.rejected.append((index, value))
                else:
                    values.append(value)
                index += 1
                if index <= MOST_ITEMS and index % STEP_ITEMS and end < step:
                    continue
                step = end + STEP_BYTES
            elif one is not None:
                values += one
                index += len(one)
            if index > MOST_ITEMS:
                return TOO_MANY_ITEMS
            if values:
                items.count += len(values)
                groups.append(b"\n".join(values))
                held += len(groups[-1])
                values.clear()
            yield len(body) + held
        items.count += len(values)
        groups += values
        items.values = b"\n".join(groups)
        return items


def _text_lines(body: Raw, item_limit: int) -> Iterator[Found]:
    """Find the lines as `_lines` does; of a group that has nothing but plain lines the values, which is cheaper."""
    window = min(STEP_BYTES, item_limit)
    at, size = 0, len(body)
    while at < size:
        stop = body.rfind(b"\n", at, at + window)
        if stop < 0:
            stop = body.find(b"\n", at + window)
        elif b"\r" not in (group := body[at:stop]):
            try:
                lines = group.decode().split("\n")
            except UnicodeDecodeError:
                lines = [""]
            if "" not in lines and not any(map(str.isspace, lines)):
                yield [dumps(line) for line in lines]
                at = stop + 1
                continue
        stop = size if stop < 0 else stop
        yield from _lines(body, at, stop)
        at = stop + 1


def _lines(body: Raw, at: int, size: int) -> Iterator[Found]:
    """Find the lines that are not blank, a carriage return at their end left out."""
    while at < size:
        if body[at] in _WHITE:
            # Blank lines, however many; or white space that belongs to a line.
            blank = _BLANK.match(body, at, size)
            end = size if blank is None else blank.end()
            if end == size:
                return
            at = max(at, body.rfind(b"\n", at, end) + 1)
        start = at
        end = body.find(b"\n", at, size)
        if end < 0:
            end = size
        at = end + 1
        yield start, end - (body[end - 1] == _RETURN)


def _elements(body: bytes, at: int, item_limit: int) -> Iterator[Found]:
    """Find the elements of an array whose first one stands at `at`."""
    masked = body
    if b"\\" in body:
        for escaped in _ESCAPED:
            masked = masked.replace(escaped, _MASK)
    size = len(body)
    whole = max(item_limit, WHOLE_BYTES)
    guesses = _FAILURES
    while at < size:
        end = _object_end(body, masked, at) if guesses and body[at] == _OBJECT else 0
        if not end:
            guesses = max(guesses - 1, 0)
            found = yield from _token_end(masked, at)
            if isinstance(found, ClientError):
                yield found
                return
            end = found
            if not (yield from _is_element(body, masked, at, end, whole)):
                break
        yield at, end
        if masked.startswith(_NEXT_OBJECT, end):
            at = end + 1
            continue
        behind = _NEXT.match(masked, end)
        if behind is None:
            break
        at = behind.end()
        if behind.lastindex:
            if at == size:
                return
            break
    yield BAD_JSON


def _is_element(body: bytes, masked: bytes, start: int, end: int, whole: int) -> Generator[None, None, bool]:
    """Tell whether these bytes are a JSON value; up to `whole` of them are looked at in one step."""
    if end - start <= whole:
        return sound_json(body[start:end]) is not None
    return (yield from is_sound(body, masked, start, end))


def _object_end(body: bytes, masked: bytes, start: int) -> int:
    """Return where the object ends that begins at `start`, if that is easily found; else 0."""
    end, limit = start, start + STEP_BYTES
    open_now = opened = 0
    for _ in range(_TRIES):
        at = end
        end = masked.find(_END, at, limit) + 1
        if not end:
            return 0
        braces = masked.count(b"{", at, end)
        opened += braces
        open_now += braces - masked.count(b"}", at, end)
        if not open_now:
            deep = opened + masked.count(b"[", start, end) >= JSON_DEPTH
            return 0 if deep or sound_json(body[start:end]) is None else end
    return 0


def _token_end(masked: bytes, start: int) -> Generator[None, None, int | ClientError]:
    """Return where the value ends that begins at `start`, by each string and bracket; or why the array is refused."""
    scalar = _SCALAR.match(masked, start)
    if scalar is not None:
        return scalar.end()
    depth = 1  # the array's own
    for number, token in enumerate(_TOKEN.finditer(masked, start), 1):
        first = masked[token.start()]
        if first == _QUOTE:
            pass
        elif first in _OPENING:
            depth += 1
            if depth > JSON_DEPTH:
                return JSON_TOO_DEEP
        else:
            depth -= 1
        if depth <= 1:
            return token.end() if depth else BAD_JSON
        if not number % STEP_TOKENS:
            yield None
    return BAD_JSON
