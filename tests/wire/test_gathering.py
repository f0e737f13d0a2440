"""Small turns that follow each other closely wait for company, where company comes; nothing else is held up."""

from __future__ import annotations

import itertools
import random
from collections import deque
from typing import TYPE_CHECKING

import pytest

from ingest.wire.gathering import CLOSELY, GATHER_SECONDS, SMALL_TURN
from tests.stand_ins.wire import Wire, post

if TYPE_CHECKING:
    from tests.stand_ins.wire import Client


def arrive(clients: list[Client]) -> None:
    """Have each client send an event, all in the same turn."""
    for client in clients:
        client.transport.receive(post())


def connected(wire: Wire, count: int) -> list[Client]:
    """Return clients that are not new any more."""
    clients = [wire.connect() for _ in range(count)]
    for _ in range(2):
        clients[0].send(post())
        wire.loop.now += 2 * CLOSELY
    wire.lines.clear()
    wire.rests.clear()
    for client in clients:
        client.transport.sent.clear()
    return clients


def test_an_event_after_silence_is_not_held_up():
    wire = Wire()
    client = wire.connect()
    for _ in range(3):
        client.send(post())
        wire.loop.now += 2 * CLOSELY
    assert wire.rests == []
    assert len(wire.lines) == 3


def test_what_arrives_closely_upon_a_small_turn_waits_and_is_committed_together():
    wire = Wire()
    clients = connected(wire, 4)
    clients[0].send(post())
    assert len(wire.lines) == 1
    arrive(clients[:1])
    wire.loop.turn()
    assert wire.rests == [GATHER_SECONDS]
    assert len(wire.lines) == 1
    arrive(clients[1:3])  # read while the turn waits
    wire.loop.turn()
    assert len(wire.lines) == 4
    wire.loop.settle()
    assert wire.rests == [GATHER_SECONDS]
    assert [client.statuses for client in clients] == [[200, 200], [200], [200], []]


def test_a_full_turn_has_company_enough():
    wire = Wire()
    clients = connected(wire, SMALL_TURN + 1)
    for _ in range(4):
        arrive(clients)
        wire.loop.settle()
    assert wire.rests == []
    assert len(wire.lines) == 4 * len(clients)
    arrive(clients[2:])
    wire.loop.settle()
    assert wire.rests == []
    arrive(clients[2:])
    wire.loop.settle()
    assert wire.rests == [GATHER_SECONDS]


def test_what_is_left_of_a_large_read_does_not_wait():
    wire = Wire()
    body = b"x" * 16_000
    client, *_ = connected(wire, 3)
    client.send(post(), post(body))
    assert wire.rests == [GATHER_SECONDS]  # for the read, none for the slices it is fed in
    client.end()
    assert wire.rests == [GATHER_SECONDS]
    assert client.statuses == [200] * 2


def test_a_drain_does_not_wait_for_a_turn_that_gathers():
    wire = Wire()
    client, _ = connected(wire, 2)
    client.send(post())
    client.transport.receive(post())
    wire.loop.turn()
    assert wire.rests == [GATHER_SECONDS]
    wire.tick.drain()
    assert len(wire.lines) == 2
    wire.loop.settle()
    assert client.statuses == [200, 200]
    assert client.closed


@pytest.mark.parametrize("count", [1, 4, 8])
@pytest.mark.parametrize("at_once", [1, 3])
def test_clients_that_wait_for_each_answer_are_not_held_up_E14(count, at_once):
    """Each turn of the loop brings the next requests of those who have been answered, a few at once."""
    wire = Wire()
    clients = connected(wire, count)
    turns = 0
    while len(wire.lines) < 20_000:
        answered = [client for client in clients if client.transport.sent or not turns]
        for client in answered[:at_once]:
            client.transport.sent.clear()
            client.transport.receive(post())
        wire.loop.now += 50e-6
        wire.loop.turn()
        turns += 1
    assert len(wire.rests) < 30, "a wait of a millisecond is a loss of twenty turns"


def test_one_event_a_connection_is_not_held_up_E14():
    wire = Wire()
    for _ in range(500):
        client = wire.connect()
        wire.loop.now += 20e-6
        client.transport.receive(post(b"{}", "Connection: close"))
        wire.loop.turn()
        wire.loop.now += 20e-6
        wire.loop.settle()
        assert client.closed
    assert wire.rests == []


@pytest.mark.parametrize("a_second", [2_000, 10_000])
def test_events_that_come_whether_or_not_others_are_answered_are_gathered_E14(a_second):
    """32 connections; what comes in the millisecond of a wait is in the turn that waited."""
    wire = Wire()
    clients = connected(wire, 32)
    draw = random.Random(7)
    arrivals = itertools.accumulate(draw.expovariate(a_second) for _ in range(4_000))
    began, runs = wire.loop.now, 0
    due = deque(began + at for at in arrivals)
    while due:
        wire.loop.now = max(wire.loop.now, due[0])
        waited = len(wire.rests)
        while due and due[0] <= wire.loop.now:
            due.popleft()
            draw.choice(clients).transport.receive(post())
        wire.loop.turn()
        if len(wire.rests) > waited:
            wire.loop.now += GATHER_SECONDS
            while due and due[0] <= wire.loop.now:
                due.popleft()
                draw.choice(clients).transport.receive(post())
        wire.loop.settle()
        wire.loop.now += 100e-6
        runs += 1
    # Without any wait there is a turn for nearly each event at 2,000/s, and for each two or three at 10,000/s.
    assert len(wire.lines) / runs > {2_000: 1.8, 10_000: 6}[a_second]
