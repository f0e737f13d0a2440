"""The wall clock is stepped under load: an event lies in the hour it was accepted in, by the clock of that instant.

The step is real to the process: a small library, compiled here, stands before `clock_gettime` and moves the wall clock
alone by an offset that the test changes while the process runs.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.process.client import Load, Sent, send
from tests.process.ledger import audit, read_directory

SOURCE = Path(__file__).parents[1] / "faults" / "clock.c"
HOUR = 3600
COMPILER = shutil.which("cc")

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C compiler to build the clock with"),
    pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux's"),
]


class Clock:
    """The collector's wall clock: `set(unix)` steps it, also while it runs."""

    def __init__(self, folder):
        self.library = folder / "clock.so"
        self.file = folder / "offset"
        subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", self.library, SOURCE, "-ldl"], check=True)
        self.file.write_bytes(bytes(8))

    @property
    def env(self):
        return {"LD_PRELOAD": str(self.library), "CLOCK_OFFSET_FILE": str(self.file)}

    def set(self, unix):
        with self.file.open("r+b") as file:
            file.write(struct.pack("=q", unix - int(time.time())))


@pytest.fixture
def clock(tmp_path):
    return Clock(tmp_path)


def unix(text):
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def await_more(sent, events=300, seconds=60):
    """Return when so many events more were acknowledged: more than were under way before."""
    enough, end = sent.acknowledged + events, time.monotonic() + seconds
    while sent.acknowledged < enough:
        assert time.monotonic() < end, f"{enough - sent.acknowledged} events too few after {seconds} s"
        time.sleep(0.01)


def hours_of(objects):
    return sorted({o.key.split("/", 1)[1].rsplit("/", 1)[0] for o in objects})


def test_an_event_stays_in_its_hour_when_the_clock_steps_forth_and_back(collectors, clock, figure):
    sent = Sent()
    clock.set(unix("2025-12-02T13:30:00"))
    collector = collectors({**clock.env, "FLUSH_INTERVAL": "1h", "BATCH_SIZE": "100000"}).start()
    load = Load(sent, collector.port, rate=1500, connections=6).start()
    await_more(sent)
    for step in ("2025-12-02T14:00:03", "2025-12-02T13:59:40", "2025-12-31T23:59:59", "2025-12-02T15:10:00"):
        clock.set(unix(step))
        await_more(sent)
    load.stop()
    assert sent.refused == 0
    collector.stop(15)
    objects = list(read_directory(collector.folder / "data/objects"))
    found = audit(sent, objects, same_clock=False).assert_kept()
    hours = hours_of(objects)
    assert {"dt=2025-12-02/hr=13", "dt=2025-12-02/hr=14", "dt=2025-12-02/hr=15", "dt=2025-12-31/hr=23"} <= set(hours)
    assert len(objects) >= 5, "a batch that spans two hours was not sealed between them"
    figure("clock steps over an hour and back", found)


def test_intervals_do_not_follow_the_wall_clock(collectors, clock):
    """A step of a day back does not stop flushes, and one forth does not expire the queue."""
    sent = Sent()
    clock.set(unix("2025-12-02T13:30:00"))
    env = {**clock.env, "FLUSH_INTERVAL": "300ms", "DLQ_MAX_AGE": "1h"}
    collector = collectors(env).start()
    send(sent, collector.port, 100)
    clock.set(unix("2025-12-01T13:30:00"))
    send(sent, collector.port, 100)
    collector.wait_delivered(60)
    clock.set(unix("2026-12-01T13:30:00"))
    send(sent, collector.port, 100)
    collector.wait_delivered(60)
    collector.stop(15)
    objects = list(read_directory(collector.folder / "data/objects"))
    assert audit(sent, objects, same_clock=False).assert_kept().stored == 300


def test_recovery_in_a_later_hour_delivers_into_the_hour_of_acceptance(collectors, clock):
    """Also under `DLQ_MAX_AGE`: a long stop expires nothing that was never tried."""
    sent = Sent()
    clock.set(unix("2025-12-02T23:59:00"))
    env = {**clock.env, "DLQ_MAX_AGE": "24h"}
    first = collectors({**env, "FLUSH_INTERVAL": "1h"}, name="first").start()
    send(sent, first.port, 500)
    first.kill()
    clock.set(unix("2026-01-20T08:00:00"))
    second = collectors(env, name="second").start()
    second.wait_delivered(20)
    second.stop(10)
    objects = list(read_directory(first.folder / "data/objects"))
    assert audit(sent, objects, same_clock=False).assert_kept().stored == 500
    assert hours_of(objects) == ["dt=2025-12-02/hr=23"]


def test_the_partition_is_that_of_the_zone_in_force(collectors, clock):
    sent = Sent()
    collector = collectors({**clock.env, "PARTITION_TZ": "Asia/Seoul"}).start()
    for before_and_after in ("2025-12-02T14:30:00", "2025-12-02T15:00:00"):
        clock.set(unix(before_and_after))
        send(sent, collector.port, 1000)
    collector.stop(10)
    objects = list(read_directory(collector.folder / "data/objects"))
    assert audit(sent, objects, "Asia/Seoul", same_clock=False).assert_kept().stored == 2000
    assert hours_of(objects) == ["dt=2025-12-02/hr=23", "dt=2025-12-03/hr=00"]
