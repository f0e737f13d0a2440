"""Several workers behind one address: one that ends is followed by another, and nothing of it is lost."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from limits import NoLimitError, open_limit

from tests.process.client import Fate, Load, Sent, send
from tests.process.collector import SERVE, bare_environment
from tests.process.ledger import audit, read_directory
from tests.process.test_doors import ask

TWO = {"WORKERS": "2"}
ROOMY = {"DLQ_MAX_SIZE_BYTES": "16MiB", "DISK_RESERVE": "0", "LOG_LEVEL": "error"}


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
        ({"WORKERS": "2", "HTTP_ADDR": "a..b:8080"}, r"HTTP_ADDR: cannot listen on a\.\.b:8080: .*"),
        ({"WORKERS": "2", "ADMIN_ADDR": "a" * 64 + ".b:80"}, r"ADMIN_ADDR: cannot listen on a{64}\.b:80: .*"),
        (
            {"ADMIN_ADDR": "127.0.0.1:0", "HTTP_ADDR": "a..b:8080", **ROOMY},
            r"HTTP_ADDR: cannot listen on a\.\.b:8080: .*",
        ),
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


@pytest.mark.parametrize("limit", [66, 70])
def test_too_few_descriptors_for_all_workers_are_said_once_and_exit_with_2(tmp_path, limit):
    run = subprocess.run(
        ["bash", "-c", f'ulimit -n {limit}; exec "$@"', "bash", *SERVE],
        cwd=tmp_path, env=bare_environment({"WORKERS": "64", "HTTP_ADDR": "127.0.0.1:0"}, measured=False),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 2
    (said,) = run.stderr.splitlines()
    assert re.fullmatch(r"(HTTP_ADDR: cannot listen on .*|WORKERS: cannot supervise 64): Too many open files", said)


FEWER = """
from ingest import supervisor
plan = supervisor.Plan(2, 0, 0, "s", "info", False, None, 0, 1)
supervisor.receive(lambda to: supervisor.send(to, plan, [1]))
"""


def test_sockets_that_do_not_arrive_end_the_supervisor_and_not_its_patience(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", FEWER],
        cwd=tmp_path, env=bare_environment({}), capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (2, "WORKERS: cannot supervise 2: Too many open files\n")


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


class Beacons:
    """A client that sends each event on a connection of its own, in threads, and counts what was refused or reset."""

    def __init__(self, sent, port, threads=4):
        self.sent = sent
        self.port = port
        self.failed = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self):
        while not self._stopping.is_set():
            with self._lock:
                number = self.sent.new()
            request = self.sent.request(number).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
            try:
                with connect(self.port) as connection:
                    connection.sendall(request)
                    answer = b""
                    while data := connection.recv(4096):
                        answer += data
                status = int(answer.split(b" ", 2)[1])
            except (OSError, IndexError, ValueError) as error:
                self.failed.append(repr(error))
                continue
            with self._lock:
                self.sent.settle(number, status)
            time.sleep(0.002)

    def stop(self):
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()


def books(metrics):
    """Both sides of the books: what was taken, and where it is."""
    value = metrics.value
    taken = value("estat_events_accepted_total") + value("estat_events_recovered_total")
    gone = value("estat_events_stored_total") + value("estat_events_dropped_total")
    return taken, gone + value("estat_events_handed_on_total") + value("estat_events_pending")


def wait_balanced_and_stored(collector, at_least):
    """The merged page, once all that was accepted is stored and nothing waits; it balances all the way."""
    deadline = time.monotonic() + 60
    while True:
        metrics = collector.metrics()
        taken, left = books(metrics)
        assert taken == left, metrics.text
        assert metrics.value("estat_events_unaccounted") == 0
        accepted, stored_now = (metrics.value(f"estat_events_{name}_total") for name in ("accepted", "stored"))
        extra = metrics.value("estat_events_recovered_total") - metrics.value("estat_events_handed_on_total")
        if metrics.pending == 0 and not collector.left_on_disk() and stored_now >= at_least:
            return int(accepted), int(stored_now), int(extra)
        assert time.monotonic() < deadline, collector.tail()
        time.sleep(0.1)


def stopped_with_all_on_the_page(collector, sent):
    """Stops it once all is stored: the page had each event that was acknowledged, and those whose answer was lost."""
    accepted, stored_now, recovered_more = wait_balanced_and_stored(collector, sent.acknowledged)
    assert sent.acknowledged <= accepted <= len(sent)
    assert stored_now == accepted + recovered_more
    collector.stop()
    return accepted, recovered_more, audit(sent, stored(collector)).assert_kept()


def test_a_roll_under_load_refuses_and_resets_nobody(collectors, figure):
    kept, single = Sent(), Sent()
    collector = collectors({**TWO, "BATCH_SIZE": "500"}).start()
    before = pids_of(collector)
    load = Load(kept, collector.port, rate=1000, connections=8).start()
    beacons = Beacons(single, collector.port)
    silent = [connect(collector.port) for _ in range(8)]
    began = time.monotonic()
    os.kill(collector.pid, signal.SIGHUP)
    collector.wait_said("rolled", timeout=60)
    took = time.monotonic() - began
    load.stop()
    beacons.stop()
    for connection in silent:
        with connection:
            assert connection.recv(1) == b"", "closed without a word"
    assert set(before).isdisjoint(pids_of(collector))
    collector.stop()
    assert (kept.refused, kept.acknowledged) == (0, len(kept)), kept.statuses
    assert (beacons.failed, single.refused, single.acknowledged) == ([], 0, len(single))
    assert stored_ids(collector, kept) == stored_ids(collector, single) == (0, 0)
    figure(f"a roll of two under load, {took:.1f} s", f"{len(kept)} kept and {len(single)} alone, all acknowledged")


def stored_ids(collector, sent):
    """How many acknowledged events of this client are lost, and how many are doubled."""
    mark = f"&run={sent.run}&"
    copies = Counter()
    for found in stored(collector):
        for line in found.lines():
            body = json.loads(line)["body"]
            if mark in body[:40]:
                copies[int(body[3:12])] += 1
    lost = sum(1 for number in sent.numbers(Fate.ACKNOWLEDGED) if not copies[number])
    return lost, sum(1 for count in copies.values() if count > 1)


def test_a_kill_under_load_takes_nothing_out_of_the_figures_of_all(collectors, figure):
    sent = Sent()
    collector = collectors({**TWO, "BATCH_SIZE": "400", "FLUSH_INTERVAL": "300ms"}).start()
    load = Load(sent, collector.port, rate=3000, connections=16).start()
    for _ in range(3):
        ended = len(collector.said("worker_ended"))
        victim = pids_of(collector)[0]
        seen = sent.acknowledged
        wait_for(lambda seen=seen: sent.acknowledged > seen + 500)
        os.kill(victim, signal.SIGKILL)
        collector.wait_said("worker_ended", ended + 1)
    load.stop()
    pids_of(collector)
    accepted, recovered_more, found = stopped_with_all_on_the_page(collector, sent)
    figure(f"three kills: accepted {accepted} on the page, {recovered_more} more recovered than were handed on", found)


def test_workers_without_a_supervisor_leave_the_address_at_once(collectors):
    collector = collectors({**TWO, "DRAIN_DELAY": "20s"}).start()
    workers = pids_of(collector)
    collector.kill()
    wait_for(lambda: all(map(is_gone, workers)), seconds=10)
    successor = collectors({**TWO, "HTTP_ADDR": f"127.0.0.1:{collector.port}"}, name="successor").start()
    pids_of(successor)
    successor.stop()


def test_a_signal_to_stop_cuts_the_time_of_silent_clients(collectors):
    collector = collectors({**TWO, "DRAIN_DELAY": "20s"}).start()
    first, _ = pids_of(collector)
    with connect(collector.port), connect(collector.port), connect(collector.port), connect(collector.port):
        os.kill(collector.pid, signal.SIGHUP)
        wait_for(lambda: any(line.get("worker") == 0 and line["event"] == "drain" for line in collector.logs()))
        collector.terminate()
        wait_for(lambda: is_gone(first), seconds=10)


@pytest.mark.proof
@pytest.mark.parametrize("durability", ["journal", "fsync"])
def test_many_kills_under_load_take_nothing_out_of_the_figures_of_all(collectors, figure, rng, durability):
    sent = Sent()
    env = {"WORKERS": "3", "DURABILITY": durability, "BATCH_SIZE": "700", "FLUSH_INTERVAL": "400ms"}
    collector = collectors(env, measured=False).start()
    load = Load(sent, collector.port, rate=4000, connections=24, pipeline=4).start()
    for number in range(15):
        victim = rng.choice(pids_of(collector, 3))
        time.sleep(rng.uniform(0.05, 0.6))
        os.kill(victim, signal.SIGKILL)
        collector.wait_said("worker_ended", number + 1)
        metrics = collector.metrics()
        taken, left = books(metrics)
        assert taken == left, metrics.text
    load.stop()
    pids_of(collector, 3)
    accepted, recovered_more, found = stopped_with_all_on_the_page(collector, sent)
    figure(f"15 kills, {durability}: accepted {accepted} on the page, {recovered_more} more recovered", found)


@pytest.mark.proof
@pytest.mark.parametrize("durability", ["journal", "fsync"])
def test_many_rolls_under_load_refuse_and_reset_nobody(collectors, figure, durability):
    kept, single = Sent(), Sent()
    env = {"WORKERS": "3", "DURABILITY": durability, "BATCH_SIZE": "2000", "FLUSH_INTERVAL": "500ms"}
    collector = collectors(env, command=SERVE, measured=False).start()
    pids_of(collector, 3)
    load = Load(kept, collector.port, rate=1500, connections=24).start()
    beacons = Beacons(single, collector.port, threads=8)
    began = time.monotonic()
    for number in range(3):
        os.kill(collector.pid, signal.SIGHUP)
        collector.wait_said("rolled", number + 1, timeout=180)
    took = time.monotonic() - began
    load.stop()
    beacons.stop()
    accepted, _, _ = wait_balanced_and_stored(collector, 0)
    collector.stop()
    assert (kept.refused, kept.acknowledged) == (0, len(kept)), kept.statuses
    assert (beacons.failed, single.refused, single.acknowledged) == ([], 0, len(single))
    assert stored_ids(collector, kept) == stored_ids(collector, single) == (0, 0)
    assert accepted == len(kept) + len(single)
    told = f"{len(kept)} on kept connections, {len(single)} alone, all acknowledged; {accepted} accepted on the page"
    figure(f"3 rolls of 3 under load, {durability}, {took:.0f} s", told)


@pytest.mark.proof
def test_a_worker_that_stands_for_half_a_minute_is_followed_and_its_clients_served(collectors, figure):
    collector = collectors(TWO, command=SERVE, measured=False).start()
    first, second = pids_of(collector)
    time.sleep(12)  # it is steady, so that the next one is started at once
    os.kill(first, signal.SIGSTOP)
    began = time.monotonic()
    with ExitStack() as opened:
        waiting = [opened.enter_context(connect(collector.port)) for _ in range(16)]
        for connection in waiting:
            connection.settimeout(60)
            connection.sendall(QUESTION)
        answers = [connection.recv(1 << 16).split(b"\r\n")[0] for connection in waiting]
    took = time.monotonic() - began
    assert answers == [b"HTTP/1.1 200 OK"] * 16
    assert 25 < took < 40
    assert pids_of(collector)[1] == second
    figure("a worker stopped: until the last client in its queue was answered", f"{took:.1f} s")
    collector.stop()


@pytest.mark.proof
def test_a_worker_that_the_kernel_kills_short_of_memory_ends_neither_the_others_nor_their_disk(collectors, figure):
    try:
        limit = open_limit("oom")
    except NoLimitError as error:
        pytest.skip(str(error))
    folders = getattr(limit, "folders", None) or {"memory": getattr(limit, "folder", None)}
    folder = folders.get("memory")
    most = folder and next((f for f in (folder / "memory.max", folder / "memory.limit_in_bytes") if f.exists()), None)
    if most is None:
        limit.remove()
        pytest.skip("no memory limit can be set here")
    sent = Sent(size=3000, gets=False)
    env = {**TWO, "BATCH_SIZE": "1000000", "BATCH_BYTES": "512MiB", "MAX_BUFFER_BYTES": "2GiB", "FLUSH_INTERVAL": "60s"}
    files = " ".join(str(group / "cgroup.procs") for group in set(folders.values()))
    into = ["sh", "-c", f'for file in {files}; do echo $$ > $file; done; exec "$@"', "sh"]
    try:
        collector = collectors(env, prefix=into, command=SERVE, measured=False).start()
        pids_of(collector)
        most.write_text(str(limit.resident()[0] + (64 << 20)))
        load = Load(sent, collector.port, rate=8000, connections=16).start()
        (ended,) = collector.wait_said("worker_ended", timeout=120)[:1]
        load.stop()
        assert ended["signal"] == "SIGKILL"
        assert not collector.said("worker_killed"), "it was the kernel"
        most.write_text(str(1 << 30))
        pids_of(collector)
        metrics = collector.metrics()
        taken, left = books(metrics)
        assert taken == left
        assert sent.acknowledged <= metrics.value("estat_events_accepted_total") <= len(sent)
        collector.stop()
        found = audit(sent, stored(collector)).assert_kept()
        figure(f"{len(collector.said('worker_ended')) - 2} workers killed by the kernel, short of memory", found)
    finally:
        limit.end()


COUNTS = re.compile(r"^(estat_\w+_(?:total|count|bucket)(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)


def disturb(rng, supervisor, workers):
    """Do one thing to them that an operator, a kernel or a host may do; return its name."""
    one = rng.choice(workers)
    act = rng.choice(["kill", "kill all", "stop", "stop the supervisor", "roll", "storm of rolls", "tell one to go"])
    match act:
        case "kill":
            os.kill(one, signal.SIGKILL)
        case "kill all":
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
        case "stop" | "stop the supervisor":
            stopped = one if act == "stop" else supervisor
            os.kill(stopped, signal.SIGSTOP)
            if stopped != one:
                os.kill(one, signal.SIGKILL)
            time.sleep(rng.uniform(0, 1.5))
            os.kill(stopped, signal.SIGCONT)
        case "roll":
            os.kill(supervisor, signal.SIGHUP)
        case "storm of rolls":
            for _ in range(100):
                os.kill(supervisor, signal.SIGHUP)
        case "tell one to go":
            os.kill(one, rng.choice([signal.SIGTERM, signal.SIGHUP, signal.SIGINT]))
    return act


@pytest.mark.proof
@pytest.mark.parametrize("durability", ["journal", "fsync"])
def test_whatever_is_done_to_them_nothing_is_lost_and_the_page_stays_right(collectors, figure, rng, durability):
    sent = Sent()
    env = {"WORKERS": "3", "DURABILITY": durability, "BATCH_SIZE": "300", "FLUSH_INTERVAL": "250ms"}
    collector = collectors(env, measured=False).start()
    pids_of(collector, 3)
    load = Load(sent, collector.port, rate=1500, connections=24).start()
    last, acts, scrapes = {}, Counter(), 0
    until = time.monotonic() + 45
    while time.monotonic() < until:
        children = Path(f"/proc/{collector.pid}/task/{collector.pid}/children").read_text().split()
        if children:
            with suppress(ProcessLookupError):
                acts[disturb(rng, collector.pid, [int(pid) for pid in children])] += 1
        # A page is kept for a second, so that one that is asked for sooner may be older.
        time.sleep(rng.uniform(1.05, 1.6))
        with suppress(OSError):  # the one that was asked was killed
            metrics = collector.metrics()
            scrapes += 1
            taken, left = books(metrics)
            assert taken == left, metrics.text
            counts = {name: float(value) for name, value in COUNTS.findall(metrics.text)}
            assert {name for name, value in last.items() if counts[name] < value} == set()
            last = counts
    load.stop()
    pids_of(collector, 3)
    accepted, _, found = stopped_with_all_on_the_page(collector, sent)
    figure(f"{dict(acts)}, {durability}, {scrapes} scrapes: accepted {accepted} on the page", found)
