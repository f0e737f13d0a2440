"""SIGKILL at each named instant between two system calls, and at two instants of a put to S3.

A round is a real process over `crashing_server`, under load until it dies where it was told to; the process says so
before it dies. After the rounds in one folder an ordinary collector recovers, and the ledger is read. Each point has
one round; in `make proof` it has five.
"""

from __future__ import annotations

import sys
import time

import pytest

from tests.process.client import Load, Sent, send
from tests.process.crashing_server import POINTS
from tests.process.faulty_server import ARMED
from tests.process.ledger import audit, read_bucket, read_directory
from tests.process.s3 import s3_client, s3_environment

KILLS = [pytest.param(1, id="once"), pytest.param(5, id="five times", marks=pytest.mark.proof)]
BATCHES = {"BATCH_SIZE": "50", "FLUSH_INTERVAL": "100ms"}
FSYNC_ONLY = {"segment_synced", "ledger_line_synced"} | {name for name, point in POINTS.items() if point.sync_fails}


def crash(collectors, sent, name, env, nth):
    """One round: load until the process has died at the point."""
    command = (sys.executable, "-m", "tests.process.crashing_server", name, str(nth))
    collector = collectors({**BATCHES, **env}, command=command, name=name, measured=False)
    armed = collector.folder / ARMED
    armed.unlink(missing_ok=True)
    collector.start()
    load = Load(sent, collector.port, rate=2000, connections=4, pipeline=4).start()
    if POINTS[name].armed:
        time.sleep(0.15)
        armed.touch()
        collector.terminate()
    status = collector.wait(30)
    load.stop(grace=0)
    assert status == -9, f"exit {status}: it never reached {name}: {collector.tail()}"
    assert collector.said("crash_point"), collector.tail()


def leave_files(collectors, sent, env, *, in_dlq):
    """A predecessor that died: its segments, or its DLQ files, are there to be recovered."""
    if in_dlq:
        command = (sys.executable, "-m", "tests.process.crashing_server", "dlq_save_published", "8")
        collector = collectors({**BATCHES, **env}, command=command, name="before", measured=False).start()
        load = Load(sent, collector.port, rate=4000, pipeline=4).start()
        assert collector.wait(20) == -9
        load.stop(grace=0)
    else:
        collector = collectors(
            {**env, "BATCH_SIZE": "100000", "FLUSH_INTERVAL": "1h"}, name="before", measured=False
        ).start()
        send(sent, collector.port, 300)
        collector.kill()


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize("name", POINTS)
def test_a_crash_there_loses_and_doubles_nothing(collectors, rng, figure, name, kills):
    sent = Sent()
    env = {"DURABILITY": "fsync" if name in FSYNC_ONLY else "journal"}
    armed, recovery = POINTS[name].armed, name.startswith("recovery")
    if recovery:
        # Each round leaves segments to the next one, as it dies under load; DLQ files are left here for all of them.
        leave_files(collectors, sent, env, in_dlq=POINTS[name].room == "dlq")
    for _ in range(kills):
        crash(collectors, sent, name, env, 1 if armed or recovery else rng.randint(1, 1 + kills))
    last = collectors(env, name="last").start()
    last.wait_delivered(60)
    last.stop(15)
    assert last.left_on_disk() == []
    found = audit(sent, read_directory(last.folder / "data/objects")).assert_kept()
    figure(f"{name}, {kills} kills", found)


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize("arrives", [True, False], ids=["arrives", "is_cut_off"])
def test_a_crash_with_a_put_in_flight_loses_and_doubles_nothing(
    collectors, s3_server, proxy, bucket, figure, arrives, kills
):
    found = killed_at_a_put(collectors, s3_server, proxy, bucket, "on_request", kills, forward=arrives)
    figure(f"put in flight, {kills} kills", found)


@pytest.mark.parametrize("kills", KILLS)
def test_a_crash_with_a_put_stored_and_its_answer_lost_loses_and_doubles_nothing(
    collectors, s3_server, proxy, bucket, figure, kills
):
    found = killed_at_a_put(collectors, s3_server, proxy, bucket, "on_answer", kills, forward=False)
    figure(f"put stored, answer lost, {kills} kills", found)


def killed_at_a_put(collectors, s3_server, proxy, bucket, hook, kills, *, forward):
    sent = Sent()
    env = s3_environment(proxy.url, bucket)
    for _ in range(kills):
        collector = collectors({**BATCHES, **env}, measured=False).start()

        def kill(exchange, collector=collector):
            if exchange.method != "PUT" or "_manifest/" in exchange.target:
                return True
            collector.send_kill()
            return forward

        setattr(proxy, hook, kill)
        load = Load(sent, collector.port, rate=1000, connections=4, pipeline=4).start()
        assert collector.wait(20) == -9, collector.tail()
        setattr(proxy, hook, None)
        load.stop(grace=0)
    assert len(proxy.puts()) >= kills
    last = collectors(env, name="last").start()
    last.wait_delivered(60)
    last.stop(15)
    assert last.left_on_disk() == []
    return audit(sent, read_bucket(s3_client(s3_server), bucket)).assert_kept()
