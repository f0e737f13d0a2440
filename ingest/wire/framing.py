"""Where requests begin and end in the bytes of a connection, and how many bytes of one are framing.

Owns the parser of a connection, and the count of framing bytes of the request under way: its head, and all that
surrounds its body (chunk sizes and extensions, trailers), in raw bytes. Promises that the count is the same however the
bytes were cut into reads, so that the limits are met to the byte: the first line has one of its own, because a query is
an event, and MAX_HEADER_BYTES holds for the rest, but that a body brings as much room as it has bytes, for a client may
send each event of a batch in a chunk of its own; and that a request with an `Upgrade` is read on as if it had none.
Never knows what a request means (that is `request`).

The parser reports no offsets. A slice that begins inside a request is therefore fed line by line. One that begins
between two requests is fed at once; if it ends inside a later one than it began with, `Meter` reads it once more.

Two things about a request line the parser does not do. It takes `RTSP/1.0` and `ICE/1.0` for versions of HTTP, and it
refuses bytes above ASCII in a target, which browsers do send in a query. A slice in which one of these may stand is fed
line by line too: then the protocol is looked at here, and the parser is shown `~` in place of such a byte.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade
from httptools.parser.errors import HttpParserInvalidURLError

from ingest.event import BAD_VERSION
from ingest.wire.headers import CONTENT_LENGTH, DIGITS, TRANSFER_ENCODING
from ingest.wire.limits import FIELDS_PASSED_OVER, LINE_PASSED_OVER
from ingest.wire.parser import ASCII_ONLY, new_parser
from ingest.wire.states import State

if TYPE_CHECKING:
    from ingest.wire.request import RequestReader
    from ingest.wire.tick import Tick

EMPTY_LINES: Final = b"\r\n"
"""Between requests they mean nothing (RFC 9112 §2.2), and belong to none."""
_IDLE: Final = State.IDLE
_BODY: Final = State.BODY
_FAULTY: Final = -1
_ODD_TARGET: Final = -2
_RTSP: Final = b"RTSP/"
_ICE: Final = b"ICE/"
_HEAD: Final = b"HEAD "


class Fed(Enum):
    """The outcome of feeding bytes."""

    ALL = "all"
    MALFORMED = "malformed"
    HELD = "held"
    """A request is held to be unpacked; what stands behind it is in `Framing.rest`."""


_ALL: Final = Fed.ALL
_END_OF_LINE: Final = 64
"""Bytes in which the version stands at the end of a line that is passed over."""


class Framing:
    """Feeds the parser of one connection."""

    __slots__ = ("_bound", "_limits", "_line", "_passes", "_reader", "_tick", "rest", "used")

    def __init__(self, reader: RequestReader, tick: Tick) -> None:
        self._reader = reader
        self._tick = tick
        self._limits = tick.limits
        self.used = 0
        """Framing bytes of the request under way."""
        self._bound = tick.limits.line
        """So many it may have: in its first line that line's limit, behind it MAX_HEADER_BYTES more, and as many as
        there are of its body."""
        self._passes = False
        """From where the line, or the fields, outgrew that, until they end or outgrow a second one."""
        self._line = bytearray()
        """The start of its first line, until that has an end; of one that is passed over the last bytes."""
        self.rest = b""
        """After `Fed.HELD`: the bytes that are to be fed again."""
        reader.parser = new_parser(reader)

    @property
    def held(self) -> int:
        """Bytes of them that are held: the head is, and of what surrounds a body nothing."""
        return min(self.used, self._bound)

    def feed(self, data: bytes) -> Fed:
        """Read bytes; complete requests end up in the turn."""
        reader = self._reader
        if reader.state is not _IDLE or data.find(_RTSP) >= 0 or data.find(_ICE) >= 0:
            return self._feed_by_lines(data)
        turn = self._tick.turn
        answers = len(turn.entries)
        taken = self._parse(data)
        if reader.over:
            return _ALL
        if reader.unpacking is not None:
            return self._hold(data, len(turn.entries) - answers)
        if taken == _ODD_TARGET:
            return self._feed_again(data)
        if taken == _FAULTY:
            self._note_head(data[Meter().start_of_last(data) :])
            return Fed.MALFORMED
        if reader.state is _IDLE:
            self.used = 0
            return _ALL
        # A slice is shorter than either limit.
        head = data[:taken]
        if len(turn.entries) == answers:
            begun = head.lstrip(EMPTY_LINES)
            self.used = len(begun) - reader.request.size
        else:
            meter = Meter()
            self.used = meter.measure(head)
            begun = head[meter.start :]
        line = begun.find(b"\n") + 1
        if line:
            self._bound = line + self._limits.head
        else:
            self._line += begun
        return self._feed_behind_upgrade(data[taken:]) if reader.held_up else _ALL

    def _feed_behind_upgrade(self, rest: bytes) -> Fed:
        """Go on with the request that an Upgrade held up, and with what stands behind its head."""
        reader = self._reader
        fed = self._go_on_without_upgrade()
        if reader.unpacking is not None:
            return self._give_back(rest)
        if reader.state is _IDLE:
            self._end()
        return self._feed_by_lines(rest) if fed is _ALL and rest else fed

    def _feed_again(self, data: bytes) -> Fed:
        """Feed by lines what begins with the request whose target the parser did not take."""
        reader = self._reader
        reader.begin_anew()
        self._end()
        reader.parser = new_parser(reader)
        return self._feed_by_lines(data[Meter().start_of_last(data) :])

    def _feed_by_lines(self, data: bytes) -> Fed:
        """Feed so that every byte is known to be framing or body, and the limits are met to the byte."""
        reader = self._reader
        at, end = 0, len(data)
        while at < end and not reader.over:
            request = reader.request
            if reader.state is _BODY and (declared := request.declared):
                stop = min(end, at + declared - request.size)
            else:
                line = data.find(b"\n", at) + 1 or end
                stop = min(line, at + max(self._bound + request.size - 1 - self.used, 1))
            piece = data[at:stop]
            size = len(piece)
            body = request.size
            first = self._line
            if first or reader.state is _IDLE:
                size = self._lengthen(piece)
            taken = self._parse(piece.translate(ASCII_ONLY) if first else piece)
            if reader.over:
                break
            if taken < 0:
                self._note_head(first)
                return Fed.MALFORMED
            if first:
                self._first_line(first, self.used + size)
            if reader.held_up and reader.unpacking is None:
                self.used += taken
                fed = self._go_on_without_upgrade()
                if fed is not _ALL:
                    return fed
                stop = at + taken
                size = body = 0
            at = stop
            if reader.unpacking is not None:
                return self._give_back(data[at:])
            if reader.state is _IDLE:
                self._end()
            elif size:
                self._count(size - (reader.request.size - body))
        return _ALL

    def _end(self) -> None:
        """Count anew, between two requests."""
        self.used = 0
        self._bound = self._limits.line
        self._passes = False

    def _outgrow(self) -> None:
        """Have the reader refuse the request, which has met its limit, or go on for its Origin, once."""
        reader = self._reader
        line = self._line
        if line and not self._passes and not line.isascii():
            self._show_target(line)
        self._passes = reader.outgrow(in_line=bool(line), again=self._passes)
        if self._passes:
            self._bound = self.used + (LINE_PASSED_OVER if line else FIELDS_PASSED_OVER)
            del line[:-_END_OF_LINE]

    def unpack(self) -> Fed:
        """Go on with the request that is held."""
        reader = self._reader
        reader.unpack()
        if reader.unpacking is not None:
            return Fed.HELD
        self._end()
        return _ALL

    def _hold(self, data: bytes, before: int) -> Fed:
        """Find where the request ends that is held, with so many before it; a fresh parser goes on behind it."""
        start, end = Meter().place_of(data, before)
        reader = self._reader
        reader.parser = new_parser(reader)
        fed = self._give_back(data[end:])
        self.used = len(data[start:end].lstrip(EMPTY_LINES)) - reader.request.size
        return fed

    def _give_back(self, rest: bytes) -> Fed:
        self._reader.keep()
        self.rest = rest
        return Fed.HELD

    def _note_head(self, start: bytes | bytearray) -> None:
        """Note that a malformed request is a HEAD, from its start; once that is behind, the parser names its method."""
        reader = self._reader
        if reader.state is not _IDLE:
            start = b"" if self._passes else start
            is_head = start.lstrip(EMPTY_LINES).startswith(_HEAD) if start else reader.parser.get_method() == b"HEAD"
            reader.request.head_only = is_head

    def _lengthen(self, piece: bytes) -> int:
        """Add a piece to the first line; return how much of it is no empty line before that."""
        begun = piece if self._line else piece.lstrip(EMPTY_LINES)
        self._line += begun
        return len(begun)

    def _first_line(self, line: bytearray, used: int) -> None:
        """Look at the first line of a request, when it is whole; so many bytes it has, with those passed over."""
        if not line.endswith(b"\n"):
            if self._passes:
                del line[:-_END_OF_LINE]
            return
        self._line = bytearray()
        self._bound = used + self._limits.head
        passed, self._passes = self._passes, False
        if line.split()[-1].startswith((_RTSP, _ICE)):
            self._reader.refuse(BAD_VERSION)
        elif not passed and not line.isascii():
            self._show_target(line)

    def _show_target(self, line: bytearray) -> None:
        """Give the reader the target as it came, in place of what the parser was shown."""
        parts = line.split(maxsplit=2)
        if len(parts) > 1:
            self._reader.request.url = bytes(parts[1])

    def _parse(self, data: bytes) -> int:
        """Feed the parser; return how many bytes it took: all, or those before what an Upgrade holds up."""
        try:
            self._reader.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            return int(upgrade.args[0])
        except HttpParserCallbackError:
            raise
        except HttpParserInvalidURLError:
            return _FAULTY if data.isascii() else _ODD_TARGET
        except HttpParserError:
            return _FAULTY
        return len(data)

    def _count(self, size: int) -> None:
        """Count framing bytes; the request outgrows its limit when that is met though more of them are needed."""
        self.used += size
        reader = self._reader
        bound = self._bound + reader.request.size
        if self.used >= bound and not (self.used == bound and reader.state is _BODY and reader.request.declared):
            self._outgrow()

    def _go_on_without_upgrade(self) -> Fed:
        """Put a fresh parser behind a head that has only the framing headers (RFC 9110 §7.8); the real one is known."""
        reader = self._reader
        request = reader.request
        parser = reader.parser = new_parser(reader)
        if TRANSFER_ENCODING in request.head:
            framing = b"Transfer-Encoding: " + request.head[TRANSFER_ENCODING]
        elif request.declared:
            framing = b"Content-Length: %d" % request.declared
        else:
            reader.go_on()
            reader.on_message_complete()
            return _ALL
        try:
            parser.feed_data(b"POST / HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % framing)
        except HttpParserError:  # a coding that does not end in chunked: the first parser stopped before it looked
            return Fed.MALFORMED
        reader.go_on()
        return _ALL


class Meter:
    """Reads a slice that begins between requests once more, to tell where its last request begins."""

    __slots__ = ("_body_size", "_complete", "_declared", "_idle", "_in_body", "_length", "start")

    def __init__(self) -> None:
        self._idle = True
        self._in_body = False
        self._declared = 0
        self._body_size = 0
        self._length = 0
        self._complete = 0
        """Requests so far."""
        self.start = 0
        """Where the last request begins that was measured."""

    # The parser's callbacks, in the order in which they fire.

    def on_message_begin(self) -> None:
        """Begin to count."""
        self._idle = self._in_body = False
        self._length = self._body_size = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note how long the body will be."""
        if not self._in_body and name.lower() == CONTENT_LENGTH:
            self._length = int(value.strip()[:DIGITS])

    def on_headers_complete(self) -> None:
        """Count body apart from here."""
        self._in_body = True
        self._declared = self._length

    def on_body(self, body: bytes) -> None:
        """Leave the body out."""
        self._body_size += len(body)

    def on_message_complete(self) -> None:
        """Be between requests again."""
        self._complete += 1
        self._idle = True
        self._in_body = False
        self._body_size = 0

    def start_of_last(self, data: bytes) -> int:
        """Return where the request begins that is unfinished at the end of `data`, or that the parser does not take."""
        parser = new_parser(self)
        at = start = 0
        while at < len(data):
            if self._idle:
                start = at
            stop = self._piece_end(data, at)
            try:
                parser.feed_data(data[at:stop])
            except HttpParserError:
                break
            at = stop
        return start

    def place_of(self, data: bytes, before: int) -> tuple[int, int]:
        """Return where the complete request begins and ends that has so many before it."""
        parser = new_parser(self)
        at = start = 0
        while self._complete <= before:
            if self._idle:
                start = at
            stop = self._piece_end(data, at)
            parser.feed_data(data[at:stop])
            at = stop
        return start, at

    def _piece_end(self, data: bytes, at: int) -> int:
        """Return where the line, or the declared body, ends that begins there."""
        if self._in_body and self._declared:
            return min(len(data), at + self._declared - self._body_size)
        return data.find(b"\n", at) + 1 or len(data)

    def measure(self, data: bytes) -> int:
        """Return the bytes of the unfinished request at the end of `data` that are not body; 0 when there is none."""
        parser = new_parser(self)
        framing = at = 0
        while at < len(data):
            stop = self._piece_end(data, at)
            body = self._body_size
            piece = data[at:stop]
            size = len(piece)
            if self._idle:
                size = len(piece.lstrip(EMPTY_LINES))
                self.start = stop - size
            try:
                parser.feed_data(piece)
            except HttpParserUpgrade:
                # Only the last line can be the one: the slice was cut behind it.
                return framing + size
            framing = 0 if self._idle else framing + size - (self._body_size - body)
            at = stop
        return framing
