"""The open batch: where a tick's events go, when it seals, and when none may come in.

Owns the buffers, the batch, and admission. Promises that a key is fixed when its batch opens; that an event is in a
batch of its own partition; that sealing never waits; that events are refused as a whole group, at once, with nothing
of them kept; and that a buffer returns to its pool only when nobody reads it any more. Never does I/O itself: the
injected journal writes, the injected uploader takes what is sealed.

Two positions in a batch: up to `size` its events are acknowledged; the tail behind it (`DURABILITY=fsync` only) is
written and waits for its group commit, which moves it into `size` or cuts it off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ingest.intake.batch import Batch, BufferPool
from ingest.telemetry import Reason, SealReason

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from ingest.config import Settings
    from ingest.format import KeyFactory
    from ingest.intake.batch import Turn
    from ingest.telemetry import Metrics


class BatchJournal(Protocol):
    """The journal, as far as the open batch needs it."""

    deferred: bool
    """Whether acknowledging waits for a group commit."""
    latched: bool
    """Whether the disk refused, so that everything is refused until a probe goes through."""

    def begin(self, batch: Batch) -> bool:
        """Create the batch's segment; False when the disk refuses."""

    def write(self, batch: Batch, data: bytes) -> bool:
        """Write lines to the segment; False when the disk refuses, and then nothing of them is left in it."""

    def group(self, batch: Batch, turn: Turn) -> None:
        """Settle the turn once its lines are synced."""

    def refuse(self, turn: Turn) -> None:
        """Settle a turn as refused, behind those that wait for a sync."""

    def seal(self, batch: Batch) -> None:
        """Submit the batch when its last line is as durable as promised."""


class Intake:
    """Admits events to the open batch.

    `submit` takes a sealed batch and never waits; `has_room` tells whether it can; `held_bytes` are those of sealed
    batches, still in memory.
    """

    def __init__(
        self,
        settings: Settings,
        keys: KeyFactory,
        metrics: Metrics,
        loop: asyncio.AbstractEventLoop,
        *,
        submit: Callable[[Batch], None],
        has_room: Callable[[], bool],
        held_bytes: Callable[[], int],
        journal: BatchJournal | None,
    ) -> None:
        # For the process's life.
        self._batch_size = settings.batch_size
        self._batch_bytes = settings.batch_bytes
        self._channel_size = settings.channel_size
        self._flush_interval = settings.flush_interval
        self._max_buffer_bytes = settings.max_buffer_bytes
        self._keys = keys
        self._metrics = metrics
        self._loop = loop
        self._submit = submit
        self._has_room = has_room
        self._held_bytes = held_bytes
        self._journal = journal
        self._pool = BufferPool(settings.upload_concurrency + 1)

        # The open batch, and why it should be sealed already though it could not be.
        self._batch: Batch | None = None
        self._due: SealReason | None = None
        self._closed = False

    @property
    def events(self) -> int:
        """Acknowledged events in the open batch."""
        return 0 if self._batch is None else self._batch.events

    @property
    def size(self) -> int:
        """Bytes in the open batch, the tail included."""
        return 0 if self._batch is None else self._batch.size + self._batch.tail_size

    def commit(self, turn: Turn) -> None:
        """Take a turn's events; settle it, or its parts in order."""
        if not turn.events:
            self._refuse(turn)  # answers to no event, which follow events of their connections
            return
        seconds = turn.seconds
        batch = self._batch
        if batch is not None and not batch.partition.start <= seconds < batch.partition.end:
            self._seal_if_room(SealReason.PARTITION)
            batch = self._batch
            if batch is not None:
                self._refuse(turn)
                return
        while True:
            if batch is None:
                batch = self._open(seconds)
            room = 0 if batch is None else batch.limit - batch.events - batch.tail_events
            if batch is None or room <= 0:
                if batch is None or not self._has_room():
                    self._refuse(turn)
                    return
                # Room came that nobody announced: the disk was freed by others.
                self.seal(self._due or SealReason.SIZE)
                batch = None
                continue
            if turn.events <= room:
                self._append(batch, turn)
                return
            # The turn crosses the end of the batch: its first `room` events belong to this one.
            part, turn = turn.split(room)
            self._append(batch, part)
            batch = self._batch

    def refusing(self, unfinished: int) -> bool:
        """Tell whether events would be refused now, with `unfinished` bytes of requests not yet committed."""
        batch = self._batch
        return (
            self._held_bytes() + self.size + unfinished > self._max_buffer_bytes
            or (self._journal is not None and self._journal.latched)
            or (batch is not None and batch.events + batch.tail_events >= batch.limit and not self._has_room())
        )

    def room_made(self) -> None:
        """Seal what is overdue: the uploader can take a batch again."""
        if self._due is not None and self._has_room():
            self.seal(self._due)

    def seal(self, reason: SealReason) -> None:
        """Close the open batch, if there is one, and pass it on."""
        batch = self._batch
        if batch is None:
            return
        self._batch = None
        self._due = None
        batch.reason = reason
        if batch.timer is not None:
            batch.timer.cancel()
            batch.timer = None
        if self._journal is not None:
            self._journal.seal(batch)
        elif batch.events:
            self._submit(batch)
        else:
            batch.release_buffer()  # all it was opened for was refused

    def close(self) -> None:
        """Seal for the drain, and refuse what still comes: nobody would take it any further."""
        self.seal(SealReason.DRAIN)
        self._closed = True

    def is_open(self, batch: Batch) -> bool:
        """Tell whether this is the batch that takes events now."""
        return batch is self._batch

    def _append(self, batch: Batch, turn: Turn) -> None:
        data = b"".join(turn.lines)
        if self._held_bytes() + batch.size + batch.tail_size + len(data) > self._max_buffer_bytes:
            self._refuse(turn)
            return
        journal = self._journal
        if journal is not None and not journal.write(batch, data):
            self._refuse(turn)
            return
        batch.append(data, turn.events)
        turn.lines.clear()  # the batch has them, and a turn may wait long for its sync
        if journal is not None and journal.deferred:
            journal.group(batch, turn)
        else:
            batch.acknowledge(turn.size, turn.events, turn.seconds)
            self._metrics.books.accepted(turn.events)
            turn.settle(committed=True)
        if batch.events + batch.tail_events >= self._batch_size:
            self._seal_if_room(SealReason.SIZE)
        elif batch.size + batch.tail_size >= self._batch_bytes:
            self._seal_if_room(SealReason.BYTES)

    def _open(self, seconds: int) -> Batch | None:
        if self._closed:
            return None
        partition = self._keys.partition_of(seconds)
        batch = Batch(self._keys.new_key(seconds, partition), partition, seconds, self._batch_size, self._pool)
        if self._journal is not None and not self._journal.begin(batch):
            batch.release_buffer()
            return None
        batch.timer = self._loop.call_later(self._flush_interval, self._seal_if_room, SealReason.INTERVAL)
        self._batch = batch
        return batch

    def _seal_if_room(self, reason: SealReason) -> None:
        """Seal, or let the batch grow by CHANNEL_SIZE events while neither queue nor disk can take it."""
        if self._has_room():
            self.seal(reason)
        elif self._due is None and self._batch is not None:
            self._due = reason
            self._batch.limit = self._batch.events + self._batch.tail_events + self._channel_size

    def _refuse(self, turn: Turn) -> None:
        journal = self._journal
        if journal is not None and journal.latched:
            self._metrics.rejected.add(Reason.DISK_FULL, turn.events)
        else:
            self._metrics.rejected.add(Reason.QUEUE_FULL, turn.events)
        if journal is not None and journal.deferred:
            journal.refuse(turn)
        else:
            turn.settle(committed=False)
