"""Census: counting what earlier runs left, hour by hour.

Owns one reading of some hour folders from their start: the files in them, and what their gzip headers declare.
Promises that each step ends as one of three values: some files Counted, a folder Unreadable, or Done. A folder is whole
only when its last entry was read and nearly all of its files were: where more than `UNREAD_MAX` of them cannot be read,
the folder cannot. `passed_over` names the files that are counted otherwise.
Never changes a file or the books. Blocking: run it in a lane.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ingest.disk import StorageError
from ingest.spool.hours import Walk, look
from ingest.spool.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from ingest.disk import Filesystem


COUNT_CHUNK: Final = 250
UNREAD_MAX: Final = 100


@dataclass(slots=True)
class Counted:
    """Some files of one folder. `whole`: they were the last; then `temporaries` are all of the folder."""

    folder: Path
    tally: Tally = field(default_factory=Tally)
    paths: list[Path] = field(default_factory=list)
    unread: dict[Path, StorageError] = field(default_factory=dict)
    """Files that are there and cannot be read: in the tally as files, with no event and no byte."""
    temporaries: list[Path] = field(default_factory=list)
    whole: bool = False


@dataclass(slots=True)
class Unreadable:
    """A folder that cannot be read to its end. The files counted in it so far are some of its files."""

    folder: Path
    error: StorageError


class Done:
    """All folders were read, or tried."""


class Census:
    """See the module's text."""

    __slots__ = ("_fs", "_passed_over", "_temporaries", "_unread", "_walk")

    def __init__(
        self,
        fs: Filesystem,
        folders: Iterable[Path],
        root_of: Callable[[Path], Path],
        passed_over: Callable[[Path], bool],
    ) -> None:
        self._fs = fs
        self._passed_over = passed_over
        self._walk = Walk(fs, folders, root_of)
        self._temporaries: list[Path] = []
        self._unread = 0
        """In the folder that is being read."""

    def step(self) -> Counted | Unreadable | Done:
        """Count at most `COUNT_CHUNK` files."""
        chunk = self._walk.step(COUNT_CHUNK)
        if chunk is None:
            return Done()
        if chunk.error is not None:
            return self._give_up(chunk.folder, chunk.error)
        counted = Counted(chunk.folder)
        for path in chunk.paths:
            if not self._passed_over(path):
                self._count(path, counted)
        self._unread += len(counted.unread)
        if self._unread > UNREAD_MAX:
            return self._give_up(chunk.folder, next(iter(counted.unread.values())))
        self._temporaries += (path for path in chunk.temporaries if not self._passed_over(path))
        if chunk.last:
            counted.whole = True
            counted.temporaries, self._temporaries = self._temporaries, []
            self._unread = 0
        return counted

    def leave(self, root: Path) -> None:
        """Count nothing more below a slot."""
        if self._walk.leave(root):
            self._temporaries = []
            self._unread = 0

    def close(self) -> None:
        """Close the folder that is being read."""
        self._walk.close()

    def _count(self, path: Path, counted: Counted) -> None:
        try:
            size, events = look(self._fs, path)
        except FileNotFoundError:
            return
        except OSError as error:
            counted.unread[path] = StorageError.of("read", path, error)
            size, events = 0, 0
        counted.paths.append(path)
        counted.tally.add(Tally(1, events or 0, size))

    def _give_up(self, folder: Path, error: StorageError) -> Unreadable:
        self._walk.close()
        self._temporaries.clear()
        self._unread = 0
        return Unreadable(folder, error)
