"""Upload: a sealed batch's way to the store, or to the disk until the store takes it.

Owns the upload queue, the workers that put from it, the spill to the dead-letter queue, and the last minutes of the
process (`drain`). Every put there is runs through the `Attempts` made here, those of `Recovery` included.

Promises:

    submit    never waits. When more than `UPLOAD_QUEUE` batches wait, the oldest unstarted one spills at once
    order     of decisions for a batch: the store, `S3_APP_RETRIES` tries with full-jitter backoff; the DLQ; if that is
              full, its old place in the queue; if the disk failed, its journal segment stays as backlog, and without
              one it keeps its place as well. A batch that keeps its place is tried again, at the store and at the DLQ
    open      while the breaker is open, batches go to the DLQ untried; when a probe is due, the next batch is the probe
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
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from ingest.delivery.attempt import Attempts, Result
from ingest.delivery.breaker import State
from ingest.delivery.recovery import Recovery, instance_of
from ingest.disk import StorageError
from ingest.format import codec
from ingest.spool import DlqFull, Waiting
from ingest.store import ObjectMetadata
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
DISK_SHARE: Final = 5.0
"""Seconds at the end of a drain that are kept for the DLQ; at most half of what is left."""

log = structlog.get_logger()


class Journal(Protocol):
    """The journal, as far as upload needs it."""

    def release(self, batch: Batch) -> None:
        """Remove the batch's segment: it is stored, or its DLQ file is published."""

    def retain(self, batch: Batch) -> bool:
        """Count the batch's segment as backlog; False if it has none."""


class DeadLetters(Waiting, Protocol):
    """The dead-letter queue, as far as upload needs it."""

    events: int
    files: int

    @property
    def full(self) -> bool:
        """No file would be taken now."""

    async def save(self, key: str, body: bytes, events: int, *, force: bool = False) -> None:
        """Publish a batch's file and count it."""


class Backlog(Waiting, Protocol):
    """The journal's backlog, as far as upload needs it."""

    events: int
    files: int


@dataclass(frozen=True, slots=True)
class Drained:
    """The batches that stay behind when the process ends: safe on its disk, or (`lost`) only in its memory."""

    dlq_files: int
    dlq_events: int
    backlog_files: int
    backlog_events: int
    lost_batches: int
    lost_events: int


@dataclass(slots=True, eq=False)
class _Upload:
    """A batch on its way. `number` orders the queue; `held` is what it takes in memory: its lines, then its body."""

    number: int
    batch: Batch
    events: int
    held: int
    encoding: asyncio.Future[bytes] | None = None
    gone: bool = False


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
        """`clock` measures, `now` dates files, `draw(low, high)` spreads the backoff."""
        self.on_room = on_room
        self.pending_events = 0
        self.pending_bytes = 0
        self.pending_batches = 0

        self._limit = settings.upload_queue
        self._workers = settings.upload_concurrency
        self._tries = max(settings.s3_app_retries, 1)
        self._store = store
        self._dlq = dlq
        self._backlog = backlog
        self._journal = journal
        self._metrics = metrics
        self._executor = executor
        self._clock = clock
        self._draw = draw
        self._sleep = sleep

        self._submitted = 0
        self._queue: deque[_Upload] = deque()
        self._arrived = asyncio.Event()
        self._waiting_workers = 0
        self._tasks: asyncio.TaskGroup | None = None
        self._disk_refuses = False
        """The last save failed and left its batch in the queue."""

        # Drain.
        self._changed = asyncio.Event()
        self._last_chance = asyncio.Event()
        self._closed = False
        self._failed = False

        self.attempts = Attempts(settings, store, metrics, clock=clock, on_change=self._breaker_changed)
        self.recovery = Recovery(
            settings,
            store,
            dlq,
            backlog,
            self.attempts,
            metrics,
            batches_wait=self._batches_wait,
            on_stored=self._disk_changed,
            clock=clock,
            now=now,
        )

    # ------------------------------------------------------------------------------------------------- the queue

    @property
    def queue_length(self) -> int:
        """Batches that wait for a worker."""
        return len(self._queue)

    @property
    def has_room(self) -> bool:
        """A batch that is sealed now finds a place, in the queue or by spilling an older one."""
        return len(self._queue) - self._waiting_workers < self._limit or not self._refuses()

    def submit(self, batch: Batch) -> None:
        """Take over a sealed batch."""
        self._metrics.books.moved(batch.events, Place.OPEN, Place.QUEUE)
        self._submitted += 1
        self._queue.append(_Upload(self._submitted, batch, batch.events, batch.size))
        self.pending_events += batch.events
        self.pending_bytes += batch.size
        self.pending_batches += 1
        self._arrived.set()
        self._spill_excess()

    async def run(self) -> None:
        """Work until `drain` has ended. An exception out of it is a bug of ours."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self.recovery.run())
                for _ in range(self._workers):
                    tasks.create_task(self._work())
                self._spill_excess()
        except BaseException:
            self._failed = True
            raise
        finally:
            self._tasks = None
            self._changed.set()

    def _refuses(self) -> bool:
        return self._disk_refuses or self._dlq.full

    def _spill_excess(self) -> None:
        # A worker that waits takes a batch in the next turn of the loop, so that one does not count.
        while self._tasks and len(self._queue) - self._waiting_workers > self._limit and not self._refuses():
            self._tasks.create_task(self._spill(self._queue.popleft()))

    async def _spill(self, upload: _Upload) -> None:
        self._metrics.batches_spilled += 1
        log.info("batch_spilled", key=upload.batch.key, events=upload.events)
        with self._kept_on_failure(upload):
            await self._to_disk(upload)

    async def _work(self) -> None:
        while (upload := await self._take()) is not None:
            with self._kept_on_failure(upload):
                arrived = await self._to_store(upload) or await self._to_disk(upload)
            if not arrived:
                # It kept its place. Nothing is gained by trying again at once, for this batch or another.
                await self._pause(KEEP_PAUSE)

    async def _take(self) -> _Upload | None:
        while not self._queue:
            if self._closed:
                return None
            self._arrived.clear()
            self._waiting_workers += 1
            try:
                await self._arrived.wait()
            finally:
                self._waiting_workers -= 1
        return None if self._closed else self._queue.popleft()

    @contextmanager
    def _kept_on_failure(self, upload: _Upload) -> Iterator[None]:
        """Let a bug of ours, or a cancellation, lose no batch: `drain` finds it in the queue."""
        try:
            yield
        except BaseException:
            self._put_back(upload)
            raise

    def _put_back(self, upload: _Upload) -> None:
        if not upload.gone and upload not in self._queue:
            self._queue.insert(sum(waiting.number < upload.number for waiting in self._queue), upload)
            self._arrived.set()

    def _batches_wait(self) -> bool:
        return bool(self._queue)

    # ------------------------------------------------------------------------------------------------- a batch's way

    async def _to_store(self, upload: _Upload) -> bool:
        """Try to put the batch; False if it has to go elsewhere."""
        batch = upload.batch
        metadata = ObjectMetadata(batch.events, batch.first_ts, batch.last_ts, instance_of(batch.key))
        for attempt in range(self._tries):
            if attempt:
                await self._pause(self._draw(0.0, min(BACKOFF_BASE * 2**attempt, BACKOFF_CAP)))
            if self.attempts.aborted or not self.attempts.breaker.ready:
                return False
            put = partial(self._store.put, batch.key, await self._encode(upload), metadata)
            result = await self.attempts.make(batch.key, put)
            if result is Result.STORED:
                # One loop step: pending -> stored.
                self._metrics.books.stored(upload.events, Place.QUEUE)
                log.info("batch_stored", key=batch.key, events=upload.events, size=upload.held)
                self._journal.release(batch)
                self._leave(upload)
                return True
            if result is not Result.FAILED:
                return False
        return False

    async def _to_disk(self, upload: _Upload) -> bool:
        """Save the batch in the DLQ, or leave it to its segment; False: neither can be, it is in the queue again."""
        batch = upload.batch
        body = await self._encode(upload)
        try:
            await self._dlq.save(batch.key, body, upload.events)
        except StorageError as error:
            return await self._not_saved(upload, error)
        # One loop step since `save` counted it.
        self._metrics.books.moved(upload.events, Place.QUEUE, Place.DLQ)
        self._journal.release(batch)
        self._disk_took(upload)
        return True

    async def _not_saved(self, upload: _Upload, error: StorageError) -> bool:
        batch, full = upload.batch, isinstance(error, DlqFull)
        self._metrics.save_errors += 1
        if not self._disk_refuses or not full:
            log.error(
                "dlq_save_failed",
                key=batch.key,
                events=upload.events,
                operation=error.operation,
                hint=error.hint,
                errno=error.errno,
            )
        # A full DLQ keeps its batches in the queue, since their segments would fill the disk as their files would: not
        # so at the end of the process, when a segment that stays is all that is left of a batch.
        if (not full or self._last_chance.is_set()) and self._journal.retain(batch):
            # One loop step since `retain` counted it.
            self._metrics.books.moved(upload.events, Place.QUEUE, Place.BACKLOG)
            self._disk_took(upload)
            return True
        if full and self._last_chance.is_set():
            try:
                await self._dlq.save(batch.key, await self._encode(upload), upload.events, force=True)
            except StorageError as reason:
                log.error("dlq_save_failed", key=batch.key, operation=reason.operation, hint=reason.hint)
            else:
                self._metrics.books.moved(upload.events, Place.QUEUE, Place.DLQ)
                self._journal.release(batch)
                self._disk_took(upload)
                return True
        self._disk_refuses = True
        self._metrics.spool_full = int(full)
        self._put_back(upload)
        return False

    async def _encode(self, upload: _Upload) -> bytes:
        """Compress the batch, once. A task that is cancelled here does not stop the thread, nor what follows it."""
        if upload.encoding is None:
            view = upload.batch.view()
            loop = asyncio.get_running_loop()
            upload.encoding = loop.run_in_executor(self._executor, codec.encode, view, upload.events)
            upload.encoding.add_done_callback(partial(self._encoded, upload, view))
        return await asyncio.shield(upload.encoding)

    def _encoded(self, upload: _Upload, view: memoryview, encoding: asyncio.Future[bytes]) -> None:
        view.release()
        upload.batch.release_buffer()
        if encoding.cancelled() or encoding.exception() is not None:
            return
        body = encoding.result()
        self._metrics.encoded_bytes += upload.held
        self._metrics.compressed_bytes += len(body)
        self.pending_bytes += len(body) - upload.held
        upload.held = len(body)

    def _disk_took(self, upload: _Upload) -> None:
        if self._disk_refuses:
            self._disk_refuses = False
            self._metrics.spool_full = 0
            log.info("dlq_takes_again")
        self._leave(upload)

    def _leave(self, upload: _Upload) -> None:
        upload.gone = True
        self.pending_events -= upload.events
        self.pending_bytes -= upload.held
        self.pending_batches -= 1
        self._disk_changed()

    def _disk_changed(self) -> None:
        self._changed.set()
        self._spill_excess()
        if not self._queue:
            self.recovery.wake()
        self.on_room()

    def _breaker_changed(self) -> None:
        self.recovery.wake()

    async def _pause(self, seconds: float) -> None:
        """Sleep, but no longer than until the last chance comes."""
        if self._last_chance.is_set():
            seconds = min(seconds, KEEP_PAUSE / 4)
            await self._sleep(seconds)
            return
        sleeping = asyncio.ensure_future(self._sleep(seconds))
        ending = asyncio.ensure_future(self._last_chance.wait())
        try:
            await asyncio.wait({sleeping, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            ending.cancel()

    # ------------------------------------------------------------------------------------------------- drain

    async def drain(self, deadline: float, skip: asyncio.Event) -> Drained:
        """Bring to safety what is here, after the last `submit`; `deadline` is on `clock`, `skip` jumps to the DLQ.

        The queue goes to the store; then, if the store answers, backlog and DLQ too, for the disk may die with the
        process; what is left when `DISK_SHARE` begins goes to the DLQ, or stays in its segment.
        """
        now = self._clock()
        disk_from = deadline - min(DISK_SHARE, (deadline - now) / 2)
        skipping = asyncio.ensure_future(skip.wait())
        skipping.add_done_callback(lambda _: self._changed.set())
        try:
            await self._until(lambda: not self.pending_batches or self._cut_short(skip), disk_from)
            if not self.pending_batches and self.attempts.breaker.state is State.CLOSED:
                self.recovery.hurry()
                await self._until(lambda: self.recovery.ended or self._cut_short(skip), disk_from)
        finally:
            skipping.cancel()
        self.recovery.stop()
        self.attempts.abort()
        self._last_chance.set()
        saving = [asyncio.ensure_future(self._to_disk(self._queue.popleft())) for _ in range(len(self._queue))]
        if saving:
            done, _ = await asyncio.wait(saving, timeout=max(deadline - self._clock(), 0.0))
            for task in done:
                if (error := task.exception()) is not None:
                    log.critical("batch_not_saved", exc_info=error)
        # What the workers have in hand they save by themselves, and what kept its place they try again.
        await self._until(lambda: self._failed or (not self.pending_batches and self.recovery.ended), deadline)
        self._closed = True
        self._arrived.set()
        return Drained(
            dlq_files=self._dlq.files,
            dlq_events=self._dlq.events,
            backlog_files=self._backlog.files,
            backlog_events=self._backlog.events,
            lost_batches=self.pending_batches,
            lost_events=self.pending_events,
        )

    def _cut_short(self, skip: asyncio.Event) -> bool:
        """Tell whether the operator is in a hurry, or nobody works any more because `run` failed."""
        return skip.is_set() or self._failed

    async def _until(self, condition: Callable[[], bool], deadline: float) -> None:
        while not condition() and (left := deadline - self._clock()) > 0:
            self._changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                return
