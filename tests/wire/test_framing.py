"""Where a request begins and ends: framing, its errors, and what must not leak from one request into the next."""

import pytest

from ingest.telemetry import Reason
from tests.stand_ins.wire import LOCAL, Wire, chunked, post, request

CHUNKED = "Transfer-Encoding: chunked"


# Keep-alive and pipelining.


def test_pipelined_requests_are_answered_in_order(feed):
    wire = Wire()
    client = wire.connect()
    feed(
        client,
        post(b"1")
        + request("GET", "/collect?2")
        + request("GET", "/nowhere")
        + post(b"3", "X: y")
        + request("GET", "/health")
        + request("POST", "/collect", CHUNKED)
        + chunked(b"4")
        + request("OPTIONS", "/collect"),
    )
    assert client.statuses == [200, 200, 404, 200, 200, 200, 204]
    assert wire.events == ["1", "2", "3", "4"]
    assert not client.sees_end


def test_a_connection_serves_requests_one_after_the_other():
    wire = Wire()
    client = wire.connect()
    for number in range(50):
        client.send(post(b"%d" % number))
        wire.pass_time(30)
    assert client.statuses == [200] * 50
    assert wire.events == [str(number) for number in range(50)]


def test_connection_close_ends_it_and_nothing_after_it_is_read(feed):
    wire = Wire()
    client = wire.connect()
    feed(client, post(b"1") + post(b"2", "Connection: close") + post(b"3"))
    answers = client.answers()
    assert [answer.headers.get("Connection") for answer in answers] == [None, "close"]
    assert wire.events == ["1", "2"]
    assert client.closed


@pytest.mark.parametrize(
    "data",
    [
        request("GET", "/health", "Connection: close"),
        request("GET", "/nowhere", "Connection: Close"),
        request("GET", "/collect", "Connection: foo, close"),
        request("PUT", "/collect", "Connection: close"),
        request("OPTIONS", "/collect", "Connection: close"),
        request("GET", "/health", version="1.0"),
    ],
)
def test_connection_close_is_confirmed_by_every_answer(data, feed):
    client = Wire().connect()
    feed(client, data)
    assert [answer.headers.get("Connection") for answer in client.answers()] == ["close"]
    assert client.closed


def test_a_refused_event_leaves_a_connection_that_may_be_used_again(feed):
    wire = Wire()
    wire.refuse = True
    client = wire.connect()
    feed(client, post(b"1") + post(b"2"))
    assert [(answer.status, answer.headers["Retry-After"]) for answer in client.answers()] == [(503, "1")] * 2
    wire.refuse = False
    feed(client, post(b"3"))
    assert wire.events == ["3"]
    assert not client.sees_end


# HTTP/1.0


def test_http_1_0_needs_no_host_and_closes(feed):
    wire = Wire()
    client = wire.connect()
    feed(client, request("POST", "/collect", "Content-Length: 2", version="1.0", host=None) + b"{}" + post(b"2"))
    assert client.statuses == [200]
    assert wire.events == ["{}"]
    assert client.closed


def test_http_1_0_keeps_alive_when_asked(feed):
    wire = Wire()
    client = wire.connect()
    feed(client, post(b"1", "Connection: keep-alive", version="1.0") + post(b"2", version="1.0"))
    assert client.statuses == [200, 200]
    assert wire.events == ["1", "2"]
    assert client.closed


# Chunked bodies.


@pytest.mark.parametrize("extension", ["", ";a=b", ';a="b;c"'])
def test_a_chunked_body_is_put_together(extension, feed):
    wire = Wire()
    client = wire.connect()
    body = [b"a", b"\r\n0\r\n\r\n", b"x" * 300, b"\n" * 20]
    feed(client, request("POST", "/collect", CHUNKED) + chunked(*body, extension=extension) + post(b"next"))
    assert client.statuses == [200, 200]
    assert wire.events == [b"".join(body).decode(), "next"]


def test_an_empty_chunked_body_is_an_event(feed):
    wire = Wire()
    client = wire.connect()
    feed(client, request("POST", "/collect", CHUNKED) + chunked() + post(b"next"))
    assert wire.events == ["", "next"]


TRAILERS = (
    "Cookie: evil=1",
    "User-Agent: evil",
    "X-Forwarded-For: 198.51.100.66",
    "Origin: https://evil.example",
    "Expect: 100-continue",
    "Host: evil.example",
    "Upgrade: h2c",
    "Connection: upgrade",
)


@pytest.mark.parametrize("trailers", [*((one,) for one in TRAILERS), TRAILERS, TRAILERS[::-1], TRAILERS * 2])
def test_trailers_set_no_field_of_this_request_or_the_next(trailers, feed):
    wire = Wire(peer=("10.0.0.1", 1))
    client = wire.connect()
    feed(
        client,
        request("POST", "/collect", CHUNKED)
        + chunked(b"1", trailers=trailers)
        + post(b"2")
        + request("POST", "/collect", CHUNKED, "Cookie: own=1", "X-Forwarded-For: 203.0.113.7")
        + chunked(b"3", trailers=trailers)
        + request("GET", "/collect?4", "User-Agent: own"),
    )
    fields = [(record["ip"], record["user_agent"], record["cookie"], record["body"]) for record in wire.records]
    assert fields == [
        ("10.0.0.1", "", "", "1"),
        ("10.0.0.1", "", "", "2"),
        ("203.0.113.7", "", "own=1", "3"),
        ("10.0.0.1", "own", "", "4"),
    ]
    assert not any("Access-Control-Allow-Origin" in answer.headers for answer in client.answers())
    assert client.statuses == [200] * 4


def test_a_trailer_does_not_close_the_connection(feed):
    wire = Wire()
    client = wire.connect()
    feed(client, request("POST", "/collect", CHUNKED) + chunked(b"1", trailers=["Connection: close"]) + post(b"2"))
    assert client.statuses == [200, 200]
    assert wire.events == ["1", "2"]


# Malformed.

LENGTH = "Content-Length: 2"
MALFORMED = {
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "no version": b"GET /collect\r\n\r\n",
    "unknown method": b"BREW /collect HTTP/1.1\r\nHost: x\r\n\r\n",
    "method in lower case": b"post /collect HTTP/1.1\r\nHost: x\r\n\r\n",
    "version": b"GET /collect HTTP/1.2\r\nHost: x\r\n\r\n",
    "not a version": b"GET /collect HTTPS/1.1\r\nHost: x\r\n\r\n",
    "bare line feeds": b"GET /collect HTTP/1.1\nHost: x\n\n",
    "bare carriage return": b"GET /collect HTTP/1.1\r\nHost: x\rA: b\r\n\r\n",
    "NUL": request("GET", "/collect", "X: a\0b"),
    "space before the colon": b"GET /collect HTTP/1.1\r\nHost : x\r\n\r\n",
    "empty name": b"GET /collect HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n",
    "folded line": request("GET", "/collect", "X: a\r\n b"),
    "a Content-Length of 4,400 digits (E4)": request("POST", "/collect", "Content-Length: " + "0" * 4400),
    "a Content-Length of 19 digits (E4)": request("POST", "/collect", "Content-Length: " + "0" * 18 + "1") + b"1",
    "no version (E8)": b"GET /collect\r\nHost: x\r\n\r\n",
    "HTTP/0.9 (E8)": request("GET", "/collect", version="0.9"),
    "HTTP/2.0 (E8)": request("GET", "/collect", version="2.0"),
    "RTSP/1.0 (E8)": request("GET", "/collect").replace(b"HTTP", b"RTSP"),
    "RTSP/1.1 (E8)": post(b"1").replace(b"HTTP", b"RTSP"),
    "ICE/1.0 (E8)": request("SOURCE", "/collect").replace(b"HTTP/1.1", b"ICE/1.0"),
    "ICE/1.1 (E8)": request("SOURCE", "/collect", LENGTH).replace(b"HTTP/1.1", b"ICE/1.1") + b"{}",
    "a Host of two words (E8)": request("GET", "/collect", host="a b"),
    "a Host with a user (E8)": request("GET", "/collect", host="a@b"),
    "a Host with a port that is none (E8)": request("GET", "/collect", host="x:abc"),
    "a Host with a path (E8)": request("GET", "/collect", host="x/y", version="1.0"),
    "a Host beyond ASCII (E8)": request("GET", "/collect", host="\xe9"),
    "a byte beyond ASCII in the method": b"G\xc9T /collect HTTP/1.1\r\nHost: x\r\n\r\n",
    "a byte beyond ASCII in a header's name": request("GET", "/collect", "N\xe9: 1"),
    "Content-Length and Transfer-Encoding": request("POST", "/collect", LENGTH, CHUNKED) + chunked(b"{}"),
    "Transfer-Encoding and Content-Length": request("POST", "/collect", CHUNKED, LENGTH) + chunked(b"{}"),
    "two lengths": request("POST", "/collect", LENGTH, "Content-Length: 3") + b"{}",
    "the same length twice": request("POST", "/collect", LENGTH, LENGTH) + b"{}",
    "list of lengths": request("POST", "/collect", "Content-Length: 2, 2") + b"{}",
    "negative length": request("POST", "/collect", "Content-Length: -1"),
    "signed length": request("POST", "/collect", "Content-Length: +2") + b"{}",
    "length in hexadecimal": request("POST", "/collect", "Content-Length: 0x2") + b"{}",
    "empty length": request("POST", "/collect", "Content-Length:"),
    "length beyond 64 bits": request("POST", "/collect", "Content-Length: 18446744073709551617"),
    "chunked twice": request("POST", "/collect", CHUNKED, CHUNKED) + chunked(b"{}"),
    "chunked not last": request("POST", "/collect", "Transfer-Encoding: chunked, gzip") + chunked(b"{}"),
    "chunk size": request("POST", "/collect", CHUNKED) + b"xyz\r\n",
    "empty chunk size": request("POST", "/collect", CHUNKED) + b"\r\n",
    "negative chunk size": request("POST", "/collect", CHUNKED) + b"-1\r\n",
    "chunk size beyond 64 bits": request("POST", "/collect", CHUNKED) + b"fffffffffffffffff\r\n",
    "chunk longer than its size": request("POST", "/collect", CHUNKED) + b"1\r\nab\r\n0\r\n\r\n",
    "line feed alone after a chunk size": request("POST", "/collect", CHUNKED) + b"1\na\r\n0\r\n\r\n",
    "length in a trailer": request("POST", "/collect", CHUNKED) + chunked(b"{}", trailers=["Content-Length: 5"]),
    "HTTP/1.0 with Transfer-Encoding": request("POST", "/collect", CHUNKED, version="1.0") + chunked(b"{}"),
    "HTTP/1.0 with Transfer-Encoding, kept alive": request(
        "POST", "/collect", CHUNKED, "Connection: keep-alive", version="1.0"
    ),
    "no host": request("POST", "/collect", LENGTH, host=None) + b"{}",
    "two hosts": request("POST", "/collect", LENGTH, "Host: d.example") + b"{}",
    "the same host twice": request("POST", "/collect", "Host: c.example", LENGTH) + b"{}",
    "three hosts": request("POST", "/collect", "host: c.example", LENGTH, "HOST: c.example") + b"{}",
    "two hosts, then a bad header": request("POST", "/collect", "Host: d.example", "Bad Name: x"),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "upgrade with both framings": request("POST", "/collect", "Connection: upgrade", "Upgrade: h2c", LENGTH, CHUNKED)
    + b"{}",
    "upgrade with a bad chunk": request("POST", "/collect", "Connection: upgrade", "Upgrade: h2c", CHUNKED) + b"zz\r\n",
    "upgrade over HTTP/1.0 with Transfer-Encoding": request(
        "POST", "/collect", "Connection: upgrade", "Upgrade: h2c", CHUNKED, version="1.0"
    ),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_is_400_after_what_was_sound_and_the_connection_ends(data, feed):
    wire = Wire()
    client = wire.connect()
    feed(client, post(b"sound") + data + post(b"never"))
    before, refused = client.answers()
    assert before.status == 200
    assert (refused.status, refused.headers["Connection"]) == (400, "close")
    assert refused.body
    assert wire.events == ["sound"]
    assert wire.metrics.rejected[Reason.MALFORMED] == 1
    assert client.sees_end
    client.end()
    assert client.closed
    assert wire.loop.failures == []


def test_an_event_that_was_not_whole_is_no_event(feed):
    for data in (post(b"0123456789")[:-1], request("POST", "/collect", CHUNKED) + chunked(b"ab")[:-1]):
        wire = Wire()
        client = wire.connect()
        feed(client, data)
        client.end()
        assert wire.lines == []
        assert client.statuses == []
        assert client.closed


def test_empty_lines_between_requests_are_left_out(feed):
    wire = Wire()
    client = wire.connect()
    feed(client, b"\r\n\r\n" + post(b"1") + b"\r\n" + post(b"2"))
    assert client.statuses == [200, 200]
    assert wire.events == ["1", "2"]


# Expect: 100-continue

EXPECT = "Expect: 100-continue"


def test_a_client_that_waits_for_continue_is_told_to_go_on():
    wire = Wire()
    client = wire.connect()
    for expect in (EXPECT, "expect: 100-Continue"):
        client.transport.sent.clear()
        client.send(request("POST", "/collect", "Content-Length: 2", expect))
        assert client.transport.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"{}")
        assert client.statuses == [100, 200]
    client.transport.sent.clear()
    client.send(request("POST", "/collect", EXPECT, CHUNKED))
    assert client.statuses == [100]
    client.send(chunked(b"x"))
    assert client.statuses == [100, 200]
    assert wire.events == ["{}", "{}", "x"]
    assert wire.metrics.requests.total() == 3


def test_a_client_that_does_not_wait_is_not_told(feed):
    wire = Wire()
    client = wire.connect()
    client.send(post(b"{}", EXPECT))
    assert client.statuses == [200]
    client = wire.connect()
    feed(client, post(b"{}", EXPECT) + post(b"2"))
    assert [answer.status for answer in client.answers()] == [200, 200]


def test_a_client_whose_body_has_begun_is_not_told():
    client = Wire().connect().send(post(b"{}", EXPECT)[:-1])
    assert client.statuses == []
    assert client.send(b"}").statuses == [200]


def test_continue_comes_after_the_answers_before_it():
    wire = Wire()
    client = wire.connect()
    client.send(post(b"1") + request("POST", "/collect", "Content-Length: 2", EXPECT))
    assert client.statuses == [200, 100]


def test_http_1_0_is_never_told_to_continue(feed):
    wire = Wire()
    client = wire.connect()
    feed(client, post(b"{}", EXPECT, version="1.0"))
    assert client.statuses == [200]


@pytest.mark.parametrize(
    ("settings", "length", "refusing", "status"),
    [({"MAX_BODY_SIZE": "100"}, 101, False, 413), ({}, 2, True, 503)],
)
def test_a_refused_expectation_gets_its_final_status_and_a_close(settings, length, refusing, status, feed):
    wire = Wire(settings)
    wire.refuse = refusing
    client = wire.connect()
    feed(client, request("POST", "/collect", f"Content-Length: {length}", EXPECT) + b"x" * length + post())
    (answer,) = client.answers()
    assert client.statuses == [status]
    assert answer.headers["Connection"] == "close"
    assert ("Retry-After" in answer.headers) == (status == 503)
    assert client.sees_end
    assert wire.lines == []


def test_a_page_is_shown_to_who_expects_though_events_are_refused(feed):
    wire = Wire()
    wire.refuse = True
    client = wire.connect()
    feed(client, request("GET", "/health", EXPECT) + request("GET", "/health"))
    assert client.statuses == [200, 200]


# Upgrade is ignored (RFC 9110 §7.8); the parser would stop there.

UPGRADE = ("Connection: Upgrade", "Upgrade: websocket")


@pytest.mark.parametrize("behind", [b"", post(b"behind"), request("GET", "/collect?behind", *UPGRADE)])
@pytest.mark.parametrize(
    ("data", "event"),
    [
        (post(b"body", *UPGRADE), "body"),
        (post(b"", *UPGRADE), ""),
        (post(b"GET /collect?smuggled HTTP/1.1\r\nHost: x\r\n\r\n", *UPGRADE), ...),
        (request("POST", "/collect", *UPGRADE, CHUNKED) + chunked(b"bo", b"dy"), "body"),
        (request("POST", "/collect", *UPGRADE, CHUNKED) + chunked(b"body", trailers=["Cookie: evil"]), "body"),
        (request("POST", "/collect", *UPGRADE, CHUNKED) + chunked(), ""),
        (request("POST", "/collect", *UPGRADE), ""),
        (request("GET", "/collect?q", *UPGRADE, "HTTP2-Settings: AAMAAABk"), "q"),
        (post(b"body", "Connection: keep-alive, Upgrade", "Upgrade: h2c, websocket"), "body"),
        (post(b"body", "Upgrade: h2c"), "body"),
        (post(b"body", *UPGRADE, EXPECT), "body"),
    ],
)
def test_an_upgrade_is_ignored_and_nothing_is_lost(data, event, behind, feed):
    wire = Wire(peer=("10.0.0.1", 1))
    client = wire.connect()
    feed(client, post(b"before", "Cookie: c=1") + data + behind)
    event = data.partition(b"\r\n\r\n")[2].decode() if event is ... else event
    assert wire.events == ["before", event, *(["behind"] if behind else [])]
    assert [answer.status for answer in client.answers()] == [200] * len(wire.events)
    assert all(record["cookie"] == "" for record in wire.records[1:])
    assert not client.sees_end
    feed(client, post(b"later"))
    assert wire.events[-1] == "later"


def test_the_head_of_an_upgrade_counts(feed):
    wire = Wire(peer=("10.0.0.1", 1))
    client = wire.connect()
    fields = ("Cookie: own=1", "User-Agent: own", "Origin: https://a.example", "X-Forwarded-For: 203.0.113.7")
    feed(client, post(b"1", *fields, *UPGRADE) + post(b"2", *UPGRADE))
    assert [(one["ip"], one["user_agent"], one["cookie"]) for one in wire.records] == [
        ("203.0.113.7", "own", "own=1"),
        ("10.0.0.1", "", ""),
    ]
    first, second = client.answers()
    assert first.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert "Access-Control-Allow-Origin" not in second.headers


@pytest.mark.parametrize("body", [("Content-Length: 1",), ("Content-Length: 0",), (CHUNKED,), ()])
def test_an_upgrade_with_connection_close_closes(body, feed):
    wire = Wire()
    client = wire.connect()
    content = {"Content-Length: 1": b"x", CHUNKED: chunked(b"x")}.get(body[0] if body else "", b"")
    feed(client, request("POST", "/collect", "Connection: upgrade, close", "Upgrade: h2c", *body) + content + post())
    (answer,) = client.answers()
    assert (answer.status, answer.headers["Connection"]) == (200, "close")
    assert len(wire.lines) == 1
    assert client.closed


def test_an_upgrade_of_http_1_0_keeps_its_version(feed):
    wire = Wire()
    client = wire.connect()
    feed(client, post(b"1", *UPGRADE, version="1.0") + post(b"2"))
    assert wire.events == ["1"]
    assert client.closed


def test_an_upgrade_to_a_page_is_ignored_too(feed):
    wire = Wire()
    client = wire.connect()
    feed(client, request("GET", "/health", *UPGRADE) + request("PUT", "/collect", *UPGRADE, LENGTH) + b"{}" + post())
    assert client.statuses == [200, 405, 200]


@pytest.mark.parametrize(
    "coding", ["gzip", "identity", "gzip, chunked", "gzip\r\nTransfer-Encoding: chunked", "xchunked"]
)
@pytest.mark.parametrize("headers", [(), UPGRADE], ids=["plain", "upgrade"])
def test_a_transfer_coding_other_than_chunked_is_501_E10(coding, headers, feed):
    wire = Wire()
    client = wire.connect()
    feed(client, post(b"1") + request("POST", "/collect", *headers, f"Transfer-Encoding: {coding}") + chunked(b"{}"))
    _, answer = client.answers()
    assert (answer.status, answer.headers["Connection"]) == (501, "close")
    assert wire.events == ["1"]


@pytest.mark.parametrize("coding", ["Chunked", "chunked  ", "  chunked"])
def test_chunked_is_known_however_it_is_written(coding, feed):
    wire = Wire()
    client = wire.connect()
    feed(client, request("POST", "/collect", f"Transfer-Encoding: {coding}") + chunked(b"{}"))
    assert client.statuses == [200]


def test_an_unknown_content_coding_is_415_and_names_what_is_known_E10(feed):
    wire = Wire()
    client = wire.connect()
    feed(client, post(b"1", "Content-Encoding: br") + post(b"2", "content-encoding: Identity"))
    refused, taken = client.answers()
    assert refused.status == 415
    assert refused.headers["Accept-Encoding"]
    assert taken.status == 200
    assert wire.events == ["2"]


@pytest.mark.parametrize(
    "host", ["", "x", "x:", "x:80", "[::1]:8080", "[fe80::1%25eth0]", "a_b.example", "1.2.3.4:5", "x%41", "[v1.a:b]"]
)
def test_a_host_of_sound_form_is_taken_E8(host, feed):
    wire = Wire()
    client = wire.connect()
    feed(client, post(b"1").replace(b"c.example", host.encode()) * 2)
    assert client.statuses == [200, 200]


@pytest.mark.parametrize(
    ("target", "body"),
    [
        (b"/collect?\xc3\xa9=\xea\xb0\x80", "\u00e9=\uac00"),
        (b"/collect?a=\xff", "a=%FF"),
        (b"http://c.example/collect?\xc3\xa9", "\u00e9"),
    ],
)
def test_bytes_beyond_ascii_in_a_query_are_kept_E15(target, body, feed):
    wire = Wire()
    client = wire.connect()
    get = request("GET", "/T").replace(b"/T", target)
    feed(client, post(b"1") + get + post(b"2") + get + request("GET", "/T").replace(b"/T", b"/coll\xc3\xa9ct"))
    assert client.statuses == [200, 200, 200, 200, 404]
    assert wire.events == ["1", body, "2", body]


def test_white_space_behind_a_value_is_no_part_of_it_E9(feed):
    wire = Wire()
    client = wire.connect()
    agent, origin = "User-Agent: a b \t", "Origin: https://a.example  "
    feed(client, post(b"1", agent, origin) + request("POST", "/collect", "Content-Length: 1 \t") + b"2")
    first, _ = client.answers()
    assert first.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert [record["user_agent"] for record in wire.records] == ["a b", ""]
    waiting = wire.connect().send(request("POST", "/collect", "Content-Length: 1", "Expect: 100-continue "))
    assert waiting.statuses == [100]


def test_a_kept_connection_of_http_1_0_is_told_so_E6(feed):
    wire = Wire()
    client = wire.connect()
    kept = "Connection: Keep-Alive"
    feed(
        client,
        post(b"1", kept, version="1.0")
        + request("GET", "/collect?2", kept, version="1.0")
        + request("GET", "/health", kept, version="1.0")
        + request("GET", "/nowhere", kept, version="1.0")
        + post(b"3", version="1.0"),
    )
    answers = client.answers()
    assert [answer.status for answer in answers] == [200, 200, 200, 404, 200]
    assert [answer.headers["Connection"] for answer in answers] == ["keep-alive"] * 4 + ["close"]
    assert client.sees_end
    wire.refuse = True
    (refused,) = wire.connect().send(post(b"1", kept, version="1.0")).answers()
    assert (refused.status, refused.headers["Connection"]) == (503, "keep-alive")


CONNECTIONS = {
    (): (True, False),
    ("Connection:",): (True, False),
    ("Connection: keep-alive",): (True, True),
    ("Connection: x,Keep-Alive",): (True, True),
    ("Connection: x", "connection: \tKEEP-ALIVE , y"): (True, True),
    ("Connection: keep-alive x",): (True, False),
    ("Connection: keep-alive;x",): (True, False),
    ("Connection: keepalive, closed",): (True, False),
    ("Connection: close",): (False, False),
    ("CONNECTION: Close , keep-alive",): (False, False),
    ("Connection: keep-alive", "Connection: x,close"): (False, False),
    ("Connection: upgrade", "Upgrade: h2c"): (True, False),
    ("Connection: upgrade, keep-alive", "Upgrade: h2c"): (True, True),
    ("Connection: upgrade,close", "Upgrade: h2c"): (False, False),
    ("Keep-Alive: timeout=5", "Upgrade: h2c"): (True, False),
}
"""Lines that speak of the connection, and whether it is kept in HTTP/1.1 and in HTTP/1.0."""
NO_CONNECTIONS = [
    (),
    ("Proxy-Connection: keep-alive",),
    ("PROXY-CONNECTION: close",),
    ("Proxy-Connection: x", "proxy-connection: Keep-Alive,Upgrade", "Upgrade: h2c"),
]
"""Lines that the parser heeds as if they did."""


@pytest.mark.parametrize("no_connection", NO_CONNECTIONS, ids=map("".join, NO_CONNECTIONS))
def test_nothing_but_the_version_and_connection_decides_what_is_kept_and_how_a_body_is_framed(no_connection, feed):
    for lines, kept in CONNECTIONS.items():
        for headers in {(*lines, *no_connection), (*no_connection, *lines)}:
            for version, is_kept in zip(("1.1", "1.0"), kept, strict=True):
                client = Wire().connect(LOCAL)
                feed(client, post(b"1", *headers, version=version) + post(b"2", *headers, version=version))
                assert client.wire.events == ["1", "2"][: 1 + is_kept], (headers, version)
                said = {(True, "1.1"): None, (True, "1.0"): "keep-alive"}.get((is_kept, version), "close")
                assert {answer.headers.get("Connection") for answer in client.answers()} == {said}, (headers, version)
                assert client.sees_end is not is_kept
            for version, status in {"1.1": 200, "1.0": 400, "2.0": 400, "0.9": 400}.items():
                client = Wire().connect(LOCAL)
                feed(client, request("POST", "/collect", CHUNKED, *headers, version=version) + chunked(b"smuggled"))
                assert client.statuses == [status], (headers, version)
                assert client.wire.events == ["smuggled"] * (status == 200)
                assert client.sees_end is (status != 200 or not kept[0])


@pytest.mark.parametrize("no_connection", NO_CONNECTIONS, ids=map("".join, NO_CONNECTIONS))
def test_a_version_is_known_whatever_speaks_of_the_connection(no_connection):
    for lines in CONNECTIONS:
        headers = (*lines, *no_connection)
        for version, statuses in {"1.1": [200], "1.0": [404], "2.0": [400], "0.9": [400]}.items():
            assert (
                Wire().connect(LOCAL).send(request("GET", "/metrics", *headers, version=version)).statuses == statuses
            )
        for version, told in {"1.1": [100], "1.0": [], "2.0": [400], "0.9": [400]}.items():
            head = request("POST", "/collect", EXPECT, "Content-Length: 1", *headers, version=version)
            assert Wire().connect(LOCAL).send(head).statuses == told, (headers, version)


@pytest.mark.parametrize("options", ["close, keep-alive", "keep-alive,\tClose", "Keep-Alive, x, close"])
def test_close_wins_over_keep_alive_in_http_1_0_E6(options, feed):
    wire = Wire()
    client = wire.connect()
    feed(client, post(b"1", f"Connection: {options}", version="1.0") + post(b"2"))
    (answer,) = client.answers()
    assert (answer.status, answer.headers["Connection"]) == (200, "close")
    assert wire.events == ["1"]
    assert client.sees_end


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (request("HEAD", "/collect", "A b"), 400),
        (request("HEAD", "/collect", "A: b", "C: \0"), 400),
        (request("HEAD", "/collect", version="2.0"), 400),
        (b"\r\n" + request("HEAD", "/a\x01"), 400),
        (request("HEAD", "/collect", "Content-Length: 99999999"), 413),
        (request("HEAD", "/collect", host="a b"), 400),
        (request("HEAD", "/collect", "X: " + "x" * 20_000), 431),
        (request("HEAD", "/collect", "Transfer-Encoding: gzip"), 501),
        (request("HEAD", "/nowhere"), 404),
        (request("HEAD", "/collect"), 200),
    ],
)
def test_an_answer_to_head_has_no_content_but_the_fields_of_get_E7(request_, status, feed):
    client = Wire().connect()
    feed(client, request_)
    head, _, content = bytes(client.transport.sent).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert content == b""
    client = Wire().connect()
    feed(client, request_.replace(b"HEAD", b"GET", 1) if status != 431 else request_.replace(b"HEAD", b"GETT", 1))
    if status != 431:
        get, _, content = bytes(client.transport.sent).partition(b"\r\n\r\n")
        assert get == head
        assert content


def test_a_malformed_request_after_a_head_is_answered_with_content_E7(feed):
    client = Wire().connect()
    feed(client, request("HEAD", "/nowhere") + request("GET", "/collect", "A b"))
    head, refusal, content = bytes(client.transport.sent).split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 ")
    assert refusal.startswith(b"HTTP/1.1 400 ")
    assert content


def test_an_upgrade_whose_body_cannot_be_read_is_refused_with_its_head(feed):
    client = Wire().connect()
    feed(client, request("POST", "/collect", *UPGRADE, "Transfer-Encoding: gzip", "Origin: https://a.example"))
    (answer,) = client.answers()
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (501, "https://a.example")


@pytest.mark.parametrize("target", ["c.example:443", "/collect"])
def test_connect_is_refused_and_what_follows_is_not_read(target, feed):
    wire = Wire()
    client = wire.connect()
    feed(client, post(b"1") + request("CONNECT", target, "Content-Length: 3") + b"abc" + post(b"2"))
    _, answer = client.answers()
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD, POST, OPTIONS")
    assert answer.headers["Connection"] == "close"
    assert wire.events == ["1"]
    assert client.sees_end
