"""Victims: which file goes next when there is no room, and what is passed over because the disk does not let it go.

Owns the order: files that the store refuses, then those of the oldest hour. A *round* ends when the next is begun.
Promises:

    passed over   a file that could not be removed is not tried again in its round; a folder in which `FAILURES` could
                  not is left alone until its round ends, or until a file in it is removed
    not for good  in each later round one file that could not be removed is tried again, and one that was never tried
    bounded       the folders that let nothing go cost a save some tries and no reading

Never removes a file, never moves a book, never writes a line.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Final

from ingest.spool.hours import Walk
from ingest.spool.marks import MARKS_MAX, Mark

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from ingest.disk import Filesystem
    from ingest.spool.counting import Counting
    from ingest.spool.holdings import Holdings
    from ingest.spool.marks import Marks
    from ingest.spool.slots import Slots

FAILURES: Final = 3
NAMES: Final = 1_000


class Victims:
    """See the module's text. `hours` lists the folders from which files may go, oldest first."""

    __slots__ = (
        "_counting",
        "_failures",
        "_fs",
        "_holdings",
        "_hours",
        "_marks",
        "_names",
        "_probed",
        "_slots",
        "_stubborn",
        "_tried",
    )

    def __init__(
        self,
        fs: Filesystem,
        slots: Slots,
        marks: Marks,
        holdings: Holdings,
        counting: Counting,
        hours: Callable[[], list[Path]],
    ) -> None:
        self._fs = fs
        self._slots = slots
        self._marks = marks
        self._holdings = holdings
        self._counting = counting
        self._hours = hours
        self._names: deque[Path] = deque()
        """Files that were read and not given yet, oldest first."""
        self._tried: set[Path] = set()
        """Files that could not be removed in this round."""
        self._failures: Counter[Path] = Counter()
        """How many files of a folder were tried for the first time and stayed. Until one goes, or the round ends."""
        self._probed: set[Path] = set()
        """Folders in which a file marked STUCK was tried again in vain. Until one can be removed, or the round ends."""
        self._stubborn: set[Path] = set()
        """Folders that had failures in an earlier round. Until a file in them is removed."""

    def candidates(self) -> Generator[Path, None, None]:
        """Give the files that may go, one after the other; close it when enough went."""
        while (path := self._marks.first_refused()) is not None:
            if self._may_go(path):
                yield path
        yield from self._read_before()
        walk = Walk(self._fs, [folder for folder in self._hours() if not self._is_closed(folder)], self._slots.root)
        try:
            while (chunk := walk.step(NAMES)) is not None:
                self._names.extend(chunk.paths)
                yield from self._read_before()
                if self._is_closed(chunk.folder):
                    walk.leave(chunk.folder)
        finally:
            walk.close()
        yield from filter(self._may_go, list(self._counting.early))

    def failed(self, path: Path) -> None:
        """Take note that a file cannot be removed, or not be looked at."""
        self._tried.add(path)
        if self._marks.has(path, Mark.STUCK):
            self._probed.add(path.parent)
        else:
            self._failures[path.parent] += 1

    def removed_from(self, folder: Path) -> None:
        """Take note that a folder lets files go."""
        self._failures.pop(folder, None)
        self._probed.discard(folder)
        self._stubborn.discard(folder)

    def begin_round(self) -> None:
        """Give what was passed over another chance."""
        failed = self._stubborn | self._failures.keys()
        self._stubborn = {folder for folder in failed if self._holdings.holds_files(folder)}
        self._tried.clear()
        self._failures.clear()
        self._probed.clear()

    def leave(self, root: Path) -> None:
        """Give nothing more below a slot."""
        self._names = deque(path for path in self._names if not path.is_relative_to(root))

    def _read_before(self) -> Iterator[Path]:
        while self._names:
            path = self._names.popleft()
            if self._may_go(path):
                yield path

    def _may_go(self, path: Path) -> bool:
        if path in self._tried:
            return False
        if self._marks.has(path, Mark.STUCK):
            return path.parent not in self._probed
        return self._failures[path.parent] < self._chances(path.parent)

    def _is_closed(self, folder: Path) -> bool:
        chances = self._chances(folder)
        return self._failures[folder] >= chances and (chances > 0 or folder in self._probed)

    def _chances(self, folder: Path) -> int:
        """Return how many files of a folder may be tried for the first time in a round; those that stay are marked."""
        if folder not in self._stubborn:
            return FAILURES
        return 1 if len(self._marks) < MARKS_MAX else 0
