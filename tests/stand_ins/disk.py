"""A disk that fails, hangs, dies or loses its power as it is told.

`Disk` is a `Filesystem` with rules. A rule names calls, and what befalls them:

    disk.on("rename", under="hr=14").fail(errno.EIO)     until it is lifted, or the disk heals
    disk.on("write", nth=3, times=1).shorten(7)          the third write takes 7 bytes
    hang = disk.on("fdatasync").hang()                   hang.reached is set; hang.release() lets them go on
    disk.on("unlink", after=True).die()                  done, and nobody is told; every later call meets a dead disk
    met = disk.on("open_read", under="lock")             does nothing and counts: met.count

The operations are the methods of `Filesystem`. Four names differ, so that a rule says what it means: `open_read` opens
a file only to read it, `read` is `pread` too, `stat` is `lstat` and `fstat` too, `readdir` is a step through a folder.

`CrashableDisk` is a `Disk` over a real directory that remembers what was synced. `crash` rewrites the directory to what
a power cut may leave, which SIGKILL cannot show: a process that dies leaves the page cache behind. It is more spiteful
than any one file system: what was not synced survives in every combination, as chance has it.

    bytes     `fdatasync` makes a file's writes and truncations durable. Of what came later any first part may survive.
    names     `fsync_dir` makes one folder's creations, renames, links and removals durable. Of the later ones each
              survives or not, by itself; a rename within one folder survives whole or not at all.
    failure   a sync that fails drops what it should have saved, as Linux does: the next sync of it succeeds and saves
              nothing. Only bytes written anew, and names given anew, can be synced then.
    close     one that fails drops what was not synced, as a network disk does that writes late.

Neither draws chance by itself: the same calls with the same choices give the same outcome.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from ingest.disk.filesystem import FILE_MODE, Bytes, Filesystem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ingest.disk.filesystem import Entries

Choice: TypeAlias = Callable[[int], int]
"""`choice(n)` picks one of 0 .. n-1: `random.Random(1).randrange`, or a draw of hypothesis."""

HANGS_AT_MOST = 60.0
OPENED_TO_CHANGE = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("open", "write", "fdatasync", "truncate", "close", "rename", "link", "unlink", "mkdir", "rmdir", "fsync_dir")
LOOKS = ("open_read", "read", "stat", "listdir", "scandir", "readdir", "access", "statvfs", "flock")


# ----------------------------------------------------------------------------------------------------- rules


class PowerCut(BaseException):
    """Raised by a call that the power cut came before; nothing that handles errors may meet it."""


class Rule:
    """Calls, and what befalls them. The last of `fail`, `hang` and so on counts; without one a rule only counts."""

    def __init__(
        self,
        disk: Disk,
        operations: tuple[str, ...],
        under: str | Path,
        when: Callable[[Path], bool] | None,
        nth: int,
        times: int | None,
        *,
        after: bool,
    ) -> None:
        unknown = set(operations) - {*CHANGES, *LOOKS}
        if unknown:
            raise ValueError(f"no operation of a disk: {unknown}")
        self.count = 0
        """How many calls it has met, those before the nth included."""
        self.reached = threading.Event()
        """Set as soon as it has befallen a call."""
        self.after = after
        self._disk = disk
        self._operations = frozenset(operations)
        self._under = under
        self._when = when
        self._skip = nth - 1
        self._left = times
        self._takes: int | None = None
        self._act: Callable[[Path], None] | None = None
        self._released = threading.Event()

    def fail(self, error: int = errno.EIO) -> Self:
        """Raise this error."""

        def act(path: Path) -> None:
            raise os_error(error, path)

        return self.call(act)

    def hang(self) -> Self:
        """Hold the call until `release`, `lift` or the disk's `heal`."""

        def act(_: Path) -> None:
            assert self._released.wait(HANGS_AT_MOST), "nobody released the call"

        return self.call(act)

    def slow(self, seconds: float) -> Self:
        """Hold the call for a while."""
        return self.call(lambda _: time.sleep(seconds))

    def shorten(self, takes: int) -> Self:
        """Let a write take, or a read give, at most so many bytes."""
        self._takes = takes
        return self.call(lambda _: None)

    def die(self, how: Callable[[], None] | None = None) -> Self:
        """End the process here: by `how`, or by a `PowerCut` that this call and each later one raises."""

        def act(_: Path) -> None:
            if how is not None:
                how()
            self._disk.dead = True
            raise self._disk.death

        return self.call(act)

    def call(self, act: Callable[[Path], None]) -> Self:
        """Do something else with the path; an exception from it is the call's."""
        self._act = act
        return self

    def release(self) -> None:
        """Let the calls go on that hang, now and later."""
        self._released.set()

    def lift(self) -> None:
        """Take the rule away."""
        self.release()
        self._disk.forget(self)

    def meets(self, operation: str, path: Path, *, after: bool) -> bool:
        """Count a call that is meant; True if it is its turn."""
        if after is not self.after or operation not in self._operations or not self._concerns(path):
            return False
        self.count += 1
        if self._act is None or self.count <= self._skip:
            return False
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self._disk.forget(self)
        return True

    def befall(self, path: Path) -> int | None:
        """Do it; return how many bytes the call may move, if that is limited."""
        self.reached.set()
        assert self._act is not None
        self._act(path)
        return self._takes

    def _concerns(self, path: Path) -> bool:
        if isinstance(self._under, Path):
            if not path.is_relative_to(self._under):
                return False
        elif self._under not in str(path):
            return False
        return self._when is None or self._when(path)


class Disk(Filesystem):
    """The real file system, or another one `below`, under rules. Threads may share it."""

    death: type[BaseException] = PowerCut
    """Raised by each call of a dead disk."""

    def __init__(self, below: Filesystem | None = None) -> None:
        self.calls: list[tuple[str, Path]] = []
        """Every call that changes something, and on what, in order."""
        self.dead = False
        self._below = below or Filesystem()
        self._rules: list[Rule] = []
        self._paths: dict[int, Path] = {}
        self._lock = threading.RLock()

    # What a test does to it.

    def on(
        self,
        *operations: str,
        under: str | Path = "",
        when: Callable[[Path], bool] | None = None,
        nth: int = 1,
        times: int | None = None,
        after: bool = False,
    ) -> Rule:
        """Begin a rule for the nth call of these from now on, and those behind it, `times` in all.

        `under` is a text that the path contains, or a folder; `when` is asked about the path. The path of a rename or a
        link is the new name. `after`: once the call has succeeded.
        """
        rule = Rule(self, operations, under, when, nth, times, after=after)
        with self._lock:
            self._rules.append(rule)
        return rule

    def fail(
        self,
        operation: str,
        error: int = errno.EIO,
        *,
        nth: int = 1,
        times: int | None = 1,
        when: Callable[[Path], bool] | None = None,
    ) -> None:
        """Let the nth call of `operation` from now on fail: short for the commonest rule."""
        self.on(operation, nth=nth, times=times, when=when).fail(error)

    def heal(self) -> None:
        """Forget the rules, and let go what hangs."""
        with self._lock:
            rules, self._rules = self._rules, []
        for rule in rules:
            rule.release()

    def forget(self, rule: Rule) -> None:
        """Have a rule befall nothing any more."""
        with self._lock:
            self._rules = [other for other in self._rules if other is not rule]

    # What the code under test calls.

    def open(self, path: str | Path, flags: int, mode: int = FILE_MODE) -> int:
        operation = "open" if flags & OPENED_TO_CHANGE else "open_read"
        self._meet(operation, path)
        fd = self._below.open(path, flags, mode)
        self._paths[fd] = Path(path)
        self._met(operation, path)
        return fd

    def write(self, fd: int, data: Bytes) -> int:
        path = self.path_of(fd)
        takes = self._meet("write", path)
        done = self._below.write(fd, bytes(data)[:takes])
        self._met("write", path)
        return done

    def fdatasync(self, fd: int) -> None:
        self._meet("fdatasync", self.path_of(fd))
        self._below.fdatasync(fd)
        self._met("fdatasync", self.path_of(fd))

    def truncate(self, fd: int, size: int) -> None:
        self._meet("truncate", self.path_of(fd))
        self._below.truncate(fd, size)
        self._met("truncate", self.path_of(fd))

    def close(self, fd: int) -> None:
        path = self.path_of(fd)
        if self.dead:
            raise self.death
        del self._paths[fd]
        self._below.close(fd)
        # A close that fails has closed all the same.
        self._meet("close", path)
        self._met("close", path)

    def rename(self, src: str | Path, dst: str | Path) -> None:
        self._meet("rename", dst)
        self._below.rename(src, dst)
        self._met("rename", dst)

    def link(self, src: str | Path, dst: str | Path) -> None:
        self._meet("link", dst)
        self._below.link(src, dst)
        self._met("link", dst)

    def unlink(self, path: str | Path) -> None:
        self._meet("unlink", path)
        self._below.unlink(path)
        self._met("unlink", path)

    def mkdir(self, path: str | Path) -> None:
        self._meet("mkdir", path)
        self._below.mkdir(path)
        self._met("mkdir", path)

    def rmdir(self, path: str | Path) -> None:
        self._meet("rmdir", path)
        self._below.rmdir(path)
        self._met("rmdir", path)

    def fsync_dir(self, path: str | Path) -> None:
        self._meet("fsync_dir", path)
        self._below.fsync_dir(path)
        self._met("fsync_dir", path)

    def read(self, fd: int, size: int) -> bytes:
        gives = self._meet("read", self.path_of(fd))
        return self._below.read(fd, size if gives is None else min(size, gives))

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        gives = self._meet("read", self.path_of(fd))
        return self._below.pread(fd, size if gives is None else min(size, gives), offset)

    def stat(self, path: str | Path) -> os.stat_result:
        self._meet("stat", path)
        return self._below.stat(path)

    def lstat(self, path: str | Path) -> os.stat_result:
        self._meet("stat", path)
        return self._below.lstat(path)

    def fstat(self, fd: int) -> os.stat_result:
        self._meet("stat", self.path_of(fd))
        return self._below.fstat(fd)

    def listdir(self, path: str | Path) -> list[str]:
        self._meet("listdir", path)
        return self._below.listdir(path)

    def scandir(self, path: str | Path) -> Entries:
        self._meet("scandir", path)
        return _OpenFolder(self, Path(path), self._below.scandir(path))

    def access(self, path: str | Path, mode: int) -> bool:
        self._meet("access", path)
        return self._below.access(path, mode)

    def statvfs(self, path: str | Path) -> os.statvfs_result:
        self._meet("statvfs", path)
        return self._below.statvfs(path)

    def flock(self, fd: int, operation: int) -> None:
        self._meet("flock", self.path_of(fd))
        self._below.flock(fd, operation)

    # How it does it.

    def step(self, path: Path) -> None:
        """Meet the rules of one step through an open folder."""
        self._meet("readdir", path)

    def _meet(self, operation: str, path: str | Path) -> int | None:
        """Let the rules befall a call; return how many bytes it may move, if that is limited."""
        path = Path(path)
        with self._lock:
            self._begin(operation, path)
        takes = self._befall(operation, path, after=False)
        if self.dead:
            raise self.death
        return takes

    def _met(self, operation: str, path: str | Path) -> None:
        self._befall(operation, Path(path), after=True)

    def _befall(self, operation: str, path: Path, *, after: bool) -> int | None:
        with self._lock:
            # One rule a call, the oldest whose turn it is.
            rule = next((rule for rule in list(self._rules) if rule.meets(operation, path, after=after)), None)
        # Without the lock: a call that hangs holds up nobody else.
        return None if rule is None else rule.befall(path)

    def _begin(self, operation: str, path: Path) -> None:
        if self.dead:
            raise self.death
        if operation in CHANGES:
            self.calls.append((operation, path))

    def path_of(self, fd: int) -> Path:
        """Return the path that a descriptor was opened by."""
        if fd not in self._paths:
            raise self.death if self.dead else OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._paths[fd]


class _OpenFolder:
    """An open folder of which each step may fail."""

    __slots__ = ("_disk", "_entries", "_path")

    def __init__(self, disk: Disk, path: Path, entries: Entries) -> None:
        self._disk = disk
        self._path = path
        self._entries = entries

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> os.DirEntry[str]:
        self._disk.step(self._path)
        return next(self._entries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._entries.close()


# -------------------------------------------------------------------------------------------- what is synced


class _Change:
    """`data` written at `offset`, or, with no data, a cut to `offset`. Doomed: a failed sync has dropped the data."""

    __slots__ = ("data", "doomed", "offset")

    def __init__(self, offset: int, data: bytes | None) -> None:
        self.offset = offset
        self.data = data
        self.doomed = False

    def apply(self, content: bytearray, first: int | None = None) -> None:
        if self.data is None:
            del content[self.offset :]
        content.extend(bytes(max(0, self.offset - len(content))))
        if self.data is not None:
            data = self.data[:first]
            content[self.offset : self.offset + len(data)] = bytes(len(data)) if self.doomed else data


class _File:
    __slots__ = ("content", "durable", "pending")

    def __init__(self, content: bytes = b"") -> None:
        self.content = bytearray(content)
        self.durable = content
        self.pending: list[_Change] = []

    def change(self, offset: int, data: bytes | None) -> None:
        change = _Change(offset, data)
        change.apply(self.content)
        self.pending.append(change)

    def sync(self) -> None:
        durable = bytearray(self.durable)
        for change in self.pending:
            change.apply(durable)
        self.durable = bytes(durable)
        self.pending.clear()

    def lose_unsynced(self) -> bool:
        """Drop what was not synced; False if there is nothing."""
        if not self.pending:
            return False
        self.content = bytearray(self.durable)
        self.pending.clear()
        return True

    def survive(self, choice: Choice) -> bytes:
        left = bytearray(self.durable)
        count = _pick(choice, len(self.pending) + 1)
        for change in self.pending[:count]:
            change.apply(left)
        for change in self.pending[count : count + 1]:
            if change.data:
                change.apply(left, _pick(choice, len(change.data)))
        return bytes(left)


_Node: TypeAlias = "_File | _Folder"
_Entries: TypeAlias = "dict[str, _Node]"


class _Naming:
    """Names given (a node) or taken away (None) by one call. Doomed: a failed sync has dropped them."""

    __slots__ = ("doomed", "effects")

    def __init__(self, effects: dict[str, _Node | None]) -> None:
        self.effects = effects
        self.doomed = False

    def apply(self, entries: _Entries) -> None:
        for name, node in self.effects.items():
            if node is None:
                entries.pop(name, None)
            else:
                entries[name] = node


class _Folder:
    __slots__ = ("durable", "entries", "pending")

    def __init__(self) -> None:
        self.entries: _Entries = {}
        self.durable: _Entries = {}
        self.pending: list[_Naming] = []

    def change(self, effects: dict[str, _Node | None]) -> None:
        naming = _Naming(effects)
        naming.apply(self.entries)
        self.pending.append(naming)

    def sync(self) -> None:
        unsaved: list[_Naming] = []
        for naming in self.pending:
            if naming.doomed:
                unsaved.append(naming)
                continue
            naming.apply(self.durable)
            unsaved = [before for before in unsaved if before.effects.keys().isdisjoint(naming.effects)]
        self.pending = unsaved

    def survive(self, choice: Choice) -> _Entries:
        left = dict(self.durable)
        for naming in self.pending:
            if _pick(choice, 2):
                naming.apply(left)
        return left


class CrashableDisk(Disk):
    """A `Disk` over `root`, which is there already and whose present content counts as synced.

    Everything that changes something must happen below `root` and through these methods; after a test wrote there by
    itself, it calls `settle`. Folders are never renamed. Calls from several threads follow one another.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.capacity: int | None = None
        """How many bytes all files together may hold; beyond it a write is short, then ENOSPC."""
        self.has_let_go = False
        """A close has failed, and dropped what was not synced."""
        self._alarm: int | None = None
        self._open: dict[int, tuple[_File, bool]] = {}
        self._tree = _Folder()
        self.settle()

    # What a test does to it.

    def cut_power_before(self, nth: int) -> None:
        """Let the nth change from now on, counted from 0, and all calls after it, raise `PowerCut`; then `crash`."""
        self._alarm = nth

    def kill(self) -> None:
        """End the process, not the host: descriptors and locks are gone, the page cache is not."""
        for fd in list(self._paths):
            os.close(fd)
        self._paths.clear()
        self._open.clear()
        self._alarm = None
        self.dead = False

    def let_go(self, fd: int) -> None:
        """Close a descriptor as the end of its process does."""
        self._open.pop(fd, None)
        self._paths.pop(fd, None)
        os.close(fd)

    def crash(self, choice: Choice | random.Random) -> None:
        """Cut the power: rewrite `root` to what is durable, and to what chance adds to it. All of it is synced then."""
        pick = choice.randrange if isinstance(choice, random.Random) else choice
        self.kill()
        self.heal()
        left = _survivors(self._tree, pick, {})
        for entry in list(self.root.iterdir()):
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        _restore(left, self.root, {})
        self.settle()

    def settle(self) -> None:
        """Take what is in `root` now for synced."""
        self._tree = _scan(self.root, {})

    def sync_all(self) -> None:
        """Sync every file and every folder, as `sync(1)` does."""
        _sync_all(self._tree)

    # What the code under test calls.

    def open(self, path: str | Path, flags: int, mode: int = FILE_MODE) -> int:
        if not flags & OPENED_TO_CHANGE:
            return super().open(path, flags, mode)
        self._meet("open", path)
        with self._lock:
            folder, name = self._find(path)
            fd = self._below.open(path, flags, mode)
            node = folder.entries.get(name)
            if node is None:
                node = _File()
                folder.change({name: node})
            assert isinstance(node, _File), "a folder is opened by fsync_dir only"
            if flags & os.O_TRUNC and node.content:
                node.change(0, None)
            self._paths[fd] = Path(path)
            self._open[fd] = (node, bool(flags & os.O_APPEND))
        self._met("open", path)
        return fd

    def write(self, fd: int, data: Bytes) -> int:
        path = self.path_of(fd)
        takes = self._meet("write", path)
        with self._lock:
            file, appends = self._open[fd]
            data = bytes(data)[:takes]
            offset = len(file.content) if appends else os.lseek(fd, 0, os.SEEK_CUR)
            if self.capacity is not None and data:
                room = self.capacity - _size(self._tree) - max(0, offset - len(file.content))
                data = data[: max(0, room + max(0, len(file.content) - offset))]
                if not data:
                    raise os_error(errno.ENOSPC, path)
            done = self._below.write(fd, data)
            if done:
                file.change(offset, data[:done])
        self._met("write", path)
        return done

    def fdatasync(self, fd: int) -> None:
        path = self.path_of(fd)
        file, _ = self._open[fd]
        try:
            self._meet("fdatasync", path)
        except OSError:
            with self._lock:
                for change in file.pending:
                    change.doomed = True
            raise
        with self._lock:
            file.sync()
        self._met("fdatasync", path)

    def truncate(self, fd: int, size: int) -> None:
        path = self.path_of(fd)
        self._meet("truncate", path)
        with self._lock:
            file, _ = self._open[fd]
            self._below.truncate(fd, size)
            file.change(size, None)
        self._met("truncate", path)

    def close(self, fd: int) -> None:
        path = self._paths.get(fd)
        file = None if self.dead else self._open.pop(fd, (None, False))[0]
        try:
            super().close(fd)
        except OSError:
            if file is not None and path is not None:
                with self._lock:
                    self.has_let_go |= file.lose_unsynced()
                    if path.exists():
                        path.write_bytes(file.durable)
            raise

    def rename(self, src: str | Path, dst: str | Path) -> None:
        self._meet("rename", dst)
        with self._lock:
            old, old_name = self._find(src)
            new, new_name = self._find(dst)
            self._below.rename(src, dst)
            node = old.entries[old_name]
            assert isinstance(node, _File), "folders are never renamed"
            if new.entries.get(new_name) is node:
                pass  # two names of one file: POSIX wants nothing done
            elif new is old:
                old.change({old_name: None, new_name: node})
            else:
                new.change({new_name: node})
                old.change({old_name: None})
        self._met("rename", dst)

    def link(self, src: str | Path, dst: str | Path) -> None:
        self._meet("link", dst)
        with self._lock:
            old, old_name = self._find(src)
            new, new_name = self._find(dst)
            self._below.link(src, dst)
            new.change({new_name: old.entries[old_name]})
        self._met("link", dst)

    def unlink(self, path: str | Path) -> None:
        self._meet("unlink", path)
        with self._lock:
            folder, name = self._find(path)
            self._below.unlink(path)
            folder.change({name: None})
        self._met("unlink", path)

    def mkdir(self, path: str | Path) -> None:
        self._meet("mkdir", path)
        with self._lock:
            folder, name = self._find(path)
            self._below.mkdir(path)
            folder.change({name: _Folder()})
        self._met("mkdir", path)

    def rmdir(self, path: str | Path) -> None:
        self._meet("rmdir", path)
        with self._lock:
            folder, name = self._find(path)
            self._below.rmdir(path)
            folder.change({name: None})
        self._met("rmdir", path)

    def fsync_dir(self, path: str | Path) -> None:
        with self._lock:
            folder = self._folder(Path(path))
        try:
            self._meet("fsync_dir", path)
        except OSError:
            with self._lock:
                for naming in folder.pending:
                    naming.doomed = True
            raise
        with self._lock:
            folder.sync()
        self._met("fsync_dir", path)

    # How it does it.

    def _begin(self, operation: str, path: Path) -> None:
        if self._alarm is not None and operation in CHANGES:
            if self._alarm == 0:
                self.dead = True
            self._alarm -= 1
        super()._begin(operation, path)

    def _find(self, path: str | Path) -> tuple[_Folder, str]:
        path = Path(path)
        return self._folder(path.parent), path.name

    def _folder(self, path: Path) -> _Folder:
        folder = self._tree
        for name in path.relative_to(self.root).parts:
            node = folder.entries.get(name)
            if node is None:
                raise os_error(errno.ENOENT, path)
            if not isinstance(node, _Folder):
                raise os_error(errno.ENOTDIR, path)
            folder = node
        return folder


@dataclass(slots=True)
class Remains:
    """What one power cut left. `outcome` is what the scenario returned, if it `finished` before the cut."""

    fs: CrashableDisk
    root: Path
    finished: bool
    outcome: Any
    last_call: str


def power_cuts(
    folder: Path,
    scenario: Callable[[CrashableDisk, Path], Any],
    *,
    before: Callable[[CrashableDisk, Path], None] | None = None,
    fates: int = 12,
) -> Iterator[Remains]:
    """Run the scenario again and again, cut the power before its first, second, .. and behind its last call, and show
    what each cut left: once with all lost that was not synced, once with all kept, and by chance.

    `before` prepares the disk; what it leaves is synced.
    """
    point, finished = 0, False
    while not finished:
        for fate in range(fates):
            root = folder / f"{point}-{fate}"
            root.mkdir()
            fs = CrashableDisk(root)
            if before is not None:
                before(fs, root)
                fs.kill()
                fs.settle()
            fs.calls.clear()
            fs.cut_power_before(point)
            outcome = None
            try:
                outcome = scenario(fs, root)
                finished = True
            except PowerCut:
                pass
            last = fs.calls[-1][0] if fs.calls else "nothing"
            chance = random.Random(f"{point} {fate}").randrange
            fs.crash([lambda _: 0, lambda n: n - 1, chance][min(fate, 2)])
            yield Remains(fs, root, finished, outcome, last)
        point += 1


def _pick(choice: Choice, n: int) -> int:
    return choice(n) if n > 1 else 0


def os_error(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))


_Left: TypeAlias = "dict[str, _Left | tuple[_File, bytes]]"


def _survivors(folder: _Folder, choice: Choice, seen: dict[_File, bytes]) -> _Left:
    left: _Left = {}
    for name, node in sorted(folder.survive(choice).items()):
        if isinstance(node, _Folder):
            left[name] = _survivors(node, choice, seen)
        else:
            if node not in seen:
                seen[node] = node.survive(choice)
            left[name] = (node, seen[node])
    return left


def _restore(left: _Left, root: Path, written: dict[_File, Path]) -> None:
    for name, node in left.items():
        path = root / name
        if isinstance(node, dict):
            path.mkdir()
            _restore(node, path, written)
            continue
        file, content = node
        if file in written:
            path.hardlink_to(written[file])
        else:
            path.write_bytes(content)
            written[file] = path


def _scan(root: Path, seen: dict[int, _File]) -> _Folder:
    folder = _Folder()
    for path in sorted(root.iterdir()):
        if path.is_dir():
            folder.entries[path.name] = _scan(path, seen)
        else:
            folder.entries[path.name] = seen.setdefault(path.stat().st_ino, _File(path.read_bytes()))
    folder.durable = dict(folder.entries)
    return folder


def _sync_all(folder: _Folder) -> None:
    folder.sync()
    for node in folder.entries.values():
        if isinstance(node, _Folder):
            _sync_all(node)
        else:
            node.sync()


def _files(folder: _Folder) -> set[_File]:
    found: set[_File] = set()
    for node in folder.entries.values():
        found |= _files(node) if isinstance(node, _Folder) else {node}
    return found


def _size(folder: _Folder) -> int:
    return sum(len(file.content) for file in _files(folder))
