"""Whether a turn waits for company.

Owns the question, and the facts of earlier turns that answer it. Promises that a lone event waits for nobody. Never
knows what a turn holds.

Below saturation turns would be small: the loop is faster than events arrive, and spends more on waking for each than on
the event. So a turn that follows closely upon a small one waits a millisecond before it reads on, as a network card
waits before it interrupts: what arrives meanwhile is read, committed and answered together. It does so asleep, which
costs nothing and lets gzip run.
"""

from __future__ import annotations

from typing import Final

SMALL_TURN: Final = 8
"""With fewer reads than this in a turn the next one waits for company."""
CLOSELY: Final = 0.002
"""Seconds after a small turn for which company is expected."""
GATHER_SECONDS: Final = 0.001


class Gathering:
    """Decides for one turn after the other."""

    __slots__ = ("_at", "_small")

    def __init__(self) -> None:
        self._small = False
        self._at = 0.0

    def pays(self, now: float) -> bool:
        """Tell whether a turn that begins now should wait for more reads."""
        return self._small and now - self._at < CLOSELY

    def ran(self, reads: int, now: float) -> None:
        """Take note of a turn."""
        self._small = reads < SMALL_TURN
        self._at = now
