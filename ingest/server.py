"""The process: sockets, signals, and the drain.

Owns the event loop, the sockets, the signals and the drain. Promises that the server listens before anything slow
begins (the S3 client, the scan of what an earlier process left); that a signal ends in exit code 0 within DRAIN_DELAY
+ DRAIN_TIMEOUT with every acknowledged event in the store or on disk, and one second after that at the latest whatever
hangs; and that a failure of our own ends the process loudly. Never does a step of the pipeline itself: `collector` is
the pipeline.

The drain is the table `DRAIN`, worked off from top to bottom; a second signal skips what would only be waiting:

| step   | what happens                                                          | ends                                |
| ------ | --------------------------------------------------------------------- | ----------------------------------- |
| delay  | `/ready` answers 503, requests are still taken                        | after DRAIN_DELAY                   |
| answer | stop listening, answer what is under way, close idle connections      | no connection left, or READ_TIMEOUT |
| seal   | seal the open batch; with `fsync` wait for its last sync              | the batch is in the upload queue    |
| upload | put the queue, then backlog and DLQ; what is left is saved to the DLQ | nothing left, or DRAIN_TIMEOUT      |
| close  | close the store; say what stays                                       | exit                                |
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import sys
import threading
import time
from contextlib import suppress
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

import structlog
import uvloop

from ingest import __version__, signals
from ingest.certificates import Certificates
from ingest.collector import Collector, World
from ingest.config import ConfigError, shown_value
from ingest.disk import Filesystem, SocketFile, StorageError
from ingest.event import Access, EventEncoder, Pages, key_headers
from ingest.listeners import LISTEN_BACKLOG, bind
from ingest.telemetry import Page
from ingest.telemetry import log as logs
from ingest.threads import NoThreadError, start_resolvers
from ingest.wire import (
    OFFICE,
    AnswerBook,
    Connection,
    ConnectionLimits,
    HeaderNames,
    Layouts,
    Pace,
    Proxied,
    Secured,
    Tick,
    house,
    street,
)
from ingest.worker import Alone, Worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from ingest.config import Settings

SWEEP_SECONDS: Final = 0.5
DESCRIPTORS_RESERVED: Final = 128
"""File descriptors kept for segments, dead-letter files, the store's connections and the libraries."""
ACCEPTED_AT_ONCE: Final = 4
"""Descriptors of each socket for events. In a turn uvloop accepts one connection of each descriptor: with one alone, a
turn would have one event where every connection brings one. More of them cost a connection that comes alone."""
LEAST_PARTING: Final = 5.0
"""Seconds that a worker which is replaced leaves silent clients alone, unless DRAIN_DELAY is longer: who sends within
them is told to come again, and meets the successor."""
SECOND_SIGNAL: Final = 1.0
"""A signal sooner than this after the first is the same one: `timeout(1)` and process groups send two at once."""
PARTING_LOOK_SECONDS: Final = 0.05
TELLING_SECONDS: Final = 0.1
"""So long who comes to the end second lets the first tell what stays, before the process ends."""
CLOSE_SECONDS: Final = 0.5
"""The last step may take so long beyond DRAIN_TIMEOUT; then the process ends as it is."""

ALONE: Final = Alone()

log = structlog.get_logger()


def serve(settings: Settings, *, fs: Filesystem | None = None, worker: Worker | Alone = ALONE) -> NoReturn:
    """Run until a signal; exit with 0, or 1 after a failure of our own or a loss, or 2 for what an operator can mend.

    One of several `worker`s has its sockets from its supervisor, and tells it how far it is.

    The process ends here, by `os._exit`: no thread that hangs in a system call is waited for, and the kernel releases
    the slots when nothing of us can write any more.
    """
    signals.hold()  # before any thread begins: one that does not hold them would be handed them
    logs.configure(settings, worker.number)
    logs.start()
    uvloop.run(Server(settings, fs or Filesystem(), worker).run())
    raise AssertionError("a server ends its process")


def _leave(code: int) -> NoReturn:
    logs.finish()
    os._exit(code)


def _refuse_to_start(problem: str) -> NoReturn:
    with suppress(OSError):
        print(problem, file=sys.stderr, flush=True)  # noqa: T201 - the one line an operator sees at a failed start
    _leave(2)


def _began_with_us(error: BaseException) -> bool:
    """Tell whether the outermost function that the error came through, past those of the loop, is of this package."""
    frame = error.__traceback__
    while frame is not None:
        package = str(frame.tb_frame.f_globals.get("__name__")).partition(".")[0]
        if package not in {"uvloop", "asyncio"}:
            return package == __name__.partition(".")[0]
        frame = frame.tb_next
    return False


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

    def __init__(self, settings: Settings, fs: Filesystem, worker: Worker | Alone = ALONE) -> None:
        self._settings = settings
        self._fs = fs
        self._worker = worker
        self._step = DrainStep.RUNNING
        self._stop = asyncio.Event()
        self._skip = asyncio.Event()
        self._retires = False
        """From a SIGHUP to a worker, whose successor serves already, until the time for silent clients is over."""
        self._hurries = asyncio.Event()
        """Set from when requests are to be taken no longer: with `_skip`, by a signal to stop while we retire, and when
        the supervisor is gone."""
        self._delay = settings.drain_delay
        """How long requests are taken after the drain has begun."""
        self._signalled_at: float | None = None
        self._deadline = 0.0
        self._stopped = threading.Lock()
        """Taken for good by who tells what stays."""
        self._failure: BaseException | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._pipeline: Collector | None = None
        """None until it is built: a signal may come before."""
        self._listeners: list[asyncio.Server] = []
        self._socket_file: SocketFile | None = None
        self._certificates: Certificates | None = None
        """None without TLS."""

    async def run(self) -> NoReturn:
        """Start, serve, drain, and end the process."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._unhandled)
        # Before anything that may be slow, so that a signal in the first moments is heard.
        self._watch = signals.Watch(
            self._settings.drain_delay + self._settings.drain_timeout + CLOSE_SECONDS,
            lambda number, when: loop.call_soon_threadsafe(self._signalled, number, when),
            self._cut_short,
            {signal.SIGHUP: max(LEAST_PARTING - self._settings.drain_delay, 0.0)} if self._worker.has_successor else {},
        )
        try:
            self._watch.start()
            self._build(loop)
            self._collector.begin()
            await start_resolvers(loop)
        except StorageError as error:
            variable = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
            _refuse_to_start(f"{variable}{error}")
        except (ConfigError, NoThreadError) as error:
            _refuse_to_start(str(error))
        for variable, listen in (("ADMIN_ADDR", self._listen_for_operators), ("HTTP_ADDR", self._listen)):
            try:
                await listen(loop)
            except OSError as error:
                where = shown_value(variable, self._settings)
                self._leave_socket_file()
                _refuse_to_start(f"{variable}: cannot listen on {where}: {error.strerror or error}")
        self._worker.serves()
        self._start_background()
        # What lives now lives for good: the collector of cycles need not look at it again.
        gc.collect()
        gc.freeze()
        await self._stop.wait()
        for row in DRAIN:
            self._step = row.step
            log.info("drain", step=row.step.value)
            await row.work(self)
        _leave(self._code())

    # Start.

    def _build(self, loop: asyncio.AbstractEventLoop) -> None:
        settings = self._settings
        world = World(loop, self._fs, books=self._worker.books())
        self._pipeline = self._collector = collector = Collector(settings, world)
        figures, status = self._worker.shown(collector.metrics, collector.story.status)
        encoder = EventEncoder(settings)
        keys = key_headers(settings)
        self._tick = Tick(
            loop,
            ConnectionLimits.of(settings),
            encoder,
            AnswerBook(settings.cors_origins),
            Layouts(encoder.headers, settings.collect_paths, learns=encoder.also_reads is None and not keys),
            Pages(
                ready=lambda: self._step is DrainStep.RUNNING or self._retires,
                metrics=Page(figures),
                status=status,
            ),
            collector.metrics,
            collector.intake.commit,
            collector.intake.refusing,
            collector.budget,
            max_connections=self._max_connections(),
            deferred=collector.deferred,
            access=Access(settings, encoder.address_of, loop.time),
            hidden=[secret.encode() for _, secret in settings.write_keys or ()],
        )
        self._new = (self._tick, HeaderNames((*encoder.headers, *keys), encoder.also_reads))
        """Every connection's, beside its door."""
        if settings.tls_cert is not None and settings.tls_key is not None:
            self._certificates = Certificates(settings.tls_cert, settings.tls_key, collector.metrics)
        collector.metrics.gauges.log_lines_dropped = logs.dropped

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
        connect = partial(self._connection(), *self._new, (house if settings.admin_addr is None else street)(settings))
        for bound in self._worker.for_events or await bind(loop, settings.http_host or None, settings.http_port):
            for descriptor in (bound, *(bound.dup() for _ in range(ACCEPTED_AT_ONCE - 1))):
                self._listeners.append(await loop.create_server(connect, sock=descriptor, backlog=LISTEN_BACKLOG))
            host, port = bound.getsockname()[:2]
            log.info(
                "listening",
                host=host,
                port=port,
                version=__version__,
                durability=settings.durability,
                store=settings.store_shown,
                **self._collector.slots,
            )

    def _connection(self) -> Callable[..., asyncio.Protocol]:
        """Return what makes a connection on HTTP_ADDR."""
        if self._certificates is not None:
            return partial(Secured, self._certificates, Pace(asyncio.get_running_loop()))
        return Proxied if self._settings.proxy_protocol else Connection

    async def _listen_for_operators(self, loop: asyncio.AbstractEventLoop) -> None:
        where = self._settings.admin_addr
        connect = partial(Connection, *self._new, OFFICE)
        if isinstance(where, Path):
            listening = list(self._worker.for_operators)
            if not listening:
                self._socket_file = found = SocketFile(self._fs, where, LISTEN_BACKLOG)
                listening = [found.socket]
            self._listeners.append(await loop.create_unix_server(connect, sock=listening[0]))
            log.info("listening_for_operators", path=str(where))
        elif where is not None:
            for bound in self._worker.for_operators or await bind(loop, where[0] or None, where[1]):
                self._listeners.append(await loop.create_server(connect, sock=bound, backlog=LISTEN_BACKLOG))
                host, port = bound.getsockname()[:2]
                log.info("listening_for_operators", host=host, port=port)

    def _start_background(self) -> None:
        self._spawn(self._collector.run())
        self._spawn(self._sweep())
        self._worker.on_orphaned(asyncio.get_running_loop(), self._orphaned)
        if self._certificates is not None:
            self._spawn(self._certificates.watch())

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self._tick.sweep()
            self._worker.tell()
            self._collector.story.tick()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    # Stop.

    def _signalled(self, number: signal.Signals, when: float) -> None:
        log.info("signal", signal=number.name)
        if self._worker.has_successor and number is signal.SIGHUP:
            if not self._stop.is_set():
                self._retires = True
                self._delay = max(self._delay, LEAST_PARTING)
                self._begin_drain()
            return
        if self._retires:
            self._hurries.set()
        if self._signalled_at is None:
            self._signalled_at = when
        elif when - self._signalled_at >= SECOND_SIGNAL:
            self._skip_waiting()
        self._begin_drain()

    def _skip_waiting(self) -> None:
        self._hurries.set()
        self._skip.set()

    def _orphaned(self) -> None:
        """Drain: the supervisor is gone, and with it who would start another in our place."""
        log.error("supervisor_gone")
        self._hurries.set()  # who is started in its place finds the address taken while we listen
        self._begin_drain()

    def _begin_drain(self) -> None:
        if not self._stop.is_set():
            self._deadline = time.monotonic() + self._delay + self._settings.drain_timeout
            self._watch.arm()
            self._stop.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Say what the loop caught. Errors of the network are survived; a bug of ours meets one client, or ends us.

        An `OSError` is the network's unless a callback of ours raised it: they are given no socket, so that it is of a
        disk, and what the callback had to do was not done.
        """
        error = context.get("exception")
        log.error("unhandled", message=context.get("message"), exc_info=error)
        ours = "handle" in context and error is not None and _began_with_us(error)
        survived = "connection" in context or (isinstance(error, OSError) and not ours)
        if error is not None and not survived:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """End after a bug of ours, saving what can be saved: a supervisor starts us again."""
        log.critical("failed", exc_info=error)
        self._failure = error
        self._skip_waiting()
        self._begin_drain()

    async def delay(self) -> None:
        """Say on `/ready` that we go, and go on serving for DRAIN_DELAY."""
        if self._retires:
            await self._part()
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._delay):
                await self._hurries.wait()

    async def _part(self) -> None:
        """Leave the accept queue to the successor, and each client with the answer to its next request."""
        self._stop_listening()
        self._tick.part()
        until = time.monotonic() + self._delay
        crowd = self._tick.crowd
        while crowd.admitted and time.monotonic() < until and not self._hurries.is_set():  # noqa: ASYNC110 - of many
            await asyncio.sleep(PARTING_LOOK_SECONDS)
        self._retires = False
        self._deadline = min(self._deadline, time.monotonic() + self._settings.drain_timeout)

    def _stop_listening(self) -> None:
        while self._listeners:
            self._listeners.pop().close()
        self._leave_socket_file()
        self._collector.metrics.workers = 0
        self._worker.leaves()

    async def answer(self) -> None:
        """Stop listening and answer what is under way."""
        self._stop_listening()
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
        await self._collector.drain(self._deadline, self._skip)

    async def close(self) -> None:
        """Close what is open and say what stays."""
        # Lingering connections have their answers; the process need not stay for them.
        self._tick.abort()
        for task in list(self._background):
            task.cancel()
        left = max(self._deadline - time.monotonic(), 0.0)
        await self._collector.close(left + CLOSE_SECONDS / 2)
        self._worker.tell()
        self._tell_stopped()

    def _cut_short(self) -> None:
        """End as we are: something hangs, and what was acknowledged is on disk. Runs in the thread of the signals."""
        try:
            self._tell_stopped(at=self._step.value)
            self._leave_socket_file()
        finally:
            _leave(self._code())

    def _leave_socket_file(self) -> None:
        if self._socket_file is not None:
            self._socket_file.remove()

    def _tell_stopped(self, *, at: str | None = None) -> None:
        """Say what stays, and, where the time was up, `at` which step; once, though two threads may come to the end."""
        collector = self._pipeline
        if collector is None or not self._stopped.acquire(timeout=TELLING_SECONDS):
            return
        left, books = collector.left(), collector.metrics.books
        cut = {} if at is None else {"cut_short_at": at}
        tell = log.error if left.lost_events or cut else log.info
        tell(
            "stopped",
            accepted=books.events_accepted,
            stored=books.events_stored,
            **left._asdict(),
            unaccounted=books.unaccounted(),
            **cut,
        )
        if left.on_disk:
            log.warning(
                "left_on_disk",
                events=left.on_disk,
                directories=[str(self._settings.dlq_dir), str(self._settings.journal_dir)],
                hint="keep the disk: the next process with these directories stores them, and so does `dlq replay`",
            )

    def _code(self) -> int:
        lost = self._pipeline is not None and self._pipeline.left().lost_events
        return 1 if lost or self._failure is not None else 0


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
