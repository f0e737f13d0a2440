"""No address sends more than its limit, and nobody pays for others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.config import Rate
from ingest.event import rates
from ingest.event.rates import RateLimit, network


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def sent(limit: RateLimit, address: str, tries: int = 1000) -> int:
    """Return how many of so many events are let through at once."""
    count = 0
    for _ in range(tries):
        if not limit.wait(address):
            limit.spend(address)
            count += 1
    return count


def test_after_a_rest_a_burst_and_then_the_limit():
    clock = Clock()
    limit = RateLimit(Rate(100, 1), 200, clock)
    assert sent(limit, "203.0.113.7") == 200
    for _ in range(10):
        clock.now += 0.1
        assert sent(limit, "203.0.113.7") == pytest.approx(10, abs=1)
    clock.now += 60
    assert sent(limit, "203.0.113.7") == 200


def test_who_is_refused_is_told_how_long_to_wait_and_may_come_then():
    clock = Clock()
    limit = RateLimit(Rate(6, 60), 3, clock)
    assert sent(limit, "203.0.113.7") == 3
    wait = limit.wait("203.0.113.7")
    assert wait == pytest.approx(10)
    clock.now += wait + 0.001
    assert sent(limit, "203.0.113.7") == 1


def test_a_batch_may_leave_a_debt_that_time_pays():
    clock = Clock()
    limit = RateLimit(Rate(100, 1), 200, clock)
    limit.spend("203.0.113.7", 1000)
    assert limit.wait("203.0.113.7") == pytest.approx(8.01)
    assert limit.wait("203.0.113.8") == 0


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 30)), max_size=30))
def test_in_any_stretch_of_time_no_more_than_the_limit_and_one_burst(steps):
    clock = Clock()
    limit = RateLimit(Rate(10, 1), 20, clock)
    log = []
    for pause, tries in steps:
        clock.now += pause
        log.append((clock.now, sent(limit, "203.0.113.7", tries)))
    for first in range(len(log)):
        for last in range(first, len(log)):
            count = sum(events for _, events in log[first : last + 1])
            assert count <= 20 + 10 * (log[last][0] - log[first][0]) + 1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("203.0.113.7", "203.0.113.8", False),
        ("203.0.113.7", "::ffff:203.0.113.7", True),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
    ],
)
def test_an_ipv4_address_and_an_ipv6_64_are_one(one, other, same):
    assert (network(one) == network(other)) is same
    limit = RateLimit(Rate(1, 1), 1, Clock())
    limit.spend(one)
    assert bool(limit.wait(other)) is same


@pytest.mark.parametrize("address", ["", "/run/ingest.sock", "unknown"])
def test_what_is_no_address_is_let_through(address):
    limit = RateLimit(Rate(1, 1), 1, Clock())
    assert sent(limit, address) == 1000
    assert len(limit) == 0


def test_an_entry_lives_until_its_bucket_is_full_again():
    clock = Clock()
    limit = RateLimit(Rate(10, 1), 20, clock)
    limit.spend("203.0.113.7")
    limit.spend("203.0.113.8", 20)
    clock.now += 0.2
    limit.sweep()
    assert len(limit) == 1
    assert limit.wait("203.0.113.7") == 0
    clock.now += 2
    limit.sweep()
    assert len(limit) == 0


def test_who_finds_no_place_in_the_table_is_let_through_until_there_is_one(monkeypatch):
    monkeypatch.setattr(rates, "ADDRESSES_KEPT", 2)
    clock = Clock()
    limit = RateLimit(Rate(1, 1), 1, clock)
    assert [sent(limit, f"203.0.113.{host}", 5) for host in (1, 2, 3)] == [1, 1, 5]
    assert len(limit) == 2
    clock.now += 1
    limit.sweep()
    assert sent(limit, "203.0.113.3", 5) == 1
