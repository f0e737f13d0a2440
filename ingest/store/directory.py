"""Objects as files: the store that needs nothing but a disk.

Owns `<STORE_DIR>/<key>` and the temporaries in `<STORE_DIR>/.tmp`, which lie apart so that whoever lists or copies the
objects never meets half of one. Several processes may share one directory. A name that begins with a dot is no key's:
`.lock` is held by whoever compares a version and replaces it.

Promises what `ObjectStore` promises, power cuts included: a body is synced before it gets its name (`disk.Tree`),
and `create` is `link(2)`, which the kernel refuses for a name that exists. An object that exists is replaced by one of
more events only: both heads tell, and files of one key are prefixes of one batch. A file without our head, an empty one
for instance, is no batch: whoever creates one there is refused.

An object is a regular file, or a link that leads to one. Whatever else has the name of a key (a folder, a pipe, a
device) is an error to whoever reads or creates it, and no listing has it. Names that are not UTF-8 are no keys. To list
a directory that is gone is an error, because its volume may be elsewhere.

Never keeps metadata: a plain directory has nowhere to put it that every copy would carry along. The number of events
is in the gzip header, first and last time are in the lines, the instance is in the name. A version is a digest of the
bytes.
"""

from __future__ import annotations

import errno
import hashlib
import stat
import time
from contextlib import suppress
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import structlog

from ingest.disk import Reader, StorageError, Tree, files_below, locked
from ingest.store.calls import Calls
from ingest.store.object_store import MOST_BYTES, Found, Listed
from ingest.store.outcome import Refusal

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

    from ingest.config import Settings
    from ingest.disk import Filesystem
    from ingest.store.object_store import Head, ObjectMetadata


TEMPORARIES = ".tmp"
LOCK = ".lock"
# A put takes milliseconds. What is an hour old belongs to a process that died, not to one that runs beside us.
TEMPORARY_MAX_AGE = 3600.0
log = structlog.get_logger()

_NO_FILE = "a folder, a pipe or a device is where an object should be: move it away"
_NOT_OURS = "the file under this name is no object of ours: look at it, and move it away"
_TOO_LARGE = "no object of ours is as large: something else wrote it, and it is not read"
# Gone meanwhile, or a link that leads nowhere or round in a circle.
_NO_OBJECT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class DirectoryStore:
    """An `ObjectStore` in `STORE_DIR`; everything that touches the disk runs in the executor (`Calls`)."""

    __slots__ = ("_calls", "_fs", "_head", "_root", "_temporaries", "_tree")

    def __init__(self, settings: Settings, head: Head, fs: Filesystem, executor: Executor) -> None:
        self._fs = fs
        self._head = head
        self._calls = Calls(executor, settings.store_dir)
        self._root = settings.store_dir
        self._temporaries = settings.store_dir / TEMPORARIES
        self._tree = Tree(fs, self._root, temporaries=self._temporaries)

    @property
    def address(self) -> str:
        """The directory."""
        return str(self._root)

    async def start(self) -> None:
        """Make the directory and sweep out what dead processes left half-written."""
        await self._calls.make(self._start)

    async def prepare(self) -> None:
        """Nothing is found out before a try."""

    async def put(self, key: str, body: bytes, metadata: ObjectMetadata) -> None:  # noqa: ARG002 - see the module's text
        """Store the body under the key."""
        await self._calls.make(partial(self._tree.publish, self._path("put", key), body))

    async def create(self, key: str, body: bytes, metadata: ObjectMetadata) -> bool:  # noqa: ARG002 - see the module's text
        """Store the body only if nothing has the key; False if something does."""
        return await self._calls.make(partial(self._create, self._path("create", key), body))

    async def get(self, key: str) -> bytes:
        """Return the body."""
        return await self._calls.make(partial(self._read, self._path("get", key)))

    async def listing(self, prefix: str) -> list[Listed]:
        """Return all objects whose keys begin with `prefix`, by key."""
        return await self._calls.make(partial(self._list, self._path("list", prefix)))

    async def first_bytes(self, key: str, size: int) -> bytes:
        """Return the first bytes of the body."""
        return await self._calls.make(partial(self._first, self._path("get", key), size))

    async def find(self, key: str) -> Found | None:
        """Return the body with its version; None if there is no such key."""
        return await self._calls.make(partial(self._find, self._path("get", key)))

    async def replace(self, key: str, body: bytes, version: str | None, content_type: str) -> bool:  # noqa: ARG002 - a file has none
        """Store the body if the key still has this version."""
        return await self._calls.make(partial(self._replace, self._path("replace", key), body, version))

    async def delete(self, key: str) -> None:
        """Remove the key, and see to it that it stays removed."""
        await self._calls.make(partial(self._delete, self._path("delete", key)))

    async def close(self) -> None:
        """Nothing is held open between calls."""

    def _path(self, operation: str, key: str) -> Path:
        parts = PurePosixPath(key).parts
        if not parts or key.startswith("/") or ".." in parts or parts[0] in (TEMPORARIES, LOCK) or "\0" in key:
            raise StorageError(operation, key, "this is no key of ours: it would leave STORE_DIR", transient=False)
        return self._root.joinpath(*parts)

    def _start(self) -> None:
        self._tree.make(self._temporaries)
        too_old = time.time() - TEMPORARY_MAX_AGE
        try:
            left = self._fs.listdir(self._temporaries)
        except OSError as error:
            raise StorageError.of("list", self._temporaries, error) from error
        for temporary in (self._temporaries / name for name in left):
            with suppress(OSError):  # another process may sweep at the same time
                if self._fs.stat(temporary).st_mtime < too_old:
                    self._fs.unlink(temporary)

    def _create(self, path: Path, body: bytes) -> bool:
        if self._tree.publish_new(path, body):
            return True
        try:
            self._check(path)  # only an object is already there
        except OSError as error:
            raise StorageError.of("create", path, error) from error
        wanted = self._head.events(body[: self._head.size])
        if wanted is None:
            return False
        found = self._head.events(self._first(path, self._head.size))
        if found is None:
            raise Refusal("create", path, _NOT_OURS, transient=False)
        if found >= wanted:
            return False
        self._tree.publish(path, body)
        log.warning("shorter_object_replaced", key=str(path.relative_to(self._root)), had=found, events=wanted)
        return True

    def _check(self, path: Path) -> None:
        """Raise where something else than an object of ours has the name. `OSError` passes."""
        found = self._fs.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise StorageError("read", path, _NO_FILE, transient=False)

    def _read(self, path: Path) -> bytes:
        try:
            self._check(path)
            with Reader(self._fs, path) as file:
                if file.size > MOST_BYTES:
                    raise StorageError("read", path, _TOO_LARGE, transient=False)
                return file.read_all()
        except OSError as error:
            raise StorageError.of("read", path, error) from error

    def _list(self, folder: Path) -> list[Listed]:
        try:
            self._fs.stat(self._root)
        except OSError as error:
            raise StorageError.of("list", self._root, error) from error
        unread: list[StorageError] = []
        listed = []
        for path in files_below(self._fs, folder, unread):
            if path.name.startswith(".") or not _is_text(key := path.relative_to(self._root).as_posix()):
                continue
            try:
                found = self._fs.stat(path)
            except OSError as error:
                if error.errno in _NO_OBJECT:
                    continue
                raise StorageError.of("stat", path, error) from error
            if stat.S_ISREG(found.st_mode):
                listed.append(Listed(key, found.st_size, found.st_mtime))
        for failure in unread:
            if failure.errno != errno.ENOTDIR:  # below a file there is nothing
                raise failure
        return sorted(listed, key=lambda listed: listed.key)

    def _first(self, path: Path, size: int) -> bytes:
        try:
            self._check(path)
            with Reader(self._fs, path) as file:
                return file.read(size)
        except OSError as error:
            raise StorageError.of("read", path, error) from error

    def _find(self, path: Path) -> Found | None:
        try:
            body = self._read(path)
        except StorageError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return Found(body, hashlib.sha256(body).hexdigest())

    def _replace(self, path: Path, body: bytes, version: str | None) -> bool:
        if version is None:
            return self._tree.publish_new(path, body)
        # Between the look and the rename nobody else may publish, in this process or in another.
        with locked(self._fs, self._root / LOCK):
            found = self._find(path)
            if found is None or found.version != version:
                return False
            self._tree.publish(path, body)
            return True

    def _delete(self, path: Path) -> None:
        try:
            self._fs.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError.of("unlink", path, error) from error
        try:
            self._fs.fsync_dir(path.parent)
        except OSError as error:
            raise StorageError.of("fsync", path.parent, error) from error


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
