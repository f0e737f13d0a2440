"""Saving: a batch's way to the disk, where it survives until the store takes it.

Owns the choice between the places on disk, and the state that a refusing disk leaves: SPOOLED in the dead-letter queue;
BACKLOG, if the disk failed and the journal's segment stays; KEPT, if the queue is full or there is no segment.
Promises that nothing is awaited after a save, so that the books move in its step of the loop; that a batch which the
drain has left to its segment meanwhile has no dead letter beside it, as far as the disk allows.
Never: puts anything, moves the books, removes a segment.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Protocol

import structlog

from ingest.delivery.phase import Phase
from ingest.disk import StorageError
from ingest.spool import DlqFull, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.delivery.phase import Course
    from ingest.delivery.queue import Upload
    from ingest.intake import Batch
    from ingest.telemetry import Metrics

log = structlog.get_logger()


class Fate(Enum):
    """The place that a batch was brought to."""

    STORED = "stored"
    SPOOLED = "spooled"
    BACKLOG = "backlog"
    KEPT = "kept"


class Journal(Protocol):
    """The journal, as upload sees it."""

    def release(self, batch: Batch, line: bytes = b"") -> None:
        """Remove the batch's segment: it is stored, as `line` tells the ledger, or its DLQ file is published."""

    def retain(self, batch: Batch) -> bool:
        """Count the batch's segment as backlog; False if it has none."""


class DeadLetters(Waiting, Protocol):
    """The dead-letter queue, as upload sees it."""

    @property
    def full(self) -> bool:
        """No file would be taken now."""

    async def save(
        self, key: str, body: bytes, events: int, *, force: bool = False, is_wanted: Callable[[], bool]
    ) -> None:
        """Publish a batch's file and count it, unless it is not wanted any more when it is there."""


class Saving:
    """See the module's text."""

    __slots__ = ("_course", "_dlq", "_journal", "_metrics", "failed")

    def __init__(self, dlq: DeadLetters, journal: Journal, metrics: Metrics, course: Course) -> None:
        self._dlq = dlq
        self._journal = journal
        self._metrics = metrics
        self._course = course
        self.failed = False
        """From a save that left its batch in the queue, until a save succeeds or the store takes a batch."""

    @property
    def refuses(self) -> bool:
        """A batch that were to be saved now would keep its place."""
        return self.failed or self._dlq.full

    async def save(self, upload: Upload, body: bytes) -> Fate:
        """Save a batch where it survives; nothing is awaited after the save."""
        batch = upload.batch
        is_last = self._course.phase >= Phase.DISK_ONLY
        try:
            await self._dlq.save(batch.key, body, upload.events, is_wanted=upload.is_here)
        except DlqFull as error:
            if upload.gone:
                return Fate.BACKLOG
            self._not_saved(upload, error)
            # A segment would fill the disk as a file would. But at the end of the process it is all that is left.
            if not is_last:
                return Fate.KEPT
        except StorageError as error:
            if upload.gone:
                return Fate.BACKLOG
            self._not_saved(upload, error)
            return Fate.BACKLOG if self._journal.retain(batch) else Fate.KEPT
        else:
            return Fate.SPOOLED
        if self._journal.retain(batch):
            return Fate.BACKLOG
        try:
            await self._dlq.save(batch.key, body, upload.events, force=True, is_wanted=upload.is_here)
        except StorageError as error:
            self._not_saved(upload, error)
            return Fate.KEPT
        return Fate.SPOOLED

    def take_note(self, fate: Fate) -> None:
        """Hear what became of a batch: one that is safe shows that there is room, or will be."""
        if fate is Fate.KEPT:
            self.failed = True
        elif self.failed:
            self.failed = False
            self._metrics.spool_full = 0
            log.info("dlq_takes_again")

    def _not_saved(self, upload: Upload, error: StorageError) -> None:
        self._metrics.save_errors += 1
        if isinstance(error, DlqFull):
            self._metrics.spool_full = 1
            if self.failed:
                return
        log.error(
            "dlq_save_failed",
            key=upload.batch.key,
            events=upload.events,
            operation=error.operation,
            hint=error.hint,
            errno=error.errno,
        )
