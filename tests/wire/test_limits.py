"""Limits, exact to the byte: bodies, queries, heads and all framing around a body."""

import pytest
import structlog

from ingest.telemetry import Reason
from tests.stand_ins.wire import Wire, chunked, post, request

CHUNKED = "Transfer-Encoding: chunked"
BODY = {"MAX_BODY_SIZE": "1000"}


def padded(size: int, method: str, target: str, *headers: str) -> bytes:
    """Return a head that has exactly `size` bytes behind its first line."""
    head = fields(request(method, target, *headers, "X-Pad: "))
    assert len(head) <= size
    return request(method, target, *headers, "X-Pad: " + "p" * (size - len(head)))


def fields(data: bytes) -> bytes:
    """Return what stands behind the first line of a request."""
    return data[data.index(b"\n") + 1 :]


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
    """Return a chunked request whose framing needs a limit of exactly `size` bytes."""
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
        chunks, rest = divmod(pad, 4)
        return head + b"1\r\na\r\n" * chunks + b"5;e" + b"e" * rest + b"\r\nhello\r\n0\r\n\r\n"

    data = build(size - limit_of(build(0)))
    assert limit_of(data) == size
    return data


def limit_of(data: bytes) -> int:
    """Return the least limit under which a chunked request is taken: the body so far adds to it."""
    at = data.index(b"\r\n\r\n") + 4
    framing = len(fields(data[:at]))
    body = most = 0
    while size := int(data[at : data.index(b"\r\n", at)].partition(b";")[0], 16):
        end = data.index(b"\r\n", at) + 2
        framing += end - at
        most = max(most, framing - body + 1)  # what is not complete at its limit outgrows it
        framing += 2
        body += size
        at = end + size + 2
        most = max(most, framing - body + 1)
    return max(most, framing + len(data) - at - body)


@pytest.mark.parametrize("lead", LEADS.values(), ids=LEADS.keys())
@pytest.mark.parametrize("headers", [(), ("Connection: upgrade", "Upgrade: h2c")], ids=["plain", "upgrade"])
@pytest.mark.parametrize(("settings", "limit"), LIMITS, ids=["below a slice", "above a slice"])
def test_chunk_extensions_and_trailers_count_into_the_head(settings, limit, headers, lead, feed):
    for where in ("extension", "last extension", "trailer", "trailers", "size", "chunks"):
        taken, refused = (chunked_framing(size, where, *headers) for size in (limit, limit + 1))
        meets_the_limit(settings, lead, taken, refused, feed)


@pytest.mark.parametrize(("target", "count"), [("/collect/batch", 10_000), ("/collect", 5000)])
def test_each_line_of_a_body_may_come_in_a_chunk_of_its_own(target, count, feed):
    lines = [b'{"n":%d}\n' % number for number in range(count)]
    wire = Wire()
    client = wire.connect()
    feed(client, request("POST", target, CHUNKED, "Content-Type: application/x-ndjson") + chunked(*lines) + post())
    assert client.statuses == [200, 200]
    assert "".join(wire.events).count("n") == count


def test_the_sizes_of_chunks_take_no_room_from_the_body_between_them():
    wire = Wire({"MAX_BUFFER_BYTES": "1MiB", "MAX_BATCH_BODY_SIZE": "250KiB", "SDK_ROUTES": "segment"})
    client = wire.connect()
    data = request("POST", "/v1/batch", CHUNKED) + chunked(*[b"12345678"] * 25_000)
    for at in range(0, len(data), 50_000):
        client.send(data[at : at + 50_000])
    assert client.statuses == [200], "a quarter of the room is for requests that are unfinished"


def test_a_head_without_an_end_is_refused_at_the_limit():
    wire = Wire(SMALL)
    head = b"GET / HTTP/1.1\r\nX: "
    client = wire.connect().send(head + b"x" * (1023 - len(fields(head))))
    assert client.statuses == []
    assert not client.sees_end
    client.send(b"x")
    assert client.statuses == [431]


@pytest.mark.parametrize(
    ("flood", "status"),
    [
        (b"GET /" + b"a" * 80000, 414),
        (b"GET " + b" " * 80000, 414),
        (request("POST", "/collect", CHUNKED) + b"0;" + b"e" * 70000, 431),
        (request("POST", "/collect", CHUNKED) + b"0\r\n" + b"T: t\r\n" * 12000, 431),
    ],
    ids=["path", "blanks", "extension", "trailers"],
)
def test_a_flood_of_framing_is_refused(flood, status, feed):
    wire = Wire()
    client = wire.connect()
    feed(client, flood)
    assert client.statuses == [status]
    assert wire.lines == []


def test_a_body_does_not_count_into_the_head(feed):
    wire = Wire(SMALL | {"MAX_BODY_SIZE": "100000"})
    client = wire.connect()
    feed(client, (post(b"x" * 50000) + request("POST", "/collect", CHUNKED) + chunked(b"y\n" * 25000)) * 2)
    assert client.statuses == [200] * 4
    assert [len(event) for event in wire.events] == [50000] * 4


# A query is an event: the line that it stands in has a limit of its own, and its refusal can be read by its page.

WITH_ORIGIN = "Origin: https://shop.example"
SNOWPLOW = {"SDK_ROUTES": "snowplow,segment"}
TRACKER = "/com.snowplowanalytics.snowplow/tp2"
LONG = "e=" + "q" * 100_000
COOKIES = "Cookie: " + "c" * 17_000


def line_of(size: int, path: str = "/collect?") -> bytes:
    """Return a GET whose first line has exactly `size` bytes."""
    return request("GET", path + "q" * (size - len(f"GET {path} HTTP/1.1\r\n")))


def test_a_query_is_taken_up_to_the_limit_of_a_body_whatever_a_head_may_have(feed):
    wire = Wire(SMALL | SNOWPLOW)
    client = wire.connect()
    queries = ["q" * 20_000, "e=\xe9" + "%20" * 9000, "r" * 65_536]
    feed(client, b"".join(request("GET", f"/collect?{query}", WITH_ORIGIN) for query in queries))
    feed(client, request("GET", "/i?" + queries[2]) + request("POST", f"{TRACKER}?{queries[2]}", "Content-Length: 0"))
    assert client.statuses == [200] * 5
    assert wire.events[:3] == [queries[0], queries[1].replace("\xe9", "%E9"), queries[2]]
    assert [len(line) > 65_536 for line in wire.lines[2:]] == [True] * 3


@pytest.mark.parametrize("lead", [b"", post(b"lead"), b"\r\n"], ids=["first", "pipelined", "after an empty line"])
def test_a_request_line_of_the_largest_size_is_read_and_one_byte_more_is_414(lead, feed):
    for size, status in ((9192, 404), (9193, 414)):
        wire = Wire(BODY | LARGE)
        client = wire.connect()
        feed(client, lead + line_of(size, "/nowhere?"))
        assert client.statuses == [200] * lead.startswith(b"POST") + [status]


OVERGROWN = {
    "a query of an event": (request("GET", f"/collect?{LONG}", WITH_ORIGIN), 413),
    "a query of an event, the origin last": (request("GET", f"/collect?{LONG}", "X: " + "x" * 9000, WITH_ORIGIN), 413),
    "a query of a tracker": (request("GET", f"/i?{LONG}", WITH_ORIGIN), 422),
    "a query of a tracker, just above": (request("GET", "/i?" + "q" * 65_537, WITH_ORIGIN), 422),
    "a query of a tracker, with two hosts": (request("GET", f"/i?{LONG}", "Host: b", "Host: c", WITH_ORIGIN), 422),
    "a query of a tracker, not ASCII": (request("GET", "/i?" + "\xe9" * 99_000, WITH_ORIGIN), 422),
    "a query beside a body": (request("POST", f"{TRACKER}?{LONG}", "Content-Length: 2", WITH_ORIGIN) + b"{}", 422),
    "cookies of a tracker": (request("POST", TRACKER, COOKIES, "Content-Length: 2", WITH_ORIGIN) + b"{}", 422),
    "cookies of a tracker, the origin first": (request("POST", TRACKER, WITH_ORIGIN, COOKIES), 422),
    "cookies of an event": (request("POST", "/collect", COOKIES, "A: b", WITH_ORIGIN), 431),
    "cookies of another SDK": (request("POST", "/v1/track", COOKIES, WITH_ORIGIN), 431),
    "both": (request("GET", f"/i?{LONG}", COOKIES, WITH_ORIGIN), 422),
}


@pytest.mark.parametrize(("data", "status"), OVERGROWN.values(), ids=OVERGROWN.keys())
def test_the_page_of_a_request_that_is_too_large_reads_that_it_is_refused_for_good(data, status, feed):
    wire = Wire(SNOWPLOW)
    client = wire.connect()
    feed(client, post(b"1") + data + post(b"never"))
    _, refused = client.answers()
    assert (refused.status, refused.headers["Connection"]) == (status, "close")
    assert refused.headers["Access-Control-Allow-Origin"] == "https://shop.example"
    assert wire.events == ["1"]
    assert sum(wire.metrics.rejected.values()) == 1
    assert client.sees_end
    assert wire.budget.requests == 0


def test_a_preflight_of_a_query_that_is_too_long_lets_the_page_ask(feed):
    wire = Wire(SNOWPLOW)
    client = wire.connect()
    feed(client, request("OPTIONS", f"/i?{LONG}", WITH_ORIGIN, "Access-Control-Request-Headers: sp-anonymous") * 2)
    assert client.statuses == [204, 204]
    assert "sp-anonymous" in client.answers()[0].headers["Access-Control-Allow-Headers"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request("GET", f"/i?{LONG}", "A b"), 400),
        (request("GET", f"/i?{LONG}", version="2.0"), 400),
        (request("GET", f"/i?{LONG}").replace(b"HTTP/", b"RTSP/"), 400),
        (request("OPTIONS", f"/i?{LONG}").replace(b"HTTP/", b"ICE/"), 400),
        (request("GET", f"/health?{LONG}", WITH_ORIGIN), 414),
        (request("HEAD", f"/i?{LONG}", WITH_ORIGIN), 414),
        (request("POST", TRACKER, COOKIES, "A b", WITH_ORIGIN), 400),
        (request("OPTIONS", f"/i?{LONG}", COOKIES, WITH_ORIGIN), 431),
    ],
)
def test_what_else_is_wrong_with_a_request_that_is_too_large_is_said_as_ever(data, status, feed):
    client = Wire(SNOWPLOW).connect()
    feed(client, data)
    assert client.transport.sent.startswith(b"HTTP/1.1 %d " % status)
    assert client.transport.sent.count(b"\r\nDate: ") == 1
    assert client.sees_end


@pytest.mark.parametrize(
    ("start", "unit", "most", "status"),
    [
        (b"GET /i?", b"q", 2 << 20, 422),
        (b"OPTIONS /i?", b"q", 2 << 20, 414),
        (b"POST /collect HTTP/1.1\r\n", b"A: b\r\n", 256 << 10, 431),
        (b"POST %b HTTP/1.1\r\nX: " % TRACKER.encode(), b"x", 256 << 10, 422),
    ],
)
def test_the_head_of_a_request_that_is_too_large_is_read_on_within_a_bound(start, unit, most, status):
    wire = Wire(SNOWPLOW)
    client = wire.connect().send(start + unit * (most // len(unit)))
    assert client.statuses == []
    assert 0 < wire.budget.requests < most + 100_000, "every byte is counted"
    client.send(unit * (100_000 // len(unit)))
    assert client.statuses == [status]
    assert client.sees_end
    assert wire.budget.requests == 0


def test_a_request_that_is_too_large_is_told_in_the_log_by_its_path_alone(feed):
    with structlog.testing.capture_logs() as told:
        feed(Wire(SNOWPLOW).connect(), request("GET", f"/i?{LONG}"))
    assert [(line["method"], line["path"], line["status"]) for line in told] == [("GET", "/i", 422)]
