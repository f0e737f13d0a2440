"""The journal: what is acknowledged lies on disk until its object, or its dead-letter file, does.

Owns the segments this process writes: one file per batch, `<JOURNAL_DIR>/<slot>/<key without .gz>`, plain JSON lines,
so that `cat` shows what is there and a torn tail is whatever follows the last newline.

Promises, by `DURABILITY`:

    journal   the lines of a tick are written (one `write(2)`) before any of them is answered
    fsync     they are also synced: one `fdatasync` for all lines that were written while the last one ran, in the
              executor, while the loop goes on accepting; the first sync of a segment syncs its name and its folders too

    order     write -> (sync) -> acknowledge -> seal -> (last sync) -> upload queue
              -> stored (-> its line in the ledger), or published as a dead letter -> unlink

When the disk fails, the group that met the failure is refused, and buffer, count and file are cut to the same offset.
If the file cannot be cut, the refusals wait until it is rewritten: a crash before that would have recovery store them.
The journal latches: everything is refused until a probe goes through. A descriptor whose `fdatasync` failed is never
synced again, for the kernel may have dropped the dirty pages and report success; nor is one whose truncate failed
written again. The batch is then rewritten from memory into a temporary that is published over the segment's name. If
that fails too, the batch seals at its last acknowledged event and uploads from memory, and the old segment stays
until its object is stored, or until a later try to rewrite it succeeds.
Without syncs a segment whose closing fails is rewritten, too: a network disk writes late, and tells then what it could
not. Its batch is on its way meanwhile, and is left to no segment until it is whole.

A file may also lose its name, because somebody removed or moved the folder: then lines go where recovery never looks.
`watch` looks twice a second. A segment without its name is broken, and is rewritten as above; a lock without its name
is taken again before anything is published, in the first free slot if another process was quicker.

Crash points: between write and acknowledge the lines may be stored though nobody was told (the answer was lost);
between stored and unlink the segment is recovered, and its create-only put finds the object there.

Never reads a segment (that is `backlog`), never puts an object.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from ingest.config import DEBUG_CHECKS
from ingest.disk import (
    Filesystem,
    Removals,
    StorageError,
    TornTail,
    create,
    make_dirs,
)
from ingest.disk.append import append
from ingest.format import ledger, segment_path
from ingest.intake.commits import Fate, Group, GroupCommit
from ingest.intake.latch import Latch
from ingest.intake.mending import Mender
from ingest.intake.names import Name, Names
from ingest.intake.segments import OPEN, Segment, SegmentState
from ingest.telemetry import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor
    from pathlib import Path

    from ingest.disk import Lane, Slot
    from ingest.intake.batch import Batch, Turn
    from ingest.intake.mending import Rewritten
    from ingest.telemetry import Metrics

WATCH_SECONDS: Final = 0.5
NAME_LOST: Final = "its name is gone: let nothing but this process remove or move files there"
LOOKS_BETWEEN_REWRITES: Final = 10
WATCHED: Final = OPEN | {SegmentState.SEALED}

log = structlog.get_logger()


def _no_line(_: bytes) -> None:
    """Keep no ledger."""


def _no_note(_: Path, __: bytes) -> None:
    """Keep no ledger."""


class NoJournal:
    """`DURABILITY=memory`: nothing is written, so there is nothing to remove or to fall back on."""

    events: Final = 0
    whole: Final = 0
    hours: Final[frozenset[str]] = frozenset()
    sealing: Final = False
    latched: Final = False
    deferred: Final = False
    unremoved: Final = 0

    def __init__(
        self, metrics: Metrics, submit: Callable[[Batch], None], write_line: Callable[[bytes], None] = _no_line
    ) -> None:
        self._metrics = metrics
        self._submit = submit
        self._write_line = write_line

    def begin(self, batch: Batch) -> bool:  # noqa: ARG002 - the journal's shape
        """Tell that the batch may open."""
        return True

    def write(self, batch: Batch, data: bytes) -> bool:  # noqa: ARG002 - the journal's shape
        """Tell that the lines may go into the batch."""
        return True

    def acknowledge(self, batch: Batch, turn: Turn) -> None:
        """Settle the turn at once."""
        batch.acknowledge(turn.size, turn.events, turn.seconds)
        self._metrics.books.accepted(turn.events)
        turn.settle(committed=True)

    def refuse(self, turn: Turn) -> None:
        """Settle the turn at once."""
        turn.settle(committed=False)

    def seal(self, batch: Batch) -> None:
        """Submit the batch, unless all it was opened for was refused."""
        if batch.events:
            self._submit(batch)
        else:
            batch.release_buffer()
            self.release(batch, ledger.void(batch.key))

    def release(self, batch: Batch, line: bytes = b"") -> None:  # noqa: ARG002 - the journal's shape
        """Write the ledger's line; there is no file that it tells of."""
        if line:
            self._write_line(line)

    def retain(self, batch: Batch) -> bool:  # noqa: ARG002 - the journal's shape
        """Tell that the batch lives in memory alone."""
        return False

    async def watch(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""


class Journal:
    """The segments of this process, in a slot it holds.

    `submit` takes a sealed batch; `keep` adds a file (key, path, bytes, events) to the backlog; `note` writes lines
    into the ledger of a slot, in the lane. With `sync` a turn is acknowledged by group commit, else as soon as it is
    written.
    """

    def __init__(
        self,
        fs: Filesystem,
        slot: Slot,
        lane: Lane,
        sync_executor: Executor,
        metrics: Metrics,
        *,
        sync: bool,
        submit: Callable[[Batch], None],
        keep: Callable[[str, Path, int, int], None],
        note: Callable[[Path, bytes], None] = _no_note,
    ) -> None:
        # For the process's life.
        self._fs = fs
        self._slot = slot
        self._sync_executor = sync_executor
        self._metrics = metrics
        self._submit = submit
        self._keep = keep
        self._note = note
        self.deferred = sync
        self._folder = slot.path
        """Where segments are created now: the folder of the open batch's hour."""

        self._batches: set[Batch] = set()
        """Batches with a segment, from `begin` until that is removed or somebody else's."""

        # Group commit.
        self._commits = GroupCommit()
        """It holds back, without group commit, from a torn tail until nothing is broken: what is refused waits."""
        self._sealing: list[Batch] = []
        """Sealed batches that are not passed on yet: their last lines wait for a sync, or their segment is broken."""

        # After a failure.
        self._broken: list[Batch] = []
        """Batches whose segment is to be rewritten; while there is one nothing is answered."""
        self._unwritten: list[Batch] = []
        """Sealed batches whose rewrite has failed: until one succeeds, or the batch is safe elsewhere."""
        self._mender = Mender(fs, slot, lane)
        self._latch = Latch(
            slot, metrics, mend=self._rewrite_all, probe=self._mender.probe, is_whole=lambda: not self._broken
        )
        self._names = Names(fs, slot, lane)
        self._removals = Removals(fs, lane, lambda folder: folder == self._folder)

    def __repr__(self) -> str:
        return f"<Journal {self._latch!r} {self._commits!r} sealing={len(self._sealing)} broken={len(self._broken)}>"

    @property
    def latched(self) -> bool:
        """Whether the disk refused, so that everything is refused until a probe goes through."""
        return self._latch.on

    @property
    def events(self) -> int:
        """Acknowledged events of sealed batches that still wait for the sync of their last lines."""
        return sum(batch.events for batch in self._sealing)

    @property
    def whole(self) -> int:
        """Acknowledged events of batches in memory that lie whole in a segment; not of one that is to be rewritten."""
        # A copy, because the thread of the signals asks too.
        return sum(
            batch.events for batch in self._batches.copy() if _segment_of(batch).state is not SegmentState.BROKEN
        )

    @property
    def hours(self) -> frozenset[str]:
        """The hours of batches that are in no other place than a segment of ours, and memory."""
        return frozenset(batch.partition.path for batch in self._batches)

    @property
    def sealing(self) -> bool:
        """Some sealed batch is not submitted yet."""
        return bool(self._sealing)

    @property
    def unremoved(self) -> int:
        """Segments that are to go, and that the disk does not let go."""
        return len(self._removals)

    # The open batch.

    def begin(self, batch: Batch) -> bool:
        """Create the batch's segment; False when the disk refuses, or has refused and no probe has gone through."""
        if self._latch.on:
            return False
        root = self._slot.path
        path = segment_path(root, batch.key)
        if path.parent != self._folder:
            previous, self._folder = self._folder, path.parent
            self._removals.prune(previous, root)
        try:
            fd = create(self._fs, path, root, sync=False)
        except StorageError as error:
            self._latch.trip(error)
            return False
        batch.segment = Segment(path, root, fd)
        self._batches.add(batch)
        return True

    def write(self, batch: Batch, data: bytes) -> bool:
        """Write lines to the end of the segment; False when the disk refuses, with nothing of them left in it."""
        if self._latch.on:
            return False
        segment = batch.segment
        assert segment is not None  # noqa: S101 - `begin` made it
        assert segment.fd is not None  # noqa: S101 - open while its batch is, and not latched
        try:
            segment.size = append(
                self._fs, segment.fd, data, segment.size, subject=segment.path, sync_roll_back=self.deferred
            )
        except TornTail as error:
            self._fail(batch, segment, error)
            self._commits.holds_back = not self.deferred
            return False
        except StorageError as error:
            self._latch.trip(error)
            return False
        self._metrics.journal_writes += 1
        return True

    def acknowledge(self, batch: Batch, turn: Turn) -> None:
        """Settle a turn that is written: at once, or once it is synced. One sync serves all turns that wait for it."""
        if self.deferred:
            self._commits.add(Group(turn, batch, batch.segment))
            self._begin_sync()
        else:
            batch.acknowledge(turn.size, turn.events, turn.seconds)
            self._metrics.books.accepted(turn.events)
            turn.settle(committed=True)
        if DEBUG_CHECKS:
            self._check()

    def refuse(self, turn: Turn) -> None:
        """Settle a turn as refused, but not before earlier ones: answers keep their order."""
        if self._commits.holds_back:
            turn.defer()
        if self.deferred or self._commits.holds_back:
            self._commits.add(Group(turn))
            self._answer()
        else:
            turn.settle(committed=False)

    def seal(self, batch: Batch) -> None:
        """Submit the batch when its last line is as durable as promised."""
        if batch.tail_events or batch in self._broken:
            self._sealing.append(batch)
        else:
            self._pass_on(batch)
        if DEBUG_CHECKS:
            self._check()

    def _pass_on(self, batch: Batch) -> None:
        segment = _segment_of(batch)
        error = self._close(segment)
        if segment.state in OPEN:
            segment.enter(SegmentState.SEALED)
        if not batch.events:
            batch.release_buffer()
            self.release(batch, ledger.void(batch.key))
            return
        if error is not None and not self.deferred:
            # A network disk may write late, and tells now that it could not. What was synced is not in doubt.
            self._fail(batch, segment, error)
        self._submit(batch)

    # Group commit.

    def _begin_sync(self) -> None:
        segments = self._commits.begin()
        if segments:
            future = asyncio.get_running_loop().run_in_executor(self._sync_executor, self._sync, segments)
            future.add_done_callback(self._sync_done)

    def _sync(self, segments: Iterable[Segment]) -> dict[Segment, StorageError | None]:
        """Sync segments, in the executor; the outcome is each segment's own."""
        began = time.monotonic()
        outcome: dict[Segment, StorageError | None] = {}
        for segment in segments:
            outcome[segment] = None
            try:
                if segment.state is SegmentState.CREATED:
                    # Before the first acknowledgement: synced bytes in a file without a name are lost all the same.
                    # Which folders were synced is not remembered: this one may have been pruned and made again.
                    make_dirs(self._fs, segment.path.parent, segment.root, sync=True)
                    self._fs.fsync_dir(segment.path.parent)
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
        for group, batch, segment in self._commits.end():
            error = outcome[segment]
            if error is None:
                if segment.state is SegmentState.CREATED:
                    segment.enter(SegmentState.NAMED)
                batch.acknowledge(group.turn.size, group.turn.events, group.turn.seconds)
                self._metrics.books.accepted(group.turn.events)
                group.fate = Fate.COMMITTED
            elif group.fate is Fate.SYNCING:
                self._fail(batch, segment, error)
        for segment in outcome:
            if segment.state not in OPEN:
                self._close(segment)  # it was given up while the thread had its descriptor in hand
        self._answer()
        self._begin_sync()
        self._pass_on_sealed()
        if DEBUG_CHECKS:
            self._check()

    def _answer(self) -> None:
        """Answer, in order, what is decided; while a segment is broken, nothing.

        It may still hold lines that are refused: were the client told so before they are gone from the disk, a crash
        in between would have recovery store what got a 503.
        """
        if not self._broken:
            self._commits.holds_back = False
            self._commits.answer()

    def _pass_on_sealed(self) -> None:
        ready = [batch for batch in self._sealing if not batch.tail_events and batch not in self._broken]
        if ready:
            self._sealing = [batch for batch in self._sealing if batch not in ready]
            for batch in ready:
                self._pass_on(batch)

    # When the disk fails.

    def _fail(self, batch: Batch, segment: Segment, error: StorageError) -> None:
        """Give up a descriptor: refuse what waits for it, cut the batch, and have it rewritten."""
        segment.enter(SegmentState.BROKEN)
        batch.cut()
        if segment.fd is not None:
            # Before anybody is told: until the rewrite is published, a crash would hand the refused lines to recovery.
            with suppress(OSError):
                self._fs.truncate(segment.fd, batch.size)
        if not self._commits.is_syncing(segment):
            self._close(segment)
        self._metrics.rejected.add(Reason.DISK_FULL, self._commits.refuse(batch))
        self._broken.append(batch)
        self._latch.trip(error)

    async def _rewrite_all(self) -> None:
        """Rewrite what is broken, and answer what waited for it."""
        while self._broken:
            batch = self._broken[0]
            await self._rewrite(batch, _segment_of(batch))
            self._broken.remove(batch)
            self._pass_on_sealed()
        self._answer()
        if DEBUG_CHECKS:
            self._check()

    async def _rewrite(self, batch: Batch, segment: Segment) -> None:
        """Publish the acknowledged lines over the segment's name; failing that, seal the batch where it is."""
        await self._commits.synced(segment)  # the descriptor is in the executor's hands until its sync returns
        self._close(segment)
        if segment.state is not SegmentState.BROKEN:
            return  # it is safe elsewhere meanwhile
        batch.hold_buffer()
        try:
            rewritten = await self._mender.rewrite(batch.key, segment.path, batch.lines)
        except StorageError as error:
            self._not_rewritten(batch, error)
        else:
            self._rewritten(batch, segment, rewritten)
        finally:
            batch.release_buffer()

    def _rewritten(self, batch: Batch, segment: Segment, rewritten: Rewritten) -> None:
        segment.path, segment.root, segment.fd, segment.identity = rewritten
        segment.size = batch.size
        log.info("segment_rewritten", key=batch.key, events=batch.events)
        if segment.state is SegmentState.REMOVED:
            self._close(segment)
            self._removals.remove(segment.path, segment.root)
        elif batch.reason is None or batch in self._sealing:
            segment.enter(SegmentState.NAMED)
        else:
            self._close(segment)
            segment.enter(SegmentState.SEALED)

    def _not_rewritten(self, batch: Batch, error: StorageError) -> None:
        if batch in self._unwritten:
            return
        self._unwritten.append(batch)
        log.error("segment_rewrite_failed", key=batch.key, error=str(error), hint=error.hint)
        batch.on_broken()

    async def _rewrite_late(self) -> None:
        """Try again what could not be rewritten: while neither store nor spool takes it, it is in memory alone."""
        for batch in list(self._unwritten):
            segment = _segment_of(batch)
            await self._rewrite(batch, segment)
            if segment.state is not SegmentState.BROKEN:
                self._unwritten.remove(batch)

    # When a name is lost.

    async def watch(self) -> None:
        """Look twice a second whether the lock and the segments still have their names, until cancelled."""
        for looks in itertools.count():
            await asyncio.sleep(WATCH_SECONDS)
            if self._unwritten and not self._latch.on and looks % LOOKS_BETWEEN_REWRITES == 0:
                await self._rewrite_late()
            watched = [(batch, _segment_of(batch)) for batch in self._batches]
            lock, lost = await self._names.look(segment for _, segment in watched if segment.state in WATCHED)
            root = self._slot.path
            if lock is Name.LOST:
                self._latch.trip(StorageError("look", root, NAME_LOST, transient=True))
            for batch, segment in watched:
                # Whoever took the lock away may have put another folder in its place. Whoever has the slot now takes
                # what is left in it.
                in_doubt = lock is Name.LOST and segment.state in OPEN
                if batch in self._batches and (in_doubt or segment in lost or segment.root != root):
                    self._lose_name(batch, segment)

    def _lose_name(self, batch: Batch, segment: Segment) -> None:
        if segment.state in WATCHED:
            self._fail(batch, segment, StorageError("look", segment.path, NAME_LOST, transient=True))

    # When a batch has arrived.

    def release(self, batch: Batch, line: bytes = b"") -> None:
        """Remove the segment: its object is stored, or its dead-letter file is published. Never raises.

        `line` is the ledger's, of an object that is stored; it is written before the segment goes.
        """
        segment = batch.segment
        if segment is None or segment.state is SegmentState.REMOVED:
            return
        segment.enter(SegmentState.REMOVED)
        self._batches.discard(batch)
        self._close(segment)
        self._removals.remove(segment.path, segment.root, partial(self._note, segment.root, line))
        log.debug("segment_released", key=batch.key)

    def retain(self, batch: Batch) -> bool:
        """Leave the batch to its segment, as backlog; False when that cannot be trusted, or is not there."""
        segment = batch.segment
        if segment is None or segment.state in (SegmentState.BROKEN, SegmentState.REMOVED):
            return False
        segment.enter(SegmentState.KEPT)
        self._batches.discard(batch)
        self._close(segment)
        self._keep(batch.key, segment.path, segment.size, batch.events)
        return True

    async def close(self) -> None:
        """Stop probing and wait for the removals under way."""
        await self._latch.close()
        await self._removals.close()

    def _check(self) -> None:
        """Fail if one of the facts does not hold on which the next step relies. Called under DEBUG_CHECKS.

        They are those of each segment's state, those of the line of groups, and those between the two.
        """
        self._commits.check()
        if self._commits.holds_back and not self._broken:
            raise AssertionError(f"refusals wait for no rewrite: {self!r}")
        for batch in self._batches:
            segment = _segment_of(batch)
            segment.check(syncing=self._commits.is_syncing(segment))
            tail = self._commits.undecided(batch)
            holds = (
                (batch.tail_events, batch.tail_size) == tail,
                segment.state not in OPEN or segment.size == batch.size + batch.tail_size,
                batch not in self._broken or (segment.state is SegmentState.BROKEN and self._latch.on),
                batch not in self._sealing or batch.tail_events or batch in self._broken,
                (segment.state is SegmentState.SEALED) <= (batch.reason is not None),
            )
            if not all(holds):
                raise AssertionError(f"{holds}: {batch!r}, {tail} in groups, {self!r}")
        waiting = {batch for batch in self._broken if _segment_of(batch).state is not SegmentState.REMOVED}
        if not self._batches.issuperset(waiting.union(self._sealing)):
            raise AssertionError(f"a batch without a segment is still to be synced or rewritten: {self!r}")

    def _close(self, segment: Segment) -> StorageError | None:
        """Let go of the descriptor; return what the disk says of that."""
        fd, segment.fd = segment.fd, None
        if fd is not None:
            try:
                self._fs.close(fd)
            except OSError as error:
                return StorageError.of("close", segment.path, error)
        return None


def _segment_of(batch: Batch) -> Segment:
    segment = batch.segment
    assert segment is not None  # noqa: S101 - `begin` made it before anything else happens to a batch
    return segment
