"""Small turns that follow each other closely wait for company, where company comes; nothing else is held up."""

from __future__ import annotations

import itertools
import random
from collections import deque
from typing import TYPE_CHECKING

import pytest

from ingest.wire.gathering import CLOSELY, GATHER_SECONDS, LONGEST_PAUSE, SMALL_TURN, WAITS_SECONDS
from tests.stand_ins.wire import Wire, post

if TYPE_CHECKING:
    from tests.stand_ins.wire import Client

TURN_SECONDS = 100e-6


class Traffic:
    """Clients that send at a rate of their own, beside some that send again when they have been answered.

    What is due while a turn waits comes before it runs, and so do those who were answered before the wait.
    """

    def __init__(self, wire: Wire, connections: int, a_second: float = 0.0) -> None:
        self.wire = wire
        self.clients = [wire.connect() for _ in range(connections)]
        self.a_second = a_second
        self.waiting: list[Client] = []
        self.at_once = 1
        """So many of those who wait for an answer send within one turn."""
        self.turns = 0
        self._draw = random.Random(7)
        self._due: deque[float] = deque()
        wire.tick._sleep = self._rest

    def wait_for_answers(self, clients: int) -> None:
        """Have so many clients more, each of which sends again when it has been answered."""
        joined = [self.wire.connect() for _ in range(clients)]
        for client in joined:
            client.send(post())
        self.waiting += joined

    def go_on(self, seconds: float) -> int:
        """Let time pass; return how many events of those who wait for an answer were answered."""
        wire, answered = self.wire, 0
        until = wire.loop.now + seconds
        if self.a_second:
            gaps = (self._draw.expovariate(self.a_second) for _ in itertools.count())
            self._due = deque(itertools.takewhile(until.__gt__, itertools.accumulate(gaps, initial=wire.loop.now)))
        while wire.loop.now < until:
            self._send_due()
            answered += self._send_again(self.at_once)
            if wire.loop.ready:
                wire.loop.settle()
                self.turns += 1
            elif self._due:
                self._pass(self._due[0] - wire.loop.now)
            self._pass(TURN_SECONDS)
        return answered

    def _pass(self, seconds: float) -> None:
        self.wire.loop.now += seconds
        self.wire.stopwatch += seconds

    def _rest(self, seconds: float) -> None:
        self.wire.rests.append(seconds)
        self._pass(seconds)
        self._send_due()
        self._send_again(len(self.waiting))

    def _send_due(self) -> None:
        while self._due and self._due[0] <= self.wire.loop.now:
            self._due.popleft()
            self._draw.choice(self.clients).transport.receive(post())

    def _send_again(self, at_most: int) -> int:
        answered = [client for client in self.waiting if client.transport.sent][:at_most]
        for client in answered:
            client.transport.sent.clear()
            client.transport.receive(post())
        return len(answered)


def gathered(connections: int = 32, settings: dict[str, str] | None = None) -> tuple[Wire, list[Client]]:
    """Return a wire whose next turn waits, because a small one has just run and company is expected."""
    wire = Wire(settings or {})
    traffic = Traffic(wire, connections, 2_000.0)
    traffic.go_on(0.2)
    assert wire.rests
    wire.tick._sleep = wire.rests.append
    client = traffic.clients[0]
    wire.stopwatch += 2 * CLOSELY
    client.send(post())
    wire.lines.clear()
    wire.rests.clear()
    for client in traffic.clients:
        client.transport.sent.clear()
    return wire, traffic.clients


def test_an_event_after_silence_is_not_held_up():
    wire, clients = gathered()
    for _ in range(3):
        wire.stopwatch += 2 * CLOSELY
        clients[0].send(post())
    assert wire.rests == []
    assert len(wire.lines) == 3


def test_what_arrives_closely_upon_a_small_turn_waits_and_is_committed_together():
    wire, clients = gathered()
    clients[0].transport.receive(post())
    wire.loop.turn()
    assert wire.rests == [GATHER_SECONDS]
    assert wire.lines == []
    for client in clients[1:3]:  # read while the turn waits
        client.transport.receive(post())
    wire.loop.turn()
    assert len(wire.lines) == 3
    wire.loop.settle()
    assert wire.rests == [GATHER_SECONDS]
    assert [client.statuses for client in clients[:4]] == [[200], [200], [200], []]


@pytest.mark.parametrize("reads", [SMALL_TURN, 32])
def test_a_full_turn_has_company_enough(reads):
    wire, clients = gathered()
    wire.stopwatch += 2 * CLOSELY
    for _ in range(4):
        for client in clients[:reads]:
            client.transport.receive(post())
        wire.loop.settle()
    assert wire.rests == []
    assert len(wire.lines) == 4 * reads


def test_nobody_is_waited_for_when_every_connection_was_served():
    wire, clients = gathered(connections=4)
    wire.stopwatch += 2 * CLOSELY
    for _ in range(4):
        for client in clients:
            client.transport.receive(post())
        wire.loop.settle()
    assert wire.rests == []


def test_a_wait_that_brought_nothing_is_followed_by_a_turn_that_does_not_wait():
    wire, clients = gathered()
    for rests in (1, 1, 2, 2):
        clients[0].send(post())
        assert len(wire.rests) == rests


def test_what_is_left_of_a_large_read_does_not_wait():
    wire, (client, *_) = gathered()
    client.send(post(b"x" * 16_000))
    assert wire.rests == [GATHER_SECONDS]  # for the read, none for the slices it is fed in
    client.end()
    assert wire.rests == [GATHER_SECONDS]
    assert client.statuses == [200]


def test_a_drain_does_not_wait_for_a_turn_that_gathers():
    wire, (client, *_) = gathered()
    client.transport.receive(post())
    wire.loop.turn()
    assert wire.rests == [GATHER_SECONDS]
    wire.tick.drain()
    assert len(wire.lines) == 1
    wire.loop.settle()
    assert client.statuses == [200]
    assert client.closed


@pytest.mark.parametrize(
    ("count", "at_once", "others"),
    [(1, 1, 0), (1, 1, 100), (4, 1, 0), (4, 3, 100), (8, 1, 1_000), (8, 3, 0), (12, 1, 1_000), (12, 3, 100)],
)
def test_clients_that_wait_for_each_answer_are_not_held_up_E14(count, at_once, others):
    """Neither alone nor beside clients that send by themselves, so many events a second on connections of their own."""
    traffic = Traffic(Wire(), 20, others)
    traffic.at_once = at_once
    traffic.wait_for_answers(count)
    traffic.go_on(1.0)
    traffic.wire.rests.clear()
    answered = traffic.go_on(1.0)
    assert sum(traffic.wire.rests) < 0.01
    assert answered > 0.9 * min(at_once, count) / (2 * TURN_SECONDS)


def test_clients_that_begin_to_wait_for_answers_while_others_are_gathered_are_soon_found_out_E14():
    traffic = Traffic(Wire(), 32, 2_000.0)
    traffic.go_on(1.0)
    assert traffic.wire.rests
    traffic.wait_for_answers(4)
    traffic.go_on(2 * WAITS_SECONDS)
    traffic.wire.rests.clear()
    traffic.go_on(LONGEST_PAUSE)
    assert sum(traffic.wire.rests) < 0.02 * LONGEST_PAUSE


def test_others_are_gathered_again_when_clients_that_waited_for_answers_are_gone():
    traffic = Traffic(Wire(), 32, 2_000.0)
    traffic.wait_for_answers(4)
    traffic.go_on(LONGEST_PAUSE)
    traffic.waiting.clear()
    traffic.go_on(LONGEST_PAUSE)
    traffic.wire.rests.clear()
    traffic.go_on(1.0)
    assert sum(traffic.wire.rests) > 0.4


def test_one_event_a_connection_is_not_held_up_E14():
    wire = Wire()
    for _ in range(500):
        client = wire.connect()
        wire.stopwatch += 20e-6
        client.transport.receive(post(b"{}", "Connection: close"))
        wire.loop.turn()
        wire.stopwatch += 20e-6
        wire.loop.settle()
        assert client.closed
    assert wire.rests == []


@pytest.mark.parametrize(("a_second", "a_turn"), [(2_000, 4), (4_000, 7), (10_000, 10)])
def test_events_that_come_whether_or_not_others_are_answered_are_gathered_E14(a_second, a_turn):
    """Without any wait there is a turn for nearly each event at 2,000/s, and for one or two at 10,000/s."""
    traffic = Traffic(Wire(), 32, a_second)
    traffic.go_on(1.0)
    turns, lines = traffic.turns, len(traffic.wire.lines)
    traffic.go_on(2.0)
    assert (len(traffic.wire.lines) - lines) / (traffic.turns - turns) > a_turn


def test_events_that_come_too_seldom_for_company_hardly_ever_wait():
    traffic = Traffic(Wire(), 32, 200.0)
    traffic.go_on(10.0)
    assert len(traffic.wire.lines) > 1_500
    assert len(traffic.wire.rests) < 0.05 * len(traffic.wire.lines)
