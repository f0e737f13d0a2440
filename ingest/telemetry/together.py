"""The figures of all workers as one: what each writes to the shared page, and what any of them shows of all.

Owns the place of each figure on the page, and the way from the pages of several processes to the figures of one.
Promises that an event is in the page's books before it is acknowledged, so that no kill takes one out of them; that
the books on the page balance at every instant; and that what a worker leaves open when it ends is handed on, until
whoever finds it on its disk recovers it. Other figures may be half a second old, those of requests a turn.
Never decides when a worker has ended: that is the supervisor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Final, NamedTuple
from zlib import crc32

from ingest import shared_page
from ingest.config import DEBUG_CHECKS
from ingest.telemetry.books import Books, DropReason, Place
from ingest.telemetry.counters import Histogram
from ingest.telemetry.metrics import METRICS, Metric, OfAll
from ingest.telemetry.status import Status, merged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ingest.shared_page import Region, SharedPage
    from ingest.telemetry.metrics import Figure, Metrics

QUICK: Final = (
    "estat_requests_total",
    "estat_request_duration_seconds",
    "estat_requests_rejected_total",
    "estat_events_accepted_total",
    "estat_events_recovered_total",
    "estat_events_stored_total",
    "estat_events_pending",
    "estat_events_dropped_total",
    "estat_events_handed_on_total",
    "estat_journal_writes_total",
)
"""The metrics that are written whenever the books change, in the order of `METRICS`."""
_PENDING: Final = "estat_events_pending"
_HANDED_ON: Final = "estat_events_handed_on_total"


def _nobody_is_told() -> None:
    pass


class SharedBooks(Books):
    """The books of one of several workers: every verb is on the page before anybody acts upon it."""

    __slots__ = ("tell",)

    def __init__(self, *, checked: bool = DEBUG_CHECKS) -> None:
        super().__init__(checked=checked)
        self.tell: Callable[[], None] = _nobody_is_told
        """Writes them to the page, as soon as there is one."""

    def accepted(self, n: int, place: Place = Place.OPEN) -> None:
        """See `Books`, whose lines these are: a call costs every turn."""
        self.events_accepted += n
        self.waiting.counts[place] += n
        if self.checked:
            self._check(n)
        self.tell()

    def recovered(self, n: int, place: Place) -> None:
        """See `Books`."""
        super().recovered(n, place)
        self.tell()

    def moved(self, n: int, origin: Place, to: Place) -> None:
        """See `Books`."""
        super().moved(n, origin, to)
        self.tell()

    def stored(self, n: int, place: Place) -> None:
        """See `Books`."""
        super().stored(n, place)
        self.tell()

    def dropped(self, n: int, reason: DropReason, place: Place) -> None:
        """See `Books`."""
        super().dropped(n, reason, place)
        self.tell()

    def handed_on(self, n: int, place: Place) -> None:
        """See `Books`."""
        super().handed_on(n, place)
        self.tell()


class _Place(NamedTuple):
    """Where the figures of a metric stand among all."""

    metric: Metric
    begin: int
    end: int
    labels: tuple[str, ...]
    bounds: tuple[float, ...] | None
    """Those of a histogram."""


class Together:
    """See the module's text. `write` is to be called about twice a second."""

    __slots__ = ("_layout", "_metrics", "_number", "_page", "_region", "_shown", "_slow", "_status", "_write_quick")

    def __init__(
        self, metrics: Metrics, page: SharedPage, region: Region, number: int, status: Callable[[], Status]
    ) -> None:
        self._metrics = metrics
        self._page = page
        self._region = region
        self._write_quick = region.write_quick
        self._number = number
        self._status = status
        metrics.gauges.worker_restarts = lambda: page.restarts
        metrics.started = page.started
        places = _laid_out(metrics)
        self._shown = sorted(places, key=lambda place: METRICS.index(place.metric))
        self._slow = [metric for metric in METRICS if metric.name not in QUICK]
        shape = [(place.metric.name, place.labels, place.bounds) for place in places]
        self._layout = crc32(repr(shape).encode()) + 1  # 0 is none
        rules = [rule for place in places for rule in _rules(place)]
        region.lay_out(self._layout, rules, self._quick_figures(), self._slow_figures())
        assert isinstance(metrics.books, SharedBooks)  # noqa: S101 - made so for a worker
        metrics.books.tell = self.write_quick

    def write_quick(self) -> None:
        """Write the figures of the books and of requests."""
        self._write_quick(self._quick_figures())

    def write(self) -> None:
        """Write all there is to know of this worker."""
        self._region.write_quick(self._quick_figures())
        self._region.write_slow(self._slow_figures())
        status = self._own_status()
        # The settings are those of whoever shows them, and may be long.
        shown = replace(status, about=replace(status.about, settings={}))
        # In UTF-8, of which more finds room; a path that is no text is escaped, as JSON would.
        text = json.dumps(asdict(shown), default=_value, ensure_ascii=False)
        self._region.write_status(text.encode(errors="backslashreplace"))

    def figures(self) -> Iterator[tuple[Metric, Figure]]:
        """Yield each metric with its figure for all workers together."""
        self.write()
        ended: list[list[float]] = []
        living: list[list[float]] = []
        for region, figures in self._page.readable(self._layout):
            (living if region.state == shared_page.TAKEN else ended).append(figures)
        for place in self._shown:
            metric = place.metric
            whose = living + ended if metric.of_all is OfAll.SUM else living
            columns = zip(*(figures[place.begin : place.end] for figures in whose), strict=True)
            yield metric, _figure(place, [_ONE_OF[metric.of_all](column) for column in columns])

    def status(self) -> Status:
        """Return how all workers are together."""
        own = self._own_status()
        figures = {metric.name: figure for metric, figure in self.figures()}
        texts = [
            region.status()
            for region, _ in self._page.readable(self._layout)
            if region is not self._region and region.state == shared_page.TAKEN
        ]
        together = merged([own, *(status for text in texts if (status := _read_status(text)) is not None)])
        dropped, rejected = figures["estat_events_dropped_total"], figures["estat_requests_rejected_total"]
        accepted, stored = figures["estat_events_accepted_total"], figures["estat_events_stored_total"]
        assert isinstance(dropped, Mapping)  # noqa: S101 - it has a label
        assert isinstance(rejected, Mapping)  # noqa: S101 - it has a label
        assert isinstance(accepted, float)  # noqa: S101 - it has none
        assert isinstance(stored, float)  # noqa: S101 - it has none
        return replace(
            together,
            accepted=int(accepted),
            stored=int(stored),
            dropped=int(sum(dropped.values())),
            refused=int(rejected["queue_full"] + rejected["disk_full"]),
        )

    def _own_status(self) -> Status:
        status = self._status()
        slots = {f"{name} of worker {self._number}": path for name, path in status.about.slots.items()}
        return replace(status, about=replace(status.about, slots=slots))

    def _quick_figures(self) -> tuple[float, ...]:
        """Return the figures of `QUICK`, one after the other. Where events wait the verbs say, which always balance."""
        metrics, books, seconds = self._metrics, self._metrics.books, self._metrics.request_seconds
        return (
            *metrics.requests.values(),
            *seconds.counts,
            seconds.total,
            *metrics.rejected.values(),
            books.events_accepted,
            books.events_recovered,
            books.events_stored,
            *books.waiting.values(),
            *books.events_dropped.values(),
            books.events_handed_on,
            metrics.journal_writes,
        )

    def _slow_figures(self) -> list[float]:
        return [figure for metric in self._slow for figure in _flat(metric.read(self._metrics))]


def _laid_out(metrics: Metrics) -> list[_Place]:
    """Return where each metric's figures stand: the quick ones first."""
    places = []
    begin = 0
    for metric in sorted(METRICS, key=lambda metric: metric.name not in QUICK):
        figure = metric.read(metrics)
        end = begin + len(_flat(figure))
        labels = tuple(figure) if isinstance(figure, Mapping) else ()
        places.append(_Place(metric, begin, end, labels, figure.bounds if isinstance(figure, Histogram) else None))
        begin = end
    return places


def _rules(place: _Place) -> list[int]:
    """Return what becomes of the figures when their worker has ended."""
    rule = shared_page.STAYS
    if place.metric.name == _PENDING:
        rule = shared_page.OPENS
    elif place.metric.name == _HANDED_ON:
        rule = shared_page.HANDED_ON
    elif place.metric.kind != "gauge" and place.metric.of_all is OfAll.SUM:
        rule = shared_page.ADDS
    return [rule] * (place.end - place.begin)


def _flat(figure: Figure) -> list[float]:
    if isinstance(figure, Histogram):
        return [*figure.counts, figure.total]
    return list(figure.values()) if isinstance(figure, Mapping) else [figure]


def _figure(place: _Place, figures: list[float]) -> Figure:
    if place.bounds is not None:
        histogram = Histogram(place.bounds)
        *counts, histogram.total = figures
        histogram.counts = [int(count) for count in counts]
        return histogram
    return dict(zip(place.labels, figures, strict=True)) if place.labels else figures[0]


def _least_set(figures: Sequence[float]) -> float:
    return min((figure for figure in figures if figure), default=0.0)


def _read_status(text: bytes) -> Status | None:
    """Return a worker's status; None before its first, or if a program of another version wrote it."""
    try:
        return Status.of(json.loads(text))
    except (TypeError, KeyError, ValueError):
        return None


def _value(member: object) -> object:
    return member.value if hasattr(member, "value") else str(member)


_ONE_OF: Final[Mapping[OfAll, Callable[[Sequence[float]], float]]] = {
    OfAll.SUM: sum,
    OfAll.MOST: max,
    OfAll.LEAST: min,
    OfAll.LEAST_SET: _least_set,
}
