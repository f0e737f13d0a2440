"""Upload: a sealed batch's way to the store, or to the disk until the store takes it.

Owns the workers that put from the `queue`, and the spill to the dead-letter queue. Every put there is runs through the
`Attempts` made here, those of `Recovery` included; `Drain` ends the work. `Backoff` has the pauses, `Encoding` the gzip
bodies, `Saving` the choice between the places on disk.

Promises:

    submit    never waits. When more than `UPLOAD_QUEUE` batches wait, the oldest unstarted one spills at once
    fate      `deliver` brings a batch to the best place that takes it: STORED, after `S3_APP_RETRIES` tries with
              full-jitter backoff at most; SPOOLED in the dead-letter queue; BACKLOG, if the disk failed and its journal
              segment stays; KEPT in its old place in the queue, if the DLQ is full or there is no segment. A batch that
              was kept is tried again, at the store and at the disk
    refused   a batch that the store refuses while it takes others is set aside in the DLQ, and holds up nothing
    open      while the breaker is open, batches go to the DLQ untried. Exception: when a probe is due, the next batch
              is the probe
    books     a batch counts as pending until, in one loop step without an await, it counts elsewhere
    buffers   a batch's buffer goes back when the executor call that reads it has returned, cancelled or not

A batch from memory is whole by construction, so its put is plain and may replace a shorter object of its key.

Never: takes an event, judges a file, removes a segment whose batch is in no other safe place.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from ingest.delivery.aside import Aside
from ingest.delivery.attempt import Attempts
from ingest.delivery.backoff import Backoff
from ingest.delivery.carrying import Carrier, instance_of
from ingest.delivery.encoding import Encoding
from ingest.delivery.phase import Course, Phase
from ingest.delivery.queue import Queue
from ingest.delivery.recovery import Recovery
from ingest.delivery.saving import Fate, Saving
from ingest.format import ledger
from ingest.store import ObjectMetadata, Verdict
from ingest.telemetry import Place

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from concurrent.futures import Executor

    from ingest.config import Settings
    from ingest.delivery.queue import Upload
    from ingest.delivery.saving import DeadLetters, Journal
    from ingest.intake import Batch
    from ingest.spool import Waiting
    from ingest.store import ObjectStore
    from ingest.telemetry import Budget, Metrics


log = structlog.get_logger()


class Uploader:
    """See the module's text. `on_room` is called when `has_room` may have become true."""

    def __init__(
        self,
        settings: Settings,
        store: ObjectStore,
        dlq: DeadLetters,
        backlog: Waiting,
        journal: Journal,
        metrics: Metrics,
        budget: Budget,
        executor: Executor,
        *,
        on_room: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        draw: Callable[[float, float], float] = random.uniform,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`executor` compresses, `clock` measures, `now` dates files, `draw(low, high)` spreads the backoff."""
        self.on_room = on_room
        self.course = course = Course()
        self.queue = queue = Queue(settings.upload_queue, budget)
        self.changed = asyncio.Event()
        """Set when a batch left, when recovery ended and when the work did; the drain waits for it."""
        self.stopped = False
        """`run` has returned or failed: nobody works any more."""

        self._workers = settings.upload_concurrency
        self._tasks: asyncio.TaskGroup | None = None
        self._journal = journal
        self._metrics = metrics
        self._backoff = Backoff(settings.s3_app_retries, course, draw, sleep)
        self._encoding = Encoding(executor, queue, metrics)
        self._saving = Saving(dlq, journal, metrics, course)

        self.aside = Aside(clock)
        self.attempts = Attempts(settings, store, metrics, course, clock=clock, on_change=self._breaker_changed)
        self.recovery = Recovery(
            Carrier(settings, dlq, backlog, self.attempts, self.aside, metrics, now),
            self.attempts.breaker,
            course,
            on_stored=self._room_changed,
            clock=clock,
            batches_wait=self._batches_wait,
            batches_left=self._batches_left,
        )
        course.listen(self._entered)

    def __repr__(self) -> str:
        return (
            f"<Uploader {self.course.phase.name} {self.queue!r} disk_refuses={self._saving.failed} {self.attempts!r}>"
        )

    # ------------------------------------------------------------------------------------------------- the queue

    @property
    def has_room(self) -> bool:
        """A batch that is sealed now finds a place, in the queue or by spilling an older one."""
        return self.queue.has_room or not self._saving.refuses

    def submit(self, batch: Batch) -> None:
        """Take over a sealed batch."""
        self._metrics.books.moved(batch.events, Place.OPEN, Place.QUEUE)
        self.queue.add(batch)
        self._spill_excess()

    async def run(self) -> None:
        """Work until the process's work is OVER. An exception out of it is a bug of ours."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self.recovery.run())
                for _ in range(self._workers):
                    tasks.create_task(self._work())
                self._spill_excess()
        finally:
            self.stopped = True
            self._tasks = None
            self.changed.set()

    def _spill_excess(self) -> None:
        while self._tasks and self.queue.is_too_long and not self._saving.refuses:
            self._tasks.create_task(self._spill(self.queue.pop()))

    async def _spill(self, upload: Upload) -> None:
        self._metrics.batches_spilled += 1
        log.info("batch_spilled", key=upload.batch.key, events=upload.events)
        await self.save(upload)

    async def _work(self) -> None:
        while (upload := await self.queue.take(self._is_over)) is not None:
            if await self.deliver(upload) is Fate.KEPT:
                await self._backoff.after_keeping()

    @contextmanager
    def _kept_on_failure(self, upload: Upload) -> Iterator[None]:
        """Let a bug of ours, or a cancellation, lose no batch: `drain` finds it in the queue."""
        try:
            yield
        except BaseException:
            self.queue.put_back(upload)
            raise

    def _batches_wait(self) -> bool:
        return self.queue.waits

    def _batches_left(self) -> bool:
        return not self.queue.is_empty

    def _is_over(self) -> bool:
        return self.course.phase is Phase.OVER

    # ------------------------------------------------------------------------------------------------- a batch's way

    async def deliver(self, upload: Upload) -> Fate:
        """Bring a batch to the store, or to the disk if the store does not take it now."""
        with self._kept_on_failure(upload):
            fate = Fate.STORED if await self._to_store(upload) else await self._to_disk(upload)
            self._settle(upload, fate)
            return fate

    async def save(self, upload: Upload) -> Fate:
        """Bring a batch to the disk, untried."""
        with self._kept_on_failure(upload):
            fate = await self._to_disk(upload)
            self._settle(upload, fate)
            return fate

    async def _to_store(self, upload: Upload) -> bool:
        batch = upload.batch
        metadata = ObjectMetadata(batch.events, batch.first_ts, batch.last_ts, instance_of(batch.key))
        for attempt in range(self._backoff.tries):
            await self._backoff.before(attempt)
            if self.course.phase >= Phase.DISK_ONLY or not self.attempts.breaker.ready:
                return False
            outcome = await self.attempts.put(batch.key, await self._encoding.body(upload), metadata)
            if outcome.is_there:
                self.aside.stored(batch.key)
                return True
            if outcome.verdict is Verdict.REFUSED:
                self.aside.put_off(batch.key, outcome)
            if outcome.verdict is not Verdict.AWAY:
                return False
        return False

    async def _to_disk(self, upload: Upload) -> Fate:
        return await self._saving.save(upload, await self._encoding.body(upload))

    def _settle(self, upload: Upload, fate: Fate) -> None:
        """Move a batch in the books, in the step of the loop in which its new place has counted it."""
        batch, books = upload.batch, self._metrics.books
        if upload.gone:
            return
        match fate:
            case Fate.STORED:
                books.stored(upload.events, Place.QUEUE)
                log.info("batch_stored", key=batch.key, events=upload.events, size=upload.held)
                self._journal.release(batch, ledger.stored(batch.key, upload.events, batch.packed))
            case Fate.SPOOLED:
                books.moved(upload.events, Place.QUEUE, Place.DLQ)
                log.debug("batch_spooled", key=batch.key, events=upload.events, size=upload.held)
                self._journal.release(batch)
            case Fate.BACKLOG:
                books.moved(upload.events, Place.QUEUE, Place.BACKLOG)
                log.debug("batch_in_backlog", key=batch.key, events=upload.events)
            case Fate.KEPT:
                log.debug("batch_kept", key=batch.key, events=upload.events)
                self._saving.take_note(fate)
                self.queue.put_back(upload)
                return
        self._saving.take_note(fate)
        self.queue.leave(upload)
        self._room_changed()

    def _room_changed(self) -> None:
        self.changed.set()
        self._spill_excess()
        if not self.queue.waits:
            self.recovery.wake()
        self.on_room()

    def _breaker_changed(self) -> None:
        self.recovery.wake()

    # ------------------------------------------------------------------------------------------------- the end

    def save_rest(self) -> list[asyncio.Task[Fate]]:
        """Begin to save what no worker has in hand; the workers save the rest by themselves."""
        return [asyncio.ensure_future(self.save(self.queue.pop())) for _ in range(len(self.queue))]

    def leave_to_segments(self) -> None:
        """Let go of batches that a disk which does not answer holds up: their segments are safe."""
        for upload in self.queue.batches:
            if self._journal.retain(upload.batch):
                self._settle(upload, Fate.BACKLOG)

    def _entered(self, phase: Phase) -> None:
        if phase is Phase.OVER:
            self.queue.wake()
