"""The files of a ledger: one for each hour and process, in the slot in which what it tells of has lain.

Owns `<slot>/.ledger/<dt=…>_<hr=…>_<host>-<token>`, whose lines are `format.ledger`'s, and beside it
`started_<host>-<token>`, by which a successor knows that the slot was this process's. No prefix may begin with a dot,
so no key lies there, and an earlier version passes over the folder.

Promises:

    order      `note` returns before the file that its line tells of is removed: with DURABILITY=fsync synced, name and
               folders included. A line that is there is true, because it is written only after the store's answer
    no file    waits for its line: a disk that takes no line must not keep what would make room on it. The line is kept
               in memory and written later; until then, `waiting` counts it. A file that takes none keeps no other's
               line waiting. Lines of a slot that was let go are forgotten, and `lacks` tells of their hour
    torn       a last line without its newline is cut off before the next one is written

Never raises out of `note`. Never takes part in what an event waits for: a line is one an object, written beside the
removal of the object's file. Blocking, and for the thread of one lane.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from datetime import date
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from ingest.disk import StorageError, is_folder, make_dirs, read_file
from ingest.disk.append import append
from ingest.format import ledger, parse_key

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from ingest.disk import Filesystem
    from ingest.format.ledger import Entry

FOLDER: Final = ".ledger"
KEPT_MAX: Final = 10_000
"""Lines that may wait in memory for a disk that takes none; of more, the rest is forgotten and the hour stays open."""
TOLD_MAX: Final = 64
"""Files that may be told of as taking no line, at once; others fail unsaid, and `waiting` counts their lines."""
TAIL: Final = 4096

STARTED: Final = "started"

_NAME: Final = re.compile(
    rf"(?:{STARTED}|dt=(?P<day>[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})_hr=(?P<hour>[01][0-9]|2[0-3]))"
    r"_(?P<instance>[A-Za-z0-9-]+-[0-9a-f]{16})"
)

log = structlog.get_logger()


class File(NamedTuple):
    """A file of a ledger. Without an hour it only says that a process has begun here."""

    path: Path
    instance: str
    hour: str
    size: int


class Ledger:
    """See the module's text. With `sync` a line is on the device when `note` returns; not `kept`, none is written."""

    __slots__ = ("_failing", "_forgotten", "_fs", "_is_kept", "_kept", "_settled", "_sizes", "_sync", "waiting")

    def __init__(self, fs: Filesystem, *, sync: bool, kept: bool = True) -> None:
        self._fs = fs
        self._is_kept = kept
        self._sync = sync
        self._sizes: dict[Path, int] = {}
        """Bytes of each file that was written to, all of them whole lines. Not of one whose last write failed."""
        self._kept: dict[Path, list[bytes]] = {}
        """Lines that the disk has not taken, by their file. Until it does."""
        self._failing: set[Path] = set()
        """Files of which it is told that they take no line, until one does: both edges are told once."""
        self._settled: set[Path] = set()
        """Slots whose ledger has no file, as was seen since one was written to it last."""
        self.waiting = 0
        """How many lines are kept."""
        self._forgotten: set[str] = set()
        """Names of files that lack lines which could not be kept, until such a file is removed, or `forgive`."""

    def __repr__(self) -> str:
        return f"<Ledger {len(self._sizes)} files, {self.waiting} lines wait>"

    def note(self, root: Path, lines: bytes) -> None:
        """Write lines about one key into the ledger of the slot `root`; what the disk does not take waits."""
        if not lines or not self._is_kept:
            return
        self._settled.discard(root)
        path = path_of(root, lines.partition(b" ")[0].decode())
        kept = self._kept.get(path)
        if self._write(path, b"".join((*kept, lines)) if kept else lines):
            if kept:
                self._forget(path)
        elif self.waiting < KEPT_MAX:
            self._kept.setdefault(path, []).append(lines)
            self.waiting += 1
        else:
            self._forgotten.add(path.name)

    def begin(self, root: Path, instance: str, said: bytes) -> bool:
        """Leave word in a slot that a process has begun, with what its successor must know; False: not now."""
        path = root / FOLDER / f"{STARTED}_{instance}"
        self._settled.discard(root)
        return path in self._sizes or self._write(path, said)

    def is_settled(self, root: Path) -> bool:
        """Tell whether a slot's ledger is known to have nothing that somebody has still to be told."""
        return not self._is_kept or root in self._settled

    def files(self, root: Path) -> list[File]:
        """List a slot's ledger; `StorageError` if the disk would not say."""
        folder = root / FOLDER
        found = []
        for path in self._names(folder):
            name = _parsed(path.name)
            if name is None:
                continue
            try:
                size = self._fs.stat(path).st_size
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StorageError.of("stat", path, error) from error
            hour, instance = name
            found.append(File(path, instance, hour, size))
        # Lines that wait in memory are of a file that may not be there yet.
        known = {file.path for file in found}
        waiting = [path for path in self._kept if path.parent == folder and path not in known]
        if waiting and not is_folder(self._fs, root):
            # Somebody removed the slot: these lines are not all, and they do not hold it. `let_go` forgets them.
            waiting = []
        if not found and not waiting:
            self._settled.add(root)
        for path in waiting:
            name = _parsed(path.name)
            if name is not None:
                found.append(File(path, name[1], name[0], 0))
        return sorted(found)

    def lines(self, path: Path) -> bytes:
        """Read one file, and what waits to be written to it; `StorageError` if the disk would not say."""
        found = b""
        try:
            found = _whole_lines(read_file(self._fs, path))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError.of("read", path, error) from error
        return found + b"".join(self._kept.get(path, ()))

    def remove(self, files: Iterable[File]) -> None:
        """Remove files that have not grown since they were listed. A file that stays is listed again."""
        for file in files:
            if file.path in self._kept or self._sizes.get(file.path, file.size) != file.size:
                continue
            with suppress(OSError):
                self._fs.unlink(file.path)
                self._sizes.pop(file.path, None)
                self._failing.discard(file.path)
                self._forgotten.discard(file.path.name)
                self._fs.rmdir(file.path.parent)
                self._settled.add(file.path.parent.parent)

    def _names(self, folder: Path) -> list[Path]:
        try:
            return [folder / name for name in self._fs.listdir(folder)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StorageError.of("list", folder, error) from error

    def lacks(self, hour: str, instance: str) -> bool:
        """Tell whether lines of this hour and process were forgotten: what is read of it is not all."""
        return _name_of(hour, instance) in self._forgotten

    def forgive(self, hour: str, instance: str) -> None:
        """Forget that lines are missing: nobody tells of the hour any more."""
        self._forgotten.discard(_name_of(hour, instance))

    def slots(self) -> set[Path]:
        """Return the slots of which something is known here. It may be called beside the lane."""
        return {path.parent.parent for path in (*tuple(self._sizes), *tuple(self._kept))}

    def let_go(self, roots: Collection[Path]) -> None:
        """Forget slots that are not held any more: whoever holds one next writes to the files that are there."""
        for path in [path for path in {*self._sizes, *self._kept, *self._failing} if path.parent.parent in roots]:
            self._sizes.pop(path, None)
            self._failing.discard(path)
            if path in self._kept:
                log.error("ledger_lines_forgotten", path=str(path), lines=len(self._kept[path]))
                self._forget(path)
                self._forgotten.add(path.name)

    def write_kept(self) -> None:
        """Write what waits, as far as the disk takes it; no more of it if the disk did not answer."""
        for path, lines in list(self._kept.items()):
            failure = self._tried(path, b"".join(lines))
            if failure is None:
                self._forget(path)
            elif failure.errno == errno.ETIMEDOUT:
                self._kept[path] = self._kept.pop(path)  # another one is the first next time
                return

    def _forget(self, path: Path) -> None:
        self.waiting -= len(self._kept.pop(path))

    def _write(self, path: Path, lines: bytes) -> bool:
        return self._tried(path, lines) is None

    def _tried(self, path: Path, lines: bytes) -> StorageError | None:
        """Write lines to a file; return what kept the disk from it."""
        try:
            self._append(path, lines)
        except (OSError, StorageError) as error:
            # Whatever the file ends in now is looked at before it is written to again.
            self._sizes.pop(path, None)
            failure = error if isinstance(error, StorageError) else StorageError.of("write", path, error)
            if path not in self._failing and len(self._failing) < TOLD_MAX:
                self._failing.add(path)
                log.error("ledger_not_written", path=str(path), error=str(failure), hint=failure.hint)
            return failure
        if path in self._failing:
            self._failing.discard(path)
            log.info("ledger_written_again", path=str(path), waiting=self.waiting)
        return None

    def _append(self, path: Path, lines: bytes) -> None:
        size = self._sizes.get(path)
        if size is None:
            if not is_folder(self._fs, path.parent.parent):
                # Somebody removed the slot, or its volume is not mounted: nobody holds what would be made in its place.
                raise StorageError.of("write", path, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
            make_dirs(self._fs, path.parent, path.parent.parent, sync=self._sync)
        fd = self._fs.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            if size is None:
                size = self._cut_torn_line(fd)
                # What an earlier write has left may be gone after a power cut, and zeros in its place: a line begins.
                lines = b"\n" + lines if size else lines
            before = size
            size = append(self._fs, fd, lines, size, subject=path)
            if self._sync:
                self._synced(fd, before, path)
        finally:
            with suppress(OSError):
                self._fs.close(fd)
        if self._sync and path not in self._sizes:
            self._fs.fsync_dir(path.parent)
        # Crash point "ledger": the line is there, and so is the file that it tells of. Recovery finds the object
        # stored, and writes the same line once more.
        self._sizes[path] = size

    def _synced(self, fd: int, before: int, path: Path) -> None:
        try:
            self._fs.fdatasync(fd)
        except OSError as error:
            # They are written again, to another descriptor: left where they are, each try would add them once more.
            with suppress(OSError):
                self._fs.truncate(fd, before)
            raise StorageError.of("fdatasync", path, error) from error

    def _cut_torn_line(self, fd: int) -> int:
        """Cut what a process was killed in the middle of; return the size."""
        size = self._fs.fstat(fd).st_size
        end = size
        while end:
            at = max(end - TAIL, 0)
            newline = self._fs.pread(fd, end - at, at).rfind(b"\n")
            end = at + newline + 1 if newline >= 0 else at
            if newline >= 0:
                break
        if end < size:
            self._fs.truncate(fd, end)
        return end


def path_of(root: Path, key: str) -> Path:
    """Return the file of a slot's ledger that tells of a key."""
    return root / FOLDER / _name_for(key)


def _name_for(key: str) -> str:
    parsed = parse_key(key)
    return _name_of(parsed.partition, parsed.instance)


def _name_of(hour: str, instance: str) -> str:
    return f"{hour.replace('/', '_')}_{instance}"


def _parsed(name: str) -> tuple[str, str] | None:
    """Return hour and instance of a file of ours, no hour if it says that a process has begun; None of any other."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    if found["day"] is None:
        return "", found["instance"]
    try:
        date.fromisoformat(found["day"])
    except ValueError:
        return None
    return f"dt={found['day']}/hr={found['hour']}", found["instance"]


def is_of_ledger(path: Path) -> bool:
    """Tell whether a path below a slot is the ledger's."""
    return path.parent.name == FOLDER


def is_strange(path: Path) -> bool:
    """Tell whether a path lies where ledgers are and is none: it is no reason to hold a slot."""
    return is_of_ledger(path) and _parsed(path.name) is None


def entries_in(fs: Filesystem, path: Path) -> list[Entry]:
    """Read one file but for a last line without an end; `OSError` passes. See `entries_of`."""
    return entries_of(path, _whole_lines(read_file(fs, path)))


def entries_of(path: Path, lines: bytes) -> list[Entry]:
    """Take the lines of a file apart. One that is none of ours, or not of this file, is passed over.

    It computes for some milliseconds a thousand lines.
    """
    found = (entry for entry in map(ledger.parse, lines.splitlines()) if entry is not None)
    return [entry for entry in found if _name_for(entry.key) == path.name]


def _whole_lines(text: bytes) -> bytes:
    return text[: text.rfind(b"\n") + 1]
