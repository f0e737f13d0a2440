"""Measures the framing of an unfinished request.

Owns one question that the parser, which names no offsets, leaves open: of a slice that begins between two requests and
ends inside a later one, how many bytes belong to that one and are not body? Answers it by reading the slice once more,
line by line. Only a pipelining client whose reads end inside a request causes the work.
"""

from __future__ import annotations

from typing import Final

from httptools import HttpParserUpgrade

from ingest.wire.request import new_parser

EMPTY_LINES: Final = b"\r\n"
"""Between requests they mean nothing (RFC 9112 §2.2), and belong to none."""


class Meter:
    """Reads a slice that begins between requests once more, to tell how many framing bytes its last request has."""

    __slots__ = ("_body_size", "_declared", "_idle", "_in_body", "_length")

    def __init__(self) -> None:
        self._idle = True
        self._in_body = False
        self._declared = 0
        self._body_size = 0
        self._length = 0

    # The parser's callbacks, in the order in which they fire.

    def on_message_begin(self) -> None:
        """Begin to count."""
        self._idle = self._in_body = False
        self._length = self._body_size = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note how long the body will be."""
        if not self._in_body and name.lower() == b"content-length":
            self._length = int(value)

    def on_headers_complete(self) -> None:
        """Count body apart from here."""
        self._in_body = True
        self._declared = self._length

    def on_body(self, body: bytes) -> None:
        """Leave the body out."""
        self._body_size += len(body)

    def on_message_complete(self) -> None:
        """Be between requests again."""
        self._idle = True
        self._in_body = False
        self._body_size = 0

    def measure(self, data: bytes) -> int:
        """Return the bytes of the unfinished request at the end of `data` that are not body; 0 when there is none."""
        parser = new_parser(self)
        framing = at = 0
        end = len(data)
        while at < end:
            if self._in_body and self._declared:
                stop = min(end, at + self._declared - self._body_size)
            else:
                stop = data.find(b"\n", at) + 1 or end
            body = self._body_size
            piece = data[at:stop]
            size = len(piece.lstrip(EMPTY_LINES)) if self._idle else len(piece)
            try:
                parser.feed_data(piece)
            except HttpParserUpgrade:
                # Only the last line can be the one: the slice was cut behind it.
                return framing + size
            framing = 0 if self._idle else framing + size - (self._body_size - body)
            at = stop
        return framing
