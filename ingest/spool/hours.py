"""Hours: the folders in which a slot's files lie, read a step at a time.

Owns how files are found on a disk where there may be a million: `hour_folders` lists `<slot>/<prefix>/dt=…/hr=…` and
reads no file's name, `Walk` reads the names of one folder after the other, at most so many a step.

Promises that a step costs the same however many files there are, and also where most of them were deleted: a folder is
read through one open handle, never twice from its start. A folder that is gone is empty. A folder that cannot be read,
from its start or from some entry on, is a value beside the others and hides none of them.

Never: reads more of a file than its header, changes anything, logs. Blocking: run it in a lane.
"""

from __future__ import annotations

import errno
import re
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ingest import disk
from ingest.disk import StorageError
from ingest.format import codec, parse_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


_DAY = re.compile(r"dt=\d{4}-\d{2}-\d{2}")
_HOUR = re.compile(r"hr=\d{2}")


@dataclass(slots=True)
class Listing:
    """Hour folders, oldest hour first, and the folders above them that cannot be read: each may hold more."""

    hours: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    """Symbolic links that lead to a folder. They are followed, because writing follows them."""
    unreadable: dict[Path, StorageError] = field(default_factory=dict)


def hour_folders(fs: disk.Filesystem, roots: Iterable[Path]) -> Listing:
    """List every hour's folder below these roots, under whatever prefix; no hour is read."""
    found = Listing()
    linked_hours: list[Path] = []
    folders = disk.Folders(fs, roots)
    for folder in folders:
        try:
            with fs.scandir(folder) as entries:
                below = [(Path(entry.path), disk.Kind.of(fs, entry)) for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            _see_if_it_leads_nowhere(fs, folder, found)
            continue
        except OSError as error:
            found.unreadable[folder] = StorageError.of("scandir", folder, error)
            continue
        is_day = _DAY.fullmatch(folder.name) is not None
        for path, kind in below:
            if kind is disk.Kind.FILE or (is_day and not _HOUR.fullmatch(path.name)):
                continue
            if kind is disk.Kind.NOWHERE:
                _see_if_it_leads_nowhere(fs, path, found)
                continue
            if kind is disk.Kind.LINK:
                found.links.append(path)
            if not is_day:
                folders.add(path, kind)
            else:
                (found.hours if kind is disk.Kind.FOLDER else linked_hours).append(path)
    if linked_hours:
        found.hours += disk.new_folders(fs, found.hours, linked_hours, set())
    found.hours.sort(key=by_hour)
    return found


def _see_if_it_leads_nowhere(fs: disk.Filesystem, path: Path, found: Listing) -> None:
    """Tell a folder that is gone, and empty, from a link to one that is not there: a volume that is not mounted."""
    try:
        if disk.leads_nowhere(fs, path):
            found.unreadable[path] = StorageError.of("stat", path, OSError(errno.ENOENT, "its end is not there"))
    except StorageError as error:
        found.unreadable[path] = error


def by_hour(folder: Path) -> tuple[str, str, Path]:
    """Order hour folders by their hour, whatever their slot and prefix."""
    return folder.parent.name, folder.name, folder


@dataclass(slots=True)
class Chunk:
    """Some names of one folder, sorted. `first`: its reading begins with them. `last`: no more of it is read.

    `error`: because it cannot be.
    """

    folder: Path
    paths: list[Path] = field(default_factory=list)
    temporaries: list[Path] = field(default_factory=list)
    first: bool = True
    last: bool = True
    error: StorageError | None = None


class Walk:
    """Reads hour folders in the order given, some names a step. For one caller at a time."""

    __slots__ = ("_entries", "_folder", "_folders", "_fs", "_root_of")

    def __init__(self, fs: disk.Filesystem, folders: Iterable[Path], root_of: Callable[[Path], Path]) -> None:
        self._fs = fs
        self._folders = deque(folders)
        self._root_of = root_of
        self._folder = Path()
        self._entries: disk.Entries | None = None

    def step(self, limit: int) -> Chunk | None:
        """Read at most `limit` entries; None when there are no more folders."""
        first = self._entries is None
        if self._entries is None:
            if not self._folders:
                return None
            self._folder = self._folders.popleft()
            try:
                self._entries = self._fs.scandir(self._folder)
            except (FileNotFoundError, NotADirectoryError):
                return Chunk(self._folder)
            except OSError as error:
                return Chunk(self._folder, error=StorageError.of("scandir", self._folder, error))
        chunk = Chunk(self._folder, first=first)
        names = self._read(self._entries, limit, chunk)
        hour = self._folder.relative_to(self._root_of(self._folder)).as_posix()
        for name in sorted(names):
            path = self._folder / name
            if _is_key(f"{hour}/{name}"):
                chunk.paths.append(path)
            elif disk.published_path(path) is not None:
                chunk.temporaries.append(path)
        if chunk.last:
            self.close()
        return chunk

    def leave(self, root: Path) -> bool:
        """Read nothing more below a slot; tell whether a folder there was being read."""
        self._folders = deque(folder for folder in self._folders if not folder.is_relative_to(root))
        if self._entries is None or not self._folder.is_relative_to(root):
            return False
        self.close()
        return True

    def close(self) -> None:
        """Close the handle of the folder that is being read."""
        entries, self._entries = self._entries, None
        if entries is not None:
            entries.close()

    def _read(self, entries: disk.Entries, limit: int, chunk: Chunk) -> list[str]:
        names: list[str] = []
        try:
            for entry in entries:
                names.append(entry.name)
                if len(names) == limit:
                    chunk.last = False
                    break
        except OSError as error:
            # Not the folder's end: what it still holds is not known.
            chunk.error = StorageError.of("readdir", self._folder, error)
        return names


def look(fs: disk.Filesystem, path: Path) -> tuple[int, int | None]:
    """Return a file's size and the number of events that its header declares."""
    with disk.Reader(fs, path) as file:
        return file.size, codec.event_count(file.read(codec.HEAD_BYTES))


def _is_key(key: str) -> bool:
    try:
        parse_key(key)
    except ValueError:
        return False
    return True
