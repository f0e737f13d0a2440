"""The short way: a read that is one whole event in a known layout becomes its line without a callback.

Owns the layouts and the parser that checks what they find. Promises that an event taken here has the line and the
answer that it would have got from `request`; a read that is not taken is left untouched. Never decides that a request
is malformed, and knows no request that is anything but a plain event.

One checking parser serves all connections. That is sound because it stands between two requests before and after each
read it accepts: a layout has no header but one that can frame a message, its Content-Length, of which the body has
exactly the length; nothing else ends a line for the parser than what ends it for the layout. After an error the parser
is given up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from httptools import HttpParserError, HttpParserUpgrade

from ingest.wire.layouts import EMPTY
from ingest.wire.parser import ASCII_ONLY, new_parser
from ingest.wire.turn import Answerer

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.event import EventEncoder, Peer
    from ingest.wire.answers import AnswerBook
    from ingest.wire.layouts import Layouts
    from ingest.wire.limits import ConnectionLimits
    from ingest.wire.turn import Turn


class Sender(Answerer, Protocol):
    """Who may send a whole event: a connection between two requests, with nothing held back."""

    peer: Peer


class ShortWay:
    """Takes whole events in known layouts, for all connections."""

    __slots__ = ("_body_limit", "_book", "_check", "_encoder", "_layouts", "_read_limit")

    def __init__(self, limits: ConnectionLimits, encoder: EventEncoder, book: AnswerBook, layouts: Layouts) -> None:
        self._body_limit = limits.body
        self._read_limit = limits.slice
        self._encoder = encoder
        self._book = book
        self._layouts = layouts
        self._check: Callable[[bytes], None] = new_parser(None).feed_data

    def take(self, sender: Sender, data: bytes, turn: Turn) -> bool:
        """Add a read that is one whole event in a known layout to the turn; False when it is anything else."""
        layouts = self._layouts
        if len(data) > self._read_limit:
            return False
        match = layouts.match(data)
        if match is None:
            return False
        layouts.last = number = match.lastindex
        post, origin, where = layouts.found[number]
        fields = match.group(*where)
        size = len(fields[0])
        if size > self._body_limit or (post and size != int(fields[-1])):
            return False
        try:
            if post or fields[0].isascii():
                self._check(data)
            else:
                end = match.end(where[0])
                self._check(data[:end].translate(ASCII_ONLY) + data[end:])
        except (HttpParserError, HttpParserUpgrade):
            self._check = new_parser(None).feed_data
            return False
        encoder = self._encoder
        answers = self._book.plain if origin == EMPTY else self._book.of(match[origin])
        if post:
            line = encoder.encode_body(turn.seconds, sender.peer, fields)
            if type(line) is not bytes:
                return False
            answer = answers.stored
        else:
            line = encoder.encode_query(turn.seconds, sender.peer, fields)
            answer = answers.pixel
        turn.lines.append(line)
        turn.size += len(line)
        turn.entries.append((sender, answer, answers.refused, 1))
        return True

    def count(self) -> None:
        """Count the layout that was met last."""
        self._layouts.count()

    def learn(self, data: bytes, now: float) -> None:
        """Learn the layout of a read that the parser took for one event."""
        self._layouts.learn(data, now)
