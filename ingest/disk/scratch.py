"""A folder for one run's copies, which goes with the run however that ends.

Owns `<base>/estat-ingest-<random>` and beside it a lock of the same name, held by `flock` for as long as the run lasts.
Promises that a folder whose run was killed is removed by the next run over the same base. Never keeps anything that is
not elsewhere too: nothing is synced. All of it blocks.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ingest.disk.errors import StorageError
from ingest.disk.filesystem import FILE_MODE
from ingest.disk.folders import discard
from ingest.disk.reading import Identity, has_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ingest.disk.filesystem import Filesystem

PREFIX: Final = "estat-ingest-"
_LOCK: Final = ".lock"


def usual_base() -> Path:
    """Return where the system keeps what is temporary (`TMPDIR`)."""
    return Path(tempfile.gettempdir())


@contextmanager
def scratch_folder(fs: Filesystem, base: Path) -> Iterator[Path]:
    """Make a folder below `base`, which is there, and remove it with all that is in it."""
    _sweep(fs, base)
    fd, lock = _hold(fs, base)
    folder = lock.with_suffix("")
    try:
        try:
            fs.mkdir(folder)
        except OSError as error:
            raise StorageError.of("mkdir", folder, error) from error
        yield folder
    finally:
        _remove(fs, folder, lock, fd)


def _hold(fs: Filesystem, base: Path) -> tuple[int, Path]:
    """Return a lock that is held, under a name that others meet."""
    while True:
        lock = base / f"{PREFIX}{secrets.token_hex(8)}{_LOCK}"
        try:
            fd = fs.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, FILE_MODE)
        except OSError as error:
            raise StorageError.of("open", lock, error) from error
        with suppress(BlockingIOError):
            fs.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if has_name(fs, lock, Identity.of(fs.fstat(fd))):
                return fd, lock
        fs.close(fd)  # a sweep took it between its making and our lock


def _sweep(fs: Filesystem, base: Path) -> None:
    try:
        left = [name for name in fs.listdir(base) if name.startswith(PREFIX) and name.endswith(_LOCK)]
    except OSError as error:
        raise StorageError.of("list", base, error) from error
    for lock in (base / name for name in left):
        try:
            fd = fs.open(lock, os.O_RDWR)
        except OSError:  # another sweep was quicker, or it is another user's
            continue
        try:
            fs.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # its run lives
            fs.close(fd)
        else:
            _remove(fs, lock.with_suffix(""), lock, fd)


def _remove(fs: Filesystem, folder: Path, lock: Path, fd: int) -> None:
    """Remove a run's folder, then its lock, which is held until then."""
    shutil.rmtree(folder, ignore_errors=True)
    discard(fs, lock)
    with suppress(OSError):
        fs.close(fd)
