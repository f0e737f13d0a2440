"""Numbered folders, each held by one process.

Owns the locks. Promises that at most one process holds a slot, and that the kernel frees it however that process ends.
Never removes a slot's folder or its lock file. All of it blocks.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import closing, suppress
from typing import TYPE_CHECKING, NamedTuple

from ingest.disk.errors import StorageError
from ingest.disk.filesystem import FILE_MODE
from ingest.disk.folders import make_dirs
from ingest.disk.reading import files_below

if TYPE_CHECKING:
    from pathlib import Path

    from ingest.disk.filesystem import Filesystem

LOCK_NAME = "lock"
ADOPT_AT_ONCE = 8
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class Adopted(NamedTuple):
    """Slots that are ours to recover and release, and what kept us from knowing whether there are more."""

    slots: list[Slot]
    unread: list[StorageError]


# ----------------------------------------------------------------------------------------------------- slots


class Slot:
    """`<base>/<number>`, held by `flock` on `<base>/<number>/lock` for as long as a process lives.

    The kernel drops the lock with the descriptor, so a slot is free the moment its process is gone, however it went.
    Folder and lock file are never removed: a lock on a file that another process is just unlinking would hold nothing.
    """

    __slots__ = ("_fd", "_fs", "number", "path")

    def __init__(self, fs: Filesystem, path: Path, number: int, fd: int) -> None:
        self._fs = fs
        self._fd: int | None = fd
        self.path = path
        self.number = number

    @classmethod
    def take_first_free(cls, fs: Filesystem, base: Path) -> Slot:
        """Hold the lowest slot that nobody holds, made if need be."""
        number = 0
        while True:
            make_dirs(fs, base / str(number), base, sync=True)
            slot = cls._try(fs, base, number)
            if slot is not None:
                return slot
            number += 1

    @classmethod
    def adopt_free(cls, fs: Filesystem, base: Path, *, at_most: int = ADOPT_AT_ONCE) -> Adopted:
        """Hold the lowest `at_most` slots that nobody holds and that have files; the caller recovers and releases.

        The lock comes first, so that a slot in use costs the same however many files are in it. A slot that cannot be
        read is passed over and told: it may hold files, and the next call finds out.
        """
        found = Adopted([], [])
        try:
            numbers = _numbers(fs, base)
        except StorageError as error:
            found.unread.append(error)
            return found
        for number in numbers:
            if len(found.slots) >= at_most:
                break
            try:
                slot = cls._try(fs, base, number)
            except StorageError as error:
                found.unread.append(error)
                if error.errno in _OUT_OF_DESCRIPTORS:
                    break
                continue
            if slot is None:
                continue
            if _holds_files(fs, slot.path, found.unread):
                found.slots.append(slot)
            else:
                slot.release()
        return found

    def release(self) -> None:
        """Let go of the slot; doing so twice does no harm."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with suppress(OSError):
                self._fs.close(fd)

    @classmethod
    def _try(cls, fs: Filesystem, base: Path, number: int) -> Slot | None:
        path = base / str(number)
        lock = path / LOCK_NAME
        try:
            fd = fs.open(lock, os.O_RDWR | os.O_CREAT, FILE_MODE)
        except OSError as error:
            raise StorageError.of("open", lock, error) from error
        try:
            fs.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            with suppress(OSError):
                fs.close(fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return None
            raise StorageError.of("flock", lock, error) from error
        return cls(fs, path, number, fd)


def slot_folders(fs: Filesystem, base: Path) -> list[Path]:
    """Return the folders of all slots, lowest first, whoever holds them; `StorageError` if `base` cannot be read."""
    return [base / str(number) for number in _numbers(fs, base)]


def _numbers(fs: Filesystem, base: Path) -> list[int]:
    try:
        names = fs.listdir(base)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError.of("list", base, error) from error
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and str(int(name)) == name)


def _holds_files(fs: Filesystem, slot: Path, unread: list[StorageError]) -> bool:
    """Tell whether there is a file but the lock, looking no further than the first; add what cannot be read."""
    lock = slot / LOCK_NAME
    with closing(files_below(fs, slot, unread)) as files:
        return any(path != lock for path in files)
