"""Small turns that follow each other closely wait for company; what is alone, or has company, is not held up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingest.wire.gathering import CLOSELY, GATHER_SECONDS, SMALL_TURN
from tests.stand_ins.wire import Wire, post

if TYPE_CHECKING:
    from tests.stand_ins.wire import Client


def arrive(clients: list[Client]) -> None:
    """Have each client send an event, all in the same turn."""
    for client in clients:
        client.transport.receive(post())


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
    clients = [wire.connect() for _ in range(3)]
    clients[0].send(post())
    assert len(wire.lines) == 1
    arrive(clients[:1])
    wire.loop.turn()
    assert wire.rests == [GATHER_SECONDS]
    assert len(wire.lines) == 1
    arrive(clients[1:])  # read while the turn waits
    wire.loop.turn()
    assert len(wire.lines) == 4
    wire.loop.settle()
    assert wire.rests == [GATHER_SECONDS]
    assert [client.statuses for client in clients] == [[200, 200], [200], [200]]


def test_a_full_turn_has_company_enough():
    wire = Wire()
    clients = [wire.connect() for _ in range(SMALL_TURN)]
    for _ in range(4):
        arrive(clients)
        wire.loop.settle()
    assert wire.rests == []
    assert len(wire.lines) == 4 * SMALL_TURN
    arrive(clients[1:])
    wire.loop.settle()
    assert wire.rests == []
    arrive(clients[1:])
    wire.loop.settle()
    assert wire.rests == [GATHER_SECONDS]


def test_what_is_left_of_a_large_read_does_not_wait():
    wire = Wire()
    body = b"x" * 16_000
    client = wire.connect().send(post(), post(body), post(body))
    assert wire.rests == [GATHER_SECONDS] * 2  # one for each read, none for the slices it is fed in
    client.end()
    assert wire.rests == [GATHER_SECONDS] * 2
    assert client.statuses == [200] * 3


def test_a_drain_does_not_wait_for_a_turn_that_gathers():
    wire = Wire()
    client = wire.connect().send(post())
    client.transport.receive(post())
    wire.loop.turn()
    wire.tick.drain()
    assert len(wire.lines) == 2
    wire.loop.settle()
    assert client.statuses == [200, 200]
    assert client.closed
