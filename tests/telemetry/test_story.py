"""The log tells an outage as a story, one line an edge (F6)."""

import pytest
from structlog.testing import capture_logs

from ingest.telemetry import Metrics, Place, Reason, StoreHealth, Story
from ingest.telemetry.counters import BreakerState
from ingest.telemetry.status import Phase
from ingest.telemetry.story import AWAY_AFTER, QUIET, REMIND_EVERY

BEGAN = 1764684000.0


class Stage:
    """A story over figures that a test sets, on a clock that it moves."""

    def __init__(self):
        self.seconds = 0.0
        self.metrics = Metrics(store=StoreHealth(self.now))
        self.files = self.size = 0
        self.full = False
        self.retry_at = 0.0
        gauges = self.metrics.gauges
        gauges.dlq_files = lambda: self.files
        gauges.dlq_bytes = lambda: self.size
        gauges.spool_limit = lambda: 1000
        self.metrics.books.ask(Place.DLQ, lambda: self.metrics.books.waiting[Place.DLQ])
        self.story = Story(
            self.metrics,
            clock=lambda: self.seconds,
            now=self.now,
            refuses=lambda: self.full,
            next_try=lambda: self.retry_at,
        )

    def now(self):
        return BEGAN + self.seconds

    def spool(self, events):
        self.metrics.books.accepted(events, Place.DLQ)
        self.files += 1
        self.size += events

    def upload(self, events):
        self.metrics.books.stored(events, Place.DLQ)
        self.metrics.reuploaded += events
        self.metrics.files_reuploaded += 1
        self.files -= 1
        self.size -= events

    def at(self, seconds):
        """What is told when so much time has passed, each look at its half second."""
        with capture_logs() as told:
            while self.seconds < seconds:
                self.seconds = min(self.seconds + 0.5, seconds)
                self.story.tick()
        return told

    @property
    def told(self):
        with capture_logs() as told:
            self.story.tick()
        return told


@pytest.fixture
def stage():
    return Stage()


def test_an_outage_is_told_from_its_first_failed_try_to_the_last_file(stage):
    assert stage.told == []
    stage.metrics.store.failed("ConnectionError: refused", "")
    assert stage.at(1.0) == [], "a try that fails is repeated, and is no outage"
    stage.metrics.breaker = BreakerState.OPEN
    assert stage.told == [
        {
            "event": "store_away",
            "log_level": "warning",
            "error": "ConnectionError: refused",
            "code": "",
            "since": "2025-12-02T14:00:00Z",
        }
    ]
    stage.spool(30)
    stage.spool(20)
    stage.metrics.store.failed("ClientError: 503", "SlowDown")
    stage.metrics.breaker = BreakerState.HALF_OPEN
    stage.retry_at = 70.5
    (line,) = stage.at(1.0 + REMIND_EVERY + 1)
    assert line == {
        "event": "store_still_away",
        "log_level": "warning",
        "error": "ClientError: 503",
        "since": "2025-12-02T14:00:00Z",
        "waiting": 50,
        "files": 2,
        "room_left": 950,
        "next_try": 9.5,
    }
    stage.upload(30)
    stage.metrics.store.stored()
    stage.metrics.breaker = BreakerState.CLOSED
    (line,) = stage.told
    assert line == {"event": "store_back", "log_level": "info", "away_for": 62.0, "waiting": 20, "files": 1}
    assert stage.at(63.0) == []
    stage.upload(20)
    (line,) = stage.at(64.0)
    assert line == {"event": "recovered", "log_level": "info", "files": 2, "events": 50, "took": 1.5}
    assert stage.at(200.0) == []


def test_tries_that_fail_for_long_are_an_outage_also_while_the_breaker_is_closed(stage):
    stage.metrics.store.failed("no answer within S3_TIMEOUT")
    assert stage.at(AWAY_AFTER - 1) == []
    assert [line["event"] for line in stage.at(AWAY_AFTER + 1)] == ["store_away"]


def test_a_store_that_comes_back_with_nothing_waiting_is_told_once(stage):
    stage.metrics.store.failed("x")
    stage.metrics.breaker = BreakerState.OPEN
    assert len(stage.told) == 1
    stage.metrics.store.stored()
    assert [line["event"] for line in stage.at(10.0)] == ["store_back"]


def test_files_of_an_earlier_run_are_told_when_they_are_through(stage):
    stage.metrics.books.recovered(7, Place.DLQ)
    stage.files = 1
    assert stage.at(3.0) == []
    assert stage.story.status().phase is Phase.RECOVERING
    stage.size = 7
    stage.upload(7)
    (line,) = stage.at(4.0)
    assert (line["event"], line["files"], line["events"]) == ("recovered", 1, 7)


def test_batches_that_spill_and_go_up_in_daily_traffic_are_no_story(stage):
    stage.spool(5)
    assert stage.at(1.0) == []
    stage.upload(5)
    assert stage.at(2.0) == []


def test_f6_refusals_are_one_line_at_each_end_however_they_flicker(stage):
    stage.metrics.rejected.add(Reason.QUEUE_FULL, 3)
    (line,) = stage.told
    assert (line["event"], line["log_level"], line["reason"]) == ("refusing_events", "warning", "queue_full")
    for second in range(1, 20):
        stage.metrics.rejected.add(Reason.QUEUE_FULL, 50)
        assert stage.at(float(second)) == []
    (line,) = stage.at(19.0 + QUIET + 1)
    assert line == {"event": "taking_events_again", "log_level": "info", "refused": 953, "for": 18.5}
    stage.metrics.rejected.add(Reason.QUEUE_FULL, 1)
    assert [line["event"] for line in stage.told] == ["refusing_events"]
    assert stage.at(60.0)[0]["refused"] == 1


def test_events_are_not_said_to_be_taken_while_the_next_one_would_be_refused(stage):
    stage.full = True
    stage.metrics.rejected.add(Reason.DISK_FULL)
    assert len(stage.told) == 1
    assert stage.at(100.0) == [], "nobody sends, and the disk is still full"
    stage.full = False
    assert [line["event"] for line in stage.told] == ["taking_events_again"]


def test_another_reason_to_refuse_is_another_line(stage):
    stage.metrics.rejected.add(Reason.QUEUE_FULL)
    assert len(stage.told) == 1
    stage.metrics.rejected.add(Reason.DISK_FULL)
    assert [(line["event"], line["reason"]) for line in stage.told] == [("refusing_events", "disk_full")]
    (line,) = stage.at(30.0)
    assert (line["event"], line["refused"]) == ("taking_events_again", 2)


def test_a_malformed_request_is_no_refusal_for_want_of_room(stage):
    stage.metrics.rejected.add(Reason.MALFORMED, 10)
    assert stage.at(10.0) == []


def test_the_status_says_the_same_in_a_sentence(stage):
    status = stage.story.status
    assert status().sentence() == "All is well since 2025-12-02T14:00:00Z: 0 events stored, 0 on their way."
    stage.metrics.store.failed("ConnectionError: refused")
    stage.metrics.breaker = BreakerState.OPEN
    stage.spool(50)
    stage.retry_at = 12.0
    assert len(stage.told) == 1
    assert status().sentence() == (
        "The store is away since 2025-12-02T14:00:00Z (ConnectionError: refused); 50 events wait, 1 file on disk, "
        "room for 0 MiB more, the next try is in 12 s."
    )
    for error, brief in (
        (
            'EndpointConnectionError: Could not connect to the endpoint URL: "http://s3/' + "k" * 99,
            "EndpointConnectionError",
        ),
        ("no word that ends " * 9, f"{('no word that ends ' * 9)[:79]}…"),
    ):
        stage.metrics.store.failed(error)
        assert f"({brief}); 50 events" in status().sentence()
        assert status().error == error
    stage.metrics.rejected.add(Reason.QUEUE_FULL)
    assert len(stage.told) == 1
    assert status().sentence().startswith("Events are refused since 2025-12-02T14:00:00Z (queue_full); 50 events")
    assert (status().phase, status().refused) == (Phase.REFUSING, 1)
    assert "Events are refused" in repr(stage.story)


def test_under_debug_checks_a_place_that_differs_from_the_books_ends_the_process(stage):
    stage.metrics.books.accepted(1, Place.QUEUE)
    stage.metrics.books.ask(Place.QUEUE, lambda: 0)
    with pytest.raises(AssertionError, match="the places hold other than the books say"):
        stage.story.tick()


@pytest.mark.parametrize(
    ("oldest", "shown"), [(-99999999999999, "1970-01-01T00:00:00Z"), (1e18, "9999-12-31T23:59:59Z")]
)
def test_an_instant_that_no_calendar_has_costs_no_answer(stage, oldest, shown):
    stage.metrics.gauges.oldest_pending = lambda: oldest
    assert stage.story.status().figures()["oldest_pending"] == shown
