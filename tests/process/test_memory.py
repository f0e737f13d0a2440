"""Memory that a burst took is given back when its events are stored (C12)."""

from __future__ import annotations

import http.client

import pytest

MIB = 1024 * 1024
ROUNDS = 3
BODY = 60_000
EVENTS = 1_080
"""Their lines are more than 60 MiB, and less than half of MAX_BUFFER_BYTES, at which a batch is sealed."""


def fill(port):
    """Send events of 60 KiB, one after the other."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    body = b"x" * BODY
    try:
        for _ in range(EVENTS):
            connection.request("POST", "/collect", body)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
    finally:
        connection.close()


@pytest.mark.parametrize("durability", [pytest.param("memory", marks=pytest.mark.proof), "journal"])
def test_c12_rounds_at_max_buffer_bytes_leave_no_memory_behind(collectors, durability):
    env = {"DURABILITY": durability, "BATCH_SIZE": "1000000", "BATCH_BYTES": "1GiB", "FLUSH_INTERVAL": "5s"}
    env["MAX_BUFFER_BYTES"] = "130MiB"
    collector = collectors(env, measured=False).start()
    most = collector.rss_bytes() + 24 * MIB
    for number in range(ROUNDS):
        fill(collector.port)
        collector.wait_delivered(60)
        what = f"round {number}: {collector.rss_bytes() // MIB} MiB of {most // MIB} with nothing buffered"
        collector.wait_until(lambda _: collector.rss_bytes() < most, 20, what)
    assert collector.rss_bytes(peak=True) > most, "the rounds never took what they should give back"
