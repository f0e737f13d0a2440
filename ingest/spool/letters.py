"""The dead letters: batches that the store did not take, as files, until it does. Blocking, plain, with one owner.

Owns: the files below its slots (`<slot>/<key>`: the path below the slot is the key), which of them is next, and which
goes when there is no room. All of it runs in one lane's thread, one call after the other, so no field has a lock and no
step is seen half done. `Spool` is the face for the event loop.

The parts, each with one question:

    slots         which folders are ours, and in which a path lies
    marks         what is remembered of single files, because something about them is not as usual
    holdings      what is counted, by hour, and what the books on the loop are still to hear
    counting      what earlier runs left, and what of it is not counted yet
    temporaries   saves that a crash cut short
    victims       which file goes when there is no room
    settling      which counted hours the disk has no more
    room          how much may be taken

Promises:

    save      when it returns, the file is published (temporary, synced, renamed, folder synced) and counted
    next      oldest hour first; one call reads at most `SCAN_LIMIT` names or touches one file, however many there are
    books     a file is lent only after it was counted; `take_change` tells what the calls since the last one counted
    gone      what something else removed is out of the books as soon as that is known, also while no pass is made
    room      at a limit: refuse, or drop the oldest file, those first that the store has refused

Never: puts an object, awaits, judges what is in a file (but for temporaries left by a crash).

How a file is found. A pass lists the hour folders once, walks them oldest first, and reads each through one open handle
in chunks of `SCAN_LIMIT` names. A folder is never read from its start again before the next pass: the front of a folder
that was mostly drained is a long run of deleted entries, and a file that cannot be stored would be met again and again.
`next` ends each pass with ENDS, so that a caller with nothing but bad files pauses instead of spinning.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import closing, suppress
from enum import Enum, auto
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from ingest import disk
from ingest.disk import StorageError
from ingest.format import dlq_key, dlq_path, ledger
from ingest.spool.counting import Counting
from ingest.spool.holdings import Holdings
from ingest.spool.hours import Walk, hour_folders, look
from ingest.spool.marks import ANY, MARKS_MAX, Mark, Marks
from ingest.spool.settling import Settling
from ingest.spool.slots import Slots
from ingest.spool.tally import Change, Tally
from ingest.spool.temporaries import Temporaries
from ingest.spool.victims import Victims
from ingest.spool.waiting import Held, Whereabouts, hour_of, no_ledger, no_note
from ingest.telemetry import DropReason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ingest.spool.room import Room


SCAN_LIMIT: Final = 1_000
TRIES: Final = 32
"""So many files at most are tried in one call to make room."""
AGAIN_AT_ONCE: Final = 100
"""So many files that could not be removed are tried again in one call."""

log = structlog.get_logger()


class DlqFull(StorageError):  # noqa: N818 - a state, not a fault: the queue is at its limit and refuses
    """The queue is at its limit and nothing may be, or can be, evicted."""


class Pass(Enum):
    """`next` without a letter: the pass goes on with the next call, or ends here."""

    GOES_ON = auto()
    ENDS = auto()


class Lent(NamedTuple):
    """A file, and what the books have for it."""

    key: str
    path: Path
    size: int
    events: int
    refused: bool = False
    """It was set aside when it was lent last."""

    @property
    def tally(self) -> Tally:
        """Return what leaves the books with it."""
        return Tally(1, self.events, self.size)


class Saved(NamedTuple):
    """A file that was published, and what it counts."""

    path: Path
    tally: Tally


class Letters:
    """The files below one slot of our own, and below those adopted from processes that are gone."""

    def __init__(
        self,
        fs: disk.Filesystem,
        slots: Sequence[disk.Slot],
        room: Room,
        *,
        token: str,
        only_copies: bool = False,
        salvages: bool = False,
        note: Callable[[Path, bytes], None] = no_note,
        is_settled: Callable[[Path], bool] = no_ledger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`slots[0]` is our own; files whose names have `token` are this process's.

        `only_copies`: what is saved lies in no journal. `salvages`: see `Temporaries`. `note` writes lines into the
        ledger of a slot; a slot stays until that `is_settled`.
        """
        self._fs = fs
        self._room = room
        self._note = note
        self._is_settled = is_settled
        self._token = f"-{token}_"
        self._only_copies = only_copies

        self.slots = Slots(fs, slots)
        self.marks = Marks()
        self.holdings = Holdings()
        self.temporaries = Temporaries(fs, self.slots, self.marks, self.holdings, salvages=salvages)
        self.counting = Counting(fs, self.slots, self.marks, self.holdings, self.temporaries, self._token)
        self.victims = Victims(fs, self.slots, self.marks, self.holdings, self.counting, self._counted_hours)
        self.settling = Settling(fs, self.slots, self.marks, self.holdings, self.counting, clock)

        # The pass of `next`.
        self._walk: Walk | None = None
        self._names: deque[Path] = deque()

    def __repr__(self) -> str:
        return f"<Letters {len(self.slots)} slots, {self.holdings!r}, {self.counting!r}>"

    @property
    def unknown(self) -> int:
        """How many files and folders could not be read when they were counted; a folder may hold many files."""
        return self.counting.unknown

    @property
    def unremoved(self) -> int:
        """How many files are out of the books, and the disk does not let them go."""
        return self.marks.removing

    @property
    def adopted(self) -> int:
        """How many slots of dead processes are held."""
        return len(self.slots) - 1

    @property
    def oldest(self) -> int:
        """Unix time of the oldest event in any file, to the hour; 0 if there is no file."""
        return self.holdings.oldest

    def take_change(self) -> Change:
        """Return what changed in the books since this was last asked."""
        return self.holdings.take_change()

    def check(self) -> None:
        """Hold the fields against each other (DEBUG_CHECKS)."""
        self.marks.check()
        self.holdings.check()
        self.counting.check()

    # ------------------------------------------------------------------------------------------------- saving

    def save(self, key: str, body: bytes, events: int, backlog: int, force: bool) -> Saved:
        """Publish a batch's file and count it, but not in `take_change`: the caller moves the batch's events.

        `DlqFull` if there is no room beside `backlog` bytes (`force`: as long as the disk has some). `StorageError` if
        our slot may be another process's and none is to be had: that one would not count what it did not find.
        """
        self._hold_own()
        path = dlq_path(self.slots.own, key)
        size = len(body)
        self._room.measure()
        if not force and self._room.lacks(self.holdings.held + backlog, size):
            self.look_at_files()  # somebody may have made room
        while not force and self._room.lacks(self.holdings.held + backlog, size):
            if not self._room.evicts or self._room.never_takes(backlog, size) or not self._evict_oldest():
                raise DlqFull("save", key, "grow DLQ_MAX_SIZE_BYTES or the disk, or free space", transient=True)
        self._publish(path, body)
        self.marks.drop(path, Mark.REMOVING | Mark.TOLD)
        saved = Tally(1, events, size)
        self.counting.saved(path)
        self.holdings.add(path, saved)
        self._room.took(size)
        return Saved(path, saved)

    def _publish(self, path: Path, body: bytes) -> None:
        try:
            self.slots.tree_of(path).publish(path, body, only_copy=self._only_copies)
        except disk.NameInDoubt:
            # Our caller still has the batch, so a file that is in nobody's books goes. A publish that failed before
            # that gave no name: then there is nothing to be removed.
            self._take_away(path)
            raise

    def _take_away(self, path: Path) -> None:
        """Remove a file that is in nobody's books; if that fails it is passed over from now on."""
        try:
            self._fs.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError:
            with suppress(StorageError):
                if not disk.exists(self._fs, path):
                    return
            self.marks.add(path, Mark.REMOVING)

    def measure(self) -> None:
        """Look at how much is free, if that is due."""
        self._room.measure()

    def discard(self, saved: Saved) -> None:
        """Take back a `save` whose caller did not wait for it: the batch is where it was."""
        self.holdings.take(saved.path.parent, saved.tally)
        if self.slots.holds(saved.path):
            self._remove(saved.path, saved.tally.size)

    # ------------------------------------------------------------------------------------------------- lending

    def next(self) -> Lent | Pass:
        """Lend the next file, or do one step towards it."""
        if self._names:
            return self._lend(self._names.popleft()) or Pass.GOES_ON
        if self._walk is None:
            self.remove_again()
            hours = [folder for folder in self._counted_hours() if not self._is_passed_over(folder)]
            self._walk = Walk(self._fs, hours, self.slots.root)
        chunk = self._walk.step(SCAN_LIMIT)
        if chunk is not None:
            self._names.extend(chunk.paths)
            if chunk.error is not None:
                self.marks.complain("dlq_folder_unreadable", chunk.folder, chunk.error)
            self.settling.walked(chunk)
            return Pass.GOES_ON
        self._walk = None
        if self.counting.early:
            self._names, self.counting.early = self.counting.early, deque()
            return Pass.GOES_ON
        self.settling.compare()
        self._release_emptied()
        return Pass.ENDS

    def find(self, key: str) -> Lent | Whereabouts:
        """Lend the file of this key; UNKNOWN while it is not counted, is lent, or cannot be read."""
        found = Whereabouts.NOT_THERE
        for slot in [*self.slots.listed, *self.slots.unlisted, *self.slots.lost]:
            path = dlq_path(slot, key)
            if self.marks.has(path, Mark.LENT):
                return Whereabouts.UNKNOWN
            try:
                if self.marks.has(path, Mark.REMOVING) or not disk.exists(self._fs, path):
                    continue
            except StorageError as error:
                self.marks.complain("dlq_file_unreadable", path, error)
                if self._token not in key:
                    # What this process saved it knows without asking; anything else may be there.
                    found = Whereabouts.UNKNOWN
                continue
            if slot in self.slots.lost or not self.counting.is_counted(path.parent):
                return Whereabouts.UNKNOWN
            return self._lend(path) or Whereabouts.UNKNOWN
        return found

    def take_back(self, lent: Lent, settled: bool, lines: bytes = b"") -> None:
        """Have a lent file off the disk if it was `settled`, else in the queue again, set aside or not.

        `lines` are the ledger's, and are written before the file goes. In a slot that another process may hold both
        are left to that one, which has counted the file: it finds the object, and then writes and removes the same.
        """
        path = lent.path
        self.marks.drop(path, Mark.LENT | Mark.REFUSED)
        if settled:
            self._see_to_slot_of(path)
        if not self.slots.holds(path):
            if settled:
                self._forget(path, lent.tally)
            return
        if not settled:
            if lent.refused:
                self.marks.set_aside(path)
            return
        self._forget(path, lent.tally)
        self._note(self.slots.root(path), lines)
        self._remove(path, lent.size)

    def close(self) -> None:
        """Let go of handles and locks; call it when nothing else runs here any more."""
        if self._walk is not None:
            self._walk.close()
            self._walk = None
        self.counting.close()
        self.slots.release_all()

    def _lend(self, path: Path) -> Lent | None:
        if self.marks.has(path, Mark.LENT) or self.counting.has_failed(path.parent):
            return None
        if self.marks.has(path, Mark.REMOVING):
            self._unlink(path)
            return None
        if self._is_passed_over(path.parent):
            return None
        try:
            size, events = look(self._fs, path)
        except FileNotFoundError:
            self.marks.drop(path, Mark.UNREAD | Mark.REFUSED | Mark.STUCK | Mark.TOLD)
            return None
        except OSError as error:
            # No verdict upon the file: the disk would not say. It stays, and is asked again in the next pass.
            self.marks.complain("dlq_file_unreadable", path, StorageError.of("read", path, error))
            return None
        self.counting.was_read(path, Tally(0, events or 0, size))
        self.marks.add(path, Mark.LENT)
        refused = self.marks.has(path, Mark.REFUSED)
        return Lent(dlq_key(self.slots.root(path), path), path, size, events or 0, refused)

    def _is_passed_over(self, folder: Path) -> bool:
        """Tell whether nothing more is lent from a folder that lets nothing be removed: each file is remembered."""
        return self.marks.removing > MARKS_MAX and self.marks.is_stuck(folder)

    def _counted_hours(self) -> list[Path]:
        listing = hour_folders(self._fs, self.slots.listed)
        for folder, error in listing.unreadable.items():
            self.marks.complain("dlq_folder_unreadable", folder, error)
        return [folder for folder in listing.hours if self.counting.is_counted(folder)]

    # ------------------------------------------------------------------------------------------------- removing

    def _forget(self, path: Path, tally: Tally) -> None:
        """Take a file out of the tallies; the books on the loop have it out already."""
        self.holdings.take(path.parent, tally)
        self.counting.forget(path, tally)

    def _remove(self, path: Path, size: int) -> None:
        # Out of the books and not yet off the disk: lent now, it would leave the books twice.
        self.marks.add(path, Mark.REMOVING)
        if self._unlink(path):
            self._room.took(-size)
            self._prune_after(path)

    def remove_again(self) -> None:
        """Try some of the files again that the disk did not let go; one that is gone is done with."""
        for path in self.marks.removing_in_turn(AGAIN_AT_ONCE):
            if self._unlink(path):
                self._prune_after(path)

    def _prune_after(self, path: Path) -> None:
        """Remove the folder of a file that is gone, if it was the last one that counts."""
        if not self.holdings.holds_files(path.parent):
            self.settling.prune(path.parent)

    def _unlink(self, path: Path) -> bool:
        try:
            self._fs.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            if not self.marks.has(path, Mark.STUCK):
                self.marks.complain("dlq_file_not_removed", path, StorageError.of("unlink", path, error))
            return False
        else:
            self.victims.removed_from(path.parent)
        self.marks.drop(path, Mark.REMOVING | Mark.UNREAD | Mark.REFUSED | Mark.STUCK | Mark.TOLD)
        return True

    def _release_emptied(self) -> None:
        """Between two passes: an adopted slot that holds no hour any more is somebody else's to take."""
        for slot in self.slots.adopted:
            listing = hour_folders(self._fs, [slot.path])
            if listing.hours or listing.unreadable or not self._is_settled(slot.path):
                continue
            if self.holdings.counted_below(slot.path) and not self.slots.volume_is_there(slot.path):
                continue
            self.holdings.settle_below(slot.path)
            self.holdings.released(slot.path)
            self.slots.release(slot)
            log.info("dlq_slot_released", path=str(slot.path))

    def held(self) -> dict[Path, Held]:
        """Tell of each slot, our own first, the hours of the files in it."""
        found = {}
        for slot in [held.path for held in self.slots.held]:
            unread = any(Mark.UNREAD in marks for marks in self.marks.below(slot).values())
            known = (
                slot in self.slots.listed and self.counting.is_done_with(slot) and self.temporaries.is_done_with(slot)
            )
            folders = [*self.holdings.folders_below(slot), *self.temporaries.folders_below(slot)]
            found[slot] = Held(frozenset(map(hour_of, folders)), known and not unread)
        return found

    def hand_on(self, at_most: int) -> None:
        """Let slots go with what is in them, those first that are held longest: others wait to be held."""
        idle = [slot for slot in self.slots.adopted if self._is_idle(slot.path)]
        for slot in idle[:at_most]:
            self._leave(slot.path)
            self.holdings.hand_on(slot.path)
            self.slots.release(slot)
            log.info("dlq_slot_handed_on", path=str(slot.path))

    def _is_idle(self, slot: Path) -> bool:
        busy = Mark.LENT | Mark.REMOVING
        if any(marks & busy for marks in self.marks.below(slot).values()):
            return False
        return self.counting.is_done_with(slot) and self.temporaries.is_done_with(slot)

    # ------------------------------------------------------------------------------------------------- locks

    def look_at_slots(self) -> None:
        """See whether each slot is held still, and have nothing more to do with those that another process may hold.

        A slot without its lock's name is anybody's. Ours is taken again, or another if somebody has it.
        """
        for slot in self.slots.held:
            self._see_to_slot(slot)

    def look_at_files(self) -> None:
        """See now and then which files are gone, and which can be removed that could not be."""
        if self.settling.compare_if_due():
            self.remove_again()
            self.victims.begin_round()

    def hand_on_lost(self) -> None:
        """Let go of what is in slots that another process may hold, once nothing is lent from them."""
        for root in list(self.slots.lost):
            if not any(Mark.LENT in marks for marks in self.marks.below(root).values()):
                self.slots.lost.remove(root)
                self.holdings.hand_on(root)
                log.info("dlq_slot_handed_on", path=str(root))

    def _hold_own(self) -> None:
        """Hold our own slot, or another instead; `StorageError` if the disk lets us hold none."""
        own = self.slots.held[0]
        if self._is_held(own):
            return
        lost = self.slots.take_own_again()
        log.warning("slot_taken_again", path=str(own.path))
        if lost is not None:
            self._lose(lost)
            self.holdings.taken(own.path)

    def _see_to_slot_of(self, path: Path) -> None:
        for slot in self.slots.held:
            if path.is_relative_to(slot.path):
                self._see_to_slot(slot)

    def _see_to_slot(self, slot: disk.Slot) -> None:
        if slot.path == self.slots.own:
            try:
                self._hold_own()
            except StorageError as error:
                self.marks.complain("dlq_slot_not_held", slot.lock, error)
        elif not self._is_held(slot):
            self.slots.lose(slot)
            log.warning("dlq_slot_lost", path=str(slot.path), hint="something else removes files in DLQ_DIR")
            self._lose(slot.path)

    def _is_held(self, slot: disk.Slot) -> bool:
        """Tell whether a slot's lock has its name; a disk that would not say is told once, and is no verdict."""
        try:
            is_ours = slot.is_ours()
        except StorageError as error:
            self.marks.complain("dlq_slot_not_looked_at", slot.lock, error)
            return True
        if is_ours:
            self.marks.drop(slot.lock, Mark.TOLD)
        return is_ours

    def _lose(self, root: Path) -> None:
        """Have nothing more to do with a slot, but for what is lent from it."""
        self.counting.leave(root)
        self._leave(root)

    def _leave(self, slot: Path) -> None:
        """Lend nothing more from a slot."""
        self.temporaries.leave(slot)
        for path in self.marks.below(slot):
            self.marks.drop(path, ANY & ~Mark.LENT)
        if self._walk is not None:
            self._walk.leave(slot)
        self._names = deque(path for path in self._names if not path.is_relative_to(slot))
        self.victims.leave(slot)

    # ------------------------------------------------------------------------------------------------- room

    def _evict_oldest(self) -> bool:
        """Drop the first file that can be dropped, counted; False if none of the next ones can."""
        with closing(self.victims.candidates()) as candidates:
            for path in islice(candidates, TRIES):
                lent = self._lend(path)
                if lent is None:
                    if self.marks.has(path, Mark.TOLD):
                        self.victims.failed(path)
                elif self._evict(lent):
                    return True
        return False

    def _evict(self, lent: Lent) -> bool:
        # Off the disk first, unlike `take_back`: a file that cannot be removed makes no room and is not lost.
        path = lent.path
        self.marks.drop(path, Mark.LENT)
        if not self.marks.has(path, Mark.STUCK):
            # Once, however often it is tried. Should the file stay after all and be stored, that counts and not this.
            lines = ledger.dropped(lent.key, DropReason.EVICTED.value, lent.events)
            self._note(self.slots.root(path), lines)
        if not self._unlink(path):
            self.victims.failed(path)
            self.marks.add(path, Mark.STUCK)
            return False
        self.holdings.evicted(path.parent, lent.tally)
        self.counting.forget(path, lent.tally)
        self._room.took(-lent.size)
        log.warning("dlq_evicted", key=lent.key, events=lent.events, hint="the queue is full and DLQ_ON_FULL=evict")
        self._prune_after(path)
        return True
