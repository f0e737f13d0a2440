"""The unit of work: everything the kernel handed over in one turn of the event loop.

    data_received (many)  ->  run: parse every read, encode every line  ->  commit once  ->  answer all, in order

Owns the reads of a turn, and what all connections share: limits, clock readings of the turn, the answers' texts.
Promises that nothing is answered before its commit is settled, and that the answers of one connection keep the order of
its requests. Never parses, never writes to disk: `Connection` does the first, the injected `commit` the second.

Why a turn and not a request: one `write(2)` to the journal, one reading of each clock and one pass through each piece
of code serve all 15-25 requests of a busy turn, and the answers leave in one burst.

Below saturation turns would be small: the loop is faster than events arrive, and spends more on waking for each than on
the event. So a turn that follows closely upon a small one waits a millisecond before it reads on, as a network card
waits before it interrupts: what arrives meanwhile is read, committed and answered together. It does so asleep, which
costs nothing and lets gzip run. A lone event waits for nobody, a full turn does not either.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from ingest.telemetry import Answer
from ingest.wire.turn import Turn

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from ingest.config import Settings
    from ingest.event import ClientError, EventEncoder, Pages
    from ingest.telemetry import Metrics
    from ingest.wire.answers import AnswerBook
    from ingest.wire.connection import Connection


SMALL_TURN: Final = 8
"""With fewer reads than this in a turn the next one waits for company."""
CLOSELY: Final = 0.002
"""Seconds after a small turn for which company is expected."""
GATHER_SECONDS: Final = 0.001

REFUSED_LINGERING: Final = 32
"""Connections over MAX_CONNECTIONS that may linger at once, out of the descriptors that are held in reserve."""

_STATUS_AT: Final = len("HTTP/1.1 ")
_CLASSES: Final = {ord(answer.value[0]): answer for answer in Answer}


class ConnectionLimits(NamedTuple):
    """Bytes and seconds that one connection may ask of the process."""

    head: int
    body: int
    buffered: int
    read_timeout: float
    idle_timeout: float

    @classmethod
    def of(cls, settings: Settings) -> ConnectionLimits:
        """Take the limits from the settings."""
        return cls(
            settings.max_header_bytes,
            settings.max_body_size,
            settings.max_buffer_bytes,
            settings.read_timeout,
            settings.idle_timeout,
        )


class Tick:
    """Collects the reads of a turn and does their work in one go.

    `commit(turn)` must settle the turn, or each of its parts in order, at once; when `deferred`, later.
    """

    __slots__ = (
        "_buffered",
        "_commit",
        "_loop",
        "_max_connections",
        "_refusing",
        "_sleep",
        "_small",
        "_wall_clock",
        "arrived",
        "book",
        "closing",
        "connections",
        "deferred",
        "draining",
        "encoder",
        "held",
        "idle_deadline",
        "limits",
        "loop_time",
        "metrics",
        "now",
        "pages",
        "read_deadline",
        "reads",
        "refused",
        "seconds",
        "turn",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: ConnectionLimits,
        encoder: EventEncoder,
        book: AnswerBook,
        pages: Pages,
        metrics: Metrics,
        commit: Callable[[Turn], None],
        refusing: Callable[[int], bool],
        *,
        buffered: Callable[[], int],
        max_connections: int,
        deferred: bool = False,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        # For the process's life.
        self._loop = loop
        self._commit = commit
        self._max_connections = max_connections
        self.loop_time = loop.time
        self._wall_clock = wall_clock
        self._sleep = sleep
        self.limits = limits
        self.encoder = encoder
        self.book = book
        self.pages = pages
        self.metrics = metrics
        self._refusing = refusing
        self._buffered = buffered
        self.deferred = deferred
        self.draining = False
        self.arrived = 0.0
        self.connections: set[Connection] = set()
        self.refused: set[Connection] = set()
        """Those over MAX_CONNECTIONS that linger with their refusal."""
        self.held = 0
        """Bytes of unfinished requests on all connections."""

        # For one turn.
        self.reads: list[tuple[Connection, bytes]] = []
        self.closing: list[Connection] = []
        self.seconds = 0
        self.now = self.idle_deadline = self.read_deadline = 0.0
        self._small = False
        self.read_clocks()
        self.turn = Turn(self.seconds)

    def schedule(self, *, waits: bool = True) -> None:
        """Have `run` called once the kernel has handed over all it has; the caller appends the turn's first read.

        A turn that is owed to bytes already here, or to the end of input, never waits for company.
        """
        arrived = self.arrived = self.loop_time()
        closely = waits and self._small and arrived - self.now < CLOSELY
        self._loop.call_soon(self._gather if closely else self.run)

    def _gather(self) -> None:
        """Let more arrive, which the loop then reads before it calls `run`."""
        self._sleep(GATHER_SECONDS)
        self._loop.call_soon(self.run)

    def run(self) -> None:
        """Do one turn's work."""
        reads = self.reads
        self.reads = []
        self._small = len(reads) < SMALL_TURN
        self.read_clocks()
        turn = self.turn = Turn(self.seconds, self.arrived, self._settled)
        for connection, data in reads:
            try:
                if not connection.whole or not connection.take_whole(data):
                    connection.feed(data)
            except Exception as error:  # noqa: BLE001 - a bug of ours is reported loudly, and met by one client only
                connection.abort()
                context = {"message": "unhandled error", "exception": error, "connection": connection}
                self._loop.call_exception_handler(context)
        if turn.answers:
            if self.deferred:
                turn.defer()
            if turn.events or (self.deferred and turn.answers):
                self._commit(turn)
            else:
                turn.settle(committed=True)
        if self.closing:
            closing = self.closing
            self.closing = []
            for connection in closing:
                if not connection.pending:
                    connection.finish()

    def read_clocks(self) -> None:
        """Read both clocks, once for the turn: wall time stamps events, monotonic time sets deadlines."""
        seconds = int(self._wall_clock())
        if seconds != self.seconds:
            self.seconds = seconds
            self.book.turn(seconds)
        now = self.now = self._loop.time()
        self.idle_deadline = now + self.limits.idle_timeout
        self.read_deadline = now + self.limits.read_timeout

    def admit(self, connection: Connection) -> bool:
        """Take a new connection into account; False when there are MAX_CONNECTIONS already."""
        if len(self.connections) >= self._max_connections:
            self.metrics.connections_refused += 1
            return False
        self.connections.add(connection)
        self.metrics.connections += 1
        return True

    def watch(self, connection: Connection) -> bool:
        """Let a connection that was not admitted linger, if its descriptor can be spared."""
        if len(self.refused) >= REFUSED_LINGERING:
            return False
        self.refused.add(connection)
        return True

    def dismiss(self, connection: Connection) -> None:
        """Forget a connection that is gone."""
        self.refused.discard(connection)
        if connection in self.connections:
            self.connections.remove(connection)
            self.metrics.connections -= 1

    def busy(self) -> bool:
        """Tell whether a connection is still owed an answer, or sends a request."""
        return any(connection.pending or not connection.is_over for connection in self.connections)

    def _settled(self, requests: int, arrived: float, committed: bool) -> None:
        """Count requests with events, once for a turn."""
        metrics = self.metrics
        metrics.requests.add(Answer.OK if committed else Answer.UNAVAILABLE, requests)
        metrics.request_seconds.observe(self.loop_time() - arrived, requests)

    def count_answer(self, answer: bytes) -> None:
        """Count an answer to no event by the class of its status."""
        self.metrics.requests.add(_CLASSES[answer[_STATUS_AT]])

    def count_rejected(self, error: ClientError) -> None:
        """Count a refusal under the reason its table names."""
        self.metrics.rejected.add(error.counted)

    def over_budget(self) -> bool:
        """Tell whether all that is held, unfinished requests and batches, exceeds `MAX_BUFFER_BYTES`."""
        return self.held + self._buffered() > self.limits.buffered

    def refuses_events(self) -> bool:
        """Tell whether an event that came now would be refused, for whatever reason."""
        return self._refusing(self.held)

    def sweep(self) -> None:
        """Close what has outlived its deadline. Called about twice a second; a deadline is late by at most that."""
        self.read_clocks()
        now = self.now
        overdue = [connection for connection in (*self.connections, *self.refused) if connection.is_overdue(now)]
        for connection in overdue:
            connection.expire()

    def drain(self) -> None:
        """From now on every answer ends its connection; idle connections end at once."""
        self.draining = True
        if self.reads:
            self.run()
        for connection in list(self.connections):
            connection.drain()
