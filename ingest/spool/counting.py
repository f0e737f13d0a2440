"""Counting: what earlier runs left comes into the books, a chunk at a time, beside all else that is done.

Owns which hours are not counted yet, and why. A `Census` reads them, and what it found enters the `Holdings` here.
Promises:

    begin     finds the hours of new slots, and all that could not be read before
    step      counts one chunk, or looks at one file again; what cannot be read is told, `unknown`, and stays so until a
              later count reads it
    lending   a file is lent only after it was counted. A folder is lent from only once all of it is counted, except
              that names of the chunks counted so far may already go (`early`)

A folder that could be read in part only is lent from no more until a later count has read it whole; the difference
enters the books then.
Never: changes a file, judges what is in one.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from ingest.disk import StorageError
from ingest.spool.census import Census, Counted, Done, Unreadable
from ingest.spool.hours import by_hour, hour_folders, look
from ingest.spool.marks import Mark
from ingest.spool.tally import Tally

if TYPE_CHECKING:
    from pathlib import Path

    from ingest.disk import Filesystem
    from ingest.spool.holdings import Holdings
    from ingest.spool.marks import Marks
    from ingest.spool.slots import Slots
    from ingest.spool.temporaries import Temporaries

EARLY_MAX: Final = 1_000


class Counting:
    """See the module's text. Files whose names have `token` are this process's, which counts them as it saves them.

    A slot that was given up is an exception: the books have forgotten what was saved there before.
    """

    def __init__(
        self,
        fs: Filesystem,
        slots: Slots,
        marks: Marks,
        holdings: Holdings,
        temporaries: Temporaries,
        token: str,
    ) -> None:
        self._fs = fs
        self._slots = slots
        self._marks = marks
        self._holdings = holdings
        self._temporaries = temporaries
        self._token = token
        self._given_up: set[Path] = set()
        """Slots that another process may have held since files of ours were saved there."""
        self._saved: set[Path] = set()
        """Files saved into one of those since, until their hour is counted."""

        self._census: Census | None = None
        self._uncounted: set[Path] = set()
        """Hours that were found and not counted whole."""
        self._partly: dict[Path, Tally] = {}
        """The part of an uncounted hour that is in the books and in the folder."""
        self._failed: set[Path] = set()
        """Uncounted hours that could not be read to their end. Until they are."""
        self._found = Counted(slots.own)
        """A failed hour that is read again, as far as it was read."""
        self._unlistable: set[Path] = set()
        """Folders above the hours that could not be read. Until they are."""
        self._again: deque[Path] = deque()
        """Files marked UNREAD that this count has still to look at."""
        self.early: deque[Path] = deque()
        """Files of the hour that is being counted, which may be lent already."""

    def __repr__(self) -> str:
        return f"<Counting {len(self._uncounted)} hours uncounted, {self.unknown} unknown>"

    @property
    def unknown(self) -> int:
        """How many files and folders could not be read when they were counted; a folder may hold many files."""
        return len(self._unlistable) + len(self._failed) + len(self._temporaries) + self._marks.unread

    def is_counted(self, folder: Path) -> bool:
        """Tell whether all is counted that a folder holds."""
        if folder in self._uncounted or not self._unlistable.isdisjoint(folder.parents):
            return False
        return not any(folder.is_relative_to(slot) for slot in self._slots.unlisted)

    def is_done_with(self, slot: Path) -> bool:
        """Tell whether nothing is left to be counted below a slot that was listed."""
        left = [*self._uncounted, *self._unlistable, *self._again, *self.early]
        return not any(path.is_relative_to(slot) for path in left)

    def has_failed(self, folder: Path) -> bool:
        """Tell whether a folder could be read in part only."""
        return folder in self._failed

    def begin(self) -> None:
        """Find the hours that are not counted: those of new slots, and all that could not be read before."""
        listing = hour_folders(self._fs, [*self._slots.unlisted, *self._unlistable])
        # One step: a slot is lent from as soon as it is listed, so its folders must be known as uncounted by then. A
        # folder that a save makes from here on holds only files that the save counts.
        self._uncounted.update(listing.hours)
        self._unlistable = set(listing.unreadable)
        self._slots.note_listed()
        for folder, error in listing.unreadable.items():
            self._marks.complain("dlq_folder_unreadable", folder, error)
        self._temporaries.note_kept()
        self._again.extend(self._marks.having(Mark.UNREAD))
        # Read again while one of its files is lent, a failed hour would be counted with or without that file.
        busy = {path.parent for path in self._marks.having(Mark.LENT)} & self._failed
        folders = sorted(self._uncounted - busy, key=by_hour)
        self._found = Counted(self._slots.own)
        self._census = Census(self._fs, folders, self._slots.root, self._is_passed_over)

    def step(self) -> bool:
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
                self.early.clear()
                self._marks.complain("dlq_folder_unreadable", folder, error)
            case Counted(folder):
                if folder in self._failed:
                    self._count_again(step)
                else:
                    self._count_chunk(step)
                if step.whole:
                    self._counted_whole(step)
        return True

    def was_read(self, path: Path, found: Tally) -> None:
        """Count what is in a file, if it counted so far as one with nothing in it."""
        if self._marks.has(path, Mark.UNREAD):
            self._holdings.found(path.parent, found)
            if path.parent in self._partly:
                self._partly[path.parent].add(found)
        self._marks.drop(path, Mark.UNREAD | Mark.TOLD)

    def saved(self, path: Path) -> None:
        """Take note of a file that this process saved, and has in its books."""
        if self._is_given_up(path) and not self.is_counted(path.parent):
            self._saved.add(path)

    def forget(self, path: Path, tally: Tally) -> None:
        """Take note that a counted file is no longer in the books."""
        if path.parent in self._partly and not self._is_saved(path):
            self._partly[path.parent].take(tally)
        self._saved.discard(path)

    def leave(self, root: Path) -> None:
        """Count nothing more below a slot: another process may hold it."""
        self._given_up.add(root)

        def stays(path: Path) -> bool:
            return not path.is_relative_to(root)

        self._saved = set(filter(stays, self._saved))
        self._uncounted = set(filter(stays, self._uncounted))
        self._failed = set(filter(stays, self._failed))
        self._unlistable = set(filter(stays, self._unlistable))
        self._partly = {folder: tally for folder, tally in self._partly.items() if stays(folder)}
        self._again = deque(filter(stays, self._again))
        self.early = deque(filter(stays, self.early))
        if not stays(self._found.folder):
            self._found = Counted(self._slots.own)
        if self._census is not None:
            self._census.leave(root)

    def close(self) -> None:
        """Close the folder that is being read."""
        if self._census is not None:
            self._census.close()
            self._census = None

    def check(self) -> None:
        """Hold the fields against each other (DEBUG_CHECKS)."""
        assert self._failed <= self._uncounted, self  # noqa: S101 - it is a check
        assert self._partly.keys() <= self._uncounted, self  # noqa: S101 - as above

    def _read_again(self, path: Path) -> None:
        """Look at a file that could not be read when it was counted."""
        if not self._marks.has(path, Mark.UNREAD) or path.parent in self._failed:
            return
        try:
            size, events = look(self._fs, path)
        except FileNotFoundError:
            self._marks.drop(path, Mark.UNREAD | Mark.TOLD)
        except OSError as error:
            self._marks.complain("dlq_file_unreadable", path, StorageError.of("read", path, error))
        else:
            self.was_read(path, Tally(0, events or 0, size))

    def _count_chunk(self, step: Counted) -> None:
        self._partly.setdefault(step.folder, Tally()).add(step.tally)
        self._holdings.found(step.folder, step.tally)
        self._holdings.note_first(step.paths)
        self._mark_unread(step)
        if len(self.early) < EARLY_MAX and not step.whole:
            self.early.extend(step.paths)

    def _count_again(self, step: Counted) -> None:
        """Collect what is in a failed hour; only when all of it was read the difference to the books is known."""
        self._found.tally.add(step.tally)
        self._found.unread |= step.unread
        self._holdings.note_first(step.paths)
        if not step.whole:
            return
        found, self._found = self._found, Counted(self._slots.own)
        for path in self._marks.of(step.folder):
            self._marks.drop(path, Mark.UNREAD)
        found.tally.take(self._partly.get(step.folder, Tally()))
        self._holdings.found(step.folder, found.tally)
        self._mark_unread(found)
        self._marks.drop(step.folder, Mark.TOLD)

    def _counted_whole(self, step: Counted) -> None:
        for temporary in step.temporaries:
            self._temporaries.note(temporary)
        self.early.clear()
        self._uncounted.discard(step.folder)
        self._failed.discard(step.folder)
        self._partly.pop(step.folder, None)
        self._saved = {path for path in self._saved if path.parent != step.folder}

    def _mark_unread(self, step: Counted) -> None:
        for path, error in step.unread.items():
            self._marks.add(path, Mark.UNREAD)
            self._marks.complain("dlq_file_unreadable", path, error)

    def _is_passed_over(self, path: Path) -> bool:
        """Tell what a count passes over: files of this process, and files that are out of the books already."""
        return self._is_saved(path) or self._marks.has(path, Mark.REMOVING)

    def _is_saved(self, path: Path) -> bool:
        """Tell whether this process has saved a file, and counted it then."""
        return self._token in path.name and (path in self._saved or not self._is_given_up(path))

    def _is_given_up(self, path: Path) -> bool:
        return any(path.is_relative_to(root) for root in self._given_up)
