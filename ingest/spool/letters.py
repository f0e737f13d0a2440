"""The dead letters: batches that the store did not take, as files, until it does. Blocking, plain, with one owner.

Owns: the files below its slots (`<slot>/<key>`: the path below the slot is the key), which of them is next, what is
counted of them, and which goes when there is no room. All of it runs in one lane's thread, one call after the other, so
no field has a lock and no step is seen half done. `Spool` is the face for the event loop.

Promises:

    save      when it returns, the file is published (temporary, synced, renamed, folder synced) and counted
    next      oldest hour first; one call reads at most `SCAN_LIMIT` names or touches one file, however many there are
    books     a file is lent only after it was counted; `take_change` tells what the calls since the last one counted
    count     one call counts one chunk; what cannot be read is told, `unknown`, and tried again in the next count
    room      at a limit: refuse, or drop the oldest file, those first that the store has refused

Never: puts an object, awaits, judges what is in a file (but for temporaries left by a crash).

How a file is found. A pass lists the hour folders once, walks them oldest first, and reads each through one open handle
in chunks of `SCAN_LIMIT` names. A folder is never read from its start again before the next pass: the front of a folder
that was mostly drained is a long run of deleted entries, and a file that cannot be stored would be met again and again.
`next` ends each pass with ENDS, so that a caller with nothing but bad files pauses instead of spinning.

How it is counted. `save` counts what it saved. A `Census` counts what an earlier run left from the gzip headers, chunk
by chunk. A folder is lent from only once all of it is counted, except that names of the chunks counted so far may
already go (`_early`). Files are too many to remember, so each folder has a tally, and when the folder is gone what
remains of its tally (a file somebody removed, a header that rotted after it was counted) is dropped as corrupt or
counted as recovered: an error of one file lasts no longer than its folder. A folder that could be read in part only is
lent from no more until a later count has read it whole; the difference enters the books then.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from enum import Enum, Flag, auto
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from ingest import disk
from ingest.disk import StorageError
from ingest.format import codec, dlq_key, dlq_path, unix_of
from ingest.spool.census import Census, Counted, Done, Unreadable
from ingest.spool.hours import Walk, by_hour, hour_folders, look
from ingest.spool.tally import Change, Tally
from ingest.spool.waiting import Whereabouts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from ingest.spool.room import Room


SCAN_LIMIT: Final = 1_000
MARKS_MAX: Final = 10_000
"""Files that are remembered one by one, because something is wrong with them; beyond it, see where it is used."""

log = structlog.get_logger()


class DlqFull(StorageError):  # noqa: N818 - a state, not a fault: the queue is at its limit and refuses
    """The queue is at its limit and nothing may be, or can be, evicted."""


class Mark(Flag):
    """A reason to remember one path."""

    LENT = auto()
    """From `next` or `find` until `take_back`: nobody else gets it, and its folder's tally is not settled."""
    REMOVING = auto()
    """Not in the books, or no longer, and still on the disk: it is never lent, and removed when the disk lets us."""
    UNREAD = auto()
    """Counted as a file without events, because it could not be read. Until it is read, or gone."""
    REFUSED = auto()
    """Set aside, since the store refuses it: the first to be evicted. Until it is stored, or said to be taken."""
    TOLD = auto()
    """Its trouble is in the log. Until it is read, or its folder is gone."""


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


class Letters:
    """The files below one slot of our own, and below those adopted from processes that are gone."""

    def __init__(self, fs: disk.Filesystem, slots: Sequence[disk.Slot], room: Room, *, token: str) -> None:
        """`slots[0]` is our own; files whose names have `token` are this process's."""
        self.held = 0
        """Bytes of all files that are counted."""
        self.marks: dict[Path, Mark] = {}

        self._fs = fs
        self._own = slots[0].path
        self._room = room
        self._token = f"-{token}_"
        self._change = Change()
        self._tree = disk.Tree(fs, self._own)

        # What is below the slots, as far as it is known.
        self._unlisted = list(slots)
        self._slots: list[disk.Slot] = []
        self._tallies: dict[Path, Tally] = {}
        self._first_in: dict[Path, int] = {}
        """Unix time of the first event that a folder has held since it was last empty."""

        # The count.
        self._census: Census | None = None
        self._uncounted: set[Path] = set()
        """Hours that were found and not counted whole."""
        self._partly: dict[Path, Tally] = {}
        """The part of an uncounted hour that is in the books and in the folder."""
        self._failed: set[Path] = set()
        """Uncounted hours that could not be read to their end. Until they are."""
        self._found = Counted(self._own)
        """A failed hour that is read again, as far as it was read."""
        self._unlistable: set[Path] = set()
        """Folders above the hours that could not be read. Until they are."""
        self._kept: set[Path] = set()
        """Temporaries that could be neither salvaged nor removed. Until they are."""
        self._temporaries: list[tuple[str, Path]] = []
        """Temporaries of counted hours, by the key that they were to get, until somebody takes them."""
        self._unread = 0
        """How many files are marked UNREAD."""
        self._removing = 0
        """How many files are marked REMOVING."""
        self._again: deque[Path] = deque()
        """Files marked UNREAD that this count has still to look at."""
        self._early: deque[Path] = deque()

        # The pass of `next`.
        self._walk: Walk | None = None
        self._names: deque[Path] = deque()

        # What may be evicted, oldest first.
        self._victims: deque[Path] = deque()
        self._refused: dict[Path, None] = {}

    def __repr__(self) -> str:
        folders = f"{len(self._tallies)} hours, {len(self._uncounted)} uncounted"
        return f"<Letters {len(self._slots)} slots, {folders}, {self.held} bytes, {self.unknown} unknown>"

    @property
    def unknown(self) -> int:
        """How many files and folders could not be read when they were counted; a folder may hold many files."""
        return len(self._unlistable) + len(self._failed) + len(self._kept) + self._unread

    @property
    def unremoved(self) -> int:
        """How many files are out of the books, and the disk does not let them go."""
        return self._removing

    @property
    def adopted(self) -> int:
        """How many slots of dead processes are held."""
        return len(self._slots) + len(self._unlisted) - 1

    def take_change(self) -> Change:
        """Return what changed in the books since this was last asked."""
        change, self._change = self._change, Change()
        return change

    def check(self) -> None:
        """Hold the fields against each other (DEBUG_CHECKS)."""
        assert self.held == sum(tally.size for tally in self._tallies.values()), self  # noqa: S101 - it is a check
        unread = sum(Mark.UNREAD in mark for mark in self.marks.values())
        removing = sum(Mark.REMOVING in mark for mark in self.marks.values())
        assert (self._unread, self._removing) == (unread, removing), self  # noqa: S101 - as above
        assert self._failed <= self._uncounted, self  # noqa: S101 - as above
        assert self._partly.keys() <= self._uncounted, self  # noqa: S101 - as above

    # ------------------------------------------------------------------------------------------------- saving

    def save(self, key: str, body: bytes, events: int, backlog: int, force: bool) -> Tally:
        """Publish a batch's file and count it, but not in `take_change`: the caller moves the batch's events.

        `DlqFull` if there is no room beside `backlog` bytes (`force`: as long as the disk has some).
        """
        path = dlq_path(self._own, key)
        size = len(body)
        self._room.measure()
        while not force and self._room.lacks(self.held + backlog, size):
            if not self._room.evicts or self._room.never_takes(backlog, size) or not self._evict_oldest():
                raise DlqFull("save", key, "grow DLQ_MAX_SIZE_BYTES or the disk, or free space", transient=True)
        self._publish(path, body)
        self._unmark(path, Mark.REMOVING | Mark.TOLD)
        saved = Tally(1, events, size)
        self._tally(path.parent).add(saved)
        self._note_first([path])
        self.held += size
        self._room.took(size)
        return saved

    def _publish(self, path: Path, body: bytes) -> None:
        try:
            self._tree.publish(path, body)
        except StorageError:
            # `publish` leaves the file standing if only the folder's sync failed. Our caller still has the batch, so a
            # file that is in nobody's books goes; if even that fails it is passed over from now on.
            try:
                self._fs.unlink(path)
            except FileNotFoundError:
                pass
            except OSError:
                self._mark(path, Mark.REMOVING)
            raise

    @property
    def oldest(self) -> int:
        """Unix time of the oldest event in any file, to the hour; 0 if there is no file."""
        tallies = self._tallies
        held = (unix for folder, unix in self._first_in.items() if folder in tallies and tallies[folder].files > 0)
        return min(held, default=0)

    def measure(self) -> None:
        """Look at how much is free, if that is due."""
        self._room.measure()

    def discard(self, key: str, saved: Tally) -> None:
        """Take back a `save` whose caller did not wait for it: the batch is where it was."""
        path = dlq_path(self._own, key)
        self._tally(path.parent).take(saved)
        self.held -= saved.size
        self._remove(path, saved.size)

    # ------------------------------------------------------------------------------------------------- lending

    def next(self) -> Lent | Pass:
        """Lend the next file, or do one step towards it."""
        if self._names:
            return self._lend(self._names.popleft()) or Pass.GOES_ON
        if self._walk is None:
            if self._removing > MARKS_MAX and not self._unlink(self._first(Mark.REMOVING)):
                return Pass.ENDS  # a disk that lets nothing be removed: what is stored more is remembered one by one
            self._walk = Walk(self._fs, self._counted_hours(), self._root)
        chunk = self._walk.step(SCAN_LIMIT)
        if chunk is not None:
            self._names.extend(chunk.paths)
            if chunk.error is not None:
                self._complain("dlq_folder_unreadable", chunk.folder, chunk.error)
            elif chunk.last and not chunk.paths:
                self._prune(chunk.folder)
            return Pass.GOES_ON
        self._walk = None
        if self._early:
            self._names, self._early = self._early, deque()
            return Pass.GOES_ON
        self._release_emptied()
        return Pass.ENDS

    def find(self, key: str) -> Lent | Whereabouts:
        """Lend the file of this key; UNKNOWN while it is not counted, is lent, or cannot be read."""
        found = Whereabouts.NOT_THERE
        for slot in [*self._slots, *self._unlisted]:
            path = dlq_path(slot.path, key)
            if self._is(path, Mark.LENT):
                return Whereabouts.UNKNOWN
            try:
                if self._is(path, Mark.REMOVING) or not disk.exists(self._fs, path):
                    continue
            except StorageError as error:
                self._complain("dlq_file_unreadable", path, error)
                if self._token not in key:
                    # What this process saved it knows without asking; anything else may be there.
                    found = Whereabouts.UNKNOWN
                continue
            if not self._is_counted(path.parent):
                return Whereabouts.UNKNOWN
            return self._lend(path) or Whereabouts.UNKNOWN
        return found

    def take_back(self, lent: Lent, settled: bool) -> None:
        """Have a lent file off the disk if it was `settled`, else in the queue again, set aside or not."""
        path = lent.path
        self._unmark(path, Mark.LENT | Mark.REFUSED)
        self._refused.pop(path, None)
        if not settled:
            if lent.refused and len(self._refused) < MARKS_MAX:
                self._mark(path, Mark.REFUSED)
                self._refused[path] = None
            return
        self._forget(path, lent.tally)
        self._remove(path, lent.size)

    def close(self) -> None:
        """Let go of handles and locks; call it when nothing else runs here any more."""
        if self._walk is not None:
            self._walk.close()
            self._walk = None
        if self._census is not None:
            self._census.close()
            self._census = None
        for slot in [*self._slots, *self._unlisted]:
            slot.release()

    def _lend(self, path: Path) -> Lent | None:
        if self._is(path, Mark.LENT) or path.parent in self._failed:
            return None
        if self._is(path, Mark.REMOVING):
            self._unlink(path)
            return None
        try:
            size, events = look(self._fs, path)
        except FileNotFoundError:
            self._unmark(path, Mark.UNREAD | Mark.REFUSED | Mark.TOLD)
            return None
        except OSError as error:
            # No verdict upon the file: the disk would not say. It stays, and is asked again in the next pass.
            self._complain("dlq_file_unreadable", path, StorageError.of("read", path, error))
            return None
        self._was_read(path, Tally(0, events or 0, size))
        self._mark(path, Mark.LENT)
        refused = self._is(path, Mark.REFUSED)
        return Lent(dlq_key(self._root(path), path), path, size, events or 0, refused)

    def _counted_hours(self) -> list[Path]:
        listing = hour_folders(self._fs, [slot.path for slot in self._slots])
        for folder, error in listing.unreadable.items():
            self._complain("dlq_folder_unreadable", folder, error)
        return [folder for folder in listing.hours if self._is_counted(folder)]

    def _is_counted(self, folder: Path) -> bool:
        if folder in self._uncounted or not self._unlistable.isdisjoint(folder.parents):
            return False
        return not any(folder.is_relative_to(slot.path) for slot in self._unlisted)

    # ------------------------------------------------------------------------------------------------- removing

    def _forget(self, path: Path, tally: Tally) -> None:
        """Take a file out of the tallies; the books on the loop have it out already."""
        self._tally(path.parent).take(tally)
        self.held -= tally.size
        if path.parent in self._partly and self._token not in path.name:
            self._partly[path.parent].take(tally)

    def _remove(self, path: Path, size: int) -> None:
        # Out of the books and not yet off the disk: lent now, it would leave the books twice.
        self._mark(path, Mark.REMOVING)
        if self._unlink(path):
            self._room.took(-size)
            if self._tally(path.parent).files <= 0:
                self._prune(path.parent)

    def _unlink(self, path: Path) -> bool:
        try:
            self._fs.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._complain("dlq_file_not_removed", path, StorageError.of("unlink", path, error))
            return False
        self._unmark(path, Mark.REMOVING | Mark.UNREAD | Mark.REFUSED | Mark.TOLD)
        return True

    def _prune(self, folder: Path) -> None:
        """Remove an emptied hour and settle what is left of its tally."""
        if not self._is_counted(folder):
            return
        if any(Mark.LENT in mark and path.parent == folder for path, mark in self.marks.items()):
            return  # it is out of the books already, or will be, and not out of the tally
        self._tree_of(folder).prune(folder)
        try:
            if disk.exists(self._fs, folder):
                return
        except StorageError:
            return  # not known to be gone: it is settled when it is
        for path in [path for path in self.marks if path == folder or path.parent == folder]:
            self._unmark(path, ~Mark(0))
            self._refused.pop(path, None)
        self._settle(folder)

    def _settle(self, folder: Path) -> None:
        """Correct the books by what is counted in a folder that holds nothing."""
        rest = self._tallies.pop(folder, Tally())
        self._first_in.pop(folder, None)
        if rest == Tally():
            return
        self.held -= rest.size
        self._change.waiting.take(rest)
        if rest.events > 0:
            self._change.corrupt += rest.events
        else:
            self._change.recovered -= rest.events
        if rest.events or rest.files:
            log.error(
                "dlq_books_corrected",
                folder=str(folder),
                files=rest.files,
                events=rest.events,
                hint="files there were changed or removed by something else",
            )

    # ------------------------------------------------------------------------------------------------- counting

    def adopt(self, slots: Iterable[disk.Slot]) -> None:
        """Take over slots of processes that are gone; each is released when it is empty."""
        self._unlisted.extend(slots)

    def begin_count(self) -> None:
        """Find the hours that are not counted: those of new slots, and all that could not be read before."""
        slots, again = self._unlisted, self._unlistable
        listing = hour_folders(self._fs, [*(slot.path for slot in slots), *again])
        # One step: a slot is lent from as soon as it is listed, so its folders must be known as uncounted by then. A
        # folder that a save makes from here on holds only files that the save counts.
        self._uncounted.update(listing.hours)
        self._unlistable = set(listing.unreadable)
        self._slots += slots
        self._unlisted = []
        for folder, error in listing.unreadable.items():
            self._complain("dlq_folder_unreadable", folder, error)
        for temporary in list(self._kept):
            self._note_temporary(temporary)
        self._again.extend(path for path, mark in self.marks.items() if Mark.UNREAD in mark)
        # Read again while one of its files is lent, a failed hour would be counted with or without that file.
        busy = {path.parent for path, mark in self.marks.items() if Mark.LENT in mark} & self._failed
        folders = sorted(self._uncounted - busy, key=by_hour)
        self._found = Counted(self._own)
        self._census = Census(self._fs, folders, self._root, self._is_passed_over)

    def count(self) -> bool:
        """Count a chunk; False when all was counted, or tried."""
        if self._again:
            self._read_again(self._again.popleft())
            return True
        if self._census is None:
            return False
        step = self._census.step()
        match step:
            case Done():
                self._census = None
                return False
            case Unreadable(folder, error):
                self._failed.add(folder)
                self._found = Counted(folder)
                self._early.clear()
                self._complain("dlq_folder_unreadable", folder, error)
            case Counted(folder):
                if folder in self._failed:
                    self._count_again(step)
                else:
                    self._count_chunk(step)
                if step.whole:
                    self._counted_whole(step)
        return True

    def _read_again(self, path: Path) -> None:
        """Look at a file that could not be read when it was counted."""
        if not self._is(path, Mark.UNREAD) or path.parent in self._failed:
            return
        try:
            size, events = look(self._fs, path)
        except FileNotFoundError:
            self._unmark(path, Mark.UNREAD | Mark.TOLD)
        except OSError as error:
            self._complain("dlq_file_unreadable", path, StorageError.of("read", path, error))
        else:
            self._was_read(path, Tally(0, events or 0, size))

    def _was_read(self, path: Path, found: Tally) -> None:
        """Count what is in a file, if it counted so far as one with nothing in it."""
        if self._is(path, Mark.UNREAD):
            self._count_found(path.parent, found)
            if path.parent in self._partly:
                self._partly[path.parent].add(found)
        self._unmark(path, Mark.UNREAD | Mark.TOLD)

    def _count_chunk(self, step: Counted) -> None:
        self._partly.setdefault(step.folder, Tally()).add(step.tally)
        self._count_found(step.folder, step.tally)
        self._note_first(step.paths)
        self._mark_unread(step)
        if len(self._early) < SCAN_LIMIT and not step.whole:
            self._early.extend(step.paths)

    def _count_again(self, step: Counted) -> None:
        """Collect what is in a failed hour; only when all of it was read the difference to the books is known."""
        self._found.tally.add(step.tally)
        self._found.unread |= step.unread
        self._note_first(step.paths)
        if not step.whole:
            return
        found, self._found = self._found, Counted(self._own)
        for path in [path for path in self.marks if path.parent == step.folder]:
            self._unmark(path, Mark.UNREAD)
        found.tally.take(self._partly.get(step.folder, Tally()))
        self._count_found(step.folder, found.tally)
        self._mark_unread(found)
        self._unmark(step.folder, Mark.TOLD)

    def _counted_whole(self, step: Counted) -> None:
        for temporary in step.temporaries:
            self._note_temporary(temporary)
        self._early.clear()
        self._uncounted.discard(step.folder)
        self._failed.discard(step.folder)
        self._partly.pop(step.folder, None)

    def _note_first(self, paths: Iterable[Path]) -> None:
        for path in paths:
            unix = unix_of(path.name)
            self._first_in[path.parent] = min(unix, self._first_in.get(path.parent, unix))

    def _count_found(self, folder: Path, found: Tally) -> None:
        self._tally(folder).add(found)
        self.held += found.size
        self._change.waiting.add(found)
        if found.events >= 0:
            self._change.recovered += found.events
        else:
            self._change.corrupt -= found.events

    def _mark_unread(self, step: Counted) -> None:
        for path, error in step.unread.items():
            self._mark(path, Mark.UNREAD)
            self._complain("dlq_file_unreadable", path, error)

    def _is_passed_over(self, path: Path) -> bool:
        """Tell what a count passes over: files of this process, and files that are out of the books already."""
        return self._token in path.name or self._is(path, Mark.REMOVING)

    def _note_temporary(self, temporary: Path) -> None:
        target = disk.published_path(temporary)
        if target is not None:
            with suppress(ValueError):
                self._temporaries.append((dlq_key(self._root(temporary), target), temporary))

    def take_temporaries(self) -> list[tuple[str, Path]]:
        """Return the temporaries that were found, by key, for `salvage` or `keep`."""
        taken, self._temporaries = self._temporaries, []
        return taken

    def keep(self, temporary: Path) -> None:
        """Leave a temporary until the next count: its batch may lie in a place that cannot be read now."""
        self._kept.add(temporary)

    def salvage(self, temporary: Path, has_segment: bool) -> None:
        """Remove a temporary if its batch lies elsewhere too; else what is sound in it becomes the batch's file."""
        try:
            counted = self._salvage_step(temporary, has_segment=has_segment)
        except (OSError, StorageError) as error:
            reason = error if isinstance(error, StorageError) else StorageError.of("salvage", temporary, error)
            self._kept.add(temporary)
            self._complain("dlq_temporary_kept", temporary, reason)
            return
        self._kept.discard(temporary)
        self._unmark(temporary, Mark.TOLD)
        if counted is not None:
            self._count_found(temporary.parent, counted)
            log.warning("dlq_temporary_salvaged", path=str(temporary), events=counted.events)

    def _salvage_step(self, temporary: Path, *, has_segment: bool) -> Tally | None:
        target = disk.published_path(temporary)
        counted = None
        if target is not None and not disk.exists(self._fs, target) and not has_segment:
            with disk.Reader(self._fs, temporary) as file:
                found = codec.inspect_gzip(file)
                file.seek(0)
                body = file.read_all() if found.sound else found.body
            if found.events and body is not None:
                self._tree_of(target).publish(target, body)
                counted = Tally(1, found.events, len(body))
        # Crash point: both names stand. The next start finds the key published and only removes the temporary.
        with suppress(OSError):
            self._fs.unlink(temporary)
        return counted

    def _release_emptied(self) -> None:
        """Between two passes: an adopted slot that holds no hour any more is somebody else's to take."""
        for slot in self._slots[1:]:
            listing = hour_folders(self._fs, [slot.path])
            if listing.hours or listing.unreadable:
                continue
            for folder in [folder for folder in self._tallies if folder.is_relative_to(slot.path)]:
                self._settle(folder)
            self._slots.remove(slot)
            slot.release()
            log.info("dlq_slot_released", path=str(slot.path))

    # ------------------------------------------------------------------------------------------------- room

    def _evict_oldest(self) -> bool:
        """Drop the first file that can be dropped, counted; False if there is none."""
        while self._refused:
            path = next(iter(self._refused))
            del self._refused[path]
            lent = self._lend(path)
            if lent is not None:
                return self._evict(lent)
        for refilled in (False, True):
            if not self._victims:
                if refilled:
                    return False
                self._victims.extend(self._oldest())
            while self._victims:
                lent = self._lend(self._victims.popleft())
                if lent is not None:
                    return self._evict(lent)
        return False

    def _evict(self, lent: Lent) -> bool:
        # Off the disk first, unlike `take_back`: a file that cannot be removed makes no room and is not lost.
        self._unmark(lent.path, Mark.LENT)
        if not self._unlink(lent.path):
            return False
        self._forget(lent.path, lent.tally)
        self._room.took(-lent.size)
        self._change.waiting.take(lent.tally)
        self._change.evicted.add(lent.tally)
        log.warning("dlq_evicted", key=lent.key, events=lent.events, hint="the queue is full and DLQ_ON_FULL=evict")
        if self._tally(lent.path.parent).files <= 0:
            self._prune(lent.path.parent)
        return True

    def _oldest(self) -> list[Path]:
        walk = Walk(self._fs, self._counted_hours(), self._root)
        try:
            while (chunk := walk.step(SCAN_LIMIT)) is not None:
                if chunk.paths:
                    return chunk.paths
        finally:
            walk.close()
        return list(self._early)

    # ------------------------------------------------------------------------------------------------- below

    def _tally(self, folder: Path) -> Tally:
        return self._tallies.setdefault(folder, Tally())

    def _tree_of(self, path: Path) -> disk.Tree:
        return self._tree if path.is_relative_to(self._own) else disk.Tree(self._fs, self._root(path))

    def _root(self, path: Path) -> Path:
        for slot in [*self._slots, *self._unlisted]:
            if path.is_relative_to(slot.path):
                return slot.path
        raise ValueError(f"{path} is in no slot")

    def _is(self, path: Path, mark: Mark) -> bool:
        return mark in self.marks.get(path, Mark(0))

    def _first(self, mark: Mark) -> Path:
        return next(path for path, marks in self.marks.items() if mark in marks)

    def _mark(self, path: Path, mark: Mark) -> None:
        before = self.marks.get(path, Mark(0))
        self.marks[path] = before | mark
        self._unread += Mark.UNREAD in mark and Mark.UNREAD not in before
        self._removing += Mark.REMOVING in mark and Mark.REMOVING not in before

    def _unmark(self, path: Path, mark: Mark) -> None:
        before = self.marks.get(path)
        if before is None:
            return
        self._unread -= Mark.UNREAD in mark and Mark.UNREAD in before
        self._removing -= Mark.REMOVING in mark and Mark.REMOVING in before
        if left := before & ~mark:
            self.marks[path] = left
        else:
            del self.marks[path]

    def _complain(self, event: str, path: Path, error: StorageError) -> None:
        """Log the trouble with a path once, not once a pass; of very many, those beyond `MARKS_MAX` not at all."""
        if self._is(path, Mark.TOLD) or len(self.marks) >= MARKS_MAX:
            return
        self._mark(path, Mark.TOLD)
        log.error(event, path=str(path), operation=error.operation, hint=error.hint, errno=error.errno)
