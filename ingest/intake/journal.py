"""The journal: what is acknowledged lies on disk until its object, or its dead-letter file, does.

Owns the segments this process writes: one file per batch, `<JOURNAL_DIR>/<slot>/<key without .gz>`, plain JSON lines,
so that `cat` shows what is there and a torn tail is whatever follows the last newline.

Promises, by `DURABILITY`:

    journal   the lines of a tick are written (one `write(2)`) before any of them is answered
    fsync     they are also synced: one `fdatasync` for all lines that were written while the last one ran, in the
              executor, while the loop goes on accepting; the first sync of a segment syncs its name and its folders too

    order     write -> (sync) -> acknowledge -> seal -> (last sync) -> upload queue
              -> stored, or published as a dead letter -> unlink

When the disk fails, the group that met the failure is refused, and buffer, count and file are cut to the same offset.
The journal latches: everything is refused until a probe goes through. A descriptor whose `fdatasync` failed is never
synced again, for the kernel may have dropped the dirty pages and report success; nor is one whose truncate failed
written again. The batch is then rewritten from memory into a temporary that is published over the segment's name. If
that fails too, the batch seals at its last acknowledged event and uploads from memory, and the old segment stays
until its object is stored.

Crash points: between write and acknowledge the lines may be stored though nobody was told (the answer was lost);
between stored and unlink the segment is recovered, and its create-only put finds the object there.

Never reads a segment (that is `backlog`), never puts an object.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from ingest.disk import TEMPORARY_SUFFIX, Filesystem, StorageError, TornTail, create, make_dirs, prune
from ingest.disk.append import append
from ingest.disk.publish import publish
from ingest.format import segment_path
from ingest.telemetry import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor
    from pathlib import Path

    from ingest.disk import Slot
    from ingest.intake.batch import Batch, Turn
    from ingest.telemetry import Metrics


PROBE_SECONDS: Final = 1.0
PROBE_BYTES: Final = 65536

log = structlog.get_logger()


class NoJournal:
    """`DURABILITY=memory`: nothing is written, so there is nothing to remove or to fall back on."""

    events = 0
    sealing = False

    def release(self, batch: Batch) -> None:
        """Do nothing."""

    def retain(self, batch: Batch) -> bool:  # noqa: ARG002 - the journal's shape
        """Tell that the batch lives in memory alone."""
        return False

    async def close(self) -> None:
        """Do nothing."""


class Segment:
    """A file of the journal that is still written, or waits for its batch to be stored."""

    __slots__ = ("broken", "fd", "named", "path", "released", "size")

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd: int | None = fd
        self.size = 0
        self.named = False
        """Whether its name, and those of the folders above it, are synced."""
        self.broken = False
        """Whether its end, or its last sync, cannot be trusted."""
        self.released = False


class _Group:
    """A turn that is settled in its order: lines of one batch, or (without a batch) refused."""

    __slots__ = ("batch", "refused", "turn")

    def __init__(self, batch: Batch | None, turn: Turn) -> None:
        self.batch = batch
        self.turn = turn
        self.refused = batch is None


class Journal:
    """The segments of this process, in a slot it holds.

    `submit` takes a sealed batch; `seal_open` seals the batch if it is the open one; `keep` adds a file to the backlog.
    """

    def __init__(
        self,
        fs: Filesystem,
        slot: Slot,
        executor: Executor,
        sync_executor: Executor,
        metrics: Metrics,
        *,
        sync: bool,
        submit: Callable[[Batch], None],
        seal_open: Callable[[Batch], None],
        keep: Callable[[str, Path, int, int], None],
    ) -> None:
        # For the process's life.
        self._fs = fs
        self._root = slot.path
        self._executor = executor
        self._sync_executor = sync_executor
        self._metrics = metrics
        self._submit = submit
        self._seal_open = seal_open
        self._keep = keep
        self.deferred = sync
        self._folder = slot.path
        """Where segments are created now: the folder of the open batch's hour."""

        # Group commit.
        self._waiting: list[_Group] = []
        self._syncing: list[_Group] = []
        self._decided: list[_Group] = []
        self._sealing: list[Batch] = []
        self._sync_over = asyncio.Event()

        # After a failure.
        self.latched = False
        self._broken: list[Batch] = []
        self._repairing: asyncio.Task[None] | None = None
        self._removals: set[asyncio.Future[None]] = set()

    @property
    def events(self) -> int:
        """Acknowledged events of sealed batches that still wait for the sync of their last lines."""
        return sum(batch.events for batch in self._sealing)

    @property
    def sealing(self) -> bool:
        """Some sealed batch is not submitted yet."""
        return bool(self._sealing)

    # The open batch.

    def begin(self, batch: Batch) -> bool:
        """Create the batch's segment; False when the disk refuses, or has refused and no probe has gone through."""
        if self.latched:
            return False
        path = segment_path(self._root, batch.key)
        if path.parent != self._folder:
            previous, self._folder = self._folder, path.parent
            self._in_background(self._prune, previous)
        try:
            fd = create(self._fs, path, self._root, sync=False)
        except StorageError as error:
            self._latch(error)
            return False
        batch.segment = Segment(path, fd)
        return True

    def write(self, batch: Batch, data: bytes) -> bool:
        """Write lines to the end of the segment; False when the disk refuses, with nothing of them left in it."""
        if self.latched:
            return False
        segment: Segment = batch.segment
        assert segment.fd is not None  # noqa: S101 - open while its batch is, and not latched
        try:
            segment.size = append(
                self._fs, segment.fd, data, segment.size, subject=segment.path, sync_roll_back=self.deferred
            )
        except TornTail as error:
            self._fail(batch, error)
            if not self.deferred:
                self._rewrite_now(batch)
            return False
        except StorageError as error:
            self._latch(error)
            return False
        self._metrics.journal_writes += 1
        return True

    def seal(self, batch: Batch) -> None:
        """Submit the batch when its last line is as durable as promised."""
        if batch.tail_events or batch in self._broken:
            self._sealing.append(batch)
        else:
            self._pass_on(batch)

    def _pass_on(self, batch: Batch) -> None:
        self._close(batch.segment)
        if batch.events:
            self._submit(batch)
        else:
            batch.release_buffer()
            self.release(batch)

    # Group commit.

    def group(self, batch: Batch, turn: Turn) -> None:
        """Settle the turn once its lines are synced: with the sync under way over, one more serves all that wait."""
        self._queue(_Group(batch, turn))

    def refuse(self, turn: Turn) -> None:
        """Settle a turn as refused, but not before earlier ones: answers keep their order."""
        self._queue(_Group(None, turn))

    def _queue(self, group: _Group) -> None:
        self._waiting.append(group)
        if not self._syncing:
            self._start_sync()

    def _start_sync(self) -> None:
        groups, self._waiting = self._waiting, []
        segments = {group.batch.segment for group in groups if group.batch is not None and not group.refused}
        if not segments:
            self._decided += groups
            self._answer_decided()
            return
        self._syncing = groups
        self._sync_over.clear()
        future = asyncio.get_running_loop().run_in_executor(self._sync_executor, self._sync, segments)
        future.add_done_callback(self._sync_done)

    def _sync(self, segments: Iterable[Segment]) -> dict[Segment, StorageError | None]:
        """Sync segments, in the executor; the outcome is each segment's own."""
        began = time.monotonic()
        outcome: dict[Segment, StorageError | None] = {}
        for segment in segments:
            outcome[segment] = None
            try:
                if not segment.named:
                    # Before the first acknowledgement: synced bytes in a file without a name are lost all the same.
                    # Nor is it remembered which folders were synced: this one may have been pruned and made again.
                    make_dirs(self._fs, segment.path.parent, self._root, sync=True)
                    self._fs.fsync_dir(segment.path.parent)
                    segment.named = True
                if segment.fd is not None:
                    self._fs.fdatasync(segment.fd)
            except StorageError as error:
                outcome[segment] = error
            except OSError as error:
                outcome[segment] = StorageError.of("fdatasync", segment.path, error)
        self._metrics.journal_sync_seconds.observe(time.monotonic() - began)
        return outcome

    def _sync_done(self, future: asyncio.Future[dict[Segment, StorageError | None]]) -> None:
        outcome = future.result()
        groups, self._syncing = self._syncing, []
        self._sync_over.set()
        for group in groups:
            batch = group.batch
            if batch is None or group.refused:
                continue
            error = outcome[batch.segment]
            if error is not None:
                for other in groups:
                    self._mark_refused(other, batch)
                self._fail(batch, error)
            else:
                batch.acknowledge(group.turn.size, group.turn.events, group.turn.seconds)
                self._metrics.books.accepted(group.turn.events)
        self._decided += groups
        self._answer_decided()
        if self._waiting:
            self._start_sync()
        self._pass_on_sealed()

    def _answer_decided(self) -> None:
        """Answer, in order, what is decided; while a segment is broken, nothing.

        It may still hold lines that are refused: were the client told so before they are gone from the disk, a crash
        in between would have recovery store what got a 503.
        """
        if self._broken:
            return
        decided, self._decided = self._decided, []
        for group in decided:
            group.turn.settle(committed=not group.refused)

    def _pass_on_sealed(self) -> None:
        ready = [batch for batch in self._sealing if not batch.tail_events and batch not in self._broken]
        if ready:
            self._sealing = [batch for batch in self._sealing if batch not in ready]
            for batch in ready:
                self._pass_on(batch)

    # When the disk fails.

    def _fail(self, batch: Batch, error: StorageError) -> None:
        """Give up a descriptor: refuse what waits for it, cut the batch, and have it rewritten."""
        segment: Segment = batch.segment
        segment.broken = True
        batch.cut()
        if segment.fd is not None:
            # Before anybody is told: until the rewrite is published, a crash would hand the refused lines to recovery.
            with suppress(OSError):
                self._fs.truncate(segment.fd, batch.size)
        self._close(segment, keep_syncing=any(group.batch is batch for group in self._syncing))
        for group in (*self._syncing, *self._waiting):
            self._mark_refused(group, batch)
        self._broken.append(batch)
        self._latch(error)

    def _mark_refused(self, group: _Group, batch: Batch) -> None:
        """Decide the fate of lines that were cut off; their answers wait for their turn."""
        if group.batch is batch and not group.refused:
            group.refused = True
            self._metrics.rejected.add(Reason.DISK_FULL, group.turn.events)

    def _latch(self, error: StorageError) -> None:
        self._metrics.journal_errors += 1
        if not self.latched:
            self.latched = True
            self._metrics.journal_failed = 1
            log.error(
                "journal_refused",
                operation=error.operation,
                path=error.subject,
                error=str(error),
                hint=error.hint,
            )
        if self._repairing is None or self._repairing.done():
            self._repairing = asyncio.get_running_loop().create_task(self._repair())

    async def _repair(self) -> None:
        """Rewrite what is broken, then probe until the disk takes a write again."""
        loop = asyncio.get_running_loop()
        while True:
            while self._broken:
                batch = self._broken[0]
                await self._rewrite(batch)
                self._broken.remove(batch)
                self._pass_on_sealed()
            self._answer_decided()
            try:
                await loop.run_in_executor(self._executor, self._probe)
            except (OSError, StorageError):
                await asyncio.sleep(PROBE_SECONDS)
                continue
            if not self._broken:
                break
        self.latched = False
        self._metrics.journal_failed = 0
        log.info("journal_resumed", path=str(self._root))

    async def _rewrite(self, batch: Batch) -> None:
        """Publish the acknowledged lines over the segment's name; failing that, seal the batch where it is."""
        segment: Segment = batch.segment
        while any(group.batch is batch for group in self._syncing):
            await self._sync_over.wait()  # the descriptor is in the executor's hands until its sync returns
        self._close(segment)
        batch.hold_buffer()
        try:
            fd = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._publish_lines, segment, batch.view()
            )
        except StorageError as error:
            self._not_rewritten(batch, error)
        else:
            self._rewritten(batch, fd)
        finally:
            batch.release_buffer()

    def _rewrite_now(self, batch: Batch) -> None:
        """Do the same on the loop: without group commit the refusals are answered as soon as this returns."""
        self._close(batch.segment)
        try:
            fd = self._publish_lines(batch.segment, batch.view())
        except StorageError as error:
            self._not_rewritten(batch, error)
        else:
            self._rewritten(batch, fd)
        self._broken.remove(batch)
        self._pass_on_sealed()

    def _rewritten(self, batch: Batch, fd: int) -> None:
        segment: Segment = batch.segment
        segment.fd = fd
        segment.size = batch.size
        segment.broken = False
        segment.named = True
        log.info("segment_rewritten", key=batch.key, events=batch.events)

    def _not_rewritten(self, batch: Batch, error: StorageError) -> None:
        log.error("segment_rewrite_failed", key=batch.key, error=str(error), hint=error.hint)
        self._seal_open(batch)

    def _publish_lines(self, segment: Segment, lines: memoryview) -> int:
        # Crash points: temporary written, synced, renamed, folder synced. Before the rename the old segment counts, and
        # recovery deletes the temporary; after it the new one does. Both hold every acknowledged line.
        with lines:
            publish(self._fs, segment.path, lines, root=self._root)
        try:
            return self._fs.open(segment.path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            raise StorageError.of("open", segment.path, error) from error

    def _probe(self) -> None:
        path = self._root / f".probe.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
        fd = self._fs.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL)
        try:
            append(self._fs, fd, bytes(PROBE_BYTES), 0, subject=path)
            self._fs.fdatasync(fd)
        finally:
            self._fs.close(fd)
            self._fs.unlink(path)

    # When a batch has arrived.

    def release(self, batch: Batch) -> None:
        """Remove the segment: its object is stored, or its dead-letter file is published. Never raises."""
        segment: Segment | None = batch.segment
        if segment is None or segment.released:
            return
        segment.released = True
        self._close(segment)
        self._in_background(self._remove, segment.path)

    def retain(self, batch: Batch) -> bool:
        """Leave the batch to its segment, as backlog; False when that cannot be trusted, or is not there."""
        segment: Segment | None = batch.segment
        if segment is None or segment.broken or segment.released:
            return False
        self._close(segment)
        self._keep(batch.key, segment.path, segment.size, batch.events)
        return True

    async def close(self) -> None:
        """Stop probing and wait for the removals under way."""
        if self._repairing is not None:
            self._repairing.cancel()
            with suppress(asyncio.CancelledError):
                await self._repairing
        if self._removals:
            await asyncio.wait(self._removals)

    def _remove(self, path: Path) -> None:
        try:
            self._fs.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            # It is recovered at the next start, and found stored then.
            failure = StorageError.of("unlink", path, error)
            log.warning("segment_not_removed", path=str(path), error=str(failure), hint=failure.hint)
            return
        self._prune(path.parent)

    def _prune(self, folder: Path) -> None:
        """Remove an hour's folder when its last segment is gone, but not the one that segments are created in."""
        if folder != self._folder:
            prune(self._fs, folder, self._root)

    def _in_background(self, work: Callable[[Path], None], path: Path) -> None:
        future = asyncio.get_running_loop().run_in_executor(self._executor, work, path)
        self._removals.add(future)
        future.add_done_callback(self._removals.discard)

    def _close(self, segment: Segment, *, keep_syncing: bool = False) -> None:
        fd = segment.fd
        if fd is None or keep_syncing:
            return
        segment.fd = None
        with suppress(OSError):
            self._fs.close(fd)
