"""When a file whose put did not succeed is tried again."""

from __future__ import annotations

import pytest

from ingest.delivery import aside as room
from ingest.delivery.aside import FIRST_REFUSED, LONGEST_REFUSED, Aside
from ingest.disk import StorageError
from ingest.store import Outcome, Refusal
from tests.stand_ins.letters import key

REFUSED = Outcome.of(Refusal("create", "k", "no", transient=False), contrast=True)
AWAY = Outcome.of(StorageError("create", "k", "away", transient=True), contrast=True)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture(autouse=True)
def _its_own_pauses(monkeypatch):
    monkeypatch.setattr(room, "FIRST_AWAY", 5.0)
    monkeypatch.setattr(room, "LONGEST_AWAY", 300.0)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def aside(clock):
    return Aside(clock)


def waits(aside, clock, name, outcome, times):
    """How long the file is put off each time, if it is tried as soon as it is due."""
    found = []
    for _ in range(times):
        aside.put_off(name, outcome)
        found.append(aside.next_due() - clock.now)
        assert not aside.is_due(name)
        clock.now = aside.next_due()
        assert aside.is_due(name)
    return found


def test_a_file_that_was_never_tried_is_due(aside):
    assert aside.is_due(key(1))
    assert aside.next_due() is None


def test_a4_a_refused_file_waits_one_minute_and_twice_as_long_each_time_up_to_an_hour(aside, clock):
    found = waits(aside, clock, key(1), REFUSED, 9)
    assert found == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert aside.refused == 1


def test_a_file_that_was_away_waits_five_seconds_and_twice_as_long_each_time_up_to_five_minutes(aside, clock):
    assert waits(aside, clock, key(1), AWAY, 8) == [5, 10, 20, 40, 80, 160, 300, 300]
    assert aside.refused == 0


def test_a_file_that_is_refused_after_it_was_away_begins_with_a_minute(aside, clock):
    waits(aside, clock, key(1), AWAY, 5)
    assert waits(aside, clock, key(1), REFUSED, 1) == [FIRST_REFUSED]


def test_all_of_a_prefix_are_due_when_one_of_it_is_stored(aside):
    denied = [key(n, prefix="old") for n in range(3)]
    for name in denied:
        aside.put_off(name, REFUSED)
    aside.stored(key(9, prefix="raw"))
    assert not any(aside.is_due(name) for name in denied)
    aside.stored(key(9, prefix="old"))
    assert all(aside.is_due(name) for name in denied)


def test_one_bad_file_among_good_ones_of_its_prefix_is_not_tried_with_each_of_them(aside, clock):
    """Otherwise a file that is too large would be sent again with every batch."""
    aside.put_off(key(1), REFUSED)
    aside.stored(key(2))
    assert aside.is_due(key(1)), "that is news"
    aside.put_off(key(1), REFUSED)
    for n in range(3, 20):
        aside.stored(key(n))
    assert not aside.is_due(key(1)), "that is none"
    clock.now += LONGEST_REFUSED
    assert aside.is_due(key(1))


def test_what_was_tried_counts_when_an_original_is_refused_by_its_own_prefix(aside):
    aside.put_off(key(1), REFUSED, object_key=key(1, prefix="raw_dlq"))
    aside.stored(key(2))
    assert not aside.is_due(key(1))
    aside.stored(key(2, prefix="raw_dlq"))
    assert aside.is_due(key(1))


def test_a_drain_has_every_file_tried_once_more(aside):
    aside.put_off(key(1), REFUSED)
    aside.put_off(key(2), AWAY)
    aside.all_due()
    assert aside.is_due(key(1))
    assert aside.is_due(key(2))


def test_a_file_that_is_stored_is_forgotten(aside):
    aside.put_off(key(1), REFUSED)
    assert aside.is_refused(key(1))
    aside.stored(key(1))
    assert (aside.refused, aside.next_due(), aside.is_refused(key(1))) == (0, None, False)


def test_memory_is_bounded_and_the_one_that_waits_longest_is_due(aside, monkeypatch):
    monkeypatch.setattr(room, "MOST", 100)
    for n in range(150):
        aside.put_off(key(n), REFUSED)
    assert aside.refused == 100
    assert [n for n in range(150) if aside.is_due(key(n))] == list(range(50))


def test_a_file_that_a_pass_has_not_met_is_forgotten_and_no_other(aside):
    for n in range(4):
        aside.put_off(key(n), REFUSED)
    aside.met(key(1))
    aside.passed()
    assert aside.refused == 4, "each was put off in this pass"
    aside.met(key(1))
    aside.put_off(key(2), REFUSED)
    aside.passed()
    assert [n for n in range(4) if aside.is_refused(key(n))] == [1, 2]
    assert aside.refused == 2
