"""The operators' pages are shown on a door of their own, or else to nobody who came through a proxy."""

import pytest

from ingest.config.settings import load
from ingest.event import PAGES
from ingest.wire.door import OFFICE, SPARE, house, street
from tests.stand_ins.wire import LOCAL, Wire, post, request

OPERATORS = ("/metrics", "/status")
TOLD_BY_PROXIES = [
    "Forwarded: for=203.0.113.7",
    "via: 1.1 edge",
    "X-Forwarded-For: 203.0.113.7",
    "X-FORWARDED-PROTO: https",
    "x-forwarded-anything:",
    "X-Real-IP: 203.0.113.7",
    "CF-Connecting-IP: 203.0.113.7",
    "CloudFront-Viewer-Address: 203.0.113.7:1",
    "True-Client-IP: 203.0.113.7",
]


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
def test_a_client_on_this_machine_sees_the_operators_pages(address, feed):
    client = Wire().connect((address, 1))
    feed(client, b"".join(request("GET", page) + request("HEAD", page) for page in OPERATORS))
    assert [answer.status for answer in client.answers(heads=[1, 3])] == [200] * 4


@pytest.mark.parametrize("address", ["203.0.113.9", "10.0.0.1", "128.0.0.1", "::2", "::ffff:10.0.0.1", ""])
def test_nobody_else_sees_them(address, feed):
    client = Wire().connect((address, 1))
    requests = [request(method, page, "Content-Length: 0") for page in OPERATORS for method in ("GET", "POST")]
    feed(client, b"".join(requests) + request("GET", "/health"))
    assert client.statuses == [404, 404, 404, 404, 200]


@pytest.mark.parametrize("header", TOLD_BY_PROXIES)
def test_nobody_sees_them_through_a_proxy_on_this_machine(header, feed):
    client = Wire().connect(LOCAL)
    feed(client, request("GET", "/metrics", header) + request("GET", "/status", header) + request("GET", "/metrics"))
    assert client.statuses == [404, 404, 200]


def test_http_1_0_is_what_nginx_forwards_by_default_and_sees_nothing(feed):
    client = Wire().connect(LOCAL)
    feed(client, request("GET", "/metrics", "Connection: keep-alive", version="1.0") + request("GET", "/metrics"))
    assert client.statuses == [404, 200]
    assert Wire().connect(LOCAL).send(request("GET", "/status", version="1.0")).statuses == [404]


@pytest.mark.parametrize("door", [house(load({})), OFFICE], ids=["house", "office"])
def test_no_script_may_read_them(door, feed):
    client = Wire().connect(LOCAL, door)
    feed(client, b"".join(request("GET", page, "Origin: https://a.example") for page in OPERATORS))
    for answer in client.answers():
        assert answer.status == 200
        assert not [name for name in answer.headers if name.startswith("Access-Control")]


def test_with_a_door_of_their_own_they_are_on_no_other(feed):
    client = Wire().connect(LOCAL, street(load({})))
    feed(client, b"".join(request("GET", page) for page in OPERATORS) + post(b"1"))
    assert client.statuses == [404, 404, 200]


def test_that_door_has_all_pages_for_anybody_and_takes_no_event(feed):
    wire = Wire()
    wire.connect().send(post(b"1"), post(b"2"))  # a layout is known
    client = wire.connect(("203.0.113.9", 1), OFFICE)
    feed(
        client,
        post(b"event")
        + request("GET", "/collect?event")
        + b"".join(request("GET", route.path.decode(), "Via: 1.1 x") for route in PAGES)
        + post(b"event", "Origin: https://a.example")
        + request("GET", "/status", version="1.0"),
    )
    assert client.statuses == [404, 404, 200, 200, 200, 200, 404, 200]
    assert wire.events == ["1", "2"]


def test_operators_are_let_in_when_max_connections_are_open():
    wire = Wire({"MAX_CONNECTIONS": "2"})
    held = [wire.connect() for _ in range(2)]
    assert wire.connect().statuses == [503]
    operators = [wire.connect(LOCAL, OFFICE).send(request("GET", "/metrics")) for _ in range(SPARE)]
    assert {status for client in operators for status in client.statuses} == {200}
    assert wire.connect(LOCAL, OFFICE).statuses == [503], "they are bounded too"
    assert not held[0].closed
