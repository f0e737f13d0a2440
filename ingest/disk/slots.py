"""Numbered folders, each held by one process.

Owns the locks. Promises that at most one process holds a slot, and that the kernel frees it however that process ends.
Never removes a slot's folder or its lock file. All of it blocks.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.disk.errors import StorageError
from ingest.disk.filesystem import FILE_MODE, Filesystem
from ingest.disk.folders import make_dirs

if TYPE_CHECKING:
    from collections.abc import Iterable

LOCK_NAME = "lock"


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
    def adopt_free(cls, fs: Filesystem, base: Path, exclude: Iterable[Slot] = ()) -> list[Slot]:
        """Hold every slot that has files in it and that nobody holds, in order; the caller recovers and releases."""
        own = {slot.number for slot in exclude}
        adopted = []
        for number in _numbers(base):
            if number in own or not _holds_files(base / str(number)):
                continue
            slot = cls._try(fs, base, number)
            if slot is None:
                continue
            # Its holder may have emptied it and gone between the look and the lock.
            if _holds_files(slot.path):
                adopted.append(slot)
            else:
                slot.release()
        return adopted

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
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            fs.close(fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return None
            raise StorageError.of("flock", lock, error) from error
        return cls(fs, path, number, fd)


def _numbers(base: Path) -> list[int]:
    try:
        names = os.listdir(base)  # noqa: PTH208 - names are all that is needed
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError.of("list", base, error) from error
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and str(int(name)) == name)


def _holds_files(slot: Path) -> bool:
    return any(name != LOCK_NAME or Path(folder) != slot for folder, _, names in os.walk(slot) for name in names)
