"""The page that `/metrics` answers.

Owns the page and how long it holds. Promises that prometheus_client is loaded at the first scrape and not before, since
loading it takes 40 ms. Never counts anything.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ingest.telemetry.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.telemetry.metrics import Source


def render(source: Source) -> bytes:
    """Return the text exposition of everything in `METRICS`."""
    from ingest.telemetry.exposition import exposition

    return exposition(source)


class Page:
    """The answer to `/metrics`: content type and text, rendered at most once a second however often it is asked for."""

    __slots__ = ("_clock", "_source", "_stale_at", "_text")

    def __init__(self, source: Source, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._stale_at = float("-inf")
        self._text = b""

    def __call__(self) -> tuple[str, bytes]:
        """Return content type and text."""
        now = self._clock()
        if now >= self._stale_at:
            self._text = render(self._source)
            self._stale_at = now + 1.0
        return CONTENT_TYPE, self._text
