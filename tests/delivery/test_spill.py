"""A batch's way to the disk: a full queue, a full DLQ, a disk that fails."""

from __future__ import annotations

import asyncio
import errno

import pytest

from ingest.delivery import backoff
from tests.delivery.rig import Batch, rig_of
from tests.stand_ins.letters import OWN, files, key


def test_submit_never_waits_and_a_full_queue_spills_its_oldest(tmp_path):
    rig = rig_of(tmp_path, then="hang", upload_concurrency=1, upload_queue=2, s3_timeout="60s")

    async def main():
        async with rig.running() as uploader:
            rig.submit(Batch(1))
            await rig.until(lambda: rig.store_.tries)
            rig.submit(*(Batch(n) for n in range(2, 6)))
            await rig.until(lambda: rig.dlq.files == 2)
            assert len(uploader.queue) == 2
            assert uploader.has_room
            assert [n for n in range(1, 6) if key(n, token=OWN) in files(rig.root)] == [2, 3]
            assert rig.metrics.batches_spilled == 2
            rig.skip.set()

    asyncio.run(main())


def test_the_workers_that_wait_make_room(tmp_path):
    rig = rig_of(tmp_path, upload_concurrency=2, upload_queue=1)

    async def main():
        async with rig.running():
            await asyncio.sleep(0.01)
            rig.submit(Batch(1), Batch(2), Batch(3))
            await rig.done()
            assert rig.metrics.batches_spilled == 0

    asyncio.run(main())


def test_a_full_dlq_that_rejects_keeps_batches_in_their_places_until_the_store_takes_them(tmp_path):
    rig = rig_of(
        tmp_path, "hang", "hang", upload_concurrency=1, upload_queue=2, s3_timeout="60ms", dlq_max_size_bytes=10
    )
    batches = [Batch(n) for n in range(1, 6)]

    async def main():
        async with rig.running() as uploader:
            rig.submit(*batches)
            await rig.until(lambda: uploader._saving.failed and len(uploader.queue) >= 3)
            assert not uploader.has_room
            assert not rig.rooms
            assert rig.dlq.files == rig.journal.files == 0
            numbers = [upload.number for upload in uploader.queue._waiting]
            assert numbers == sorted(numbers)
            await rig.done()
            assert uploader.has_room
            assert rig.rooms
            assert len(rig.store_.stored()) == 15
            assert {operation for operation, _ in rig.store_.tries} == {"put"}

    asyncio.run(main())


def test_without_a_store_and_a_dlq_nothing_spins(tmp_path, monkeypatch):
    monkeypatch.setattr(backoff, "KEEP_PAUSE", 1.0)
    rig = rig_of(tmp_path, then="fail", upload_queue=2, dlq_max_size_bytes=10, has_segments=False)

    async def main():
        async with rig.running(fast=False) as uploader:
            rig.submit(Batch(1), Batch(2))
            await rig.until(lambda: rig.metrics.save_errors >= 2)
            errors = rig.metrics.save_errors
            await asyncio.sleep(0.3)
            assert rig.metrics.save_errors <= errors + 2
            assert len(uploader.queue.batches) == 2

    asyncio.run(main())


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_leaves_the_batch_to_its_segment(tmp_path, number):
    rig = rig_of(tmp_path, "fail", "fail")
    rig.fs.on("write").fail(number)

    async def main():
        async with rig.running() as uploader:
            rig.submit(Batch(1, 4))
            await rig.until(lambda: rig.journal.kept)
            assert rig.journal.kept == [(key(1, token=OWN), 4)]
            assert uploader.queue.events == 0
            assert rig.journal.released == []
            assert uploader.has_room
            await rig.done()
            assert rig.store_.tries[-1] == ("create", key(1, token=OWN))
            assert len(rig.store_.stored()) == 4

    asyncio.run(main())


def test_a_disk_that_fails_and_no_segment_keeps_the_batch_in_its_place(tmp_path):
    rig = rig_of(tmp_path, "fail", "fail", has_segments=False, upload_queue=1, upload_concurrency=1)
    rig.fs.on("write").fail(errno.EIO)

    async def main():
        async with rig.running() as uploader:
            rig.submit(Batch(1, 4), Batch(2, 4))
            await rig.until(lambda: uploader._saving.failed)
            assert uploader.queue.events == 8
            assert not uploader.has_room
            await rig.done()
            assert rig.metrics.books.events_stored == 8
            assert {operation for operation, _ in rig.store_.tries} == {"put"}

    asyncio.run(main())


def test_a_disk_that_takes_again_is_noticed(tmp_path):
    rig = rig_of(tmp_path, then="fail", has_segments=False, upload_queue=1, upload_concurrency=1)
    rig.fs.on("write").fail(errno.EIO)

    async def main():
        async with rig.running() as uploader:
            rig.submit(*(Batch(n) for n in range(4)))
            await rig.until(lambda: uploader._saving.failed)
            rig.fs.heal()
            await rig.until(lambda: rig.dlq.files == 4)
            assert uploader.has_room

    asyncio.run(main())
