"""Exposition: the figures of `metrics` as Prometheus reads them.

Owns the way from the rows of `METRICS` to text, through a collector of prometheus_client.
Promises one family for each row, with every label value from the first scrape on, so that a rate over a counter that
has not moved yet is 0 and not missing.
Never counts anything; never imported before the first scrape, for prometheus_client takes 40 ms to load.
"""

from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from ingest.telemetry.counters import Histogram
from ingest.telemetry.metrics import Metric, Source


def exposition(source: Source) -> bytes:
    """Return the text of one scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(source))
    return generate_latest(registry)


class _Figures(Collector):
    def __init__(self, source: Source) -> None:
        self._source = source

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        for metric, figure in self._source.figures():
            if isinstance(figure, Histogram):
                yield _histogram(metric, figure)
                continue
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(metric.name, metric.meaning, labels=[metric.label] if metric.label else [])
            if isinstance(figure, Mapping):
                for value, one in figure.items():
                    family.add_metric([value], one)
            else:
                family.add_metric([], figure)
            yield family


def _histogram(metric: Metric, histogram: Histogram) -> HistogramMetricFamily:
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
    return HistogramMetricFamily(metric.name, metric.meaning, buckets=buckets, sum_value=histogram.total)
