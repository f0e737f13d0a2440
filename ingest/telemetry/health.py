"""The store as the tries tell it: up, or away since when and why.

Owns what the last tries came to. Promises that `up` is false from a try that failed until one succeeds, probes or not.
Never tries anything, never logs: `story` does.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class StoreHealth:
    """Told of each try by whoever made it."""

    __slots__ = ("_now", "code", "error", "failed_at", "failing_since", "last_stored", "up")

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self.up = True
        self.last_stored = 0.0
        """Unix time of the last put that was stored; 0 before the first."""
        self.failing_since = 0.0
        """Unix time of the first failed try since the last that succeeded; it holds while `up` is false."""
        self.failed_at = 0.0
        """Unix time of the last failed try; 0 before the first. `error` and `code` are its, and stay."""
        self.error = ""
        self.code = ""

    def failed(self, error: str, code: str = "") -> None:
        """Note a try that the store did not take."""
        self.failed_at = self._now()
        if self.up:
            self.up = False
            self.failing_since = self.failed_at
        self.error = error
        self.code = code

    def stored(self) -> None:
        """Note a try that succeeded."""
        self.up = True
        self.last_stored = self._now()

    def __repr__(self) -> str:
        return "<StoreHealth up>" if self.up else f"<StoreHealth away since {self.failing_since:.0f}: {self.error}>"
