"""Exposition: the figures of `metrics` as Prometheus reads them.

Owns the way from `METRICS` and the plain integers to text, through a collector of prometheus_client.
Promises one family for each row of `METRICS`, with every label value from the first scrape on, so that a rate over a
counter that has not moved yet is 0 and not missing.
Never counts anything; never imported before the first scrape, for prometheus_client takes 40 ms to load.
"""

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from ingest import __version__
from ingest.telemetry.metrics import METRICS, PLACES, Histogram, Metric, Metrics


def exposition(metrics: Metrics) -> bytes:
    """Return the text of one scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(metrics))
    return generate_latest(registry)


class _Figures(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        for metric in METRICS:
            if metric.kind == "histogram":
                yield self._histogram(metric, getattr(self._metrics, metric.attribute))
                continue
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(metric.name, metric.meaning, labels=[metric.label] if metric.label else [])
            for values, figure in self._samples(metric):
                family.add_metric(values, figure)
            yield family

    def _samples(self, metric: Metric) -> Iterator[tuple[list[str], float]]:
        if metric.name == "events_pending":
            for place in PLACES:
                yield [place], self._metrics.pending.get(place, _nothing)()
        elif metric.name == "build_info":
            yield [__version__], 1
        elif metric.series:
            for value, attribute in metric.series:
                yield [value], getattr(self._metrics, attribute)
        elif metric.attribute:
            yield [], getattr(self._metrics, metric.attribute)
        elif metric.name in _DERIVED:
            yield [], _DERIVED[metric.name](self._metrics)
        else:
            yield [], self._metrics.gauges.get(metric.name, _nothing)()

    def _histogram(self, metric: Metric, histogram: Histogram) -> HistogramMetricFamily:
        bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
        return HistogramMetricFamily(metric.name, metric.meaning, buckets=buckets, sum_value=histogram.total)


def _nothing() -> int:
    return 0


def _compression_ratio(metrics: Metrics) -> float:
    return metrics.batch_encoded_bytes_total / (metrics.batch_compressed_bytes_total or 1)


def _resident_bytes(_: Metrics) -> float:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no /proc: the peak is the nearest thing, in KiB but for macOS
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


_DERIVED: Final[dict[str, Callable[[Metrics], float]]] = {
    "events_unaccounted": Metrics.unaccounted,
    "batch_compression_ratio": _compression_ratio,
    "process_cpu_seconds_total": lambda _: time.process_time(),
    "process_resident_memory_bytes": _resident_bytes,
    "process_start_time_seconds": lambda metrics: metrics.started,
}
