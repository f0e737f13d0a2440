"""The one place that touches files dangerously.

Owns: every call that changes a file system (`Filesystem`, injected everywhere so that a test can cut the power between
any two of them), the order of write, sync and rename that makes such a change survive, the locks of slots, and
`StorageError`.

Promises, in three words that are never mixed:

    written      `write(2)` returned: survives the death of the process, not of the host
    synced       `fdatasync(2)` returned: the bytes survive a power cut, the file's name may not
    published    synced, then renamed or linked, then its folder synced: name and bytes survive together

    append       all of the bytes are written, or none of them are left in the file, or `TornTail` says that some may be
    publish      under the name lies the old file or the whole new one, at every instant and after every crash
    publish_new  the same, and a name that exists already is never replaced
    Slot         at most one process holds a slot; the kernel frees it however that process ends

Never: reads a file's content, knows what a key or an event is, retries, logs. All of it blocks: run it in an executor,
except `append`, which is one `write(2)` into the page cache.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Bytes: TypeAlias = bytes | bytearray | memoryview

FILE_MODE = 0o640
FOLDER_MODE = 0o750
LOCK_NAME = "lock"
TEMPORARY_SUFFIX = ".tmp"
PUBLISH_ATTEMPTS = 5
SYNCED_MAX = 1024

_CHECK_VOLUME = "the device failed: check the kernel log and the volume, then replace it"
_CHECK_OWNER = "let the process's user write there (owner, mode, security policy)"

# errno -> (what the operator can do, whether the same call may succeed later with nobody doing anything).
_ADVICE: dict[int, tuple[str, bool]] = {
    errno.ENOSPC: ("the volume is full: free space or grow it", True),
    errno.EDQUOT: ("the disk quota is used up: raise it or free space", True),
    errno.EIO: (_CHECK_VOLUME, False),
    errno.EROFS: ("the volume is read-only: if it was remounted so after an error, check the kernel log", False),
    errno.EACCES: (_CHECK_OWNER, False),
    errno.EPERM: (_CHECK_OWNER + "; for link: a file system with hard links", False),
    errno.EOPNOTSUPP: ("this file system lacks the operation: use a local disk", False),
    errno.EINVAL: ("this file system lacks the operation: use a local disk", False),
    errno.EXDEV: ("the folders lie on two volumes: put them on one", False),
    errno.EMLINK: ("the file system allows no more entries of this kind in one folder", False),
    errno.ENOENT: ("a folder above it vanished: something else removes files there", True),
    errno.ENOTDIR: ("a file is where a folder should be: move it away", False),
    errno.EISDIR: ("a folder is where a file should be: move it away", False),
    errno.EEXIST: ("the name is taken by something else: move it away", False),
    errno.ENOTEMPTY: ("the folder holds something else: move it away", False),
    errno.ENAMETOOLONG: ("shorten the prefix, the directory or the host name", False),
    errno.EFBIG: ("the file would exceed the limit of the file system or of RLIMIT_FSIZE", False),
    errno.ENOLCK: ("the file system gives no locks: mount it with locking or use a local disk", False),
    errno.EMFILE: ("the process is out of file descriptors: raise its limit or lower MAX_CONNECTIONS", True),
    errno.ENFILE: ("the host is out of file descriptors", True),
    errno.ENOMEM: ("the host is out of memory", True),
    errno.EAGAIN: ("the resource was busy", True),
    errno.EBUSY: ("the resource was busy", True),
    errno.ETIMEDOUT: ("the network disk did not answer", True),
    errno.ESTALE: ("the network disk lost the file handle: remount it if this lasts", True),
}


class StorageError(Exception):
    """A read or write of durable storage (a file, an object) that failed, and what to do about it.

    `operation` is what was tried, `subject` the path or key, `hint` the operator's next step. `transient`: the same
    call may succeed later with nobody doing anything. `errno` is set when the operating system said no. `cause` is what
    the log shows beside the hint: the `error` that was met, by type and text, and what else is known of it.
    """

    def __init__(
        self,
        operation: str,
        subject: str | Path,
        hint: str,
        *,
        transient: bool,
        errno: int | None = None,
        cause: Mapping[str, str | int] | None = None,
    ) -> None:
        super().__init__(operation, subject, hint)
        self.operation = operation
        self.subject = str(subject)
        self.hint = hint
        self.transient = transient
        self.errno = errno
        self.cause = cause or {}

    @classmethod
    def of(cls, operation: str, subject: str | Path, error: OSError) -> Self:
        """Say what the operating system's error means. It is matched by number, never by text."""
        hint, transient = _ADVICE.get(error.errno or 0, (error.strerror or type(error).__name__, False))
        return cls(operation, subject, hint, transient=transient, errno=error.errno)

    def __str__(self) -> str:
        name = f" [{errno.errorcode.get(self.errno, self.errno)}]" if self.errno is not None else ""
        error = f" ({self.cause['error']})" if "error" in self.cause else ""
        return f"{self.operation} {self.subject}{name}: {self.hint}{error}"


class TornTail(StorageError):  # noqa: N818 - a state of the file, named as the contract names it
    """An append failed and could not be undone: the file may end in bytes that were never acknowledged."""


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


# ---------------------------------------------------------------------------------------------------- append


def create(fs: Filesystem, path: Path, root: Path, *, sync: bool, synced: set[Path] | None = None) -> int:
    """Open a new file for `append`, with the missing folders below `root`; `StorageError` if the name is taken.

    With `sync` its name and every new folder above it are on the device when this returns: bytes that are synced into a
    file without a name are lost all the same. `synced` is that of `make_dirs`.
    """
    fd = _open_new(fs, path, os.O_WRONLY | os.O_APPEND, path.parent, root, synced, sync=sync)
    # Crash point "created": an empty file with or without a name; nothing is acknowledged yet.
    if sync:
        try:
            _sync_folder(fs, path.parent)
        except StorageError:
            _discard(fs, path)
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
            _write_rest(fs, fd, data, done)
    except OSError as error:
        _roll_back(fs, fd, size, StorageError.of("write", subject, error), sync=sync_roll_back)
    return size + len(data)


def _write_rest(fs: Filesystem, fd: int, data: Bytes, done: int) -> None:
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


# --------------------------------------------------------------------------------------------------- publish


def publish(
    fs: Filesystem,
    path: Path,
    data: Bytes,
    *,
    sync: bool = True,
    root: Path | None = None,
    synced: set[Path] | None = None,
    temporary_in: Path | None = None,
) -> None:
    """Put a whole file under `path`, replacing what is there. `StorageError`: the old file, or none, is still there.

    One exception: if only the last step fails, the folder's sync, the new file stands under its name but a power cut
    may bring back the old one. It is left standing, since to remove it could remove the only copy.
    With `root`, missing folders below it are made (`synced` as in `make_dirs`); without it the folder must exist.
    `temporary_in` is where the temporary goes (same volume; by default beside the file). `sync=False` is for what need
    not survive a power cut.
    """
    temporary = _write_temporary(fs, path, data, temporary_in or path.parent, root, synced, sync=sync)
    # Crash point "temporary": the bytes are synced, the name is not given yet. The temporary stays behind; whoever
    # owns the folder finds by `published_path` what it was to become, and removes or salvages it.
    try:
        # After the sync of the bytes, never before: the rename may reach the device first, and a power cut would
        # then leave the name on an empty file, and the old one gone.
        fs.rename(temporary, path)
    except OSError as error:
        _discard(fs, temporary)
        raise StorageError.of("rename", path, error) from error
    # Crash point "renamed": old or new file, each whole. Nobody was told that it is published.
    if sync:
        _sync_folder(fs, path.parent)


def publish_new(
    fs: Filesystem,
    path: Path,
    data: Bytes,
    *,
    root: Path | None = None,
    synced: set[Path] | None = None,
    temporary_in: Path | None = None,
) -> bool:
    """Put a whole file under `path` only if nothing has that name; False, and no change, if something does.

    `link(2)` is the condition: the kernel refuses a name that exists, so two writers can never both win. Both answers
    mean that a whole file is published under the name. The other arguments are those of `publish`.
    """
    temporary = _write_temporary(fs, path, data, temporary_in or path.parent, root, synced, sync=True)
    try:
        try:
            fs.link(temporary, path)
        except FileExistsError:
            # Whoever linked it synced its bytes before, but may have died, or be about to, before the folder's sync.
            # False makes the caller remove its own copy, so the name must survive from here on.
            _sync_folder(fs, path.parent)
            return False
        except OSError as error:
            raise StorageError.of("link", path, error) from error
        # Crash point "linked": two names for one whole file, or only the temporary. Nobody was told.
        try:
            _sync_folder(fs, path.parent)
        except StorageError:
            # A try that failed must not look like "it exists already" to the next one: after a failed sync the kernel
            # may report success for a name that never reached the device. Only we can have made this name.
            _discard(fs, path)
            raise
        return True
    finally:
        # Last, and not synced: if a power cut brings the temporary back it is a second name of a published file.
        _discard(fs, temporary)


def published_path(temporary: Path) -> Path | None:
    """Return the path that a temporary beside its target was to get; None if this is no temporary's name."""
    name = temporary.name
    if not (name.startswith(".") and name.endswith(TEMPORARY_SUFFIX)):
        return None
    target, dot, _ = name[1 : -len(TEMPORARY_SUFFIX)].rpartition(".")
    return temporary.with_name(target) if dot and target else None


def _write_temporary(
    fs: Filesystem,
    path: Path,
    data: Bytes,
    folder: Path,
    root: Path | None,
    synced: set[Path] | None,
    *,
    sync: bool,
) -> Path:
    temporary = folder / f".{path.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}"
    fd = _open_new(fs, temporary, os.O_WRONLY, path.parent, root, synced, sync=sync)
    operation = "write"
    try:
        try:
            # A temporary is deleted when it fails, so unlike an append it needs no roll-back.
            _write_rest(fs, fd, data, 0)
            if sync:
                operation = "fdatasync"
                fs.fdatasync(fd)
        finally:
            fs.close(fd)
    except OSError as error:
        _discard(fs, temporary)
        raise StorageError.of(operation, path, error) from error
    return temporary


def _open_new(
    fs: Filesystem,
    path: Path,
    flags: int,
    folder: Path,
    root: Path | None,
    synced: set[Path] | None,
    *,
    sync: bool,
) -> int:
    attempt = 1
    while True:
        try:
            if root is not None:
                make_dirs(fs, folder, root, sync=sync, synced=synced)
            return fs.open(path, flags | os.O_CREAT | os.O_EXCL, FILE_MODE)
        except (OSError, StorageError) as error:
            # `prune` may remove an emptied folder at any instant until there is a file in it: make it again.
            if error.errno != errno.ENOENT or root is None or attempt == PUBLISH_ATTEMPTS:
                raise error if isinstance(error, StorageError) else StorageError.of("open", path, error) from error
        attempt += 1


def _sync_folder(fs: Filesystem, folder: Path) -> None:
    try:
        fs.fsync_dir(folder)
    except OSError as error:
        raise StorageError.of("fsync", folder, error) from error


def _discard(fs: Filesystem, path: Path) -> None:
    with suppress(OSError):
        fs.unlink(path)


# --------------------------------------------------------------------------------------------------- folders


def make_dirs(fs: Filesystem, path: Path, root: Path, *, sync: bool, synced: set[Path] | None = None) -> None:
    """Make the missing folders from `root` down to `path`, and `root` itself with what is above it.

    With `sync`, each folder's name is on the device when this returns, also that of a folder found in place: a process
    that was killed between `mkdir` and the sync left it there. `synced` remembers which were seen to, and spares the
    repetition; give each root its own, empty set. `root`, if it is in place, is the operator's and taken as it is.
    """
    folders = [path, *path.parents]
    if root not in folders:
        raise ValueError(f"{path} is not below {root}")
    below = folders[: folders.index(root)]
    for folder in _missing(root):
        if _mkdir(fs, folder) and sync:
            _sync_folder(fs, folder.parent)
    for folder in reversed(below):
        made = _mkdir(fs, folder)
        # Crash point "mkdir": the folder may vanish in a power cut with all that is in it, however well that is synced.
        if sync and (made or synced is None or folder not in synced):
            _sync_folder(fs, folder.parent)
            if synced is not None:
                if len(synced) >= SYNCED_MAX:
                    synced.clear()
                synced.add(folder)


def prune(fs: Filesystem, folder: Path, root: Path) -> None:
    """Remove `folder` and its parents below `root` while they are empty. Never raises: a folder left is only untidy."""
    while folder != root and root in folder.parents:
        try:
            fs.rmdir(folder)
        except FileNotFoundError:
            pass  # somebody else was quicker; the parent may be empty now
        except OSError:
            return
        folder = folder.parent


def _missing(root: Path) -> Iterator[Path]:
    if root.is_dir():
        return
    for folder in (*reversed(root.parents), root):
        if not folder.is_dir():
            yield folder


def _mkdir(fs: Filesystem, folder: Path) -> bool:
    try:
        fs.mkdir(folder)
    except FileExistsError as error:
        if folder.is_dir():
            return False
        # `prune` may have removed it between the two looks: then it is missing, and `_open_new` makes it again.
        missing = not os.path.lexists(folder)
        raise StorageError.of("mkdir", folder, OSError(errno.ENOENT if missing else errno.ENOTDIR, "")) from error
    except OSError as error:
        raise StorageError.of("mkdir", folder, error) from error
    return True


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


# ----------------------------------------------------------------------------------------------------- files


@dataclass(slots=True)
class KeyedFile:
    """A file on disk whose batch waits for the store. `events` is None until the file was inspected."""

    key: str
    path: Path
    size: int
    events: int | None
