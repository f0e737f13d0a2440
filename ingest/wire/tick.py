"""The unit of work: everything the kernel handed over in one turn of the event loop.

    data_received (many)  ->  run: parse every read, encode every line  ->  commit once  ->  answer all, in order

Owns the turn, and what all connections share: limits, clocks, what has arrived, the answers' texts.
Promises that nothing is answered before its commit is settled, and that the answers of one connection keep the order of
its requests. Never parses, never writes to disk: `Connection` does the first, the injected `commit` the second.

Why a turn and not a request: one `write(2)` to the journal, one reading of each clock and one pass through each piece
of code serve all 15-25 requests of a busy turn, and the answers leave in one burst.

A turn's work and memory are bounded: after 512 answers, 1 MiB of lines, or 64 reads that took the parser's way
or 20 ms of them, whatever came of them, it commits and lets the loop read. The loop accepts a few connections between
two turns, so that a turn after a new one is shorter yet: who asks for `/health` may stand behind hundreds who are not
accepted either.
Bytes count from the read on, as `arrivals`, then in the `Budget`, until their line is in the batch: a read that finds
no room in MAX_BUFFER_BYTES is refused. Unfinished requests have a quarter of it; beyond that the largest are refused,
so that slow clients take nothing from whole requests. Unsent answers have as much; beyond that the slowest clients are
dropped. Answers that wait for the disk have as much; beyond that who is owed one is read no further.

Bodies are unpacked in steps. One that takes longer than a turn has for it waits, and those that wait take turns: a turn
of their own (`share`) gives each a share and sends it behind all others. While any waits, one that comes waits too,
behind them. So nobody's next request takes a place that others wait for.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from math import inf
from operator import length_hint
from typing import TYPE_CHECKING, Final, Protocol

from ingest.telemetry import Answer, Overdue
from ingest.wire.arrivals import Arrivals
from ingest.wire.clocks import Clocks
from ingest.wire.crowd import Crowd
from ingest.wire.gathering import GATHER_SECONDS, Gathering
from ingest.wire.limits import FEEDING_SECONDS, FULL_TURN, SHARE_SECONDS, SHORT_TURN, TURN_BYTES, UNPACKING_SECONDS
from ingest.wire.refused import Refused
from ingest.wire.short_way import ShortWay
from ingest.wire.turn import Turn

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Sequence

    from ingest.event import Access, ClientError, EventEncoder, Pages
    from ingest.telemetry import Budget, Metrics
    from ingest.wire.answers import AnswerBook
    from ingest.wire.crowd import Member
    from ingest.wire.layouts import Layouts
    from ingest.wire.limits import ConnectionLimits
    from ingest.wire.short_way import Read

DRAIN_SECONDS: Final = 0.2
"""So long a drain answers what was read without letting anything else run."""
_STATUS_AT: Final = len("HTTP/1.1 ")
_CLASSES: Final = {ord(answer.value[0]): answer for answer in Answer}


class Dropped(Protocol):
    """A connection, as far as one that met a bug needs it."""

    def abort(self) -> None:
        """Drop the connection."""


class Tick:
    """Collects the reads of a turn and does their work in one go.

    `commit(turn)` must settle the turn, or each of its parts in order: at once, unless it calls `defer` first. When
    `deferred`, that is done here. `hidden` is in no line of the log.
    """

    __slots__ = (
        "_commit",
        "_gathering",
        "_loop",
        "_newcomers",
        "_refusing",
        "_share_until",
        "_shares_soon",
        "_sleep",
        "_stalled",
        "_stopwatch",
        "_take",
        "_unpacks_until",
        "access",
        "arrivals",
        "arrived",
        "book",
        "budget",
        "clocks",
        "closing",
        "crowd",
        "deferred",
        "draining",
        "encoder",
        "limits",
        "metrics",
        "owed",
        "pages",
        "parting",
        "refused",
        "short_way",
        "turn",
        "waiting",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: ConnectionLimits,
        encoder: EventEncoder,
        book: AnswerBook,
        layouts: Layouts,
        pages: Pages,
        metrics: Metrics,
        commit: Callable[[Turn], None],
        refusing: Callable[[], bool],
        budget: Budget,
        *,
        max_connections: int,
        deferred: bool = False,
        access: Access | None = None,
        hidden: Sequence[bytes] = (),
        wall_clock: Callable[[], float] = time.time,
        stopwatch: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        # For the process's life.
        self._loop = loop
        self._commit = commit
        self.clocks = Clocks(limits, loop.time, wall_clock)
        self._stopwatch = stopwatch
        self._sleep = sleep
        self.limits = limits
        self.encoder = encoder
        self.book = book
        self.access = None if access is None or access.is_open else access
        """None where nothing is asked of events."""
        self.short_way = ShortWay(limits, encoder, book, layouts, self.access)
        self._take = self.short_way.take if self.access is None else self.short_way.take_admitted
        self.pages = pages
        self.metrics = metrics
        self.refused = Refused(hidden)
        self._refusing = refusing
        self.budget = budget
        self.deferred = deferred
        self.parting = False
        """From `part` on: every answer ends its connection."""
        self.draining = False
        """From `drain` on: an idle connection ends at once."""
        self.arrived = 0.0
        self.crowd = Crowd(metrics, max_connections, limits.connections_of_a_peer)
        self._gathering = Gathering()
        self._newcomers = False
        """From a new connection until the next turn."""
        self.owed = 0
        """Bytes of memory of all answers that wait for the disk."""
        self._stalled = 0
        """Bytes of answers that clients began to leave unread since the slowest were last looked for."""

        self.waiting: OrderedDict[Member, None] = OrderedDict()
        """Those whose request has come whole and waits to be unpacked, in the order of their shares."""
        self._shares_soon = False
        """From when `share` is to be called until it is."""

        # For one turn.
        self.arrivals = Arrivals(budget)
        self._unpacks_until = 0.0
        """From the turn's first body that is unpacked on: when there is no more time for it, on the stopwatch."""
        self._share_until = inf
        """When the share under way is over, on the stopwatch; else the turn alone bounds what one may take."""
        self.closing: list[Member] = []
        self.read_clocks()
        self.turn = Turn(self.clocks.seconds)

    def schedule(self, *, waits: bool = True) -> None:
        """Have `run` called once the kernel has handed over all it has; the caller appends the turn's first read.

        A turn that is owed to bytes already here, or to the end of input, never waits for company.
        """
        if self.arrivals.late:
            return  # a turn is on its way already
        # The loop's own clock stands still from one poll to the next, and with it a slow disk would be a fast one.
        self.arrived = self._stopwatch()
        gathering = self._gathering
        gathers = waits and gathering.may_pay and gathering.pays(self.arrived)
        self._loop.call_soon(self._gather if gathers else self.run)

    def joined(self) -> None:
        """Take note of a new connection."""
        self._gathering.joined()
        self._newcomers = True

    def _gather(self) -> None:
        """Let more arrive, which the loop then reads before it calls `run`."""
        self._gathering.waits(len(self.arrivals.reads))
        self._sleep(GATHER_SECONDS)
        self._loop.call_soon(self.run)

    def run(self) -> None:
        """Do one turn's work."""
        arrivals, clocks = self.arrivals, self.clocks
        reads = arrivals.take()
        if clocks.read():
            self.book.turn(clocks.seconds)
        self.encoder.wall = clocks.wall
        if reads:
            self._gathering.ran(len(reads), len(self.crowd.admitted), self.arrived)
        turn = self.turn = Turn(clocks.seconds, self.arrived, self._settled)
        answers, feeds = SHORT_TURN if self._newcomers else FULL_TURN
        self._unpacks_until = 0.0
        take, idle_deadline = self._take, clocks.idle_deadline
        left = iter(reads)
        until = 0.0
        while feeds and len(turn.entries) < answers and turn.size < TURN_BYTES:
            try:
                odd = take(left, turn, answers, idle_deadline)
                if odd is None:
                    break
                feeds -= 1
                connection, data = odd
                until = until or self._stopwatch() + FEEDING_SECONDS
                connection.feed(data)
                if self._stopwatch() >= until:
                    break
            except Exception as error:  # noqa: BLE001 - a bug of ours is reported loudly, and met by one client only
                self.met(error, reads[-1 - length_hint(left)][0])
        if self.budget.requests > self.limits.unfinished:
            self._refuse_largest()
        self._finish(turn)
        self._newcomers = False
        late = list(left)
        if late or arrivals.holds_back:
            arrivals.leave(late)
            if late and not arrivals.reads:
                self._loop.call_soon(self.run)

    def waits(self, connection: Member) -> None:
        """Have a connection wait for its share, behind all others; one that waits already keeps its place."""
        self.waiting.setdefault(connection)
        self._share_soon()

    def _share_soon(self) -> None:
        if not self._shares_soon:
            self._shares_soon = True
            self._loop.call_soon(self.share)

    def share(self) -> None:
        """Go on with those that wait to be unpacked, one after the other, while the turn has time for them."""
        self._shares_soon = False
        self.read_clocks()
        self.arrived = self._stopwatch()
        turn = self.turn = Turn(self.clocks.seconds, self.arrived, self._settled)
        waiting = self.waiting
        self._unpacks_until = 0.0
        while waiting and not self.is_spent():
            connection, _ = waiting.popitem(last=False)
            self._share_until = self._stopwatch() + SHARE_SECONDS
            try:
                connection.unpack()
            except Exception as error:  # noqa: BLE001 - as in `run`
                self.met(error, connection)
            self._share_until = inf
        if self.budget.requests > self.limits.unfinished:
            self._refuse_largest()
        self._finish(turn)
        if waiting:
            self._share_soon()

    def met(self, error: Exception, connection: Dropped) -> None:
        """Report a bug of ours loudly, and have only the client meet it whose connection it was."""
        connection.abort()
        context = {"message": "unhandled error", "exception": error, "connection": connection}
        self._loop.call_exception_handler(context)

    def _finish(self, turn: Turn) -> None:
        """Commit a turn, answer, and end the connections that were waiting for no more than that."""
        if turn.entries:
            turn.close()
            if self.deferred:
                turn.defer()
            if turn.events or (turn.entries and (self.deferred or self.owed)):
                self._commit(turn)
            else:
                turn.settle(committed=True)
        if self.closing:
            self._finish_ended()

    def _finish_ended(self) -> None:
        """Finish the connections that have ended, and are owed nothing."""
        closing, self.closing = self.closing, []
        for connection in closing:
            if not connection.pending:
                connection.finish()

    def _refuse_largest(self) -> None:
        """Have unfinished requests hold no more than they may; some room is made, because looking costs too."""
        enough = self.limits.unfinished * 7 // 8
        for connection in self.crowd.largest():
            if self.budget.requests <= enough:
                break
            connection.refuse()

    def stalls(self, unsent: int) -> None:
        """Take note that a client begins to leave so many bytes of answers unread.

        The slowest are looked for as soon as there may be too many of them: within a sweep's half second each client
        could cause an answer of megabytes.
        """
        before, self._stalled = self._stalled, self._stalled + unsent
        if before <= self.limits.unfinished < self._stalled:
            self._loop.call_soon(self._drop_slowest)

    def _drop_slowest(self) -> None:
        """Have unsent answers take no more than they may."""
        self._stalled = 0
        slowest = self.crowd.slowest()
        unsent = sum(size for size, _ in slowest)
        for size, connection in slowest:
            if unsent <= self.limits.unfinished:
                break
            unsent -= size
            self.metrics.timed_out.add(Overdue.ANSWER)
            connection.abort()

    def read_clocks(self) -> None:
        """Read both clocks, once for the turn: wall time stamps events, monotonic time sets deadlines."""
        clocks = self.clocks
        if clocks.read():
            self.book.turn(clocks.seconds)
        self.encoder.wall = clocks.wall

    def busy(self) -> bool:
        """Tell whether a connection is still owed an answer, or sends a request."""
        return self.crowd.busy()

    def _settled(self, requests: int, arrived: float, committed: bool) -> None:
        """Count requests with events, once for a turn."""
        metrics = self.metrics
        metrics.requests.counts[Answer.OK if committed else Answer.UNAVAILABLE] += requests
        metrics.request_seconds.observe(self._stopwatch() - arrived, requests)

    def count_answer(self, answer: bytes) -> None:
        """Count an answer to no event by the class of its status."""
        self.metrics.requests.add(_CLASSES[answer[_STATUS_AT]])

    def count_rejected(self, error: ClientError) -> None:
        """Count a refusal under the reason its table names."""
        self.metrics.rejected.add(error.counted)

    def is_spent(self) -> bool:
        """Tell whether this turn, or the share under way, has no time left to unpack bodies, or no room for lines."""
        now = self._stopwatch()
        if not self._unpacks_until:
            self._unpacks_until = now + UNPACKING_SECONDS
        return now >= self._unpacks_until or now >= self._share_until or self.turn.size >= TURN_BYTES

    def refuses_events(self) -> bool:
        """Tell whether an event that came now would be refused, for whatever reason."""
        return self._refusing()

    def sweep(self) -> None:
        """Close what has outlived its deadline. Called about twice a second; a deadline is late by at most that."""
        self.read_clocks()
        now = self.clocks.now
        overdue = [connection for connection in self.crowd if connection.is_overdue(now)]
        for connection in overdue:
            connection.expire()
        self._finish_ended()  # no turn need follow
        self._drop_slowest()
        self.refused.sweep(now)
        if self.access is not None and self.access.rate is not None:
            self.access.rate.sweep()

    def part(self) -> None:
        """From now on every answer ends its connection; one whose client says nothing is left alone."""
        self.parting = True
        self._take = _left_to_the_parser

    def drain(self) -> None:
        """From now on every answer ends its connection; idle connections end at once."""
        self.part()
        self.draining = True
        arrivals = self.arrivals
        until = self._stopwatch() + DRAIN_SECONDS
        while (arrivals.reads or arrivals.late) and self._stopwatch() < until:
            self.run()
        # What is left is answered in turns, for a signal must not wait for a long body; its answers say the rest.
        left = {connection for connection, _ in (*arrivals.reads, *arrivals.late)}
        for connection in list(self.crowd.admitted):
            if connection not in left or connection.held:
                connection.drain()

    def abort(self) -> None:
        """Drop every connection, and tell what is untold of them."""
        for connection in list(self.crowd):
            connection.abort()
        self.refused.finish()


def _left_to_the_parser(reads: Iterator[Read], turn: Turn, answers: int, deadline: float) -> Read | None:  # noqa: ARG001 - `ShortWay.take`'s shape
    """Take nothing: only the parser's way says `Connection: close`."""
    return next(reads, None)
