"""Behind the fronts that people have, every event that was sent is stored, once, and the client's address is told."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.process.client import Load, Sent
from tests.process.collector import bare_environment
from tests.process.fronts import KEPT, POOL, free_port, haproxy, nginx
from tests.process.ledger import audit, read_directory

EVENTS = 300
SECONDS = 10
RATE = 3000
FRONTS = {
    "nginx as it comes (HTTP/1.0)": ({}, nginx, {}),
    "nginx with a pool of 8": ({}, nginx, {"upstream": POOL, "location": KEPT}),
    "haproxy with PROXY v1": ({"PROXY_PROTOCOL": "true"}, haproxy, {"server": "send-proxy"}),
    "haproxy with PROXY v2": ({"PROXY_PROTOCOL": "true"}, haproxy, {}),
    "haproxy with PROXY v2 a request": ({"PROXY_PROTOCOL": "true"}, haproxy, {"mode": "http"}),
}


def through(collectors, tmp_path, name, **how):
    """Sends through the front, and returns what was sent, what the store has, and the collector."""
    env, front, options = FRONTS[name]
    collector = collectors({"ADMIN_ADDR": f"127.0.0.1:{free_port()}", "FLUSH_INTERVAL": "1s", **env}).start()
    sent = Sent()
    with front(tmp_path / "front", collector.port, **options) as before:
        load = Load(sent, before.port, **how).start()
        load.join(180)
    collector.stop()
    objects = list(read_directory(collector.folder / "data/objects"))
    return sent, objects, collector


@pytest.mark.parametrize("name", FRONTS)
def test_what_was_sent_is_stored_once(collectors, tmp_path, name):
    sent, objects, collector = through(collectors, tmp_path, name, count=EVENTS, connections=8)
    found = audit(sent, objects).assert_kept()
    assert (found.sent, found.acknowledged, found.stored) == (EVENTS, EVENTS, EVENTS)
    told = {json.loads(line)["ip"] for stored in objects for line in stored.lines()}
    assert told >= {"203.0.0.1"}, "the client's header passes, because the peer that was told is trusted"
    assert collector.said("unhandled") == []


@pytest.mark.proof
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FRONTS)
def test_at_3000_a_second_too(collectors, tmp_path, figure, name):
    sent, objects, _ = through(collectors, tmp_path, name, count=RATE * SECONDS, rate=RATE, connections=32)
    found = audit(sent, objects).assert_kept()
    figure(name, found)
    assert (found.sent, found.acknowledged, found.stored) == (RATE * SECONDS,) * 3


def test_the_health_check_of_a_server_behind_proxies_says_so(collectors):
    env = {"PROXY_PROTOCOL": "true"}
    collector = collectors(env).start()
    env["HTTP_ADDR"] = f"127.0.0.1:{collector.port}"
    for trusted in ("127.0.0.0/8", "10.0.0.0/8"):
        ours = bare_environment({**env, "TRUSTED_PROXIES": trusted})
        asked = subprocess.run([sys.executable, "-m", "ingest", "health"], env=ours, timeout=20, check=False)
        assert asked.returncode == (trusted != "127.0.0.0/8")
