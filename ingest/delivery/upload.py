"""Upload: a sealed batch's way to the store, or to the disk until the store takes it.

Owns the upload queue, the workers that put from it, and the spill to the dead-letter queue. Every put there is runs
through the `Attempts` made here, those of `Recovery` included; `Drain` ends the work.

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
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from ingest.delivery.aside import Aside
from ingest.delivery.attempt import Attempts
from ingest.delivery.phase import Course, Phase
from ingest.delivery.recovery import Recovery, instance_of
from ingest.disk import StorageError
from ingest.format import codec
from ingest.spool import DlqFull, Waiting
from ingest.store import ObjectMetadata, Verdict
from ingest.telemetry import Place

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from concurrent.futures import Executor

    from ingest.config import Settings
    from ingest.intake import Batch
    from ingest.store import ObjectStore
    from ingest.telemetry import Metrics


BACKOFF_BASE: Final = 0.2
BACKOFF_CAP: Final = 5.0
KEEP_PAUSE: Final = 1.0

log = structlog.get_logger()


class Fate(Enum):
    """The place that a batch was brought to."""

    STORED = "stored"
    SPOOLED = "spooled"
    BACKLOG = "backlog"
    KEPT = "kept"


class Journal(Protocol):
    """The journal, as upload sees it."""

    def release(self, batch: Batch) -> None:
        """Remove the batch's segment: it is stored, or its DLQ file is published."""

    def retain(self, batch: Batch) -> bool:
        """Count the batch's segment as backlog; False if it has none."""


class DeadLetters(Waiting, Protocol):
    """The dead-letter queue, as upload sees it."""

    events: int
    files: int

    @property
    def full(self) -> bool:
        """No file would be taken now."""

    async def save(self, key: str, body: bytes, events: int, *, force: bool = False) -> None:
        """Publish a batch's file and count it."""


class Backlog(Waiting, Protocol):
    """The journal's backlog, as upload sees it."""

    events: int
    files: int


@dataclass(slots=True, eq=False)
class Upload:
    """A batch on its way. `number` orders the queue; `held` is what it takes in memory: its lines, then its body."""

    number: int
    batch: Batch
    events: int
    held: int
    encoding: asyncio.Future[bytes] | None = None
    gone: bool = False
    """From the step on in which its events are in another book."""


class Uploader:
    """See the module's text. `on_room` is called when `has_room` may have become true."""

    def __init__(
        self,
        settings: Settings,
        store: ObjectStore,
        dlq: DeadLetters,
        backlog: Backlog,
        journal: Journal,
        metrics: Metrics,
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
        self.pending_events = 0
        self.pending_bytes = 0
        self.course = Course()
        self.changed = asyncio.Event()
        """Set when a batch left, when recovery ended and when the work did; the drain waits for it."""
        self.stopped = False
        """`run` has returned or failed: nobody works any more."""

        self._limit = settings.upload_queue
        self._workers = settings.upload_concurrency
        self._tries = max(settings.s3_app_retries, 1)
        self._dlq = dlq
        self._journal = journal
        self._metrics = metrics
        self._executor = executor
        self._draw = draw
        self._sleep = sleep

        self._submitted = 0
        self._queue: deque[Upload] = deque()
        self._on_the_way: set[Upload] = set()
        """Every batch that was submitted and is not gone, those of the queue included."""
        self._arrived = asyncio.Event()
        self._waiting_workers = 0
        self._tasks: asyncio.TaskGroup | None = None
        self._disk_refuses = False
        """From a save that left its batch in the queue, until a save succeeds or the store takes a batch."""

        self.aside = Aside(clock)
        self.attempts = Attempts(settings, store, metrics, self.course, clock=clock, on_change=self._breaker_changed)
        self.recovery = Recovery(
            settings,
            dlq,
            backlog,
            self.attempts,
            self.aside,
            metrics,
            self.course,
            on_stored=self._room_changed,
            clock=clock,
            now=now,
            batches_wait=self._batches_wait,
            batches_left=self._batches_left,
        )
        self.course.listen(self._entered)

    def __repr__(self) -> str:
        waits = f"queue={len(self._queue)} on_the_way={len(self._on_the_way)} disk_refuses={self._disk_refuses}"
        return f"<Uploader {self.course.phase.name} {waits} {self.attempts!r}>"

    # ------------------------------------------------------------------------------------------------- the queue

    @property
    def queue_length(self) -> int:
        """Batches that wait for a worker."""
        return len(self._queue)

    @property
    def pending_batches(self) -> int:
        """Batches that are in memory only, or in a segment of the journal."""
        return len(self._on_the_way)

    @property
    def oldest(self) -> int:
        """Unix time of the oldest event in any batch here; 0 if there is none."""
        return min((upload.batch.first_ts for upload in self._on_the_way), default=0)

    @property
    def has_room(self) -> bool:
        """A batch that is sealed now finds a place, in the queue or by spilling an older one."""
        return len(self._queue) - self._waiting_workers < self._limit or not self._refuses()

    def submit(self, batch: Batch) -> None:
        """Take over a sealed batch."""
        self._metrics.books.moved(batch.events, Place.OPEN, Place.QUEUE)
        self._submitted += 1
        upload = Upload(self._submitted, batch, batch.events, batch.size)
        self._queue.append(upload)
        self._on_the_way.add(upload)
        self.pending_events += batch.events
        self.pending_bytes += batch.size
        self._arrived.set()
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

    def _refuses(self) -> bool:
        return self._disk_refuses or self._dlq.full

    def _spill_excess(self) -> None:
        # A worker that waits takes a batch in the next turn of the loop, so that one does not count.
        while self._tasks and len(self._queue) - self._waiting_workers > self._limit and not self._refuses():
            self._tasks.create_task(self._spill(self._queue.popleft()))

    async def _spill(self, upload: Upload) -> None:
        self._metrics.batches_spilled += 1
        log.info("batch_spilled", key=upload.batch.key, events=upload.events)
        await self.save(upload)

    async def _work(self) -> None:
        while (upload := await self._take()) is not None:
            if await self.deliver(upload) is Fate.KEPT:
                # Nothing is gained by trying again at once, for this batch or another.
                await self._pause(KEEP_PAUSE)

    async def _take(self) -> Upload | None:
        while not self._queue:
            if self.course.phase is Phase.OVER:
                return None
            self._arrived.clear()
            self._waiting_workers += 1
            try:
                await self._arrived.wait()
            finally:
                self._waiting_workers -= 1
        return None if self.course.phase is Phase.OVER else self._queue.popleft()

    @contextmanager
    def _kept_on_failure(self, upload: Upload) -> Iterator[None]:
        """Let a bug of ours, or a cancellation, lose no batch: `drain` finds it in the queue."""
        try:
            yield
        except BaseException:
            self._put_back(upload)
            raise

    def _put_back(self, upload: Upload) -> None:
        if not upload.gone and upload not in self._queue:
            self._queue.insert(sum(waiting.number < upload.number for waiting in self._queue), upload)
            self._arrived.set()

    def _batches_wait(self) -> bool:
        return bool(self._queue)

    def _batches_left(self) -> bool:
        return bool(self._on_the_way)

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
        for attempt in range(self._tries):
            if attempt:
                await self._pause(self._draw(0.0, min(BACKOFF_BASE * 2**attempt, BACKOFF_CAP)))
            if self.course.phase >= Phase.DISK_ONLY or not self.attempts.breaker.ready:
                return False
            outcome = await self.attempts.put(batch.key, await self._encode(upload), metadata)
            if outcome.is_there:
                self.aside.stored(batch.key)
                return True
            if outcome.verdict is Verdict.REFUSED:
                self.aside.put_off(batch.key, outcome)
            if outcome.verdict is not Verdict.AWAY:
                return False
        return False

    async def _to_disk(self, upload: Upload) -> Fate:
        """Save a batch where it survives; nothing is awaited after the save, so that the books move in its step."""
        batch = upload.batch
        body = await self._encode(upload)
        is_last = self.course.phase >= Phase.DISK_ONLY
        try:
            await self._dlq.save(batch.key, body, upload.events)
        except DlqFull as error:
            self._not_saved(upload, error)
            # A segment would fill the disk as a file would. But at the end of the process it is all that is left.
            if not is_last:
                return Fate.KEPT
        except StorageError as error:
            self._not_saved(upload, error)
            return Fate.BACKLOG if self._journal.retain(batch) else Fate.KEPT
        else:
            return Fate.SPOOLED
        if self._journal.retain(batch):
            return Fate.BACKLOG
        try:
            await self._dlq.save(batch.key, body, upload.events, force=True)
        except StorageError as error:
            self._not_saved(upload, error)
            return Fate.KEPT
        return Fate.SPOOLED

    def _not_saved(self, upload: Upload, error: StorageError) -> None:
        self._metrics.save_errors += 1
        if isinstance(error, DlqFull):
            self._metrics.spool_full = 1
            if self._disk_refuses:
                return
        log.error(
            "dlq_save_failed",
            key=upload.batch.key,
            events=upload.events,
            operation=error.operation,
            hint=error.hint,
            errno=error.errno,
        )

    def _settle(self, upload: Upload, fate: Fate) -> None:
        """Move a batch in the books, in the step of the loop in which its new place has counted it."""
        batch, books = upload.batch, self._metrics.books
        if upload.gone:
            return
        match fate:
            case Fate.STORED:
                books.stored(upload.events, Place.QUEUE)
                log.info("batch_stored", key=batch.key, events=upload.events, size=upload.held)
                self._journal.release(batch)
            case Fate.SPOOLED:
                books.moved(upload.events, Place.QUEUE, Place.DLQ)
                log.debug("batch_spooled", key=batch.key, events=upload.events, size=upload.held)
                self._journal.release(batch)
            case Fate.BACKLOG:
                books.moved(upload.events, Place.QUEUE, Place.BACKLOG)
                log.debug("batch_in_backlog", key=batch.key, events=upload.events)
            case Fate.KEPT:
                self._disk_refuses = True
                log.debug("batch_kept", key=batch.key, events=upload.events)
                self._put_back(upload)
                return
        if self._disk_refuses:
            self._disk_refuses = False
            self._metrics.spool_full = 0
            log.info("dlq_takes_again")
        upload.gone = True
        self._on_the_way.discard(upload)
        self.pending_events -= upload.events
        self.pending_bytes -= upload.held
        self._room_changed()

    async def _encode(self, upload: Upload) -> bytes:
        """Compress the batch, once. A task that is cancelled here does not stop the thread, nor what follows it."""
        if upload.encoding is None:
            view = upload.batch.view()
            loop = asyncio.get_running_loop()
            upload.encoding = loop.run_in_executor(self._executor, codec.encode, view, upload.events)
            upload.encoding.add_done_callback(partial(self._encoded, upload, view))
        return await asyncio.shield(upload.encoding)

    def _encoded(self, upload: Upload, view: memoryview, encoding: asyncio.Future[bytes]) -> None:
        view.release()
        upload.batch.release_buffer()
        if encoding.cancelled() or encoding.exception() is not None:
            return
        body = encoding.result()
        self._metrics.encoded_bytes += upload.held
        self._metrics.compressed_bytes += len(body)
        if not upload.gone:
            self.pending_bytes += len(body) - upload.held
        upload.held = len(body)

    def _room_changed(self) -> None:
        self.changed.set()
        self._spill_excess()
        if not self._queue:
            self.recovery.wake()
        self.on_room()

    def _breaker_changed(self) -> None:
        self.recovery.wake()

    async def _pause(self, seconds: float) -> None:
        """Sleep, but no longer than until the disk's turn comes."""
        if self.course.phase >= Phase.DISK_ONLY:
            await self._sleep(min(seconds, KEEP_PAUSE / 4))
            return
        sleeping = asyncio.ensure_future(self._sleep(seconds))
        ending = asyncio.ensure_future(self.course.reach(Phase.DISK_ONLY))
        try:
            await asyncio.wait({sleeping, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            ending.cancel()

    # ------------------------------------------------------------------------------------------------- the end

    def save_rest(self) -> list[asyncio.Task[Fate]]:
        """Begin to save what no worker has in hand; the workers save the rest by themselves."""
        return [asyncio.ensure_future(self.save(self._queue.popleft())) for _ in range(len(self._queue))]

    def leave_to_segments(self) -> None:
        """Let go of batches that a disk which does not answer holds up: their segments are safe."""
        for upload in sorted(self._on_the_way, key=lambda upload: upload.number):
            if self._journal.retain(upload.batch):
                if upload in self._queue:
                    self._queue.remove(upload)
                self._settle(upload, Fate.BACKLOG)

    def _entered(self, phase: Phase) -> None:
        if phase is Phase.OVER:
            self._arrived.set()
