"""The composition root: what is wired to what, in which order it starts, and how it ends.

Owns the event loop, the executors, the signals and the drain. Promises that the server listens before anything slow
begins (the S3 client, the scan of what an earlier process left); that a signal ends in exit code 0 within DRAIN_DELAY
+ DRAIN_TIMEOUT with every acknowledged event in the store or on disk; and that a failure of our own ends the process
loudly. Never does a step of the pipeline itself.

The drain is the table `DRAIN`, worked off from top to bottom; a second signal skips what would only be waiting:

| step   | what happens                                                          | ends                                |
| ------ | --------------------------------------------------------------------- | ----------------------------------- |
| delay  | `/ready` answers 503, requests are still taken                        | after DRAIN_DELAY                   |
| answer | stop listening, answer what is under way, close idle connections      | no connection left, or READ_TIMEOUT |
| seal   | seal the open batch; with `fsync` wait for its last sync              | the batch is in the upload queue    |
| upload | put the queue, then backlog and DLQ; what is left is saved to the DLQ | nothing left, or DRAIN_TIMEOUT      |
| close  | close the store and the slots; say what stays                         | exit                                |
"""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog
import uvloop

from ingest.delivery import Uploader
from ingest.disk import Filesystem, Slot, StorageError
from ingest.event import EventEncoder, Pages
from ingest.format import KeyFactory, dlq_path, segment_path
from ingest.intake import Batch, Intake, Journal, NoJournal
from ingest.spool import Backlog, DeadLetterQueue
from ingest.store import create_store
from ingest.telemetry import Metrics, Page, Place, SealReason
from ingest.telemetry import log as logs
from ingest.wire import AnswerBook, Connection, ConnectionLimits, HeaderNames, Layouts, Tick

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path
    from typing import Any

    from ingest.config import Settings
    from ingest.delivery import Drained

SWEEP_SECONDS: Final = 0.5
ADOPT_SECONDS: Final = 30.0
STORAGE_THREADS: Final = 4
DESCRIPTORS_RESERVED: Final = 128
"""File descriptors kept for segments, dead-letter files, the store's connections and the libraries."""
LISTEN_BACKLOG: Final = 4096

log = structlog.get_logger()


def serve(settings: Settings, *, fs: Filesystem | None = None) -> int:
    """Run until a signal; return 0, or 1 after a failure of our own or a loss, or 2 for what an operator can mend."""
    logs.configure(settings)
    try:
        return uvloop.run(Server(settings, fs or Filesystem()).run())
    except StorageError as error:
        variable = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
        print(f"{variable}{error}", file=sys.stderr)  # noqa: T201 - the one line an operator sees at a failed start
        return 2


def _take_slot(variable: str, fs: Filesystem, base: Path) -> Slot:
    try:
        return Slot.take_first_free(fs, base)
    except StorageError as error:
        error.add_note(variable)
        raise


class DrainStep(Enum):
    """The steps of `DRAIN`, and before them `RUNNING`."""

    RUNNING = "running"
    DELAY = "delay"
    ANSWER = "answer"
    SEAL = "seal"
    UPLOAD = "upload"
    CLOSE = "close"


class Step(NamedTuple):
    """A row of the drain: its name, the method that does it, and what ends it."""

    step: DrainStep
    method: str
    ends: str


DRAIN: Final[tuple[Step, ...]] = (
    Step(DrainStep.DELAY, "_delay", "after DRAIN_DELAY"),
    Step(DrainStep.ANSWER, "_answer", "no connection left, or READ_TIMEOUT"),
    Step(DrainStep.SEAL, "_seal", "the batch is in the upload queue"),
    Step(DrainStep.UPLOAD, "_upload", "nothing left, or DRAIN_TIMEOUT"),
    Step(DrainStep.CLOSE, "_close", "exit"),
)


class Server:
    """One process: built, run once, gone."""

    def __init__(self, settings: Settings, fs: Filesystem) -> None:
        self._settings = settings
        self._fs = fs
        self._executor = ThreadPoolExecutor(STORAGE_THREADS, "storage")
        self._sync_executor = ThreadPoolExecutor(1, "sync")
        self._metrics = Metrics()
        self._step = DrainStep.RUNNING
        self._stop = asyncio.Event()
        self._skip = asyncio.Event()
        self._deadline = 0.0
        self._failure: BaseException | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._drained: Drained | None = None

    async def run(self) -> int:
        """Start, serve, drain."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._unhandled)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        self._wire(loop)
        try:
            await self._listen(loop)
        except OSError as error:
            reason = error.strerror or str(error)
            print(f"HTTP_ADDR: cannot listen on it: {reason}", file=sys.stderr)  # noqa: T201 - for the operator
            self._release_slots()
            return 2
        self._start_background()
        # What lives now lives for good: the collector of cycles need not look at it again.
        gc.collect()
        gc.freeze()
        await self._stop.wait()
        for row in DRAIN:
            self._step = row.step
            log.info("drain", step=row.step.value)
            await getattr(self, row.method)()
        return 0 if self._failure is None and not (self._drained and self._drained.lost_events) else 1

    # Start.

    def _wire(self, loop: asyncio.AbstractEventLoop) -> None:
        settings, fs, metrics = self._settings, self._fs, self._metrics
        keys = KeyFactory(settings.raw_prefix, settings.partition_tz)
        self._dlq_slot = _take_slot("DLQ_DIR", fs, settings.dlq_dir)
        self._journal_slot = _take_slot("JOURNAL_DIR", fs, settings.journal_dir)
        self._store = create_store(settings, fs=fs, executor=self._executor)
        self._backlog = Backlog(
            fs,
            self._journal_slot,
            metrics,
            self._executor,
            token=keys.token,
            has_dead_letter=self._has_dead_letter,
        )
        self._dlq = DeadLetterQueue(
            settings,
            fs,
            [self._dlq_slot],
            metrics,
            self._executor,
            token=keys.token,
            backlog_bytes=lambda: self._backlog.bytes,
            has_segment=self._has_segment,
        )
        if settings.durability == "memory":
            self._journal: Journal | NoJournal = NoJournal()
        else:
            self._journal = Journal(
                fs,
                self._journal_slot,
                self._executor,
                self._sync_executor,
                metrics,
                sync=settings.durability == "fsync",
                submit=self._submit,
                seal_open=self._seal_broken,
                keep=self._backlog.keep,
            )
        self._uploader = Uploader(
            settings,
            self._store,
            self._dlq,
            self._backlog,
            self._journal,
            metrics,
            self._executor,
            on_room=lambda: self._intake.room_made(),
        )
        journal = self._journal if isinstance(self._journal, Journal) else None
        self._intake = Intake(
            settings,
            keys,
            metrics,
            loop,
            submit=self._submit,
            has_room=lambda: self._uploader.has_room,
            held_bytes=lambda: self._uploader.pending_bytes,
            journal=journal,
        )
        encoder = EventEncoder(settings)
        self._tick = Tick(
            loop,
            ConnectionLimits.of(settings),
            encoder,
            AnswerBook(settings.cors_origins),
            Pages(ready=lambda: self._step is DrainStep.RUNNING, metrics=Page(metrics)),
            metrics,
            self._intake.commit,
            self._intake.refusing,
            buffered=lambda: self._uploader.pending_bytes + self._intake.size,
            max_connections=self._max_connections(),
            deferred=journal is not None and journal.deferred,
        )
        self._new_connection = partial(Connection, self._tick, HeaderNames(encoder.headers), Layouts(encoder.headers))
        self._register_figures()

    def _register_figures(self) -> None:
        dlq, backlog, uploader, intake = self._dlq, self._backlog, self._uploader, self._intake
        books, gauges = self._metrics.books, self._metrics.gauges
        books.ask(Place.OPEN, lambda: intake.events + self._journal.events)
        books.ask(Place.QUEUE, lambda: uploader.pending_events)
        books.ask(Place.DLQ, lambda: dlq.events)
        books.ask(Place.BACKLOG, lambda: backlog.events)
        gauges.buffered_bytes = lambda: uploader.pending_bytes + intake.size + self._tick.held
        gauges.queued_batches = lambda: uploader.queue_length
        gauges.dlq_files = lambda: dlq.files
        gauges.dlq_bytes = lambda: dlq.bytes
        gauges.dlq_full = lambda: dlq.full
        gauges.backlog_files = lambda: backlog.files
        gauges.backlog_bytes = lambda: backlog.bytes

    def _max_connections(self) -> int:
        """Raise the limit on descriptors to what the system grants, and keep some of them back."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
                soft = hard
        wanted = self._settings.max_connections
        granted = max(soft - DESCRIPTORS_RESERVED, 1) if soft != resource.RLIM_INFINITY else wanted
        if granted < wanted:
            log.warning("max_connections_lowered", wanted=wanted, granted=granted, hint="raise RLIMIT_NOFILE")
        return min(wanted, granted)

    async def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        settings = self._settings
        self._server = await loop.create_server(
            self._new_connection, settings.http_host or None, settings.http_port, backlog=LISTEN_BACKLOG
        )
        for socket in self._server.sockets:
            host, port = socket.getsockname()[:2]
            log.info(
                "listening",
                host=host,
                port=port,
                durability=settings.durability,
                store=f"s3://{settings.raw_bucket}" if settings.raw_bucket else str(settings.store_dir),
            )

    def _start_background(self) -> None:
        self._spawn(self._start_store())
        self._spawn(self._uploader.run())
        self._spawn(self._recover())
        self._spawn(self._sweep())

    async def _start_store(self) -> None:
        try:
            await self._store.start()
        except StorageError as error:
            log.error("store_not_started", error=str(error), hint=error.hint)

    async def _recover(self) -> None:
        """Find what earlier processes left, ours first; then look now and again for slots whose process has gone."""
        await self._backlog.list_own()
        await self._dlq.scan()
        loop = asyncio.get_running_loop()
        while True:
            for base, adopt in (
                (self._settings.journal_dir, self._backlog.adopt),
                (self._settings.dlq_dir, self._dlq.adopt),
            ):
                found = await loop.run_in_executor(self._executor, Slot.adopt_free, self._fs, base)
                for error in found.unread:
                    log.warning("slots_not_read", path=str(base), error=str(error), hint=error.hint)
                for slot in found.slots:
                    log.info("slot_adopted", path=str(slot.path))
                await adopt(found.slots)
            self._uploader.recovery.wake()
            await asyncio.sleep(ADOPT_SECONDS)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self._tick.sweep()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    # What the parts call.

    def _submit(self, batch: Batch) -> None:
        metrics = self._metrics
        assert batch.reason is not None  # noqa: S101 - `seal` names it
        metrics.sealed.add(batch.reason)
        metrics.batch_events.observe(batch.events)
        metrics.batch_bytes.observe(batch.size)
        log.debug(
            "batch_sealed",
            key=batch.key,
            events=batch.events,
            size=batch.size,
            reason=batch.reason.value,
        )
        self._uploader.submit(batch)

    def _seal_broken(self, batch: Batch) -> None:
        if self._intake.is_open(batch):
            self._intake.seal(SealReason.STORAGE)

    def _has_dead_letter(self, key: str) -> bool:
        """Tell whether any slot has a dead-letter file of this key. Blocks."""
        return any(dlq_path(slot, key).exists() for slot in _slots(self._settings.dlq_dir))

    def _has_segment(self, key: str) -> bool:
        """Tell whether any slot has a segment of this key, held by whom it may be. Blocks.

        Two other processes may have adopted the dead-letter slot and the journal slot of a dead one.
        """
        return any(segment_path(slot, key).exists() for slot in _slots(self._settings.journal_dir))

    # Stop.

    def _signalled(self, number: int) -> None:
        log.info("signal", signal=signal.Signals(number).name)
        if self._stop.is_set():
            self._skip.set()
        self._begin_drain()

    def _begin_drain(self) -> None:
        if not self._stop.is_set():
            settings = self._settings
            now = asyncio.get_running_loop().time()
            self._deadline = now + settings.drain_delay + settings.drain_timeout
            self._stop.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Say what the loop caught. Errors of the network are survived; a bug of ours meets one client, or ends us."""
        error = context.get("exception")
        log.error("unhandled", message=context.get("message"), exc_info=error)
        if error is not None and not isinstance(error, OSError) and "connection" not in context:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """End after a bug of ours, saving what can be saved: a supervisor starts us again."""
        log.critical("failed", exc_info=error)
        self._failure = error
        self._skip.set()
        self._begin_drain()

    async def _delay(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_delay):
                await self._skip.wait()

    async def _answer(self) -> None:
        self._server.close()
        self._tick.drain()
        loop = asyncio.get_running_loop()
        # A quarter of the time at most: the store and the disk need theirs.
        until = loop.time() + min(self._settings.read_timeout, self._settings.drain_timeout / 4)
        while self._tick.busy() and loop.time() < until and not self._skip.is_set():  # noqa: ASYNC110 - many to wait for
            await asyncio.sleep(0.02)

    async def _seal(self) -> None:
        self._intake.close()
        while self._journal.sealing and asyncio.get_running_loop().time() < self._deadline:  # noqa: ASYNC110 - a last sync
            await asyncio.sleep(0.01)

    async def _upload(self) -> None:
        left = self._deadline - asyncio.get_running_loop().time()
        self._drained = await self._uploader.drain(time.monotonic() + max(left, 0.0), self._skip)

    async def _close(self) -> None:
        # Lingering connections have their answers; the process need not stay for them.
        for connection in list(self._tick.connections):
            connection.abort()
        for task in list(self._background):
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)
        await self._journal.close()
        with suppress(StorageError):
            await self._store.close()
        self._release_slots()
        drained = self._drained
        if drained is not None:
            tell = log.error if drained.lost_events else log.info
            tell(
                "stopped",
                accepted=self._metrics.books.events_accepted,
                stored=self._metrics.books.events_stored,
                dlq_files=drained.dlq_files,
                dlq_events=drained.dlq_events,
                backlog_files=drained.backlog_files,
                backlog_events=drained.backlog_events,
                lost_events=drained.lost_events,
                unaccounted=self._metrics.books.unaccounted(),
            )
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._sync_executor.shutdown(wait=False, cancel_futures=True)

    def _release_slots(self) -> None:
        self._backlog.close()
        self._dlq.close()
        self._journal_slot.release()


def _slots(base: Path) -> list[Path]:
    with suppress(OSError):
        return [path for path in base.iterdir() if path.name.isdigit()]
    return []
