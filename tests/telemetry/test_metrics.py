"""What a scrape says, and that the books in it balance."""

import subprocess
import sys
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.parser import text_string_to_metric_families

from ingest import __version__
from ingest.telemetry.metrics import CONTENT_TYPE, METRICS, PLACES, Histogram, Metrics
from ingest.telemetry.page import Page, render

# The names that dashboards and alerts rely on.
CONTRACT = {
    "http_requests_total",
    "http_requests_accepted_total",
    "http_requests_rejected_body_too_large_total",
    "http_requests_rejected_queue_full_total",
    "s3_events_stored_total",
    "s3_put_errors_total",
    "dlq_events_enqueued_total",
    "dlq_events_reuploaded_total",
    "dlq_events_dropped_total",
    "dlq_files_expired_total",
    "dlq_files_current",
    "dlq_size_bytes",
    "events_recovered_total",
    "events_unaccounted",
    "events_pending",
    "upload_queue_length",
    "buffered_bytes",
    "build_info",
}


def scrape(metrics):
    families = list(text_string_to_metric_families(render(metrics).decode()))
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def families(metrics):
    """Each family under the name in its TYPE line, which the parser shortens for counters."""
    parsed = text_string_to_metric_families(render(metrics).decode())
    return {f"{family.name}_total" if family.type == "counter" else family.name: family for family in parsed}


def test_the_table_has_the_contracts_names():
    assert {metric.name for metric in METRICS} >= CONTRACT


def test_a_scrape_has_the_families_of_the_table_and_no_others():
    found = {name: (family.type, family.documentation) for name, family in families(Metrics()).items()}
    assert found == {metric.name: (metric.kind, metric.meaning) for metric in METRICS}


def test_every_label_value_is_there_from_the_first_scrape():
    figures = scrape(Metrics())
    for metric in METRICS:
        for value, _ in metric.series:
            assert figures[metric.name, value] == 0
    assert {name[1] for name in figures if name[0] == "events_pending"} == set(PLACES)
    assert figures["build_info", __version__] == 1


def test_every_counted_figure_is_scraped_and_every_scraped_figure_is_counted():
    attributes = [metric.attribute for metric in METRICS if metric.attribute]
    attributes += [attribute for metric in METRICS for _, attribute in metric.series]
    assert len(attributes) == len(set(attributes))
    assert set(attributes) == {field.name for field in fields(Metrics)} - {"pending", "gauges", "started"}


def test_each_counter_is_seen_under_its_own_name():
    metrics = Metrics()
    expected = {}
    for number, metric in enumerate(METRICS, 1):
        if metric.kind != "histogram" and metric.attribute:
            setattr(metrics, metric.attribute, number)
            expected[metric.name,] = number
        for place, (value, attribute) in enumerate(metric.series):
            setattr(metrics, attribute, 1000 * number + place)
            expected[metric.name, value] = 1000 * number + place
    figures = scrape(metrics)
    assert {name: figures[name] for name in expected} == expected


def test_a_counter_that_does_not_exist_cannot_be_counted():
    with pytest.raises(AttributeError):
        Metrics().http_requests_rejected_by_mistake_total = 1


def test_a_gauge_is_read_where_it_is_kept_at_the_scrape():
    metrics = Metrics()
    files = []
    metrics.gauges["dlq_files_current"] = lambda: len(files)
    assert scrape(metrics)["dlq_files_current",] == 0
    files.append("one")
    assert scrape(metrics)["dlq_files_current",] == 1


def test_a_large_count_keeps_its_last_digit():
    metrics = Metrics()
    metrics.accepted = 9_007_199_254_740_991
    assert scrape(metrics)["http_requests_accepted_total",] == 9_007_199_254_740_991


counts = st.integers(0, 1 << 40)


@given(st.fixed_dictionaries(dict.fromkeys(PLACES, counts)), counts, counts, counts, counts, st.integers(-5, 5))
def test_the_books_tell_every_event_that_is_missing_or_doubled(pending, stored, evicted, expired, corrupt, missing):
    metrics = Metrics()
    metrics.pending = {place: lambda place=place: pending[place] for place in PLACES}
    metrics.stored = stored
    metrics.dropped_evicted = evicted
    metrics.dropped_expired = expired
    metrics.dropped_corrupt = corrupt
    metrics.recovered = stored // 2
    metrics.accepted = stored - stored // 2 + evicted + expired + corrupt + sum(pending.values()) + missing
    assert metrics.unaccounted() == missing


def test_the_books_are_part_of_the_scrape():
    metrics = Metrics()
    metrics.pending = {"open": lambda: 2, "dlq": lambda: 3}
    metrics.accepted = 7
    metrics.recovered = 1
    metrics.stored = 2
    figures = scrape(metrics)
    assert figures["events_pending", "open"] == 2
    assert figures["events_pending", "dlq"] == 3
    assert figures["events_unaccounted",] == 1


def test_a_histogram_counts_each_value_up_to_its_bound():
    metrics = Metrics()
    for seconds in (0.001, 0.005, 0.0051, 3.0, 99.0):
        metrics.s3_put_seconds.observe(seconds)
    figures = scrape(metrics)
    assert figures["s3_put_seconds_bucket", "0.005"] == 2
    assert figures["s3_put_seconds_bucket", "0.01"] == 3
    assert figures["s3_put_seconds_bucket", "2.5"] == 3
    assert figures["s3_put_seconds_bucket", "5.0"] == 4
    assert figures["s3_put_seconds_bucket", "10.0"] == 4
    assert figures["s3_put_seconds_bucket", "+Inf"] == figures["s3_put_seconds_count",] == 5
    assert figures["s3_put_seconds_sum",] == pytest.approx(102.0111)


@given(st.lists(st.floats(0, 1e6)))
def test_a_histogram_loses_no_observation(values):
    histogram = Histogram((1.0, 10.0, 100.0))
    for value in values:
        histogram.observe(value)
    assert sum(histogram.counts) == len(values)
    assert histogram.counts[0] == sum(value <= 1.0 for value in values)
    assert histogram.counts[-1] == sum(value > 100.0 for value in values)


def test_the_compression_ratio_is_input_over_output():
    metrics = Metrics()
    assert scrape(metrics)["batch_compression_ratio",] == 0
    metrics.batch_encoded_bytes_total = 700
    metrics.batch_compressed_bytes_total = 100
    assert scrape(metrics)["batch_compression_ratio",] == 7


def test_what_the_process_uses_is_told():
    metrics = Metrics()
    first = scrape(metrics)
    assert 1 << 22 < first["process_resident_memory_bytes",] < 1 << 34
    assert first["process_start_time_seconds",] == metrics.started
    assert scrape(metrics)["process_cpu_seconds_total",] > first["process_cpu_seconds_total",] > 0


def test_the_page_is_rendered_at_most_once_a_second():
    now = 100.0
    metrics = Metrics()
    page = Page(metrics, clock=lambda: now)
    kind, first = page()
    assert kind == CONTENT_TYPE == CONTENT_TYPE_PLAIN_0_0_4
    metrics.accepted = 1
    now = 100.999
    assert page() == (kind, first)
    now = 101.0
    assert b"\nhttp_requests_accepted_total 1.0\n" in page()[1]


def test_prometheus_is_not_loaded_before_the_first_scrape():
    program = (
        "import sys; from ingest.telemetry import Metrics, Page; page = Page(Metrics());"
        " before = 'prometheus_client' in sys.modules; page(); print(before, 'prometheus_client' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "False True\n"
