"""Looking at a disk: whether a name leads somewhere, the files below a folder, and the bytes of a file.

Owns `Reader`, a file to read through the seam. Promises that "it is not there" is told from "the disk would not say":
the first is an answer, the second an error, or a value where it must hide nothing beside it. Never changes anything.
All of it blocks.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from ingest.disk.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from types import TracebackType

    from ingest.disk.filesystem import Filesystem

CHUNK_BYTES = 1 << 20
MOST_BYTES = 2 << 30
"""No file that is read at once is as large: twice the most that `BATCH_BYTES` takes."""
_ABSENT = (errno.ENOENT, errno.ENOTDIR)
_LOST = (*_ABSENT, errno.ESTALE)


def exists(fs: Filesystem, path: Path) -> bool:
    """Tell whether the name leads to something; `StorageError` if the disk would not say."""
    return _mode(fs, path) is not None


def is_folder(fs: Filesystem, path: Path) -> bool:
    """Tell whether the name leads to a folder; `StorageError` if the disk would not say."""
    mode = _mode(fs, path)
    return mode is not None and stat.S_ISDIR(mode)


def _mode(fs: Filesystem, path: Path) -> int | None:
    try:
        return fs.stat(path).st_mode
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise StorageError.of("stat", path, error) from error


class Identity(NamedTuple):
    """A file, whatever it is called."""

    device: int
    inode: int

    @classmethod
    def of(cls, found: os.stat_result) -> Identity:
        """Take it from what `stat` found."""
        return cls(found.st_dev, found.st_ino)


def has_name(fs: Filesystem, path: Path, identity: Identity | None) -> bool:
    """Tell whether the name still leads to this file (None: to any); `StorageError` if the disk would not say."""
    try:
        found = Identity.of(fs.stat(path))
    except OSError as error:
        if error.errno in _LOST:
            return False
        raise StorageError.of("stat", path, error) from error
    return identity in (None, found)


class Kind(Enum):
    """The kind of an entry: a folder, a symbolic link to one or maybe to one, a link that leads nowhere, or a file."""

    FOLDER = auto()
    LINK = auto()
    NOWHERE = auto()
    FILE = auto()

    @classmethod
    def of(cls, fs: Filesystem, entry: os.DirEntry[str]) -> Kind:
        """Take it from what the folder's list says, and from a look at where a link leads."""
        if entry.is_dir(follow_symlinks=False):
            return cls.FOLDER
        if not entry.is_symlink():
            return cls.FILE
        try:
            mode = _mode(fs, Path(entry.path))
        except StorageError as error:
            # A link to itself has no end; into any other whoever enters it meets the error.
            return cls.NOWHERE if error.errno == errno.ELOOP else cls.LINK
        if mode is None:
            return cls.NOWHERE
        return cls.LINK if stat.S_ISDIR(mode) else cls.FILE


class Folders:
    """The folders below some roots, each once: real ones first, then those to which a symbolic link leads.

    Writing goes through a link, so finding does. A folder that was given is not given again under the name of a link,
    so a link that leads back ends there. Who has no link pays nothing for that. `add` tells what is below a folder.
    """

    __slots__ = ("_fs", "_given", "_links", "_pending", "_seen")

    def __init__(self, fs: Filesystem, roots: Iterable[Path]) -> None:
        self._fs = fs
        self._pending = list(roots)
        self._links: list[Path] = []
        self._given: list[Path] = []
        """Folders that were given since the last link was followed."""
        self._seen: set[Identity] = set()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Path:
        while not self._pending and self._links:
            link = min(self._links)
            self._links.remove(link)
            self._pending += new_folders(self._fs, self._given, [link], self._seen)
            self._given = []
        if not self._pending:
            raise StopIteration
        folder = self._pending.pop()
        self._given.append(folder)
        return folder

    def add(self, path: Path, kind: Kind) -> None:
        """Have a folder, or a link to one, given in its turn."""
        (self._pending if kind is Kind.FOLDER else self._links).append(path)


def new_folders(fs: Filesystem, known: Iterable[Path], links: Iterable[Path], seen: set[Identity]) -> list[Path]:
    """Return the links that lead to none of the folders that are `known` or were `seen`; all of them are seen then."""
    for folder in known:
        with suppress(OSError):
            seen.add(Identity.of(fs.stat(folder)))
    new = []
    for link in sorted(links):
        try:
            identity = Identity.of(fs.stat(link))
        except OSError:
            new.append(link)  # as above
            continue
        if identity not in seen:
            seen.add(identity)
            new.append(link)
    return new


def leads_nowhere(fs: Filesystem, path: Path) -> bool:
    """Tell whether a name is a symbolic link whose end is not there; `StorageError` if the disk would not say."""
    try:
        is_link = stat.S_ISLNK(fs.lstat(path).st_mode)
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise StorageError.of("stat", path, error) from error
    return is_link and not exists(fs, path)


def files_below(fs: Filesystem, root: Path, unread: list[StorageError]) -> Generator[Path, None, None]:
    """Yield every file below a folder, in no order, one handle open at a time; each failure is added to `unread`.

    Links to folders are followed, as writing follows them.
    """
    folders = Folders(fs, [root])
    for folder in folders:
        try:
            with fs.scandir(folder) as entries:
                for entry in entries:
                    kind = Kind.of(fs, entry)
                    if kind in (Kind.FOLDER, Kind.LINK):
                        folders.add(Path(entry.path), kind)
                    else:
                        yield Path(entry.path)
        except FileNotFoundError:
            continue
        except OSError as error:
            unread.append(StorageError.of("scandir", folder, error))


def read_file(fs: Filesystem, path: Path) -> bytes:
    """Return all bytes of a file; `OSError` passes, and is raised for a file that is larger than any of ours."""
    with Reader(fs, path) as file:
        if file.size > MOST_BYTES:
            raise OSError(errno.EFBIG, "no file of ours is as large", str(path))
        return file.read_all()


class Reader:
    """A file that is read through the seam; a stream like any other, and `OSError` passes as from any other.

    It keeps its own place in the file, so that a seek costs no system call. A pipe in a file's place is an error, and
    holds nobody until somebody writes to it.
    """

    __slots__ = ("_at", "_fd", "_fs")

    def __init__(self, fs: Filesystem, path: str | Path) -> None:
        self._fs = fs
        self._fd: int | None = fs.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._at = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def size(self) -> int:
        """The file's size now."""
        return self._fs.fstat(self._open()).st_size

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes; nothing at the end."""
        data = self._fs.pread(self._open(), size, self._at)
        self._at += len(data)
        return data

    def read_all(self) -> bytes:
        """Read what is left."""
        parts = []
        while part := self.read(CHUNK_BYTES):
            parts.append(part)
        return b"".join(parts)

    def seek(self, offset: int) -> None:
        """Read on from `offset`, counted from the file's beginning."""
        self._at = offset

    def tell(self) -> int:
        """Return where the next read begins."""
        return self._at

    def close(self) -> None:
        """Close the file; doing so twice does no harm."""
        fd, self._fd = self._fd, None
        if fd is not None:
            self._fs.close(fd)

    def _open(self) -> int:
        if self._fd is None:
            raise ValueError("read of a closed file")
        return self._fd
