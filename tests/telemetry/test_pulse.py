"""The pace of the last minute is that of the last minute."""

import math

import pytest

from ingest.telemetry import Metrics, Place
from ingest.telemetry.pulse import SAMPLE_EVERY, SAMPLES, Pulse, within


def test_the_pace_is_that_of_the_last_minute_whatever_was_before():
    metrics, at = Metrics(), [0.0]
    size = [0]
    metrics.gauges.dlq_bytes = lambda: size[0]
    pulse = Pulse(metrics, lambda: at[0])

    def pass_by(seconds, *, events, answered, grows):
        for _ in range(seconds):
            at[0] += 1.0
            metrics.books.accepted(events, Place.OPEN)
            metrics.request_seconds.observe(answered, events)
            size[0] += grows
            pulse.feed()

    pass_by(100, events=1000, answered=7.0, grows=50)
    pass_by(int(SAMPLES * SAMPLE_EVERY), events=10, answered=0.02, grows=-20)
    pace = pulse.last_minute()
    assert (pace.accepted_per_second, pace.stored_per_second, pace.disk_per_second) == (10.0, 0.0, -20.0)
    assert (pace.p50, pace.p99) == (0.025, 0.025)


def test_the_first_instant_is_no_pace():
    metrics = Metrics()
    pulse = Pulse(metrics, lambda: 5.0)
    metrics.books.accepted(7, Place.OPEN)
    assert pulse.last_minute().accepted_per_second == 7.0


@pytest.mark.parametrize(
    ("counts", "share", "bound"),
    [
        ([0, 0, 0], 0.5, None),
        ([1, 0, 0], 0.99, 1.0),
        ([50, 50, 0], 0.5, 1.0),
        ([49, 51, 0], 0.5, 2.0),
        ([98, 0, 2], 0.99, math.inf),
    ],
)
def test_a_share_is_answered_within_the_bound_of_its_bucket(counts, share, bound):
    assert within((1.0, 2.0), counts, share) == bound
