"""Hours: the folders in which a slot's files lie, read a step at a time.

Owns how files are found on a disk where there may be a million: `hour_folders` lists `<slot>/<prefix>/dt=…/hr=…` and
reads no file's name, `Walk` reads the names of one folder after the other, at most so many a step.

Promises that a step costs the same however many files there are, and also where most of them were deleted: a folder is
read through one open handle, never twice from its start. That a folder is gone, or cannot be read, is an answer and no
error: one bad folder does not hide the others.

Never: reads more of a file than its header, changes anything. Blocking: run it in an executor.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from ingest import disk
from ingest.disk import StorageError
from ingest.format import codec, parse_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


_DAY = re.compile(r"dt=\d{4}-\d{2}-\d{2}")
_HOUR = re.compile(r"hr=\d{2}")

log = structlog.get_logger()


def hour_folders(fs: disk.Filesystem, roots: Iterable[Path]) -> list[Path]:
    """Return every hour's folder below these roots, under whatever prefix, oldest hour first; no hour is read."""
    hours: list[Path] = []
    pending = list(roots)
    while pending:
        folder = pending.pop()
        try:
            with fs.scandir(folder) as entries:
                below = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            reason = StorageError.of("scandir", folder, error)
            log.error("dlq_folder_unreadable", path=str(folder), hint=reason.hint, errno=reason.errno)
            continue
        if _DAY.fullmatch(folder.name):
            hours += [path for path in below if _HOUR.fullmatch(path.name)]
        else:
            pending += below
    hours.sort(key=lambda path: (path.parent.name, path.name, path))
    return hours


@dataclass(slots=True)
class Chunk:
    """Some names of one folder, sorted. `last`: the folder has been read to its end. `failed`: it cannot be opened."""

    folder: Path
    paths: list[Path] = field(default_factory=list)
    temporaries: list[Path] = field(default_factory=list)
    last: bool = True
    failed: bool = False


class Walk:
    """Reads hour folders in the order given, some names a step. Blocking; for one caller at a time."""

    __slots__ = ("_entries", "_folder", "_folders", "_fs", "_root_of")

    def __init__(self, fs: disk.Filesystem, folders: Iterable[Path], root_of: Callable[[Path], Path]) -> None:
        self._fs = fs
        self._folders = deque(folders)
        self._root_of = root_of
        self._folder = Path()
        self._entries: disk.Entries | None = None

    def step(self, limit: int) -> Chunk | None:
        """Read at most `limit` entries; None when there are no more folders."""
        if self._entries is None:
            if not self._folders:
                return None
            self._folder = self._folders.popleft()
            try:
                self._entries = self._fs.scandir(self._folder)
            except FileNotFoundError:
                return Chunk(self._folder)
            except OSError as error:
                reason = StorageError.of("scandir", self._folder, error)
                log.error("dlq_folder_unreadable", path=str(self._folder), hint=reason.hint, errno=reason.errno)
                return Chunk(self._folder, failed=True)
        try:
            names = [entry.name for entry in islice(self._entries, limit)]
        except OSError as error:
            reason = StorageError.of("readdir", self._folder, error)
            log.error("dlq_folder_unreadable", path=str(self._folder), hint=reason.hint, errno=reason.errno)
            names = []
        chunk = Chunk(self._folder, last=len(names) < limit)
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

    def close(self) -> None:
        """Close the handle of the folder that is being read."""
        entries, self._entries = self._entries, None
        if entries is not None:
            entries.close()


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
