"""The sample of refused requests in the log: one line a reason a minute, with all that were refused, and no secret."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from ingest.telemetry import Reason
from ingest.wire.refused import EVERY, SHOWN
from tests.stand_ins.wire import Wire, chunked, post, request

SECRET = "s3cret"
KEYS = {"WRITE_KEYS": f"web:{SECRET},long:{SECRET}er"}
PROXY = ("10.0.0.7", 40000)
UPGRADE = ("Connection: upgrade", "Upgrade: h2c")
CHUNKED = "Transfer-Encoding: chunked"
TOO_LARGE = (413, "POST", "/collect")


def lines(wire: Wire, sent: bytes, peer: tuple[str, int] = PROXY) -> list[dict[str, Any]]:
    """What the log says of this, for as long as there is something to say."""
    with capture_logs() as told:
        wire.connect(peer).send(sent)
        wire.loop.settle()
        wire.pass_time(2 * EVERY)
    assert SECRET not in repr(told)
    return [
        {name: value for name, value in line.items() if name not in ("event", "log_level")}
        for line in told
        if line["event"] == "request_refused"
    ]


@pytest.mark.parametrize(
    ("sent", "settings", "told"),
    [
        (request("GET", "/nothing?k=s3cret"), {}, (404, "GET", "/nothing")),
        (request("DELETE", "/collect"), {}, (405, "DELETE", "/collect")),
        (request("HEAD", "/nothing"), {}, (404, "HEAD", "/nothing")),
        (post(b"x" * 17), {"MAX_BODY_SIZE": "16"}, (413, "POST", "/collect")),
        (post(b"x", f"X-Long: {'x' * 400}"), {"MAX_HEADER_BYTES": "256"}, (431, "POST", "/collect")),
        (post(b"x", "Content-Encoding: br"), {}, (415, "POST", "/collect")),
        (post(b"x", "X-Write-Key: other"), KEYS, (401, "POST", "/collect")),
        (post(b"x", "Origin: https://a.example"), {"CORS_ORIGINS": "https://b.example"}, (403, "POST", "/collect")),
        (post(b"x"), {"BODY_FORMAT": "json"}, (400, "POST", "/collect")),
        (request("POST", "/collect", "Transfer-Encoding: zip"), {}, (501, "POST", "/collect")),
        (request("PUT", "/x", version="2.0"), {}, (400, "PUT", "/x")),
        (post(b"x", *UPGRADE, target="/nothing"), {}, (404, "POST", "/nothing")),
        (request("POST", "/nothing?q", *UPGRADE, CHUNKED) + chunked(b"x"), {}, (404, "POST", "/nothing")),
        (request("POST", "/collect", *UPGRADE, CHUNKED) + b"no size\r\n", {}, (400, "POST", "/collect")),
        (request("POST", "/collect", *UPGRADE, CHUNKED) + chunked(b"x" * 17), {"MAX_BODY_SIZE": "16"}, TOO_LARGE),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", {}, (400, None, None)),
        (b"GET /s3cret HTTP/1.1\r\nHost: a\r\nNo colon\r\n\r\n", KEYS, (400, None, None)),
    ],
)
def test_a_refusal_is_told_with_status_method_and_path(
    sent: bytes, settings: dict[str, str], told: tuple[int, str | None, str | None]
) -> None:
    (line,) = lines(Wire(settings), sent)
    assert (line["status"], line.get("method"), line.get("path")) == told
    assert line["reason"]
    assert line["refused"] == 1


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/a/b?writeKey=s3cret", "/a/b"),
        ("/a#s3cret", "/a"),
        ("/a/b%3Fk=s3cret", "/a/…"),
        ("/a/b;k=s3cret/c", "/a/…"),
        ("/a/s3%63ret", "/a/…"),
        ("/a/s3cret/b", "/a/***/b"),
        ("/a/s3creter/b", "/a/***/b"),
        ("http://user:s3cret@a.example/b", "/b"),
        ("http://a.example?s3cret", ""),
        ("/a/\x7f\x1b", "/a/…"),
        ("/" + "x" * SHOWN, "/…"),
        ("/a/" + "x" * (SHOWN - 3), "/a/" + "x" * (SHOWN - 3)),
    ],
)
def test_a_path_is_told_without_query_password_or_key_and_cut_where_it_is_not_plain(target: str, path: str) -> None:
    sent = b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target.encode("latin-1")
    (line,) = lines(Wire(KEYS), sent)
    assert line.get("path") == (None if "\x7f" in target else path)


@pytest.mark.parametrize(
    ("headers", "peer", "told"),
    [
        (("X-Request-Id: 4f-1",), PROXY, "4f-1"),
        (("X-Amzn-Trace-Id: Root=1-67891233-abcdef;Self=1",), PROXY, "Root=1-67891233-abcdef;Self=1"),
        (("X-Amzn-Trace-Id: Root=1-6", "x-request-id: 4f-1"), PROXY, "4f-1"),
        (("X-Request-Id: 4f-1",), ("203.0.113.9", 40000), None),
        ((f"X-Request-Id: {'f' * 129}",), PROXY, "…"),
        (('X-Request-Id: 4"f', ), PROXY, "…"),
        (("X-Request-Id: a-s3cret",), PROXY, "a-***"),
        ((), PROXY, None),
    ],
)  # fmt: skip
def test_the_id_of_a_request_is_a_trusted_proxys(
    headers: tuple[str, ...], peer: tuple[str, int], told: str | None
) -> None:
    (line,) = lines(Wire(KEYS), request("GET", "/nothing", *headers), peer)
    assert line.get("request_id") == told


def test_a_flood_has_one_line_a_reason_a_minute_and_each_refusal_is_in_one() -> None:
    wire = Wire()
    client = wire.connect(PROXY)
    with capture_logs() as told:
        for second in range(150):
            client.send(request("GET", f"/{second}") + request("DELETE", "/collect"))
            wire.loop.settle()
            wire.pass_time(1)
        assert [(line["status"], line["refused"]) for line in told] == [
            (404, 1), (405, 1), (404, 59), (405, 59), (404, 60), (405, 60),
        ]  # fmt: skip
        assert [line["path"] for line in told if line["status"] == 404] == ["/0", "/1", "/60"]
        wire.pass_time(EVERY)
    assert sum(line["refused"] for line in told) == wire.metrics.rejected[Reason.OTHER] == 300
    assert len(told) == 8


def test_what_is_untold_is_told_at_the_end() -> None:
    wire = Wire()
    with capture_logs() as told:
        wire.connect(PROXY).send(3 * request("GET", "/nothing"))
        wire.loop.settle()
        wire.tick.abort()
    assert [line["refused"] for line in told] == [1, 2]


def test_each_event_of_a_batch_that_is_refused_counts() -> None:
    wire = Wire({"MAX_BODY_SIZE": "16"})
    items = b"1\n%b\n2\n%b\n" % (b"x" * 17, b"x" * 18)
    told = lines(wire, post(items, "Content-Type: application/x-ndjson", target="/collect/batch"))
    assert [(line["status"], line["path"], line["refused"]) for line in told] == [
        (413, "/collect/batch", 1),
        (413, "/collect/batch", 1),
    ]


def test_want_of_room_is_no_sample_because_the_story_tells_it() -> None:
    wire = Wire()
    wire.refuse = True
    assert lines(wire, post(b"1") + post(b"2", "Expect: 100-continue")) == []
