"""The backlog: segments on disk whose batches wait for the store like dead-letter files.

Owns the segments that nobody writes: those of processes that were killed, in our slot and in slots adopted from them,
and our own whose batch could not be saved to the dead-letter queue. Promises:

    books     a segment's events enter the books in the loop step in which it is listed, and leave them in the step in
              which it is settled, or found to be removed by something else
    own       a segment of this process is never taken for one of a dead process
    unread    a segment or a folder that cannot be read is told, `unknown`, and tried again in the next `adopt`; what
              lies beside it is listed
    copies    a segment whose key has a dead letter too counts for no event: the dead letter counts. While that cannot
              be told, the segment is unread
    slots     an adopted slot is let go once nothing is left in it; or with its segments, where others wait (`hand_on`),
              or where its lock has lost its name: another process may have it (`watch`)

Never appends to a segment, never judges its lines (`reading` does, for recovery), never blocks the loop: `Segments` has
what touches the disk, plain and blocking, and runs in the lane of the journal's disk.

A crash leaves, and here it ends:

    <name>.jsonl            lines; counted by their newlines here, parsed when they are put
    .<name>.jsonl.*.tmp     a rewrite that was not published: removed if the segment, or the dead-letter file of its
                            key, is there; else it is all there is, and takes the segment's name
    .probe.*.tmp            nobody's: removed
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from ingest.disk import (
    LOCK_NAME,
    Reader,
    Removals,
    StorageError,
    exists,
    files_below,
    leads_nowhere,
    prune,
    published_path,
)
from ingest.format import ledger, parse_key, segment_key
from ingest.spool.places import Copy
from ingest.spool.reading import Reading
from ingest.spool.tally import Tally
from ingest.spool.waiting import Held, KeyedFile, Letter, Whereabouts, hour_of, no_ledger, no_note
from ingest.telemetry import DropReason, Place

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from concurrent.futures import Executor
    from pathlib import Path

    from ingest.disk import Filesystem, Lane, Slot
    from ingest.spool.places import Places
    from ingest.spool.waiting import Contents
    from ingest.telemetry import Metrics


CHUNK_BYTES: Final = 1 << 20
WAIT: Final = 10.0
WATCH_SECONDS: Final = 0.5
MOST_TOLD: Final = 1_000

log = structlog.get_logger()


@dataclass(slots=True)
class Names:
    """The names below one slot: segments, temporaries by the key that they were to get, and what may hide more."""

    segments: list[Path] = field(default_factory=list)
    temporaries: list[tuple[str, Path]] = field(default_factory=list)
    unread: list[StorageError] = field(default_factory=list)


class Segments:
    """The part of the backlog that touches the disk. Blocking, for one lane's thread."""

    __slots__ = ("_fs", "_token")

    def __init__(self, fs: Filesystem, token: str) -> None:
        self._fs = fs
        self._token = f"-{token}_"

    def names(self, root: Path) -> Names:
        """List what lies below a slot and is not this process's."""
        found = Names()
        for path in files_below(self._fs, root, found.unread):
            if self._token in path.name:
                continue  # ours, and being written right now, or in the books of those who write
            if path.suffix == ".jsonl" and not path.name.startswith("."):
                found.segments.append(path)
            elif (target := published_path(path)) is not None:
                found.temporaries.append((_key(root, target), path))
            elif path.name != LOCK_NAME:
                self._see_if_it_leads_nowhere(path, found)
        found.segments.sort()
        return found

    def _see_if_it_leads_nowhere(self, path: Path, found: Names) -> None:
        """Add a link whose end is not there, on a volume that is not mounted perhaps: it may hide segments."""
        try:
            if leads_nowhere(self._fs, path):
                found.unread.append(StorageError.of("stat", path, OSError(errno.ENOENT, "its end is not there")))
        except StorageError as error:
            found.unread.append(error)

    def settle_temporary(self, root: Path, temporary: Path, is_copy: bool) -> Path | None:
        """Remove a temporary whose batch lies elsewhere too, or that is no batch's; else make it the segment."""
        target = published_path(temporary)
        assert target is not None  # noqa: S101 - `names` found it by its name
        if not is_copy and _key(root, target) and not exists(self._fs, target):
            # link, not rename: should the segment appear after all, it must not be replaced.
            with suppress(FileExistsError):
                self._fs.link(temporary, target)
                self._fs.fsync_dir(target.parent)
            self._fs.unlink(temporary)
            return target
        self._fs.unlink(temporary)
        prune(self._fs, temporary.parent, root)
        return None

    def count(self, path: Path) -> tuple[int, int]:
        """Return a segment's bytes and its whole lines."""
        size = lines = 0
        with Reader(self._fs, path) as file:
            while chunk := file.read(CHUNK_BYTES):
                size += len(chunk)
                lines += chunk.count(b"\n")
        return size, lines

    def hold(self, own: Slot, held: Collection[Path]) -> bool:
        """Take a slot again whose lock has lost its name, or another one; tell whether that was needed."""
        if own.is_ours():
            return False
        own.take_again(held)
        return True

    def look_at(self, slots: Iterable[Slot]) -> list[tuple[Slot, StorageError | None]]:
        """Return the slots whose lock has lost its name, and those, with the error, of which that cannot be told."""
        found: list[tuple[Slot, StorageError | None]] = []
        for slot in slots:
            try:
                if not slot.is_ours():
                    found.append((slot, None))
            except StorageError as error:
                found.append((slot, error))
        return found

    def is_there(self, path: Path) -> bool:
        """Tell whether a segment is still there; `StorageError` if the disk would not say."""
        return exists(self._fs, path)


class Unread:
    """Segments, temporaries and folders that could not be read when they were listed. Until they are.

    The trouble with a path is logged once, not every time it is met.
    """

    __slots__ = ("_slots", "_told")

    def __init__(self) -> None:
        self._slots: dict[Path, Slot] = {}
        self._told: set[Path] = set()

    def __len__(self) -> int:
        """Count them."""
        return len(self._slots)

    @property
    def paths(self) -> Iterable[Path]:
        """All of them."""
        return self._slots.keys()

    @property
    def slots(self) -> list[Slot]:
        """The slots in which they lie."""
        return list({slot.path: slot for slot in self._slots.values()}.values())

    def add(self, slot: Slot, path: Path, error: StorageError) -> None:
        """Remember one."""
        self._slots[path] = slot
        self.complain(path, error)

    def forget(self, slot: Slot) -> None:
        """Forget those of a slot, which is listed again."""
        for path in [path for path, of in self._slots.items() if of is slot]:
            del self._slots[path]

    def complain(self, path: Path, error: StorageError) -> None:
        """Log that a path cannot be read now."""
        if self.is_news(path):
            log.error("segment_not_read", path=str(path), error=str(error), hint=error.hint)

    def is_news(self, path: Path) -> bool:
        """Tell whether nothing was said of a path yet, and take it as said."""
        if path in self._told:
            return False
        if len(self._told) >= MOST_TOLD:
            self._told.clear()  # a line twice is better than a set without end
        self._told.add(path)
        return True

    def was_read(self, path: Path) -> None:
        """Have the next trouble with this path be news."""
        self._told.discard(path)


class Backlog:
    """Segments in the order of their batches' first events; few, for a process has one per batch in memory."""

    place = Place.BACKLOG

    def __init__(
        self,
        fs: Filesystem,
        own: Slot | None,
        metrics: Metrics,
        lane: Lane,
        executor: Executor,
        places: Places,
        *,
        token: str,
        wait: float = WAIT,
        note: Callable[[Path, bytes], None] = no_note,
        is_settled: Callable[[Path], bool] = no_ledger,
        holds_own: bool = False,
    ) -> None:
        """`own` is the slot in which this process, of this `token`, writes, if it does; `lane` is that of its disk.

        `note` writes lines into the ledger of a slot, in the lane. A slot stays until that `is_settled`.
        With `holds_own` there is no journal that looks after the lock of `own`.
        """
        self._waiting = Tally()
        self._own = own
        self._metrics = metrics
        self._lane = lane
        self._places = places
        self._wait = wait
        self._note = note
        self._is_settled = is_settled
        self._listed: set[Path] = set()
        """Slots that were listed whole."""
        self._segments = Segments(fs, token)
        self._reading = Reading(fs, lane, executor, wait)
        self._adopted: list[Slot] = []
        self._listing = 0
        self._known: dict[Path, KeyedFile] = {}
        self._unread = Unread()
        self._pass: list[KeyedFile] | None = None
        self._lent: set[Path] = set()
        self._holds_own = holds_own
        self._own_root = own.path if own is not None else None
        """Our own slot, as it was last seen: the journal takes another one if its lock is lost."""
        self._strays = False
        """Segments in slots that are not ours any more may be in the books. From the loss until none is lent."""
        self._removals = Removals(fs, lane)

    def __repr__(self) -> str:
        waiting = f"{self.files} files, {self.events} events, {self.size} bytes"
        return f"<Backlog {waiting}, {self.unknown} unknown, {len(self._adopted)} slots adopted>"

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
    def scanning(self) -> bool:
        """There are segments that are not in the books yet, and it is being seen to."""
        return self._listing > 0

    @property
    def adopted(self) -> int:
        """How many slots of dead processes are held."""
        return len(self._adopted)

    @property
    def held_slots(self) -> Collection[Path]:
        """The slots that this process holds, its own included."""
        own = [self._own] if self._own is not None else []
        return tuple(slot.path for slot in [*own, *self._adopted])

    @property
    def oldest(self) -> int:
        """Unix time of the oldest event that waits here; 0 if none does."""
        return min((parse_key(file.key).unix for file in self._known.values()), default=0)

    @property
    def unknown(self) -> int:
        """How many segments and folders could not be read; a folder may hold many segments."""
        return len(self._unread)

    @property
    def unremoved(self) -> int:
        """How many segments are stored, and the disk does not let them go."""
        return len(self._removals)

    async def scan(self) -> None:
        """List what earlier processes left in our own slot."""
        if self._own is not None:
            await self._list(self._own)

    async def adopt(self, slots: Iterable[Slot]) -> None:
        """List the segments of slots whose processes are gone, and try again what could not be read.

        Each slot is released when it is empty.
        """
        slots = list(slots)
        self._adopted += slots
        for slot in [*self._unread.slots, *slots]:
            await self._list(slot)
        self.release_emptied()

    async def watch(self) -> None:
        """Look twice a second whether the slots are ours still, until cancelled; a journal sees to our own itself.

        A slot without its lock's name is anybody's, so what is in it is left to whoever has it.
        """
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if self._adopted:
                await self._look_at_adopted()
            own = self._own
            if own is not None and self._holds_own:
                await self._hold_own(own)
            if own is not None and own.path != self._own_root:
                self._own_root = own.path
                self._strays = True
                await self._list(own)
            if self._strays:
                self._hand_on_strays()

    async def _hold_own(self, own: Slot) -> None:
        try:
            if await self._lane.run(self._segments.hold, own, [slot.path for slot in self._adopted]):
                log.warning("slot_taken_again", path=str(own.path))
        except StorageError as error:
            self._unread.complain(own.lock, error)
        else:
            self._unread.was_read(own.lock)

    async def _look_at_adopted(self) -> None:
        looked_at = list(self._adopted)
        found = dict(await self._lane.run(self._segments.look_at, looked_at))
        for slot in looked_at:
            error = found.get(slot)
            if slot not in found:
                self._unread.was_read(slot.lock)
            elif error is not None:
                self._unread.complain(slot.lock, error)
            elif slot in self._adopted:
                self._strays = True
                self._adopted.remove(slot)
                self._listed.discard(slot.path)
                self._unread.forget(slot)
                slot.release()
                log.warning(
                    "journal_slot_lost", path=str(slot.path), hint="something else removes files in JOURNAL_DIR"
                )

    def _hand_on_strays(self) -> None:
        for path, file in list(self._known.items()):
            if path not in self._lent and self._is_stray(path):
                self._metrics.books.handed_on(file.events, self.place)
                self._forget(path)
        self._strays = any(map(self._is_stray, self._lent))

    def _is_stray(self, path: Path) -> bool:
        return not any(path.is_relative_to(slot) for slot in self.held_slots)

    async def hand_on(self, at_most: int) -> None:
        """Let so many adopted slots go with their segments, which are counted again when somebody takes them."""
        busy = [*self._lent, *self._unread.paths, *self._removals.left]
        idle = [] if self._listing else [slot for slot in self._adopted if not _lies_in(slot, busy)]
        for slot in idle[:at_most]:
            for path, file in list(self._known.items()):
                if slot.path in path.parents:
                    self._metrics.books.handed_on(file.events, self.place)
                    self._forget(path)
            self._adopted.remove(slot)
            self._listed.discard(slot.path)
            slot.release()
            log.info("journal_slot_handed_on", path=str(slot.path))

    def keep(self, key: str, path: Path, size: int, events: int) -> None:
        """Take over a segment of this process: its events come from the upload queue's book."""
        self._add(KeyedFile(key, path, size, events))

    def held(self) -> dict[Path, Held]:
        """Tell of each slot, our own first, the hours of the segments in it that nobody writes."""
        slots = [*([self._own] if self._own is not None else []), *self._adopted]
        here = [*self._known, *self._lent]
        found = {}
        for slot in slots:
            hours = frozenset(hour_of(path.parent) for path in here if slot.path in path.parents)
            sure = not self._listing and slot.path in self._listed and not _lies_in(slot, self._unread.paths)
            found[slot.path] = Held(hours, sure)
        return found

    # ------------------------------------------------------------------------------------------------- lending

    async def next(self) -> Letter | None:
        """Lend the oldest segment not yet lent in this pass; None at the end of each pass."""
        if self._pass is None:
            waiting = [file for path, file in self._known.items() if path not in self._lent]
            self._pass = sorted(waiting, key=lambda file: parse_key(file.key).unix, reverse=True)
        while self._pass:
            file = self._pass.pop()
            if file.path not in self._known or file.path in self._lent:
                continue
            letter = self._lend(file)
            try:
                there = await self._lane.run(self._segments.is_there, file.path, within=self._wait)
            except StorageError as error:
                self._lent.discard(file.path)
                self._unread.complain(file.path, error)
                continue
            except BaseException:
                self._lent.discard(file.path)
                raise
            self._unread.was_read(file.path)
            if there:
                return letter
            if self._is_stray(file.path):
                self._lent.discard(file.path)  # whoever has the slot has stored it
                self._hand_on_strays()
                continue
            self._miss(letter)
        self._pass = None
        return None

    async def find(self, key: str) -> Letter | Whereabouts:
        """Lend the segment of this key; UNKNOWN while it is lent, another process's, or cannot be read."""
        for path, file in self._known.items():
            if file.key == key:
                return Whereabouts.UNKNOWN if path in self._lent else self._lend(file)
        copy = await self._places.segment(key)
        return Whereabouts.NOT_THERE if copy is Copy.NOT_THERE else Whereabouts.UNKNOWN

    async def contents(self, letter: Letter) -> Contents:
        """Read a lent segment once, and judge it."""
        return await self._reading.segment(letter)

    async def original(self, letter: Letter) -> bytes:
        """Read a lent segment as it lies there."""
        return await self._reading.original(letter)

    def settle(self, letter: Letter) -> None:
        """Take a lent segment, whose events are in another book now, out of ours."""
        self._forget(letter.path)

    async def take_back(self, letter: Letter) -> None:
        """Have a lent segment off the disk if it was settled, else in the queue again. It happens without us too."""
        if not letter.settled or self._is_stray(letter.path):
            self._lent.discard(letter.path)  # whoever has a stray's slot has counted it, and finds it stored
            return
        self._places.settled(letter.key)
        root = _root_of(letter)
        removing = self._removals.remove(letter.path, root, partial(self._note, root, letter.lines))
        removing.add_done_callback(lambda _: self._removed(letter.path))
        await asyncio.wait({removing}, timeout=self._wait)

    def close(self) -> None:
        """Let go of the adopted slots."""
        for slot in self._adopted:
            slot.release()
        self._adopted.clear()

    def _removed(self, path: Path) -> None:
        self._lent.discard(path)
        self.release_emptied()

    def _miss(self, letter: Letter) -> None:
        """Take a segment that something else removed out of the books: its events are in no place we know."""
        self._metrics.books.dropped(letter.events, DropReason.CORRUPT, self.place)
        root = _root_of(letter)
        lines = ledger.dropped(letter.key, DropReason.CORRUPT.value, letter.events)
        self._removals.remove(letter.path, root, partial(self._note, root, lines))
        self._forget(letter.path)
        self._lent.discard(letter.path)
        log.error("segment_gone", key=letter.key, events=letter.events, hint="something else removed it")
        self.release_emptied()

    def _lend(self, file: KeyedFile) -> Letter:
        self._lent.add(file.path)
        return Letter(file.key, file.path, file.size, file.events, self)

    def _forget(self, path: Path) -> None:
        known = self._known.pop(path, None)
        if known is not None:
            self._waiting.take(Tally(1, known.events, known.size))

    def _add(self, file: KeyedFile) -> None:
        self._known[file.path] = file
        self._waiting.add(Tally(1, file.events, file.size))

    def release_emptied(self) -> None:
        """Let go of adopted slots in which nothing is left."""
        if self._listing:
            return
        for slot in list(self._adopted):
            here = [*self._known, *self._lent, *self._unread.paths, *self._removals.left]
            if not _lies_in(slot, here) and self._is_settled(slot.path):
                self._adopted.remove(slot)
                self._listed.discard(slot.path)
                slot.release()

    # ------------------------------------------------------------------------------------------------- listing

    async def _list(self, slot: Slot) -> None:
        self._listing += 1
        try:
            names = await self._lane.run(self._segments.names, slot.path)
            self._unread.forget(slot)
            for error in names.unread:
                self._unread.add(slot, slot.path / error.subject, error)
            segments = set(names.segments)
            for key, temporary in names.temporaries:
                if (segment := await self._see_to(slot, key, temporary)) is not None:
                    segments.add(segment)
            for path in sorted(segments):
                await self._list_one(slot, path)
            self._listed.add(slot.path)
        except StorageError as error:
            self._unread.add(slot, slot.path, error)
        finally:
            self._listing -= 1

    async def _see_to(self, slot: Slot, key: str, temporary: Path) -> Path | None:
        """Bring a temporary to its end; the segment that it became, if it became one."""
        copy = await self._places.dead_letter(key) if key else Copy.NOT_THERE
        if copy is Copy.UNKNOWN:
            self._unread.add(slot, temporary, _undecided(key))
            return None
        try:
            return await self._lane.run(self._segments.settle_temporary, slot.path, temporary, copy is Copy.KNOWN)
        except (OSError, StorageError) as error:
            failure = error if isinstance(error, StorageError) else StorageError.of("unlink", temporary, error)
            self._unread.add(slot, temporary, failure)
            return None

    async def _list_one(self, slot: Slot, path: Path) -> None:
        key = _key(slot.path, path)
        if not key:
            if self._unread.is_news(path):
                log.warning("not_a_segment", path=str(path))
            return
        if path in self._known or path in self._lent or path in self._removals.left:
            return
        try:
            size, events = await self._lane.run(self._segments.count, path)
        except FileNotFoundError:
            return
        except (OSError, StorageError) as error:
            failure = error if isinstance(error, StorageError) else StorageError.of("read", path, error)
            self._unread.add(slot, path, failure)
            return
        copy = await self._places.dead_letter(key)
        if copy is Copy.UNKNOWN:
            # It could not be put either: the dead letter may hold more.
            self._unread.add(slot, path, _undecided(key))
            return
        self._unread.was_read(path)
        if copy is Copy.KNOWN:
            events = 0
        self._metrics.books.recovered(events, self.place)
        self._add(KeyedFile(key, path, size, events))
        log.info("segment_found", key=key, events=events, size=size, copy=copy is Copy.KNOWN)


def _root_of(file: KeyedFile) -> Path:
    """Return the slot in which a file lies: the path below it is the key."""
    return file.path.parents[file.key.count("/")]


def _lies_in(slot: Slot, paths: Iterable[Path]) -> bool:
    return any(path.is_relative_to(slot.path) for path in paths)


def _undecided(key: str) -> StorageError:
    return StorageError("find", key, "a folder of DLQ_DIR cannot be read: make it readable", transient=True)


def _key(root: Path, path: Path) -> str:
    try:
        return segment_key(root, path)
    except ValueError:
        return ""
