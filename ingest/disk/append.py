"""A file that grows at its end.

Promises that all of the bytes are written, or none of them are left in the file, or `TornTail` says that some may be:

    written      `write(2)` returned: survives the death of the process, not of the host
    synced       `fdatasync(2)` returned: the bytes survive a power cut, the file's name may not

Never reads, never retries. It blocks; only `append`, one `write(2)` into the page cache, is called on the loop.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from ingest.disk.errors import StorageError, TornTail
from ingest.disk.folders import discard, open_new, sync_folder

if TYPE_CHECKING:
    from pathlib import Path

    from ingest.disk.filesystem import Bytes, Filesystem


def create(fs: Filesystem, path: Path, root: Path, *, sync: bool, synced: set[Path] | None = None) -> int:
    """Open a new file for `append`, with the missing folders below `root`; `StorageError` if the name is taken.

    With `sync` its name and every new folder above it are on the device when this returns: bytes that are synced into a
    file without a name are lost all the same. `synced` is that of `make_dirs`.
    """
    fd = open_new(fs, path, os.O_WRONLY | os.O_APPEND, path.parent, root, synced, sync=sync)
    # Crash point "created": an empty file with or without a name; nothing is acknowledged yet.
    if sync:
        try:
            sync_folder(fs, path.parent)
        except StorageError:
            discard(fs, path)
            with suppress(OSError):
                fs.close(fd)
            raise
    return fd


def append(
    fs: Filesystem,
    fd: int,
    data: Bytes,
    size: int,
    *,
    subject: str | Path = "",
    sync_roll_back: bool = False,
) -> int:
    """Write all of `data` at the end of a file that is `size` long, and return its new size.

    `fd` was opened with `O_APPEND`, so that what follows a roll-back lands at the new end and leaves no hole.
    `StorageError`: the file is `size` long again. `TornTail`: it may be longer; write to it no more, and publish a new
    file over its name. With `sync_roll_back` the cut itself is synced before the error is raised: without that, a power
    cut could bring back whole lines of requests that were refused.
    """
    try:
        done = fs.write(fd, data)
        if done < len(data):
            write_all(fs, fd, data, done)
    except OSError as error:
        _roll_back(fs, fd, size, StorageError.of("write", subject, error), sync=sync_roll_back)
    return size + len(data)


def write_all(fs: Filesystem, fd: int, data: Bytes, done: int) -> None:
    """Write what follows the first `done` bytes; `OSError` passes."""
    with memoryview(data) as view:
        while done < len(view):
            with view[done:] as rest:
                taken = fs.write(fd, rest)
            if taken == 0:
                # A regular file never takes nothing without saying why; looping on it would hang the process.
                raise OSError(errno.EIO, "nothing was written")
            done += taken


def _roll_back(fs: Filesystem, fd: int, size: int, reason: StorageError, *, sync: bool) -> None:
    # Crash point "append": killed between the write and this cut, the file ends in bytes nobody was answered for.
    # Recovery may store the whole lines among them (the answer was lost, not refused) and drops the torn one.
    try:
        fs.truncate(fd, size)
        if sync:
            fs.fdatasync(fd)
    except OSError as error:
        torn = TornTail.of("truncate", reason.subject, error)
        raise torn from reason
    raise reason
