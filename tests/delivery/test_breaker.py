from __future__ import annotations

import pytest

from ingest.delivery.breaker import FAILURES_TO_OPEN, FIRST_PAUSE, LONGEST_PAUSE, Breaker, State


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def changes():
    return []


@pytest.fixture
def breaker(clock, changes):
    return Breaker(clock, changes.append)


def fail(breaker, times=1):
    for _ in range(times):
        breaker.failed(breaker.ask())


def probe(breaker, clock):
    clock.now = max(clock.now, breaker.retry_at)
    permit = breaker.ask()
    assert permit.is_probe
    return permit


def test_it_opens_at_the_third_failure_in_a_row(breaker, changes):
    fail(breaker, FAILURES_TO_OPEN - 1)
    assert breaker.state is State.CLOSED
    fail(breaker)
    assert breaker.state is State.OPEN
    assert breaker.ask() is None
    assert not breaker.ready
    assert changes == [State.OPEN]


def test_a_success_between_failures_starts_the_count_again(breaker):
    fail(breaker, FAILURES_TO_OPEN - 1)
    breaker.succeeded(breaker.ask())
    fail(breaker, FAILURES_TO_OPEN - 1)
    assert breaker.state is State.CLOSED


def test_only_one_probe_runs_at_a_time(breaker, clock, changes):
    fail(breaker, FAILURES_TO_OPEN)
    clock.now += FIRST_PAUSE - 0.01
    assert breaker.ask() is None
    clock.now += 0.01
    assert breaker.ready
    assert breaker.ask().is_probe
    assert breaker.state is State.HALF_OPEN
    assert breaker.ask() is None
    assert not breaker.ready
    assert changes == [State.OPEN, State.HALF_OPEN]


def test_the_probe_s_success_closes_it(breaker, clock, changes):
    fail(breaker, FAILURES_TO_OPEN)
    breaker.succeeded(probe(breaker, clock))
    assert breaker.state is State.CLOSED
    assert not breaker.ask().is_probe
    assert changes == [State.OPEN, State.HALF_OPEN, State.CLOSED]


def test_each_failed_probe_doubles_the_pause_up_to_a_limit_and_a_success_resets_it(breaker, clock):
    fail(breaker, FAILURES_TO_OPEN)
    pauses = []
    for _ in range(8):
        breaker.failed(probe(breaker, clock))
        pauses.append(breaker.retry_at - clock.now)
    assert pauses[:3] == [2 * FIRST_PAUSE, 4 * FIRST_PAUSE, 8 * FIRST_PAUSE]
    assert pauses[-1] == LONGEST_PAUSE
    breaker.succeeded(probe(breaker, clock))
    fail(breaker, FAILURES_TO_OPEN)
    assert breaker.retry_at - clock.now == FIRST_PAUSE


def test_an_abandoned_probe_says_nothing_and_the_next_may_run_at_once(breaker, clock):
    fail(breaker, FAILURES_TO_OPEN)
    breaker.abandoned(probe(breaker, clock))
    assert breaker.state is State.OPEN
    assert breaker.ask().is_probe


def test_a_straggler_s_failure_does_not_end_the_probe(breaker, clock):
    straggler = breaker.ask()
    fail(breaker, FAILURES_TO_OPEN)
    permit = probe(breaker, clock)
    breaker.failed(straggler)
    assert breaker.state is State.HALF_OPEN
    breaker.abandoned(straggler)
    assert breaker.state is State.HALF_OPEN
    breaker.succeeded(permit)
    assert breaker.state is State.CLOSED


def test_a_straggler_s_success_closes_it(breaker):
    straggler = breaker.ask()
    fail(breaker, FAILURES_TO_OPEN)
    breaker.succeeded(straggler)
    assert breaker.state is State.CLOSED


def test_failures_of_stragglers_do_not_move_the_time_of_the_probe(breaker, clock):
    stragglers = [breaker.ask() for _ in range(5)]
    fail(breaker, FAILURES_TO_OPEN)
    due = breaker.retry_at
    clock.now += 0.5
    for straggler in stragglers:
        breaker.failed(straggler)
    assert breaker.retry_at == due
