"""The open batch: where a turn's events go, when it seals, and when none may come in.

Owns the open batch and admission. Promises that an event is in a batch of its own partition; that sealing never waits;
and that events are refused as a whole group, at once, with nothing of them kept. Never does I/O itself: the injected
journal writes, the injected uploader takes what is sealed.

The open batch is *due* when it should be sealed and neither queue nor disk can take it: it may grow by CHANNEL_SIZE
events then, and seals as soon as there is room.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from ingest.config import DEBUG_CHECKS
from ingest.intake.batch import Batch, BufferPool, nothing_to_do
from ingest.telemetry import Reason, SealReason

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from ingest.config import Settings
    from ingest.format import KeyFactory
    from ingest.intake.batch import Turn
    from ingest.telemetry import Budget, Metrics

OPEN_PART: Final = 2
"""Which part of MAX_BUFFER_BYTES the open batch has at most, before it seals."""

log = structlog.get_logger()


class BatchJournal(Protocol):
    """The journal, as far as the open batch needs it."""

    @property
    def latched(self) -> bool:
        """Whether the disk refused, so that everything is refused until a probe goes through."""

    def begin(self, batch: Batch) -> bool:
        """Create the batch's segment; False when the disk refuses."""

    def write(self, batch: Batch, data: bytes) -> bool:
        """Write lines to the segment; False when the disk refuses, and then nothing of them is left in it."""

    def acknowledge(self, batch: Batch, turn: Turn) -> None:
        """Settle a turn whose lines are written, when they are as durable as promised."""

    def refuse(self, turn: Turn) -> None:
        """Settle a turn as refused, behind those that wait for a sync."""

    def seal(self, batch: Batch) -> None:
        """Submit the batch when its last line is as durable as promised."""


class OpenBatch:
    """The batch that takes events now, and what only an open one has."""

    __slots__ = ("batch", "due", "end", "limit", "start", "timer")

    def __init__(self, batch: Batch, limit: int, timer: asyncio.TimerHandle) -> None:
        self.batch = batch
        self.start, self.end = batch.partition.start, batch.partition.end
        """The seconds of its hour, once more, because each turn asks."""
        self.limit = limit
        """Events it may hold: BATCH_SIZE, and CHANNEL_SIZE more when it is due."""
        self.timer = timer
        self.due: SealReason | None = None
        """Why it should be sealed; set from when it could not be until it is."""

    def __repr__(self) -> str:
        return f"<OpenBatch {self.batch!r} room={self.room} due={self.due.value if self.due else 'no'}>"

    @property
    def room(self) -> int:
        """How many events it takes yet."""
        return self.limit - self.batch.events - self.batch.tail_events

    def takes(self, events: int) -> bool:
        """Tell whether it takes those of one request. One may fill an empty batch beyond its limit."""
        return events <= self.room or (self.due is None and not self.batch.events + self.batch.tail_events)


class Intake:
    """Admits events to the open batch.

    `submit` takes a sealed batch and never waits; `has_room` tells whether it can.
    """

    def __init__(
        self,
        settings: Settings,
        keys: KeyFactory,
        metrics: Metrics,
        loop: asyncio.AbstractEventLoop,
        budget: Budget,
        *,
        has_room: Callable[[], bool],
        journal: BatchJournal,
    ) -> None:
        # For the process's life.
        self._batch_size = settings.batch_size
        # Else a batch that cannot reach BATCH_BYTES would have everything refused until its interval is over.
        self._batch_bytes = min(settings.batch_bytes, settings.max_buffer_bytes // OPEN_PART)
        self._channel_size = settings.channel_size
        self._flush_interval = settings.flush_interval
        self._keys = keys
        self._metrics = metrics
        self._loop = loop
        self._has_room = has_room
        self._budget = budget
        self._journal = journal
        self._pool = BufferPool(settings.upload_concurrency + 1, budget)

        self._open: OpenBatch | None = None
        self._closed = False
        """From the drain's seal on: nobody would take what comes any further."""

    def __repr__(self) -> str:
        return f"<Intake {'closed' if self._closed else self._open or 'empty'}>"

    @property
    def hour(self) -> str | None:
        """The hour of the open batch; None without one."""
        return None if self._open is None else self._open.batch.partition.path

    @property
    def events(self) -> int:
        """Acknowledged events in the open batch."""
        return 0 if self._open is None else self._open.batch.events

    @property
    def oldest(self) -> int:
        """Unix time of the oldest acknowledged event in the open batch; 0 if there is none."""
        return self._open.batch.first_ts if self._open is not None and self.events else 0

    def commit(self, turn: Turn) -> None:
        """Take a turn's lines, and settle it, now or later."""
        into, events = self._open, turn.events
        if into is not None and into.start <= turn.seconds < into.end:
            batch = into.batch
            if 0 < events <= into.limit - batch.events - batch.tail_events:
                self._take(batch, turn)  # as nearly always; whatever else there is to know, `_batch_for` knows
                return
        if not events:
            self._journal.refuse(turn)  # answers to no event, which follow events of their connections
            return
        while turn.events:
            into = self._batch_for(turn.seconds)
            if into is None:
                self._refuse(turn)
                return
            if turn.events <= into.room:
                self._take(into.batch, turn)
                return
            # The group crosses the end of the batch: its first events belong to this one.
            first = turn.first
            if not into.takes(first):
                # The events of one request are never divided. A batch with less room seals first, or may grow.
                self._seal_if_room(SealReason.SIZE)
                if self._open is None:
                    continue
                if first > into.room:
                    self._refuse(turn)
                    return
            part, turn = turn.split(max(into.room, first))
            self._take(into.batch, part)

    def refusing(self) -> bool:
        """Tell whether events would be refused now."""
        return (
            self._budget.lacks()
            or self._journal.latched
            or (self._open is not None and self._open.room <= 0 and not self._has_room())
        )

    def room_made(self) -> None:
        """Seal what is due: the uploader can take a batch again."""
        if self._open is not None and self._open.due is not None and self._has_room():
            self.seal(self._open.due)

    def seal(self, reason: SealReason) -> None:
        """Close the open batch, if there is one, and pass it on."""
        if self._open is None:
            return
        batch = self._open.batch
        self._open.timer.cancel()
        self._open = None
        batch.reason = reason
        batch.on_broken = nothing_to_do  # it holds the batch, whose bytes would wait for the collector of cycles
        self._journal.seal(batch)

    def close(self) -> None:
        """Seal for the drain, and refuse what still comes."""
        self.seal(SealReason.DRAIN)
        self._closed = True

    def _batch_for(self, seconds: int) -> OpenBatch | None:
        """Return a batch of that second's partition with room for an event; None when none may come in."""
        into = self._open
        if into is not None and not into.batch.partition.start <= seconds < into.batch.partition.end:
            self._seal_if_room(SealReason.PARTITION)
            if self._open is not None:
                return None
            into = None
        if into is not None and into.room <= 0:
            if not self._has_room():
                return None
            # Room came that nobody announced: the disk was freed by others.
            self.seal(into.due or SealReason.SIZE)
            into = None
        return into or self._begin(seconds)

    def _begin(self, seconds: int) -> OpenBatch | None:
        if self._closed or self._journal.latched:
            return None
        partition = self._keys.partition_of(seconds)
        try:
            batch = Batch(self._keys.new_key(seconds, partition), partition, seconds, self._pool)
        except OSError:  # no memory
            self._keys.take_back()
            return None
        if not self._journal.begin(batch):
            self._keys.take_back()
            batch.release_buffer()
            return None
        batch.on_broken = partial(self._seal_broken, batch)
        timer = self._loop.call_later(self._flush_interval, self._seal_if_room, SealReason.INTERVAL)
        self._open = OpenBatch(batch, self._batch_size, timer)
        log.debug("batch_opened", key=batch.key)
        return self._open

    def _take(self, batch: Batch, turn: Turn) -> None:
        data = b"".join(turn.lines)
        size, budget = len(data), self._budget
        if budget.batches + size > budget.limit or not self._fits(batch, size) or not self._journal.write(batch, data):
            self._refuse(turn)
            return
        batch.append(data, turn.events)
        turn.lines.clear()  # the batch has them, and a turn may wait long for its sync
        self._journal.acknowledge(batch, turn)
        if batch.events + batch.tail_events >= self._batch_size:
            self._seal_if_room(SealReason.SIZE)
        elif batch.size + batch.tail_size >= self._batch_bytes:
            self._seal_if_room(SealReason.BYTES)

    def _fits(self, batch: Batch, size: int) -> bool:
        """Make room in the open batch. One that cannot grow is sealed: it gives its memory back, the next is small."""
        if batch.has_room(size):
            return True
        self._seal_if_room(SealReason.BYTES)
        return False

    def _seal_if_room(self, reason: SealReason) -> None:
        if self._has_room():
            self.seal(reason)
        elif self._open is not None and self._open.due is None:
            batch = self._open.batch
            self._open.due = reason
            self._open.limit = batch.events + batch.tail_events + self._channel_size

    if DEBUG_CHECKS:
        _unchecked = commit

        def commit(self, turn: Turn) -> None:
            """Take a turn's lines as above, and look whether all still holds: no turn pays a call to be asked."""
            self._unchecked(turn)
            self._check()

    def _seal_broken(self, batch: Batch) -> None:
        if self._open is not None and self._open.batch is batch:
            self.seal(SealReason.STORAGE)

    def _check(self) -> None:
        """Fail if one of the facts does not hold on which the next commit relies. Called under DEBUG_CHECKS."""
        into = self._open
        if into is None:
            return
        batch = into.batch
        holds = (
            not self._closed,
            batch.reason is None,
            into.room >= 0,
            # A batch that is full or old is gone, or due, and only what is due may grow.
            into.due is not None or (into.limit == self._batch_size and into.room > 0),
            all(batch.partition.start <= ts < batch.partition.end for ts in (batch.first_ts, batch.last_ts)),
        )
        if not all(holds):
            raise AssertionError(f"{holds}: {self!r}")

    def _refuse(self, turn: Turn) -> None:
        if self._journal.latched:
            self._metrics.rejected.add(Reason.DISK_FULL, turn.events)
        else:
            self._metrics.rejected.add(Reason.QUEUE_FULL, turn.events)
        self._journal.refuse(turn)
