"""Stand-ins for what a test must be able to break or to hold still: the disk, the clock, the store.

`CrashableFilesystem` is a `Filesystem` over a real directory that remembers what was synced. `crash` rewrites the
directory to what a power cut may leave, which SIGKILL cannot show: a process that dies leaves the page cache behind. It
is more spiteful than any one file system: what was not synced survives in every combination, as chance has it.

    bytes     `fdatasync` makes a file's writes and truncations durable. Of what came later any first part may survive.
    names     `fsync_dir` makes one folder's creations, renames, links and removals durable. Of the later ones each
              survives or not, by itself; a rename within one folder survives whole or not at all.
    failure   a sync that fails drops what it should have saved, as Linux does: the next sync of it succeeds and saves
              nothing. Only bytes written anew, and names given anew, can be synced then.

`FakeClock` stands still until it is told to go. `MemoryStore` is an `ObjectStore` that fails, hangs or loses its answer
on demand. None of them draws chance by itself: the same calls with the same choices give the same outcome.
"""

from __future__ import annotations

import asyncio
import errno
import heapq
import os
import random
import shutil
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from ingest.disk.errors import StorageError
from ingest.disk.filesystem import FILE_MODE, Bytes, Filesystem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ingest.store.object_store import ObjectMetadata

_Result = TypeVar("_Result")

Choice: TypeAlias = Callable[[int], int]
"""`choice(n)` picks one of 0 .. n-1: `random.Random(1).randrange`, or a draw of hypothesis."""

# ------------------------------------------------------------------------------------------------------ disk


class PowerCut(BaseException):
    """Raised by a call that the power cut came before; nothing that handles errors may meet it."""


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


@dataclass(slots=True)
class _Fault:
    operation: str
    error: int
    skip: int
    times: int
    when: Callable[[Path], bool] | None
    takes: int | None = None


class CrashableFilesystem(Filesystem):
    """A `Filesystem` over `root`, which is there already and whose present content counts as synced.

    Everything must happen below `root` and through these methods; after a test wrote there by itself, it calls
    `settle`. Folders are never renamed. Calls from several threads follow one another.
    """

    __slots__ = ("_alarm", "_faults", "_lock", "_open", "_tree", "calls", "capacity", "dead", "root")

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[tuple[str, Path]] = []
        """What was called, and on what, in order."""
        self.capacity: int | None = None
        """How many bytes all files together may hold; beyond it a write is short, then ENOSPC."""
        self.dead = False
        self._alarm: int | None = None
        self._faults: list[_Fault] = []
        self._lock = threading.RLock()
        self._open: dict[int, tuple[_File, Path, bool]] = {}
        self._tree = _Folder()
        self.settle()

    # What a test does to it.

    def fail(
        self,
        operation: str,
        error: int = errno.EIO,
        *,
        nth: int = 1,
        times: int = 1,
        when: Callable[[Path], bool] | None = None,
    ) -> None:
        """Let the nth call of `operation` from now on, and `times` in all, fail; `when` picks the paths that count."""
        self._faults.append(_Fault(operation, error, nth - 1, times, when))

    def short_write(self, takes: int, *, nth: int = 1, when: Callable[[Path], bool] | None = None) -> None:
        """Let the nth write from now on take only so many bytes; `when` picks the paths that count."""
        self._faults.append(_Fault("write", 0, nth - 1, 1, when, takes))

    def heal(self) -> None:
        """Forget the faults that have not happened yet."""
        self._faults.clear()

    def cut_power_before(self, nth: int) -> None:
        """Let the nth call from now on, counted from 0, and all after it, raise `PowerCut`; then call `crash`."""
        self._alarm = nth

    def kill(self) -> None:
        """End the process, not the host: descriptors and locks are gone, the page cache is not."""
        for fd in list(self._open):
            os.close(fd)
        self._open.clear()
        self._alarm = None
        self.dead = False

    def crash(self, choice: Choice | random.Random) -> None:
        """Cut the power: rewrite `root` to what is durable, and to what chance adds to it. All of it is synced then."""
        pick = choice.randrange if isinstance(choice, random.Random) else choice
        self.kill()
        self._faults.clear()
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
        with self._lock:
            self._meet("open", path)
            folder, name = self._find(path)
            fd = super().open(path, flags, mode)
            node = folder.entries.get(name)
            if node is None:
                node = _File()
                folder.change({name: node})
            assert isinstance(node, _File), "a folder is opened by fsync_dir only"
            if flags & os.O_TRUNC and node.content:
                node.change(0, None)
            self._open[fd] = (node, Path(path), bool(flags & os.O_APPEND))
            return fd

    def write(self, fd: int, data: Bytes) -> int:
        with self._lock:
            file, path, appends = self._opened(fd)
            takes = self._meet("write", path)
            data = bytes(data)[:takes]
            offset = len(file.content) if appends else os.lseek(fd, 0, os.SEEK_CUR)
            if self.capacity is not None and data:
                room = self.capacity - _size(self._tree) - max(0, offset - len(file.content))
                data = data[: max(0, room + max(0, len(file.content) - offset))]
                if not data:
                    raise _os_error(errno.ENOSPC, path)
            done = super().write(fd, data)
            if done:
                file.change(offset, data[:done])
            return done

    def fdatasync(self, fd: int) -> None:
        with self._lock:
            file, path, _ = self._opened(fd)
            try:
                self._meet("fdatasync", path)
            except OSError:
                for change in file.pending:
                    change.doomed = True
                raise
            file.sync()

    def truncate(self, fd: int, size: int) -> None:
        with self._lock:
            file, path, _ = self._opened(fd)
            self._meet("truncate", path)
            super().truncate(fd, size)
            file.change(size, None)

    def close(self, fd: int) -> None:
        with self._lock:
            _, path, _ = self._opened(fd)
            if self.dead:
                raise PowerCut
            super().close(fd)
            del self._open[fd]
            self._meet("close", path)

    def rename(self, src: str | Path, dst: str | Path) -> None:
        with self._lock:
            self._meet("rename", dst)
            old, old_name = self._find(src)
            new, new_name = self._find(dst)
            super().rename(src, dst)
            node = old.entries[old_name]
            assert isinstance(node, _File), "folders are never renamed"
            if new.entries.get(new_name) is node:
                return  # two names of one file: POSIX wants nothing done
            if new is old:
                old.change({old_name: None, new_name: node})
            else:
                new.change({new_name: node})
                old.change({old_name: None})

    def link(self, src: str | Path, dst: str | Path) -> None:
        with self._lock:
            self._meet("link", dst)
            old, old_name = self._find(src)
            new, new_name = self._find(dst)
            super().link(src, dst)
            new.change({new_name: old.entries[old_name]})

    def unlink(self, path: str | Path) -> None:
        with self._lock:
            self._meet("unlink", path)
            folder, name = self._find(path)
            super().unlink(path)
            folder.change({name: None})

    def mkdir(self, path: str | Path) -> None:
        with self._lock:
            self._meet("mkdir", path)
            folder, name = self._find(path)
            super().mkdir(path)
            folder.change({name: _Folder()})

    def rmdir(self, path: str | Path) -> None:
        with self._lock:
            self._meet("rmdir", path)
            folder, name = self._find(path)
            super().rmdir(path)
            folder.change({name: None})

    def fsync_dir(self, path: str | Path) -> None:
        with self._lock:
            folder = self._folder(Path(path))
            try:
                self._meet("fsync_dir", path)
            except OSError:
                for naming in folder.pending:
                    naming.doomed = True
                raise
            folder.sync()

    # How it does it.

    def _meet(self, operation: str, path: str | Path) -> int | None:
        if self._alarm is not None:
            if self._alarm == 0:
                self.dead = True
            self._alarm -= 1
        if self.dead:
            raise PowerCut
        path = Path(path)
        self.calls.append((operation, path))
        for fault in self._faults:
            if fault.operation != operation or (fault.when is not None and not fault.when(path)):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            fault.times -= 1
            if fault.times == 0:
                self._faults.remove(fault)
            if fault.takes is not None:
                return fault.takes
            raise _os_error(fault.error, path)
        return None

    def _opened(self, fd: int) -> tuple[_File, Path, bool]:
        if fd not in self._open:
            raise PowerCut if self.dead else OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._open[fd]

    def _find(self, path: str | Path) -> tuple[_Folder, str]:
        path = Path(path)
        return self._folder(path.parent), path.name

    def _folder(self, path: Path) -> _Folder:
        folder = self._tree
        for name in path.relative_to(self.root).parts:
            node = folder.entries.get(name)
            if node is None:
                raise _os_error(errno.ENOENT, path)
            if not isinstance(node, _Folder):
                raise _os_error(errno.ENOTDIR, path)
            folder = node
        return folder


@dataclass(slots=True)
class Remains:
    """What one power cut left. `outcome` is what the scenario returned, if it `finished` before the cut."""

    fs: CrashableFilesystem
    root: Path
    finished: bool
    outcome: Any
    last_call: str


def power_cuts(
    folder: Path,
    scenario: Callable[[CrashableFilesystem, Path], Any],
    *,
    before: Callable[[CrashableFilesystem, Path], None] | None = None,
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
            fs = CrashableFilesystem(root)
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


def _os_error(number: int, path: Path) -> OSError:
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


# ----------------------------------------------------------------------------------------------------- clock


class FakeClock:
    """Time that passes when told to: `time` (may be set back), `monotonic` (never), and `sleep`, which follows it."""

    __slots__ = ("_monotonic", "_sleepers", "_slept", "_time")

    def __init__(self, now: float = 1_764_720_000.0) -> None:
        self._time = now
        self._monotonic = 1000.0
        self._slept = 0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def time(self) -> float:
        return self._time

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass, and wake who slept until then."""
        self._time += seconds
        self._monotonic += seconds
        while self._sleepers and self._sleepers[0][0] <= self._monotonic:
            future = heapq.heappop(self._sleepers)[2]
            if not future.done():
                future.set_result(None)

    def step(self, seconds: float) -> None:
        """Set the wall clock forward or back, as NTP does; nobody wakes."""
        self._time += seconds

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        self._slept += 1
        heapq.heappush(self._sleepers, (self._monotonic + seconds, self._slept, future))
        await future

    @property
    def next_wake(self) -> float | None:
        """In how many seconds the first sleeper wakes."""
        awake = [deadline for deadline, _, future in self._sleepers if not future.done()]
        return min(awake) - self._monotonic if awake else None


# ----------------------------------------------------------------------------------------------------- store


class MemoryStore:
    """An `ObjectStore` in a dictionary. What shall go wrong is said beforehand and happens to the calls that come next.

    fail_next         the call fails and stores nothing
    lose_next_answers the call stores, then fails as if the answer had been lost
    hang_next         the call waits until `resume`, or until it is cancelled; it stores only after that
    down              every call fails until it is False again
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.metadata: dict[str, ObjectMetadata] = {}
        self.calls: list[tuple[str, str]] = []
        """Operation and key of every call, in order."""
        self.replaced: list[tuple[str, bytes, bytes]] = []
        """Key, old and new body, whenever a put changed what was stored."""
        self.down = False
        self.running = 0
        """How many calls are under way."""
        self.started = self.closed = False
        self._fates: deque[StorageError | _Fate] = deque()
        self._resumed: asyncio.Event | None = None

    def fail_next(self, n: int = 1, *, transient: bool = True) -> None:
        self._fates.extend(StorageError("put", "", "told to fail", transient=transient) for _ in range(n))

    def lose_next_answers(self, n: int = 1) -> None:
        self._fates.extend([_Fate.LOSE_ANSWER] * n)

    def hang_next(self, n: int = 1) -> None:
        self._fates.extend([_Fate.HANG] * n)

    def succeed_next(self, n: int = 1) -> None:
        """Let n calls pass before the next fate."""
        self._fates.extend([_Fate.PASS] * n)

    def resume(self) -> None:
        """Let go of the calls that hang."""
        if self._resumed is not None:
            self._resumed.set()
            self._resumed = None

    async def start(self) -> None:
        self.started = True

    async def prepare(self) -> None:
        """Nothing to do."""

    async def put(self, key: str, body: bytes, metadata: ObjectMetadata) -> None:
        await self._call("put", key, lambda: self._store(key, body, metadata))

    async def create(self, key: str, body: bytes, metadata: ObjectMetadata) -> bool:
        def create() -> bool:
            if key in self.objects:
                return False
            self._store(key, body, metadata)
            return True

        return await self._call("create", key, create)

    async def get(self, key: str) -> bytes:
        def get() -> bytes:
            if key not in self.objects:
                raise StorageError("get", key, "there is no such object", transient=False)
            return self.objects[key]

        return await self._call("get", key, get)

    async def delete(self, key: str) -> None:
        await self._call("delete", key, lambda: self.objects.pop(key, None))

    async def close(self) -> None:
        self.closed = True

    def _store(self, key: str, body: bytes, metadata: ObjectMetadata) -> None:
        if self.objects.get(key, body) != body:
            self.replaced.append((key, self.objects[key], body))
        self.objects[key] = bytes(body)
        self.metadata[key] = metadata

    async def _call(self, operation: str, key: str, effect: Callable[[], _Result]) -> _Result:
        self.calls.append((operation, key))
        self.running += 1
        try:
            await asyncio.sleep(0)  # every store lets others run in between
            if self.down:
                raise StorageError(operation, key, "the store is down", transient=True)
            fate = self._fates.popleft() if self._fates else _Fate.PASS
            if isinstance(fate, StorageError):
                raise StorageError(operation, key, fate.hint, transient=fate.transient)
            if fate is _Fate.HANG:
                self._resumed = self._resumed or asyncio.Event()
                await self._resumed.wait()
            result = effect()
            if fate is _Fate.LOSE_ANSWER:
                raise StorageError(operation, key, "the answer was lost", transient=True)
            return result
        finally:
            self.running -= 1


class _Fate(Enum):
    PASS = auto()
    LOSE_ANSWER = auto()
    HANG = auto()
