"""A process: the `Collector` that the server builds, less the wire, over a disk and a store that outlive it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from ingest import collector as pipeline
from ingest.collector import Collector
from ingest.intake.journal import NoJournal
from ingest.telemetry import Place, SealReason
from ingest.wire.turn import Turn
from tests.model.ledger import line, numbers_in, numbers_on_disk, parsed
from tests.model.loop import Died, StepExecutor, StepLane, StepLoop
from tests.model.store import Link
from tests.stand_ins.disk import CHANGES, Disk

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from ingest.config.settings import Settings
    from ingest.disk.errors import StorageError
    from ingest.intake.batch import Batch
    from ingest.spool.letters import Lent
    from ingest.spool.waiting import KeyedFile
    from tests.model.world import World

THREADS = 4


class Client(NamedTuple):
    """Who is answered in its turn: the sender of events, or (no numbers) of what no commit decides."""

    process: Process
    turn: int
    numbers: tuple[int, ...]

    @property
    def pending(self) -> int:
        return self.process.owed

    def write(self, answer: bytes) -> None:
        self.process.answer(self, committed=answer == b"yes")

    def await_commit(self, size: int) -> None:
        self.process.owed += size

    def answered(self, size: int) -> None:
        self.process.owed -= size


class Process:
    """One collector, from the tick's commit to the store."""

    def __init__(self, world: World, number: int, chosen: Settings) -> None:
        self.world = world
        self.number = number
        self.settings = chosen
        self.disk = ProcessDisk(world, self)
        self.link = Link(world, self)
        self.executor = StepExecutor(THREADS)
        self.sync_executor = StepExecutor(1)
        self.lane_executor = StepExecutor(1)
        self.loop = StepLoop(world.time)
        self.loop.set_exception_handler(self._unhandled)
        self.unhandled: list[Any] = []
        self.answers: list[tuple[int, bool]] = []
        """Number of each event answered, and whether with success, in order."""
        self.owed = 0
        """Bytes of answers that wait for the disk."""
        self._turns = 0
        self._answered = 0
        self._batches: dict[str, set[int]] = {}
        self._not_rewritten: list[set[int]] = []
        self._running: asyncio.Task[None] | None = None

    # Its life.

    def wire(self) -> None:
        """Make what the server makes. The token tells whose it is, and is the same in every run of the same test."""
        world = self.world
        self.collector = Collector(
            self.settings,
            pipeline.World(
                self.loop,
                fs=self.disk,
                storage=self.executor,
                gzip=self.executor,
                sync=self.sync_executor,
                lane=lambda name: StepLane(name, world.time, self.lane_executor),
                store=self.link,
                clock=self.loop.time,
                now=world.time.wall,
                draw=lambda low, high: (low + high) / 2,
                host="host",
                token=f"{self.number:016x}",
            ),
        )
        collector = self.collector
        self.token = collector.keys.token
        self.metrics = collector.metrics
        self.dlq_slot, self.journal_slot = collector.dlq_slot, collector.journal_slot
        self.dlq, self.backlog, self.journal = collector.dlq, collector.backlog, collector.journal
        self.uploader, self.intake = collector.uploader, collector.intake
        self._watch()

    def begin(self) -> None:
        self._running = self.loop.create_task(self.collector.run())

    # What a client does, and a signal.

    def commit(
        self, events: int, *, padding: int = 0, blanks: tuple[int, ...] = (), together: int = 1, run: bool = True
    ) -> list[int]:
        """Send a tick of events, and answers to no event before those at `blanks`; returns the events' numbers.

        So many as are `together` are of one request, but for those that a blank divides.
        """
        numbers: list[int] = []
        second = int(self.world.time.wall())
        turn = Turn(second)
        request: list[int] = []

        def flush() -> None:
            if request:
                self._turns += 1
                lines = b"".join(line(second, number, padding) for number in request)
                turn.event(Client(self, self._turns, tuple(request)), lines, b"yes", b"no", len(request))
                request.clear()

        for at in range(max(events, *blanks, 0) + 1 if blanks else events):
            if at in blanks:
                flush()
                self._turns += 1
                turn.reply(Client(self, self._turns, ()), b"shown")
            if at < events:
                number = self.world.events
                self.world.events += 1
                self.world.ledger.send(self.number, number, second)
                numbers.append(number)
                request.append(number)
                if len(request) == together:
                    flush()
        flush()
        turn.close()
        self._in_loop(lambda: self.intake.commit(turn))
        if run:
            self.world.run()
        return numbers

    def takes_an_event(self) -> bool:
        """Send one event; tell whether it was acknowledged."""
        (number,) = self.commit(1)
        return (number, True) in self.answers[-1:]

    def seal(self, reason: SealReason = SealReason.INTERVAL, *, run: bool = True) -> None:
        self._in_loop(lambda: self.intake.seal(reason))
        if run:
            self.world.run()

    def stop(self, *, skip: bool = False) -> None:
        """SIGTERM, with `skip` a second one at once: what `server.DRAIN` asks of the pipeline."""
        world, collector, skipping = self.world, self.collector, asyncio.Event()
        if skip:
            skipping.set()
        limit = self.settings.drain_timeout
        deadline = world.time.monotonic + limit
        self._finish(collector.seal(deadline), limit, step=0.01)
        self._finish(collector.drain(deadline, skipping), limit + 5)
        if self not in world.processes:
            return
        world.check()
        left, ledger = collector.left(), world.ledger
        if self.settings.durability == "memory":
            held = world.stored_numbers().keys() | ledger.safe
            own = {number for number in ledger.owed if ledger.owner[number] == self.number}
            assert len(own - held) <= left.lost_events, "an event is neither held nor counted as lost"
        else:
            own = {number for number in ledger.owed if ledger.owner[number] == self.number}
            held = world.stored_numbers().keys() | ledger.safe
            assert left.lost_events + left.on_disk >= len(own - held), "an event is neither held nor counted as lost"
            assert left.lost_events == 0 or self.journal.latched or self.journal._unwritten, (
                "lost on a disk that is well"
            )
        self._running.cancel()
        self._finish(collector.close(1.0), 1.5)
        if self in world.processes:
            world.bury(self)

    def _finish(self, work: Coroutine[Any, Any, Any], seconds: float, step: float = 0.25) -> Any:
        """Let time pass until `work` is done, and return what it came to; None if the process dies before."""
        world = self.world
        if self not in world.processes:
            work.close()
            return None
        task = self.loop.create_task(work)
        world.wait_for(lambda: task.done() or self not in world.processes, seconds=seconds, step=step)
        if self not in world.processes:
            return None
        assert task.done(), "the drain did not end in time"
        return task.result()

    # What has become of it.

    @property
    def pending(self) -> int:
        return sum(self.metrics.books.pending(place) for place in Place)

    @property
    def scanning(self) -> bool:
        return self.collector.scanning

    def states(self) -> list[str]:
        """Name the states it is in, touching nothing, for the list of those that the model has reached."""
        breaker = self.uploader.attempts.breaker.state.name.lower()
        flags = {
            "journal latched": getattr(self.journal, "latched", False),
            "sealed, not synced": bool(self.journal.sealing),
            "refused": bool(self.world.ledger.refused),
            "dead letters": self.dlq.files > 0,
            "backlog": self.backlog.files > 0,
            "scanning": self.scanning,
        }
        return [f"breaker {breaker}", *(name for name, holds in flags.items() if holds)]

    def figures(self) -> dict[str, int]:
        return {place.value: self.metrics.books.pending(place) for place in Place} | {"scanning": int(self.scanning)}

    @property
    def jobs(self) -> int:
        return sum(len(executor.jobs) for executor in (self.executor, self.sync_executor, self.lane_executor))

    @property
    def choices(self) -> int:
        singles = sum(bool(executor.jobs) for executor in (self.sync_executor, self.lane_executor))
        return min(len(self.executor.jobs), THREADS) + singles

    def run_job(self, which: int = 0) -> None:
        """Run one job: of the sync's thread, of the storage's, or of the lane's."""
        syncs, stores = min(len(self.sync_executor.jobs), 1), min(len(self.executor.jobs), THREADS)
        if which < syncs:
            self.sync_executor.run_one()
        elif which < syncs + stores:
            self.executor.run_one(which - syncs)
        elif self.lane_executor.jobs:
            self.lane_executor.run_one()

    def not_rewritten(self) -> set[int]:
        """Refused events whose lines may be on the disk until their batch is stored: cut and rewrite have failed."""
        return {number for numbers in self._not_rewritten for number in numbers}

    def discard(self) -> None:
        """Let nothing of a dead process remain."""
        for executor in (self.executor, self.sync_executor, self.lane_executor):
            executor.jobs.clear()
        for _ in range(10):
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            if not tasks:
                break
            self.loop.settle()
        self.loop.close()
        self.disk.close_all()

    # Below.

    def _in_loop(self, call: Callable[[], None]) -> None:
        self.loop.call_soon(call)
        self.world.run_loops()

    def answer(self, client: Client, *, committed: bool) -> None:
        """Hear an answer; a dead process gives none."""
        if self.disk.dead:
            return
        self._answered += 1
        assert client.turn == self._answered, "answers out of order"
        for number in client.numbers:
            self.answers.append((number, committed))
            self.world.ledger.answer(self.number, number, committed=committed)

    def _watch(self) -> None:
        """Tell the ledger what leaves by other ways than the store."""
        ledger, dlq, carrier = self.world.ledger, self.dlq, self.uploader.recovery.carrier
        submit, save, evict, expire = self.uploader.submit, dlq.save, dlq._letters._evict, carrier._expire

        def submitted(batch: Batch) -> None:
            self._batches[batch.key] = {event["body"] for event in parsed(bytes(batch.view()))}
            submit(batch)

        async def saved(key: str, body: bytes, events: int, **how: Any) -> None:
            await save(key, body, events, **how)
            ledger.safe |= set(numbers_in(body))

        def evicted(lent: Lent) -> bool:
            numbers = numbers_on_disk(lent.path)
            gone = evict(lent)
            if gone:
                ledger.drop(numbers)
            return gone

        def expired(file: KeyedFile) -> None:
            ledger.drop(numbers_on_disk(file.path))
            expire(file)

        self.uploader.submit = submitted
        dlq.save, dlq._letters._evict, carrier._expire = saved, evicted, expired
        if isinstance(self.journal, NoJournal):
            return
        not_rewritten = self.journal._not_rewritten

        def seen(batch: Batch, error: StorageError) -> None:
            # None of them is answered before this.
            self._not_rewritten.append(set(ledger.flying[self.number]))
            not_rewritten(batch, error)

        self.journal._not_rewritten = seen

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self.disk.dead and not isinstance(context.get("exception"), Died):
            self.unhandled.append(context)


class ProcessDisk(Disk):
    """A process's view of the disk that it shares with others: its descriptors, and its death."""

    death = Died

    def __init__(self, world: World, process: Process) -> None:
        super().__init__(world.fs)
        self._world = world
        self._process = process

    def _begin(self, operation, path):
        if operation in CHANGES and not self.dead:
            self._world.meet(self._process, operation, path)
        super()._begin(operation, path)

    def fsync_dir(self, path):
        try:
            super().fsync_dir(path)
        except OSError:
            self._world.folder_sync_failed = True
            raise

    def close_all(self) -> None:
        for fd in self._paths:
            with suppress(OSError):
                self._world.fs.let_go(fd)
        self._paths.clear()
