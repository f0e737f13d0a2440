"""The pulse: how fast things have gone in the last minute.

Owns a few samples of figures that only count up, and what lies between the oldest and now. Promises at most `SAMPLES`
of them, however often it is fed. Never counts anything itself, so that an event costs nothing.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from ingest.telemetry.status import LastMinute

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.telemetry.metrics import Metrics

SAMPLE_EVERY: Final = 5.0
SAMPLES: Final = 12
LEAST_SPAN: Final = 1.0
"""Seconds that a rate is told over at least: what comes in the first instant is no pace."""


class _Sample(NamedTuple):
    at: float
    accepted: int
    stored: int
    on_disk: float
    answered: tuple[int, ...]


class Pulse:
    """See the module's text. `feed` is to be called about twice a second."""

    __slots__ = ("_clock", "_metrics", "_samples")

    def __init__(self, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._clock = clock
        self._samples: deque[_Sample] = deque([self._now()], SAMPLES)

    def feed(self) -> None:
        """Keep a sample, if it is time for one."""
        if self._clock() - self._samples[-1].at >= SAMPLE_EVERY:
            self._samples.append(self._now())

    def last_minute(self) -> LastMinute:
        """Return the pace since the oldest sample."""
        before, now = self._samples[0], self._now()
        seconds = max(now.at - before.at, LEAST_SPAN)
        bounds = self._metrics.request_seconds.bounds
        counts = [new - old for new, old in zip(now.answered, before.answered, strict=True)]
        return LastMinute(
            accepted_per_second=(now.accepted - before.accepted) / seconds,
            stored_per_second=(now.stored - before.stored) / seconds,
            p50=within(bounds, counts, 0.5),
            p99=within(bounds, counts, 0.99),
            disk_per_second=(now.on_disk - before.on_disk) / seconds,
        )

    def _now(self) -> _Sample:
        metrics, gauges = self._metrics, self._metrics.gauges
        return _Sample(
            self._clock(),
            metrics.books.events_accepted,
            metrics.books.events_stored,
            gauges.dlq_bytes() + gauges.backlog_bytes(),
            tuple(metrics.request_seconds.counts),
        )


def within(bounds: tuple[float, ...], counts: list[int], share: float) -> float | None:
    """Return the bound that this share of the observations keeps; infinite beyond the last, None if there are none."""
    wanted = sum(counts) * share
    if not wanted:
        return None
    seen = 0
    for bound, count in zip(bounds, counts, strict=False):  # the last count has no bound
        seen += count
        if seen >= wanted:
            return bound
    return math.inf
