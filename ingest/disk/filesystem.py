"""The seam: every system call that touches a file system.

Owns `Filesystem`, which is injected everywhere so that a test can fail, hang or cut the power between any two calls.
Promises one system call a method (`fsync_dir`: three), and `OSError` from each. Never decides an order, never retries.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

Bytes: TypeAlias = bytes | bytearray | memoryview

FILE_MODE = 0o640
FOLDER_MODE = 0o750


class Filesystem:
    """The real file system: each method is one system call (`fsync_dir`: three) and raises `OSError`."""

    __slots__ = ()

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
