"""A log that nobody reads, or that has no descriptor, stops no event (D1, D2)."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.process.client import Sent, send
from tests.process.collector import Metrics, bare_environment
from tests.process.ledger import audit, read_directory

GENEROUS = 60.0
EVENTS = 500
"""Each is a batch, or nearly so, with several lines of the log: more than the pipe and the queue of lines take."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read().decode()


def until_it_listens(port):
    end = time.monotonic() + GENEROUS
    while True:
        try:
            assert ask(port, "/health") == "ok\n"
        except OSError:
            assert time.monotonic() < end, "it does not listen"
            time.sleep(0.02)
        else:
            return


def kept(sent, folder):
    """Count what is in the store, and what the drain has left to the next start because the disk is slow."""
    places = (folder / "data/objects", folder / "data/dlq/0")
    return audit(sent, [one for place in places for one in read_directory(place)]).assert_kept().stored


@pytest.fixture
def start(tmp_path):
    started = []

    def start(program=(), **how):
        port = free_port()
        env = {"HTTP_ADDR": f"127.0.0.1:{port}", "BATCH_SIZE": "1", "LOG_LEVEL": "debug", "DRAIN_TIMEOUT": "20s"}
        command = [*program, sys.executable, "-m", "ingest"]
        process = subprocess.Popen(command, cwd=tmp_path, env=bare_environment(env), **how)
        started.append(process)
        until_it_listens(port)
        return process, port

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_d1_a_log_that_nobody_reads_stops_neither_events_nor_health_nor_the_drain(start, tmp_path):
    reader, writer = os.pipe()
    process, port = start(stderr=writer)
    os.close(writer)
    sent = Sent()
    send(sent, port, EVENTS)
    assert sent.acknowledged == EVENTS
    end = time.monotonic() + GENEROUS
    while Metrics(ask(port, "/metrics")).value("estat_log_lines_dropped_total") == 0:
        assert time.monotonic() < end, "no line was dropped"
        time.sleep(1.1)
    assert ask(port, "/health") == "ok\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(GENEROUS) == 0
    assert kept(sent, tmp_path) == EVENTS
    os.close(reader)


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_d2_a_standard_descriptor_that_was_closed_is_no_place_for_a_log_line(start, tmp_path, closed):
    process, port = start(("sh", "-c", f'exec "$@" {closed}', "sh"))
    links = {number: os.readlink(f"/proc/{process.pid}/fd/{number}") for number in (0, 1, 2)}
    assert links[2] == "/dev/null"
    assert ("<&-" not in closed) or set(links.values()) == {"/dev/null"}
    sent = Sent()
    send(sent, port, 300)
    assert sent.acknowledged == 300
    process.send_signal(signal.SIGTERM)
    assert process.wait(GENEROUS) == 0
    assert kept(sent, tmp_path) == 300


def test_the_last_lines_of_a_process_are_in_its_log(start, tmp_path):
    log = tmp_path / "log"
    with log.open("wb") as out:
        process, _ = start(stderr=out)
    process.send_signal(signal.SIGTERM)
    assert process.wait(GENEROUS) == 0
    assert json.loads(log.read_text().splitlines()[-1])["event"] == "stopped"
