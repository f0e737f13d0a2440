"""Recovery: what lies on disk, back to the store, one file at a time.

Owns the pace (`Recovery.run`) and one file's way (`Recovery.step`): inspect it whole, create its object, quarantine the
original if it was damaged, settle the books, remove it.

Promises:

    create-only   what is read from a disk may be less than what is stored, so it never replaces an object; "it exists
                  already" is as good as stored
    two copies    of a key in both the journal's backlog and the DLQ, the DLQ file is put if it verifies, else the copy
                  with more sound lines
    damage        sound lines are stored under the file's own key, the original bytes under `DLQ_PREFIX`, and only then
                  is the file gone; without a sound line nothing is put; one bad file never stops the rest
    pace          one file at a time, after each a pause as long as it took; only while no batch waits, but at least one
                  file per `DUE_AFTER` seconds while the breaker is closed
    expiry        a file older than `DLQ_MAX_AGE` goes only after a put of it failed in this run

Never: holds more than one file in memory (two of one key), takes a file that cannot be read for a damaged one.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple

import structlog

from ingest.delivery.attempt import Result
from ingest.delivery.breaker import State
from ingest.disk import StorageError
from ingest.format import parse_key, quarantine_key
from ingest.spool import Whereabouts
from ingest.store import ObjectMetadata
from ingest.telemetry import DropReason

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ingest.config import Settings
    from ingest.delivery.attempt import Attempts
    from ingest.format.codec import Inspection
    from ingest.spool import Letter
    from ingest.spool.waiting import Waiting
    from ingest.store import ObjectStore
    from ingest.telemetry import Metrics


DUE_AFTER: Final = 5.0
SHORTEST_PAUSE: Final = 0.01
IDLE_PAUSE: Final = 1.0
LONGEST_IDLE_PAUSE: Final = 10.0
BUSY_PAUSE: Final = 0.1

A = TypeVarTuple("A")
T = TypeVar("T")

log = structlog.get_logger()


class Step(Enum):
    """The outcome of one step."""

    STORED = auto()
    SKIPPED = auto()
    FAILED = auto()
    NOTHING = auto()


@dataclass(slots=True)
class _Copy:
    """One file of a key, and what is in it."""

    source: Waiting
    file: Letter
    found: Inspection
    body: bytes | None


class Recovery:
    """See the module's text. `batches_wait` says whether the upload queue has work of its own."""

    def __init__(
        self,
        settings: Settings,
        store: ObjectStore,
        dlq: Waiting,
        backlog: Waiting,
        attempts: Attempts,
        metrics: Metrics,
        *,
        batches_wait: Callable[[], bool],
        on_stored: Callable[[], None],
        clock: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self.ended = False
        self._dlq_prefix = settings.dlq_prefix
        self._max_age = settings.dlq_max_age
        self._store = store
        self._dlq = dlq
        self._backlog = backlog
        self._attempts = attempts
        self._metrics = metrics
        self._batches_wait = batches_wait
        self._on_stored = on_stored
        self._clock = clock
        self._now = now

        self._stopping = False
        self._hurrying = False
        self._woken = asyncio.Event()
        self._last_put = clock()

        # The pass: the two sources take turns until each has come to its end.
        self._turns: list[Waiting] = [backlog, dlq]
        self._stored_in_pass = 0
        self._failed_in_pass = 0
        self._idle_pause = IDLE_PAUSE
        self._unreadable: set[Path] = set()

    # ------------------------------------------------------------------------------------------------- the pace

    async def run(self) -> None:
        """Recover until `stop`, or after `hurry` until nothing is left that the store takes."""
        while not self._stopping:
            pause = self._until_turn()
            if pause > 0:
                await self._nap(pause)
                continue
            began = self._clock()
            step = await self.step()
            if step is Step.NOTHING:
                await self._after_pass()
                continue
            if step is Step.STORED:
                self._stored_in_pass += 1
                self._on_stored()
            else:
                self._failed_in_pass += 1
            if self._hurrying:
                self._stopping |= self._attempts.breaker.state is not State.CLOSED
            else:
                await self._nap(max(self._clock() - began, SHORTEST_PAUSE), until_stop=True)
        self.ended = True
        self._on_stored()

    def wake(self) -> None:
        """Something changed that may make it recovery's turn."""
        self._woken.set()

    def hurry(self) -> None:
        """Make no more pauses, and end when a pass stores nothing or the breaker opens."""
        self._hurrying = True
        self._woken.set()

    def stop(self) -> None:
        """End after the step that runs."""
        self._stopping = True
        self._woken.set()

    def _until_turn(self) -> float:
        breaker = self._attempts.breaker
        if self._hurrying:
            return 0.0
        if not breaker.ready:
            return max(breaker.retry_at - self._clock(), BUSY_PAUSE)
        if not self._batches_wait():
            return 0.0
        if breaker.state is State.CLOSED:
            return self._last_put + DUE_AFTER - self._clock()
        return BUSY_PAUSE  # a batch is the probe

    async def _after_pass(self) -> None:
        stored, self._stored_in_pass = self._stored_in_pass, 0
        failed, self._failed_in_pass = self._failed_in_pass, 0
        if self._hurrying:
            if self._dlq.scanning or self._backlog.scanning:
                await self._nap(BUSY_PAUSE)
            elif not stored:
                self._stopping = True
            return
        # Files that nothing can be done about are looked at ever more seldom.
        if failed and not stored and self._attempts.breaker.state is State.CLOSED:
            self._idle_pause = min(self._idle_pause * 2, LONGEST_IDLE_PAUSE)
        else:
            self._idle_pause = IDLE_PAUSE
        await self._nap(self._idle_pause, until_stop=True)

    async def _nap(self, seconds: float, *, until_stop: bool = False) -> None:
        """Sleep, but no longer than until something changes (`until_stop`: until `stop` or `hurry`)."""
        end = self._clock() + seconds
        while (left := end - self._clock()) > 0:
            self._woken.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._woken.wait()
            if self._stopping or not until_stop or self._hurrying:
                return

    # ------------------------------------------------------------------------------------------------- one file

    async def step(self) -> Step:
        """Take the next file all the way to the store and off the disk."""
        source, file = await self._next()
        if file is None:
            return Step.NOTHING
        lent = [(source, file)]
        try:
            copies = await self._inspect(lent)
            return await self._recover(copies, lent) if copies else Step.SKIPPED
        except (OSError, StorageError) as error:
            # The disk would not say what is in it, which is no verdict upon the file.
            if file.path not in self._unreadable:
                self._unreadable.add(file.path)
                log.warning("recovery_file_unreadable", key=file.key, errno=error.errno, hint="it is tried again later")
            return Step.SKIPPED
        finally:
            for _, file in lent:
                await file.lender.take_back(file)

    async def _next(self) -> tuple[Waiting, Letter | None]:
        while self._turns:
            source = self._turns.pop(0)
            file = await source.next()
            if file is not None:
                self._turns.append(source)
                return source, file
        self._turns = [self._backlog, self._dlq]
        return self._dlq, None

    async def _inspect(self, lent: list[tuple[Waiting, Letter]]) -> list[_Copy]:
        """Inspect the file, and its rival if the verdict may depend on it; nothing if that cannot be done now."""
        source, file = lent[0]
        copies = [await self._judge(source, file)]
        if source is self._dlq and copies[0].found.sound:
            return copies
        other = self._dlq if source is self._backlog else self._backlog
        rival = await other.find(file.key)
        if rival is Whereabouts.NOT_THERE:
            return copies
        if rival is Whereabouts.UNKNOWN:
            return []
        lent.append((other, rival))
        return [*copies, await self._judge(other, rival)]

    async def _judge(self, source: Waiting, file: Letter) -> _Copy:
        contents = await file.contents()
        return _Copy(source, file, contents.found, contents.body)

    async def _recover(self, copies: list[_Copy], lent: list[tuple[Waiting, Letter]]) -> Step:
        best = max(copies, key=lambda copy: (copy.source is self._dlq and copy.found.sound, copy.found.events))
        result = await self._create(best)
        if result is Result.FAILED and self._is_expired(lent[0][1]):
            await self._expire(lent.pop(0)[1])
        if result is not Result.STORED:
            return Step.FAILED
        for copy in copies:
            if not copy.found.sound and await self._quarantine(copy) is not Result.STORED:
                return Step.FAILED
        for copy in copies:
            lent.remove((copy.source, copy.file))
            await self._settle(copy, best)
        return Step.STORED

    async def _create(self, copy: _Copy) -> Result:
        return Result.STORED if copy.body is None else await self._put(copy.file.key, copy.body, copy)

    async def _quarantine(self, copy: _Copy) -> Result:
        key = quarantine_key(copy.file.key, self._dlq_prefix)
        if copy.file.is_segment:
            key = key.removesuffix(".gz")
        return await self._put(key, await copy.file.original(), copy)

    async def _put(self, key: str, body: bytes, copy: _Copy) -> Result:
        # The instance is in the file's own key: a quarantined segment goes under a name that is no batch's.
        found, instance = copy.found, instance_of(copy.file.key)
        metadata = ObjectMetadata(found.events, found.first_ts, found.last_ts, instance)

        async def create() -> None:
            if not await self._store.create(key, body, metadata):
                self._metrics.puts_already_stored += 1

        result = await self._attempts.make(key, create)
        self._last_put = self._clock()
        return result

    async def _settle(self, copy: _Copy, best: _Copy) -> None:
        """Move a copy's events to where they are now. All that was counted for it leaves with it, in one loop step."""
        counted = copy.file.events
        # Of the copy that was not put, the store has what the other one had.
        stored = best.found.events if copy is best else min(counted, best.found.events)
        books, place = self._metrics.books, copy.file.lender.place
        if counted > stored:
            books.dropped(counted - stored, DropReason.CORRUPT, place)
        else:
            books.recovered(stored - counted, place)
        books.stored(stored, place)
        self._metrics.reuploaded += stored
        self._metrics.files_reuploaded += 1
        if not copy.found.sound:
            self._metrics.files_quarantined += 1
            log.error(
                "file_quarantined",
                key=copy.file.key,
                salvaged=copy.found.events,
                bad_lines=copy.found.bad_lines,
                lost=max(counted - stored, 0),
                prefix=self._dlq_prefix,
            )
        copy.file.settle()
        await copy.file.lender.take_back(copy.file)

    def _is_expired(self, file: Letter) -> bool:
        return 0 < self._max_age < self._now() - parse_key(file.key).unix

    async def _expire(self, file: Letter) -> None:
        self._metrics.books.dropped(file.events, DropReason.EXPIRED, file.lender.place)
        self._metrics.files_expired += 1
        log.error("file_expired", key=file.key, events=file.events, hint="older than DLQ_MAX_AGE, and its put failed")
        file.settle()
        await file.lender.take_back(file)


def instance_of(key: str) -> str:
    """Name the process that took in a batch's events, as its key has it."""
    parsed = parse_key(key)
    return f"{parsed.host}-{parsed.token}"
