"""Each alert, drilled: the fault is produced for real, a real Prometheus fires, and the step of docs/ops.md ends it.

A drill is a function over a `Scene` that yields twice: when all is well, and when the fault is there. What stands
behind the second is what the alert says is to be done.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.faults.proxy import HEALTHY
from tests.faults.proxy import Fault as StoreFault
from tests.faults.volume import Volume, why_not
from tests.process.client import Load, Sent
from tests.process.faulty_server import ARMED, Fault, faulty
from tests.process.fronts import free_port
from tests.process.ledger import read_bucket
from tests.process.prometheus import FACTOR, JOB, WHY_NOT, Prometheus, rules
from tests.process.s3 import s3_client, s3_environment
from tests.process.test_clock import HOUR, Clock
from tests.stand_ins.letters import body, key
from tests.stand_ins.tls import issue
from tests.test_docs import dashboard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1024 * 1024
SMALL = {"BATCH_SIZE": "50", "FLUSH_INTERVAL": "200ms", "S3_TIMEOUT": "500ms", "S3_APP_RETRIES": "1"}
MISCOUNTING = f"""
import os, sys
from ingest.__main__ import main
from ingest.telemetry.books import Books
accepted = Books.accepted
Books.accepted = lambda books, n, *place: accepted(books, n + os.path.exists({ARMED!r}), *place)
sys.exit(main(["serve"]))
"""
"""The one alert that only a bug of ours can cause needs a bug of ours."""


class Scene:
    """A collector in its surroundings: S3 behind a proxy, a folder, and one port that Prometheus scrapes."""

    def __init__(self, collectors, proxy, s3, bucket, folder):
        self.collectors = collectors
        self.proxy = proxy
        self.bucket = bucket
        self.objects = s3_client(s3)
        self.folder = folder
        self.admin = free_port()
        self.sent = Sent()
        self.running = []
        self._env = s3_environment(proxy.url, bucket, ADMIN_ADDR=f"127.0.0.1:{self.admin}", **SMALL)
        self._load = None

    def start(self, env=None, **how):
        """Another collector, in the place of the last one."""
        collector = self.collectors({**self._env, **(env or {})}, measured=False, **how)
        self.running.append(collector)
        return collector.start()

    @property
    def collector(self):
        return self.running[-1]

    def load(self, rate=500, **how):
        """Send from now on, until `rest`."""
        self._load = Load(self.sent, self.collector.port, rate=rate, **how).start()

    def rest(self):
        if self._load is not None:
            self._load.stop()
            self._load = None

    def arm(self):
        (self.collector.folder / ARMED).touch()

    def disarm(self):
        (self.collector.folder / ARMED).unlink()

    def wait_on_disk(self, files=1):
        """Return what waits in the dead-letter queue once there are so many files."""
        end = time.monotonic() + 60
        while len(found := [name for name in self.collector.left_on_disk() if name.endswith(".gz")]) < files:
            assert time.monotonic() < end, self.collector.tail()
            time.sleep(0.05)
        return found

    def said(self, event):
        return [line for collector in self.running for line in collector.said(event)]


def store_away(scene):
    scene.start()
    scene.load()
    yield
    scene.proxy.refuse()
    yield
    scene.proxy.listen()


def forbidden(scene):
    """The store knows the key of this process no more."""
    scene.start()
    scene.load()
    yield
    scene.proxy.fault = StoreFault(answer=(403, "InvalidAccessKeyId"))
    yield
    assert "credentials" in scene.said("put_failed")[-1]["hint"]
    scene.proxy.fault = HEALTHY


def mute(scene):
    """The store takes all and answers nothing: no probe may make the alert's time begin anew."""
    scene.start()
    scene.load()
    yield
    scene.proxy.fault = StoreFault(blackhole=True)
    yield
    scene.proxy.fault = HEALTHY


def half_full(scene):
    scene.start({"DLQ_MAX_SIZE_BYTES": "256KiB"})
    yield
    scene.proxy.refuse()
    scene.load()
    yield
    scene.rest()
    scene.proxy.listen()


def evicting(scene):
    scene.start({"DLQ_MAX_SIZE_BYTES": "64KiB", "DLQ_ON_FULL": "evict"})
    yield
    scene.proxy.refuse()
    scene.load()
    yield
    scene.proxy.listen()


def volume_full(scene):
    """The journal's disk: a small tmpfs that something else fills."""
    with Volume.tmpfs(scene.folder / "volume", 16 * MIB) as volume:
        env = {"DLQ_DIR": str(volume.path / "dlq"), "BATCH_SIZE": "1000000", "FLUSH_INTERVAL": "1h"}
        scene.start(env, prefix=volume.prefix)
        scene.load(rate=2000)
        yield
        volume.fill(leave=256 * 1024)
        yield
        volume.relieve()
        yield
        scene.rest()
        scene.collector.kill()


def spool_full(scene):
    """The disk of dead letters alone, with the store away."""
    with Volume.tmpfs(scene.folder / "volume", 32 * MIB) as volume:
        env = {
            "DLQ_DIR": str(volume.path / "dlq"),
            "JOURNAL_DIR": str(scene.folder / "journal"),
            "CHANNEL_SIZE": "500",
            "BATCH_SIZE": "500",
        }
        scene.start(env, prefix=volume.prefix)
        scene.load(rate=2000)
        yield
        scene.proxy.refuse()
        volume.fill(leave=512 * 1024)
        yield
        volume.relieve()
        yield
        scene.rest()
        scene.collector.kill()


def gone(scene):
    scene.start()
    yield
    scene.collector.kill()
    yield
    scene.start()


def backlog_stays(scene):
    scene.start(command=faulty(Fault(("rename", "link"), "fail", room="dlq", armed=True)))
    scene.load()
    yield
    scene.arm()
    scene.proxy.refuse()
    yield
    scene.disarm()
    scene.proxy.listen()


def late(scene):
    """Three hours pass at once."""
    clock = Clock(scene.folder)
    clock.set(int(time.time()) - 3 * HOUR)
    scene.start(clock.env)
    scene.proxy.refuse()
    scene.load()
    scene.wait_on_disk()
    scene.rest()
    yield
    clock.set(int(time.time()))
    yield
    scene.proxy.listen()


def untold(scene):
    """The store takes events and no manifest, and hours pass at once."""
    clock = Clock(scene.folder)
    clock.set(int(time.time()) - 4 * HOUR)
    scene.start(clock.env)
    scene.proxy.fault = StoreFault(answer=(503, "SlowDown"), head=b"raw_manifest/")
    scene.load()
    scene.collector.wait_said("batch_stored", 3)
    clock.set(int(time.time()))
    yield
    yield
    scene.proxy.fault = HEALTHY


def file_refused(scene):
    """The store takes every key but one."""
    scene.start()
    scene.proxy.refuse()
    scene.load(rate=200)
    yield
    refused, *_ = scene.wait_on_disk(5)
    scene.proxy.fault = StoreFault(answer=(403, "AccessDenied"), head=refused.rpartition("/")[2].encode())
    scene.proxy.listen()
    yield
    scene.proxy.fault = HEALTHY


def unreadable(scene):
    blind = faulty(Fault(("scandir",), "fail", room="dlq", under="hr=", armed=True))
    scene.start()
    scene.proxy.refuse()
    scene.load()
    yield
    scene.wait_on_disk()
    scene.rest()
    scene.collector.kill()
    scene.arm()
    scene.start(command=blind)
    yield
    scene.disarm()


def stuck(scene):
    scene.start(command=faulty(Fault(("unlink",), "fail", room="journal", under=".jsonl", armed=True)))
    scene.load()
    yield
    scene.arm()
    yield
    scene.disarm()


def damaged(scene):
    scene.start()
    yield
    damage(scene)
    yield
    assert read_bucket(scene.objects, scene.bucket, "raw_dlq"), "the original is below DLQ_PREFIX"


def damaged_at_start(scene):
    """The file is there before the process is, so that no scrape sees the counter at 0."""
    scene.running.append(scene.collectors({}))
    yield
    damage(scene)
    scene.start()
    yield
    assert read_bucket(scene.objects, scene.bucket, "raw_dlq"), "the original is below DLQ_PREFIX"


def damage(scene):
    path = scene.collector.dlq_folder / "7" / key(1)
    path.parent.mkdir(parents=True)
    path.write_bytes(body(300)[:-400])


def restarts(scene):
    scene.start()
    yield
    for _ in range(3):
        time.sleep(1.5)  # for a scrape of each
        scene.collector.kill()
        scene.start()
    yield


def workers_killed(scene):
    scene.start({"WORKERS": "2"})
    scene.collector.wait_said("worker_serves", 2)
    yield
    children = Path(f"/proc/{scene.collector.pid}/task/{scene.collector.pid}/children")
    for times in range(1, 4):
        os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
        scene.collector.wait_said("worker_started", times)
        scene.collector.wait_said("worker_serves", 2 + times)
    yield


def expiring(scene):
    issued = issue(scene.folder, days=10)
    scene.start({"TLS_CERT": str(issued.certificate), "TLS_KEY": str(issued.key)})
    yield
    yield
    issue(scene.folder, days=90)


def not_loaded(scene):
    issued = issue(scene.folder, days=90)
    scene.start({"TLS_CERT": str(issued.certificate), "TLS_KEY": str(issued.key)})
    yield
    issued.certificate.write_text("no certificate")
    yield
    issue(scene.folder, days=90)


def crowded(scene):
    scene.start({"MAX_CONNECTIONS": "5"})
    yield
    opened = [socket.create_connection(("127.0.0.1", scene.collector.port)) for _ in range(10)]
    yield
    scene.collector.kill()
    scene.start({"MAX_CONNECTIONS": "100"})
    opened += [socket.create_connection(("127.0.0.1", scene.collector.port)) for _ in range(10)]
    yield
    for one in opened:
        one.close()


def slow(scene):
    scene.start({"DURABILITY": "fsync"}, command=faulty(Fault(("fdatasync",), "slow", 2.0, room="journal", armed=True)))
    scene.load(rate=50)
    yield
    scene.arm()
    yield
    scene.disarm()


def log_unread(scene):
    """Standard error is a pipe whose reader stands still."""
    pipe = scene.folder / "stderr"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        port = free_port()
        into_it = ("sh", "-c", f'exec "$@" 2>{pipe}', "sh")
        env = {"LOG_LEVEL": "debug", "BATCH_SIZE": "1", "HTTP_ADDR": f"127.0.0.1:{port}"}
        collector = scene.collectors({**scene._env, **env}, measured=False, prefix=into_it)
        scene.running.append(collector)
        collector.port = port
        collector.spawn()
        yield
        scene.load(rate=300)
        yield
        os.set_blocking(reader, True)
        with collector.stderr.open("ab") as out:
            scene.rest()
            while b"log_lines_dropped" not in (lines := os.read(reader, 65536)):
                out.write(lines)
            out.write(lines)
        yield
        collector.kill()
    finally:
        os.close(reader)


class Drill(NamedTuple):
    """How the fault comes and goes, and the line of the log that the alert's action sends one to."""

    play: Callable[[Scene], Iterator[None]]
    line: str = ""


def miscounting(scene):
    scene.start({"DEBUG_CHECKS": "0"}, command=(sys.executable, "-c", MISCOUNTING))
    scene.load()
    yield
    scene.arm()
    yield
    scene.collector.kill()  # the disk is kept, and the next version has no such bug
    scene.disarm()
    scene.start()


DRILLS = {
    "EstatBooksDiffer": Drill(miscounting),
    "EstatEventsLost": Drill(evicting, "dlq_evicted"),
    "EstatJournalFailed": Drill(volume_full, "journal_refused"),
    "EstatDiskFull": Drill(volume_full),
    "EstatQueueFull": Drill(spool_full),
    "EstatSpoolFull": Drill(spool_full),
    "EstatGone": Drill(gone),
    "EstatProcessGone": Drill(gone),
    "EstatStoreAway": Drill(store_away, "put_failed"),
    "EstatStoreAway with bad credentials": Drill(forbidden, "put_failed"),
    "EstatStoreAway without a word": Drill(mute),
    "EstatSpoolHalfFull": Drill(half_full),
    "EstatBacklogStays": Drill(backlog_stays, "dlq_save_failed"),
    "EstatEventsLate": Drill(late),
    "EstatHourStaysOpen": Drill(untold, "manifest_not_put"),
    "EstatFilesRefused": Drill(file_refused, "put_failed"),
    "EstatFilesUnknown": Drill(unreadable),
    "EstatFilesStuck": Drill(stuck, "segment_not_removed"),
    "EstatFileDamaged": Drill(damaged),
    "EstatFileDamaged at the start": Drill(damaged_at_start),
    "EstatEventsLost at the start": Drill(damaged_at_start, "file_quarantined"),
    "EstatRestarts": Drill(restarts),
    "EstatRestarts of workers": Drill(workers_killed, "worker_ended"),
    "EstatCertificateExpires": Drill(expiring),
    "EstatCertificateNotLoaded": Drill(not_loaded, "certificate_not_loaded"),
    "EstatConnectionsRefused": Drill(crowded),
    "EstatSlow": Drill(slow),
    "EstatLogHasGaps": Drill(log_unread, "log_lines_dropped"),
}
NEEDS_VOLUME = {volume_full, spool_full}
NEEDS_CLOCK = {late, untold}


def test_each_alert_has_a_drill_that_looks_for_a_line_its_action_names():
    actions = {rule["alert"]: rule["annotations"]["action"] for rule in rules()}
    assert {name.split()[0] for name in DRILLS} == actions.keys()
    for name, drill in DRILLS.items():
        assert not drill.line or f"`{drill.line}`" in actions[name.split()[0]]


@pytest.fixture
def scene(collectors, s3_server, proxy, bucket, tmp_path):
    made = Scene(collectors, proxy, s3_server, bucket, tmp_path)
    yield made
    made.rest()


@pytest.mark.proof
@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "it is installed")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", DRILLS)
def test_an_alert_fires_when_its_fault_is_there_and_ends_with_what_its_action_says(scene, figure, name):
    alert, drill = name.split()[0], DRILLS[name]
    if drill.play in NEEDS_VOLUME and (missing := why_not()):
        pytest.skip(missing)
    if drill.play in NEEDS_CLOCK and shutil.which("cc") is None:
        pytest.skip("no C compiler to build the clock with")
    with Prometheus(scene.folder / "prometheus", scene.admin) as prometheus:
        play = drill.play(scene)
        next(play)
        if drill.play is not damaged_at_start:
            prometheus.wait(lambda: prometheus.ask(f'up{{job="{JOB}"}}') == [1.0], "no scrape")
        if drill.play is not expiring:  # it has expired at the start, because nothing but time makes it
            prometheus.wait(lambda: not prometheus.fires(alert), f"{alert} fires before anything happened", 10)
        began = time.monotonic()
        next(play)
        prometheus.wait(lambda: prometheus.fires(alert), f"{alert} does not fire")
        fired = time.monotonic() - began
        if drill.line:
            assert scene.said(drill.line) or drill.play is log_unread, f"no {drill.line}: {scene.collector.tail()}"
        began = time.monotonic()
        next(play, None)
        prometheus.wait(lambda: not prometheus.fires(alert), f"{alert} still fires")
        ended = time.monotonic() - began
        next(play, None)
        if drill.line:
            assert scene.said(drill.line)
    figure(f"{name} (times {FACTOR} times shorter)", f"fired after {fired:.1f} s, ended after {ended:.1f} s")


@pytest.mark.proof
@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "it is installed")
def test_every_query_of_the_dashboard_has_a_figure_in_a_run_with_an_outage_and_a_restart(scene, figure):
    queries = {where: query.replace("$job", JOB).replace("$instance", ".+") for where, query in dashboard().items()}
    with Prometheus(scene.folder / "prometheus", scene.admin) as prometheus:
        scene.start({"DURABILITY": "fsync"})
        scene.load()
        prometheus.wait(lambda: sum(prometheus.ask("estat_events_stored_total")) > 500, "nothing is stored")
        scene.proxy.refuse()
        empty = dict(queries)

        def is_full():
            for where, query in list(empty.items()):
                if any(map(math.isfinite, prometheus.ask(query))):
                    del empty[where]
            return not (empty.keys() - {"Restarts"})

        prometheus.wait(is_full, f"no figure for {empty}", 30)
        scene.proxy.listen()
        scene.rest()
        scene.collector.kill()
        scene.start()
        prometheus.wait(lambda: is_full() and not empty, f"no figure for {empty}", 30)
    figure("queries of the dashboard that had a figure", len(queries))
