"""Settling: an hour whose files are gone leaves the books, whoever removed them.

Owns the comparison of the hours that are counted with those on the disk, and the removal of emptied ones. Promises:

    gone     a counted hour whose folder is not there is settled by the next `compare`
    bare     so is one in which no counted file is left, though the folder stands because something else lies in it
    known    nothing is settled while the volume is away, while a folder above cannot be read, or while a file of the
             hour is lent: then it is not known what is gone

Never reads a file, never removes one. A comparison reads no name of most hours: the folders are listed, and in
`LOOKS` of them, in their turn, at most `NAMES` names are read.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from ingest import disk
from ingest.disk import StorageError
from ingest.spool.hours import Walk, hour_folders
from ingest.spool.marks import ANY, Mark

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ingest.spool.counting import Counting
    from ingest.spool.holdings import Holdings
    from ingest.spool.hours import Chunk
    from ingest.spool.marks import Marks
    from ingest.spool.slots import Slots

COMPARE_EVERY: Final = 10.0
LOOKS: Final = 50
NAMES: Final = 100


class Settling:
    """See the module's text."""

    __slots__ = (
        "_added",
        "_bare",
        "_clock",
        "_compared_at",
        "_counting",
        "_fs",
        "_holdings",
        "_marks",
        "_slots",
        "_to_look",
    )

    def __init__(
        self,
        fs: disk.Filesystem,
        slots: Slots,
        marks: Marks,
        holdings: Holdings,
        counting: Counting,
        clock: Callable[[], float],
    ) -> None:
        self._fs = fs
        self._slots = slots
        self._marks = marks
        self._holdings = holdings
        self._counting = counting
        self._clock = clock
        self._compared_at = clock()
        self._to_look: deque[Path] = deque()
        """Hours in which files are counted, and whose turn to be looked into is still to come."""
        self._bare = True
        """No counted file was found in the folder that a pass is reading."""
        self._added = 0
        """How many counts there had been when the pass began to read it."""

    def prune(self, folder: Path) -> None:
        """Remove an emptied hour and settle what is left of its tally."""
        if not self._may_settle(folder):
            return
        self._slots.tree_of(folder).prune(folder)
        self._settle_gone(folder)

    def walked(self, chunk: Chunk) -> None:
        """Hear what a pass has read of a folder; one that it read whole without a counted file is settled."""
        if chunk.first:
            self._bare, self._added = True, self._holdings.additions
        self._bare = self._bare and not self._has_counted(chunk)
        if not chunk.last or chunk.error is not None:
            return
        if not chunk.paths:
            self.prune(chunk.folder)
        # A file that was saved meanwhile may lie before the place that was read.
        if self._bare and self._added == self._holdings.additions:
            self._settle_bare(chunk.folder)

    def compare_if_due(self) -> bool:
        """Compare, unless that was done less than `COMPARE_EVERY` ago; tell whether it was done."""
        is_due = self._clock() - self._compared_at >= COMPARE_EVERY
        if is_due:
            self.compare()
        return is_due

    def compare(self) -> None:
        """Settle the hours that are counted and that the disk has no more."""
        self._compared_at = self._clock()
        for slot in self._slots.listed:
            counted = self._holdings.counted_below(slot)
            if not counted:
                continue
            listing = hour_folders(self._fs, [slot])
            if listing.unreadable:
                continue
            for folder in counted.difference(listing.hours):
                if self._may_settle(folder):
                    self._settle_gone(folder)
        self._look()

    def _look(self) -> None:
        """Look into some hours, in turns: something else that lies there keeps a folder that has no file any more."""
        if not self._to_look:
            for slot in self._slots.listed:
                self._to_look.extend(self._holdings.folders_below(slot))
        for _ in range(min(LOOKS, len(self._to_look))):
            folder = self._to_look.popleft()
            if not self._holdings.holds_files(folder) or not self._counting.is_counted(folder):
                continue
            walk = Walk(self._fs, [folder], self._slots.root)
            chunk = walk.step(NAMES)
            walk.close()
            if chunk is not None and chunk.last and chunk.error is None and not self._has_counted(chunk):
                self._settle_bare(folder)

    def _has_counted(self, chunk: Chunk) -> bool:
        return not all(self._marks.has(path, Mark.REMOVING) for path in chunk.paths)

    def _may_settle(self, folder: Path) -> bool:
        # A lent file is out of the books already, or will be, and not out of the tally.
        return self._counting.is_counted(folder) and not self._marks.is_lent_from(folder)

    def _settle_gone(self, folder: Path) -> None:
        try:
            if disk.exists(self._fs, folder):
                return
        except StorageError:
            return  # not known to be gone: it is settled when it is
        remembered = self._marks.of(folder)
        if not remembered and not self._holdings.counts(folder):
            self._holdings.settle(folder)
        elif self._slots.volume_is_there(folder):
            for path in remembered:
                self._marks.drop(path, ANY)
            self._holdings.settle(folder)

    def _settle_bare(self, folder: Path) -> None:
        if not self._holdings.counts(folder) or not self._may_settle(folder):
            return
        if not self._slots.volume_is_there(folder):
            return
        for path in self._marks.of(folder):
            self._marks.drop(path, ANY & ~Mark.REMOVING)
        self._holdings.settle(folder)
