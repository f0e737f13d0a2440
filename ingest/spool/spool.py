"""Spool: the dead letters, as the event loop sees them.

Owns the books of what waits in the dead-letter queue (`files`, `events`, `bytes`), and the lane in whose thread
`Letters` lives. Each call is one hop to the lane and, when it is back, one step of the loop in which the books change.

Promises:

    save      when it returns, the file is published and in the books; when it raises, the batch is where it was, and a
              file that is published after all is taken away again
    lent      a file is in the books while it is lent, and leaves them in the step of the loop in which it is settled
    bounded   no wait on the disk lasts longer than `WAIT`; while the disk hangs, `save` refuses at once
    scan      what earlier runs left is counted beside the running server, at a quarter of one core at most; it returns
              when all was counted or tried. Folders that could not be read are `unknown`; the next `adopt` tries again

Never: touches the disk on the loop, holds more than one file's bytes.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Generic, TypeVar, TypeVarTuple

import structlog

from ingest.config import DEBUG_CHECKS
from ingest.disk import StorageError
from ingest.spool.letters import DlqFull, Lent, Letters, Pass
from ingest.spool.places import Copy
from ingest.spool.reading import gzip_contents, original
from ingest.spool.room import Room
from ingest.spool.tally import Change, Tally
from ingest.spool.waiting import Letter, Whereabouts
from ingest.telemetry import DropReason, Place

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from ingest.config import Settings
    from ingest.disk import Filesystem, Lane, Slot
    from ingest.spool.places import Places
    from ingest.spool.waiting import Contents
    from ingest.telemetry import Metrics


WAIT: Final = 10.0
COUNT_DUTY: Final = 3.0
"""A counted chunk is followed by a sleep of this many times the time it took."""

A = TypeVarTuple("A")
T = TypeVar("T")

log = structlog.get_logger()


@dataclass(slots=True)
class _Made(Generic[T]):
    """A call to `Letters` that was made: how it ended, and what changed."""

    change: Change
    unknown: int
    oldest: int = 0
    unremoved: int = 0
    result: T | None = None
    error: OSError | StorageError | None = None


class Spool:
    """See the module's text."""

    def __init__(
        self,
        settings: Settings,
        fs: Filesystem,
        slots: Sequence[Slot],
        metrics: Metrics,
        lane: Lane,
        executor: Executor,
        places: Places,
        *,
        token: str,
        backlog_bytes: Callable[[], int] = lambda: 0,
        wait: float = WAIT,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`slots[0]` is our own; `lane` is that of their disk; `executor` judges what was read."""
        self.place: Final = Place.DLQ
        self.events = 0
        self.files = 0
        self.bytes = 0
        self.unknown = 0
        """Files and folders that could not be read when they were to be counted; a folder may hold many files."""
        self.oldest = 0
        """Unix time of the oldest event that waits here, to the hour; 0 if none does."""
        self.unremoved = 0
        """Files that are to go, and that the disk does not let go."""

        self._fs = fs
        self._metrics = metrics
        self._lane = lane
        self._executor = executor
        self._backlog_bytes = backlog_bytes
        self._wait = wait
        self._clock = clock
        self._sleep = sleep
        self._room = Room(settings, fs, slots[0].path, clock)
        self._letters = Letters(fs, slots, self._room, token=token)
        self._places = places
        self._token = f"-{token}_"
        self._slots = [slot.path for slot in slots]

        self._counting = asyncio.Lock()
        self._scans = 1
        """Scans that have to begin or are under way: one from the start on."""
        self._refused = 1
        """Bytes of the smallest batch that was refused. Until a batch is saved, or there is room for that one."""
        self._silent = False
        """From a wait that ended without an answer, which is told once, to the next answer."""
        self._given_up: float | None = None
        """When the call began behind which a wait has ended last. Until a save knows what became of that call."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._late: dict[str, asyncio.Task[None]] = {}
        """Saves nobody waits for any more, until their file is taken away again."""

    def __repr__(self) -> str:
        waiting = f"{self.files} files, {self.events} events, {self.bytes} bytes"
        return f"<Spool {waiting}, {self.unknown} unknown, {len(self._late)} late, {self._lane!r}>"

    @property
    def adopted(self) -> int:
        """How many slots of dead processes are held."""
        return self._letters.adopted

    @property
    def disk_free(self) -> int:
        """Bytes free on the disk, as last measured; 0 until then."""
        return self._room.free or 0

    @property
    def hangs(self) -> bool:
        """The call that is under way has not been answered for `wait`, or somebody behind it has given up."""
        since = self._lane.busy_since
        return since is not None and (since == self._given_up or self._clock() - since > self._wait)

    # ------------------------------------------------------------------------------------------------- saving

    async def save(self, key: str, body: bytes, events: int, *, force: bool = False) -> None:
        """Publish a batch's file and count it; `DlqFull` if there is no room, and with `force` if the disk has none."""
        if (given_up := self._given_up) is not None and not self.hangs:
            # The lane answers in order: whatever came late is known when this is answered, and not before.
            await self._hop(_nothing)
            if self._given_up == given_up:
                self._given_up = None
        if (late := self._late.get(key)) is not None:
            await asyncio.wait({late}, timeout=self._wait)
        if self.hangs or key in self._late:
            raise StorageError("wait", key, "the dead-letter queue's disk does not answer", transient=True)
        # What is lost by giving up is a file that may be published all the same, so somebody sees to it.
        late_save = partial(self._too_late, key)
        try:
            saved = await self._hop(self._letters.save, key, body, events, self._backlog_bytes(), force, late=late_save)
        except DlqFull:
            self._refused = min(self._refused, len(body)) if self._refused > 1 else len(body)
            raise
        self._refused = 1
        self._add(saved)
        self._metrics.enqueued += events

    @property
    def full(self) -> bool:
        """A batch like the one refused last would be refused now, or the disk hangs. Costs nothing."""
        if self.hangs:
            return True
        if self._room.stale and not self._tasks:
            self._spawn(self._measure())
        if self._room.evicts and self.files and not self._room.never_takes(self._backlog_bytes(), self._refused):
            return False
        return self._room.lacks(self.bytes + self._backlog_bytes(), self._refused)

    async def _measure(self) -> None:
        await self._hop(self._letters.measure, bounded=False)

    def _too_late(self, key: str, saved: Tally) -> None:
        task = self._spawn(self._discard(key, saved))
        self._late[key] = task
        task.add_done_callback(lambda _: self._late.pop(key, None))

    async def _discard(self, key: str, saved: Tally) -> None:
        log.warning("dlq_save_late", key=key, hint="the disk took longer than its caller waited; the file is removed")
        await self._hop(self._letters.discard, key, saved, bounded=False)

    # ------------------------------------------------------------------------------------------------- lending

    async def next(self) -> Letter | None:
        """Lend the next file; None at the end of each pass, and while the disk does not answer."""
        while True:
            try:
                lent = await self._hop(self._letters.next, late=self._lent_to_nobody)
            except StorageError as error:
                self._not_answered(error)
                return None
            if isinstance(lent, Lent):
                return self._letter(lent)
            if lent is Pass.ENDS:
                return None

    async def find(self, key: str) -> Letter | Whereabouts:
        """Lend the file of this key; UNKNOWN while it is not in the books yet, or the disk would not say."""
        try:
            lent = await self._hop(self._letters.find, key, late=self._lent_to_nobody)
        except StorageError as error:
            self._not_answered(error)
            return Whereabouts.UNKNOWN
        if isinstance(lent, Lent):
            return self._letter(lent)
        if lent is Whereabouts.NOT_THERE and self._token not in key:
            # Another process may hold it. None but us can have saved what bears our token.
            copy = await self._places.dead_letter(key, but=self._slots)
            return lent if copy is Copy.NOT_THERE else Whereabouts.UNKNOWN
        return lent

    async def contents(self, letter: Letter) -> Contents:
        """Read a lent file once, and judge it."""
        return await gzip_contents(self._fs, self._lane, self._executor, letter, within=self._wait)

    async def original(self, letter: Letter) -> bytes:
        """Read a lent file as it lies there."""
        return await original(self._fs, self._lane, letter, within=self._wait)

    def settle(self, letter: Letter) -> None:
        """Take a lent file, whose events are in another book now, out of ours."""
        self.files -= 1
        self.events -= letter.events
        self.bytes -= letter.size

    async def take_back(self, letter: Letter) -> None:
        """Have a lent file off the disk if it was settled, else in the queue again. It happens, waited for or not."""
        lent = Lent(letter.key, letter.path, letter.size, letter.events, letter.refused)
        task = self._spawn(self._give_back(lent, settled=letter.settled))
        await asyncio.wait({task}, timeout=self._wait)

    async def _give_back(self, lent: Lent, *, settled: bool) -> None:
        await self._hop(self._letters.take_back, lent, settled, bounded=False)

    def _letter(self, lent: Lent) -> Letter:
        return Letter(lent.key, lent.path, lent.size, lent.events, self, refused=lent.refused)

    def _lent_to_nobody(self, lent: Lent | Pass | Whereabouts) -> None:
        if isinstance(lent, Lent):
            self._spawn(self._give_back(lent, settled=False))

    def _not_answered(self, error: StorageError) -> None:
        if not self._silent:
            self._silent = True
            log.warning("dlq_not_answering", operation=error.operation, hint=error.hint, errno=error.errno)

    def close(self) -> None:
        """Let go of handles and locks; call it when nothing else runs here any more."""
        self._letters.close()

    # ------------------------------------------------------------------------------------------------- counting

    async def scan(self) -> None:
        """Count what earlier runs left, and see to their temporaries; returns when all was counted or tried."""
        async with self._counting:
            try:
                await self._hop(self._letters.counting.begin, bounded=False)
                while True:
                    began = self._clock()
                    goes_on = await self._hop(self._letters.counting.step, bounded=False)
                    for key, temporary in await self._hop(self._letters.temporaries.take, bounded=False):
                        await self._see_to(key, temporary)
                    if not goes_on:
                        return
                    await self._sleep(COUNT_DUTY * (self._clock() - began))
            finally:
                self._scans = max(self._scans - 1, 0)

    async def _see_to(self, key: str, temporary: Path) -> None:
        segment = await self._places.segment(key)
        if segment is Copy.UNKNOWN:
            await self._hop(self._letters.temporaries.keep, temporary, bounded=False)
        else:
            await self._hop(self._letters.temporaries.salvage, temporary, segment is Copy.KNOWN, bounded=False)

    async def adopt(self, slots: Iterable[Slot]) -> None:
        """Take over slots of processes that are gone: count their files, lend them, release each when it is empty."""
        slots = list(slots)
        self._scans += bool(slots)
        self._slots += [slot.path for slot in slots]
        await self._hop(self._letters.slots.adopt, slots, bounded=False)
        await self.scan()

    @property
    def scanning(self) -> bool:
        """There are files that are not in the books yet, and it is being seen to."""
        return bool(self._scans) and not self.hangs

    # ------------------------------------------------------------------------------------------------- below

    async def _hop(
        self,
        work: Callable[[*A], T],
        *args: *A,
        bounded: bool = True,
        late: Callable[[T], None] | None = None,
    ) -> T:
        """Make a call to `Letters`, and take what it changed into the books in the step in which it returns.

        If the caller leaves early, the change is taken in when it comes, and `late` gets the result.
        """

        def came_late(made: _Made[T]) -> None:
            self._take_in(made)
            if made.error is None and late is not None:
                late(made.result)  # type: ignore[arg-type]  # a call that did not fail has a result

        try:
            made = await self._lane.run(self._make, work, args, within=self._wait if bounded else None, late=came_late)
        except StorageError:
            self._given_up = self._lane.busy_since
            raise
        if self._silent:
            self._silent = False
            log.info("dlq_answers_again")
        self._take_in(made)
        if made.error is not None:
            raise made.error
        return made.result  # type: ignore[return-value]  # as above

    def _make(self, work: Callable[[*A], T], args: tuple[*A]) -> _Made[T]:
        """Run in the lane's thread. An error does not lose what was changed before it."""
        made: _Made[T] = _Made(Change(), 0)
        try:
            made.result = work(*args)
        except (OSError, StorageError) as error:
            made.error = error
        made.change = self._letters.take_change()
        made.unknown = self._letters.unknown
        made.oldest = self._letters.oldest
        made.unremoved = self._letters.unremoved
        if DEBUG_CHECKS:
            self._letters.check()
        return made

    def _take_in(self, made: _Made[T]) -> None:
        change, books = made.change, self._metrics.books
        self._add(change.waiting)
        books.recovered(change.recovered, self.place)
        books.dropped(change.corrupt, DropReason.CORRUPT, self.place)
        books.dropped(change.evicted.events, DropReason.EVICTED, self.place)
        self._metrics.files_evicted += change.evicted.files
        self.unknown = made.unknown
        self.oldest = made.oldest
        self.unremoved = made.unremoved

    def _add(self, tally: Tally) -> None:
        self.files += tally.files
        self.events += tally.events
        self.bytes += tally.size

    def _spawn(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, StorageError):
            task.get_loop().call_exception_handler({"message": "a call to the spool failed", "exception": error})


def _nothing() -> None:
    """Make no call: only its answer counts."""
