"""A connection over TLS: what the network carries is read and written here, what it says is `Connection`'s.

Owns the handshake, the records, and how both halves end. It is a protocol to the transport and a transport to the
connection. Promises, where the loop's own TLS promises less:

    bounded   a handshake counts into MAX_CONNECTIONS from the accepted socket on, and has READ_TIMEOUT; of too many
              that stand in the middle of a message the oldest is dropped
    halves    a client that ends its half (close_notify, or the end of the stream) gets the answers it is owed, those
              that wait for a group commit included
    refusals  an answer that closes arrives: close_notify and the end of our half follow it, and what still comes is
              read and left, as without TLS
    counted   bytes of a record that has not come whole, or of a handshake whose step is due, count as an unfinished
              request does; a handshake that brings more than there is room for is dropped
    quiet     whatever comes in place of TLS ends the connection, is counted, and is no error of ours

Never reads a request. A stream that is cut off without close_notify ends as one without TLS does: each request says how
long it is, so that a part of one is never taken for the whole.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from enum import Enum
from ssl import MemoryBIO, SSLContext, SSLError, SSLObject, SSLWantReadError, SSLZeroReturnError
from typing import TYPE_CHECKING, Any, Final, Protocol

from ingest.telemetry import Handshake
from ingest.wire.connection import Connection, ends_one

if TYPE_CHECKING:
    from ingest.wire.door import Door
    from ingest.wire.headers import HeaderNames
    from ingest.wire.tick import Tick

STEPS: Final = 4
"""Steps of handshakes in one turn of the loop."""
RECORD: Final = 16384
"""Bytes that a record says at most (RFC 8446 §5.1)."""

LONGEST_RECORD: Final = 5 + RECORD + 2048
"""Bytes that it takes at most (RFC 5246 §6.2.3; TLS 1.3 allows less)."""


class Contexts(Protocol):
    """The holder of the certificate."""

    @property
    def context(self) -> SSLContext:
        """The context for a handshake that begins now."""


class Pace:
    """Has handshakes wait for each other: a step that signs takes as long as a hundred events.

    Without it, all clients that come back at once would hold up everybody for as long as all their handshakes take.
    """

    __slots__ = ("_due", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: deque[Secured] = deque()

    def wait(self, one: Secured) -> None:
        """Have a connection take its step when it is its turn."""
        if not self._due:
            self._loop.call_soon(self._run)
        self._due.append(one)

    def _run(self) -> None:
        try:
            for _ in range(min(STEPS, len(self._due))):
                self._due.popleft().step()
        finally:
            # Also after a step that failed: nobody else has those that are left take theirs.
            if self._due:
                self._loop.call_soon(self._run)


class Phase(Enum):
    """How far our half is."""

    HANDSHAKE = "handshake"
    OPEN = "open"
    ENDED = "ended"


_HANDSHAKE: Final = Phase.HANDSHAKE
_OPEN: Final = Phase.OPEN


class Secured(asyncio.Transport, asyncio.Protocol):
    """One client's connection over TLS; made by the event loop's server for each it accepts."""

    __slots__ = (
        "_begun",
        "_connection",
        "_early",
        "_ends_early",
        "_heard_end",
        "_incoming",
        "_kept",
        "_outgoing",
        "_pace",
        "_phase",
        "_tick",
        "_tls",
        "_transport",
        "_waits",
    )

    def __init__(self, contexts: Contexts, pace: Pace, tick: Tick, names: HeaderNames, door: Door) -> None:
        super().__init__()
        self._tick = tick
        self._pace = pace
        self._connection = Connection(tick, names, door)
        self._transport: asyncio.Transport
        self._incoming = MemoryBIO()
        self._outgoing = MemoryBIO()
        self._tls: SSLObject = contexts.context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._phase = _HANDSHAKE
        self._waits = False
        """Its step of the handshake is due."""
        self._begun = False
        """From the first byte until the handshake is done: it has failed if the connection is lost meanwhile."""
        self._kept = 0
        """Bytes of a record that has not come whole."""
        self._heard_end = False
        """The client has ended its half."""
        self._early = b""
        """An answer from before the end of the handshake: the connection is one too many."""
        self._ends_early = False
        """Our half is to end after it."""

    def __repr__(self) -> str:
        return f"<Secured {self._phase.value}: {self._connection!r}>"

    # A protocol: the transport's callbacks, in the order in which they fire.

    @ends_one
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a TCP server's
        """Have the connection made, counted and given the time of a handshake."""
        connection, tick = self._connection, self._tick
        self._transport = transport
        connection.connection_made(self)
        if not connection.is_over:
            connection.deadline = tick.clocks.loop_time() + tick.limits.read_timeout

    @ends_one
    def data_received(self, data: bytes) -> None:
        """Go on with the handshake, or hand over what the records say."""
        if self._phase is Phase.ENDED:
            self._connection.data_received(data)  # which is over, and leaves it
            return
        if self._heard_end:
            self._transport.pause_reading()  # what stands behind close_notify was said by nobody
            return
        if self._phase is _OPEN:
            self._incoming.write(data)
            self._read()
        elif self._finds_room(len(data)):
            self._incoming.write(data)
            if not self._waits:
                self._waits = True
                self._pace.wait(self)

    @ends_one
    def step(self) -> None:
        """Go on with the handshake, which was waited for, and with what came behind it."""
        if self._phase is _HANDSHAKE and not self._transport.is_closing() and not self._transport.is_reading():
            self._transport.resume_reading()
        self._take_step()

    def _take_step(self) -> None:
        self._waits = False
        if self._phase is not _HANDSHAKE or self._transport.is_closing():
            return
        is_done = self._shake_hands()
        self._connection.hold_sealed(self._incoming.pending)
        if is_done:
            self._read()

    @ends_one
    def eof_received(self) -> bool:
        """Keep our half open, as without TLS; a handshake that is cut off is over."""
        if self._waits:
            self._take_step()  # the end of the handshake, a request and the end of the stream may come together
        if self._phase is _HANDSHAKE:
            return False
        self._hear_end()
        return True

    @ends_one
    def pause_writing(self) -> None:
        """Pass it on."""
        self._connection.pause_writing()

    @ends_one
    def resume_writing(self) -> None:
        """Pass it on."""
        self._connection.resume_writing()

    @ends_one
    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on, and let go of the transport, which holds this: else both wait for the cycles' collector."""
        self._phase = Phase.ENDED
        self._connection.connection_lost(exc)
        if self._begun:
            self._tick.metrics.handshakes.add(Handshake.FAILED)
            self._tick.crowd.handshake_moves(self)
        del self._transport

    # Reading.

    def _finds_room(self, more: int) -> bool:
        """Account for what comes before a step of the handshake; a request may stand behind the client's last word."""
        connection, tick = self._connection, self._tick
        size = self._incoming.pending + more
        if size > LONGEST_RECORD:
            if connection.is_over or tick.budget.requests + more > tick.limits.unfinished:
                self._drop()
                return False
            self._transport.pause_reading()
        connection.hold_sealed(size)
        return True

    def _drop(self) -> None:
        """End at once a handshake that holds too much."""
        self._incoming.read()
        self._connection.hold_sealed(0)
        self._transport.abort()

    def _shake_hands(self) -> bool:
        """Take a step; tell whether that was the last, and requests may follow."""
        connection, tick = self._connection, self._tick
        self._begun = True
        try:
            self._tls.do_handshake()
        except SSLWantReadError:
            if self._outgoing.pending:
                tick.crowd.handshake_moves(self)
            else:
                tick.crowd.handshake_stands(self)
            self._flush()
            return False
        except SSLError:
            self._flush()  # the alert, which says why
            self._end()
            self._transport.close()
            return False
        self._begun = False
        tick.crowd.handshake_moves(self)
        self._phase = _OPEN
        tick.metrics.handshakes.add(Handshake.DONE)
        self._flush()
        if not connection.is_over:
            connection.deadline = tick.clocks.loop_time() + tick.limits.idle_timeout
        if self._early:
            self.write(self._early)
            self._early = b""
        if self._ends_early:
            self.write_eof()
            return False
        return True

    def _read(self) -> None:
        tls, incoming = self._tls, self._incoming
        read: list[bytes] = []
        ended = broken = False
        kept, left = self._kept, 0
        try:
            # The question is cheaper than the exception of a read that finds nothing.
            while incoming.pending or tls.pending():
                left = incoming.pending
                # What a record says is shorter than the record: no buffer need be larger than what is there.
                data = tls.read(min(incoming.pending or RECORD, RECORD))
                if not data:
                    ended = True
                    break
                read.append(data)
                kept = 0
        except SSLWantReadError:
            kept = min(kept + left, LONGEST_RECORD)
        except SSLZeroReturnError:
            ended = True
        except SSLError:
            broken = True
        self._flush()
        self._kept = kept
        self._connection.hold_sealed(kept)
        if read:
            self._connection.data_received(read[0] if len(read) == 1 else b"".join(read))
        if broken:
            self._phase = Phase.ENDED
            self._transport.abort()
        elif ended:
            self._hear_end()

    def _hear_end(self) -> None:
        if not self._heard_end:
            self._heard_end = True
            self._connection.eof_received()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._transport.write(self._outgoing.read())

    def _end(self) -> None:
        """Say that no more is said: close_notify."""
        if self._phase is _OPEN:
            with suppress(SSLError):  # it wants to read the client's, which is not waited for
                self._tls.unwrap()
            self._flush()
        self._phase = Phase.ENDED

    # A transport: the connection's calls.

    def write(self, data: bytes) -> None:  # type: ignore[override]  # answers are bytes
        """Send bytes."""
        if self._phase is _OPEN:
            written = self._tls.write(data)
            while written < len(data):
                written += self._tls.write(data[written:])
            self._transport.write(self._outgoing.read())
        elif self._phase is _HANDSHAKE:
            if self._incoming.pending > LONGEST_RECORD:
                self._drop()  # who is refused for what it holds must hold nothing
            else:
                self._early += data

    def write_eof(self) -> None:
        """End our half: close_notify, then the end of the stream."""
        if self._phase is _HANDSHAKE:
            self._ends_early = True
        elif self._phase is _OPEN:
            self._end()
            self._transport.write_eof()

    def can_write_eof(self) -> bool:
        """Tell that our half can end by itself."""
        return True

    def close(self) -> None:
        """Close once all that was written is sent."""
        if not self._transport.is_closing():
            self._end()
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def is_closing(self) -> bool:
        """Tell whether nothing is sent any more."""
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        """Read no more for now."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._transport.resume_reading()

    def is_reading(self) -> bool:
        """Tell whether anything is read."""
        return self._transport.is_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set how much may be unsent."""
        self._transport.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Return how much is unsent."""
        return self._transport.get_write_buffer_size() + len(self._early)

    def get_extra_info(self, name: str, default: object = None) -> Any:  # noqa: ANN401 - the base class says so
        """Ask the transport."""
        return self._transport.get_extra_info(name, default)
