"""The collector over a disk, or with a resolver, that never answers from the moment a test arms it.

`python -m tests.process.hanging_server WHAT` serves with the settings of the environment. `WHAT` is a name of `HANGS`.
From when a file `armed` is in the working directory every such call waits for ever, in whatever thread makes it.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ingest.config.settings import load
from ingest.disk.filesystem import FILE_MODE, Filesystem
from ingest.server import serve

if TYPE_CHECKING:
    from ingest.config.settings import Settings

ARMED = "armed"


class Hang(NamedTuple):
    """The calls that hang, and the folder they concern."""

    calls: tuple[str, ...]
    variable: str


HANGS: dict[str, Hang] = {
    "the journal's fdatasync": Hang(("fdatasync",), "journal_dir"),
    "the journal's unlink": Hang(("unlink",), "journal_dir"),
    "the journal's write": Hang(("write",), "journal_dir"),
    "the dead letters' open": Hang(("open",), "dlq_dir"),
    "the dead letters' statvfs": Hang(("statvfs",), "dlq_dir"),
    "the dead letters' opendir": Hang(("scandir", "listdir"), "dlq_dir"),
    "the store's fdatasync": Hang(("fdatasync",), "store_dir"),
}


class HangingFilesystem(Filesystem):
    """The real file system until it hangs."""

    __slots__ = ("_hang", "_journal", "_paths", "_root", "_store")

    def __init__(self, hang: Hang, settings: Settings) -> None:
        self._hang = hang
        self._root = f"{os.path.abspath(getattr(settings, hang.variable))}/"
        self._journal = f"{os.path.abspath(settings.journal_dir)}/"
        self._store = f"{os.path.abspath(settings.store_dir)}/"
        self._paths: dict[int, str] = {}

    def open(self, path: str | Path, flags: int, mode: int = FILE_MODE) -> int:
        self._meet("open", path)
        if self._hang.variable == "dlq_dir" and os.path.abspath(path).startswith(self._store) and Path(ARMED).exists():
            raise OSError(errno.EIO, "the store fails, so that batches go to the dead letters")
        fd = super().open(path, flags, mode)
        self._paths[fd] = str(path)
        return fd

    def write(self, fd: int, data: bytes | bytearray | memoryview) -> int:
        self._meet("write", self._paths.get(fd, ""))
        return super().write(fd, data)

    def fdatasync(self, fd: int) -> None:
        self._meet("fdatasync", self._paths.get(fd, ""))
        super().fdatasync(fd)

    def unlink(self, path: str | Path) -> None:
        self._meet("unlink", path)
        super().unlink(path)

    def statvfs(self, path: str | Path) -> Any:
        self._meet("statvfs", path)
        return super().statvfs(path)

    def scandir(self, path: str | Path) -> Any:
        self._meet("scandir", path)
        return super().scandir(path)

    def listdir(self, path: str | Path) -> list[str]:
        self._meet("listdir", path)
        return super().listdir(path)

    def _meet(self, call: str, path: str | Path) -> None:
        at = f"{os.path.abspath(path)}/"
        concerned = at.startswith(self._root) and (
            # The journal lies below the dead letters unless it is told otherwise.
            self._hang.variable == "journal_dir" or not at.startswith(self._journal)
        )
        if call in self._hang.calls and concerned and Path(ARMED).exists():
            _never()


def _never() -> None:
    os.write(2, b'{"event":"hangs"}\n')
    threading.Event().wait()


def _resolve_never() -> None:
    from aiohttp.resolver import ThreadedResolver

    resolve = ThreadedResolver.resolve

    async def hanging(self: Any, *how: Any, **more: Any) -> Any:
        if os.path.exists(ARMED):  # noqa: ASYNC240 - a look at one name
            await self._loop.run_in_executor(None, _never)
        return await resolve(self, *how, **more)

    ThreadedResolver.resolve = hanging  # type: ignore[method-assign]


def main() -> None:
    settings = load(os.environ)
    if sys.argv[1] == "the resolver":
        _resolve_never()
        serve(settings)
    serve(settings, fs=HangingFilesystem(HANGS[sys.argv[1]], settings))


if __name__ == "__main__":
    main()
