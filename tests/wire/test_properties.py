"""What holds for any bytes: they end in an answer or a close, and how they are cut into reads changes nothing."""

from __future__ import annotations

import base64
import gzip
import json
import re

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ingest.wire.answers import CONTINUE
from tests.stand_ins.wire import Client, Wire, chunked, counted, post, request

# Small enough that generated requests meet them.
LIMITS = {"MAX_HEADER_BYTES": "1024", "MAX_BODY_SIZE": "300"}
QUIET = settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow])

methods = st.sampled_from(["POST", "POST", "POST", "GET", "GET", "HEAD", "OPTIONS", "PUT", "CONNECT", "post"])
targets = st.sampled_from(
    [
        "/collect",
        "/collect",
        "/collect",
        "/collect?a=b",
        "/collect/batch",
        "/collect?\xc3\xa9",
        "/health",
        "/",
        "*",
        "http://x/collect?q",
        "/collect?" + "q" * 301,
    ]
)
versions = st.sampled_from(["1.1"] * 12 + ["1.0", "1.0", "0.9", "2.0", "1.2"])
header_lines = st.sampled_from(
    [
        "User-Agent: agent",
        "Cookie: a=1",
        "cookie: b=2",
        "Origin: https://a.example",
        "X-Forwarded-For: 203.0.113.7",
        "X-Long: " + "x" * 400,
        "X-Long: " + "y" * 460,
        "Connection: close",
        "Connection: keep-alive",
        "Proxy-Connection: keep-alive",
        "Proxy-Connection: close",
        "Expect: 100-continue",
        "Host: other.example",
        "Bad Name: x",
        "Transfer-Encoding: gzip",
        "Content-Length: 3",
        "Upgrade: h2c",
        "Connection: Upgrade",
        "Connection: Upgrade, HTTP2-Settings",
        "Content-Encoding: gzip",
        "Content-Encoding: deflate",
        "Content-Type: application/x-ndjson",
        "User-Agent: a \t",
    ]
)
PACKED = [
    gzip.compress(b"[1,{},2]", mtime=0),
    gzip.compress(b"1\n2\n" * 40, mtime=0),
    gzip.compress(bytes(301), mtime=0),
]
bodies = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"[1,{}]", b"1\n2\n", *PACKED]),
    st.sampled_from([b"x" * 299, b"x" * 300, b"x" * 301, b"\r\n\r\n", b"\n" * 60, request("GET", "/collect?smuggled")]),
)
chunk_lines = st.sampled_from([";ext", ";a=b", ";" + "e" * 300, ""])
trailer_lines = st.lists(
    st.sampled_from(
        [
            "Cookie: evil",
            "Origin: https://evil",
            "Host: evil",
            "Connection: close",
            "Content-Length: 4",
            "T: " + "t" * 400,
        ]
    ),
    max_size=3,
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    headers = draw(st.lists(header_lines, max_size=4))
    upgrade = draw(st.integers(0, 5)) == 0
    if upgrade:
        headers += ["Connection: upgrade", "Upgrade: websocket"]
    method, target, version = draw(methods), draw(targets), draw(versions)
    host = draw(st.sampled_from(["c.example"] * 9 + [None]))
    shape = draw(st.sampled_from(["length", "length", "length", "chunked", "chunked", "none"]))
    if shape == "length":
        body = draw(bodies)
        return request(method, target, *headers, f"Content-Length: {len(body)}", version=version, host=host) + body
    if shape == "chunked":
        chunks = [chunk for chunk in draw(st.lists(bodies, max_size=3)) if chunk]
        content = chunked(*chunks, trailers=draw(trailer_lines), extension=draw(chunk_lines))
        return request(method, target, *headers, "Transfer-Encoding: chunked", version=version, host=host) + content
    return request(method, target, *headers, version=version, host=host)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    parts = draw(st.lists(st.one_of(requests(), requests(), requests(), st.just(b"\r\n"), st.just(post())), max_size=6))
    data = bytearray(b"".join(parts))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        if data:
            at = draw(st.integers(0, len(data) - 1))
            kind = draw(st.sampled_from(["replace", "insert", "delete", "cut"]))
            byte = draw(st.sampled_from(b"\r\n :;,0a\x00\xff"))
            if kind == "replace":
                data[at] = byte
            elif kind == "insert":
                data.insert(at, byte)
            elif kind == "delete":
                del data[at]
            else:
                del data[at:]
    return bytes(data)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """Cut into pieces of the given sizes, over and over."""
    pieces, at, number = [], 0, 0
    while at < len(data):
        size = sizes[number % len(sizes)] if sizes else len(data)
        pieces.append(data[at : at + size])
        at += size
        number += 1
    return pieces


sizes = st.lists(st.integers(1, 60) | st.integers(1, 9000), min_size=1, max_size=8)


@QUIET
@given(
    data=st.one_of(st.binary(max_size=600), streams(), streams()),
    sizes=sizes,
    same_turn=st.booleans(),
    ended=st.booleans(),
    deferred=st.booleans(),
    refuse=st.booleans(),
    stuck=st.booleans(),
)
def test_any_bytes_end_in_an_answer_or_a_close(data, sizes, same_turn, ended, deferred, refuse, stuck):
    wire = Wire(LIMITS, deferred=deferred)
    wire.refuse = refuse
    client = wire.connect()
    client.transport.stuck = stuck
    for piece in cut(data, sizes):
        client.transport.receive(piece)
        if not same_turn:
            wire.loop.settle()
    if ended:
        client.transport.receive(None)
    wire.loop.settle()
    if stuck:
        client.transport.stuck = False
        client.transport.read_by_client()
    for _ in range(3):
        while wire.commits:
            wire.sync(succeeds=not refuse)
        wire.loop.now += 70
        wire.tick.sweep()
        wire.loop.settle()
    assert wire.loop.failures == []
    assert client.closed
    assert wire.tick.crowd.admitted == set()
    assert wire.budget.requests == 0
    answers = bytes(client.transport.sent)
    assert answers == b"" or answers.startswith(b"HTTP/1.1 ")
    acknowledged = answers.count(b"HTTP/1.1 200 OK")
    # One answer to many events counts them.
    acknowledged += sum(int(events) - 1 for events in re.findall(rb'"accepted":([1-9]\d*)', answers))
    assert refuse or deferred or acknowledged >= len(wire.lines)


def outcome(
    pieces: list[bytes], limits: dict[str, str], *, same_turn: bool, per_look: float = 0.0
) -> tuple[object, ...]:
    """`per_look`: seconds that pass with each look at the stopwatch, so that unpacking goes on in later turns."""
    wire = Wire(limits, peer=("10.0.0.1", 1))

    def look() -> float:
        wire.stopwatch += per_look
        return wire.stopwatch

    wire.tick._stopwatch = look
    client = wire.connect()
    for piece in pieces:
        client.transport.receive(piece)
        if not same_turn:
            wire.loop.settle()
    wire.loop.settle()
    assert wire.loop.failures == []
    held, state = wire.budget.requests, client.connection.state
    metrics = counted(wire)
    client.end()
    return wire.records, final_answers(client), held, state, metrics, client.closed


def final_answers(client: Client) -> list[bytes]:
    return bytes(client.transport.sent).replace(CONTINUE, b"").split(b"HTTP/1.1 ")


@QUIET
@given(
    data=streams(),
    sizes=sizes,
    same_turn=st.booleans(),
    limits=st.sampled_from([LIMITS, LIMITS, {}, LIMITS | {"BODY_FORMAT": "json"}]),
)
@example(
    data=b"\r\n" * 200 + b"GET /collect HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 700,
    sizes=[1],
    same_turn=False,
    limits=LIMITS,
)
@example(data=request("POST", "/collect", "Host: b", "Bad Name: x"), sizes=[1], same_turn=False, limits=LIMITS)
@example(
    data=request("POST", "/collect", "Transfer-Encoding: chunked")
    + chunked(b"x" * 299, trailers=["T: " + "t" * 400, "T: " + "t" * 400]),
    sizes=[1],
    same_turn=False,
    limits=LIMITS,
)
@example(data=post(b"", "Connection: upgrade", "Upgrade: a") + b"P", sizes=[1], same_turn=False, limits=LIMITS)
@example(data=post(b"1") + b"GET /collect?\xff HTTP/1.1\r\nHost: x\r\n\r\n", sizes=[7], same_turn=False, limits=LIMITS)
@example(data=post(b"1") + b"GET /collect RTSP/1.0\r\nHost: x\r\n\r\n", sizes=[9], same_turn=False, limits=LIMITS)
@example(data=request("GET", "/", "Origin: https://a", "Bad Name: x"), sizes=[1], same_turn=False, limits=LIMITS)
def test_how_bytes_are_cut_into_reads_changes_nothing(data, sizes, same_turn, limits):
    whole = outcome([data] if data else [], limits, same_turn=True)
    assert outcome(cut(data, sizes), limits, same_turn=same_turn) == whole
    assert outcome(cut(data, [1]), limits, same_turn=False) == whole
    assert outcome(cut(data, sizes), limits, same_turn=same_turn, per_look=1.0) == whole
    assert outcome([data] if data else [], limits, same_turn=True, per_look=1.0) == whole


def body_of(record: dict[str, str]) -> bytes:
    return base64.b64decode(record["body_b64"]) if "body_b64" in record else record["body"].encode()


@QUIET
@given(
    bodies=st.lists(st.binary(max_size=300), max_size=8),
    chunks=st.lists(st.integers(0, 3), max_size=8),
    sizes=sizes,
    upgrades=st.lists(st.booleans(), min_size=1, max_size=8),
)
def test_sound_requests_become_their_events_in_order(bodies, chunks, sizes, upgrades):
    data = b""
    for number, body in enumerate(bodies):
        headers = ["Connection: upgrade", "Upgrade: a"] if upgrades[number % len(upgrades)] else []
        parts = chunks[number] if number < len(chunks) else 0
        if parts:
            size = max(1, len(body) // parts)
            pieces = [body[at : at + size] for at in range(0, len(body), size)]
            data += request("POST", "/collect", *headers, "Transfer-Encoding: chunked") + chunked(*pieces)
        else:
            data += post(body, *headers)
    wire = Wire(LIMITS)
    client = wire.connect().send(*cut(data, sizes))
    assert [body_of(json.loads(line)) for line in wire.lines] == bodies
    assert client.statuses == [200] * len(bodies)
