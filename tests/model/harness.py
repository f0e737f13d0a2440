"""A small world in which collectors live and die, every step of it chosen by the test.

`World` has one disk (`CrashableFilesystem`), one store (`MemoryStore`), one clock, and the processes that share them.
`Process` is the `Collector` that the server builds, less the wire: a tick of events goes in through `commit`, answers
come out in `answers`. `Ledger` is the model: what a client may rely on, in sets of event numbers.

Nothing happens by itself. The event loop of a process runs until it has nothing to do and then stops; what it handed to
an executor waits until it is told to run, so that whatever a thread may be late with, it can be late with here; time
passes when told to. A process dies before any call to the file system that the test names, in the loop or in an
executor, and then nothing of it reaches the disk or the store any more, except puts that were under way: they may land
whenever the test likes.

Who may lose what, at the death of a process (the table of §4):

    kill        memory: all that is neither stored nor in the DLQ. journal, fsync: nothing
    power cut   fsync: nothing. memory, journal: all that is neither stored nor in the DLQ

One thing is left out: on this disk a folder whose sync has failed can never be synced again, and whoever tries is told
that it went well. File systems abort when that fails, and take no more writes. After such a failure a power cut may
take what is not stored.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import selectors
from collections import Counter, deque
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from structlog.testing import capture_logs

from ingest import collector as pipeline
from ingest.collector import ADOPT_SECONDS, Collector
from ingest.config import settings as config
from ingest.disk.errors import StorageError
from ingest.disk.filesystem import FILE_MODE, Filesystem
from ingest.format import codec
from ingest.format.keys import parse_key, partition_of
from ingest.intake.journal import NoJournal
from ingest.telemetry import Place, SealReason
from ingest.wire.turn import Turn
from tests.stand_ins.fakes import CrashableFilesystem, MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from ingest.config.settings import Settings
    from ingest.intake.batch import Batch
    from ingest.spool.waiting import KeyedFile
    from ingest.store.object_store import ObjectMetadata
    from tests.stand_ins.fakes import Choice

THREADS = 4
MOST_TURNS = 20_000
"""A loop that turns more often without time passing is spinning."""
START = 1_764_720_000
"""A full hour."""


class Died(BaseException):
    """Raised by the call that the process did not live to make; nothing that handles errors may meet it."""


# ------------------------------------------------------------------------------------------------- time and threads


class Time:
    """What all clocks show. A turn of a loop takes a microsecond, so that nobody waits for an instant in vain."""

    def __init__(self, wall: float = START) -> None:
        self.monotonic = 1000.0
        self._ahead = wall - 1000.0

    def wall(self) -> float:
        return self.monotonic + self._ahead

    def step(self, seconds: float) -> None:
        """Set the wall clock, as NTP does."""
        self._ahead += seconds


class _Selector(selectors.DefaultSelector):
    """Stops the loop instead of blocking it."""

    def __init__(self, time: Time) -> None:
        super().__init__()
        self.time = time
        self.turns = 0
        self.wakes_at: float | None = None
        self.idle: Callable[[], None] = lambda: None

    def select(self, timeout=None):
        self.turns += 1
        assert self.turns < MOST_TURNS, "the loop spins"
        self.time.monotonic += 1e-6
        if timeout is None or timeout > 0:
            self.wakes_at = None if timeout is None else self.time.monotonic + timeout
            self.idle()
        return super().select(0)


class StepLoop(asyncio.SelectorEventLoop):
    """Runs until it is idle, and tells when its next timer is due."""

    def __init__(self, time: Time) -> None:
        self._when = time
        self._steps = _Selector(time)
        self._steps.idle = self.stop
        super().__init__(self._steps)

    def time(self) -> float:
        return self._when.monotonic

    @property
    def wakes_at(self) -> float | None:
        return self._steps.wakes_at

    def settle(self) -> None:
        self._steps.turns = 0
        self.run_forever()


class StepExecutor(Executor):
    """Keeps what it is given until it is told to run it; up to `threads` of its jobs may be next."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self.jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def submit(self, call, /, *args, **named):
        future: Future[Any] = Future()
        self.jobs.append((future, partial(call, *args, **named)))
        return future

    def run_one(self, which: int = 0) -> None:
        which %= min(self._threads, len(self.jobs))
        future, call = self.jobs[which]
        del self.jobs[which]
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = call()
        except Died:
            return
        except BaseException as error:  # noqa: BLE001 - it is the caller's, as with a thread
            future.set_exception(error)
        else:
            future.set_result(result)


# ------------------------------------------------------------------------------------------------------- the model


class Ledger:
    """What the clients know, as sets of event numbers. An event is in one of the first four; `safe` is beside them."""

    def __init__(self) -> None:
        self.flying: dict[int, set[int]] = {}
        """Sent to a process, by its number, and not answered yet."""
        self.owed: set[int] = set()
        """Acknowledged, and covered by the mode: to be stored exactly once."""
        self.maybe: set[int] = set()
        """The answer was lost, or what happened is beyond the mode: stored once, or not at all."""
        self.refused: set[int] = set()
        """Answered 503: never to be stored."""
        self.dropped: set[int] = set()
        """Evicted or expired, which is counted."""
        self.safe: set[int] = set()
        """In a published dead-letter file, which every mode's power cut leaves alone."""
        self.owner: dict[int, int] = {}
        self.second: dict[int, int] = {}

    def send(self, process: int, number: int, second: int) -> None:
        self.flying.setdefault(process, set()).add(number)
        self.owner[number] = process
        self.second[number] = second

    def answer(self, process: int, number: int, *, committed: bool) -> None:
        self.flying[process].remove(number)
        (self.owed if committed else self.refused).add(number)

    def lose_answers(self, process: int) -> None:
        self.maybe |= self.flying.pop(process, set())

    def demote(self, numbers: set[int]) -> None:
        """Ask no more of these events than that none is stored twice."""
        self.owed -= numbers
        self.refused -= numbers
        self.maybe |= numbers

    def drop(self, numbers: set[int]) -> None:
        self.dropped |= numbers & self.owed
        self.demote(numbers & self.owed)


class Client(NamedTuple):
    """Who is answered in its turn: the sender of an event, or (number None) of what no commit decides."""

    process: Process
    turn: int
    number: int | None
    pending: int = 0

    def write(self, answer: bytes) -> None:
        self.process.answer(self, committed=answer == b"yes")

    def await_commit(self) -> None:
        raise AssertionError("nobody deferred this turn")

    answered = await_commit


# ------------------------------------------------------------------------------------------------------- the world


@dataclass(slots=True)
class Fuse:
    """How many calls of a kind are left until somebody dies."""

    left: int
    operation: str
    when: Callable[[Path], bool]
    power: Choice | None


class World:
    """A disk, a store, a clock, and processes. `variables` are those of the environment."""

    def __init__(self, folder: Path, *, wall: float = START, **variables: object) -> None:
        self.root = folder
        self.fs = CrashableFilesystem(folder)
        self.store = MemoryStore()
        self.time = Time(wall)
        self.ledger = Ledger()
        self.processes: list[Process] = []
        self.numbers = 0
        self.events = 0
        self.settings = settings(folder, **variables)
        self.late_puts = 0
        """How many of the next puts hang until they are given up, and land whenever `land` says."""
        self.landing: list[Callable[[], None]] = []
        self.fuse: Fuse | None = None
        self.struck: Process | None = None
        self.folder_sync_failed = False
        self.unhandled: list[str] = []
        self._capture = capture_logs()
        self.logs = self._capture.__enter__()
        self._seen_replaced = 0

    def close(self) -> None:
        """Leave nothing running."""
        for process in list(self.processes):
            self.bury(process)
        self._capture.__exit__(None, None, None)

    # Life and death.

    def start(self, *, run: bool = True, **variables: object) -> Process | None:
        """Start a process; None when the disk does not let it."""
        chosen = settings(self.root, **variables) if variables else self.settings
        self.numbers += 1
        process = Process(self, self.numbers, chosen)
        self.processes.append(process)
        try:
            process.wire()
        except (StorageError, Died) as error:
            process.failed_start = error
            if isinstance(error, StorageError):
                self.bury(process)
            else:
                self._see_who_died()
            return None
        process.begin()
        if run:
            self.run()
        return process if process in self.processes else None

    def kill(self, process: Process) -> None:
        """SIGKILL: what is on the disk, synced or not, stays."""
        process.disk.dead = True
        self._see_who_died()

    def power_cut(self, choice: Choice) -> None:
        """End every process and take from the disk what was not synced, but for what `choice` keeps."""
        for process in list(self.processes):
            process.disk.dead = True
            self.bury(process)
        self.fs.crash(choice)
        if self.settings.durability != "fsync" or self.folder_sync_failed:
            # Nothing is promised of what is not stored and in no dead-letter file, and a roll-back was not synced.
            held = self.stored_numbers().keys() | (set() if self.folder_sync_failed else self.ledger.safe)
            self.ledger.demote(self.ledger.owed - held)
            if self.settings.durability == "journal":
                self.ledger.demote(set(self.ledger.refused))

    def bury(self, process: Process) -> None:
        """Take a dead process out of the world, its puts under way left to chance."""
        process.disk.dead = True
        if process in self.processes:
            self.processes.remove(process)
        self.landing += process.link.under_way.values()
        process.discard()
        self.ledger.lose_answers(process.number)
        self.ledger.demote(process.not_rewritten() & self.ledger.refused)
        if process.settings.durability == "memory":
            held = self.stored_numbers().keys() | self.ledger.safe
            own = {number for number in self.ledger.owed if self.ledger.owner[number] == process.number}
            self.ledger.demote(own - held)

    # The passing of time.

    def run(self) -> None:
        """Let every loop and every thread go on until nothing is left to do at this instant."""
        while True:
            self.run_loops()
            busy = [process for process in self.processes if process.jobs]
            if not busy:
                return
            for process in busy:
                if not process.disk.dead:
                    process.run_job()

    def run_loops(self) -> None:
        """Let the loops go on, the threads not."""
        self._see_who_died()
        for process in list(self.processes):
            if not process.disk.dead:
                process.loop.settle()
        self._see_who_died()

    def run_job(self, which: int = 0) -> bool:
        """Run one of the jobs that threads could be at work on; False if there is none."""
        choices = [(process, n) for process in self.processes for n in range(process.choices)]
        if not choices:
            return False
        process, n = choices[which % len(choices)]
        process.run_job(n)
        self.run_loops()
        return True

    def advance(self, seconds: float, *, threads: bool = True) -> None:
        """Let time pass, timer by timer."""
        run = self.run if threads else self.run_loops
        end = self.time.monotonic + seconds
        while True:
            run()
            wakes = [process.loop.wakes_at for process in self.processes if process.loop.wakes_at is not None]
            if not wakes or min(wakes) > end:
                break
            self.time.monotonic = max(self.time.monotonic, min(wakes)) + 1e-6
        self.time.monotonic = max(self.time.monotonic, end)
        run()

    def wait_for(self, condition: Callable[[], bool], *, seconds: float, step: float = 0.25) -> bool:
        """Let time pass until the condition holds, for so long at most."""
        end = self.time.monotonic + seconds
        self.run()
        while not condition() and self.time.monotonic < end:
            self.advance(step)
        return condition()

    def _see_who_died(self) -> None:
        if self.struck is not None:
            struck, self.struck = self.struck, None
            fuse, self.fuse = self.fuse, None
            if fuse is not None and fuse.power is not None:
                self.power_cut(fuse.power)
                return
            struck.disk.dead = True
        for process in [process for process in self.processes if process.disk.dead]:
            self.bury(process)

    def burn(
        self,
        calls: int = 0,
        operation: str = "",
        *,
        when: Callable[[Path], bool] = lambda _: True,
        power: Choice | None = None,
    ) -> None:
        """Let whoever makes the nth such call to the file system from now on, counted from 0, die before it.

        With `power` everybody dies, and what it picks of what was not synced is kept.
        """
        self.fuse = Fuse(calls, operation, when, power)

    def meet(self, process: Process, operation: str, path: Path) -> None:
        """Take note of a call to the file system; somebody may not live to make it."""
        fuse = self.fuse
        if fuse is None or fuse.operation not in ("", operation) or not fuse.when(path):
            return
        if fuse.left == 0:
            self.struck = process
            for dying in self.processes if fuse.power is not None else [process]:
                dying.disk.dead = True
        fuse.left -= 1

    # The store.

    def land(self, which: int = 0) -> None:
        """Let one of the puts arrive that were given up, or whose process is gone."""
        if self.landing:
            self.landing.pop(which % len(self.landing))()

    def stored_numbers(self) -> Counter[int]:
        found: Counter[int] = Counter()
        for key, body in self.store.objects.items():
            if key.startswith("raw/"):
                found.update(numbers_in(body))
        return found

    # What must be true.

    def check(self) -> None:
        """What holds at every instant."""
        for process in self.processes:
            assert process.metrics.books.unaccounted() == 0, (process.number, process.metrics)
            assert not process.unhandled, process.unhandled
        for key, old, new in self.store.replaced[self._seen_replaced :]:
            assert set(numbers_in(old)) <= set(numbers_in(new)), f"{key} was replaced by less"
        self._seen_replaced = len(self.store.replaced)

    def recover(self) -> None:
        """Let all be well again, and let what is on the disk be recovered; then hold the store against the ledger."""
        self.fs.heal()
        self.fs.capacity = None
        self.store.down = False
        self.fuse = None
        self.late_puts = 0
        store_fates(self.store).clear()
        # The processes at work come to an end with their work, and a fresh one takes what they left.
        for process in list(self.processes):
            process.seal()
        assert self.wait_for(lambda: not any(process.pending for process in self.processes), seconds=600, step=5), [
            process.figures() for process in self.processes
        ]
        self.check()
        for process in list(self.processes):
            process.stop()
        last = self.start(dlq_max_age="0s", dlq_max_size_bytes=1 << 40, durability=self.settings.durability)
        assert last is not None
        assert self.wait_for(lambda: not last.pending and not last.scanning, seconds=600, step=5), last.figures()
        self.advance(2 * ADOPT_SECONDS)
        assert self.wait_for(lambda: not last.pending and not last.scanning, seconds=600, step=5), last.figures()
        self.check()
        while self.landing:
            self.land()
        self.check()
        last.stop()
        self.hold()

    def hold(self) -> None:
        """Hold the store against the ledger, when there is nothing left to recover."""
        ledger, stored = self.ledger, self.stored_numbers()
        assert not any(ledger.flying.values()), "somebody was never answered"
        doubled = {number: count for number, count in stored.items() if count > 1}
        assert not doubled, f"doubled: {doubled}"
        lost = ledger.owed - stored.keys()
        assert not lost, f"lost: {sorted(lost)}"
        refused = ledger.refused & stored.keys()
        assert not refused, f"refused, and stored: {sorted(refused)}"
        for key, body in self.store.objects.items():
            if not key.startswith("raw/"):
                continue
            parsed, metadata = parse_key(key), self.store.metadata[key]
            events = events_in(body)
            assert events, f"{key} holds nothing"
            assert codec.event_count(body) == metadata.events == len(events)
            assert (metadata.first_ts, metadata.last_ts) == (events[0]["ts"], events[-1]["ts"]), key
            assert metadata.instance == f"{parsed.host}-{parsed.token}"
            for event in events:
                assert partition_of(event["ts"], self.settings.partition_tz).path == parsed.partition
                assert self.ledger.second[event["body"]] == event["ts"]
        assert self.files() == [], "recovery left files"

    def files(self) -> list[str]:
        """Every file on the disk but the locks of slots."""
        found = (path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())
        return sorted(name for name in found if not name.endswith("/lock"))


class Process:
    """One collector, from the tick's commit to the store."""

    def __init__(self, world: World, number: int, chosen: Settings) -> None:
        self.world = world
        self.number = number
        self.settings = chosen
        self.disk = Disk(world, self)
        self.link = Link(world, self)
        self.executor = StepExecutor(THREADS)
        self.sync_executor = StepExecutor(1)
        self.loop = StepLoop(world.time)
        self.loop.set_exception_handler(self._unhandled)
        self.unhandled: list[Any] = []
        self.answers: list[tuple[int, bool]] = []
        """Number of each event answered, and whether with success, in order."""
        self.failed_start: BaseException | None = None
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
                sync=self.sync_executor,
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

    def commit(self, events: int, *, padding: int = 0, blanks: tuple[int, ...] = (), run: bool = True) -> list[int]:
        """Send a tick of events, and answers to no event before those at `blanks`; returns the events' numbers."""
        numbers: list[int] = []
        second = int(self.world.time.wall())
        turn = Turn(second)
        for at in range(max(events, *blanks, 0) + 1 if blanks else events):
            if at in blanks:
                self._turns += 1
                turn.reply(Client(self, self._turns, None), b"shown")
            if at < events:
                self._turns += 1
                number = self.world.events
                self.world.events += 1
                self.world.ledger.send(self.number, number, second)
                numbers.append(number)
                turn.event(Client(self, self._turns, number), line(second, number, padding), b"yes", b"no")
        self._in_loop(lambda: self.intake.commit(turn))
        if run:
            self.world.run()
        return numbers

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
        drained = self._finish(collector.drain(deadline, skipping), limit + 5)
        if self not in world.processes:
            return
        world.check()
        lost = [upload.batch.key for upload in self.uploader._queue]
        assert bool(lost) == bool(drained.lost_events)
        self._running.cancel()
        self._finish(collector.close(), 1)
        if self not in world.processes:
            return
        if self.settings.durability == "memory":
            for key in lost:
                world.ledger.demote(self._batches[key] - world.ledger.maybe)
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

    def figures(self) -> dict[str, int]:
        return {place.value: self.metrics.books.pending(place) for place in Place} | {"scanning": int(self.scanning)}

    @property
    def jobs(self) -> int:
        return len(self.executor.jobs) + len(self.sync_executor.jobs)

    @property
    def choices(self) -> int:
        return min(len(self.executor.jobs), THREADS) + min(len(self.sync_executor.jobs), 1)

    def run_job(self, which: int = 0) -> None:
        """Run one job: of the sync's thread, or of the storage's."""
        syncs = min(len(self.sync_executor.jobs), 1)
        if which < syncs:
            self.sync_executor.run_one()
        elif self.executor.jobs:
            self.executor.run_one(which - syncs)

    def not_rewritten(self) -> set[int]:
        """Refused events whose lines may be on the disk until their batch is stored: cut and rewrite have failed."""
        return {number for numbers in self._not_rewritten for number in numbers}

    def discard(self) -> None:
        """Let nothing of a dead process remain."""
        for executor in (self.executor, self.sync_executor):
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
        if client.number is not None:
            self.answers.append((client.number, committed))
            self.world.ledger.answer(self.number, client.number, committed=committed)

    def _watch(self) -> None:
        """Tell the ledger what leaves by other ways than the store."""
        ledger, dlq, recovery = self.world.ledger, self.dlq, self.uploader.recovery
        submit, save, evict, expire = self.uploader.submit, dlq.save, dlq._evict, recovery._expire

        def submitted(batch: Batch) -> None:
            self._batches[batch.key] = {event["body"] for event in _events(bytes(batch.view()))}
            submit(batch)

        async def saved(key: str, body: bytes, events: int, *, force: bool = False) -> None:
            await save(key, body, events, force=force)
            ledger.safe |= set(numbers_in(body))

        async def evicted(file: KeyedFile) -> bool:
            numbers = numbers_on_disk(file.path)
            gone = await evict(file)
            if gone:
                ledger.drop(numbers)
            return gone

        async def expired(file: KeyedFile) -> None:
            ledger.drop(numbers_on_disk(file.path))
            await expire(file)

        self.uploader.submit = submitted
        dlq.save, dlq._evict, recovery._expire = saved, evicted, expired
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


class Disk(Filesystem):
    """A process's view of the disk: its descriptors, and its death."""

    __slots__ = ("_fs", "_open", "_process", "_world", "dead")

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process
        self._fs = world.fs
        self._open: dict[int, Path] = {}
        self.dead = False

    def _meet(self, operation, path):
        if not self.dead:
            self._world.meet(self._process, operation, path)
        if self.dead:
            raise Died

    def open(self, path, flags, mode=FILE_MODE):
        self._meet("open", path)
        fd = self._fs.open(path, flags, mode)
        self._open[fd] = path
        return fd

    def write(self, fd, data):
        self._meet("write", self._open[fd])
        return self._fs.write(fd, data)

    def fdatasync(self, fd):
        self._meet("fdatasync", self._open[fd])
        self._fs.fdatasync(fd)

    def truncate(self, fd, size):
        self._meet("truncate", self._open[fd])
        self._fs.truncate(fd, size)

    def close(self, fd):
        self._meet("close", self._open[fd])
        del self._open[fd]
        self._fs.close(fd)

    def rename(self, src, dst):
        self._meet("rename", dst)
        self._fs.rename(src, dst)

    def link(self, src, dst):
        self._meet("link", dst)
        self._fs.link(src, dst)

    def unlink(self, path):
        self._meet("unlink", path)
        self._fs.unlink(path)

    def mkdir(self, path):
        self._meet("mkdir", path)
        self._fs.mkdir(path)

    def rmdir(self, path):
        self._meet("rmdir", path)
        self._fs.rmdir(path)

    def fsync_dir(self, path):
        self._meet("fsync_dir", path)
        try:
            self._fs.fsync_dir(path)
        except OSError:
            self._world.folder_sync_failed = True
            raise

    def close_all(self) -> None:
        for fd in self._open:
            with suppress(OSError):
                self._fs.close(fd)
        self._open.clear()


class Link:
    """A process's way to the store; what it puts from memory bears its own token, and what from disk is created."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process
        self._calls = 0
        self.under_way: dict[int, Callable[[], None]] = {}

    async def start(self) -> None:
        """Nothing to do."""

    async def prepare(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def put(self, key: str, body: bytes, metadata: ObjectMetadata) -> None:
        assert parse_key(key).token == self._process.token, "a plain put of what came from a disk"
        await self._send("put", key, body, metadata)

    async def create(self, key: str, body: bytes, metadata: ObjectMetadata) -> bool:
        return await self._send("create", key, body, metadata)

    async def _send(self, operation: str, key: str, body: bytes, metadata: ObjectMetadata) -> Any:
        store = self._world.store

        def land() -> None:
            if operation == "put" or key not in store.objects:
                store._store(key, body, metadata)

        self._calls += 1
        call = self._calls
        self.under_way[call] = land
        try:
            if self._world.late_puts:
                self._world.late_puts -= 1
                try:
                    await asyncio.Event().wait()
                finally:
                    if not self._process.disk.dead:
                        self._world.landing.append(land)
            return await getattr(store, operation)(key, body, metadata)
        finally:
            if not self._process.disk.dead:
                del self.under_way[call]


# ----------------------------------------------------------------------------------------------------------- pieces


def settings(folder: Path, **variables: object) -> Settings:
    environ = {"DLQ_DIR": str(folder / "dlq"), "STORE_DIR": str(folder / "objects"), "DISK_RESERVE": "0"}
    return config.load(environ | {name.upper(): str(value) for name, value in variables.items()})


def line(second: int, number: int, padding: int = 0) -> bytes:
    padded = b'"pad":"%b",' % (b"x" * padding) if padding else b""
    return b'{"ts":%d,%b"body":%d}\n' % (second, padded, number)


def numbers_in(body: bytes) -> list[int]:
    return [event["body"] for event in events_in(body)]


def events_in(body: bytes) -> list[dict[str, Any]]:
    return _events(gzip.decompress(body))


def numbers_on_disk(path: Path) -> set[int]:
    """The events in a dead-letter file or a segment, as far as they are sound."""
    found = set()
    for text in (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).splitlines():
        with suppress(ValueError):
            found.add(json.loads(text)["body"])
    return found


def store_fates(store: MemoryStore) -> deque[Any]:
    return store._fates


def _events(lines: bytes) -> list[dict[str, Any]]:
    return [json.loads(text) for text in lines.splitlines()]
