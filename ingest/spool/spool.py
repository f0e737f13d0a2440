"""Spool: the dead letters, as the event loop sees them.

Owns the books of what waits in the dead-letter queue (`files`, `events`, `size`). `Letters` lives in the thread of a
lane; each of the `Calls` to it is one hop there and, when it is back, one step of the loop in which the books change.

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
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from ingest.disk import StorageError
from ingest.spool.calls import Calls, Said
from ingest.spool.letters import DlqFull, Lent, Letters, Pass, Saved
from ingest.spool.places import Copy
from ingest.spool.reading import Reading
from ingest.spool.room import Room
from ingest.spool.scan import Scan
from ingest.spool.tally import Change, Tally
from ingest.spool.waiting import Held, Letter, Whereabouts, no_ledger, no_note
from ingest.telemetry import DropReason, Place

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from ingest.config import Settings
    from ingest.disk import Filesystem, Lane, Slot
    from ingest.spool.places import Places
    from ingest.spool.temporaries import Torn
    from ingest.spool.waiting import Contents
    from ingest.telemetry import Metrics


WAIT: Final = 10.0
WATCH_SECONDS: Final = 0.5

log = structlog.get_logger()


def _always() -> bool:
    return True


class Spool:
    """See the module's text."""

    place = Place.DLQ

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
        salvages: bool = False,
        note: Callable[[Path, bytes], None] = no_note,
        is_settled: Callable[[Path], bool] = no_ledger,
        wait: float = WAIT,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`slots[0]` is our own; `lane` is that of their disk; `executor` judges what was read.

        `salvages`: no journal that is not here is waited for any more. `note` writes lines into the ledger of a slot,
        in the lane. A slot stays until that `is_settled`.
        """
        self._waiting = Tally()
        self._said = Said()
        self._metrics = metrics
        self._backlog_bytes = backlog_bytes
        self._room = Room(settings, fs, slots[0].path, clock)
        self._letters = letters = Letters(
            fs,
            slots,
            self._room,
            token=token,
            only_copies=settings.durability == "memory",
            salvages=salvages,
            note=note,
            is_settled=is_settled,
            clock=clock,
        )
        self._sleep = sleep
        self._calls = Calls(letters, lane, self._take_in, wait=wait, clock=clock)
        self._scan = Scan(letters, self._calls, places, clock=clock, sleep=sleep)
        self._reading = Reading(fs, lane, executor, wait)
        self._places = places
        self._token = f"-{token}_"
        self._slots = [slot.path for slot in slots]

        self._refused = 1
        """Bytes of the smallest batch that was refused. Until a batch is saved, or there is room for that one."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._has_moved = False
        """Another process holds a slot that was our own. From when that was found out, for good."""
        self._late: dict[str, asyncio.Task[None]] = {}
        """Saves nobody waits for any more, until their file is taken away again."""

    def __repr__(self) -> str:
        waiting = f"{self.files} files, {self.events} events, {self.size} bytes"
        return f"<Spool {waiting}, {self.unknown} unknown, {len(self._late)} late, {self._calls!r}>"

    @property
    def events(self) -> int:
        """Events in the books here."""
        return self._waiting.events

    @property
    def files(self) -> int:
        """Files in the books here."""
        return self._waiting.files

    @property
    def size(self) -> int:
        """Bytes of the files in the books here."""
        return self._waiting.size

    @property
    def unknown(self) -> int:
        """Files and folders that could not be read when they were to be counted; a folder may hold many files."""
        return self._said.unknown

    @property
    def unremoved(self) -> int:
        """Files that are to go, and that the disk does not let go."""
        return self._said.unremoved

    @property
    def oldest(self) -> int:
        """Unix time of the oldest event that waits here, to the hour; 0 if none does."""
        return self._said.oldest

    @property
    def adopted(self) -> int:
        """How many slots of dead processes are held."""
        return self._letters.adopted

    @property
    def held_slots(self) -> Collection[Path]:
        """The slots that this process holds, its own included, and those that it still lends from."""
        return tuple(self._slots)

    @property
    def disk_free(self) -> int:
        """Bytes free on the disk, as last measured; 0 until then."""
        return self._room.free or 0

    @property
    def hangs(self) -> bool:
        """The disk does not answer."""
        return self._calls.hangs

    # ------------------------------------------------------------------------------------------------- saving

    async def save(
        self,
        key: str,
        body: bytes,
        events: int,
        *,
        force: bool = False,
        is_wanted: Callable[[], bool] = _always,
    ) -> None:
        """Publish a batch's file and count it; `DlqFull` if there is no room, and with `force` if the disk has none.

        A file that is not wanted any more when it is there is taken away again; that is a `StorageError`, too.
        """
        await self._calls.hear_late()
        if (late := self._late.get(key)) is not None:
            await asyncio.wait({late}, timeout=self._calls.wait)
        if self.hangs or key in self._late:
            raise StorageError("wait", key, "the dead-letter queue's disk does not answer", transient=True)
        # What is lost by giving up is a file that may be published all the same, so somebody sees to it.
        late_save = partial(self._too_late, key)
        try:
            saved = await self._calls.make(
                self._letters.save, key, body, events, self._backlog_bytes(), force, late=late_save
            )
        except DlqFull:
            self._refused = min(self._refused, len(body)) if self._refused > 1 else len(body)
            raise
        self._refused = 1
        if not is_wanted():
            self._too_late(key, saved)
            raise StorageError("wait", key, "the batch went another way meanwhile", transient=True)
        self._waiting.add(saved.tally)
        self._metrics.enqueued += events

    @property
    def full(self) -> bool:
        """A batch like the one refused last would be refused now, or the disk hangs. Costs nothing."""
        if self.hangs:
            return True
        self._measure_if_due()
        if self._room.evicts and self.files and not self._room.never_takes(self._backlog_bytes(), self._refused):
            return False
        return self._room.lacks(self.size + self._backlog_bytes(), self._refused)

    def _measure_if_due(self) -> None:
        if self._room.stale and not self._tasks:
            self._spawn(self._measure())

    async def _measure(self) -> None:
        await self._calls.make(self._letters.measure, bounded=False)

    def _too_late(self, key: str, saved: Saved) -> None:
        task = self._spawn(self._discard(key, saved))
        self._late[key] = task
        task.add_done_callback(lambda _: self._late.pop(key, None))

    async def _discard(self, key: str, saved: Saved) -> None:
        log.warning("dlq_save_late", key=key, hint="the disk took longer than its caller waited; the file is removed")
        await self._calls.make(self._letters.discard, saved, bounded=False)

    # ------------------------------------------------------------------------------------------------- lending

    async def next(self) -> Letter | None:
        """Lend the next file; None at the end of each pass, and while the disk does not answer."""
        while True:
            try:
                lent = await self._calls.make(self._letters.next, late=self._lent_to_nobody)
            except StorageError as error:
                self._calls.tell_unanswered(error)
                return None
            if isinstance(lent, Lent):
                if self._is_ours(lent):
                    return self._letter(lent)
            elif lent is Pass.ENDS:
                return None

    async def find(self, key: str) -> Letter | Whereabouts:
        """Lend the file of this key; UNKNOWN while it is not in the books yet, or the disk would not say."""
        try:
            lent = await self._calls.make(self._letters.find, key, late=self._lent_to_nobody)
        except StorageError as error:
            self._calls.tell_unanswered(error)
            return Whereabouts.UNKNOWN
        if isinstance(lent, Lent):
            return self._letter(lent) if self._is_ours(lent) else Whereabouts.UNKNOWN
        if lent is Whereabouts.NOT_THERE and (self._has_moved or self._token not in key):
            # Another process may hold it. None but us can have saved what bears our token, in slots that were ours.
            copy = await self._places.dead_letter(key, but=self._slots)
            return lent if copy is Copy.NOT_THERE else Whereabouts.UNKNOWN
        return lent

    async def contents(self, letter: Letter) -> Contents:
        """Read a lent file once, and judge it."""
        return await self._reading.dead_letter(letter)

    async def original(self, letter: Letter) -> bytes:
        """Read a lent file as it lies there."""
        return await self._reading.original(letter)

    def settle(self, letter: Letter) -> None:
        """Take a lent file, whose events are in another book now, out of ours."""
        self._waiting.take(Tally(1, letter.events, letter.size))

    async def take_back(self, letter: Letter) -> None:
        """Have a lent file off the disk if it was settled, else in the queue again. It happens, waited for or not."""
        lent = Lent(letter.key, letter.path, letter.size, letter.events, letter.refused)
        task = self._spawn(self._give_back(lent, settled=letter.settled, lines=letter.lines))
        await asyncio.wait({task}, timeout=self._calls.wait)

    async def _give_back(self, lent: Lent, *, settled: bool, lines: bytes = b"") -> None:
        await self._calls.make(self._letters.take_back, lent, settled, lines, bounded=False)

    def _is_ours(self, lent: Lent) -> bool:
        """Tell whether the books have a file; one that was saved too late is never in them, and is about to go."""
        if lent.key not in self._late:
            return True
        self._lent_to_nobody(lent)
        return False

    def _letter(self, lent: Lent) -> Letter:
        return Letter(lent.key, lent.path, lent.size, lent.events, self, refused=lent.refused)

    def _lent_to_nobody(self, lent: Lent | Pass | Whereabouts) -> None:
        if isinstance(lent, Lent):
            self._spawn(self._give_back(lent, settled=False))

    def close(self) -> None:
        """Let go of handles and locks; call it when nothing else runs here any more."""
        self._letters.close()

    # ------------------------------------------------------------------------------------------------- counting

    async def scan(self) -> None:
        """Count what earlier runs left, and see to their temporaries; returns when all was counted or tried.

        How much of the disk is free is looked at, too, because the figure is shown also where nothing is ever saved.
        """
        self._measure_if_due()
        await self._scan.run()

    async def watch(self) -> None:
        """Look twice a second whether the locks of all slots still have their names, until cancelled.

        Files of theirs that are gone are looked for less often.
        """
        while True:
            await self._sleep(WATCH_SECONDS)
            await self._calls.make(self._letters.look_at_slots, bounded=False)
            await self._calls.make(self._letters.look_at_files, bounded=False)
            # A save that came too late leaves the books before the slot does in which it lies.
            if self._letters.slots.lost and not self._late:
                await self._calls.make(self._letters.hand_on_lost, bounded=False)

    async def adopt(self, slots: Iterable[Slot]) -> None:
        """Take over slots of processes that are gone: count their files, lend them, release each when it is empty."""
        slots = list(slots)
        self._scan.owed += bool(slots)
        self._slots += [slot.path for slot in slots]
        await self._calls.make(self._letters.slots.adopt, slots, bounded=False)
        await self.scan()

    async def torn(self) -> list[Torn]:
        """Return the temporaries that are not whole, and whose batches lie in no place that was looked into."""
        return await self._calls.make(self._letters.temporaries.torn)

    async def give_up(self, torn: Torn) -> None:
        """Remove a torn temporary."""
        await self._calls.make(self._letters.temporaries.give_up, torn)

    async def hand_on(self, at_most: int) -> None:
        """Let so many adopted slots go with their files, which are counted again when somebody takes them."""
        await self._calls.make(self._letters.hand_on, at_most, bounded=False)

    async def held(self) -> dict[Path, Held]:
        """Tell of each slot, our own first, the hours of the files in it; `StorageError` if the disk would not say."""
        return await self._calls.make(self._letters.held)

    @property
    def scanning(self) -> bool:
        """There are files that are not in the books yet, and it is being seen to."""
        return bool(self._scan.owed) and not self.hangs

    # ------------------------------------------------------------------------------------------------- below

    def _take_in(self, change: Change, said: Said) -> None:
        books = self._metrics.books
        self._waiting.add(change.waiting)
        books.recovered(change.recovered, self.place)
        books.dropped(change.corrupt, DropReason.CORRUPT, self.place)
        books.dropped(change.evicted.events, DropReason.EVICTED, self.place)
        books.handed_on(change.handed_on, self.place)
        for slot in change.taken:
            self._slots.append(slot)
            self._has_moved = True
            self._scan.owed += 1
            self._spawn(self.scan())  # nothing is lent from a slot that no count has listed
        for slot in change.released:
            self._slots.remove(slot)
        self._metrics.files_evicted += change.evicted.files
        self._said = said

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
