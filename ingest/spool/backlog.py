"""The backlog: segments on disk whose batches wait for the store like dead-letter files.

Owns the segments that nobody writes: those of processes that were killed, in our slot and in slots adopted from them,
and our own whose batch could not be saved to the dead-letter queue. Promises that a segment's events enter the books
in the loop step in which it is listed, and leave them in the step in which it is settled; that a segment of this
process is never taken for one of a dead process; that a slot is let go once it is empty. Never appends to a segment,
never judges its lines (`codec.inspect_lines` does, for `recovery`), never blocks the loop.

A crash leaves these, and this becomes of them:

    <name>.jsonl            lines; counted by their newlines here, parsed when they are put
    .<name>.jsonl.*.tmp     a rewrite that was not published: removed if the segment, or the dead-letter file of its
                            key, is there; else it is all there is, and takes the segment's name
    .probe.*.tmp            nobody's: removed
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from ingest.disk import Reader, StorageError, exists, files_below, prune, published_path
from ingest.format import parse_key, segment_key
from ingest.spool.reading import contents_of, original_of
from ingest.spool.waiting import KeyedFile, Letter, Whereabouts
from ingest.telemetry import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor
    from pathlib import Path

    from ingest.disk import Filesystem, Slot
    from ingest.spool.waiting import Contents
    from ingest.telemetry import Metrics


CHUNK_BYTES: Final = 1 << 20

log = structlog.get_logger()


class Backlog:
    """Segments in the order of their batches' first events; few, for a process has one per batch in memory."""

    def __init__(
        self,
        fs: Filesystem,
        own: Slot,
        metrics: Metrics,
        executor: Executor,
        *,
        token: str,
        has_dead_letter: Callable[[str], bool],
    ) -> None:
        """`own` is the slot in which this process, of this `token`, writes; `has_dead_letter` may block."""
        self.place: Final = Place.BACKLOG
        self.events = 0
        self.files = 0
        self.bytes = 0
        self._fs = fs
        self._own = own
        self._metrics = metrics
        self._executor = executor
        self._token = token
        self._has_dead_letter = has_dead_letter
        self._adopted: list[Slot] = []
        self._listing = 0
        self._known: dict[Path, KeyedFile] = {}
        self._pass: list[KeyedFile] | None = None
        self._lent: set[Path] = set()

    @property
    def scanning(self) -> bool:
        """There are segments that are not in the books yet."""
        return self._listing > 0

    @property
    def adopted(self) -> int:
        """How many slots of dead processes are held."""
        return len(self._adopted)

    async def list_own(self) -> None:
        """List what earlier processes left in our own slot."""
        await self._list(self._own)

    async def adopt(self, slots: Iterable[Slot]) -> None:
        """List the segments of slots whose processes are gone; each slot is released when it is empty."""
        for slot in slots:
            self._adopted.append(slot)
            await self._list(slot)
        self._release_emptied()

    def keep(self, key: str, path: Path, size: int, events: int) -> None:
        """Take over a segment of this process: its events come from the upload queue's book."""
        self._add(KeyedFile(key, path, size, events))

    async def next(self) -> Letter | None:
        """Lend the oldest segment not yet lent in this pass; None at the end of each pass."""
        if self._pass is None:
            waiting = [file for path, file in self._known.items() if path not in self._lent]
            self._pass = sorted(waiting, key=lambda file: parse_key(file.key).unix, reverse=True)
        while self._pass:
            file = self._pass.pop()
            if file.path in self._known and file.path not in self._lent:
                return self._lend(file)
        self._pass = None
        return None

    async def find(self, key: str) -> Letter | Whereabouts:
        """Lend the segment of this key; UNKNOWN while somebody has it."""
        for path, file in self._known.items():
            if file.key == key:
                return Whereabouts.UNKNOWN if path in self._lent else self._lend(file)
        return Whereabouts.NOT_THERE

    async def contents(self, letter: Letter) -> Contents:
        """Read a lent segment once, and judge it."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, contents_of, self._fs, letter)

    async def original(self, letter: Letter) -> bytes:
        """Read a lent segment as it lies there."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, original_of, self._fs, letter)

    def settle(self, letter: Letter) -> None:
        """Take a lent segment, whose events are in another book now, out of ours."""
        self._forget(letter)

    async def take_back(self, letter: Letter) -> None:
        """Have a lent segment off the disk if it was settled, else in the queue again."""
        self._lent.discard(letter.path)
        if letter.settled:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._remove, letter.path)
            self._release_emptied()

    def defer(self, file: KeyedFile) -> None:
        """Take back a segment that could not be put: its turn comes in the next pass."""
        self._lent.discard(file.path)

    async def done(self, file: KeyedFile) -> None:
        """Take a segment out of the books, before the first await, and off the disk."""
        self._forget(file)
        self._lent.discard(file.path)
        await asyncio.get_running_loop().run_in_executor(self._executor, self._remove, file.path)
        self._release_emptied()

    def close(self) -> None:
        """Let go of the adopted slots."""
        for slot in self._adopted:
            slot.release()
        self._adopted.clear()

    def _lend(self, file: KeyedFile) -> Letter:
        self._lent.add(file.path)
        return Letter(file.key, file.path, file.size, file.events, self)

    def _forget(self, file: KeyedFile) -> None:
        known = self._known.pop(file.path, None)
        if known is not None:
            self.events -= known.events
            self.bytes -= known.size
            self.files -= 1

    def _add(self, file: KeyedFile) -> None:
        self._known[file.path] = file
        self.events += file.events
        self.bytes += file.size
        self.files += 1

    def _release_emptied(self) -> None:
        if self._listing:
            return
        for slot in list(self._adopted):
            if not any(slot.path in path.parents for path in self._known):
                self._adopted.remove(slot)
                slot.release()

    async def _list(self, slot: Slot) -> None:
        loop = asyncio.get_running_loop()
        self._listing += 1
        try:
            for path in await loop.run_in_executor(self._executor, self._settle_names, slot.path):
                try:
                    key = segment_key(slot.path, path)
                except ValueError:
                    log.warning("not_a_segment", path=str(path))
                    continue
                if parse_key(key).token == self._token or path in self._known:
                    continue
                try:
                    size, events = await loop.run_in_executor(self._executor, _count, self._fs, path)
                except OSError as error:
                    failure = StorageError.of("read", path, error)
                    log.error("segment_not_read", key=key, error=str(failure), hint=failure.hint)
                    continue
                self._metrics.books.recovered(events, self.place)
                self._add(KeyedFile(key, path, size, events))
                log.info("segment_found", key=key, events=events, size=size)
        finally:
            self._listing -= 1

    def _settle_names(self, root: Path) -> list[Path]:
        """Return the segments below a slot, after its temporaries found their end. Blocks."""
        segments = []
        unread: list[StorageError] = []
        for path in list(files_below(self._fs, root, unread)):
            if path.suffix == ".jsonl" and not path.name.startswith("."):
                segments.append(path)
            elif (target := published_path(path)) is not None:
                adopted = self._settle_temporary(root, path, target)
                if adopted is not None:
                    segments.append(adopted)
        for error in unread:
            log.error("journal_folder_unreadable", path=error.subject, hint=error.hint, errno=error.errno)
        return sorted(set(segments))

    def _settle_temporary(self, root: Path, temporary: Path, target: Path) -> Path | None:
        try:
            key = segment_key(root, target)
        except ValueError:
            key = ""
        if key and parse_key(key).token == self._token:
            return None  # ours, and being written right now
        try:
            if key and not exists(self._fs, target) and not self._has_dead_letter(key):
                # link, not rename: should the segment appear after all, it must not be replaced.
                with suppress(FileExistsError):
                    self._fs.link(temporary, target)
                    self._fs.fsync_dir(target.parent)
                self._fs.unlink(temporary)
                return target
            self._fs.unlink(temporary)
            prune(self._fs, temporary.parent, root)
        except (OSError, StorageError) as error:
            failure = error if isinstance(error, StorageError) else StorageError.of("unlink", temporary, error)
            log.warning("temporary_not_removed", path=str(temporary), error=str(failure), hint=failure.hint)
        return None

    def _remove(self, path: Path) -> None:
        root = next((slot.path for slot in (self._own, *self._adopted) if slot.path in path.parents), path.parent)
        try:
            self._fs.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            # It is listed again at the next start, and found stored then.
            failure = StorageError.of("unlink", path, error)
            log.warning("segment_not_removed", path=str(path), error=str(failure), hint=failure.hint)
            return
        prune(self._fs, path.parent, root)


def _count(fs: Filesystem, path: Path) -> tuple[int, int]:
    """Return a segment's bytes and its whole lines."""
    size = lines = 0
    with Reader(fs, path) as file:
        while chunk := file.read(CHUNK_BYTES):
            size += len(chunk)
            lines += chunk.count(b"\n")
    return size, lines
