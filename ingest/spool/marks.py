"""Marks: the files that are remembered one by one, because something about them is not as usual.

Owns what is remembered of each path, how many have which mark, and the order in which refused files go when there is no
room. Promises that trouble with a path is logged once, not once a pass, and that what is remembered for want of a
better disk is bounded. Never touches a disk, never counts an event.
"""

from __future__ import annotations

from collections import Counter
from enum import Flag, auto
from itertools import islice
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from pathlib import Path

    from ingest.disk import StorageError


MARKS_MAX: Final = 10_000
"""Files that are remembered one by one, because something is wrong with them; beyond it, see where it is used."""

log = structlog.get_logger()


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
    STUCK = auto()
    """It was to be evicted, which its ledger says, and the disk did not let it go. Until it is gone."""
    TOLD = auto()
    """Its trouble is in the log. Until it is read, or its folder is gone."""


ANY: Final = ~Mark(0)


class Marks:
    """See the module's text."""

    __slots__ = ("_of", "_refused", "_removing", "_stuck", "unread")

    def __init__(self) -> None:
        self.unread = 0
        """How many files are marked UNREAD."""
        self._removing: dict[Path, None] = {}
        """Files marked REMOVING, in the order in which they are tried again."""
        self._stuck: Counter[Path] = Counter()
        """How many of these are in each folder."""
        self._of: dict[Path, Mark] = {}
        self._refused: dict[Path, None] = {}
        """Files marked REFUSED that `first_refused` has not given yet, in the order in which they were set aside."""

    def __len__(self) -> int:
        """Count the paths that are remembered."""
        return len(self._of)

    def has(self, path: Path, mark: Mark) -> bool:
        """Tell whether a path has a mark."""
        return mark in self._of.get(path, Mark(0))

    def having(self, mark: Mark) -> list[Path]:
        """Return all paths that have a mark."""
        return [path for path, marks in self._of.items() if mark in marks]

    @property
    def removing(self) -> int:
        """How many files are marked REMOVING."""
        return len(self._removing)

    def is_stuck(self, folder: Path) -> bool:
        """Tell whether a file of this folder is marked REMOVING."""
        return folder in self._stuck

    def removing_in_turn(self, at_most: int) -> list[Path]:
        """Return some of the files marked REMOVING, each in its turn."""
        found = list(islice(self._removing, at_most))
        for path in found:
            del self._removing[path]
            self._removing[path] = None
        return found

    def of(self, folder: Path) -> list[Path]:
        """Return what is remembered of a folder: its files, and maybe itself."""
        return [path for path in self._of if path == folder or path.parent == folder]

    def below(self, root: Path) -> dict[Path, Mark]:
        """Return what is remembered below a slot."""
        return {path: marks for path, marks in self._of.items() if path.is_relative_to(root)}

    def is_lent_from(self, folder: Path) -> bool:
        """Tell whether a file of this folder is lent."""
        return any(Mark.LENT in mark and path.parent == folder for path, mark in self._of.items())

    def add(self, path: Path, mark: Mark) -> None:
        """Remember a path."""
        before = self._of.get(path, Mark(0))
        self._of[path] = before | mark
        self.unread += Mark.UNREAD in mark and Mark.UNREAD not in before
        if Mark.REMOVING in mark and Mark.REMOVING not in before:
            self._removing[path] = None
            self._stuck[path.parent] += 1

    def drop(self, path: Path, mark: Mark) -> None:
        """Take marks from a path; one without any is forgotten."""
        if Mark.REFUSED in mark:
            self._refused.pop(path, None)
        before = self._of.get(path)
        if before is None:
            return
        self.unread -= Mark.UNREAD in mark and Mark.UNREAD in before
        if Mark.REMOVING in mark and Mark.REMOVING in before:
            del self._removing[path]
            self._stuck[path.parent] -= 1
            if not self._stuck[path.parent]:
                del self._stuck[path.parent]
        if left := before & ~mark:
            self._of[path] = left
        else:
            del self._of[path]

    def set_aside(self, path: Path) -> None:
        """Remember a file that the store refuses, unless too many are already."""
        if len(self._refused) < MARKS_MAX:
            self.add(path, Mark.REFUSED)
            self._refused[path] = None

    def first_refused(self) -> Path | None:
        """Return the file that was set aside first and was not returned since; None if there is none."""
        path = next(iter(self._refused), None)
        if path is not None:
            del self._refused[path]
        return path

    def complain(self, event: str, path: Path, error: StorageError) -> None:
        """Log the trouble with a path once, not once a pass; of very many, those beyond `MARKS_MAX` not at all."""
        if self.has(path, Mark.TOLD) or len(self._of) >= MARKS_MAX:
            return
        self.add(path, Mark.TOLD)
        log.error(event, path=str(path), operation=error.operation, hint=error.hint, errno=error.errno)

    def check(self) -> None:
        """Hold the figures against the marks (DEBUG_CHECKS)."""
        found = len(self.having(Mark.UNREAD)), set(self.having(Mark.REMOVING))
        assert (self.unread, set(self._removing)) == found, (self.unread, self._removing, found)  # noqa: S101 - a check
        assert self._stuck.total() == self.removing, (self._stuck, self.removing)  # noqa: S101 - as above
