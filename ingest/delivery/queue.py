"""The upload queue: batches that were submitted and are not yet in another book.

Owns their order, their figures, and which of them nobody has in hand. Promises that a batch is counted from `add` until
`leave`, wherever it is meanwhile, and that one that comes back takes its old place. Never decides what becomes of one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.intake import Batch
    from ingest.telemetry import Budget


@dataclass(slots=True, eq=False)
class Upload:
    """A batch on its way. `number` orders the queue; `held` is what it takes in memory: its lines, then its body."""

    number: int
    batch: Batch
    events: int
    held: int
    encoding: asyncio.Future[bytes] | None = None
    gone: bool = False
    """From the step on in which its events are in another book."""

    def is_here(self) -> bool:
        """Tell whether its events are in the queue's book."""
        return not self.gone


class Queue:
    """See the module's text. More than `limit` of them are too many."""

    __slots__ = ("_added", "_arrived", "_budget", "_idle", "_limit", "_on_the_way", "_waiting", "events")

    def __init__(self, limit: int, budget: Budget) -> None:
        self.events = 0
        self._budget = budget
        """Has the bytes of all batches here, the one in a worker's hand included."""
        self._limit = limit
        self._added = 0
        self._waiting: deque[Upload] = deque()
        self._on_the_way: set[Upload] = set()
        """Every batch that is not gone, those that wait included."""
        self._arrived = asyncio.Event()
        self._idle = 0
        """Workers that wait for a batch: each takes one in the next turn of the loop, so that one does not count."""

    def __repr__(self) -> str:
        return f"<Queue {len(self._waiting)} waiting, {len(self._on_the_way)} on the way>"

    def __len__(self) -> int:
        """Count the batches that wait for a worker."""
        return len(self._waiting)

    @property
    def batches(self) -> list[Upload]:
        """Every batch that is not gone, in order."""
        return sorted(self._on_the_way, key=lambda upload: upload.number)

    @property
    def hours(self) -> set[str]:
        """The hours of all batches that are not gone."""
        return {upload.batch.partition.path for upload in self._on_the_way}

    @property
    def is_empty(self) -> bool:
        """No batch is left, not in a worker's hand either."""
        return not self._on_the_way

    @property
    def waits(self) -> bool:
        """A batch waits for a worker."""
        return bool(self._waiting)

    @property
    def oldest(self) -> int:
        """Unix time of the oldest event in any batch here; 0 if there is none."""
        return min((upload.batch.first_ts for upload in self._on_the_way), default=0)

    @property
    def has_room(self) -> bool:
        """One more batch would not be too many."""
        return len(self._waiting) - self._idle < self._limit

    @property
    def is_too_long(self) -> bool:
        """More batches wait than may."""
        return len(self._waiting) - self._idle > self._limit

    def add(self, batch: Batch) -> None:
        """Take in a batch."""
        self._added += 1
        upload = Upload(self._added, batch, batch.events, batch.size)
        self._waiting.append(upload)
        self._on_the_way.add(upload)
        self.events += batch.events
        self._arrived.set()

    def pop(self) -> Upload:
        """Give out the oldest batch that waits; there is one."""
        return self._waiting.popleft()

    async def take(self, is_over: Callable[[], bool]) -> Upload | None:
        """Give out the oldest batch, when there is one; None once `is_over`, which `wake` has looked at."""
        while not self._waiting:
            if is_over():
                return None
            self._arrived.clear()
            self._idle += 1
            try:
                await self._arrived.wait()
            finally:
                self._idle -= 1
        return None if is_over() else self._waiting.popleft()

    def wake(self) -> None:
        """Have those that wait in `take` look whether it is over."""
        self._arrived.set()

    def put_back(self, upload: Upload) -> None:
        """Have a batch wait in its old place."""
        if not upload.gone and upload not in self._waiting:
            self._waiting.insert(sum(waiting.number < upload.number for waiting in self._waiting), upload)
            self._arrived.set()

    def resize(self, upload: Upload, held: int) -> None:
        """Take note that a batch takes another amount of memory now."""
        if not upload.gone:
            self._budget.batches += held - upload.held
        upload.held = held

    def leave(self, upload: Upload) -> None:
        """Let go of a batch whose events are in another book."""
        upload.gone = True
        self._on_the_way.discard(upload)
        if upload in self._waiting:
            self._waiting.remove(upload)
        self.events -= upload.events
        self._budget.batches -= upload.held
