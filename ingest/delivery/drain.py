"""The drain: what is in memory brought to safety, and what is on disk to the store, in the time that is left.

Owns the phases of the end (see `phase`) and when each begins:

    HURRYING   at once. The store is tried once, whatever the breaker knew. The queue goes first; then backlog and DLQ,
               as long as the store takes them, for the disk may die with the process
    DISK_ONLY  when nothing is left to put, when the operator is in a hurry, or when the last `DISK_SHARE` seconds
               begin. The rest goes to the DLQ, or stays in its segment
    OVER       when every batch is safe, or the time is over. A batch whose save hangs is left to its segment

Promises to return by the deadline, whatever hangs. Never puts, saves or reads anything itself.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from ingest.delivery.phase import Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.delivery.upload import Uploader


DISK_SHARE: Final = 5.0
"""Seconds at the end of a drain that are kept for the disk; at most half of what is left."""
LAST_SHARE: Final = 0.2
"""Seconds of these that are kept for what needs no disk to answer; at most a tenth of what is left."""

log = structlog.get_logger()


class Drain:
    """See the module's text; `clock` is what the deadline is on."""

    def __init__(self, uploader: Uploader, *, clock: Callable[[], float]) -> None:
        self._uploader = uploader
        self._clock = clock

    async def run(self, deadline: float, skip: asyncio.Event) -> None:
        """Bring to safety what is here, after the last `submit`; `skip` jumps to the disk."""
        uploader, recovery, course = self._uploader, self._uploader.recovery, self._uploader.course
        left = deadline - self._clock()
        disk_from = deadline - min(DISK_SHARE, left / 2)
        last_from = deadline - min(LAST_SHARE, left / 10)
        skipping = asyncio.ensure_future(skip.wait())
        skipping.add_done_callback(lambda _: uploader.changed.set())

        def is_cut_short() -> bool:
            return skip.is_set() or uploader.stopped

        try:
            course.enter(Phase.HURRYING)
            await self._until(lambda: is_cut_short() or uploader.queue.is_empty, disk_from)
            await self._until(lambda: is_cut_short() or recovery.ended, disk_from)
        finally:
            skipping.cancel()

        course.enter(Phase.DISK_ONLY)
        saving = uploader.save_rest()
        if saving:
            done, _ = await asyncio.wait(saving, timeout=max(last_from - self._clock(), 0.0))
            for task in done:
                if not task.cancelled() and (error := task.exception()) is not None:
                    log.critical("batch_not_saved", exc_info=error)
        # The workers save what they have in hand, and what kept its place is tried again.
        await self._until(lambda: uploader.stopped or (uploader.queue.is_empty and recovery.ended), last_from)
        uploader.leave_to_segments()
        course.enter(Phase.OVER)

    async def _until(self, condition: Callable[[], bool], deadline: float) -> None:
        changed = self._uploader.changed
        while not condition() and (left := deadline - self._clock()) > 0:
            changed.clear()
            try:
                async with asyncio.timeout(left):
                    await changed.wait()
            except TimeoutError:
                return
