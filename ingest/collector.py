"""The pipeline without sockets and signals: from a turn's commit to the store.

Owns which part is made with which, in which order they start, and how they end. The server builds it and so do the
tests, so that what is tested is what ships. Promises that making a `Collector` takes its slots and begins nothing;
that `run` begins everything slow beside whoever called it; that after `drain` every acknowledged event is in the store,
on disk, or counted as lost. Never reads a request, answers one, or listens to a signal.

The parts, in the order in which they are made:

    keys, metrics, slots        what a process is
    store                       S3 or a directory
    ledgers, backlog, dlq       what waits on disk, and what is told of it when it goes
    journal                     what makes the open batch durable
    uploader                    every put there is
    intake                      the open batch
    closing                     which hours are complete
"""

from __future__ import annotations

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from ingest.config import differing
from ingest.delivery import Drain, TornLetters, Uploader
from ingest.disk import Filesystem, Lane, Slot, StorageError
from ingest.format import KeyFactory, codec
from ingest.intake import Intake, Journal, NoJournal
from ingest.ledger import Closing, Ledger, Post, Side, Writing, is_of_ledger, is_strange
from ingest.spool import Adoption, Backlog, Places, Spool
from ingest.store import Head, create_store
from ingest.telemetry import About, Books, Budget, Metrics, Place, StoreHealth, Story
from ingest.threads import start_all

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor
    from pathlib import Path

    from ingest.config import Settings
    from ingest.intake import Batch
    from ingest.spool import Held
    from ingest.store import ObjectStore

LEFT_SECONDS: Final = 0.25
"""Seconds of a drain that the telling of hours leaves: the process has ended when the time is up."""
ADOPT_SECONDS: Final = 30.0
ADOPT_MORE_SECONDS: Final = 1.0
STORAGE_THREADS: Final = 4
GZIP_THREADS: Final = 2

log = structlog.get_logger()


@dataclass(slots=True)
class World:
    """Everything outside the pipeline, so that a test can put something else in its place."""

    loop: asyncio.AbstractEventLoop
    fs: Filesystem = field(default_factory=Filesystem)
    storage: Executor = field(default_factory=partial(ThreadPoolExecutor, STORAGE_THREADS, "storage"))
    """Runs what blocks, but for the journal's syncs, the disks' lanes and what only computes."""
    gzip: Executor = field(default_factory=partial(ThreadPoolExecutor, GZIP_THREADS, "gzip"))
    """Compresses and judges files. No disk that hangs can hold it up."""
    sync: Executor = field(default_factory=partial(ThreadPoolExecutor, 1, "sync"))
    lane: Callable[[str], Lane] = Lane
    """Makes the thread of a directory."""
    store: ObjectStore | None = None
    """None: the one that the settings name."""
    books: Books = field(default_factory=Books)
    clock: Callable[[], float] = time.monotonic
    """Measures. Deadlines are on it."""
    now: Callable[[], float] = time.time
    """Dates."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    draw: Callable[[float, float], float] = random.uniform
    """Spreads the backoff."""
    host: str | None = None
    token: str | None = None
    """The parts of every key; None: this machine's name, and drawn at the start."""


class Left(NamedTuple):
    """The events that the end of the process leaves behind: safe on its disk, or (`lost_events`) nowhere."""

    dlq_files: int
    dlq_events: int
    backlog_files: int
    backlog_events: int
    segment_events: int
    unknown_files: int
    lost_events: int

    @property
    def on_disk(self) -> int:
        """The events that wait on disk."""
        return self.dlq_events + self.backlog_events + self.segment_events


class Collector:
    """One pipeline: made, run, drained, closed."""

    def __init__(self, settings: Settings, world: World) -> None:
        """Take the slots; a `StorageError` when the disk does not let us, with the variable as its note."""
        self._settings = settings
        self._world = world
        self.metrics = metrics = Metrics(world.books, store=StoreHealth(world.now))
        self.budget = Budget(settings.max_buffer_bytes)
        self.keys = keys = KeyFactory(settings.raw_prefix, settings.partition_tz, world.host, world.token)
        self.dlq_slot = _take_slot("DLQ_DIR", world.fs, settings.dlq_dir)
        self.journal_slot = _take_slot("JOURNAL_DIR", world.fs, settings.journal_dir)
        head = Head(codec.HEAD_BYTES, codec.event_count)
        self.store = world.store or create_store(settings, head, fs=world.fs, executor=world.storage)
        self.dlq_lane = world.lane("dlq")
        self.journal_lane = world.lane("journal")
        places = Places(world.fs, (settings.journal_dir, self.journal_lane), (settings.dlq_dir, self.dlq_lane))
        is_synced = settings.durability == "fsync"
        self.journal_ledger = Ledger(world.fs, sync=is_synced, kept=settings.manifests)
        self.dlq_ledger = Ledger(world.fs, sync=is_synced, kept=settings.manifests)
        self._writing = Writing(self.journal_ledger, self.journal_lane)
        self.backlog = Backlog(
            world.fs,
            self.journal_slot,
            metrics,
            self.journal_lane,
            world.gzip,
            places,
            token=keys.token,
            note=self.journal_ledger.note,
            is_settled=self.journal_ledger.is_settled,
            holds_own=settings.durability == "memory",
        )
        self.dlq = Spool(
            settings,
            world.fs,
            [self.dlq_slot],
            metrics,
            self.dlq_lane,
            world.gzip,
            places,
            token=keys.token,
            backlog_bytes=self._backlog_bytes,
            note=self.dlq_ledger.note,
            is_settled=self.dlq_ledger.is_settled,
            clock=world.clock,
            sleep=world.sleep,
        )
        self.journal: Journal | NoJournal
        if settings.durability == "memory":
            self.journal = NoJournal(metrics, self._submit, self._write_line)
        else:
            self.journal = Journal(
                world.fs,
                self.journal_slot,
                self.journal_lane,
                world.sync,
                metrics,
                sync=is_synced,
                submit=self._submit,
                keep=self.backlog.keep,
                note=self.journal_ledger.note,
            )
        self.uploader = Uploader(
            settings,
            self.store,
            self.dlq,
            self.backlog,
            self.journal,
            metrics,
            self.budget,
            world.gzip,
            on_room=self._room_made,
            clock=world.clock,
            now=world.now,
            draw=world.draw,
            sleep=world.sleep,
        )
        self._torn = TornLetters(settings, self.dlq, self.store, self.uploader.attempts.breaker, metrics, world.now)
        self.intake = Intake(
            settings,
            keys,
            metrics,
            world.loop,
            self.budget,
            has_room=self._has_room,
            journal=self.journal,
        )
        self.closing = self._closing() if settings.manifests else None
        self.story = Story(
            metrics,
            clock=world.clock,
            now=world.now,
            refuses=self._refuses,
            next_try=self._next_try,
            about=self._about,
        )
        self._register_figures()

    @property
    def slots(self) -> dict[str, str]:
        """The folders that this process holds now: one whose lock was removed may have had to be left."""
        return {"dlq": str(self.dlq_slot.path.absolute()), "journal": str(self.journal_slot.path.absolute())}

    @property
    def deferred(self) -> bool:
        """Whether answers wait for a group commit."""
        return self.journal.deferred

    @property
    def scanning(self) -> bool:
        """Something on disk is not in the books yet."""
        return self.backlog.scanning or self.dlq.scanning

    # Its life.

    def begin(self) -> None:
        """Start all threads there will be; a `NoThreadError` if one is not to be had, which is better heard now."""
        world = self._world
        for executor, threads in ((world.storage, STORAGE_THREADS), (world.gzip, GZIP_THREADS), (world.sync, 1)):
            start_all(executor, threads)
        for lane in (self.dlq_lane, self.journal_lane):
            lane.begin()

    async def run(self) -> None:
        """Store, upload and recover until cancelled; an exception out of it is a bug of ours."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._start_store())
            tasks.create_task(self.uploader.run())
            tasks.create_task(self.journal.watch())
            tasks.create_task(self.dlq.watch())
            tasks.create_task(self.backlog.watch())
            tasks.create_task(self.recover())
            if self.closing is not None:
                tasks.create_task(self.closing.run())

    async def recover(self) -> None:
        """Find what earlier processes left, ours first; then look now and again for slots whose process has gone.

        Each disk is looked after by itself: one that hangs, or is slow to count, holds up no other.
        """
        settings = self._settings
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_after(settings.journal_dir, self.journal_lane, self.backlog))
            tasks.create_task(self._look_after(settings.dlq_dir, self.dlq_lane, self.dlq))

    async def _look_after(self, base: Path, lane: Lane, place: Backlog | Spool) -> None:
        # Without manifests nobody would ever have done with a ledger that an earlier process has left.
        passes_over = is_strange if self._settings.manifests else is_of_ledger
        adoption = Adoption(self._world.fs, base, lane, place, passes_over=passes_over)
        await place.scan()
        if place.files:
            log.info("found_on_disk", place=place.place.value, files=place.files, events=place.events)
        again = ADOPT_MORE_SECONDS
        while True:
            more = await adoption.look()
            self.uploader.recovery.wake()
            if place is self.dlq:
                await self._torn.look()
            # What cannot be read is tried again soon, and ever more seldom.
            again = min(2 * again, ADOPT_SECONDS) if place.unknown else ADOPT_MORE_SECONDS
            await self._world.sleep(ADOPT_MORE_SECONDS if more else again if place.unknown else ADOPT_SECONDS)

    async def seal(self, deadline: float) -> None:
        """Seal the open batch and refuse what still comes; with `fsync` wait for the last sync."""
        self.intake.close()
        now = self._world.clock()
        until = now + (deadline - now) / 2  # a disk that hangs leaves the store its time
        while self.journal.sealing and self._world.clock() < until:  # noqa: ASYNC110 - a last sync
            await asyncio.sleep(0.01)

    async def drain(self, deadline: float, skip: asyncio.Event) -> None:
        """Bring to safety what is here, after `seal`; `skip` jumps to the disk. The rest of the time closes hours."""
        clock = self._world.clock
        await Drain(self.uploader, clock=clock).run(deadline, skip)
        if self.closing is not None and not skip.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(max(deadline - clock() - LEFT_SECONDS, 0.0)):
                    await self.closing.end()

    async def close(self, within: float) -> None:
        """Wait for what is still being removed, and close the store; the slots are free when the process is gone."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self.journal.close()
                await self._writing.close()
                with suppress(StorageError):
                    await self.store.close()

    def left(self) -> Left:
        """Return what would stay if the process ended now. A batch in memory is safe in a segment that is whole."""
        in_memory = self.metrics.books.pending(Place.OPEN) + self.metrics.books.pending(Place.QUEUE)
        in_segments = min(self.journal.whole, in_memory)
        return Left(
            dlq_files=self.dlq.files,
            dlq_events=self.dlq.events,
            backlog_files=self.backlog.files,
            backlog_events=self.backlog.events,
            segment_events=in_segments,
            unknown_files=self.dlq.unknown + self.backlog.unknown,
            lost_events=in_memory - in_segments,
        )

    async def _start_store(self) -> None:
        try:
            await self.store.start()
        except StorageError as error:
            log.error("store_not_started", error=str(error), hint=error.hint)

    # What the parts call.

    def _submit(self, batch: Batch) -> None:
        metrics = self.metrics
        assert batch.reason is not None  # noqa: S101 - `seal` names it
        metrics.sealed.add(batch.reason)
        metrics.batch_events.observe(batch.events)
        metrics.batch_bytes.observe(batch.size)
        log.debug("batch_sealed", key=batch.key, events=batch.events, size=batch.size, reason=batch.reason.value)
        if self.closing is not None:
            self.closing.took(batch.partition.path, batch.key, batch.events, batch.first_ts, batch.last_ts)
        self.uploader.submit(batch)

    def _write_line(self, line: bytes) -> None:
        self._writing.write(self.journal_slot.path, line)

    def _closing(self) -> Closing:
        settings, world = self._settings, self._world
        journal = Side(
            "journal", self.journal_lane, self.journal_ledger, self._held_in_journal, self.backlog.release_emptied
        )
        dlq = Side("dlq", self.dlq_lane, self.dlq_ledger, self.dlq.held, self.uploader.recovery.wake)
        post = Post(self.store, self.metrics, self.keys.instance, limit=settings.s3_timeout, clock=world.clock)
        return Closing(
            settings,
            self.keys,
            post,
            self.metrics,
            (journal, dlq),
            executor=world.gzip,
            in_memory=self._hours_in_memory,
            refused=self.uploader.aside.refused_hours,
            clock=world.clock,
            now=world.now,
            sleep=world.sleep,
        )

    async def _held_in_journal(self) -> dict[Path, Held]:
        return self.backlog.held()

    def _hours_in_memory(self) -> dict[str, str]:
        hours = {*self.journal.hours, *self.uploader.queue.hours}
        if self.intake.hour is not None:
            hours.add(self.intake.hour)
        return dict.fromkeys(hours, "batches wait in memory")

    def _room_made(self) -> None:
        self.intake.room_made()

    def _refuses(self) -> bool:
        return self.intake.refusing()

    def _next_try(self) -> float:
        return self.uploader.attempts.breaker.retry_at

    def _has_room(self) -> bool:
        return self.uploader.has_room

    def _backlog_bytes(self) -> int:
        return self.backlog.size

    # What it shows.

    def _about(self) -> About:
        settings = self._settings
        return About(
            started=self.metrics.started,
            durability=settings.durability,
            store=settings.store_shown,
            slots=self.slots,
            adopted=self.dlq.adopted + self.backlog.adopted,
            settings=differing(settings),
        )

    def _register_figures(self) -> None:
        dlq, backlog, uploader, intake, journal = self.dlq, self.backlog, self.uploader, self.intake, self.journal
        books, gauges = self.metrics.books, self.metrics.gauges
        books.ask(Place.OPEN, lambda: intake.events + journal.events)
        books.ask(Place.QUEUE, lambda: uploader.queue.events)
        books.ask(Place.DLQ, lambda: dlq.events)
        books.ask(Place.BACKLOG, lambda: backlog.events)
        gauges.buffered_bytes = lambda: self.budget.held
        gauges.queued_batches = lambda: len(uploader.queue)
        gauges.oldest_pending = lambda: min(
            (place.oldest for place in (intake, uploader.queue, dlq, backlog) if place.oldest), default=0
        )
        gauges.unknown_in_dlq = lambda: dlq.unknown
        gauges.unknown_in_journal = lambda: backlog.unknown
        gauges.unremoved_in_dlq = lambda: dlq.unremoved
        gauges.unremoved_in_journal = lambda: journal.unremoved + backlog.unremoved
        gauges.dlq_files = lambda: dlq.files
        gauges.dlq_bytes = lambda: dlq.size
        gauges.spool_limit = lambda: self._settings.dlq_max_size_bytes
        gauges.disk_free = lambda: dlq.disk_free
        gauges.refused_files = lambda: uploader.aside.refused
        gauges.backlog_files = lambda: backlog.files
        gauges.backlog_bytes = lambda: backlog.size


def _take_slot(variable: str, fs: Filesystem, base: Path) -> Slot:
    try:
        return Slot.take_first_free(fs, base)
    except StorageError as error:
        error.add_note(variable)
        raise
