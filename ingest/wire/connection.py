"""One HTTP/1.1 connection: states, limits, deadlines and back-pressure.

Rules: whatever depends on how bytes arrive lives in this file, and nothing here knows what a request means (that is
`request`) or what becomes of it (that is behind the tick). A connection is read to the same requests and the same
final answers for every split of its bytes into reads.

Theory of operation. `data_received` only queues the read for the tick. The tick calls `feed`, which feeds the parser
in slices; the parser's callbacks add to the tick. When its answers are written, the tick calls `finish` on
connections that end.

The phase of the byte stream decides the deadline: see `states`.

Limits. The head, and all framing that surrounds a body (chunk sizes and extensions, trailers), is counted in raw
bytes: what was fed less what came out as body. The parser names no offsets, so that a slice which ends inside a later
request of a pipeline is measured again, line by line, by `Meter`; a slice that begins inside a request is fed line
by line.

Memory. A connection holds at most one read of the event loop (256 KiB), MAX_HEADER_BYTES and MAX_BODY_SIZE, which
count into MAX_BUFFER_BYTES, and beside that 64 KiB of unsent answers plus those of one slice.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade

from ingest.event import HEAD_TOO_LARGE, MALFORMED, UNAVAILABLE_CLOSE
from ingest.telemetry import Overdue
from ingest.wire.answers import CONTINUE
from ingest.wire.framing import EMPTY_LINES, Meter
from ingest.wire.request import HeaderNames, RequestReader
from ingest.wire.states import STATES, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.wire.layouts import Layouts
    from ingest.wire.tick import Tick


SLICE: Final = 8192
"""Bytes fed at once: the smallest requests in it cannot cause much more than 64 KiB of answers."""
UNSENT_ANSWERS: Final = 65536
PENDING_ANSWERS: Final = 256
LINGER_SECONDS: Final = 2.0
LINGER_BYTES: Final = 65536
_NEVER: Final = float("inf")

_IDLE: Final = State.IDLE
_BODY: Final = State.BODY
_CLOSING: Final = State.CLOSING


def discard(_data: bytes) -> None:
    """Take the place of a lost transport's `write`."""


class Connection(RequestReader, asyncio.Protocol):
    """One client's connection; made by the event loop's server for each it accepts."""

    __slots__ = (
        "_eof",
        "_framing",
        "_held",
        "_input",
        "_lingered",
        "_lingering",
        "_slice",
        "_slow",
        "_stalled",
        "_stalled_until",
        "_transport",
        "pending",
        "write",
    )

    def __init__(self, tick: Tick, names: HeaderNames, layouts: Layouts) -> None:
        super().__init__(tick, names, layouts)
        self._slice = min(SLICE, tick.limits.head)
        self._transport: asyncio.Transport | None = None
        self.write: Callable[[bytes], None] = discard
        self.pending = 0
        """Answers that wait for a group commit."""

        # Bytes that came, and bytes that wait.
        self._input = b""
        self._eof = False
        self._framing = 0
        self._held = 0
        self._lingered = 0
        self._lingering = False

        # Back-pressure. `slow` sends `feed` off its short way.
        self._slow = False
        self._stalled = False
        self._stalled_until = _NEVER

    # The transport's callbacks, in the order in which they fire.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a TCP server's
        """Arm the first deadline: a connection that stays silent is idle."""
        tick = self._tick
        self._transport = transport
        self.write = transport.write
        transport.set_write_buffer_limits(high=UNSENT_ANSWERS)
        name = transport.get_extra_info("peername")
        self._peer = tick.encoder.peer(name[0] if name else "")
        self.deadline = tick.loop_time() + tick.limits.idle_timeout
        if not tick.admit(self):
            self.write(tick.book.plain.refused_close)
            self._linger = tick.watch(self)
            self._end()
            tick.schedule()

    def data_received(self, data: bytes) -> None:
        """Queue a read for the tick; after a large one no more is taken until it is fed."""
        tick = self._tick
        if len(data) > SLICE and self._transport is not None:
            # The loop reads a socket up to 32 times a turn while its buffer comes back full.
            self._transport.pause_reading()
        if not tick.reads:
            tick.schedule(waits=bool(data))
        tick.reads.append((self, data))

    def eof_received(self) -> bool:
        """Keep our half open: what is owed is still answered."""
        self._eof = self._slow = True
        self.data_received(b"")
        return True

    def pause_writing(self) -> None:
        """Stop feeding: the client reads slower than it asks."""
        self._stall(self._tick.read_deadline)

    def resume_writing(self) -> None:
        """Go on with what was read meanwhile."""
        self._unstall()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget everything; events already in the tick are still committed."""
        del exc
        self._transport = None
        self.write = discard
        self._phase = _CLOSING
        self._ending = self._muted = self._slow = True
        self._input = b""
        self._release()
        self._tick.dismiss(self)

    # The tick's calls.

    def feed(self, data: bytes) -> None:
        """Read one read's bytes; complete requests end up in the tick."""
        if self._slow or len(data) > self._slice:
            self._feed_carefully(data)
        elif self._phase is _IDLE:
            tick = self._tick
            turn = tick.turn
            answers, events = turn.answers, turn.events
            offset = self._feed_parser(data)
            if self._phase is not _IDLE or offset >= 0:
                self.whole = False
                self._part_fed(data, answers, offset)
            elif turn.answers == answers + 1 and turn.events == events + 1:
                self.whole = True
                self._layouts.learn(data, tick.now)
        else:
            self._feed_by_lines(data)
            self._slice_fed()

    def answered(self) -> None:
        """One answer that waited for a group commit has been written."""
        self.pending -= 1
        if self._ending:
            if not self.pending:
                self.finish()
        elif self._stalled and self._stalled_until is _NEVER and self.pending < PENDING_ANSWERS // 2:
            self._unstall()
        elif not self.pending and self._phase is _IDLE:
            self.deadline = self._tick.loop_time() + self._tick.limits.idle_timeout
            if self._tick.draining:
                self.drain()

    def await_commit(self) -> None:
        """One answer is owed until the group commit is through."""
        self.pending += 1
        if self.pending >= PENDING_ANSWERS and not self._stalled:
            self._stall(_NEVER)

    def finish(self) -> None:
        """End the connection, all answers written.

        After a refusal our half is closed first and what still comes is read and left, for a while: closing with bytes
        unread makes the kernel send a reset, which can overtake the answer (RFC 9112 §9.6).
        """
        transport = self._transport
        if transport is None or transport.is_closing() or self._lingering:
            return
        if self._linger and not self._eof:
            self._lingering = True
            self.deadline = self._tick.loop_time() + LINGER_SECONDS
            transport.resume_reading()
            transport.write_eof()
        else:
            transport.close()

    @property
    def is_over(self) -> bool:
        """All is answered, and no request will be read any more."""
        return self._ending and not self.pending

    @property
    def state(self) -> State:
        """Where the connection stands between two reads."""
        if self.pending and (self._phase is _IDLE or self._phase is _CLOSING):
            return State.AWAITING_COMMIT
        return self._phase

    def is_overdue(self, now: float) -> bool:
        """Tell whether the deadline of the state has passed; while nothing is read, the patience with a stalled client.

        A connection that waits for a group commit has all the time the disk takes.
        """
        if self._stalled:
            return now >= self._stalled_until
        return now >= self.deadline and self.state is not State.AWAITING_COMMIT

    def expire(self) -> None:
        """Close without a word; a client that stopped reading would not read one either.

        Answers that wait for a group commit are still written, and one more deadline ends the flushing of what is.
        """
        if self._stalled:
            self._tick.metrics.timed_out.add(Overdue.ANSWER)
            self.abort()
            return
        rule = STATES[self.state]
        if rule.counted is not None:
            self._tick.metrics.timed_out.add(rule.counted)
        if rule.on_expiry == "abort":
            self.abort()
        else:
            self.deadline = self._tick.now + LINGER_SECONDS
            self._end()
            if not self.pending:
                self.finish()

    def drain(self) -> None:
        """End at once if nothing is under way; else the next answer will be the last."""
        if self._phase is _BODY:
            self._keep_alive = False
        elif self._phase is _IDLE and not self.pending and not self._input:
            self._end()
            self.finish()

    def abort(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _end(self) -> None:
        """Answer nothing after this; the tick finishes the connection when its answers are written."""
        super()._end()
        self._slow = True
        self._input = b""
        if self._held:
            self._release()
        self._tick.closing.append(self)

    # Feeding.

    def _feed_parser(self, data: bytes) -> int:
        """Feed the parser; return -1, or how much of the bytes stand before those that an ignored Upgrade held up."""
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            if not self._ending:
                return int(upgrade.args[0])
        except HttpParserCallbackError:
            raise
        except HttpParserError:
            if not self._ending:
                self._reject(MALFORMED)
        if self._ending:
            self._phase = _CLOSING
        return -1

    def _feed_carefully(self, data: bytes) -> None:
        """Feed a slice of what is there; keep the rest for the next turn."""
        if self._phase is _CLOSING:
            self._drop(data)
            return
        if data:
            self._input = self._input + data if self._input else data
        if self._input and not self._stalled:
            piece = self._input[: self._slice]
            self._input = self._input[self._slice :]
            if self._phase is _IDLE:
                answers = self._tick.turn.answers
                self._part_fed(piece, answers, self._feed_parser(piece))
            else:
                self._feed_by_lines(piece)
                self._slice_fed()
        if not self._ending:
            self._go_on()

    def _go_on(self) -> None:
        """Come back for what is left, end at the end of input, or take the short way again."""
        transport = self._transport
        if self._input:
            self._slow = True
            self._hold()
            if transport is not None:
                transport.pause_reading()
            if not self._stalled:
                self.data_received(b"")
        elif self._eof:
            self._end()
        elif not self._stalled:
            self._slow = False
            if transport is not None and not transport.is_reading():
                transport.resume_reading()

    def _part_fed(self, data: bytes, answers: int, offset: int) -> None:
        """Measure what a slice that began between requests has left unfinished."""
        if self._ending:
            return
        alone = self._tick.turn.answers == answers
        if offset >= 0:
            head = data[:offset]
            self._framing = len(head.lstrip(EMPTY_LINES)) if alone else Meter().measure(head)
            self._resume_after_upgrade()
            if not self._ending:
                if self._phase is _IDLE:
                    self._framing = 0
                self._feed_by_lines(data[offset:])
        elif self._phase is _IDLE:
            self._framing = 0
        else:
            self._framing = len(data.lstrip(EMPTY_LINES)) - self._body_size if alone else Meter().measure(data)
        self._slice_fed()

    def _slice_fed(self) -> None:
        if self._ending:
            return
        if self._phase is _IDLE:
            if self._held:
                self._hold()
            return
        self._hold()
        if self._head_exceeds():
            self._reject(HEAD_TOO_LARGE)
        elif self._expecting is not None and self._phase is _BODY:
            awaited = self._expecting is self._head
            self._expecting = None
            if awaited and not self._body_size:
                self._tick.turn.reply(self, CONTINUE)

    def _feed_by_lines(self, data: bytes) -> None:
        """Feed so that every byte is known to be framing or body, and the head's limit is met to the byte."""
        limit = self._tick.limits.head - 1
        at, end = 0, len(data)
        while at < end and not self._ending:
            if self._phase is _BODY and (declared := self._declared()):
                stop = min(end, at + declared - self._body_size)
            else:
                line = data.find(b"\n", at) + 1 or end
                stop = min(line, at + max(limit - self._framing, 1))
            piece = data[at:stop]
            size = len(piece.lstrip(EMPTY_LINES)) if self._phase is _IDLE else len(piece)
            body = self._body_size
            offset = self._feed_parser(piece)
            if offset >= 0:
                self._framing += offset
                self._resume_after_upgrade()
                if self._phase is _IDLE:
                    self._framing = 0
                stop = at + offset
            elif self._phase is _IDLE:
                self._framing = 0
            else:
                self._framing += size - (self._body_size - body)
                if self._head_exceeds():
                    self._reject(HEAD_TOO_LARGE)
            at = stop

    def _head_exceeds(self) -> bool:
        """Tell whether MAX_HEADER_BYTES are used up though the request needs more of them."""
        limit = self._tick.limits.head
        if self._framing != limit:
            return self._framing > limit
        return not (self._phase is _BODY and self._declared())

    # Back-pressure.

    def _stall(self, until: float) -> None:
        self._stalled = self._slow = True
        self._stalled_until = until
        if self._transport is not None:
            self._transport.pause_reading()

    def _unstall(self) -> None:
        self._stalled = False
        self._stalled_until = _NEVER
        if not self._ending:
            # What the client sent meanwhile could not be read: that time was not its own.
            tick = self._tick
            self.deadline = max(self.deadline, tick.loop_time() + tick.limits.read_timeout)
            self.data_received(b"")

    def _hold(self) -> None:
        """Account for what this connection holds; refuse the request when all connections hold too much."""
        unfinished = self._phase is not _IDLE
        held = len(self._input) + (self._framing + self._body_size if unfinished else 0)
        self._tick.held += held - self._held
        self._held = held
        if held and self._tick.over_budget():
            self._reject(UNAVAILABLE_CLOSE)

    def _release(self) -> None:
        self._tick.held -= self._held
        self._held = 0

    def _drop(self, data: bytes) -> None:
        """Read and leave what comes after the end; at most 64 KiB of it. Until the last answer nothing is closed."""
        self._lingered += len(data)
        transport = self._transport
        if transport is None:
            return
        if not self._lingering:
            if self._lingered > LINGER_BYTES:
                transport.pause_reading()
        elif self._lingered > LINGER_BYTES or self._eof:
            transport.close()
        else:
            transport.resume_reading()
