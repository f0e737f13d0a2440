"""Bodies in a coding on a connection: how they arrive changes nothing, and they hold up nobody else."""

from __future__ import annotations

import gzip
import random
import zlib

import pytest

from ingest.wire.limits import SHARE_SECONDS, UNPACKING_SECONDS
from tests.stand_ins.wire import Wire, chunked, counted, post, request

GZIP = "Content-Encoding: gzip"
DEFLATE = "Content-Encoding: deflate"
TEXT = b'{"event":"signup"}'


def test_codings_are_decoded_wherever_an_event_stands_in_a_body_E10(feed):
    wire = Wire()
    client = wire.connect()
    packed = gzip.compress(TEXT)
    feed(
        client,
        post(packed, GZIP)
        + post(zlib.compress(b"zlib"), DEFLATE)
        + post(zlib.compress(b"bare", wbits=-15), DEFLATE, target="/collect?q=1")
        + request("POST", "/collect", "content-encoding: X-GZIP", "Transfer-Encoding: chunked")
        + chunked(packed[:5], packed[5:])
        + post(gzip.compress(b"\xff"), GZIP, "Connection: upgrade", "Upgrade: a")
        + post(gzip.compress(b""), GZIP, target="/collect?query")
        + request("GET", "/collect?pixel", GZIP)
        + post(b"plain"),
    )
    assert client.statuses == [200] * 8
    assert [(r["body"], r.get("query"), r.get("body_b64")) for r in wire.records] == [
        (TEXT.decode(), None, None),
        ("zlib", None, None),
        ("bare", "q=1", None),
        (TEXT.decode(), None, None),
        ("", None, "/w=="),
        ("query", None, None),
        ("pixel", None, None),
        ("plain", None, None),
    ]


def test_a_body_that_cannot_be_decoded_fails_itself_only_E10(feed):
    wire = Wire({"MAX_BODY_SIZE": "1000"})
    client = wire.connect()
    feed(
        client,
        post(b"no gzip", GZIP)
        + post(gzip.compress(TEXT) + b"x", GZIP)
        + post(gzip.compress(bytes(1001)), GZIP, "Origin: https://a.example")
        + post(gzip.compress(TEXT), "Content-Encoding: gzip, gzip")
        + post(gzip.compress(TEXT), GZIP, GZIP)
        + post(gzip.compress(bytes(1000)), GZIP),
    )
    assert client.statuses == [400, 400, 413, 415, 415, 200]
    assert [len(event) for event in wire.events] == [1000]
    too_large, unknown = client.answers()[2:4]
    assert too_large.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert unknown.headers["Accept-Encoding"] == "gzip, deflate"
    assert counted(wire) == {
        "2xx": 1,
        "3xx": 0,
        "4xx": 5,
        "5xx": 0,
        "malformed": 2,
        "body_too_large": 1,
        "other": 2,
    } | {
        key: 0
        for key in counted(Wire())
        if key not in {"2xx", "3xx", "4xx", "5xx", "malformed", "body_too_large", "other"}
    }


def test_what_is_asked_to_be_json_is_looked_at_when_decoded():
    wire = Wire({"BODY_FORMAT": "json"})
    client = wire.connect().send(post(gzip.compress(TEXT), GZIP), post(gzip.compress(b"{"), GZIP))
    assert client.statuses == [200, 400]
    assert wire.events == [{"event": "signup"}]


def slow(wire: Wire, per_reading: float) -> None:
    """Have time pass with each look at the stopwatch."""

    def look() -> float:
        wire.stopwatch += per_reading
        return wire.stopwatch

    wire.tick._stopwatch = look


def a_large_body(size: int = 60_000) -> tuple[bytes, bytes]:
    data = random.Random(size).randbytes(size // 2).hex().encode()
    return data, gzip.compress(data)


@pytest.mark.parametrize("per_reading", [UNPACKING_SECONDS, UNPACKING_SECONDS / 2, UNPACKING_SECONDS * 3])
def test_a_body_that_takes_long_goes_on_in_the_next_turns_and_its_answers_stay_in_order(feed, per_reading):
    wire = Wire({"MAX_BODY_SIZE": "70000"})
    slow(wire, per_reading / 2)
    client = wire.connect()
    data, packed = a_large_body()
    feed(
        client,
        post(b"before")
        + request("GET", "/health")
        + post(packed, GZIP)
        + post(b"behind")
        + request("POST", "/collect", GZIP, "Transfer-Encoding: chunked")
        + chunked(packed[:100], packed[100:])
        + post(b"no gzip", GZIP)
        + post(packed, GZIP, "Connection: Upgrade", "Upgrade: a")
        + post(b"last", "Connection: close")
        + post(b"never"),
    )
    assert client.statuses == [200, 200, 200, 200, 200, 400, 200, 200]
    assert wire.events == ["before", data.decode(), "behind", data.decode(), data.decode(), "last"]
    assert client.sees_end
    assert wire.budget.requests == 0
    assert wire.loop.failures == []


def held_up(settings: dict[str, str] | None = None) -> tuple[Wire, object, bytes]:
    """Return a client whose body is being decoded, and will be for many turns."""
    wire = Wire({"MAX_BODY_SIZE": "1000000", **(settings or {})})
    slow(wire, UNPACKING_SECONDS)
    client = wire.connect()
    data, packed = a_large_body(900_000)
    client.transport.receive(post(packed, GZIP) + post(b"behind"))
    for _ in range(5):
        wire.loop.turn()
    assert client.connection._reader.unpacking is not None
    return wire, client, data


def test_others_are_served_while_a_body_is_decoded():
    wire, client, data = held_up()
    other = wire.connect
    wire.loop.settle, settle = wire.loop.turn, wire.loop.settle
    second = other()
    second.transport.receive(post(b"quick"))
    wire.loop.turn()
    wire.loop.turn()
    assert second.statuses == [200]
    assert client.statuses == []
    assert wire.events == ["quick"]
    settle()
    assert wire.events == ["quick", data.decode(), "behind"]


@pytest.mark.parametrize("takes_long", [False, True], ids=["in one turn", "in many"])
@pytest.mark.parametrize("form", ["lines", "array", "gzip"])
def test_a_batch_that_came_whole_is_not_refused_for_what_it_takes_to_unpack_it(form, takes_long):
    """It is no unfinished request, of which all together have a quarter of the room."""
    wire = Wire({"MAX_BUFFER_BYTES": "4000000", "MAX_BATCH_BODY_SIZE": "900000", "BATCH_BYTES": "3000000"})
    if takes_long:
        slow(wire, UNPACKING_SECONDS)
    count = 440
    item = b'"' + b"x" * 1998 + b'"'
    lines = (item + b"\n") * count
    ndjson = "Content-Type: application/x-ndjson"
    sent = {
        "lines": post(lines, ndjson, target="/collect/batch"),
        "array": post(b"[" + b",".join([item] * count) + b"]", target="/collect/batch"),
        "gzip": post(gzip.compress(lines, 0), ndjson, GZIP, target="/collect/batch"),
    }[form]
    client = wire.connect()
    client.send(*(sent[at : at + 250_000] for at in range(0, len(sent), 250_000)))
    assert client.statuses == [200]
    assert len(wire.events) == count
    assert (wire.budget.requests, wire.budget.whole, wire.budget.held) == (0, 0, wire.budget.batches)


@pytest.mark.parametrize("greedy", [1, 3, 20])
@pytest.mark.parametrize("first", [True, False], ids=["who asks for much comes first", "who asks for little does"])
def test_those_that_wait_for_their_bodies_take_turns_however_much_one_of_them_has_sent(greedy, first):
    """Each request of a long read has a body that takes many turns, and the next one begins where the last ends."""
    wire = Wire({"READ_TIMEOUT": "8s"})
    slow(wire, SHARE_SECONDS / 4)
    large = post(gzip.compress(b"[[" + b"[]," * 40_000 + b"[]]]"), GZIP, target="/collect/batch")
    many = [wire.connect() for _ in range(greedy)]
    little, other = wire.connect(), wire.connect()
    if not first:
        little.transport.receive(post(gzip.compress(TEXT), GZIP))
    for client in many:
        client.transport.receive(large * 50)
    if first:
        little.transport.receive(post(gzip.compress(TEXT), GZIP))
    for turn in range(2 * greedy + 4):
        wire.loop.turn()
        wire.loop.now += 0.02
        wire.tick.sweep()
        if turn == 2:
            other.transport.receive(post(gzip.compress(b"second"), GZIP))
    assert little.statuses == [200]
    for _ in range(greedy + 4):
        wire.loop.turn()
    assert other.statuses == [200], "who comes later stands behind one share of each"
    assert wire.tick.waiting or wire.tick.arrivals.reads
    assert {status for client in many for status in client.statuses} <= {400, 413}
    assert sorted(wire.events) == sorted([TEXT.decode(), "second"])


def test_one_that_fails_while_it_has_its_share_meets_its_client_only():
    wire, client, _ = held_up()
    client.connection._reader._steps = (1 // 0 for _ in [0])
    second = wire.connect().send(post(gzip.compress(TEXT), GZIP))
    assert client.closed
    assert second.statuses == [200]
    assert len(wire.loop.failures) == 1


def test_what_is_decoded_counts_into_the_buffer_as_it_comes():
    wire, client, data = held_up()
    assert wire.budget.whole > len(data) // 2, "what came, and what has been made of it"
    wire.budget.batches = wire.budget.limit - wire.budget.requests - wire.budget.whole
    wire.loop.settle()
    assert client.statuses == [503]
    assert wire.events == []
    assert (wire.budget.requests, wire.budget.whole) == (0, 0)


def test_a_body_that_is_being_decoded_ends_with_its_time_its_connection_and_its_space():
    wire, client, _ = held_up()
    wire.loop.now += 9
    wire.tick.sweep()
    wire.loop.settle()
    assert client.statuses == [503], "it came whole, so that it is answered"
    assert client.sees_end
    assert wire.events == []
    assert (wire.budget.requests, wire.budget.whole) == (0, 0)

    wire, client, _ = held_up()
    client.transport.vanish()
    wire.loop.settle()
    assert wire.events == []
    assert (wire.budget.requests, wire.budget.whole) == (0, 0)
    assert not wire.tick.waiting


def test_a_drain_waits_for_a_body_that_is_being_decoded_and_makes_its_answer_the_last():
    wire, client, data = held_up()
    wire.tick.draining = True
    client.connection.drain()
    wire.loop.settle()
    (answer,) = client.answers()
    assert (answer.status, answer.headers["Connection"]) == (200, "close")
    assert wire.events == [data.decode()]


def test_the_end_of_input_waits_for_a_body_that_is_being_decoded():
    wire, client, data = held_up()
    client.end()
    assert client.statuses == [200, 200]
    assert wire.events == [data.decode(), "behind"]
    assert client.closed
