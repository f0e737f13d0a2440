"""Numbered folders, each held by one process.

Owns the locks. Promises that at most one process holds a slot, and that the kernel frees it however that process ends.
Never removes a slot's folder or its lock file. Somebody else may: then the lock holds nothing any more, for another
process makes a new file of that name and locks that. `is_ours` tells, and `take_again` mends it. A caller that holds
several names those that it holds, because a lock without its name keeps nobody out, its own process included. All of
it blocks.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from ingest.disk.errors import StorageError
from ingest.disk.filesystem import FILE_MODE
from ingest.disk.folders import make_dirs
from ingest.disk.reading import Identity, files_below, has_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from ingest.disk.filesystem import Filesystem

LOCK_NAME = "lock"
ADOPT_AT_ONCE = 8
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
_IN_THE_WAY = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
"""Something is there that lets nobody have the slot, and stays."""
_OF_ONE_SLOT = (*_IN_THE_WAY, errno.EIO, errno.ESTALE, errno.EUCLEAN, errno.EBADMSG)


def _nothing(_: Path) -> bool:
    return False


class Adopted(NamedTuple):
    """Slots that are ours to recover and release, and what kept us from knowing whether there are more."""

    slots: list[Slot]
    unread: list[StorageError]


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
        number, fd = _lock_first_free(fs, base)
        return cls(fs, base / str(number), number, fd)

    @classmethod
    def take(cls, fs: Filesystem, base: Path, number: int) -> Slot | None:
        """Hold this slot, which is there; None if somebody else does."""
        fd = _lock(fs, base, number)
        return None if fd is None else cls(fs, base / str(number), number, fd)

    @classmethod
    def adopt_free(
        cls,
        fs: Filesystem,
        base: Path,
        *,
        at_most: int = ADOPT_AT_ONCE,
        after: int = -1,
        passes_over: Callable[[Path], bool] = _nothing,
        held: Collection[Path] = (),
    ) -> Adopted:
        """Hold the next `at_most` slots that nobody holds and that have files; the caller recovers and releases.

        The next one is the lowest above `after`; the highest is followed by the lowest, so that all have their turn.
        The lock comes first, so that a slot in use costs the same however many files are in it. A slot that cannot be
        read is passed over and told: it may hold files, and the next call finds out. Files that the caller
        `passes_over` are no reason to hold a slot. Those that it has `held` already are not tried.
        """
        found = Adopted([], [])
        try:
            numbers = _numbers(fs, base)
        except StorageError as error:
            found.unread.append(error)
            return found
        for number in sorted(numbers, key=lambda number: (number <= after, number)):
            if len(found.slots) >= at_most:
                break
            if base / str(number) in held:
                continue
            try:
                fd = _lock(fs, base, number)
            except StorageError as error:
                found.unread.append(error)
                if error.errno in _OUT_OF_DESCRIPTORS:
                    break
                continue
            if fd is None:
                continue
            slot = cls(fs, base / str(number), number, fd)
            if _holds_files(fs, slot.path, found.unread, passes_over):
                found.slots.append(slot)
            else:
                slot.release()
        return found

    @property
    def lock(self) -> Path:
        """The file that is locked."""
        return self.path / LOCK_NAME

    def is_ours(self) -> bool:
        """Tell whether the lock that we hold is the one that others meet; `StorageError` if that cannot be told."""
        lock = self.lock
        if self._fd is None:
            return False
        try:
            held = self._fs.fstat(self._fd)
        except OSError as error:
            if error.errno == errno.ESTALE:
                return False
            raise StorageError.of("stat", lock, error) from error
        return held.st_nlink > 0 and has_name(self._fs, lock, Identity.of(held))

    def volume_is_there(self, path: Path) -> bool:
        """Tell whether a path in the slot leads to the volume of the lock that we hold, as far as there is such a path.

        Then a file that is not found was removed. Where the volume is not mounted, nothing is known of its files.
        `StorageError` if the disk would not say.
        """
        if self._fd is None:
            return False
        folder = self.path / LOCK_NAME
        try:
            held = self._fs.fstat(self._fd)
            for folder in (path, *path.parents):
                with suppress(FileNotFoundError, NotADirectoryError):
                    return self._fs.stat(folder).st_dev == held.st_dev
        except OSError as error:
            raise StorageError.of("stat", folder, error) from error
        return False

    def take_again(self, held: Collection[Path] = ()) -> None:
        """Hold a slot after the lock has lost its name: this one, or, if it cannot be had, the first free one.

        Another process may have it, or something else be in its place. `path` and `number` are those of the slot that
        is held then; it is none of those `held` otherwise. One caller at a time.
        """
        base = self.path.parent
        number = self.number
        try:
            make_dirs(self._fs, self.path, base, sync=True)
            fd = _lock(self._fs, base, number)
        except StorageError as error:
            if error.errno not in _IN_THE_WAY:
                raise
            fd = None
        if fd is None:
            number, fd = _lock_first_free(self._fs, base, held)
        self.release()
        self._fd, self.number, self.path = fd, number, base / str(number)

    def release(self) -> None:
        """Let go of the slot; doing so twice does no harm."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with suppress(OSError):
                self._fs.close(fd)


@contextmanager
def kept_free(fs: Filesystem, slot: Path) -> Iterator[bool]:
    """Keep a slot that nobody holds from being taken while its names are read; yield False if somebody holds it.

    Several may do so at once. No file is made: a slot without a lock is nobody's.
    """
    lock = slot / LOCK_NAME
    try:
        fd = fs.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        yield True
        return
    except OSError as error:
        raise StorageError.of("open", lock, error) from error
    try:
        yield _share(fs, fd, lock)
    finally:
        with suppress(OSError):
            fs.close(fd)


@contextmanager
def locked(fs: Filesystem, lock: Path) -> Iterator[None]:
    """Hold the lock of this name, a file that is made if need be and never removed; wait while somebody else does."""
    try:
        fd = fs.open(lock, os.O_RDWR | os.O_CREAT, FILE_MODE)
    except OSError as error:
        raise StorageError.of("open", lock, error) from error
    try:
        try:
            fs.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            raise StorageError.of("flock", lock, error) from error
        yield
    finally:
        with suppress(OSError):
            fs.close(fd)


def _share(fs: Filesystem, fd: int, lock: Path) -> bool:
    try:
        fs.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            return False
        raise StorageError.of("flock", lock, error) from error
    return True


def slot_folders(fs: Filesystem, base: Path) -> list[Path]:
    """Return the folders of all slots, lowest first, whoever holds them; `StorageError` if `base` cannot be read."""
    return [base / str(number) for number in _numbers(fs, base)]


def _lock_first_free(fs: Filesystem, base: Path, held: Collection[Path] = ()) -> tuple[int, int]:
    """Return the lowest number of which nobody holds the slot, and the descriptor that now holds it.

    A slot that another run left and that is bad is passed over, for instance one of another user, or one whose folder
    the disk will not show. The error is raised when a new slot is no better, or when it is not about one slot. None of
    those `held` is tried.
    """
    left: set[int] = set()
    with suppress(StorageError):  # whoever cannot list them finds a new one no better
        left.update(_numbers(fs, base))
    number = 0
    while True:
        if base / str(number) not in held:
            try:
                make_dirs(fs, base / str(number), base, sync=True)
                fd = _lock(fs, base, number)
            except StorageError as error:
                if number not in left or error.errno not in _OF_ONE_SLOT:
                    raise
                fd = None
            if fd is not None:
                return number, fd
        number += 1


def _lock(fs: Filesystem, base: Path, number: int) -> int | None:
    """Return the descriptor that now holds this slot; None if somebody else does."""
    lock = base / str(number) / LOCK_NAME
    try:
        fd = fs.open(lock, os.O_RDWR | os.O_CREAT, FILE_MODE)
    except OSError as error:
        raise StorageError.of("open", lock, error) from error
    try:
        fs.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        with suppress(OSError):
            fs.close(fd)
        if error.errno == errno.EWOULDBLOCK:
            return None
        raise StorageError.of("flock", lock, error) from error
    return fd


def _numbers(fs: Filesystem, base: Path) -> list[int]:
    try:
        names = fs.listdir(base)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError.of("list", base, error) from error
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and str(int(name)) == name)


def _holds_files(fs: Filesystem, slot: Path, unread: list[StorageError], passes_over: Callable[[Path], bool]) -> bool:
    """Tell whether there is a file but the lock, looking no further than the first; add what cannot be read."""
    lock = slot / LOCK_NAME
    with closing(files_below(fs, slot, unread)) as files:
        return any(path != lock and not passes_over(path) for path in files)
