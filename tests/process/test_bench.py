"""The bench itself: the ledger sees what it is there to see, and the proxy breaks what it says it breaks."""

from __future__ import annotations

import gzip
import http.client
import json
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.faults.proxy import FORBIDDEN, HEALTHY, SLOW_DOWN, Fault, FaultProxy
from tests.process.client import Sent
from tests.process.ledger import StoredObject, audit

PUTS = [b"first", b"second"]


def sent_and_answered(count, status=200):
    sent = Sent()
    for _ in range(count):
        sent.settle(sent.new(), status)
    return sent


def stored(sent, numbers, *, hour_off=0, body=None, sequence=1):
    now = int(time.time())
    shown = datetime.fromtimestamp(now + 3600 * hour_off, UTC)
    lines = [json.dumps({"ts": now, "body": sent.body(n) if body is None else body}) + "\n" for n in numbers]
    key = f"raw/dt={shown:%Y-%m-%d}/hr={shown:%H}/{now}_host-0123456789abcdef_{sequence:010d}.jsonl.gz"
    return StoredObject(key, gzip.compress("".join(lines).encode()))


def test_the_ledger_is_content_with_what_is_right():
    sent = sent_and_answered(5)
    unknown = sent.new()
    assert audit(sent, [stored(sent, range(5))]).assert_kept().stored == 5
    assert audit(sent, [stored(sent, [*range(5), unknown])]).assert_kept().stored == 6


@pytest.mark.parametrize(
    ("what", "objects"),
    [
        ("lost", lambda sent: [stored(sent, [0, 1, 2, 3])]),
        ("doubled", lambda sent: [stored(sent, range(5)), stored(sent, [2], sequence=2)]),
        ("doubled", lambda sent: [stored(sent, [0, 1, 2, 3, 4, 4])]),
        ("wrong_hour", lambda sent: [stored(sent, range(5), hour_off=1)]),
        ("altered", lambda sent: [stored(sent, [0, 1, 2, 3]), stored(sent, [0], body=sent.body(4) + "!", sequence=2)]),
        ("foreign", lambda sent: [stored(sent, range(5)), stored(sent, [0], body="id=1", sequence=2)]),
    ],
)
def test_the_ledger_finds(what, objects):
    sent = sent_and_answered(5)
    found = audit(sent, objects(sent))
    assert getattr(found, what) > 0
    with pytest.raises(AssertionError):
        found.assert_kept()


def test_the_ledger_finds_what_was_refused_and_stored_all_the_same():
    sent = sent_and_answered(3, status=503)
    found = audit(sent, [stored(sent, [1])])
    assert found.refused_stored == 1
    with pytest.raises(AssertionError):
        found.assert_kept()


def test_the_ledger_finds_an_object_that_is_not_whole():
    sent = sent_and_answered(5)
    whole = stored(sent, range(5))
    found = audit(sent, [StoredObject(whole.key, whole.data[:-9])])
    assert found.broken
    assert found.lost == 5


class Upstream(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_args):
        pass


@pytest.fixture
def upstream():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    server.daemon_threads = True
    server.bodies = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def between(upstream):
    with FaultProxy(upstream.server_address) as proxy:
        yield proxy


def put(proxy, body=b"x" * 10_000, timeout=5.0):
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=timeout)
    try:
        connection.request("PUT", "/bucket/raw/key", body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_a_healthy_proxy_changes_nothing(between, upstream):
    assert [put(between, body) for body in PUTS] == [(200, b"ok"), (200, b"ok")]
    assert upstream.bodies == PUTS


@pytest.mark.parametrize(("fault", "status"), [(SLOW_DOWN, 503), (FORBIDDEN, 403)])
def test_the_proxy_answers_by_itself(between, upstream, fault, status):
    between.fault = fault
    answered, body = put(between)
    assert answered == status
    assert fault.answer[1].encode() in body
    assert upstream.bodies == []


@pytest.mark.parametrize(
    ("fault", "arrives"), [(Fault(reset_request_after=3000), False), (Fault(reset_answer_after=10), True)]
)
def test_the_proxy_resets(between, upstream, fault, arrives):
    between.fault = fault
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        put(between)
    assert bool(upstream.bodies) is arrives
    between.fault = HEALTHY
    assert put(between)[0] == 200


def test_a_blackhole_swallows_and_stays_silent(between, upstream):
    between.fault = Fault(blackhole=True)
    with pytest.raises(TimeoutError):
        put(between, timeout=0.3)
    assert upstream.bodies == []


@pytest.mark.parametrize("fault", [Fault(latency=0.3), Fault(answer_delay=0.3), Fault(bandwidth=33_000)])
def test_the_proxy_takes_its_time(between, upstream, fault):
    between.fault = fault
    began = time.monotonic()
    assert put(between)[0] == 200
    assert time.monotonic() - began >= 0.29
    assert len(upstream.bodies) == 1


def test_what_is_answered_late_is_stored_though_the_client_has_gone(between, upstream):
    between.fault = Fault(answer_delay=5.0)
    with pytest.raises(TimeoutError):
        put(between, timeout=0.3)
    assert len(upstream.bodies) == 1


def test_a_refusing_proxy_keeps_its_port(between):
    port = between.port
    between.refuse()
    with pytest.raises(ConnectionRefusedError):
        put(between)
    between.listen()
    assert between.port == port
    assert put(between)[0] == 200


def test_hooks_run_before_the_store_and_between_store_and_answer(between, upstream):
    seen = []
    between.on_request = lambda _: seen.append(("request", len(upstream.bodies)))
    between.on_answer = lambda _: seen.append(("answer", len(upstream.bodies))) or False
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        put(between)
    assert seen == [("request", 0), ("answer", 1)]
