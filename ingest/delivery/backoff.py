"""Backoff: how long a batch that the store did not take waits for its next try.

Owns the number of tries and the pauses before them: full jitter, growing. Promises that each pause ends at the latest
when the disk's turn comes. Never tries anything.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from ingest.delivery.phase import Phase

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ingest.delivery.phase import Course

BACKOFF_BASE: Final = 0.2
BACKOFF_CAP: Final = 5.0
KEEP_PAUSE: Final = 1.0


class Backoff:
    """See the module's text. `draw(low, high)` spreads the pauses."""

    __slots__ = ("_course", "_draw", "_sleep", "tries")

    def __init__(
        self,
        tries: int,
        course: Course,
        draw: Callable[[float, float], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.tries = max(tries, 1)
        self._course = course
        self._draw = draw
        self._sleep = sleep

    async def before(self, attempt: int) -> None:
        """Wait for a try, counted from 0: the first one is due at once."""
        if attempt:
            await self._pause(self._draw(0.0, min(BACKOFF_BASE * 2**attempt, BACKOFF_CAP)))

    async def after_keeping(self) -> None:
        """Wait because neither store nor disk took a batch: nothing is gained by trying again at once."""
        await self._pause(KEEP_PAUSE)

    async def _pause(self, seconds: float) -> None:
        if self._course.phase >= Phase.DISK_ONLY:
            await self._sleep(min(seconds, KEEP_PAUSE / 4))
            return
        sleeping = asyncio.ensure_future(self._sleep(seconds))
        ending = asyncio.ensure_future(self._course.reach(Phase.DISK_ONLY))
        try:
            await asyncio.wait({sleeping, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            ending.cancel()
