"""What all clocks of a world show. It moves only when told to."""

from __future__ import annotations

START = 1_764_720_000
"""A full hour."""


class Time:
    """What all clocks show. A turn of a loop takes a microsecond, so that nobody waits for an instant in vain."""

    def __init__(self, wall: float = START) -> None:
        self.monotonic = 1000.0
        self._ahead = wall - 1000.0

    def wall(self) -> float:
        return self.monotonic + self._ahead

    def step(self, seconds: float) -> None:
        """Set the wall clock, as NTP does."""
        self._ahead += seconds
