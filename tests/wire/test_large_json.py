"""Large bodies that are looked into, for a key or because they have to be JSON: in steps, as those in a coding are."""

from __future__ import annotations

import gzip
import json

import pytest

from ingest.wire.limits import SHARE_SECONDS
from tests.stand_ins.wire import LOCAL, Wire, post, request

KEYS = {"WRITE_KEYS": "web:s3cret"}
SDKS = {"SDK_ROUTES": "segment,posthog"}
JSON = {"BODY_FORMAT": "json"}
LARGE = {"MAX_BODY_SIZE": "1000000"}
MANY = b"[]," * 30_000
NO_KEY = b'{"a":[' + MANY + b"0]}"
KEY_LAST = b'{"a":[' + MANY + b'0],"writeKey":"s3cret"}'
HELD_BACK = 6


def slow(wire: Wire, per_look: float) -> None:
    """Have time pass with each look at the stopwatch."""

    def look() -> float:
        wire.stopwatch += per_look
        return wire.stopwatch

    wire.tick._stopwatch = look


@pytest.mark.parametrize(
    ("settings", "path", "body", "status"),
    [
        pytest.param(SDKS | KEYS, "/v1/batch", NO_KEY, 401, id="no key"),
        pytest.param(SDKS | KEYS, "/v1/batch", NO_KEY[:-2] + b'"\\ud83d"]}', 401, id="no key, and to be mended"),
        pytest.param(SDKS | KEYS, "/v1/batch", KEY_LAST, 200, id="a key at the end"),
        pytest.param(SDKS | KEYS, "/v1/batch", KEY_LAST[:-1], 401, id="a key in what is no JSON"),
        pytest.param(SDKS | KEYS, "/batch/", b"[" + MANY + b"0]", 401, id="no key in the first of an array"),
        pytest.param(SDKS | KEYS, "/batch/", b'[{"properties":%b},%b0]' % (KEY_LAST, MANY), 200, id="in properties"),
        pytest.param(SDKS | JSON, "/v1/batch", b"[" + MANY + b'"\\ud83d"]', 200, id="JSON, and to be mended"),
        pytest.param(SDKS | JSON, "/v1/batch", b"[" + MANY, 400, id="no JSON"),
        pytest.param(LARGE | JSON, "/collect", b"[" + MANY + b"[" * 64 + b"]" * 65, 400, id="too deep"),
        pytest.param(LARGE | JSON, "/collect?q=1", b"[" + MANY + b"1" * 101 + b"]", 400, id="a number too long"),
        pytest.param(LARGE | JSON | KEYS, "/collect", KEY_LAST, 200, id="a key in JSON"),
        pytest.param(LARGE | JSON | KEYS, "/collect", NO_KEY, 401, id="no key in JSON"),
    ],
)
def test_a_turn_looks_into_large_bodies_no_longer_than_it_may_whoever_holds_back_their_last_bytes(
    settings, path, body, status
):
    wire = Wire(settings)
    slow(wire, SHARE_SECONDS / 8)
    plain = post(body, target=path)
    packed = post(gzip.compress(body), "Content-Encoding: gzip", target=path)
    clients = [wire.connect((f"203.0.113.{number}", 1)) for number in range(HELD_BACK)]
    prober = wire.connect(LOCAL)
    requests = [plain, packed] * (len(clients) // 2)
    for client, sent in zip(clients, requests, strict=True):
        client.send(sent[:-1])
        assert not client.transport.sent
    for client, sent in zip(clients, requests, strict=True):
        client.transport.receive(sent[-1:])
    prober.transport.receive(request("GET", "/health"))
    wire.loop.turn()
    wire.loop.turn()
    assert prober.statuses == [200]
    assert not all(client.transport.sent for client in clients), "not all of them in one turn"
    wire.loop.settle()
    assert [client.statuses for client in clients] == [[status]] * HELD_BACK
    assert wire.budget.requests == 0
    stored = [json.loads(body)] if "BODY_FORMAT" in settings and status == 200 else [body.decode()]
    expected = stored * HELD_BACK if status == 200 else []
    assert json.dumps(wire.events).replace("\\ud83d", "\\ufffd") == json.dumps(expected).replace("\\ud83d", "\\ufffd")
    assert {record.get("key") for record in wire.records} <= ({"web"} if "WRITE_KEYS" in settings else {None})


def test_what_is_made_of_a_large_body_counts_into_the_buffer_as_it_comes_and_goes_with_it():
    wire = Wire(LARGE | JSON)
    slow(wire, SHARE_SECONDS)
    client = wire.connect()
    body = b"[" + MANY + b"0]"
    client.transport.receive(post(body))
    held = []
    while not client.transport.sent:
        wire.loop.turn()
        held.append(wire.budget.whole)
    assert held[:-1] == sorted(held[:-1])
    assert max(held) > 2.8 * len(body), "what came, what is read, and what has been made of it"
    assert client.statuses == [200]
    assert held[-1] == 0


@pytest.mark.parametrize("size", [100, 9000])
@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_small_and_large_bodies_are_told_alike(size, coding, feed):
    wire = Wire(SDKS | KEYS | JSON)
    padding = b'"' + b"x" * size + b'"'
    bodies = (
        b'{"a":%b,"writeKey":"s3cret"}',
        b'{"a":%b,\r\n"b":"\\ud83d","token":"s3cret"}',
        b'{"a":%b,"writeKey":"wrong"}',
        b'{"a":%b,"writeKey":"s3cret","deep":' + b"[" * 64 + b"]" * 64 + b"}",
        b'{"a":%b,"writeKey":"s3cret","n":' + b"1" * 101 + b"}",
        b'{"a":%b,"writeKey":"s3cret",}',
        b'[%b,{"writeKey":"s3cret"}]',
    )
    wanted = [200, 200, 401, 401, 400, 401, 401]
    client = wire.connect()
    told = [body % padding for body in bodies]
    packed = [(gzip.compress(body), "Content-Encoding: gzip") if coding == "gzip" else (body,) for body in told]
    feed(client, b"".join(post(*one, target="/v1/batch") for one in packed))
    assert client.statuses == wanted
    assert [record["body"].get("b") for record in wire.records] == [None, "\ufffd"]
    assert {record["key"] for record in wire.records} == {"web"}
