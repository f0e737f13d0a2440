"""A connection over TLS: what the network carries is read and written here, what it says is `Connection`'s.

Owns the handshake, the records, and how both halves end. It is a protocol to the transport and a transport to the
connection. Promises, where the loop's own TLS promises less:

    bounded   a handshake counts into MAX_CONNECTIONS from the accepted socket on, and has READ_TIMEOUT; of too many
              that stand in the middle of a message the oldest is dropped
    halves    a client that ends its half (close_notify, or the end of the stream) gets the answers it is owed, those
              that wait for a group commit included
    refusals  an answer that closes arrives: close_notify and the end of our half follow it, and what still comes is
              read and left, as without TLS
    counted   bytes of records that have not come whole, or whose step is due, count as an unfinished request does; a
              handshake that brings more than there is room for is dropped
    paced     one client has few records read at once, and all together no more in a turn of the loop than make a turn's
              events; of too many in a row that say nothing the connection is dropped
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

from ingest.event import MALFORMED
from ingest.telemetry import Handshake
from ingest.wire.connection import Connection, Ending, ends_one
from ingest.wire.records import LONGEST_RECORD, RECORD, Records, is_one_record

if TYPE_CHECKING:
    from ingest.wire.door import Door
    from ingest.wire.headers import HeaderNames
    from ingest.wire.tick import Tick

STEPS: Final = 4
"""Steps of handshakes in one turn of the loop."""
RECORDS: Final = 512
"""Records read in one turn of the loop, those that come alone left out: their reads cost as much."""
SILENT: Final = 128
"""Records in a row that say nothing, beyond which a connection is dropped. An honest client sends one now and then, to
change its keys; OpenSSL bounds empty ones (32), warnings (5) and early data, and neither key updates nor requests for a
renegotiation that it refuses."""


class Contexts(Protocol):
    """The holder of the certificate."""

    @property
    def context(self) -> SSLContext:
        """The context for a handshake that begins now."""


class Pace:
    """Has clients wait for each other, where reading what they sent would hold up everybody else.

    A step of a handshake that signs takes as long as a hundred events: without it, all clients that come back at once
    would hold up everybody for as long as all their handshakes take. A record costs as much as a small event, and one
    read may bring thousands.
    """

    __slots__ = ("_left", "_loop", "_readers", "_runs", "_shakers")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._shakers: deque[Secured] = deque()
        """Whose handshakes wait."""
        self._readers: deque[Secured] = deque()
        """Whose records do."""
        self._left = RECORDS
        """Records that may still be read in this turn of the loop."""
        self._runs = False
        """A run is due: it ends the turn that `_left` is for."""

    def wait(self, one: Secured) -> None:
        """Have a connection take its step of the handshake when it is its turn."""
        self._shakers.append(one)
        self._come()

    def wait_to_read(self, one: Secured) -> None:
        """Have a connection read on when it is its turn."""
        self._readers.append(one)
        self._come()

    @property
    def has_time(self) -> bool:
        """More records may be read in this turn of the loop."""
        return self._left > 0

    def reads(self, records: int) -> None:
        """Take note of records that are read."""
        self._left -= records
        self._come()

    def _come(self) -> None:
        if not self._runs:
            self._runs = True
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        self._runs = False
        self._left = RECORDS
        try:
            for _ in range(min(STEPS, len(self._shakers))):
                self._shakers.popleft().step()
            for _ in range(len(self._readers)):
                if self._left <= 0:
                    break
                self._readers.popleft().step()
        finally:
            # Also after a step that failed: nobody else has those that are left take theirs.
            if self._shakers or self._readers:
                self._come()


class Phase(Enum):
    """How far our half is."""

    HANDSHAKE = "handshake"
    OPEN = "open"
    ENDED = "ended"
    GONE = "gone"


_HANDSHAKE: Final = Phase.HANDSHAKE
_OPEN: Final = Phase.OPEN
_HEARS: Final = Ending.OPEN


class Secured(asyncio.Transport, asyncio.Protocol):
    """One client's connection over TLS; made by the event loop's server for each it accepts."""

    __slots__ = (
        "_begun",
        "_connection",
        "_cut_off",
        "_early",
        "_ends_early",
        "_heard_end",
        "_incoming",
        "_outgoing",
        "_pace",
        "_phase",
        "_records",
        "_silent",
        "_tick",
        "_tls",
        "_transport",
        "_waits",
        "_wants",
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
        """Its step is due, which `Pace` has it take."""
        self._wants = True
        """The connection reads. Whether the transport does depends on what waits here, too."""
        self._begun = False
        """From the first byte until the handshake is done: it has failed if the connection is lost meanwhile."""
        self._records = Records()
        self._silent = 0
        """Records that were read since one said something."""
        self._cut_off = False
        """The stream has ended; what it brought may still wait."""
        self._heard_end = False
        """The client has ended its half, and the connection knows."""
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
        if self._phase is _HANDSHAKE:
            if self._finds_room(len(data)):
                self._begun = True
                self._records.add(data)
                self._wait()
        elif self._phase is not _OPEN:
            self._connection.data_received(data)  # which is over, and leaves it
        elif self._heard_end:
            self._transport.pause_reading()  # what stands behind close_notify was said by nobody
        elif not self._records and is_one_record(data):
            self._read(data, 1)
        else:
            self._records.add(data)
            if self._waits or not self._wants or not self._pace.has_time:
                self._hold()
                self._go_on()
            else:
                self._read_step()

    @ends_one
    def step(self) -> None:
        """Go on with what was waited for: the handshake, or records; and with what came behind them."""
        self._waits = False
        if self._phase is Phase.GONE or self._transport.is_closing():
            return
        if self._phase is _HANDSHAKE:
            self._shake_step()
        elif self._wants and not self._is_unheard:
            self._read_step()
        else:
            self._go_on()

    @ends_one
    def eof_received(self) -> bool:
        """Keep our half open, as without TLS; a handshake that is cut off is over."""
        self._cut_off = True
        if self._waits:
            return True  # the end of the handshake, a request and the end of the stream may come together
        if self._phase is _HANDSHAKE:
            return False
        self._go_on()
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
        self._phase = Phase.GONE
        self._records.clear()
        self._connection.connection_lost(exc)
        if self._begun:
            self._tick.metrics.handshakes.add(Handshake.FAILED)
            self._tick.crowd.handshake_moves(self)
        del self._transport

    # Reading.

    def _finds_room(self, more: int) -> bool:
        """Account for what comes before a step of the handshake; a request may stand behind the client's last word."""
        connection, tick = self._connection, self._tick
        size = len(self._records) + more
        if size > LONGEST_RECORD:
            if connection.is_over or tick.budget.requests + more > tick.limits.unfinished:
                self._drop()
                return False
            self._transport.pause_reading()
        connection.hold_sealed(size)
        return True

    def _drop(self) -> None:
        """End at once what holds too much, or says nothing."""
        self._records.clear()
        self._connection.hold_sealed(0)
        self._transport.abort()

    def _hold(self) -> None:
        self._connection.hold_sealed(len(self._records))

    def _wait(self) -> None:
        if not self._waits:
            self._waits = True
            if self._phase is _HANDSHAKE:
                self._pace.wait(self)
            else:
                self._pace.wait_to_read(self)

    def _go_on(self) -> None:
        """Have the next step taken, or read on, or hear the end: after whatever may have changed which it is."""
        records, transport = self._records, self._transport
        shakes_hands = self._phase is _HANDSHAKE
        if records and self._is_unheard:
            records.clear()
            self._hold()
        if records.is_whole:
            if not shakes_hands and not self._waits:
                transport.pause_reading()
            if self._wants or shakes_hands:
                self._wait()
        elif self._cut_off:
            if shakes_hands:
                transport.close()
            else:
                self._hear_end()
        elif self._wants and not self._heard_end and not transport.is_reading() and not transport.is_closing():
            transport.resume_reading()

    @property
    def _is_unheard(self) -> bool:
        """Nobody hears what the client says any more."""
        phase = self._phase
        if phase is _OPEN:
            return self._heard_end or self._connection.ending is not _HEARS
        return phase is not _HANDSHAKE

    def _shake_step(self) -> None:
        ciphertext, _ = self._records.take()
        self._incoming.write(ciphertext)
        is_done = self._shake_hands()
        self._connection.hold_sealed(len(self._records) + self._incoming.pending)
        if is_done:
            self._read(b"", 0)
        if not self._transport.is_closing():
            self._go_on()

    def _read_step(self) -> None:
        """Read some records, and come back for what is left of them."""
        ciphertext, count = self._records.take()
        if count:
            self._pace.reads(count)
            self._read(ciphertext, count)
        else:
            self._hold()
        if not self._transport.is_closing():
            self._go_on()

    def _shake_hands(self) -> bool:
        """Take a step; tell whether that was the last, and requests may follow."""
        connection, tick = self._connection, self._tick
        try:
            self._tls.do_handshake()
        except SSLWantReadError:
            if self._outgoing.pending or self._records.is_whole:
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

    def _read(self, ciphertext: bytes, records: int) -> None:
        """Hand over what whole records say."""
        tls, incoming, connection = self._tls, self._incoming, self._connection
        incoming.write(ciphertext)
        read: list[bytes] = []
        ended = broken = False
        try:
            # The question is cheaper than the exception of a read that finds nothing.
            while incoming.pending or tls.pending():
                # What a record says is shorter than the record: no buffer need be larger than what is there.
                data = tls.read(min(incoming.pending or RECORD, RECORD))
                if not data:
                    ended = True
                    break
                read.append(data)
        except SSLWantReadError:
            pass  # the last record said nothing
        except SSLZeroReturnError:
            ended = True
        except SSLError:
            broken = True
        self._flush()
        connection.hold_sealed(len(self._records))
        if read:
            self._silent = 0
            connection.data_received(read[0] if len(read) == 1 else b"".join(read))
        else:
            self._silent += records
        if broken:
            self._phase = Phase.ENDED
            self._transport.abort()
        elif ended:
            self._hear_end()
        elif self._silent > SILENT:
            self._tick.count_rejected(MALFORMED)
            self._drop()

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
            if len(self._records) > LONGEST_RECORD:
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
        self._wants = False
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again: first what waits here, and in a step of its own, because it is the connection that asks."""
        self._wants = True
        if self._records or (self._cut_off and not self._heard_end):
            self._wait()
        else:
            self._go_on()

    def is_reading(self) -> bool:
        """Tell whether anything is read."""
        return self._wants

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set how much may be unsent."""
        self._transport.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Return how much is unsent."""
        return self._transport.get_write_buffer_size() + len(self._early)

    def get_extra_info(self, name: str, default: object = None) -> Any:  # noqa: ANN401 - the base class says so
        """Ask the transport."""
        return self._transport.get_extra_info(name, default)
