"""Many events in one request: from a body to the values of their lines, and to the reason for each that is none.

Owns what an item is, and where a line begins and ends. A body of one of `LINES_TYPES` is lines; any other has to be one
JSON array, whose `elements` are the items. Promises that an item is stored byte for byte as it stood in the body; that
an array is refused as a whole if it is no JSON; that one bad item fails itself only; and that the work can be left
after any step, of which none looks at much more than 64 KiB or makes more than 256 values. Never knows who sent it, nor
makes a line.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeAlias

from orjson import dumps

from ingest.event.bodies import FORMS
from ingest.event.elements import elements
from ingest.event.pages import Page
from ingest.event.refusals import (
    BODY_TOO_LARGE,
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
STEP_BYTES: Final = 64 * 1024
REJECTED_BYTES: Final = 112
"""So much memory the number of an item takes with the reason why it is none: a pair, an integer, a place in a list."""

_WHITE: Final = b" \t\r\n\f\v"
_RETURN: Final = 0x0D
_BLANK: Final = re.compile(rb"[ \t\r\n\f\v]*+")
_SPACE: Final = rb"[ \t\r\n]*+"
_BEGIN: Final = re.compile(_SPACE + rb"\[" + _SPACE)
_EMPTY: Final = re.compile(_SPACE + rb"\[" + _SPACE + rb"\]" + _SPACE)

Place: TypeAlias = "tuple[int, int]"
Found: TypeAlias = "Place | list[bytes] | list[bytes | ClientError] | ClientError | None"
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
"""Yields how many bytes are held beside the body, after each step; returns the items, or why there are none."""


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
        copied = 0
        if content_type.partition(b";")[0].strip().lower() in LINES_TYPES:
            found = _text_lines(body, self._item_limit) if self._is_text else _lines(body, 0, len(body))
            value_of = self._item_value
        elif _EMPTY.fullmatch(body):
            return Items()
        elif begin := _BEGIN.match(body):
            value_of = self._element_value
            text = bytes(body)
            copied = len(text) if text is not body else 0
            found = _elements(text, begin.end(), self._item_limit, value_of)
        else:
            return NOT_A_BATCH
        return (yield from self._collect(body, copied, found, value_of))

    def _collect(
        self, body: Raw, copied: int, found: Iterator[Found], value_of: Callable[[Raw], bytes | ClientError]
    ) -> Unpacking:
        items = Items()
        joined = bytearray()  # a value alone may take up many times its size
        values: list[bytes] = []
        limit = self._item_limit
        index = 0
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
                for number, value in enumerate(one, index):
                    if isinstance(value, ClientError):
                        items.rejected.append((number, value))
                    else:
                        values.append(value)
                index += len(one)
            if index > MOST_ITEMS:
                return TOO_MANY_ITEMS
            self._join(items, joined, values)
            yield copied + len(joined) + REJECTED_BYTES * len(items.rejected)
        self._join(items, joined, values)
        items.values = bytes(joined)
        return items

    @staticmethod
    def _join(items: Items, joined: bytearray, values: list[bytes]) -> None:
        if values:
            if items.count:
                joined += b"\n"
            joined += b"\n".join(values)
            items.count += len(values)
            values.clear()


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


def _elements(body: bytes, at: int, item_limit: int, value_of: Callable[[Raw], bytes | ClientError]) -> Iterator[Found]:
    """Find the elements of an array whose first one stands at `at`."""
    for found in elements(body, at):
        if isinstance(found, list):
            for first in range(0, len(found), STEP_ITEMS):
                group = found[first : first + STEP_ITEMS]
                yield [value_of(one) if len(one) <= item_limit else BODY_TOO_LARGE for one in group]
        else:
            yield found
