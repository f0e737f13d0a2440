"""What a scrape says, and that the books in it balance."""

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.parser import text_string_to_metric_families

from ingest import __version__
from ingest.config import DEBUG_CHECKS
from ingest.telemetry import Books, BreakerState, Counters, DropReason, Place, SealReason, StoreHealth
from ingest.telemetry.counters import Histogram
from ingest.telemetry.metrics import CONTENT_TYPE, METRICS, Gauges, Metrics
from ingest.telemetry.page import Page, render

# The names that dashboards and alerts rely on, with their labels.
PROMISED = {
    ("estat_requests_total", "answer"),
    ("estat_request_duration_seconds", ""),
    ("estat_requests_rejected_total", "reason"),
    ("estat_events_accepted_total", ""),
    ("estat_events_recovered_total", ""),
    ("estat_events_stored_total", ""),
    ("estat_events_dropped_total", "reason"),
    ("estat_events_handed_on_total", ""),
    ("estat_events_pending", "place"),
    ("estat_events_unaccounted", ""),
    ("estat_put_errors_total", "reason"),
    ("estat_spool_bytes", ""),
    ("estat_spool_limit_bytes", ""),
    ("estat_spool_full", ""),
    ("estat_disk_free_bytes", ""),
    ("estat_oldest_pending_timestamp_seconds", ""),
    ("estat_last_stored_timestamp_seconds", ""),
    ("estat_store_up", ""),
    ("estat_breaker_state", "state"),
    ("estat_refused_files", ""),
    ("estat_unknown_files", "place"),
    ("estat_log_lines_dropped_total", ""),
    ("estat_workers", ""),
    ("estat_worker_restarts_total", ""),
    ("estat_buffered_bytes", ""),
    ("estat_queued_batches", ""),
    ("estat_build_info", "version"),
}


def scrape(metrics):
    families = list(text_string_to_metric_families(render(metrics).decode()))
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def families(metrics):
    """Each family under the name in its TYPE line, which the parser shortens for counters."""
    parsed = text_string_to_metric_families(render(metrics).decode())
    return {f"{family.name}_total" if family.type == "counter" else family.name: family for family in parsed}


def test_the_table_has_the_documented_names():
    assert {(metric.name, metric.label) for metric in METRICS} >= PROMISED


def test_every_name_has_our_prefix_and_ends_with_its_base_unit():
    for metric in METRICS:
        assert metric.name.startswith("estat_")
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert not re.search("_(milliseconds|ms|minutes|kilobytes|ratio|percent)", metric.name)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_finds_nothing_to_say_of_a_scrape():
    check = subprocess.run(["promtool", "check", "metrics"], input=render(Metrics()), capture_output=True, check=False)
    assert (check.returncode, check.stdout + check.stderr) == (0, b"")


def test_a_scrape_has_the_families_of_the_table_and_no_others():
    found = {name: (family.type, family.documentation) for name, family in families(Metrics()).items()}
    assert found == {metric.name: (metric.kind, metric.meaning) for metric in METRICS}


def test_every_label_value_is_there_from_the_first_scrape():
    figures = scrape(Metrics())
    for metric in METRICS:
        read = metric.read(Metrics())
        assert isinstance(read, Mapping) == bool(metric.label)
        if metric.label and metric.name != "estat_build_info":
            found = {name[1]: figure for name, figure in figures.items() if name[0] == metric.name}
            assert found == read
            assert sum(found.values()) == (metric.name == "estat_breaker_state"), "closed is 1"
    assert {name[1] for name in figures if name[0] == "estat_events_pending"} == {place.value for place in Place}
    assert figures["estat_build_info", __version__] == 1


COUNTED = [field.name for field in fields(Metrics) if field.name not in {"books", "gauges", "store", "started"}]


@pytest.mark.parametrize("name", COUNTED)
def test_every_counted_figure_is_scraped_under_one_name(name):
    metrics = Metrics()
    match getattr(metrics, name):
        case Counters() as counters:
            for number, (member, _) in enumerate(counters, 1):
                counters.add(member, number)
        case Histogram() as histogram:
            histogram.observe(3.0)
        case BreakerState():
            metrics.breaker = BreakerState.OPEN
        case int() | float():
            setattr(metrics, name, 3)
    changed = {found.name for found in METRICS if not still(found, Metrics(), metrics)}
    assert len(changed) == 1


def test_f4_the_store_is_down_from_a_failed_try_until_one_succeeds():
    metrics = Metrics(store=StoreHealth(lambda: 1764684000.0))
    assert (scrape(metrics)["estat_store_up",], scrape(metrics)["estat_last_stored_timestamp_seconds",]) == (1, 0)
    metrics.store.failed("ConnectionError", "")
    metrics.breaker = BreakerState.HALF_OPEN
    assert scrape(metrics)["estat_store_up",] == 0, "a probe that runs is no success"
    metrics.store.stored()
    figures = scrape(metrics)
    assert (figures["estat_store_up",], figures["estat_last_stored_timestamp_seconds",]) == (1, 1764684000)


@pytest.mark.parametrize("name", [field.name for field in fields(Gauges)])
def test_a_gauge_is_read_where_it_is_kept_at_the_scrape(name):
    metrics = Metrics()
    files = []
    setattr(metrics.gauges, name, lambda: len(files))
    assert all(still(metric, Metrics(), metrics) for metric in METRICS)
    files.append("one")
    assert len([metric for metric in METRICS if not still(metric, Metrics(), metrics)]) == 1


def still(metric, before, after):
    """Whether a row that reads no clock says the same of both."""
    if metric.name.startswith("estat_process_"):
        return True
    one, other = metric.read(before), metric.read(after)
    return one.counts == other.counts if isinstance(one, Histogram) else one == other


def test_a_counter_that_does_not_exist_cannot_be_counted():
    with pytest.raises(AttributeError):
        Metrics().rejected_by_mistake = 1
    with pytest.raises(AttributeError):
        Metrics().gauges.dlq_flies = int
    with pytest.raises(KeyError):
        Metrics().rejected.add(SealReason.SIZE)


def test_a_large_count_keeps_its_last_digit():
    metrics = Metrics()
    metrics.books.accepted(9_007_199_254_740_991)
    assert scrape(metrics)["estat_events_accepted_total",] == 9_007_199_254_740_991


counts = st.integers(0, 1 << 40)


@given(
    st.fixed_dictionaries(dict.fromkeys(Place, counts)),
    st.fixed_dictionaries(dict.fromkeys(DropReason, counts)),
    counts,
    st.integers(-5, 5),
)
def test_the_books_tell_every_event_that_is_missing_or_doubled(pending, dropped, stored, missing):
    books = Books()
    for place, count in pending.items():
        books.recovered(count, place)
        books.ask(place, lambda count=count: count)
    books.accepted(stored + sum(dropped.values()))
    books.stored(stored, Place.OPEN)
    for reason, count in dropped.items():
        books.dropped(count, reason, Place.OPEN)
    assert books.unaccounted() == 0
    books.ask(Place.QUEUE, lambda: pending[Place.QUEUE] - missing)
    assert books.unaccounted() == missing


def test_the_books_follow_an_event_from_place_to_place():
    books = Books()
    books.accepted(7)
    books.moved(5, Place.OPEN, Place.QUEUE)
    books.moved(3, Place.QUEUE, Place.DLQ)
    books.stored(2, Place.QUEUE)
    books.dropped(1, DropReason.EVICTED, Place.DLQ)
    assert dict(books.waiting) == {Place.OPEN: 2, Place.QUEUE: 0, Place.DLQ: 2, Place.BACKLOG: 0}
    assert "accepted=7 recovered=0 stored=2" in repr(books)


@pytest.mark.parametrize(
    "verb",
    [
        lambda books: books.stored(4, Place.QUEUE),
        lambda books: books.moved(4, Place.QUEUE, Place.DLQ),
        lambda books: books.dropped(4, DropReason.CORRUPT, Place.QUEUE),
        lambda books: books.accepted(-1),
        lambda books: books.recovered(-1, Place.QUEUE),
    ],
    ids=["stored", "moved", "dropped", "accepted", "recovered"],
)
def test_books_that_are_checked_let_no_event_leave_a_place_to_which_it_never_came(verb):
    for checked in (True, False):
        books = Books(checked=checked)
        books.accepted(3, Place.QUEUE)
        with pytest.raises(AssertionError) if checked else nullcontext():
            verb(books)


def test_a_place_that_holds_other_than_the_verbs_say_is_named():
    books = Books()
    books.accepted(3)
    books.ask(Place.OPEN, lambda: 2)
    books.ask(Place.DLQ, lambda: 1)
    assert books.unaccounted() == 0, "the sum is right"
    assert books.differing() == {Place.OPEN: (3, 2), Place.DLQ: (0, 1)}


def test_the_tests_run_with_the_checks_on():
    assert DEBUG_CHECKS
    assert Metrics().books.checked


def test_the_books_are_part_of_the_scrape():
    metrics = Metrics()
    books = metrics.books
    books.ask(Place.OPEN, lambda: 2)
    books.ask(Place.DLQ, lambda: 3)
    books.accepted(7)
    books.recovered(1, Place.DLQ)
    books.stored(2, Place.OPEN)
    figures = scrape(metrics)
    assert figures["estat_events_pending", "open"] == 2
    assert figures["estat_events_pending", "dlq"] == 3
    assert figures["estat_events_unaccounted",] == 1


def test_a_histogram_counts_each_value_up_to_its_bound():
    metrics = Metrics()
    for seconds in (0.001, 0.005, 0.0051, 3.0, 99.0):
        metrics.put_seconds.observe(seconds)
    figures = scrape(metrics)
    assert figures["estat_put_duration_seconds_bucket", "0.005"] == 2
    assert figures["estat_put_duration_seconds_bucket", "0.01"] == 3
    assert figures["estat_put_duration_seconds_bucket", "2.5"] == 3
    assert figures["estat_put_duration_seconds_bucket", "5.0"] == 4
    assert figures["estat_put_duration_seconds_bucket", "10.0"] == 4
    assert figures["estat_put_duration_seconds_bucket", "+Inf"] == figures["estat_put_duration_seconds_count",] == 5
    assert figures["estat_put_duration_seconds_sum",] == pytest.approx(102.0111)


@given(st.lists(st.floats(0, 1e6)))
def test_a_histogram_loses_no_observation(values):
    histogram = Histogram((1.0, 10.0, 100.0))
    for value in values:
        histogram.observe(value)
    assert sum(histogram.counts) == len(values)
    assert histogram.counts[0] == sum(value <= 1.0 for value in values)
    assert histogram.counts[-1] == sum(value > 100.0 for value in values)


def test_what_the_process_uses_is_told():
    metrics = Metrics()
    first = scrape(metrics)
    assert 1 << 22 < first["estat_process_resident_memory_bytes",] < 1 << 34
    assert first["estat_process_start_time_seconds",] == metrics.started
    assert scrape(metrics)["estat_process_cpu_seconds_total",] > first["estat_process_cpu_seconds_total",] > 0


def test_the_page_is_rendered_at_most_once_a_second():
    now = 100.0
    metrics = Metrics()
    page = Page(metrics, clock=lambda: now)
    kind, first = page()
    assert kind == CONTENT_TYPE == CONTENT_TYPE_PLAIN_0_0_4
    metrics.books.accepted(1)
    now = 100.999
    assert page() == (kind, first)
    now = 101.0
    assert b"\nestat_events_accepted_total 1.0\n" in page()[1]


def test_prometheus_is_not_loaded_before_the_first_scrape():
    program = (
        "import sys; from ingest.telemetry import Metrics, Page; page = Page(Metrics());"
        " before = 'prometheus_client' in sys.modules; page(); print(before, 'prometheus_client' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "False True\n"
