"""Limits, exact to the byte: bodies, queries, heads and all framing around a body."""

import pytest

from ingest.telemetry import Reason
from tests.stand_ins.wire import Wire, chunked, post, request

CHUNKED = "Transfer-Encoding: chunked"
BODY = {"MAX_BODY_SIZE": "1000"}


def padded(size: int, method: str, target: str, *headers: str) -> bytes:
    """Return a head of exactly `size` bytes."""
    head = request(method, target, *headers, "X-Pad: ")
    assert len(head) <= size
    return request(method, target, *headers, "X-Pad: " + "p" * (size - len(head)))


# Bodies that are too large.


def test_a_body_of_the_largest_size_is_taken(feed):
    wire = Wire(BODY)
    client = wire.connect()
    feed(
        client,
        post(b"a" * 1000)
        + request("POST", "/collect", CHUNKED)
        + chunked(b"b" * 400, b"c" * 600)
        + request("GET", "/collect?" + "d" * 1000)
        + request("GET", "/health", "Content-Length: 1000")
        + b"e" * 1000,
    )
    assert client.statuses == [200, 200, 200, 200]
    assert [len(event) for event in wire.events] == [1000, 1000, 1000]


@pytest.mark.parametrize(
    "data",
    [
        request("POST", "/collect", "Content-Length: 1001"),
        request("POST", "/collect", "Content-Length: 1001", "Connection: upgrade", "Upgrade: h2c"),
        request("POST", "/collect", "Content-Length: 999999999999999999"),
        request("POST", "/collect", CHUNKED) + chunked(b"b" * 400, b"c" * 601),
        request("POST", "/collect", CHUNKED) + b"3e9\r\n" + b"c" * 1001,
        request("POST", "/collect", CHUNKED, "Connection: upgrade", "Upgrade: h2c") + chunked(b"b" * 400, b"c" * 601),
        request("GET", "/collect?" + "d" * 1001),
        request("GET", "http://c.example/collect?" + "d" * 1001),
        request("GET", "/health", CHUNKED) + chunked(b"e" * 1001),
        request("PUT", "/nowhere", "Content-Length: 1001"),
    ],
)
def test_a_larger_body_is_413_and_closed(data, feed):
    wire = Wire(BODY)
    client = wire.connect()
    feed(client, post(b"1") + data + post(b"2"))
    _, refused = client.answers()
    assert (refused.status, refused.headers["Connection"]) == (413, "close")
    assert wire.events == ["1"]
    assert wire.metrics.rejected[Reason.BODY_TOO_LARGE] == 1
    assert client.sees_end


def test_a_declared_length_is_refused_before_the_body_comes():
    wire = Wire(BODY)
    client = wire.connect().send(request("POST", "/collect", "Content-Length: 1001"))
    assert client.statuses == [413]


def test_a_streamed_body_is_refused_as_soon_as_it_is_too_long():
    wire = Wire(BODY)
    client = wire.connect().send(request("POST", "/collect", CHUNKED) + b"ffff\r\n" + b"x" * 1000)
    assert client.statuses == []
    client.send(b"x")
    assert client.statuses == [413]


def test_a_body_in_chunks_that_is_longer_than_a_slice_is_taken_whole(feed):
    wire = Wire({"MAX_BODY_SIZE": "200000"})
    client = wire.connect()
    body = bytes(range(32, 127)) * 1500
    pieces = [body[at : at + 20_001] for at in range(0, len(body), 20_001)]
    feed(client, (request("POST", "/collect", CHUNKED) + chunked(*pieces)) * 2 + post(b"next"))
    assert client.statuses == [200] * 3
    assert wire.events == [body.decode()] * 2 + ["next"]


def test_the_size_of_one_body_is_not_that_of_the_next(feed):
    wire = Wire(BODY)
    client = wire.connect()
    feed(client, b"".join(post(b"x" * 999) + request("POST", "/collect", CHUNKED) + chunked(b"y" * 999) for _ in "12"))
    assert client.statuses == [200] * 4


# Heads that are too large, counted in raw bytes as they arrive.

SMALL = {"MAX_HEADER_BYTES": "1024"}
LARGE = {"MAX_HEADER_BYTES": "9001"}
LIMITS = [(SMALL, 1024), (LARGE, 9001)]
LEADS = {
    "first": b"",
    "pipelined": post(b"lead" * 100),
    "after an empty line": b"\r\n\r\n",
    "after a line that ends in a slice of its own": post(b"lead" * 220) + b"\r",
}


def heads(size: int) -> list[bytes]:
    return [
        padded(size, "GET", "/collect?q"),
        padded(size, "POST", "/collect", "Content-Length: 0"),
        padded(size, "POST", "/collect", "Content-Length: 700") + b"b" * 700,
        padded(size, "POST", "/collect", "Content-Length: 700", "Connection: upgrade", "Upgrade: h2c") + b"b" * 700,
        padded(size, "GET", "/collect", "Connection: upgrade", "Upgrade: h2c"),
        padded(size, "GET", "/health", "Content-Length: 3") + b"abc",
    ]


@pytest.mark.parametrize("lead", LEADS.values(), ids=LEADS.keys())
@pytest.mark.parametrize(("settings", "limit"), LIMITS, ids=["below a slice", "above a slice"])
def test_a_head_of_the_largest_size_is_taken_and_one_byte_more_is_431(settings, limit, lead, feed):
    for taken, refused in zip(heads(limit), heads(limit + 1), strict=True):
        meets_the_limit(settings, lead, taken, refused, feed)


def meets_the_limit(settings, lead, taken, refused, feed):
    wire = Wire(settings)
    client = wire.connect()
    answers = int(lead.startswith(b"POST"))
    feed(client, lead + taken + post(b"next"))
    assert client.statuses == [200] * (answers + 2), taken
    assert wire.events[-1] == "next"
    client = wire.connect()
    feed(client, lead + refused + post(b"never"))
    assert client.statuses == [200] * answers + [431], refused
    assert client.answers()[-1].headers["Connection"] == "close"
    assert wire.events[-1] != "never"
    assert wire.metrics.rejected[Reason.HEAD_TOO_LARGE] == 1
    assert client.sees_end


def chunked_framing(size: int, where: str, *headers: str) -> bytes:
    """Return a chunked request whose framing, the head included, has exactly `size` bytes."""
    head = request("POST", "/collect", CHUNKED, *headers)

    def build(pad: int) -> bytes:
        if where == "extension":
            return head + b"5;" + b"e" * pad + b"\r\nhello\r\n0\r\n\r\n"
        if where == "last extension":
            return head + b"5\r\nhello\r\n0;" + b"e" * pad + b"\r\n\r\n"
        if where == "trailer":
            return head + b"5\r\nhello\r\n0\r\nX: " + b"t" * pad + b"\r\n\r\n"
        if where == "trailers":
            lines, rest = divmod(pad, 10)
            return head + b"5\r\nhello\r\n0\r\n" + b"T: 34567\r\n" * lines + b"X:%b\r\n\r\n" % (b"t" * rest)
        if where == "size":
            return head + b"0" * pad + b"5\r\nhello\r\n0\r\n\r\n"
        assert where == "chunks"
        chunks, rest = divmod(pad, 5)
        return head + b"1\r\na\r\n" * chunks + b"5;e" + b"e" * rest + b"\r\nhello\r\n0\r\n\r\n"

    def framing(data: bytes) -> int:
        return len(data) - 5 - (data.count(b"\r\na\r\n") if where == "chunks" else 0)

    data = build(size - framing(build(0)))
    assert framing(data) == size
    return data


@pytest.mark.parametrize("lead", LEADS.values(), ids=LEADS.keys())
@pytest.mark.parametrize("headers", [(), ("Connection: upgrade", "Upgrade: h2c")], ids=["plain", "upgrade"])
@pytest.mark.parametrize(("settings", "limit"), LIMITS, ids=["below a slice", "above a slice"])
def test_chunk_extensions_and_trailers_count_into_the_head(settings, limit, headers, lead, feed):
    for where in ("extension", "last extension", "trailer", "trailers", "size", "chunks"):
        taken, refused = (chunked_framing(size, where, *headers) for size in (limit, limit + 1))
        meets_the_limit(settings, lead, taken, refused, feed)


def test_a_head_without_an_end_is_refused_at_the_limit():
    wire = Wire(SMALL)
    head = b"GET / HTTP/1.1\r\nX: "
    client = wire.connect().send(head + b"x" * (1023 - len(head)))
    assert client.statuses == []
    assert not client.sees_end
    client.send(b"x")
    assert client.statuses == [431]


@pytest.mark.parametrize("flood", [b"GET /" + b"a" * 70000, b"0;" + b"e" * 70000, b"0\r\n" + b"T: t\r\n" * 12000])
def test_a_flood_of_framing_is_refused(flood, feed):
    wire = Wire()
    client = wire.connect()
    data = flood if flood.startswith(b"GET") else request("POST", "/collect", CHUNKED) + flood
    feed(client, data)
    assert client.statuses == [431]
    assert wire.lines == []


def test_a_body_does_not_count_into_the_head(feed):
    wire = Wire(SMALL | {"MAX_BODY_SIZE": "100000"})
    client = wire.connect()
    feed(client, (post(b"x" * 50000) + request("POST", "/collect", CHUNKED) + chunked(b"y\n" * 25000)) * 2)
    assert client.statuses == [200] * 4
    assert [len(event) for event in wire.events] == [50000] * 4
