"""A dead-letter queue whose disk hangs holds up no put (C6)."""

from __future__ import annotations

import asyncio

import pytest

from ingest.collector import Collector, World
from ingest.config.settings import load
from ingest.delivery import breaker
from ingest.telemetry import SealReason
from ingest.wire.turn import Turn
from tests.delivery.rig import Batch, Rig
from tests.stand_ins.disk import Disk
from tests.stand_ins.letters import Store, files


@pytest.fixture(autouse=True)
def _probes_come_soon(monkeypatch):
    monkeypatch.setattr(breaker, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(breaker, "LONGEST_PAUSE", 0.1)


@pytest.mark.parametrize("operation", ["open", "rename", "fsync_dir", "statvfs", "mkdir"])
def test_c6_puts_go_on_while_the_disk_of_the_dead_letters_hangs(tmp_path, operation):
    """The store fails for a while and is well again; the disk is back only after all is stored."""
    rig = Rig(tmp_path, Store(*["fail"] * 6, then="ok"), has_segments=False, s3_app_retries=1, upload_queue=8, wait=0.3)

    async def main():
        async with rig.running():
            hang = rig.fs.on(operation, under=rig.root).hang()
            batches = [Batch(n) for n in range(12)]
            rig.submit(*batches[:6])
            await asyncio.get_running_loop().run_in_executor(None, hang.reached.wait, 10)
            rig.submit(*batches[6:])
            await rig.until(lambda: rig.metrics.books.events_stored == 36, 20)
            assert sorted(rig.store_.keys()) == sorted(batch.key for batch in batches)
            assert rig.uploader.queue.is_empty
            hang.lift()
            await rig.until(lambda: not rig.dlq.hangs and not rig.dlq._late and not files(rig.root), 20)
            assert (rig.dlq.files, rig.dlq.events) == (0, 0)

    asyncio.run(main())


def test_c6_a_recovery_that_waits_for_a_disk_that_hangs_leaves_batches_and_the_drain_alone(tmp_path):
    rig = Rig(tmp_path, Store("fail", "fail", then="ok"), s3_app_retries=1, wait=0.3)

    async def main():
        async with rig.running():
            rig.submit(Batch(1))
            await rig.until(lambda: rig.dlq.files == 1 or rig.metrics.books.events_stored)
            hang = rig.fs.on("open_read", "scandir", "unlink", under=rig.root).hang()
            rig.submit(Batch(2), Batch(3))
            await rig.until(lambda: rig.uploader.queue.is_empty, 20)
            left = await asyncio.wait_for(rig.drain(3), 6)
            assert (left.lost_batches, left.lost_events) == (0, 0)
            assert rig.uploader.queue.is_empty
            assert rig.metrics.books.events_stored + rig.dlq.events + rig.journal.events == 9
            hang.lift()

    asyncio.run(main())


@pytest.mark.parametrize("full", [False, True])
def test_a_save_that_ends_after_its_batch_was_left_to_its_segment_changes_nothing(tmp_path, full):
    rig = Rig(tmp_path, Store("hang"), s3_timeout="10s", dlq_max_size_bytes=1 if full else 1 << 20)

    async def main():
        async with rig.running():
            hang = rig.fs.on("statvfs" if full else "rename", under=rig.root).hang()
            rig.submit(Batch(1))
            left = await rig.drain(1)
            assert (left.backlog_events, left.dlq_events, left.lost_events) == (3, 0, 0)
            hang.lift()
            await rig.until(lambda: not rig.dlq.hangs and not rig.dlq._late and not files(rig.root), 20)
            assert (rig.dlq.files, rig.dlq.events, rig.journal.events) == (0, 0, 3)

    asyncio.run(main())


def test_a_call_that_hangs_in_one_directory_holds_up_no_call_to_the_other(tmp_path):
    """They lie on one volume, as they do by default: a network mount may hang for one file and not for another."""
    folder = {name: str(tmp_path / name) for name in ("STORE_DIR", "DLQ_DIR", "JOURNAL_DIR")}
    settings = load({"STORE": "directory", **folder})
    disk = Disk()

    async def main():
        loop = asyncio.get_running_loop()
        collector = Collector(settings, World(loop, fs=disk))
        hang = disk.on("scandir", under=settings.dlq_dir).hang()
        running = loop.create_task(collector.run())
        await loop.run_in_executor(None, hang.reached.wait, 10)
        turn = Turn(1764684000)
        turn.event(Mute(), b"{}\n", b"", b"")
        turn.close()
        collector.intake.commit(turn)
        collector.intake.seal(SealReason.SIZE)
        async with asyncio.timeout(20):
            while not collector.metrics.books.events_stored or any(settings.journal_dir.rglob("*.jsonl")):  # noqa: ASYNC110 - two threads do it
                await asyncio.sleep(0.01)
        hang.lift()
        running.cancel()
        await collector.close(1.0)
        collector.journal_lane.abandon()
        collector.dlq_lane.abandon()

    asyncio.run(main())


class Mute:
    """Who asked, and hears nothing."""

    pending = 0

    def write(self, answer):
        pass
