"""Scan: what earlier runs left, counted from start to end beside the running server.

Owns that one count runs at a time, and how much of a core it may take: a counted chunk is followed by a sleep of
`COUNT_DUTY` times the time it took. Promises that `run` returns when all was counted or tried, and that temporaries are
seen to as they are found, once it is known where else their batches lie.
Never counts anything itself: `Counting` does, in the lane.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from ingest.spool.places import Copy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from ingest.spool.calls import Calls
    from ingest.spool.letters import Letters
    from ingest.spool.places import Places

COUNT_DUTY: Final = 3.0


class Scan:
    """See the module's text."""

    __slots__ = ("_calls", "_clock", "_letters", "_lock", "_places", "_sleep", "owed")

    def __init__(
        self,
        letters: Letters,
        calls: Calls,
        places: Places,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.owed = 1
        """Scans that have to begin or are under way: one from the start on."""
        self._letters = letters
        self._calls = calls
        self._places = places
        self._clock = clock
        self._sleep = sleep
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Count all that is not counted."""
        counting, temporaries = self._letters.counting, self._letters.temporaries
        async with self._lock:
            try:
                await self._calls.make(counting.begin, bounded=False)
                while True:
                    began = self._clock()
                    goes_on = await self._calls.make(counting.step, bounded=False)
                    for key, temporary in await self._calls.make(temporaries.take, bounded=False):
                        await self._see_to(key, temporary)
                    if not goes_on:
                        return
                    await self._sleep(COUNT_DUTY * (self._clock() - began))
            finally:
                self.owed = max(self.owed - 1, 0)

    async def _see_to(self, key: str, temporary: Path) -> None:
        temporaries = self._letters.temporaries
        segment = await self._places.segment(key)
        if self._places.is_settled(key):  # asked last: it may have gone while the slots were looked into
            segment = Copy.KNOWN
        if segment is Copy.UNKNOWN:
            await self._calls.make(temporaries.keep, temporary, bounded=False)
        else:
            await self._calls.make(temporaries.salvage, temporary, segment is Copy.KNOWN, bounded=False)
