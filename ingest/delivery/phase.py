"""How near the end of the process is, in one place that everybody reads.

Owns `Phase` and `Course`, which holds the phase of one process:

    RUNNING    batches are put as they come, files from disk beside them
    HURRYING   the process drains: what waits on disk is put without pauses, as long as the store takes it
    DISK_ONLY  no try is made any more and those that run are ended; what is left goes to disk
    OVER       nothing is left to do

Promises that a phase is entered once and never left for an earlier one. Never decides when: `drain` does.
"""

from __future__ import annotations

import asyncio
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Phase(IntEnum):
    """See the module's text. A later phase compares as greater."""

    RUNNING = 0
    HURRYING = 1
    DISK_ONLY = 2
    OVER = 3


class Course:
    """The phase of one process, and who wants to know of the next one."""

    __slots__ = ("_listeners", "_reached", "phase")

    def __init__(self) -> None:
        self.phase = Phase.RUNNING
        self._listeners: list[Callable[[Phase], None]] = []
        self._reached = {phase: asyncio.Event() for phase in Phase}

    def __repr__(self) -> str:
        return f"<Course {self.phase.name}>"

    def listen(self, listener: Callable[[Phase], None]) -> None:
        """Have `listener` called with each phase that is entered, after it holds."""
        self._listeners.append(listener)

    def enter(self, phase: Phase) -> None:
        """Go on to a later phase; an earlier one, or the same, changes nothing."""
        if phase <= self.phase:
            return
        self.phase = phase
        for reached, event in self._reached.items():
            if reached <= phase:
                event.set()
        for listener in self._listeners:
            listener(phase)

    async def reach(self, phase: Phase) -> None:
        """Wait until this phase, or a later one, is entered."""
        if self.phase < phase:
            await self._reached[phase].wait()
