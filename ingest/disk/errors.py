"""The meaning of a failed touch of a disk, or of a store, and what an operator can do about it.

Owns `StorageError`, the one error of durable storage, and the table of what each `errno` means. Promises that an error
is matched by number, never by text. Never logs, never retries.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


_CHECK_VOLUME = "the device failed: check the kernel log and the volume, then replace it"
_CHECK_FILES = "the file system is damaged: check the kernel log, then unmount it and run fsck"
_CHECK_OWNER = "let the process's user write there (owner, mode, security policy)"

# errno -> (what the operator can do, whether the same call may succeed later with nobody doing anything).
_ADVICE: dict[int, tuple[str, bool]] = {
    errno.ENOSPC: ("the volume is full: free space or grow it", True),
    errno.EDQUOT: ("the disk quota is used up: raise it or free space", True),
    errno.EIO: (_CHECK_VOLUME, False),
    errno.EUCLEAN: (_CHECK_FILES, False),
    errno.EBADMSG: (_CHECK_FILES, False),
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
    errno.EFBIG: (
        "larger than RLIMIT_FSIZE, the file system or any file of ours allows: move what is not ours away",
        False,
    ),
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

    @classmethod
    def first_of(cls, group: ExceptionGroup[Exception]) -> Self | None:
        """Return the first of these errors that several tasks have raised; None if there is none among them."""
        for error in group.exceptions:
            found = cls.first_of(error) if isinstance(error, ExceptionGroup) else error
            if isinstance(found, cls):
                return found
        return None

    def __str__(self) -> str:
        name = f" [{errno.errorcode.get(self.errno, self.errno)}]" if self.errno is not None else ""
        error = f" ({self.cause['error']})" if "error" in self.cause else ""
        return f"{self.operation} {self.subject}{name}: {self.hint}{error}"


class NameInDoubt(StorageError):  # noqa: N818 - a state of the file, as below
    """A publish failed at or after the rename: the new file may have the name, or lose it again in a power cut."""


class TornTail(StorageError):  # noqa: N818 - a state of the file, named as the documentation names it
    """An append failed and could not be undone: the file may end in bytes that were never acknowledged."""
