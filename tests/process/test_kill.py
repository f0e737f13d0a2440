"""SIGKILL at a random instant under load, many times over, in one folder that is never cleaned.

Each round begins where the last one was cut off: the collector recovers what its dead predecessors left while it takes
new load. At the end everything acknowledged in any round is in the store, once, in its hour.
"""

from __future__ import annotations

import time

import pytest

from tests.process.client import Load, Sent
from tests.process.ledger import audit, read_bucket, read_directory
from tests.process.s3 import s3_client, s3_environment

MODES = ["journal", "fsync"]
ROUNDS = 8
SOAK_ROUNDS = 200


def killed_rounds(collectors, env, rounds, rng):
    """Runs the rounds and a last one that is let live; returns what was sent and the folder's last collector."""
    sent = Sent()
    for number in range(rounds):
        batch = {"BATCH_SIZE": str(rng.choice([20, 150, 1000])), "FLUSH_INTERVAL": rng.choice(["50ms", "300ms"])}
        collector = collectors({**env, **batch}, name=f"round{number:03d}", measured=False).start()
        load = Load(sent, collector.port, rate=rng.choice([1000, 4000]), connections=6, pipeline=rng.choice([1, 8]))
        load.start()
        time.sleep(rng.uniform(0.01, 0.4))
        collector.kill()
        load.stop(grace=0)
        assert collector.wait(1) == -9, collector.tail()
    last = collectors(env, name="last").start()
    last.wait_delivered(120)
    last.stop(15)
    assert last.left_on_disk() == []
    return sent, last


@pytest.mark.parametrize("durability", MODES)
def test_kill_9_keeps_every_acknowledged_event(collectors, rng, figure, durability):
    sent, last = killed_rounds(collectors, {"DURABILITY": durability}, ROUNDS, rng)
    found = audit(sent, read_directory(last.folder / "data/objects")).assert_kept()
    assert found.acknowledged > ROUNDS * 10, found
    assert found.unknown > 0, f"no kill ever cut an answer off: {found}"
    figure(f"{durability}, {ROUNDS} kills", found)


@pytest.mark.parametrize("durability", MODES)
def test_kill_9_keeps_every_acknowledged_event_on_s3(collectors, s3_server, bucket, rng, figure, durability):
    env = s3_environment(s3_server, bucket, DURABILITY=durability)
    sent, _ = killed_rounds(collectors, env, 3, rng)
    found = audit(sent, read_bucket(s3_client(s3_server), bucket)).assert_kept()
    figure(f"{durability}, 3 kills, S3", found)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("durability", MODES)
def test_two_hundred_kills_keep_every_acknowledged_event(collectors, rng, figure, durability):
    sent, last = killed_rounds(collectors, {"DURABILITY": durability}, SOAK_ROUNDS, rng)
    found = audit(sent, read_directory(last.folder / "data/objects")).assert_kept()
    figure(f"{durability}, {SOAK_ROUNDS} kills", found)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("durability", MODES)
def test_two_hundred_kills_keep_every_acknowledged_event_on_s3(collectors, s3_server, bucket, rng, figure, durability):
    env = s3_environment(s3_server, bucket, DURABILITY=durability)
    sent, _ = killed_rounds(collectors, env, SOAK_ROUNDS, rng)
    found = audit(sent, read_bucket(s3_client(s3_server), bucket)).assert_kept()
    figure(f"{durability}, {SOAK_ROUNDS} kills, S3", found)
