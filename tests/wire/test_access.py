"""Refusals of access on the wire: told before a body is asked for, with the headers that a client needs."""

from __future__ import annotations

import pytest

from ingest.telemetry import Reason
from tests.stand_ins.wire import Wire, counted, post, request

KEYS = {"WRITE_KEYS": "web:s3cret,app:other"}
ORIGIN = "Origin: https://shop.example"
EXPECT = "Expect: 100-continue"


def test_an_event_needs_a_key_and_its_name_is_stored(feed):
    wire = Wire(KEYS)
    client = wire.connect()
    feed(
        client,
        post(b"1", "X-Write-Key: s3cret")
        + post(b"2", "Authorization: Bearer other")
        + post(b"3", target="/collect?k=s3cret&a=1")
        + post(b"", target="/collect?k=s3cret&a=1")
        + request("GET", "/collect?a=1&writeKey=%6fther", "X-Other: 1")
        + post(b'{"api_key":"other"}'),
    )
    assert client.statuses == [200] * 6
    assert [(record["key"], record["body"], record.get("query")) for record in wire.records] == [
        ("web", "1", None),
        ("app", "2", None),
        ("web", "3", "a=1"),
        ("web", "a=1", None),
        ("app", "a=1", None),
        ("app", '{"api_key":"other"}', None),
    ]
    assert "s3cret" not in b"".join(wire.lines).decode()


def test_without_a_known_key_it_is_401_and_the_connection_lives(feed):
    wire = Wire(KEYS)
    client = wire.connect()
    bad = [
        post(b"1", ORIGIN),
        post(b'{"token":"s3cre"}', ORIGIN),
        post(b"1", "X-Write-Key: web", ORIGIN),
        request("GET", "/collect?k=x", ORIGIN),
    ]
    feed(client, b"".join(bad) + post(b"2", "X-Write-Key: s3cret"))
    *refused, taken = client.answers()
    assert [answer.status for answer in refused] == [401] * 4
    assert {answer.headers["WWW-Authenticate"] for answer in refused} == {"Bearer"}
    assert {answer.headers["Access-Control-Allow-Origin"] for answer in refused} == {"https://shop.example"}
    assert taken.status == 200
    assert wire.events == ["2"]
    assert wire.metrics.rejected[Reason.BAD_KEY] == 4
    assert counted(wire)["4xx"] == 4


def test_what_is_no_event_needs_no_key(feed):
    wire = Wire(KEYS | {"RATE_LIMIT": "1/s", "CORS_ORIGINS": "none"})
    client = wire.connect()
    pages = [
        request("OPTIONS", "/collect", ORIGIN, "Access-Control-Request-Method: POST"),
        request("GET", "/health", ORIGIN),
        request("HEAD", "/collect", ORIGIN),
    ]
    feed(client, b"".join(pages * 3))
    assert [answer.status for answer in client.answers(heads=(2, 5, 8))] == [204, 200, 200] * 3


@pytest.mark.parametrize(
    ("settings", "headers", "status"),
    [
        (KEYS, ("Authorization: Bearer x",), 200),
        (KEYS | {"CORS_ORIGINS": "none"}, (ORIGIN,), 403),
        ({"RATE_LIMIT": "1/m", "RATE_BURST": "1"}, (), 429),
    ],
)
def test_who_waits_for_continue_is_refused_without_it(settings, headers, status):
    """A key may still stand in the body, so that a body is asked for."""
    wire = Wire(settings)
    wire.connect().send(post(b"1"))
    client = wire.connect().send(request("POST", "/collect", "Content-Length: 18", EXPECT, *headers))
    if status == 200:
        assert client.statuses == [100]
        assert client.send(b'{"token":"s3cret"}').statuses == [100, 200]
    else:
        assert client.statuses == [status]
        assert client.answers()[0].headers["Connection"] == "close"


def test_a_page_of_an_origin_that_is_not_listed_may_not_send(feed):
    wire = Wire({"CORS_ORIGINS": "https://*.shop.example"})
    client = wire.connect()
    feed(
        client,
        post(b"1", "Origin: https://evil.example")
        + request("GET", "/collect?2", "Origin: null")
        + post(b"3", "Origin: https://www.shop.example")
        + post(b"4"),
    )
    evil, null, listed, program = client.answers()
    assert [answer.status for answer in (evil, null, listed, program)] == [403, 403, 200, 200]
    assert "Access-Control-Allow-Origin" not in evil.headers
    assert listed.headers["Access-Control-Allow-Origin"] == "https://www.shop.example"
    assert wire.events == ["3", "4"]
    assert wire.metrics.rejected[Reason.BAD_ORIGIN] == 2


def test_an_address_may_send_so_many_events_whatever_the_wall_clock_says(feed):
    wire = Wire({"RATE_LIMIT": "1/s", "RATE_BURST": "3", "IP_MODE": "none"}, peer=("10.0.0.1", 1))
    mine, others = "X-Forwarded-For: 203.0.113.7", "X-Forwarded-For: 203.0.113.8"
    client = wire.connect()
    feed(client, post(b"1", mine, ORIGIN) * 4)
    assert client.statuses == [200, 200, 200, 429]
    refused = client.answers()[-1]
    assert refused.headers["Retry-After"] == "1"
    assert refused.headers["Access-Control-Expose-Headers"] == "Retry-After"
    assert wire.connect().send(post(b"1", others)).statuses == [200]
    for leap in (-86_400, 3 * 86_400):
        wire.clock += leap
        assert wire.connect().send(post(b"1", mine)).statuses == [429]
    wire.pass_time(1.5)
    assert wire.connect().send(post(b"1", mine) * 2).statuses == [200, 429]
    wire.pass_time(10)
    assert len(wire.tick.access.rate) == 0
    assert wire.metrics.rejected[Reason.RATE_LIMITED] == 4
    assert {record["ip"] for record in wire.records} == {""}


def test_the_short_way_counts_and_refuses_as_the_long_way_does():
    settings = {"RATE_LIMIT": "1/s", "RATE_BURST": "9", "CORS_ORIGINS": "https://a.example"}
    outcomes = []
    for learns in (True, False):
        wire = Wire(settings, learns=learns)
        lesson = post(b"1", "Origin: https://a.example")
        wire.connect().send(lesson)
        client = wire.connect()
        for _ in range(7):
            client.send(lesson)
        client.send(lesson.replace(b"a.example", b"b.example"), lesson, lesson)
        outcomes.append((client.statuses, len(wire.lines), counted(wire), wire.layouts.match(lesson) is not None))
    (statuses, *rest, learned), (long_statuses, *long_rest, unlearned) = outcomes
    assert (learned, unlearned) == (True, False)
    assert statuses == [200] * 7 + [403, 200, 429]
    assert (statuses, rest) == (long_statuses, long_rest)


def test_connections_of_one_peer_are_bounded_and_those_of_trusted_peers_are_not():
    wire = Wire({"MAX_CONNECTIONS_PER_IP": "2"}, peer=("2001:db8:0:1::1", 1))
    first, second = wire.connect(), wire.connect(("2001:db8:0:1::2", 1))
    third = wire.connect()
    assert third.statuses == [503]
    assert third.sees_end
    assert wire.connect(("2001:db8:0:2::1", 1)).send(post()).statuses == [200]
    assert all(wire.connect(("10.0.0.1", 1)).send(post()).statuses == [200] for _ in range(5))
    first.transport.vanish()
    wire.loop.settle()
    assert wire.connect().send(post()).statuses == [200]
    assert wire.connect().statuses == [503]
    assert second.send(post()).statuses == [200]
    assert wire.metrics.connections_refused == 2
