"""How a connection ends: half-close and linger, end of input, drain."""

import pytest

from ingest.wire.connection import LINGER_SECONDS
from ingest.wire.flow import LINGER_BYTES, SENT_BYTES
from tests.stand_ins.wire import SWEEP_SECONDS, Wire, post, request

READ_BYTES = 1 << 18

REFUSED = {
    "400": (b"nonsense\r\n\r\n", 400),
    "413": (request("POST", "/collect", "Content-Length: 99999999"), 413),
    "431": (b"GET / HTTP/1.1\r\nX: " + b"x" * 20000, 431),
    "405": (request("CONNECT", "x:1"), 405),
}


@pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED.keys())
def test_an_error_half_closes_and_reads_on_until_the_client_ends(data, status):
    wire = Wire()
    client = wire.connect().send(data)
    assert client.statuses == [status]
    assert client.transport.half_closed
    assert not client.closed
    for _ in range(6):
        client.send(b"y" * 10000)
        assert not client.closed
    client.end()
    assert client.closed
    assert not client.transport.reset
    assert client.statuses == [status]
    assert wire.tick.crowd.admitted == set()


TOO_LARGE = request("POST", "/collect", "Content-Length: 99999999")


def test_an_error_reads_on_for_at_most_64_kib():
    assert LINGER_BYTES == 65536
    client = Wire().connect().send(b"nonsense\r\n\r\n")
    client.send(b"y" * LINGER_BYTES)
    assert not client.closed
    client.send(b"y")
    assert client.closed
    assert client.statuses == [400]


def test_a_refused_request_is_read_on_for_at_most_64_mib():
    assert SENT_BYTES == 64 << 20
    client = Wire().connect().send(TOO_LARGE, *[bytes(SENT_BYTES >> 8)] * 256)
    assert not client.closed
    client.send(b"y")
    assert client.closed
    assert client.statuses == [413]


STARTS = {
    "nonsense": (0, b"nonsense\r\n\r\n", 400, 2),
    "nonsense in a body": (0, request("POST", "/collect", "Transfer-Encoding: chunked") + b"x\r\n", 400, 2),
    "a body": (0, TOO_LARGE, 413, 8),
    "a head": (0, b"POST /collect HTTP/1.1\r\nX: " + b"x" * 300_000, 431, 8),
    "a body whose head took long": (3, TOO_LARGE, 413, 5),
    "a body that comes late": (7, TOO_LARGE, 413, 2),
}


@pytest.mark.parametrize(("pause", "data", "status", "seconds"), STARTS.values(), ids=STARTS.keys())
def test_a_refused_request_has_the_rest_of_its_time_while_it_is_sent(pause, data, status, seconds):
    assert LINGER_SECONDS == 2.0
    wire = Wire({"READ_TIMEOUT": "8s"})
    client = wire.connect()
    if pause:
        client.send(data[:10])
        wire.pass_time(pause)
        client.send(data[10:])
    else:
        client.send(data)
    assert client.statuses == [status]
    for _ in range(4 * seconds - 1):
        wire.pass_time(0.25)
        client.send(b"y")
    assert not client.closed
    wire.pass_time(0.25 + SWEEP_SECONDS)
    assert client.closed
    assert client.statuses == [status]


@pytest.mark.parametrize("sent", [0, 3])
@pytest.mark.parametrize("data", [TOO_LARGE, b"nonsense\r\n\r\n"])
def test_who_is_silent_after_a_refusal_has_two_seconds(data, sent):
    wire = Wire({"READ_TIMEOUT": "8s"})
    client = wire.connect().send(data, *[b"y"] * sent)
    wire.pass_time(LINGER_SECONDS - SWEEP_SECONDS)
    assert not client.closed
    wire.pass_time(2 * SWEEP_SECONDS)
    assert client.closed


def test_who_goes_on_sending_after_a_refusal_has_one_large_read_a_turn():
    wire = Wire()
    client = wire.connect().send(TOO_LARGE)
    for _ in range(10):
        client.transport.receive(bytes(READ_BYTES))
    for left in range(9, 0, -1):
        assert len(client.transport.kernel) == left
        while len(client.transport.kernel) == left:
            wire.loop.turn()
    wire.loop.settle()
    assert client.end().closed
    assert not client.transport.reset


def test_bytes_in_the_kernel_are_read_before_the_close(feed):
    wire = Wire()
    client = wire.connect()
    feed(client, request("POST", "/collect", "Content-Length: 9999999") + b"x" * 30000)
    assert client.statuses == [413]
    assert client.transport.kernel == type(client.transport.kernel)()
    assert not client.closed
    assert client.transport.half_closed


@pytest.mark.parametrize("one_turn", [False, True])
@pytest.mark.parametrize(
    ("data", "statuses"),
    [
        (post(b"1"), [200]),
        (post(b"1") + request("GET", "/health") + post(b"2"), [200, 200, 200]),
        (post(b"1", "Connection: close"), [200]),
        (post(b"1", version="1.0"), [200]),
        (request("GET", "/health", version="1.0"), [200]),
        (post(b"1") + b"nonsense\r\n\r\n", [200, 400]),
        (request("POST", "/collect", "Content-Length: 99999999"), [413]),
        (post(b"1", "Connection: upgrade", "Upgrade: h2c"), [200]),
        (post(b"1") + post(b"unfinished")[:-1], [200]),
        (post(b"x") * 500, [200] * 500),
    ],
)
def test_end_of_input_with_answers_owed_still_answers(data, statuses, one_turn, feed):
    wire = Wire()
    client = wire.connect()
    if one_turn:
        # What is common from a script: request and end in one segment, seen in one turn of the loop.
        client.transport.receive(data)
        client.transport.receive(None)
        wire.loop.settle()
    else:
        feed(client, data)
        client.end()
    assert client.statuses == statuses
    assert client.closed
    assert not client.transport.reset
    assert len(wire.lines) == statuses.count(200) - data.count(b"/health")


def test_end_of_input_while_the_client_does_not_read_still_answers():
    wire = Wire()
    client = wire.connect()
    client.transport.stuck = True
    client.transport.receive(post(b"x") * 2000)
    client.transport.receive(None)
    wire.loop.settle()
    assert not client.closed
    client.transport.stuck = False
    client.transport.read_by_client()
    wire.loop.settle()
    assert client.statuses == [200] * 2000
    assert client.closed


# Parting: somebody else accepts already.


@pytest.mark.parametrize("deferred", [False, True])
def test_parting_ends_a_connection_with_its_next_answer_and_leaves_a_silent_one(deferred):
    wire = Wire(deferred=deferred)
    silent, used = wire.connect(), wire.connect()
    used.transport.receive(post(b"before"))
    wire.loop.settle()
    wire.tick.part()
    if deferred:
        wire.sync_all()
    assert [answer.headers.get("Connection") for answer in used.answers()] == [None]
    assert not used.closed, "it was not told, so that it may have sent already"
    used.send(post(b"after"))
    if deferred:
        wire.sync_all()
    assert used.answers()[-1].headers["Connection"] == "close"
    assert used.closed
    assert not silent.closed
    wire.tick.drain()
    wire.loop.settle()
    assert silent.closed
    assert wire.events == ["before", "after"]


# Draining.


def test_draining_closes_idle_connections_at_once():
    wire = Wire()
    silent, used = wire.connect(), wire.connect().send(post())
    wire.tick.drain()
    wire.loop.settle()
    assert silent.closed
    assert used.closed
    assert not wire.tick.busy()


STAGES = {"in the head": 10, "before the body": len(post(b"body")) - 4, "in the body": len(post(b"body")) - 1}


@pytest.mark.parametrize("at", STAGES.values(), ids=STAGES.keys())
@pytest.mark.parametrize("headers", [(), ("Connection: upgrade", "Upgrade: h2c")])
def test_draining_answers_what_is_under_way_with_connection_close(at, headers):
    wire = Wire()
    data = post(b"body", *headers)
    at -= len(post(b"body"))
    client = wire.connect().send(data[:at])
    wire.tick.drain()
    wire.loop.settle()
    assert wire.tick.busy()
    client.send(data[at:] + post(b"too late"))
    (answer,) = client.answers()
    assert (answer.status, answer.headers["Connection"]) == (200, "close")
    assert wire.events == ["body"]
    assert client.sees_end
    assert not wire.tick.busy()


def test_draining_answers_what_was_read_in_the_same_turn():
    wire = Wire()
    client = wire.connect()
    client.transport.receive(post(b"1"))
    wire.tick.drain()
    wire.loop.settle()
    (answer,) = client.answers()
    assert (answer.status, answer.headers["Connection"]) == (200, "close")
    assert wire.events == ["1"]
    assert client.closed


def test_draining_answers_the_first_of_what_a_client_pipelined():
    wire = Wire()
    client = wire.connect()
    client.transport.stuck = True
    client.transport.receive(post(b"x") * 2000)
    wire.loop.settle()
    answered = len(wire.lines)
    assert answered < 2000
    wire.tick.drain()
    client.transport.stuck = False
    client.transport.read_by_client()
    wire.loop.settle()
    answers = client.answers()
    assert len(answers) == len(wire.lines) == answered + 1
    assert answers[-1].headers["Connection"] == "close"
    assert client.sees_end


def test_a_connection_of_the_last_moment_is_served_and_closed(feed):
    wire = Wire()
    wire.tick.drain()
    client = wire.connect()
    feed(client, post(b"1") + post(b"2"))
    (answer,) = client.answers()
    assert answer.headers["Connection"] == "close"
    assert wire.events == ["1"]
