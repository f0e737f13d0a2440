"""The seam: every system call that touches a file system.

Owns `Filesystem`, which is injected everywhere so that a test can fail, hang or cut the power between any two calls.
Promises one system call a method (`fsync_dir`: three; `listdir`, and `scandir` with its entries: as many as the folder
needs), and `OSError` from each. Never decides an order, never retries.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

Bytes: TypeAlias = bytes | bytearray | memoryview

FILE_MODE = 0o640
FOLDER_MODE = 0o750


class Entries(Protocol):
    """The names in one folder, read through one open handle. Each step may raise `OSError`."""

    def __iter__(self) -> Self:
        """Give itself."""

    def __next__(self) -> os.DirEntry[str]:
        """Give the next entry."""

    def __enter__(self) -> Self:
        """Give itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Close the handle."""

    def close(self) -> None:
        """Close the handle."""


class Filesystem:
    """The real file system: each method is one system call (see the module's text) and raises `OSError`."""

    __slots__ = ()

    # What changes a file or a folder.

    def open(self, path: str | Path, flags: int, mode: int = FILE_MODE) -> int:
        """Open a file; the descriptor does not survive exec."""
        return os.open(path, flags, mode)

    def write(self, fd: int, data: Bytes) -> int:
        """Write what the kernel takes in one call; it may be less than all."""
        return os.write(fd, data)

    def fdatasync(self, fd: int) -> None:
        """Return once the file's bytes and its size are on the device."""
        os.fdatasync(fd)

    def truncate(self, fd: int, size: int) -> None:
        """Cut the file to `size`."""
        os.ftruncate(fd, size)

    def close(self, fd: int) -> None:
        """Close a descriptor, and with it every lock it holds."""
        os.close(fd)

    def rename(self, src: str | Path, dst: str | Path) -> None:
        """Give the file another name, replacing what had it."""
        os.rename(src, dst)  # noqa: PTH104 - one system call, spelled as such

    def link(self, src: str | Path, dst: str | Path) -> None:
        """Give the file a second name; `FileExistsError` if that is taken."""
        os.link(src, dst)

    def unlink(self, path: str | Path) -> None:
        """Remove a name."""
        os.unlink(path)  # noqa: PTH108 - one system call, spelled as such

    def mkdir(self, path: str | Path) -> None:
        """Make one folder."""
        os.mkdir(path, FOLDER_MODE)  # noqa: PTH102 - one system call, spelled as such

    def rmdir(self, path: str | Path) -> None:
        """Remove one empty folder."""
        os.rmdir(path)  # noqa: PTH106 - one system call, spelled as such

    def fsync_dir(self, path: str | Path) -> None:
        """Return once the names in this folder are on the device."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    # What only looks.

    def read(self, fd: int, size: int) -> bytes:
        """Read at most `size` bytes from where the descriptor stands; nothing at the file's end."""
        return os.read(fd, size)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Read at most `size` bytes from `offset` on; nothing at the file's end."""
        return os.pread(fd, size, offset)

    def stat(self, path: str | Path) -> os.stat_result:
        """Look at what a name leads to; `FileNotFoundError` if it leads nowhere."""
        return os.stat(path)  # noqa: PTH116 - one system call, spelled as such

    def lstat(self, path: str | Path) -> os.stat_result:
        """Look at the name itself, a symbolic link included."""
        return os.lstat(path)

    def fstat(self, fd: int) -> os.stat_result:
        """Look at an open file."""
        return os.fstat(fd)

    def listdir(self, path: str | Path) -> list[str]:
        """List all names in a folder, in no order; for folders that stay small."""
        return os.listdir(path)  # noqa: PTH208 - names are all that is needed

    def scandir(self, path: str | Path) -> Entries:
        """Open a folder, to read its names step by step."""
        return os.scandir(path)

    def access(self, path: str | Path, mode: int) -> bool:
        """Tell whether this process may do what `mode` says (`os.W_OK` and so on)."""
        return os.access(path, mode)

    def statvfs(self, path: str | Path) -> os.statvfs_result:
        """Look at the volume on which `path` lies."""
        return os.statvfs(path)

    def flock(self, fd: int, operation: int) -> None:
        """Take or drop the lock of an open file; `BlockingIOError` if `LOCK_NB` was asked for and another has it."""
        fcntl.flock(fd, operation)
