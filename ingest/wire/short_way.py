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

from itertools import islice
from typing import TYPE_CHECKING, Protocol, TypeAlias

from httptools import HttpParserError, HttpParserUpgrade

from ingest.wire.layouts import EMPTY
from ingest.wire.limits import TURN_BYTES
from ingest.wire.parser import ASCII_ONLY, new_parser
from ingest.wire.turn import Answerer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ingest.event import Access, EventEncoder, Peer
    from ingest.event.client import Fields
    from ingest.wire.answers import AnswerBook
    from ingest.wire.layouts import Layouts
    from ingest.wire.limits import ConnectionLimits
    from ingest.wire.turn import Turn


class Sender(Answerer, Protocol):
    """Who sends: a connection, of which an event is taken only between two requests, with nothing held back."""

    peer: Peer
    deadline: float
    whole: bool
    """The next read may be a whole event."""

    def feed(self, data: bytes) -> None:
        """Read one read's bytes the long way."""

    def end(self, *, linger: bool) -> None:
        """Answer nothing after this."""


Read: TypeAlias = "tuple[Sender, bytes]"
"""The bytes of one read, with their sender."""


class ShortWay:
    """Takes whole events in known layouts, for all connections."""

    __slots__ = ("_access", "_body_limit", "_book", "_check", "_encoder", "_layouts", "_read_limit")

    def __init__(
        self,
        limits: ConnectionLimits,
        encoder: EventEncoder,
        book: AnswerBook,
        layouts: Layouts,
        access: Access | None = None,
    ) -> None:
        self._access = access
        self._body_limit = limits.body
        self._read_limit = limits.slice
        self._encoder = encoder
        self._book = book
        self._layouts = layouts
        self._check: Callable[[bytes], None] = new_parser(None).feed_data

    def take(self, reads: Iterator[Read], turn: Turn, answers: int, deadline: float) -> Read | None:
        """Add reads to the turn, as long as each is one whole event in a known layout; return the first that is not.

        None when there are no more, or the turn has so many `answers`, or `TURN_BYTES` of lines. Who sent what is taken
        has until `deadline` to send the next.

        One loop for all, because a call, and looking up what stays the same, would cost each event.
        """
        layouts, encoder, book = self._layouts, self._encoder, self._book
        match, found, check = layouts.match, layouts.found, self._check
        read_limit, body_limit = self._read_limit, self._body_limit
        encode_body, seconds, lines, entries = encoder.encode_body, turn.seconds, turn.lines, turn.entries
        size, number = turn.size, None
        try:
            for read in islice(reads, answers - len(entries)):
                sender, data = read
                if not sender.whole or len(data) > read_limit:
                    return read
                matched = match(data)
                if matched is None:
                    return read
                number = matched.lastindex
                post, closes, origin, where = found[number]
                fields = matched.group(*where)
                body = fields[0]
                length = len(body)
                if length > body_limit or (post and length != int(fields[-1])):
                    return read
                try:
                    if post or body.isascii():
                        check(data)
                    else:
                        end = matched.end(where[0])
                        check(data[:end].translate(ASCII_ONLY) + data[end:])
                except (HttpParserError, HttpParserUpgrade):
                    self._check = new_parser(None).feed_data
                    return read
                own = book.plain if origin == EMPTY else book.of(matched[origin])
                if post:
                    line = encode_body(seconds, sender.peer, fields)
                    if type(line) is not bytes:
                        return read
                    answer = own.stored_close if closes else own.stored
                else:
                    line = encoder.encode_query(seconds, sender.peer, fields)
                    answer = own.pixel_close if closes else own.pixel
                lines.append(line)
                sender.deadline = deadline
                if closes:
                    entries.append((sender, answer, own.refused_close, 1))
                    sender.end(linger=False)
                else:
                    entries.append((sender, answer, own.refused, 1))
                size += len(line)
                if size >= TURN_BYTES:
                    break
        finally:
            turn.size = size
            layouts.met[number] += 1
        return None

    def take_admitted(self, reads: Iterator[Read], turn: Turn, answers: int, deadline: float) -> Read | None:
        """Add reads to the turn as `take` does, as long as each is of an event that may come; `request` tells others.

        A request that needs a key is in no layout. So there is a limit of events, or a list of origins.
        """
        for read in islice(reads, answers - len(turn.entries)):
            fields = self._admit(*read)
            if fields is None or self.take(iter((read,)), turn, answers, deadline) is not None:
                return read
            if self._access is not None:
                self._access.count(read[0].peer, fields)
            if turn.size >= TURN_BYTES:
                break
        return None

    def _admit(self, sender: Sender, data: bytes) -> Fields | None:
        """Return the fields of an event that may come; None when it may not, or the layout is not known."""
        match = self._layouts.match(data) if len(data) <= self._read_limit else None
        if match is None or self._access is None:
            return None
        *_, origin, where = self._layouts.found[match.lastindex]
        fields = match.group(*where)
        came_from = None if origin == EMPTY else match[origin]
        return fields if self._access.waves_through(sender.peer, fields, came_from) else None

    def learn(self, data: bytes, now: float) -> None:
        """Learn the layout of a read that the parser took for one event."""
        self._layouts.learn(data, now)
