"""Real processes, killed and drained, one and several at once: what `reconcile` says of their hours."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.process.client import Load, Sent, send
from tests.process.ledger import audit, read_directory

BATCHES = {"BATCH_SIZE": "50", "FLUSH_INTERVAL": "200ms"}


def reconcile(collector, *words):
    """Judge the hours that have objects, by a clock that shows them as over; return exit code and text."""
    objects = collector.folder / "data" / "objects"
    hours = sorted(path.relative_to(objects / "raw").as_posix() for path in objects.glob("raw/dt=*/hr=*"))
    command = [sys.executable, "-m", "ingest", "reconcile", "--hour", f"{hours[0]}..{hours[-1]}", *words]
    # An hour of UTC was fourteen hours earlier for whoever takes it for one of this zone.
    env = {"PYTHONPATH": ":".join(sys.path), "PARTITION_TZ": "Etc/GMT-14"}
    folder = collector.folder
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=folder, env=env)
    return told.returncode, told.stdout + told.stderr


def registered(collector):
    collector.wait_until(lambda m: m.value("estat_manifests_stored_total") > 0, 20, "it is not registered")


@pytest.mark.parametrize("workers", [1, 2])
def test_the_hours_of_a_drain_are_complete(collectors, workers):
    sent = Sent()
    collector = collectors({**BATCHES, "WORKERS": str(workers)}).start()
    registered(collector)
    send(sent, collector.port, 500)
    collector.stop(15)
    code, text = reconcile(collector, "--deep")
    assert (code, "500 events" in text) == (0, True), text


def test_the_hours_of_a_killed_process_are_open_until_another_has_recovered_what_it_left(collectors):
    sent = Sent()
    first = collectors(BATCHES, name="first").start()
    registered(first)
    load = Load(sent, first.port, rate=2000, connections=4, pipeline=4).start()
    first.wait_until(lambda m: m.value("estat_events_stored_total") > 500, 20, "nothing is stored")
    first.kill()
    load.stop(grace=0)
    code, text = reconcile(first)
    assert (code, "open: " in text) == (1, True), text
    second = collectors(BATCHES, name="second").start()
    second.wait_delivered(30)
    second.stop(15)
    code, text = reconcile(first, "--deep")
    assert code == 0, text
    audit(sent, read_directory(first.folder / "data/objects")).assert_kept()
