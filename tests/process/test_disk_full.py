"""The disk fills under load: who was acknowledged is kept, who cannot be is told so, and nothing crashes.

The disk is a small tmpfs in a private mount namespace; something else on it grows and is deleted again.
"""

from __future__ import annotations

import time

import pytest

from tests.faults.volume import Volume, why_not
from tests.process.client import Load, Sent, send
from tests.process.ledger import audit, read_bucket, read_directory
from tests.process.s3 import s3_client, s3_environment

MIB = 1024 * 1024
WITHOUT_VOLUME = why_not()

pytestmark = pytest.mark.skipif(bool(WITHOUT_VOLUME), reason=WITHOUT_VOLUME or "a volume can be had")


def on_the_volume(volume, **more):
    # Absolute, all of them: who enters a mount namespace stands in its root.
    return {"DLQ_DIR": str(volume.path / "dlq"), "STORE_DIR": str(volume.path.parent / "objects"), **more}


def on(volume):
    return {"prefix": volume.prefix, "dlq_folder": volume.seen / "dlq"}


@pytest.mark.parametrize("durability", ["journal", "fsync"])
def test_a_full_journal_refuses_and_comes_back_by_itself(collectors, tmp_path, figure, durability):
    """ENOSPC in the open segment: 503 for what does not fit, and the batch that is open goes on afterwards."""
    sent = Sent()
    with Volume.tmpfs(tmp_path / "volume", 16 * MIB) as volume:
        env = on_the_volume(volume, DURABILITY=durability, BATCH_SIZE="1000000", FLUSH_INTERVAL="1h")
        collector = collectors(env, **on(volume)).start()
        send(sent, collector.port, 1000, pipeline=4)
        volume.fill(leave=256 * 1024)
        load = Load(sent, collector.port, rate=3000, connections=8, pipeline=4).start()
        wait_for(lambda: sent.refused > 500, "nobody was refused")
        volume.relieve()
        refused = sent.refused
        before = sent.acknowledged
        wait_for(lambda: sent.acknowledged > before + 2000, "it never came back")
        load.stop()
        assert sent.statuses.keys() == {200, 503}, sent.statuses
        assert sent.refused < refused + 12_000
        (refusing,) = collector.wait_said("refusing_events")
        assert refusing["reason"] == "disk_full"
        (again,) = collector.wait_said("taking_events_again")
        assert again["refused"] == sent.refused
        assert collector.left_on_disk()
        seen = collector.wait_until(lambda m: m.pending == sent.acknowledged, 10, "the open batch is not what was sent")
        assert seen.value("estat_events_accepted_total") == sent.acknowledged
        collector.stop(15)
        assert collector.left_on_disk() == []
    figure(f"disk full, {durability}", audit(sent, read_directory(tmp_path / "objects")).assert_kept())


def test_a_full_dead_letter_queue_keeps_what_it_holds(collectors, s3_server, proxy, bucket, tmp_path, figure):
    """S3 away and no room left: batches keep their place, then 503; all of it arrives when both are back."""
    sent = Sent()
    with Volume.tmpfs(tmp_path / "volume", 32 * MIB) as volume:
        env = s3_environment(proxy.url, bucket, S3_TIMEOUT="500ms", BATCH_SIZE="500", FLUSH_INTERVAL="1s")
        env |= {"CHANNEL_SIZE": "1000"}
        collector = collectors(on_the_volume(volume, **env), **on(volume)).start()
        proxy.refuse()
        load = Load(sent, collector.port, rate=3000, connections=8, pipeline=4).start()
        wait_for(lambda: sent.acknowledged > 3000, "nothing was taken")
        volume.fill(leave=512 * 1024)
        wait_for(lambda: sent.refused > 1000, "nobody was refused")
        volume.relieve()
        proxy.listen()
        before = sent.acknowledged
        wait_for(lambda: sent.acknowledged > before + 2000, "it never came back")
        load.stop()
        assert sent.statuses.keys() == {200, 503}, sent.statuses
        collector.wait_delivered(60)
        collector.stop(15)
        assert collector.left_on_disk() == []
    figure("disk full, S3 away", audit(sent, read_bucket(s3_client(s3_server), bucket)).assert_kept())


def test_a_kill_with_the_disk_full_loses_nothing(collectors, tmp_path, figure):
    """The worst of both: rolled-back writes, refused requests, and the process dies among them."""
    sent = Sent()
    with Volume.tmpfs(tmp_path / "volume", 16 * MIB) as volume:
        env = on_the_volume(volume, BATCH_SIZE="1000000", FLUSH_INTERVAL="1h")
        for number in range(3):
            collector = collectors(env, **on(volume), name=f"round{number}").start()
            volume.fill(leave=128 * 1024)
            load = Load(sent, collector.port, rate=3000, connections=8, pipeline=4).start()
            refused = sent.refused
            wait_for(lambda least=refused + 200: sent.refused > least, "nobody was refused")
            collector.kill()
            load.stop(grace=0)
            volume.relieve()
        last = collectors(env, **on(volume), name="last").start()
        last.wait_delivered(30)
        last.stop(15)
        assert last.left_on_disk() == []
    figure("disk full, 3 kills", audit(sent, read_directory(tmp_path / "objects")).assert_kept())


def wait_for(so, what, timeout=20.0):
    deadline = time.monotonic() + timeout
    while not so():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
