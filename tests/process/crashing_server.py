"""The collector over a file system that kills the process at a named instant, or fails where it is told to.

`python -m tests.process.crashing_server POINT NTH` serves with the settings of the environment. `POINT` is a name of
`POINTS`; the process sends itself SIGKILL at its `NTH` occurrence, after a line `crash_point` on standard error, so
that a test knows that it died where it was to die. Nothing of this is in the product: it uses the `Filesystem` seam.

A file `armed` in the working directory is what a point with `armed=True` waits for: a test puts it there just before it
sends SIGTERM, so that the point is hit during the drain.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.config.settings import load
from ingest.disk.filesystem import Filesystem

if TYPE_CHECKING:
    from ingest.config.settings import Settings

ARMED = "armed"


@dataclass(frozen=True, slots=True)
class Point:
    """Where the process dies, and what has to fail so that it gets there."""

    calls: tuple[str, ...]  # the method of Filesystem
    room: str  # "store", "dlq" or "journal": where its path lies
    when: str = "after"  # or "before" the call
    temporary: bool = False  # the path is a temporary's
    inherited: bool | None = None  # the file was (not) there when the process started
    published: bool = False  # for fsync_dir: of a folder in which a name has just been made
    armed: bool = False
    store_fails: bool = False  # every put fails, so that batches go to the DLQ
    sync_fails: bool = False  # every fourth fdatasync of a segment fails, so that it is rewritten


def _save(**more: object) -> Point:
    return Point(room="dlq", store_fails=True, **more)  # type: ignore[arg-type]


def _rewrite(**more: object) -> Point:
    return Point(room="journal", sync_fails=True, **more)  # type: ignore[arg-type]


POINTS: dict[str, Point] = {
    "segment_written": Point(("write",), "journal"),
    "segment_synced": Point(("fdatasync",), "journal"),
    "put_temporary_synced": Point(("fdatasync",), "store", temporary=True),
    "put_stored_answer_lost": Point(("rename",), "store"),
    "segment_release_begins": Point(("unlink",), "journal", when="before", inherited=False),
    "segment_released": Point(("unlink",), "journal", inherited=False),
    "dlq_save_begins": _save(calls=("open",), temporary=True),
    "dlq_save_written": _save(calls=("write",), temporary=True),
    "dlq_save_synced": _save(calls=("fdatasync",), temporary=True),
    "dlq_save_renamed": _save(calls=("rename", "link")),
    "dlq_save_published": _save(calls=("fsync_dir",), published=True),
    "dlq_save_segment_released": Point(("unlink",), "journal", inherited=False, store_fails=True),
    "rewrite_begins": _rewrite(calls=("open",), temporary=True),
    "rewrite_written": _rewrite(calls=("write",), temporary=True),
    "rewrite_synced": _rewrite(calls=("fdatasync",), temporary=True),
    "rewrite_renamed": _rewrite(calls=("rename",)),
    "rewrite_published": _rewrite(calls=("fsync_dir",), published=True),
    "recovery_put_stored_answer_lost": Point(("link",), "store"),
    "recovery_release_begins": Point(("unlink",), "journal", when="before", inherited=True),
    "recovery_released": Point(("unlink",), "journal", inherited=True),
    "recovery_of_dlq_file_done": Point(("unlink",), "dlq", inherited=True),
    "drain_put_stored_answer_lost": Point(("rename",), "store", armed=True),
    "drain_segment_released": Point(("unlink",), "journal", inherited=False, armed=True),
    "drain_dlq_save_synced": _save(calls=("fdatasync",), temporary=True, armed=True),
    "drain_dlq_save_renamed": _save(calls=("rename", "link"), armed=True),
}


class CrashingFilesystem(Filesystem):
    """The real file system up to the instant in question."""

    __slots__ = ("_inherited", "_left", "_lock", "_name", "_named_in", "_paths", "_point", "_rooms", "_syncs")

    def __init__(self, name: str, nth: int, settings: Settings) -> None:
        self._name = name
        self._point = POINTS[name]
        self._left = nth
        self._lock = threading.Lock()
        self._paths: dict[int, str] = {}
        self._named_in: set[str] = set()
        self._syncs = 0
        # The journal lies below the DLQ unless it is told otherwise, so it is asked first.
        self._rooms = [
            ("journal", _folder(settings.journal_dir)),
            ("dlq", _folder(settings.dlq_dir)),
            ("store", _folder(settings.store_dir)),
        ]
        folders = (settings.journal_dir, settings.dlq_dir)
        self._inherited = {_absolute(path) for folder in folders for path in folder.rglob("*") if path.is_file()}

    def open(self, path: str | Path, flags: int, mode: int = 0o640) -> int:
        if self._point.store_fails and self._room(str(path)) == "store":
            raise OSError(errno.EIO, "the store fails as told")
        self._reach("open", path, "before")
        fd = super().open(path, flags, mode)
        self._paths[fd] = str(path)
        self._reach("open", path, "after")
        return fd

    def write(self, fd: int, data: bytes | bytearray | memoryview) -> int:
        path = self._paths.get(fd, "")
        self._reach("write", path, "before")
        taken = super().write(fd, data)
        self._reach("write", path, "after")
        return taken

    def fdatasync(self, fd: int) -> None:
        path = self._paths.get(fd, "")
        if self._point.sync_fails and self._room(path) == "journal" and not _is_temporary(path):
            self._syncs += 1
            if self._syncs % 4 == 0:
                raise OSError(errno.EIO, "this sync fails as told")
        self._reach("fdatasync", path, "before")
        super().fdatasync(fd)
        self._reach("fdatasync", path, "after")

    def close(self, fd: int) -> None:
        self._paths.pop(fd, None)
        super().close(fd)

    def rename(self, src: str | Path, dst: str | Path) -> None:
        self._reach("rename", dst, "before")
        super().rename(src, dst)
        self._named_in.add(str(Path(dst).parent))
        self._reach("rename", dst, "after")

    def link(self, src: str | Path, dst: str | Path) -> None:
        self._reach("link", dst, "before")
        super().link(src, dst)
        self._named_in.add(str(Path(dst).parent))
        self._reach("link", dst, "after")

    def unlink(self, path: str | Path) -> None:
        self._reach("unlink", path, "before")
        super().unlink(path)
        self._reach("unlink", path, "after")

    def fsync_dir(self, path: str | Path) -> None:
        named = str(path) in self._named_in
        super().fsync_dir(path)
        if named:
            self._named_in.discard(str(path))
            self._reach("fsync_dir", path, "after", published=True)

    def _reach(self, call: str, path: str | Path, when: str, *, published: bool = False) -> None:
        point, name = self._point, _absolute(path)
        if (
            call not in point.calls
            or when != point.when
            or self._room(name) != point.room
            or _is_temporary(name) != point.temporary
            or published != point.published
            or (point.inherited is not None and (name in self._inherited) != point.inherited)
            or name.endswith("/lock")
            or (point.armed and not Path(ARMED).exists())
        ):
            return
        with self._lock:
            self._left -= 1
            if self._left == 0:
                line = {"event": "crash_point", "point": self._name, "path": name}
                os.write(2, json.dumps(line).encode() + b"\n")
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()

    def _room(self, path: str) -> str:
        folder = _folder(path)
        return next((room for room, root in self._rooms if folder.startswith(root)), "")


def _absolute(path: str | Path) -> str:
    return os.path.abspath(path)


def _folder(path: str | Path) -> str:
    return _absolute(path) + "/"


def _is_temporary(path: str) -> bool:
    return path.endswith(".tmp")


def main() -> None:
    from ingest.server import serve

    settings = load(os.environ)
    serve(settings, fs=CrashingFilesystem(sys.argv[1], int(sys.argv[2]), settings))


if __name__ == "__main__":
    main()
