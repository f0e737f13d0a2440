"""The process: sockets, signals, and the drain.

Owns the event loop, the sockets, the signals and the drain. Promises that the server listens before anything slow
begins (the S3 client, the scan of what an earlier process left); that a signal ends in exit code 0 within DRAIN_DELAY
+ DRAIN_TIMEOUT with every acknowledged event in the store or on disk; and that a failure of our own ends the process
loudly. Never does a step of the pipeline itself: `collector` is the pipeline.

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
from contextlib import suppress
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog
import uvloop

from ingest.collector import Collector, World
from ingest.disk import Filesystem, StorageError
from ingest.event import EventEncoder, Pages
from ingest.telemetry import Page
from ingest.telemetry import log as logs
from ingest.wire import AnswerBook, Connection, ConnectionLimits, HeaderNames, Layouts, Tick

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from ingest.config import Settings
    from ingest.delivery import Drained

SWEEP_SECONDS: Final = 0.5
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


class DrainStep(Enum):
    """The steps of `DRAIN`, and before them `RUNNING`."""

    RUNNING = "running"
    DELAY = "delay"
    ANSWER = "answer"
    SEAL = "seal"
    UPLOAD = "upload"
    CLOSE = "close"


class Server:
    """One process: built, run once, gone."""

    def __init__(self, settings: Settings, fs: Filesystem) -> None:
        self._settings = settings
        self._fs = fs
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
        self._build(loop)
        try:
            await self._listen(loop)
        except OSError as error:
            reason = error.strerror or str(error)
            print(f"HTTP_ADDR: cannot listen on it: {reason}", file=sys.stderr)  # noqa: T201 - for the operator
            self._collector.release_slots()
            return 2
        self._start_background()
        # What lives now lives for good: the collector of cycles need not look at it again.
        gc.collect()
        gc.freeze()
        await self._stop.wait()
        for row in DRAIN:
            self._step = row.step
            log.info("drain", step=row.step.value)
            await row.work(self)
        return 0 if self._failure is None and not (self._drained and self._drained.lost_events) else 1

    # Start.

    def _build(self, loop: asyncio.AbstractEventLoop) -> None:
        settings = self._settings
        self._collector = collector = Collector(settings, World(loop, self._fs))
        encoder = EventEncoder(settings)
        self._tick = Tick(
            loop,
            ConnectionLimits.of(settings),
            encoder,
            AnswerBook(settings.cors_origins),
            Layouts(encoder.headers),
            Pages(ready=lambda: self._step is DrainStep.RUNNING, metrics=Page(collector.metrics)),
            collector.metrics,
            collector.intake.commit,
            collector.intake.refusing,
            buffered=collector.buffered,
            max_connections=self._max_connections(),
            deferred=collector.deferred,
        )
        self._new_connection = partial(Connection, self._tick, HeaderNames(encoder.headers))
        collector.metrics.gauges.log_lines_dropped = logs.dropped
        collector.metrics.gauges.buffered_bytes = lambda: collector.buffered() + self._tick.held

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
        self._spawn(self._collector.run())
        self._spawn(self._sweep())

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self._tick.sweep()
            self._collector.story.tick()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    # Stop.

    def _signalled(self, number: int) -> None:
        log.info("signal", signal=signal.Signals(number).name)
        if self._stop.is_set():
            self._skip.set()
        self._begin_drain()

    def _begin_drain(self) -> None:
        if not self._stop.is_set():
            settings = self._settings
            self._deadline = time.monotonic() + settings.drain_delay + settings.drain_timeout
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

    async def delay(self) -> None:
        """Say on `/ready` that we go, and go on serving for DRAIN_DELAY."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_delay):
                await self._skip.wait()

    async def answer(self) -> None:
        """Stop listening and answer what is under way."""
        self._server.close()
        self._tick.drain()
        loop = asyncio.get_running_loop()
        # A quarter of the time at most: the store and the disk need theirs.
        until = loop.time() + min(self._settings.read_timeout, self._settings.drain_timeout / 4)
        while self._tick.busy() and loop.time() < until and not self._skip.is_set():  # noqa: ASYNC110 - many to wait for
            await asyncio.sleep(0.02)

    async def seal(self) -> None:
        """Seal the open batch."""
        await self._collector.seal(self._deadline)

    async def upload(self) -> None:
        """Bring to safety what is here."""
        self._drained = await self._collector.drain(self._deadline, self._skip)

    async def close(self) -> None:
        """Close what is open and say what stays."""
        # Lingering connections have their answers; the process need not stay for them.
        self._tick.abort()
        for task in list(self._background):
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)
        await self._collector.close()
        drained, books = self._drained, self._collector.metrics.books
        if drained is not None:
            tell = log.error if drained.lost_events else log.info
            tell(
                "stopped",
                accepted=books.events_accepted,
                stored=books.events_stored,
                dlq_files=drained.dlq_files,
                dlq_events=drained.dlq_events,
                backlog_files=drained.backlog_files,
                backlog_events=drained.backlog_events,
                lost_events=drained.lost_events,
                unaccounted=books.unaccounted(),
            )


class Step(NamedTuple):
    """A row of the drain: its name, what does it, and what ends it."""

    step: DrainStep
    work: Callable[[Server], Awaitable[None]]
    ends: str


DRAIN: Final[tuple[Step, ...]] = (
    Step(DrainStep.DELAY, Server.delay, "after DRAIN_DELAY"),
    Step(DrainStep.ANSWER, Server.answer, "no connection left, or READ_TIMEOUT"),
    Step(DrainStep.SEAL, Server.seal, "the batch is in the upload queue"),
    Step(DrainStep.UPLOAD, Server.upload, "nothing left, or DRAIN_TIMEOUT"),
    Step(DrainStep.CLOSE, Server.close, "exit"),
)
