"""A realistic crowd of clients, and a count at the end: every acknowledged event is stored once, no refused one is.

    locust -f loadtest/locustfile.py --headless --host http://127.0.0.1:8080 --scenario spike --store ./data/objects

Mix: POST events with a log-normal size (200 B to 8 KB, median 500 B), GET pixels, preflights, a new connection now and
then, several user agents, cookies, X-Forwarded-For chains, and a few hostile requests (unknown paths and methods,
bodies that are too large, bytes that are not HTTP, heads that never end). Every event has an id never used twice.

Scenarios, over --seconds with --rate requests a second as the base: `steady`; `ramp` (from 1 x to 10 x); `spike` (10 x
for 10 s in the middle); `outage` (steady; scenario.py takes the store away in the middle); `soak` (steady, for long).

With --store, a folder in which the objects appear (the directory store's, or s3_sink.py --keep), it waits after the
load until all that was acknowledged is there, or --settle seconds, and reports. Exit code 1 if an event is lost or
doubled, or one that was refused is stored. An event whose answer never came may be stored or not: it is counted apart.
"""

import contextlib
import json
import math
import random
import re
import socket
import time
import uuid
from collections import Counter
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

from isal import igzip
from locust import FastHttpUser, LoadTestShape, constant_throughput, events, task

PER_USER = 5.0
"""Requests a second of one user; the number of users makes the rate."""
SPIKE_SECONDS = 10
RUN = uuid.uuid4().hex[:8]
EVENT_ID = re.compile(rb"ev-[0-9a-f]{8}-\d+")
AGENTS = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.6",
    "Mozilla/5.0 (Linux; Android 15; SM-S931N) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0",
    "Mozilla/5.0 (X11; Linux x86_64; rv:144.0) Gecko/20100101 Firefox/144.0",
    "okhttp/4.12.0",
    "",
]


class Ledger:
    """Which ids were acknowledged, refused, or left without an answer (also because the scenario ended)."""

    def __init__(self):
        self.numbers = count()
        self.acknowledged = set()
        self.refused = set()
        self.unknown = set()

    def new_id(self):
        event_id = f"ev-{RUN}-{next(self.numbers)}"
        self.unknown.add(event_id)
        return event_id

    def settle(self, event_id, status):
        """Note the answer; status 0: there was none."""
        self.unknown.discard(event_id)
        if 200 <= status < 300:
            self.acknowledged.add(event_id)
        elif status:
            self.refused.add(event_id)
        else:
            self.unknown.add(event_id)


ledger = Ledger()


class Visitor(FastHttpUser):
    wait_time = constant_throughput(PER_USER)
    connection_timeout = 10
    network_timeout = 10

    def on_start(self):
        self.address = (
            f"{random.randint(11, 99)}.{random.randint(0, 255)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
        )
        self.fields = {
            "User-Agent": random.choice(AGENTS),
            "Cookie": f"_ga=GA1.2.{random.getrandbits(31)}; session={uuid.uuid4().hex}",
            "Origin": "https://shop.example.com",
            "X-Forwarded-For": random.choice(
                [self.address, f"{self.address}, 10.0.3.7", f"203.0.113.9, {self.address}"]
            ),
        }

    def send(self, method, name, path, body=None, expected=(200,), event_id=None, **fields):
        with self.client.request(
            method, path, data=body, headers=self.fields | fields, name=name, catch_response=True
        ) as answer:
            if event_id:
                ledger.settle(event_id, answer.status_code)
            if answer.status_code in expected:
                answer.success()
            else:
                answer.failure(f"status {answer.status_code}")

    @task(70)
    def post_event(self, **fields):
        event_id = ledger.new_id()
        size = min(8192, max(200, int(random.lognormvariate(math.log(500), 0.9))))
        body = {"id": event_id, "event": "page_view", "title": "가을 세일", "pad": ""}
        body["pad"] = "x" * max(0, size - len(json.dumps(body)))
        self.send("POST", "POST event", "/collect", json.dumps(body), event_id=event_id, **fields)

    @task(20)
    def get_pixel(self):
        event_id = ledger.new_id()
        self.send("GET", "GET pixel", f"/collect?id={event_id}&e=view&n={random.randint(0, 99)}", event_id=event_id)

    @task(4)
    def preflight(self):
        self.send(
            "OPTIONS",
            "preflight",
            "/collect",
            expected=(204,),
            **{"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"},
        )

    @task(4)
    def post_on_a_new_connection(self):
        self.post_event(Connection="close")

    @task(1)
    def too_large(self):
        event_id = ledger.new_id()
        self.send(
            "POST", "hostile: 80 KB", "/collect", f'{{"id":"{event_id}","x":"{"y" * 80_000}"}}', (413, 0), event_id
        )

    @task(1)
    def unknown_route(self):
        method, path, status = random.choice(
            [("GET", "/wp-login.php", 404), ("PUT", "/collect", 405), ("POST", "/", 404)]
        )
        self.send(method, "hostile: route", path, None if method == "GET" else "{}", (status,))

    @task(1)
    def not_http(self):
        """Bytes that are no request, or a head that never ends: a 400, or silence, never a stored event."""
        target = urlsplit(self.host)
        event_id = ledger.new_id()
        attack = random.choice(
            [
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                b"POST /collect HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n"
                + event_id.encode(),
                f"GET /collect?id={event_id} HTTP/1.1\r\nHost: a\r\nX-Never-Ends: ".encode(),
            ]
        )
        started = time.perf_counter()
        problem = None
        ledger.settle(event_id, 400)
        try:
            with socket.create_connection((target.hostname, target.port), 5) as connection:
                connection.settimeout(0.2)
                connection.sendall(attack)
                with contextlib.suppress(TimeoutError, ConnectionResetError):
                    answer = connection.recv(200)
                    if answer and not answer.startswith(b"HTTP/1.1 4"):
                        problem = RuntimeError(f"unexpected answer {answer[:40]!r}")
        except OSError as error:
            problem = error
        events.request.fire(
            request_type="RAW",
            name="hostile: not HTTP",
            response_time=(time.perf_counter() - started) * 1000,
            response_length=0,
            exception=problem,
            context={},
        )


class Scenario(LoadTestShape):
    """The number of users over time; a user is PER_USER requests a second."""

    def tick(self):
        options = self.runner.environment.parsed_options
        now, length = self.get_run_time(), options.seconds
        if now >= length:
            return None
        factor = 1.0
        if options.scenario == "ramp":
            factor = 1 + 9 * now / length
        elif options.scenario == "spike" and length / 2 - SPIKE_SECONDS / 2 <= now < length / 2 + SPIKE_SECONDS / 2:
            factor = 10.0
        users = max(1, round(options.rate * factor / PER_USER))
        return users, max(100, users)


@events.init_command_line_parser.add_listener
def _(parser):
    parser.add_argument("--scenario", choices=["steady", "ramp", "spike", "outage", "soak"], default="steady")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=100, help="requests a second, at the base of the scenario")
    parser.add_argument("--store", default="", help="the folder in which the objects appear")
    parser.add_argument(
        "--settle", type=float, default=60, help="seconds until all that was acknowledged must be stored"
    )
    parser.add_argument("--counts", default="", help="write what was counted to this file")


@events.quitting.add_listener
def _(environment):
    """After the last answer: read the store back and count."""
    options = environment.parsed_options
    counts = {"acknowledged": len(ledger.acknowledged), "requests_failed": environment.stats.total.num_failures}
    if options.store:
        counts |= read_back(Path(options.store), options.settle)
    print(json.dumps(counts))
    if options.counts:
        Path(options.counts).write_text(json.dumps(counts))
    wrong = counts.get("lost", 0) + counts.get("doubled", 0) + counts.get("refused_and_stored", 0)
    environment.process_exit_code = 1 if wrong else 0


def read_back(store, settle):
    deadline = time.monotonic() + settle
    stored, seen = Counter(), set()
    while True:
        for path in sorted(store.rglob("*.jsonl.gz")):
            if path not in seen and "raw_dlq" not in path.parts:
                seen.add(path)
                with igzip.open(path, "rb") as lines:
                    for line in lines:
                        stored.update({found.decode() for found in EVENT_ID.findall(line)})
        if ledger.acknowledged <= stored.keys() or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    ours = {event_id: times for event_id, times in stored.items() if event_id.startswith(f"ev-{RUN}-")}
    return {
        "stored": sum(ours.values()),
        "lost": len(ledger.acknowledged - ours.keys()),
        "doubled": sum(times > 1 for times in ours.values()),
        "refused_and_stored": len(ledger.refused & ours.keys()),
        "unanswered": len(ledger.unknown),
        "unanswered_and_stored": len(ledger.unknown & ours.keys()),
        "objects": len(seen),
    }
