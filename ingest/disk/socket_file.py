"""The name of a Unix socket: taken by one process, left by it.

Owns how the name is bound, and when one that is there already may go. Promises that a socket somebody listens on is
never taken from him, nor a file that is no socket; that the name is readable and writable by owner and group alone
(0660) from its first moment on; and that `remove` takes away our own only. Never accepts a connection.

Two processes that start at once hold the folder's lock in turn, from the look at what is there until the new socket
listens: a socket that is bound and does not listen yet looks like one whose process is gone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from ingest.disk.reading import Identity

if TYPE_CHECKING:
    from pathlib import Path

    from ingest.disk.filesystem import Filesystem

LOCK_SECONDS: Final = 2.0
"""How long a folder's lock is waited for; others hold it for less than a millisecond."""
_UMASK: Final = 0o117


class SocketFile:
    """One bound name, and the socket behind it."""

    __slots__ = ("_fs", "_identity", "path", "socket")

    def __init__(self, fs: Filesystem, path: Path, backlog: int) -> None:
        """Bind and listen; an `OSError` with `EADDRINUSE` if the name is somebody else's."""
        self._fs = fs
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.setblocking(False)
        folder = fs.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        before = os.umask(_UMASK)
        try:
            _lock(fs, folder)
            self._bind()
            self.socket.listen(backlog)
            self._identity = Identity.of(fs.lstat(path))
        except BaseException:
            self.socket.close()
            raise
        finally:
            os.umask(before)
            fs.close(folder)

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode of the name, by which it is known to be ours."""
        return self._identity.device, self._identity.inode

    def remove(self) -> None:
        """Take the name away, unless it is another's by now."""
        with suppress(OSError):
            if Identity.of(self._fs.lstat(self.path)) == self._identity:
                self._fs.unlink(self.path)

    def _bind(self) -> None:
        try:
            self.socket.bind(str(self.path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not self._is_left_over():
                raise
            self._fs.unlink(self.path)
            self.socket.bind(str(self.path))

    def _is_left_over(self) -> bool:
        """Tell whether the name is that of a socket nobody listens on."""
        if not stat.S_ISSOCK(self._fs.lstat(self.path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)  # with a full backlog `connect` would wait
            try:
                probe.connect(str(self.path))
            except ConnectionRefusedError:
                return True
            except OSError:
                return False
        return False


def _lock(fs: Filesystem, folder: int) -> None:
    """Take the folder's lock, which ends with the descriptor."""
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fs.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.01)
        else:
            return
