"""The clocks, as a turn reads them.

Owns the second in which a turn's events are accepted, and the deadlines that follow from its instant. Promises that
intervals and deadlines are monotonic time, and that only what is stored or told is wall time. Never waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.wire.limits import ConnectionLimits


class Clocks:
    """Two readings, and what follows from them; the same for all connections until the next `read`."""

    __slots__ = (
        "_idle_timeout",
        "_read_timeout",
        "_wall_clock",
        "idle_deadline",
        "loop_time",
        "now",
        "read_deadline",
        "seconds",
        "wall",
    )

    def __init__(
        self, limits: ConnectionLimits, loop_time: Callable[[], float], wall_clock: Callable[[], float]
    ) -> None:
        self._idle_timeout = limits.idle_timeout
        self._read_timeout = limits.read_timeout
        self._wall_clock = wall_clock
        self.loop_time = loop_time
        """Monotonic time, which stands still from one poll of the loop to the next."""
        self.seconds = 0
        self.wall = self.now = self.idle_deadline = self.read_deadline = 0.0

    def read(self) -> bool:
        """Read both clocks; tell whether another second has begun, which events are stamped with."""
        now = self.now = self.loop_time()
        self.idle_deadline = now + self._idle_timeout
        self.read_deadline = now + self._read_timeout
        wall = self.wall = self._wall_clock()
        seconds = int(wall)
        if seconds == self.seconds:
            return False
        self.seconds = seconds
        return True
