"""The dead-letter queue: batches that the store did not take, as files, until it does.

Owns: the files below its slots (`<slot>/<key>`: the path below the slot is the key), their count in the books, which of
them is next, and what happens when the disk is full.

Promises:

    save      when it returns, the file is published (temporary, synced, renamed, folder synced) and in the books
    next      oldest hour first; one step reads at most `SCAN_LIMIT` names and touches one file, however many there are
    books     a file is lent only after it was counted, and leaves the books in the loop step in which it is settled
    scan      files of earlier runs are counted beside the running server, in chunks, at a quarter of one core at most
    full      `DLQ_MAX_SIZE_BYTES` (backlog included) or less than `DISK_RESERVE` free: refuse, or drop the oldest

Never: puts an object, blocks the loop, judges what is in a file (but for temporaries left by a crash).

How a file is found. A pass lists the hour folders once, walks them oldest first, and reads each through one open handle
in chunks of `SCAN_LIMIT` names. A folder is never read from its start again before the next pass: the front of a folder
that was mostly drained is a long run of deleted entries, and a file that cannot be stored would be met again and again.
`next` ends each pass with one None, so that a caller with nothing but bad files pauses instead of spinning.

How the books stay right. `save` counts what it saved. Files of earlier runs are counted by `scan` from the gzip
headers, chunk by chunk, each in one loop step. A file is lent only after it is counted. While a folder is still being
counted, files of its finished chunks may be lent (`_early`). Files are too many to remember, so each folder has a
tally. When the folder is gone, what remains of its tally (a file somebody removed, a header that rotted after it was
counted) is dropped as corrupt or counted as recovered: an error of one file lasts no longer than its folder.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple

import structlog

from ingest import disk
from ingest.disk import StorageError, Volume
from ingest.disk.publish import publish
from ingest.format import codec, dlq_key, dlq_path
from ingest.spool.hours import Walk, hour_folders, look
from ingest.spool.reading import contents_of, original_of
from ingest.spool.waiting import Letter, Whereabouts
from ingest.telemetry import DropReason, Place

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from ingest.config import Settings
    from ingest.spool.hours import Chunk
    from ingest.spool.waiting import Contents, KeyedFile
    from ingest.telemetry import Metrics


SCAN_LIMIT: Final = 1_000
COUNT_CHUNK: Final = 250
COUNT_DUTY: Final = 3.0
"""A counted chunk is followed by a sleep of this many times the time it took."""
RECOUNT_PAUSE: Final = 60.0

A = TypeVarTuple("A")
T = TypeVar("T")

log = structlog.get_logger()


class DlqFull(StorageError):  # noqa: N818 - a state, not a fault: the queue is at its limit and refuses
    """The queue is at its limit and nothing may be, or can be, evicted."""


class DeadLetterQueue:
    """The files below one slot of our own, and below those adopted from processes that are gone."""

    def __init__(
        self,
        settings: Settings,
        fs: disk.Filesystem,
        slots: Sequence[disk.Slot],
        metrics: Metrics,
        executor: Executor,
        *,
        token: str,
        backlog_bytes: Callable[[], int] = lambda: 0,
        has_segment: Callable[[str], bool] = lambda key: False,  # noqa: ARG005 - the shape is the contract
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`slots[0]` is our own. `has_segment` may block: it is asked in the executor."""
        self.place: Final = Place.DLQ
        self.events = 0
        self.files = 0
        self.bytes = 0

        self._max_bytes = settings.dlq_max_size_bytes
        self._evicts = settings.dlq_on_full == "evict"
        self._fs = fs
        self._own = slots[0].path
        self._metrics = metrics
        self._executor = executor
        self._token = token
        self._backlog_bytes = backlog_bytes
        self._has_segment = has_segment
        self._clock = clock
        self._sleep = sleep

        # What is below the slots, as far as it is known.
        self._unlisted = list(slots)
        self._slots: list[disk.Slot] = []
        self._counting = asyncio.Lock()
        self._uncounted: set[Path] = set()
        self._early: deque[Path] = deque()
        self._tallies: dict[Path, _Tally] = {}
        self._writing: Counter[Path] = Counter()
        self._synced: set[Path] = set()

        # The pass of `next`, and files that it must pass over.
        self._walk: Walk | None = None
        self._names: deque[Path] = deque()
        self._stepping = asyncio.Lock()
        self._lent: set[Path] = set()
        self._outside: set[Path] = set()
        """Files that are not in the books, or no longer, and that the disk would not let us remove yet."""
        self._headless: set[Path] = set()
        """Files that could not be read when they were counted, so that they count for nothing."""
        self._complained: set[Path] = set()

        # Room on the disk.
        self._volume = Volume(fs, self._own, settings.disk_reserve, executor, clock)
        self._admitting = asyncio.Lock()
        self._promised = 0
        """Bytes of saves under way."""
        self._victims: deque[Path] = deque()

    # ------------------------------------------------------------------------------------------------- saving

    async def save(self, key: str, body: bytes, events: int, *, force: bool = False) -> None:
        """Publish a batch's file and count it; `DlqFull` if there is no room (`force`: as long as the disk has some).

        Not to be cancelled: the file would be published and not counted.
        """
        path = dlq_path(self._own, key)
        await self._admit(key, len(body), force=force)
        self._writing[path.parent] += 1
        try:
            await self._call(self._publish, path, body)
        finally:
            self._promised -= len(body)
            self._writing[path.parent] -= 1
            if not self._writing[path.parent]:
                del self._writing[path.parent]
        self._outside.discard(path)
        self._count(path.parent, _Tally(1, events, len(body)))
        self._volume.took(len(body))
        self._metrics.enqueued += events

    @property
    def disk_free(self) -> int:
        """Bytes free on the disk, as last measured; 0 until then."""
        return self._volume.free

    @property
    def full(self) -> bool:
        """No file would be taken now. Costs nothing: the volume is measured beside the loop."""
        self._volume.measure_soon()
        return self._over(1) and not (self._evicts and self.files)

    async def _admit(self, key: str, size: int, *, force: bool) -> None:
        async with self._admitting:
            await self._volume.measure()
            hopeless = self._backlog_bytes() + size > self._max_bytes
            while not force and self._over(size):
                if not self._evicts or hopeless or not await self._evict_oldest():
                    raise DlqFull("save", key, "grow DLQ_MAX_SIZE_BYTES or the disk, or free space", transient=True)
            self._promised += size

    def _over(self, size: int) -> bool:
        size += self._promised
        return self.bytes + self._backlog_bytes() + size > self._max_bytes or self._volume.lacks(size)

    def _publish(self, path: Path, body: bytes) -> None:
        try:
            publish(self._fs, path, body, root=self._own, synced=self._synced)
        except StorageError:
            # `publish` leaves the file standing if only the folder's sync failed. Our caller still has the batch, so a
            # file that is in nobody's books goes; if even that fails it is passed over from now on.
            try:
                self._fs.unlink(path)
            except FileNotFoundError:
                pass
            except OSError:
                self._outside.add(path)
            raise

    # ------------------------------------------------------------------------------------------------- lending

    async def next(self) -> Letter | None:
        """Lend the next file; None at the end of each pass."""
        async with self._stepping:
            while True:
                while self._names:
                    file = await self._lend(self._names.popleft())
                    if file is not None:
                        return file
                if not await self._step():
                    return None

    async def find(self, key: str) -> Letter | Whereabouts:
        """Lend the file of this key; UNKNOWN while it is not in the books yet, or cannot be read."""
        for slot in [*self._slots, *self._unlisted]:
            path = dlq_path(slot.path, key)
            if path in self._lent:
                return Whereabouts.UNKNOWN
            try:
                if not await self._call(disk.exists, self._fs, path):
                    continue
            except StorageError as error:
                self._complain("dlq_file_unreadable", path, error)
                return Whereabouts.UNKNOWN
            if slot in self._unlisted or path.parent in self._uncounted:
                return Whereabouts.UNKNOWN
            letter = await self._lend(path)
            return letter or Whereabouts.UNKNOWN
        return Whereabouts.NOT_THERE

    async def contents(self, letter: Letter) -> Contents:
        """Read a lent file once, and judge it."""
        return await self._call(contents_of, self._fs, letter)

    async def original(self, letter: Letter) -> bytes:
        """Read a lent file as it lies there."""
        return await self._call(original_of, self._fs, letter)

    def settle(self, letter: Letter) -> None:
        """Take a lent file, whose events are in another book now, out of ours."""
        self._forget(letter)

    async def take_back(self, letter: Letter) -> None:
        """Have a lent file off the disk if it was settled, else in the queue again."""
        if letter.settled:
            await self._remove(letter)
        else:
            self.defer(letter)

    def defer(self, file: KeyedFile) -> None:
        """Take a file back that could not be put: its turn comes again in the next pass."""
        self._lent.discard(file.path)

    async def done(self, file: KeyedFile) -> None:
        """Take a file whose events are in another book now out of ours, before the first await; then off the disk."""
        self._forget(file)
        await self._remove(file)

    def close(self) -> None:
        """Let go of handles and locks; call it when nothing else runs here any more."""
        if self._walk is not None:
            self._walk.close()
            self._walk = None
        for slot in [*self._slots, *self._unlisted]:
            slot.release()

    async def _step(self) -> bool:
        """Find more names; False at the end of a pass."""
        if self._walk is None:
            folders = await self._call(hour_folders, self._fs, [slot.path for slot in self._slots])
            self._walk = Walk(self._fs, (folder for folder in folders if folder not in self._uncounted), self._root)
        chunk = await self._call(self._walk.step, SCAN_LIMIT)
        if chunk is not None:
            self._names.extend(chunk.paths)
            if chunk.last and not chunk.paths:
                await self._prune(chunk.folder)
            return True
        self._walk = None
        if self._early:
            self._names, self._early = self._early, deque()
            return True
        await self._release_emptied()
        return False

    async def _lend(self, path: Path) -> Letter | None:
        if path in self._lent:
            return None
        if path in self._outside:
            await self._unlink(path)
            return None
        self._lent.add(path)
        try:
            size, events = await self._call(look, self._fs, path)
        except FileNotFoundError:
            self._lent.discard(path)
            return None
        except OSError as error:
            # No verdict upon the file: the disk would not say. It stays, and is asked again in the next pass.
            self._lent.discard(path)
            self._complain("dlq_file_unreadable", path, StorageError.of("read", path, error))
            return None
        except asyncio.CancelledError:
            self._lent.discard(path)
            raise
        key = dlq_key(self._root(path), path)
        return Letter(key, path, size, 0 if path in self._headless else events or 0, self)

    # ------------------------------------------------------------------------------------------------- the books

    def _count(self, folder: Path, tally: _Tally) -> None:
        self._tallies.setdefault(folder, _Tally()).add(tally)
        self.files += tally.files
        self.events += tally.events
        self.bytes += tally.size

    def _forget(self, file: KeyedFile) -> None:
        self._count(file.path.parent, _Tally(-1, -file.events, -file.size))
        self._headless.discard(file.path)
        self._complained.discard(file.path)

    async def _remove(self, file: KeyedFile) -> None:
        path = file.path
        # Out of the books and not yet off the disk: lent now, it would leave the books twice.
        self._outside.add(path)
        self._lent.discard(path)
        if await self._unlink(path):
            self._volume.took(-file.size)
            tally = self._tallies.get(path.parent)
            if tally is not None and tally.files <= 0:
                await self._prune(path.parent)

    async def _unlink(self, path: Path) -> bool:
        try:
            await self._call(self._fs.unlink, path)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._complain("dlq_file_not_removed", path, StorageError.of("unlink", path, error))
            return False
        self._outside.discard(path)
        self._complained.discard(path)
        return True

    async def _prune(self, folder: Path) -> None:
        """Remove an emptied hour and settle what is left of its tally. A save that meets this makes it again."""
        if self._writing[folder] or folder in self._uncounted:
            return
        # Taken out before the await: what is saved there meanwhile starts a tally of its own.
        rest = self._tallies.pop(folder, None)
        gone = False
        try:
            gone = await self._call(self._rmdir, folder)
        finally:
            if rest is not None and not gone:
                self._tallies.setdefault(folder, _Tally()).add(rest)
        if rest is not None and gone:
            self._settle(folder, rest)

    def _rmdir(self, folder: Path) -> bool:
        disk.prune(self._fs, folder, self._root(folder))
        try:
            if disk.exists(self._fs, folder):
                return False
        except StorageError:
            return False  # not known to be gone: it is settled when it is
        self._synced.difference_update([folder, *folder.parents])
        return True

    def _settle(self, folder: Path, rest: _Tally) -> None:
        self.files -= rest.files
        self.events -= rest.events
        self.bytes -= rest.size
        if rest.events > 0:
            self._metrics.books.dropped(rest.events, DropReason.CORRUPT, self.place)
        else:
            self._metrics.books.recovered(-rest.events, self.place)
        if rest.events or rest.files:
            log.error(
                "dlq_books_corrected",
                folder=str(folder),
                files=rest.files,
                events=rest.events,
                hint="files there were changed or removed by something else",
            )

    # ------------------------------------------------------------------------------------------------- counting

    async def scan(self) -> None:
        """Count what earlier runs left, and see to their temporaries; returns when all of it is in the books."""
        pause = 1.0
        async with self._counting:
            folders = await self._list()
            while folders:
                folders = await self._count_folders(folders)
                if folders:
                    await self._sleep(pause)
                    pause = min(pause * 2, RECOUNT_PAUSE)

    async def adopt(self, slots: Iterable[disk.Slot]) -> None:
        """Take over slots of processes that are gone: count their files, lend them, release each when it is empty."""
        self._unlisted.extend(slots)
        await self.scan()

    @property
    def adopted(self) -> int:
        """How many slots of dead processes are held."""
        return len(self._slots) + len(self._unlisted) - 1

    @property
    def scanning(self) -> bool:
        """There are files that are not in the books yet."""
        return bool(self._unlisted or self._uncounted)

    async def _list(self) -> list[Path]:
        slots = list(self._unlisted)
        folders = await self._call(hour_folders, self._fs, [slot.path for slot in slots])
        # One step: a slot is lent from as soon as it is listed, so its folders must be known as uncounted by then. A
        # folder that a save makes from here on holds only files that the save counts.
        self._uncounted.update(folders)
        self._slots += slots
        self._unlisted = [slot for slot in self._unlisted if slot not in slots]
        return folders

    async def _count_folders(self, folders: list[Path]) -> list[Path]:
        """Count these folders; returns those that could not be opened."""
        failed: list[Path] = []
        temporaries: list[Path] = []
        walk = Walk(self._fs, folders, self._root)
        try:
            while True:
                began = self._clock()
                chunk, counted, headless = await self._call(self._count_step, walk)
                if chunk is None:
                    return failed
                self._headless.update(headless)
                self._count(chunk.folder, counted)
                self._metrics.books.recovered(counted.events, self.place)
                if len(self._early) < SCAN_LIMIT and not chunk.last:
                    self._early.extend(chunk.paths)
                temporaries += chunk.temporaries
                if chunk.failed:
                    failed.append(chunk.folder)
                elif chunk.last:
                    for temporary in temporaries:
                        await self._salvage(temporary)
                    self._early.clear()
                    self._uncounted.discard(chunk.folder)
                if chunk.last:
                    temporaries.clear()
                await self._sleep(COUNT_DUTY * (self._clock() - began))
        finally:
            walk.close()

    def _count_step(self, walk: Walk) -> tuple[Chunk | None, _Tally, list[Path]]:
        counted = _Tally()
        headless: list[Path] = []
        chunk = walk.step(COUNT_CHUNK)
        if chunk is not None:
            # What this process saved is counted by `save`.
            chunk.paths = [path for path in chunk.paths if not self._is_own(path)]
            chunk.temporaries = [path for path in chunk.temporaries if not self._is_own(path)]
            for path in chunk.paths:
                try:
                    size, events = look(self._fs, path)
                except FileNotFoundError:
                    continue
                except OSError:
                    size, events = 0, 0
                    headless.append(path)
                counted.add(_Tally(1, events or 0, size))
        return chunk, counted, headless

    def _is_own(self, path: Path) -> bool:
        return f"-{self._token}_" in path.name

    async def _salvage(self, temporary: Path) -> None:
        """Remove a temporary if its batch lies elsewhere too; else what is sound in it becomes the batch's file."""
        try:
            counted = await self._call(self._salvage_step, temporary)
        except (OSError, StorageError) as error:
            reason = error if isinstance(error, StorageError) else StorageError.of("salvage", temporary, error)
            self._complain("dlq_temporary_kept", temporary, reason)
            return
        if counted is not None:
            self._count(temporary.parent, counted)
            self._metrics.books.recovered(counted.events, self.place)
            log.warning("dlq_temporary_salvaged", path=str(temporary), events=counted.events)

    def _salvage_step(self, temporary: Path) -> _Tally | None:
        target = disk.published_path(temporary)
        if target is None:
            return None
        root = self._root(temporary)
        try:
            key = dlq_key(root, target)
        except ValueError:
            return None
        counted = None
        if not disk.exists(self._fs, target) and not self._has_segment(key):
            with disk.Reader(self._fs, temporary) as file:
                found = codec.inspect_gzip(file)
                file.seek(0)
                body = file.read_all() if found.sound else found.body
            if found.events and body is not None:
                publish(self._fs, target, body, root=root)
                counted = _Tally(1, found.events, len(body))
        # Crash point: both names stand. The next start finds the key published and only removes the temporary.
        with suppress(OSError):
            self._fs.unlink(temporary)
        return counted

    async def _release_emptied(self) -> None:
        """Between two passes: an adopted slot that holds no hour any more is somebody else's to take."""
        for slot in self._slots[1:]:
            if await self._call(hour_folders, self._fs, [slot.path]):
                continue
            for folder in [folder for folder in self._tallies if folder.is_relative_to(slot.path)]:
                self._settle(folder, self._tallies.pop(folder))
            self._slots.remove(slot)
            slot.release()
            log.info("dlq_slot_released", path=str(slot.path))

    # ------------------------------------------------------------------------------------------------- room

    async def _evict_oldest(self) -> bool:
        """Drop the oldest file, counted; False if there is none that can be dropped."""
        for refilled in (False, True):
            if not self._victims:
                if refilled:
                    return False
                self._victims.extend(await self._oldest())
            while self._victims:
                file = await self._lend(self._victims.popleft())
                if file is not None:
                    return await self._evict(file)
        return False

    async def _evict(self, file: KeyedFile) -> bool:
        # Off the disk first, unlike `done`: a file that cannot be removed makes no room and is not lost.
        try:
            await self._call(self._fs.unlink, file.path)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._lent.discard(file.path)
            self._complain("dlq_file_not_removed", file.path, StorageError.of("unlink", file.path, error))
            return False
        events = file.events
        self._lent.discard(file.path)
        self._forget(file)
        self._metrics.books.dropped(events, DropReason.EVICTED, self.place)
        self._metrics.files_evicted += 1
        self._volume.took(-file.size)
        log.warning("dlq_evicted", key=file.key, events=events, hint="the queue is full and DLQ_ON_FULL=evict")
        if self._tallies[file.path.parent].files <= 0:
            await self._prune(file.path.parent)
        return True

    async def _oldest(self) -> list[Path]:
        folders = await self._call(hour_folders, self._fs, [slot.path for slot in self._slots])
        walk = Walk(self._fs, (folder for folder in folders if folder not in self._uncounted), self._root)
        try:
            while (chunk := await self._call(walk.step, SCAN_LIMIT)) is not None:
                if chunk.paths:
                    return chunk.paths
        finally:
            walk.close()
        return list(self._early)

    # ------------------------------------------------------------------------------------------------- below

    async def _call(self, function: Callable[[*A], T], *args: *A) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)

    def _root(self, path: Path) -> Path:
        for slot in [*self._slots, *self._unlisted]:
            if path.is_relative_to(slot.path):
                return slot.path
        raise ValueError(f"{path} is in no slot")

    def _complain(self, event: str, path: Path, error: StorageError) -> None:
        """Log a file's trouble once, not once a pass."""
        if path not in self._complained:
            self._complained.add(path)
            log.error(event, path=str(path), operation=error.operation, hint=error.hint, errno=error.errno)


@dataclass(slots=True)
class _Tally:
    files: int = 0
    events: int = 0
    size: int = 0

    def add(self, other: _Tally) -> None:
        self.files += other.files
        self.events += other.events
        self.size += other.size
