"""Any worker shows the figures of all, and the books balance whoever ends."""

import os
from dataclasses import asdict, replace
from json import dumps, loads

import pytest

from ingest.shared_page import SharedPage
from ingest.store.s3_errors import LONGEST_TEXT
from ingest.telemetry import DropReason, Metrics, Place, Reason, SharedBooks, Status, StoreHealth, Together
from ingest.telemetry.counters import Answer, BreakerState
from ingest.telemetry.metrics import METRICS, OfAll
from ingest.telemetry.page import render
from ingest.telemetry.status import About, Disk, LastError, LastMinute, Phase, merged
from ingest.telemetry.together import QUICK, _flat

CLOCK = {"estat_process_cpu_seconds_total", "estat_process_resident_memory_bytes", "estat_process_start_time_seconds"}
WELL = Status(Phase.SERVING, 5.0, 0, 0, 0, 0, 0, 0, 0, None, pending={"open": 0}, breaker="closed")


@pytest.fixture
def page():
    made = SharedPage.make(6)
    yield made
    os.close(made.descriptor)


class Worker:
    """Metrics on the page, and the places of its events."""

    def __init__(self, page, number=0):
        self.metrics = metrics = Metrics(SharedBooks(), store=StoreHealth())
        for place in Place:
            metrics.books.ask(place, lambda place=place: metrics.books.waiting[place])
        _, self.region = page.take()
        self.status = WELL
        self.together = Together(metrics, page, self.region, number, lambda: self.status)

    def figure(self, name, label=None):
        figures = {metric.name: figure for metric, figure in self.together.figures()}
        return figures[name] if label is None else figures[name][label]

    def assert_balanced(self):
        taken = self.figure("estat_events_accepted_total") + self.figure("estat_events_recovered_total")
        gone = self.figure("estat_events_stored_total") + sum(self.figure("estat_events_dropped_total").values())
        left = self.figure("estat_events_handed_on_total") + sum(self.figure("estat_events_pending").values())
        assert taken == gone + left
        assert self.figure("estat_events_unaccounted") == 0


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_figure_of_one_worker_is_shown_as_it_is(page, metric):
    alone = Worker(page)
    metrics = alone.metrics
    metrics.books.accepted(7)
    metrics.books.dropped(1, DropReason.EVICTED, Place.OPEN)
    metrics.requests.add(Answer.OK, 3)
    metrics.request_seconds.observe(0.2, 5)
    metrics.rejected.add(Reason.MALFORMED, 2)
    metrics.journal_writes = 4
    metrics.breaker = BreakerState.OPEN
    metrics.put_seconds.observe(2.0)
    shown = alone.figure(metric.name)
    if metric.name not in CLOCK:
        assert _flat(shown) == _flat(metric.read(metrics))
        assert type(shown) is type(metric.read(metrics)) or isinstance(shown, float)


def test_the_quick_figures_stand_in_the_order_of_the_table():
    assert tuple(metric.name for metric in METRICS if metric.name in QUICK) == QUICK


def test_an_event_is_on_the_page_before_it_is_acknowledged(page):
    one, other = Worker(page), Worker(page, 1)
    one.metrics.books.accepted(5)  # and no more: the answers go out after this
    assert other.figure("estat_events_accepted_total") == 5
    assert other.figure("estat_events_pending", "open") == 5


@pytest.mark.parametrize(
    ("figures", "of_all", "shown"),
    [
        ((2, 3), OfAll.SUM, 5),
        ((2, 3), OfAll.MOST, 3),
        ((2, 3), OfAll.LEAST, 2),
        ((0, 3), OfAll.LEAST, 0),
        ((0, 3), OfAll.LEAST_SET, 3),
        ((0, 0), OfAll.LEAST_SET, 0),
    ],
)
def test_each_metric_says_what_stands_for_the_figures_of_all(page, figures, of_all, shown):
    name, attribute = {
        OfAll.SUM: ("estat_puts_total", "puts"),
        OfAll.MOST: ("estat_journal_failed", "journal_failed"),
        OfAll.LEAST: ("estat_process_start_time_seconds", "started"),
        OfAll.LEAST_SET: ("estat_tls_not_after_timestamp_seconds", "tls_not_after"),
    }[of_all]
    workers = [Worker(page, number) for number in range(2)]
    for worker, figure in zip(workers, figures, strict=True):
        setattr(worker.metrics, attribute, figure)
        worker.together.write()
    assert [worker.figure(name) for worker in workers] == [shown, shown]
    assert next(metric for metric in METRICS if metric.name == name).of_all is of_all


def test_the_books_balance_when_a_worker_is_killed_and_its_events_are_found(page):
    killed, other = Worker(page), Worker(page, 1)
    killed.metrics.books.accepted(100)
    killed.metrics.books.moved(60, Place.OPEN, Place.QUEUE)
    killed.metrics.books.stored(50, Place.QUEUE)
    killed.metrics.books.dropped(1, DropReason.CORRUPT, Place.OPEN)
    killed.metrics.puts = 3
    killed.together.write()
    other.metrics.books.accepted(10)
    other.assert_balanced()
    page.end(killed.region)
    other.assert_balanced()
    assert other.figure("estat_events_accepted_total") == 110
    assert other.figure("estat_puts_total") == 3
    assert other.figure("estat_events_handed_on_total") == 49
    assert sum(other.figure("estat_events_pending").values()) == 10
    assert other.figure("estat_workers") == 1
    successor = Worker(page)
    successor.metrics.books.recovered(49, Place.BACKLOG)
    successor.metrics.books.stored(49, Place.BACKLOG)
    other.assert_balanced()
    assert other.figure("estat_events_stored_total") == 99
    text = render(other.together)
    assert b"\nestat_events_stored_total 99.0\n" in text
    assert b"\nestat_workers 2.0\n" in text
    assert text.splitlines()[:1] == render(other.metrics).splitlines()[:1]


def test_the_restarts_are_those_of_the_supervisor(page):
    workers = [Worker(page, number) for number in range(2)]
    page.restarted()
    assert [worker.figure("estat_worker_restarts_total") for worker in workers] == [1, 1]
    page.end(workers[0].region)
    assert workers[1].figure("estat_worker_restarts_total") == 1


def test_the_status_of_all_is_what_is_most_pressing_of_any(page):
    one, other = Worker(page), Worker(page, 1)
    one.metrics.books.accepted(3)
    one.metrics.rejected.add(Reason.DISK_FULL, 2)
    one.status = replace(
        WELL, phase=Phase.STORE_AWAY, since=9.0, error="gone", accepted=3, about=About(slots={"dlq": "/a"})
    )
    other.status = replace(WELL, about=About(slots={"dlq": "/b"}))
    long = {"CORS_ORIGINS": "https://example.com," * 1000}
    one.status = replace(one.status, about=replace(one.status.about, settings=long))
    one.together.write()
    status = other.together.status()
    assert (status.phase, status.since, status.error) == (Phase.STORE_AWAY, 9.0, "gone")
    assert (status.accepted, status.refused, status.about.workers) == (3, 2, 2)
    assert status.about.slots == {"dlq of worker 0": "/a", "dlq of worker 1": "/b"}
    page.end(one.region)
    status = other.together.status()
    assert (status.phase, status.accepted, status.refused, status.about.workers) == (Phase.SERVING, 3, 2, 1)


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[]", b"{}", b'{"phase": "unheard of"}'])
def test_what_a_program_of_another_version_says_keeps_nobody_from_telling_the_rest(page, text):
    one, other = Worker(page), Worker(page, 1)
    one.metrics.books.accepted(3)
    one.together.write()
    one.region.write_status(text)
    status = other.together.status()
    assert (status.accepted, status.about.workers) == (3, 1)


@pytest.mark.parametrize("letter", ["e", "저", "\U0001f4a5"])
def test_the_longest_error_of_a_store_in_any_script_finds_room_on_the_page(page, letter):
    one, other = Worker(page), Worker(page, 1)
    error = letter * LONGEST_TEXT
    one.status = replace(
        WELL,
        phase=Phase.STORE_AWAY,
        error=error,
        last_error=LastError(error, "c", 4.0),
        about=About(slots={"dlq": "/data/\udcff"}),
    )
    one.together.write()
    status = other.together.status()
    assert (status.phase, status.error) == (Phase.STORE_AWAY, error)
    assert status.about.slots == {"dlq of worker 0": "/data/\udcff"}


def test_a_status_comes_back_from_the_page_as_it_was():
    status = replace(
        WELL,
        last_minute=LastMinute(1.5, 2.5, 0.1, float("inf"), -3.0),
        disk=Disk(1, 2, 3),
        last_error=LastError("e", "c", 4.0),
        about=About(slots={"dlq": "/a"}, settings={"A": "b"}),
    )
    assert Status.of(loads(dumps(asdict(status), default=lambda member: member.value))) == status


@pytest.mark.parametrize(
    ("one", "other", "field", "shown"),
    [
        ({"since": 3.0}, {"since": 5.0}, "since", 5.0),
        ({"phase": Phase.REFUSING, "since": 3.0}, {"phase": Phase.REFUSING, "since": 5.0}, "since", 3.0),
        ({"phase": Phase.REFUSING, "reason": "disk_full"}, {"phase": Phase.STORE_AWAY}, "reason", "disk_full"),
        ({"next_try": 4.0}, {"next_try": None}, "next_try", 4.0),
        ({"breaker": "half-open"}, {"breaker": "closed"}, "breaker", "half-open"),
        ({"disk": Disk(10, 100, 500)}, {"disk": Disk(20, 100, 400)}, "room_left", 170),
        ({"disk": Disk(10, 100, 50)}, {"disk": Disk(20, 100, 0)}, "room_left", 50),
        ({"oldest_pending": 0.0}, {"oldest_pending": 8.0}, "oldest_pending", 8.0),
        ({"pending": {"open": 1}}, {"pending": {"open": 2}}, "pending", {"open": 3}),
        (
            {"last_error": LastError("a", "", 1.0)},
            {"last_error": LastError("b", "", 2.0)},
            "last_error",
            LastError("b", "", 2.0),
        ),
        (
            {"last_minute": LastMinute(1.0, 2.0, 0.1, 0.2, 5.0)},
            {"last_minute": LastMinute(3.0, 4.0, None, 0.3, -1.0)},
            "last_minute",
            LastMinute(4.0, 6.0, 0.1, 0.3, 4.0),
        ),
    ],
)
def test_each_field_of_a_status_has_its_way_of_being_one(one, other, field, shown):
    both = [replace(WELL, **one), replace(WELL, **other)]
    assert getattr(merged(both), field) == shown
    assert getattr(merged(both[::-1]), field) == shown
