"""Several workers behind one address: one that ends is followed by another, and nothing of it is lost."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.process.client import Sent, send
from tests.process.collector import SERVE, bare_environment
from tests.process.ledger import audit, read_directory
from tests.process.test_doors import ask

TWO = {"WORKERS": "2"}


def pids_of(collector, workers=2):
    """The processes of the workers, in order, once each place has one that serves."""
    deadline = time.monotonic() + 30
    while True:
        lines = collector.logs()
        ended = {line["pid"] for line in lines if line.get("event") == "worker_ended"}
        serving = {
            line["worker"]: line["pid"]
            for line in lines
            if line.get("event") == "worker_serves" and line["pid"] not in ended
        }
        if len(serving) == workers:
            return [serving[number] for number in sorted(serving)]
        assert time.monotonic() < deadline, collector.tail()
        time.sleep(0.02)


def stored(collector):
    return read_directory(collector.folder / "data/objects")


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(what, seconds=30):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=30)


QUESTION = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def test_workers_share_an_address_and_a_signal_drains_them_all(collectors):
    sent = Sent()
    collector = collectors(TWO).start()
    first, second = pids_of(collector)
    send(sent, collector.port, 500, connections=32)
    collector.stop()
    assert is_gone(first)
    assert is_gone(second)
    assert audit(sent, stored(collector)).assert_kept().stored == 500
    taken = {line["worker"]: line["accepted"] for line in collector.said("stopped")}
    assert sum(taken.values()) == 500
    assert min(taken.values()) > 0, "each has connections"
    assert [line["signal"] for line in collector.said("signal")].count("SIGTERM") == 3
    (end,) = collector.said("supervised")
    assert end["code"] == 0


def test_a_worker_that_is_killed_is_followed_by_another_on_the_same_queue(collectors):
    sent = Sent()
    collector = collectors({**TWO, "FLUSH_INTERVAL": "60s"}).start()
    first, second = pids_of(collector)
    send(sent, collector.port, 300, connections=16)
    os.kill(first, signal.SIGSTOP)  # who comes to its queue now waits there
    with ExitStack() as opened:
        waiting = [opened.enter_context(connect(collector.port)) for _ in range(16)]
        for connection in waiting:
            connection.sendall(QUESTION)
        os.kill(first, signal.SIGKILL)
        answers = [connection.recv(1 << 16).split(b"\r\n")[0] for connection in waiting]
    # One that was accepted by the killed one before is closed; `SIGSTOP` came first.
    assert answers == [b"HTTP/1.1 200 OK"] * 16
    assert pids_of(collector)[1] == second
    send(sent, collector.port, 300, connections=16)
    collector.stop()
    (ended,) = [line for line in collector.said("worker_ended") if line["pid"] == first]
    assert ended["signal"] == "SIGKILL"
    assert audit(sent, stored(collector)).assert_kept().stored == 600


def test_workers_drain_when_their_supervisor_is_killed(collectors):
    sent = Sent()
    collector = collectors(TWO).start()
    workers = pids_of(collector)
    send(sent, collector.port, 200, connections=16)
    collector.kill()
    wait_for(lambda: all(map(is_gone, workers)))
    assert len(collector.said("supervisor_gone")) == 2
    assert audit(sent, stored(collector)).assert_kept().stored == 200


def test_the_supervisor_is_small_and_a_terminal_reaches_it_alone(collectors):
    collector = collectors(TWO, command=SERVE, measured=False).start()
    workers = pids_of(collector)
    assert collector.rss_bytes(peak=True) <= 14 << 20
    assert [os.getpgid(pid) for pid in workers] == workers
    os.kill(collector.pid, signal.SIGINT)
    assert collector.wait(30) == 0
    assert [line["signal"] for line in collector.said("signal") if "worker" in line] == ["SIGTERM"] * 2


@pytest.mark.parametrize(
    ("env", "line"),
    [
        ({"WORKERS": "none"}, r"WORKERS: accepted a whole number from 1 to 64, or auto, got 'none'"),
        ({"WORKERS": "2", "BATCH_SIZE": "0"}, r"BATCH_SIZE: accepted a whole number .*, got '0'"),
        ({"WORKERS": "2", "HTTP_ADDR": "127.0.0.1:{taken}"}, r"HTTP_ADDR: cannot listen on .*: Address already in use"),
        ({"WORKERS": "2", "ADMIN_ADDR": "unix:/proc/x"}, r"ADMIN_ADDR: cannot listen on unix:/proc/x: .*"),
    ],
)
def test_what_an_operator_can_mend_is_said_once_and_exits_with_2(tmp_path, env, line):
    with socket.create_server(("127.0.0.1", 0)) as other:
        env = {name: value.format(taken=other.getsockname()[1]) for name, value in env.items()}
        run = subprocess.run(
            SERVE, cwd=tmp_path, env=bare_environment(env), capture_output=True, text=True, timeout=60, check=False
        )
    assert run.returncode == 2
    (said,) = run.stderr.splitlines()
    assert re.fullmatch(line, said)


def test_a_worker_that_cannot_use_its_disk_ends_the_supervisor_with_2(collectors):
    collector = collectors({**TWO, "DLQ_DIR": "/proc/none"}).spawn()
    assert collector.wait(30) == 2
    assert "DLQ_DIR: " in collector.stderr.read_text()


def test_the_socket_of_operators_is_shared_and_goes_with_the_supervisor(collectors, tmp_path):
    path = tmp_path / "admin.sock"
    collector = collectors({**TWO, "ADMIN_ADDR": f"unix:{path}"}).start()
    first, _ = pids_of(collector)
    os.kill(first, signal.SIGKILL)
    collector.wait_said("worker_ended")
    assert ask(path, "/ready") == (200, b"ok\n")
    pids_of(collector)
    assert json.loads(ask(path, "/status")[1])["is_well"]
    collector.stop()
    assert not os.path.lexists(path)


def test_a_word_of_the_supervisor_is_nobody_elses(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "ingest", "worker", "1"],
        cwd=tmp_path,
        env=bare_environment({}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 1


def test_one_worker_is_the_process_itself(collectors):
    collector = collectors({"WORKERS": "1"}).start()
    assert not collector.said("supervising")
    assert "worker" not in collector.said("listening")[0]
    collector.stop()
