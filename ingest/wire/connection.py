"""One HTTP/1.1 connection: states, limits, deadlines and back-pressure.

Rules: whatever depends on when bytes arrive lives in this file. It has a reader of requests (`request`), which hears
what the parser reports; their framing (`framing`), which feeds the parser; and a flow (`flow`), which knows the
transport. A connection is read to the same requests and the same final answers for every split of its bytes into reads.

Theory of operation. `data_received` only queues the read for the turn. The turn calls `feed`, which feeds the parser in
slices; complete requests add to the turn. When its answers are written, the turn calls `finish` on connections that
end.

The place in the byte stream decides the deadline (`entered`; see `states`). `ending` says how the connection ends:

| ending      | entered by             | holds                                                               |
| ----------- | ---------------------- | ------------------------------------------------------------------- |
| open        | the start              | requests are read                                                   |
| last answer | `end`                  | nothing is read any more; `finish` closes                           |
| linger      | `end(linger=True)`     | the same, after a refusal; `finish` closes our half                 |
| lingering   | `finish`               | our half is closed; what comes is left, within bounds               |
| gone        | `connection_lost`      | there is no transport; answers that are still owed are written into nothing |

A read that finds no room is not kept, and leaves a hole in the bytes. Only the refusal leaves that state:

| overrun | entered by       | holds                                                                                |
| ------- | ---------------- | ------------------------------------------------------------------------------------ |
| none    | the start        | every byte that was read is fed, or is in `_input` or in the queue                   |
| ahead   | `_finds_room`    | the hole is in the queue; nothing is read any more, and no read is kept              |
| reached | `_feed_carefully` | all that was read before the hole is fed, or in `_input`; the refusal is due behind it |

Memory. A connection holds at most one read of the event loop (256 KiB), a request line with a query of MAX_BODY_SIZE,
MAX_HEADER_BYTES, and MAX_BODY_SIZE, or MAX_BATCH_BODY_SIZE as it came and what it unpacks to; of header fields that
outgrew their limit 256 KiB more, until they are refused. All of that counts into MAX_BUFFER_BYTES. Beside it are 64 KiB
of unsent answers plus those of one slice. Over TLS it holds records that wait to be read, too, which count.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from functools import wraps
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, TypeVarTuple

from ingest.event import MALFORMED, UNAVAILABLE_CLOSE, Peer
from ingest.telemetry import Overdue
from ingest.wire.answers import CONTINUE
from ingest.wire.flow import LINGER_BYTES, NEVER, SENT_BYTES, Flow
from ingest.wire.framing import Fed, Framing
from ingest.wire.limits import SLICE
from ingest.wire.request import RequestReader
from ingest.wire.states import STATES, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.event import ClientError
    from ingest.wire.door import Door
    from ingest.wire.headers import HeaderNames
    from ingest.wire.tick import Tick


PENDING_ANSWERS: Final = 256
LINGER_SECONDS: Final = 2.0

_IDLE: Final = State.IDLE
_BODY: Final = State.BODY
_ALL: Final = Fed.ALL
_HELD: Final = Fed.HELD


class Ending(Enum):
    """How far a connection is from its end."""

    OPEN = "open"
    LAST_ANSWER = "last answer"
    LINGER = "linger"
    LINGERING = "lingering"
    GONE = "gone"


class Overrun(Enum):
    """How far a connection is from the bytes that found no room."""

    NONE = "none"
    AHEAD = "ahead"
    REACHED = "reached"


class _Mark(bytes):
    """Stands in the queue of reads and brings no bytes. It is known by its identity."""

    __slots__ = ()


_OPEN: Final = Ending.OPEN
_NONE: Final = Overrun.NONE
_REACHED: Final = Overrun.REACHED
_HOLE: Final = _Mark()
"""The place of a read that was not kept."""
_AGAIN: Final = _Mark()
"""The turn for the next slice of what waits."""


_NOBODY: Final = Peer("", trusted=False)
"""Until it is known who is there."""


class _Callbacks(Protocol):
    """Who has the callbacks of a transport."""

    _tick: Tick

    def abort(self) -> None:
        """Drop the connection."""


_One = TypeVar("_One", bound=_Callbacks)
_More = TypeVarTuple("_More")
_Told = TypeVar("_Told")


def ends_one(callback: Callable[[_One, *_More], _Told]) -> Callable[[_One, *_More], _Told | None]:
    """Have a bug that a transport's callback meets end that connection, as one that `feed` meets does.

    The loop would report it without a word on whose it was, which ends the process.
    """

    @wraps(callback)
    def guarded(self: _One, *more: *_More) -> _Told | None:
        try:
            return callback(self, *more)
        except Exception as error:  # noqa: BLE001 - reported loudly, and met by one client only
            self._tick.met(error, self)
            return None

    return guarded


def discard(_data: bytes) -> None:
    """Take the place of a lost transport's `write`."""


class Connection(asyncio.Protocol):
    """One client's connection; made by the event loop's server for each it accepts."""

    __slots__ = (
        "_comes_again",
        "_door",
        "_fed_to",
        "_flow",
        "_framing",
        "_input",
        "_kept",
        "_names",
        "_overrun",
        "_reader",
        "_sealed",
        "_sends_until",
        "_slow",
        "_tick",
        "deadline",
        "ending",
        "held",
        "peer",
        "pending",
        "whole",
        "write",
    )

    def __init__(self, tick: Tick, names: HeaderNames, door: Door) -> None:
        # For the connection's life.
        self._tick = tick
        self._door = door
        self._names = names
        self._reader: RequestReader | None = None
        """Made, with its framing, by the first read that is no event in a known layout: who brings one event alone
        needs neither."""
        self._framing: Framing
        self._flow: Flow
        self.peer = _NOBODY
        self.write: Callable[[bytes], None] = discard

        self.ending = _OPEN
        self.deadline = NEVER
        self.pending = 0
        """Answers that wait for a group commit."""

        # Bytes that wait.
        self._input = b""
        self._fed_to = 0
        """How much of it has been fed. The rest is not copied for that: all reads of a turn are in memory already."""
        self.held = 0
        """How much of `Budget.requests` is ours."""
        self._kept = 0
        """How much of `Budget.whole` is ours."""
        self._sealed = 0
        """How much of `held` TLS has: bytes of records, or of a handshake, that say nothing yet."""
        self._overrun = _NONE
        """Left by the refusal only, which is the end of the connection."""
        self._sends_until = 0.0
        """From a refusal in the midst of a sound request: until when the rest of it may come."""

        # Which way the next read goes.
        self._comes_again = False
        """A turn will go on with what waits. It does so once, however often the client stops reading until then: each
        time may begin and end before the turn, and a turn feeds one slice of each connection."""
        self._slow = False
        """While bytes wait, nothing is read, or the end has come: reads go through `_feed_carefully`."""
        self.whole = bool(door.events)
        """The next read may be a whole event: the last one was, and it left nothing behind. Who sends head and body
        apart will do so again."""

    def __repr__(self) -> str:
        return (
            f"<Connection {self.state.value}, {self.ending.value}: {self.pending} pending, {self.held} held, "
            f"{getattr(self, '_flow', 'not made')}>"
        )

    # The transport's callbacks, in the order in which they fire.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a TCP server's
        """Arm the first deadline: a connection that stays silent is idle."""
        tick = self._tick
        try:  # as `ends_one` does, without the call
            self._flow = Flow(transport)
            self.write = transport.write
            name = transport.get_extra_info("peername")
            # A client of a socket file has none, or bytes: the name that it gave its own end.
            self.peer = tick.encoder.peer(name[0] if isinstance(name, tuple) else "")
            self.deadline = tick.clocks.loop_time() + tick.limits.idle_timeout
            if not tick.crowd.admit(self, self._door.spare):
                self.leave_with(tick.book.plain.refused_close, linger=tick.crowd.watch(self))
            else:
                tick.joined()
        except Exception as error:  # noqa: BLE001 - reported loudly, and met by one client only
            tick.met(error, self)

    def data_received(self, data: bytes) -> None:
        """Queue a read for the turn; after a large one no more is taken until it is fed."""
        tick = self._tick
        try:  # likewise
            arrivals = tick.arrivals
            reads = arrivals.reads
            if (len(data) > SLICE or len(reads) >= arrivals.uncounted) and not self._finds_room(data):
                return
            if not reads:
                tick.schedule()
            reads.append((self, data))
        except Exception as error:  # noqa: BLE001 - reported loudly, and met by one client only
            tick.met(error, self)

    def _finds_room(self, data: bytes) -> bool:
        """Tell whether a read is kept; else the connection is refused for it."""
        if self.ending is not _OPEN:
            self._leave(data)
            return False
        if self._overrun is not _NONE:
            return False
        if len(data) > SLICE:
            # The loop reads a socket up to 32 times a turn while its buffer comes back full.
            self._flow.pause()
        if self._tick.arrivals.has_room(len(data)):
            return True
        self._overrun = Overrun.AHEAD
        self._flow.pause()
        self._go_slowly()
        self._come_again(_HOLE)
        return False

    @ends_one
    def eof_received(self) -> bool:
        """Keep our half open: what is owed is still answered."""
        self._flow.ended = True
        self._go_slowly()
        self._come_again()
        return True

    @ends_one
    def pause_writing(self) -> None:
        """Stop feeding: the client reads slower than it asks."""
        self._stall(self._tick.clocks.read_deadline)
        self._tick.stalls(self._flow.unsent)

    @ends_one
    def resume_writing(self) -> None:
        """Go on with what was read meanwhile."""
        self._unstall()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget everything; events already in the turn are still committed."""
        del exc
        try:  # likewise
            self._flow.lost()
            self.write = discard
            self._tick.crowd.dismiss(self)
            if self.ending is _OPEN:
                self._let_go()
            if self._reader is not None:
                self._reader.leave()
        except Exception as error:  # noqa: BLE001 - reported loudly, and met by one client only
            self._tick.met(error, self)
        self.ending = Ending.GONE

    # The turn's calls.

    def feed(self, data: bytes) -> None:
        """Read one read's bytes; complete requests end up in the turn."""
        tick = self._tick
        if data is _AGAIN:
            self._comes_again = False
        if self._slow or len(data) > tick.limits.slice:
            self._feed_carefully(data)
            return
        reader = self._reads()
        reader.said = 0
        was_idle = reader.state is _IDLE
        turn = tick.turn
        answers, events = len(turn.entries), len(turn.lines)
        self._fed(self._framing.feed(data))
        if reader.unpacking is not None:
            self._go_on(last=False)
        elif was_idle and len(turn.lines) == events + 1 and len(turn.entries) == answers + 1:
            self.whole = self._is_clear()
            if turn.entries[answers][3] == 1 and (self.whole or self.ending is Ending.LAST_ANSWER):
                tick.short_way.learn(data, tick.clocks.now)

    def answered(self, size: int) -> None:
        """One answer that waited for the disk has been written. The last one ends a stall, whatever others are owed."""
        tick = self._tick
        tick.owed -= size
        self.pending -= 1
        if self.ending is not _OPEN:
            if not self.pending:
                self.finish()
        elif self._flow.stalled_until == NEVER and (
            not self.pending or (self.pending < PENDING_ANSWERS // 2 and tick.owed < tick.limits.unfinished)
        ):
            self._unstall()
        elif not self.pending and self._place is _IDLE:
            self.deadline = tick.clocks.loop_time() + tick.limits.idle_timeout
            if tick.draining:
                self.drain()

    def await_commit(self, size: int) -> None:
        """One answer is owed until the disk has done its part; of too many, here or in all, no more are caused."""
        tick = self._tick
        tick.owed += size
        self.pending += 1
        too_many = self.pending >= PENDING_ANSWERS or tick.owed >= tick.limits.unfinished
        if too_many and self._flow.stalled_until is None:
            self._stall(NEVER)

    def finish(self) -> None:
        """End the connection, all answers written.

        After a refusal our half is closed first and what still comes is read and left, for 2 s and 64 KiB: closing with
        bytes unread makes the kernel send a reset, which can overtake the answer (RFC 9112 §9.6). A sound request may
        be sent to its end, in the time that it has: many a client reads no answer before.
        """
        flow = self._flow
        if flow.is_over or self.ending is Ending.LINGERING:
            return
        if self.ending is Ending.LINGER and not flow.ended:
            self.ending = Ending.LINGERING
            self.deadline = self._tick.clocks.loop_time() + LINGER_SECONDS
            flow.half_close()
        else:
            flow.close()

    def wait(self) -> None:
        """Read nothing until `go_on`: what was read waits for a turn."""
        if not self._flow.is_over:
            self._flow.pause()

    def go_on(self) -> None:
        """Read again, if nothing else holds it up."""
        reader = self._reader
        is_free = self.ending is _OPEN and not self._input and (reader is None or reader.unpacking is None)
        is_free = is_free and self._overrun is _NONE
        flow = self._flow
        # After its end an input that is read again would end again.
        if not flow.ended and ((is_free and flow.stalled_until is None) or self.ending is Ending.LINGERING):
            flow.go_on()

    @property
    def is_over(self) -> bool:
        """All is answered, and no request will be read any more."""
        return self.ending is not _OPEN and not self.pending

    @property
    def state(self) -> State:
        """Where the connection stands between two reads."""
        state = self._place if self.ending is _OPEN else State.CLOSING
        if state is _BODY and self._reads().unpacking is not None:
            return State.UNPACKING
        return State.AWAITING_COMMIT if self.pending and state in (State.IDLE, State.CLOSING) else state

    def is_overdue(self, now: float) -> bool:
        """Tell whether the deadline of the state has passed; while nothing is read, the patience with a stalled client.

        An answer that waits for a group commit has all the time the disk takes.
        """
        if self._flow.stalled_until is not None:
            return now >= self._flow.stalled_until
        return now >= self.deadline and self.state is not State.AWAITING_COMMIT

    def expire(self) -> None:
        """Close without a word; a client that stopped reading would not read one either.

        Answers that wait for a group commit are still written, and one more deadline ends the flushing of what is.
        """
        metrics = self._tick.metrics
        if self._flow.stalled_until is not None:
            metrics.timed_out.add(Overdue.ANSWER)
            self.abort()
            return
        rule = STATES[self.state]
        if rule.counted is not None:
            metrics.timed_out.add(rule.counted)
        if rule.on_expiry == "abort":
            self.abort()
        elif rule.on_expiry == "refuse":
            self._come_again()  # a turn refuses it, for only a turn answers
        else:
            self.deadline = self._tick.clocks.now + LINGER_SECONDS
            self.end(linger=False)
            if not self.pending:
                self.finish()

    def drain(self) -> None:
        """End at once if nothing is under way; else the next answer will be the last."""
        if self.ending is not _OPEN:
            return
        if self._reader is not None and self._reader.state is _BODY:
            self._reader.make_last()
        elif self._place is _IDLE and not self.pending and not self._input and self._overrun is _NONE:
            self.end(linger=False)
            self.finish()

    @property
    def unsent(self) -> int:
        """Bytes of answers that the client has not taken."""
        return self._flow.unsent

    def refuse(self) -> None:
        """Refuse what is unfinished, to hold nothing any more."""
        self._reads().refuse(UNAVAILABLE_CLOSE)

    def hold_sealed(self, size: int) -> None:
        """Account for bytes that came and say nothing yet; of too many, the largest are refused by the next turn."""
        if self.ending is not _OPEN:
            return
        tick, more = self._tick, size - self._sealed
        self._sealed = size
        self.held += more
        tick.budget.requests += more
        if more > 0 and tick.budget.requests > tick.limits.unfinished and not tick.arrivals.reads:
            tick.schedule(waits=False)

    def turn_away(self, error: ClientError) -> None:
        """Refuse before a request was read, and outside a turn."""
        tick = self._tick
        tick.count_rejected(error)
        tick.refused.add(error, tick.clocks.loop_time())
        answer = tick.book.plain.refuse(error)
        tick.count_answer(answer)
        self.leave_with(answer)

    def leave_with(self, answer: bytes, *, linger: bool = True) -> None:
        """Say this and nothing else; outside a turn."""
        self.write(answer)
        self.end(linger=linger)
        self._tick.schedule()

    def abort(self) -> None:
        """Drop the connection; answers that are still owed are written into nothing."""
        self.write = discard
        self._flow.abort()

    # The reader's calls.

    def entered(self, state: State) -> None:
        """Move the deadline: nothing else does, but what held the client up."""
        self.deadline = self._tick.clocks.idle_deadline if state is _IDLE else self._tick.clocks.read_deadline

    def end(self, *, linger: bool, sends_on: bool = False) -> None:
        """Answer nothing after this; the turn finishes the connection when its answers are written.

        `sends_on`: a request is refused of which the rest is likely to come, because it is framed soundly.
        """
        if self.ending is _OPEN:
            self.ending = Ending.LINGER if linger else Ending.LAST_ANSWER
            if sends_on and self._place is not _IDLE:
                self._sends_until = self.deadline
        self._let_go()
        self._tick.closing.append(self)

    def _let_go(self) -> None:
        """Hear nothing any more, and hold nothing."""
        if self._reader is not None:
            self._reader.stop()
        self._go_slowly()
        self._input = b""
        self._tick.waiting.pop(self, None)
        self._tick.budget.requests -= self.held
        self._tick.budget.whole -= self._kept
        seals = self._sealed > 0
        self.held = self._kept = self._sealed = 0
        if seals:
            self._flow.go_on()  # TLS lets go of what waits there when it is to read on

    # Feeding.

    def _reads(self) -> RequestReader:
        """Return the reader of requests, made when it is first needed."""
        if self._reader is None:
            self._reader = RequestReader(self, self._tick, self._names, self._door)
            self._framing = Framing(self._reader, self._tick)
        return self._reader

    @property
    def _place(self) -> State:
        """Where the byte stream stands: idle, headers or body."""
        return _IDLE if self._reader is None else self._reader.state

    def _come_again(self, with_what: bytes = b"") -> None:
        """Have a turn feed what is here, or find that nothing more will come."""
        tick = self._tick
        if not tick.arrivals.reads:
            tick.schedule(waits=False)
        tick.arrivals.reads.append((self, with_what))

    def _come_again_once(self) -> None:
        """Have a turn go on with what waits, unless one will."""
        if not self._comes_again:
            self._comes_again = True
            self._come_again(_AGAIN)

    def _leave(self, data: bytes) -> None:
        """Leave what came after the end. The rest of a sound request buys as much time as a silent client has."""
        is_lingering, until = self.ending is Ending.LINGERING, self._sends_until
        if is_lingering and data and until:
            self.deadline = max(self.deadline, min(self._tick.clocks.loop_time() + LINGER_SECONDS, until))
        if self._flow.drop(len(data), SENT_BYTES if until else LINGER_BYTES, lingering=is_lingering):
            self._come_again()

    def _is_clear(self) -> bool:
        """Tell whether the next read begins between two requests, with nothing before it."""
        return self._place is _IDLE and not self._slow

    def _go_slowly(self) -> None:
        self._slow = True
        self.whole = False

    def _feed_carefully(self, data: bytes) -> None:
        """Feed a slice of what is there; keep the rest for the next turn."""
        if self.ending is not _OPEN:
            self._leave(data)
            return
        if data is _HOLE:
            self._overrun = _REACHED
        elif data and self._overrun is not _REACHED:
            self._input = self._input[self._fed_to :] + data if self._input else data
            self._fed_to = 0
        reader = self._reads()
        if reader.unpacking is not None:
            if self.is_overdue(self._tick.clocks.now):
                self.refuse()
        elif self._flow.stalled_until is None:
            reader.said = 0
            if self._input:
                self._feed_piece(self._tick.limits.slice)
                rest = reader.request.awaited
                if rest and self._input and self.ending is _OPEN:
                    # A body causes one answer, however long it is: what came whole is not left unfinished.
                    self._feed_piece(rest)
        if self.ending is _OPEN:
            self._go_on(last=not data)

    def unpack(self) -> None:
        """Go on with the request that waits to be unpacked, for a share. The bytes behind it are left to `feed`."""
        reader = self._reads()
        if self.ending is not _OPEN or reader.unpacking is None or self._flow.stalled_until is not None:
            return
        reader.said = 0
        self._fed(self._framing.unpack())
        if self.ending is not _OPEN:
            return
        if reader.unpacking is None:
            self._come_again_once()
        else:
            self._tick.waits(self)

    def _feed_piece(self, size: int) -> None:
        """Feed some of what waits."""
        at, self._fed_to = self._fed_to, self._fed_to + size
        piece = self._input[at : self._fed_to]
        if self._fed_to >= len(self._input):
            self._input = b""
            self._fed_to = 0
        self._fed(self._framing.feed(piece))

    def _go_on(self, *, last: bool) -> None:
        """Come back for what is left, refuse at a hole, end at the end of input, or take the short way again.

        Reads that a turn has left to the next may still be there when the client has ended its half. The end stands in
        the queue as an empty read behind them: one that brought bytes is not the `last`.
        """
        flow = self._flow
        stalled = flow.stalled_until is not None
        unpacks = self._reads().unpacking is not None
        if self._input or unpacks:
            self._go_slowly()
            self._hold()
            flow.pause()
            if stalled:
                pass
            elif unpacks:
                self._tick.waits(self)
            else:
                self._come_again_once()
        elif self._overrun is not _NONE:
            if self._overrun is _REACHED and not stalled:
                self.refuse()
        elif flow.ended:
            if last:
                self.end(linger=False)
        elif not stalled:
            self._slow = False
            flow.go_on()

    def _fed(self, fed: Fed) -> None:
        """Refuse what was too much, account for what is unfinished, and tell a client to go on that waits for it."""
        if self.ending is not _OPEN:
            return
        reader = self._reads()
        if reader.state is _IDLE and fed is _ALL:
            if self.held or self._kept:
                self._hold()
            return
        self.whole = False
        if fed is _HELD:
            self._input = self._framing.rest + self._input[self._fed_to :]
            self._fed_to = 0
            self._framing.rest = b""
        elif fed is not _ALL:
            reader.refuse(MALFORMED)
            return
        self._hold()
        request = reader.request
        if request.expects and reader.state is _BODY:
            request.expects = False
            if not request.size:
                self._tick.turn.reply(self, CONTINUE)

    # Back-pressure.

    def _stall(self, until: float) -> None:
        self._go_slowly()
        self._flow.stalled_until = until
        self._flow.pause()

    def _unstall(self) -> None:
        self._flow.stalled_until = None
        if self.ending is _OPEN:
            # What the client sent meanwhile could not be read: that time was not its own.
            tick = self._tick
            self.deadline = max(self.deadline, tick.clocks.loop_time() + tick.limits.read_timeout)
            self._come_again_once()

    def _hold(self) -> None:
        """Account for what this connection holds; refuse the request when all connections hold too much."""
        reader = self._reads()
        budget = self._tick.budget
        held = len(self._input) + self._sealed
        kept = 0
        if reader.unpacking is not None:
            kept = self._framing.held + reader.request.size + reader.request.unpacked
        elif reader.state is not _IDLE:
            held += self._framing.held + reader.request.size
        budget.requests += held - self.held
        budget.whole += kept - self._kept
        self.held, self._kept = held, kept
        if (held or kept) and budget.lacks():
            reader.refuse(UNAVAILABLE_CLOSE)
