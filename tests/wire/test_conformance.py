"""Requests as tables: what each is answered with, what is stored, whether its connection lives, however it is cut.

Behind each request that keeps its connection stands a probe. If one byte of a request were taken for the next, or one
of the next for it, the probe would not be answered as it is.
"""

from __future__ import annotations

import base64
import gzip
import itertools
import zlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.stand_ins.wire import Client, Wire, chunked, counted, pieces_of, post, request

if TYPE_CHECKING:
    from collections.abc import Mapping

BATCH = "/collect/batch"
NDJSON = "Content-Type: application/x-ndjson"
CHUNKED = "Transfer-Encoding: chunked"
GZIP = "Content-Encoding: gzip"
EXPECT = "Expect: 100-continue"
KEYS = {"WRITE_KEYS": "web:a-known-secret,app:another-secret"}
KEY = "X-Write-Key: a-known-secret"
LISTED = {"CORS_ORIGINS": "https://shop.example"}
SMUGGLED = post(b"smuggled", KEY)
PROBE = request("GET", "/health")


def raw(text: str, body: bytes = b"") -> bytes:
    """Return a request written as it goes over the wire, line feeds as CR LF."""
    return text.replace("\n", "\r\n").encode("latin-1") + body


def told(client: Client, heads: tuple[int, ...] = ()) -> list[int]:
    return [answer.status for answer in client.answers(heads)]


def bodies(wire: Wire) -> list[Any]:
    return [base64.b64decode(record["body_b64"]) if "body_b64" in record else record["body"] for record in wire.records]


# Each method on each path, in each version.

METHODS = ("GET", "HEAD", "POST", "OPTIONS", "PUT")
ANSWERS = {
    "/collect": (200, 200, 200, 204, 405),
    BATCH: (405, 405, 200, 204, 405),
    "/health": (200, 200, 405, 405, 405),
    "/ready": (200, 200, 405, 405, 405),
    "/metrics": (404,) * 5,
    "/status": (404,) * 5,
    "/nowhere": (404,) * 5,
    "/": (404,) * 5,
}


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_each_method_on_each_path_has_its_answer(version, feed):
    wire = Wire()
    client = wire.connect()
    asked = [(path, method) for path in ANSWERS for method in METHODS]
    keep = ["Connection: keep-alive"] if version == "1.0" else []
    data = b"".join(
        post(b"[1]", *keep, target=path, version=version)
        if method == "POST"
        else request(method, path, *keep, version=version)
        for path, method in asked
    )
    feed(client, data + PROBE)
    heads = tuple(at for at, (_, method) in enumerate(asked) if method == "HEAD")
    assert told(client, heads) == [*itertools.chain(*ANSWERS.values()), 200]
    assert wire.events == ["", "[1]", "1"]
    assert not client.sees_end
    if version == "1.0":
        assert {answer.headers["Connection"] for answer in client.answers(heads)[:-1]} == {"keep-alive"}
        for path, method in asked:
            client = wire.connect()
            feed(client, request(method, path, version="1.0", host=None) + PROBE)
            (answer,) = client.answers((0,) if method == "HEAD" else ())
            assert answer.headers["Connection"] == "close"
            assert client.closed


# Each coding in each framing, for one event and for many, with a key and without.

TEXT = SMUGGLED + b'\n{"a":"\xe2\x80\xa8"}\r\n--boundary--\r\n0\r\n\r\n'
CODINGS = {
    None: lambda data: data,
    "identity": lambda data: data,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "x-gzip": lambda data: gzip.compress(data[:1], mtime=0) + gzip.compress(data[1:], mtime=0),
    "Deflate": zlib.compress,
    "deflate": lambda data: zlib.compress(data, wbits=-15),
}
FRAMINGS = {
    "declared": lambda head, body: post(body, *head[1:], target=head[0]),
    "chunked": lambda head, body: request("POST", head[0], *head[1:], CHUNKED) + chunked(body),
    "byte chunks": lambda head, body: (
        request("POST", head[0], *head[1:], CHUNKED)
        + chunked(*(body[at : at + 1] for at in range(len(body))), extension=';a="b"', trailers=["X-Write-Key: x"])
    ),
    "expected": lambda head, body: post(body, *head[1:], EXPECT, target=head[0]),
    "upgraded": lambda head, body: post(body, *head[1:], "Connection: upgrade", "Upgrade: a", target=head[0]),
}
CONTENTS = {
    "one": (("/collect",), TEXT, [TEXT.decode()]),
    "lines": (
        (BATCH, NDJSON),
        b"1\n" + TEXT,
        ["1", *(t for t in TEXT.decode().replace("\r\n", "\n").split("\n") if t)],
    ),
    "array": (
        (BATCH, "Content-Type: a/b"),
        b'[{"a":"GET / HTTP/1.1\\r\\n"},[2]]',
        ['{"a":"GET / HTTP/1.1\\r\\n"}', "[2]"],
    ),
}


@pytest.mark.parametrize("settings", [{}, KEYS], ids=["open", "with keys"])
def test_each_coding_in_each_framing_says_the_same(settings, feed):
    wire = Wire(settings)
    client = wire.connect()
    data, expected = b"", []
    for coding, framing, (head, content, items) in itertools.product(CODINGS, FRAMINGS.values(), CONTENTS.values()):
        more = [KEY] if settings else []
        more += [f"Content-Encoding: {coding}"] if coding else []
        data += framing((*head, *more), CODINGS[coding](content))
        expected += items
    feed(client, data + PROBE)
    count = len(CODINGS) * len(FRAMINGS) * len(CONTENTS)
    assert told(client) == [200] * (count + 1)
    assert bodies(wire) == expected
    assert {record.get("key") for record in wire.records} == {"web" if settings else None}
    assert wire.metrics.rejected.total() == 0


# What is refused, or only looks as if it should be.


class Case(NamedTuple):
    """A request, its final status, and what it stores; `closes`: nothing behind it is read."""

    data: bytes
    status: int
    stored: tuple[str | bytes, ...] = ()
    closes: bool = False
    settings: Mapping[str, str] = MappingProxyType({})


def refused(data: bytes, status: int, **settings: str) -> Case:
    return Case(data, status, closes=True, settings=settings)


def head_with(*lines: str, body: bytes = b"") -> bytes:
    return request("POST", "/collect", *lines) + body


LARGE = {"MAX_BODY_SIZE": "300", "MAX_BATCH_BODY_SIZE": "400"}
PACKED_SMUGGLER = gzip.compress(SMUGGLED, mtime=0)

FRAMING = {
    # RFC 9112 §6.3: framing that can be read in two ways is refused, and nothing behind it is read.
    **{
        f"both lengths, {coding}": refused(
            head_with(CHUNKED, f"Content-Length: {len(SMUGGLED)}", f"Content-Encoding: {coding}") + chunked(b"x"), 400
        )
        for coding in ("identity", "gzip", "br")
    },
    "both lengths, the other way": refused(head_with("Content-Length: 5", CHUNKED) + chunked(b"x"), 400),
    **{
        f"Content-Length {value!r}": refused(head_with(f"Content-Length: {value}", body=SMUGGLED), 400)
        for value in ("+1", "-1", "0x1", "1,1", "1 1", "", "1e1", "1.0", "9" * 19, "9" * 5000, "\x0b1", "1_0")
    },
    "two lengths that agree": refused(head_with("Content-Length: 1", "Content-Length: 1", body=b"x"), 400),
    "two lengths that differ": refused(head_with("Content-Length: 0", "content-length: 99", body=SMUGGLED), 400),
    **{
        f"Transfer-Encoding {value!r}": refused(head_with(f"Transfer-Encoding: {value}") + chunked(b"x"), status)
        for value, status in {
            "gzip": 501,
            "identity": 501,
            "xchunked": 501,
            "chunked;q=1": 501,
            '"chunked"': 501,
            "gzip, chunked": 501,
            "chunked, chunked": 400,
            "chunked, identity": 400,
            "\x0bchunked": 400,
            "chunked\x00": 400,
            "": 400,
        }.items()
    },
    "Transfer-Encoding twice": refused(head_with(CHUNKED, CHUNKED) + chunked(b"x"), 400),
    "Transfer-Encoding twice, one unknown": refused(head_with("Transfer-Encoding: x", CHUNKED) + chunked(b"x"), 501),
    "Transfer-Encoding in HTTP/1.0": refused(request("POST", "/collect", CHUNKED, version="1.0") + chunked(b"x"), 400),
    "a space before the colon": refused(head_with("Content-Length : 1", body=b"x"), 400),
    "a space before the colon of a coding": refused(head_with("Transfer-Encoding : chunked") + chunked(b"x"), 400),
    "a tab in a name": refused(head_with("Transfer-\tEncoding: chunked") + chunked(b"x"), 400),
    "a folded line": refused(head_with("X: a\r\n b", body=b""), 400),
    "a folded Transfer-Encoding": refused(head_with("Transfer-Encoding:\r\n chunked") + chunked(b"x"), 400),
    "a folded first line": refused(raw("POST /collect HTTP/1.1\n Host: a\nHost: b\n\n"), 400),
    "a bare CR in a value": refused(head_with("X: a\rContent-Length: 5", body=b""), 400),
    "a NUL in a value": refused(head_with("X: a\0b"), 400),
    "a NUL in a name": refused(head_with("X\0: a"), 400),
    "a NUL in the target": refused(request("GET", "/collect?\0"), 400),
    "a NUL before it": refused(b"\0" + post(b"1"), 400),
    "a chunk size with a sign": refused(head_with(CHUNKED, body=b"+1\r\nx\r\n0\r\n\r\n"), 400),
    "a chunk size in C's form": refused(head_with(CHUNKED, body=b"0x1\r\nx\r\n0\r\n\r\n"), 400),
    "a chunk size with a space before": refused(head_with(CHUNKED, body=b" 1\r\nx\r\n0\r\n\r\n"), 400),
    "a chunk size of nothing": refused(head_with(CHUNKED, body=b"\r\nx\r\n0\r\n\r\n"), 400),
    "a chunk size that is too large": refused(head_with(CHUNKED, body=b"1" + b"0" * 16 + b"\r\nx\r\n0\r\n\r\n"), 400),
    "a chunk that is longer than it said": refused(head_with(CHUNKED, body=b"1\r\nxy\r\n0\r\n\r\n"), 400),
    "a chunk that ends in a bare LF": refused(head_with(CHUNKED, body=b"1\r\nx\n0\r\n\r\n"), 400),
    "a chunk size that ends in a bare LF": refused(head_with(CHUNKED, body=b"1\nx\r\n0\r\n\r\n"), 400),
    "a chunk extension with a bare LF": refused(head_with(CHUNKED, body=b"1;a\nb\r\nx\r\n0\r\n\r\n"), 400),
    "a chunk extension with a NUL": refused(head_with(CHUNKED, body=b"1;a\0\r\nx\r\n0\r\n\r\n"), 400),
    "a chunk extension of 1,000 bytes": Case(
        head_with(CHUNKED, body=b"1;" + b"a" * 1000 + b"\r\nx\r\n0\r\n\r\n"), 200, ("x",)
    ),
    "a trailer without a name": refused(head_with(CHUNKED, body=b"1\r\nx\r\n0\r\n: a\r\n\r\n"), 400),
    "a length in a trailer": refused(head_with(CHUNKED) + chunked(b"x", trailers=["Content-Length: 99"]), 400),
    "a coding in a trailer": refused(head_with(CHUNKED) + chunked(b"x", trailers=[CHUNKED]), 400),
    "more framing in a trailer": Case(
        head_with(CHUNKED) + chunked(b"x", trailers=["Host: x", "Connection: close", EXPECT, "Upgrade: a"]), 200, ("x",)
    ),
    "an upgrade in a trailer": Case(
        head_with(CHUNKED) + chunked(b"x", trailers=["Connection: upgrade, close", "Upgrade: a"]), 200, ("x",)
    ),
    "another Connection in a trailer": Case(
        head_with(CHUNKED) + chunked(b"x", trailers=["Proxy-Connection: close", "Keep-Alive: max=0"]), 200, ("x",)
    ),
}
TARGETS = {
    "absolute": Case(request("GET", "http://c.example/collect?a"), 200, ("a",)),
    "absolute, in capitals, with a port": Case(request("GET", "HTTP://C.EXAMPLE:80/collect?a"), 200, ("a",)),
    "absolute, another host": Case(post(b"1", target="http://other.example/collect"), 200, ("1",)),
    "absolute, many": Case(post(b"[1]", target=f"http://c.example{BATCH}"), 200, ("1",)),
    "absolute, no path": Case(request("GET", "http://c.example"), 404),
    "absolute, with a query that is a path": Case(request("GET", "http://c.example?/collect"), 404),
    "a fragment": Case(request("GET", "/collect?a#b"), 200, ("a",)),
    "a query that has one": Case(request("GET", "/collect?a?b=/collect/batch"), 200, ("a?b=/collect/batch",)),
    **{
        path: Case(post(b"[1]", target=path), 404)
        for path in (
            "//collect/batch",
            "//collect",
            "/collect//batch",
            "/collect%2fbatch",
            "/collect/batch/",
            "/collect/",
            "/Collect",
            "/%63ollect",
            "/collect;a=b",
            "/./collect",
            "/x/../collect",
            "/collect\\batch",
            "/collect%00",
            "/collect%3fa",
        )
    },
    "no slash": refused(request("POST", "collect"), 400),
    "a backslash": refused(request("POST", "\\collect"), 400),
    "a space": refused(request("GET", "/collect ?a"), 400),
    "a tab": refused(request("GET", "/collect?\ta"), 400),
    "an authority": refused(request("CONNECT", "c.example:80"), 405),
    "an asterisk": Case(request("OPTIONS", "*"), 204),
}
CODED = {
    "gzip twice in a line": Case(post(PACKED_SMUGGLER, "Content-Encoding: gzip, gzip"), 415),
    "gzip in two lines": Case(post(PACKED_SMUGGLER, GZIP, "content-encoding: gzip"), 415),
    "gzip and identity": Case(post(PACKED_SMUGGLER, "Content-Encoding: gzip, identity"), 415),
    "gzip and nothing": Case(post(PACKED_SMUGGLER, "Content-Encoding: gzip,"), 415),
    "gzip with a parameter": Case(post(PACKED_SMUGGLER, "Content-Encoding: gzip;q=1"), 415),
    "chunked as a content coding": Case(post(chunked(b"x"), "Content-Encoding: chunked"), 415),
    "br": Case(post(SMUGGLED, "Content-Encoding: br"), 415),
    "br, many": Case(post(SMUGGLED, "Content-Encoding: br", target=BATCH), 415),
    "br, chunked": Case(head_with("Content-Encoding: br", CHUNKED) + chunked(SMUGGLED), 415),
    "a request that is gzip inside": Case(post(PACKED_SMUGGLER, GZIP), 200, (SMUGGLED.decode(),)),
    "gzip that nobody told of": Case(post(PACKED_SMUGGLER), 200, (PACKED_SMUGGLER,)),
    "gzip of gzip": Case(post(gzip.compress(PACKED_SMUGGLER, mtime=0), GZIP), 200, (PACKED_SMUGGLER,)),
    "no gzip": Case(post(SMUGGLED, GZIP), 400),
    "no gzip, many": Case(post(b"[1]", GZIP, target=BATCH), 400),
    "gzip and something behind": Case(post(PACKED_SMUGGLER + PROBE, GZIP), 400),
    "gzip cut off": Case(post(PACKED_SMUGGLER[:-1], GZIP), 400),
    "gzip of nothing": Case(post(gzip.compress(b"", mtime=0), GZIP), 200, ("",)),
    "nothing, as gzip": Case(post(b"", GZIP), 400),
    "nothing, as gzip in HTTP/1.0": refused(post(b"", GZIP, version="1.0"), 400),
    "a coding in a trailer": Case(
        head_with(CHUNKED) + chunked(PACKED_SMUGGLER, trailers=[GZIP]), 200, (PACKED_SMUGGLER,)
    ),
    "a type in a trailer": Case(request("POST", BATCH, CHUNKED) + chunked(b"1\n2\n", trailers=[NDJSON]), 400),
    "a coding of a pixel": Case(request("GET", "/collect?a", GZIP), 200, ("a",)),
    "a coding of a page": Case(request("GET", "/health", GZIP, "Content-Length: 3") + b"abc", 200),
    "too large": refused(post(b"x" * 301), 413, **LARGE),
    "too large in chunks": refused(head_with(CHUNKED) + chunked(b"x" * 200, b"x" * 101), 413, **LARGE),
    "too large, many": refused(post(b"x" * 401, target=BATCH), 413, **LARGE),
    "too large decoded": Case(post(gzip.compress(bytes(301), mtime=0), GZIP), 413, settings=LARGE),
    "too large decoded, many": Case(
        post(gzip.compress(b"\n" * 401, mtime=0), GZIP, NDJSON, target=BATCH), 413, settings=LARGE
    ),
    "too large before it is decoded": refused(post(b"\x1f\x8b" * 151, GZIP), 413, **LARGE),
    "too large a query": refused(request("GET", "/collect?" + "q" * 301), 413, **LARGE),
    "too large, to nobody": refused(post(b"x" * 301, target="/nowhere"), 413, **LARGE),
}
WAITING = {
    "too large": refused(head_with(EXPECT, "Content-Length: 301"), 413, **LARGE),
    "too large, many": refused(request("POST", BATCH, EXPECT, "Content-Length: 401"), 413, **LARGE),
    "an unknown coding": refused(head_with(EXPECT, "Content-Encoding: br", "Content-Length: 9"), 415),
    "an unknown coding, many": refused(
        request("POST", BATCH, EXPECT, "Content-Encoding: zstd", "Content-Length: 9"), 415
    ),
    "no key, many": refused(request("POST", BATCH, EXPECT, "Content-Length: 9"), 401, **KEYS),
    "another origin": refused(head_with(EXPECT, "Origin: https://x.example", "Content-Length: 9"), 403, **LISTED),
    "no such path": refused(request("POST", "/nowhere", EXPECT, "Content-Length: 9"), 404),
    "no such method": refused(request("PUT", "/collect", EXPECT, "Content-Length: 9"), 405),
    "a coding of the transfer": refused(head_with(EXPECT, "Transfer-Encoding: gzip, chunked"), 501),
    "no Host": refused(request("POST", "/collect", EXPECT, "Content-Length: 9", host=None), 400),
}
ASKED = {
    "no key": Case(post(SMUGGLED), 401, settings=KEYS),
    "no key, in chunks": Case(head_with(CHUNKED) + chunked(SMUGGLED, SMUGGLED), 401, settings=KEYS),
    "no key, many": Case(post(SMUGGLED, target=BATCH), 401, settings=KEYS),
    "no key, as gzip": Case(post(PACKED_SMUGGLER, GZIP), 401, settings=KEYS),
    "no key, a bomb of many": Case(post(gzip.compress(bytes(1 << 20)), GZIP, target=BATCH), 401, settings=KEYS),
    "a key in a trailer": Case(head_with(CHUNKED) + chunked(b"1", trailers=[KEY]), 401, settings=KEYS),
    "a key in a trailer, many": Case(
        request("POST", BATCH, CHUNKED) + chunked(b"[1]", trailers=[KEY]), 401, settings=KEYS
    ),
    "a key in the body of many": Case(post(b'[{"writeKey":"a-known-secret"}]', target=BATCH), 401, settings=KEYS),
    "a key in a body below the first level": Case(post(b'{"a":{"token":"a-known-secret"}}'), 401, settings=KEYS),
    "a key in a fragment": Case(request("GET", "/collect?a#k=a-known-secret"), 401, settings=KEYS),
    "a key with white space": Case(post(b"1", "X-Write-Key: a-known-secret x"), 401, settings=KEYS),
    "a key twice": Case(post(b"1", KEY, KEY), 401, settings=KEYS),
    "a key in a cookie": Case(post(b"1", "Cookie: writeKey=a-known-secret"), 401, settings=KEYS),
    "a key in a packed body": Case(
        post(gzip.compress(b'{"token":"a-known-secret"}', mtime=0), GZIP),
        200,
        ('{"token":"a-known-secret"}',),
        settings=KEYS,
    ),
    "a wrong key in the head, a known one in the query": Case(
        post(b"1", "X-Write-Key: wrong", target="/collect?k=a-known-secret"), 200, ("1",), settings=KEYS
    ),
    "a known key in the head, wrong ones elsewhere": Case(
        post(b'{"writeKey":"wrong"}', KEY, "Authorization: Bearer wrong", target="/collect?writeKey=wrong&k=x"),
        200,
        ('{"writeKey":"wrong"}',),
        settings=KEYS,
    ),
    "another origin": Case(post(SMUGGLED, "Origin: https://x.example"), 403, settings=LISTED),
    "another origin, many": Case(post(SMUGGLED, "Origin: null", target=BATCH), 403, settings=LISTED),
    "a method there is not, with a body": Case(
        request("PUT", "/collect", f"Content-Length: {len(SMUGGLED)}") + SMUGGLED, 405
    ),
    "a path there is not, with a body": Case(request("POST", "/x", CHUNKED) + chunked(SMUGGLED), 404),
    "a page, with a body": Case(request("GET", "/health", f"Content-Length: {len(SMUGGLED)}") + SMUGGLED, 200),
    "a pixel, with a body": Case(request("GET", "/collect?a", CHUNKED) + chunked(SMUGGLED), 200, ("a",)),
}
TABLES = {"framing": FRAMING, "target": TARGETS, "coding": CODED, "Expect, then": WAITING, "access": ASKED}


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{table}: {name}") for table, rows in TABLES.items() for name, case in rows.items()]
)
def test_each_request_has_its_status_and_no_byte_of_it_is_taken_for_another(case, feed):
    wire = Wire(dict(case.settings))
    client = wire.connect()
    feed(client, case.data + PROBE + SMUGGLED)
    smuggled_too = [] if case.closes else ["smuggled"]
    assert told(client) == ([case.status] if case.closes else [case.status, 200, 200])
    assert bodies(wire) == [*case.stored, *smuggled_too]
    assert client.sees_end is case.closes
    assert "HTTP/1.1 100" not in client.transport.sent.decode("latin-1") or case.status == 200
    assert wire.loop.failures == []
    assert wire.budget.requests == 0
    assert counted(wire)["4xx"] + counted(wire)["5xx"] == (case.status >= 400)


ROWS = [case for rows in TABLES.values() for case in rows.values()]


def test_behind_a_proxy_each_has_the_same_status():
    for number, case in enumerate(ROWS):
        wire = Wire(dict(case.settings), proxied=True)
        client = wire.connect(("10.0.0.9", 4711))
        data = b"PROXY TCP4 203.0.113.7 10.0.0.1 51234 80\r\n" + case.data + PROBE
        client.send(*([data] if number % 2 else pieces_of(data, number)))
        assert told(client) == [case.status] + [200] * (not case.closes), case
        assert bodies(wire) == list(case.stored), case
