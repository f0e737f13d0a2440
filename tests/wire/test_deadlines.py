"""Deadlines move with a change of state and never because bytes arrived. No test here waits."""

import pytest

from ingest.telemetry import Overdue
from tests.stand_ins.wire import SWEEP_SECONDS, Wire, chunked, post, request

SETTINGS = {"READ_TIMEOUT": "8s", "IDLE_TIMEOUT": "65s"}
READ, IDLE = 8, 65


def closes_after(wire, client) -> float:
    """Return after how many seconds of silence the connection is closed."""
    began = wire.loop.now
    while not client.closed:
        assert wire.loop.now - began < 1000, "never"
        wire.pass_time(SWEEP_SECONDS)
    return wire.loop.now - began


def about(seconds: float) -> object:
    return pytest.approx(seconds + SWEEP_SECONDS / 2, abs=SWEEP_SECONDS / 2 + 0.01)


def test_a_silent_new_connection_is_closed_without_a_word():
    wire = Wire(SETTINGS)
    client = wire.connect()
    assert closes_after(wire, client) == about(IDLE)
    assert client.transport.sent == b""
    assert not client.transport.reset
    assert wire.metrics.timed_out[Overdue.IDLE] == 1


def test_an_idle_connection_is_closed_without_a_word():
    wire = Wire(SETTINGS)
    client = wire.connect()
    wire.pass_time(60)
    client.send(post())
    wire.pass_time(60)
    client.send(request("GET", "/health"))
    sent = bytes(client.transport.sent)
    assert closes_after(wire, client) == about(IDLE)
    assert client.transport.sent == sent


def test_connections_that_were_closed_for_their_silence_are_let_go_without_a_turn():
    wire = Wire(SETTINGS)
    for client in [wire.connect() for _ in range(3)]:
        assert closes_after(wire, client) < IDLE + 1
    assert wire.tick.closing == []
    assert list(wire.tick.crowd) == []


UNFINISHED = {
    "first byte": b"P",
    "head": b"POST /collect HTTP/1.1\r\nHost: x\r\n",
    "body": post(b"x" * 100)[:-1],
    "chunks": request("POST", "/collect", "Transfer-Encoding: chunked") + b"5\r\nhel",
    "trailers": request("POST", "/collect", "Transfer-Encoding: chunked") + b"0\r\nA: b\r\n",
    "behind another": post() + b"P",
    "upgrade": post(b"x" * 100, "Connection: upgrade", "Upgrade: h2c")[:-1],
}


@pytest.mark.parametrize("data", UNFINISHED.values(), ids=UNFINISHED.keys())
def test_an_unfinished_request_is_closed_without_a_word(data, feed):
    wire = Wire(SETTINGS)
    client = wire.connect()
    wire.pass_time(50)
    feed(client, data)
    answers = client.statuses
    assert closes_after(wire, client) == about(READ)
    assert client.statuses == answers
    assert wire.metrics.timed_out[Overdue.REQUEST] == 1


@pytest.mark.parametrize(
    "data",
    [
        b"GET /collect HTTP/1.1\r\nX: " + b"x" * 5000,
        post(b"x" * 5000),
        request("POST", "/collect", "Transfer-Encoding: chunked") + chunked(*[b"x"] * 1000),
        post(b"x" * 5000, "Connection: upgrade", "Upgrade: h2c"),
        request("POST", "/collect", "Transfer-Encoding: chunked", "Connection: upgrade", "Upgrade: a")
        + chunked(*[b"x"] * 1000),
    ],
)
@pytest.mark.parametrize("head_at_once", [False, True])
def test_a_client_that_drips_a_request_is_closed(data, head_at_once):
    wire = Wire(SETTINGS)
    client = wire.connect()
    began = wire.loop.now
    at = data.find(b"\r\n\r\n") + 4 if head_at_once and b"\r\n\r\n" in data else 1
    client.send(data[:at])
    while not client.closed:
        assert wire.loop.now - began < 60, "bytes moved the deadline"
        client.send(data[at : at + 1])
        at += 1
        wire.pass_time(0.25)
    assert wire.loop.now - began == about(READ)
    assert wire.lines == []
    assert client.statuses == []


def test_a_client_that_drips_empty_lines_is_closed():
    wire = Wire(SETTINGS)
    client = wire.connect()
    began = wire.loop.now
    while not client.closed:
        assert wire.loop.now - began < 200, "bytes moved the deadline"
        client.send(b"\r\n")
        wire.pass_time(1)
    assert wire.loop.now - began == about(IDLE)


@pytest.mark.parametrize("headers", [(), ("Connection: upgrade", "Upgrade: h2c")])
def test_head_and_body_share_one_deadline(headers):
    wire = Wire(SETTINGS)
    data = post(b"x" * 100, *headers)
    client = wire.connect().send(data[:30])
    wire.pass_time(6)
    client.send(data[30:-1])
    assert closes_after(wire, client) == about(READ - 6)


def test_each_request_has_its_own_deadline():
    wire = Wire(SETTINGS)
    client = wire.connect()
    for _ in range(5):
        data = post(b"x" * 100)
        client.send(data[:20])
        wire.pass_time(3)
        client.send(data[20:-1])
        wire.pass_time(4)
        client.send(data[-1:])
    assert client.statuses == [200] * 5
    client.send(data[:-100])
    for _ in range(5):
        # The end of one request and the beginning of the next come together.
        wire.pass_time(7)
        client.send(data[-100:] + data[:-100])
    assert client.statuses == [200] * 10


def test_a_half_closed_connection_is_not_waited_for():
    wire = Wire(SETTINGS)
    client = wire.connect()
    client.send(b"POST /collect HTTP/1.1\r\n").end()
    assert client.closed
    client = wire.connect().end()
    assert client.closed


def test_deadlines_follow_the_monotonic_clock():
    wire = Wire(SETTINGS)
    client = wire.connect()
    client.send(b"P")
    wire.clock -= 86400
    wire.pass_time(READ - 1)
    assert not client.closed
    wire.clock += 2 * 86400
    wire.pass_time(0.5)
    assert not client.closed
    wire.pass_time(2)
    assert client.closed


def test_nothing_is_left_of_a_connection_that_is_gone():
    wire = Wire(SETTINGS | {"MAX_HEADER_BYTES": "1024"})
    for data in (b"", b"GET", post(b"x" * 9)[:-1], b"X" * 5000, post() * 600, b"GET / HTTP/1.1\r\nX: " + b"x" * 2000):
        client = wire.connect()
        client.send(data)
        client.transport.vanish()
        wire.loop.settle()
        client.transport.kernel.clear()
    assert wire.tick.crowd.admitted == set()
    assert wire.budget.requests == 0
    assert wire.metrics.connections == 0
    assert wire.loop.failures == []
