"""The end of the process."""

from __future__ import annotations

import asyncio
import errno
import time

import pytest

from ingest.delivery.breaker import State
from ingest.delivery.upload import Uploader
from ingest.telemetry import Place
from tests.delivery.rig import Batch, rig_of
from tests.stand_ins.letters import body, key, leave, lines


def test_a_drain_uploads_the_queue_then_backlog_and_dlq(tmp_path):
    rig = rig_of(tmp_path, upload_queue=20)
    rig.store_.took = 0.005
    for n in range(10):
        leave(rig.root, key(n), body(1))
    rig.metrics.books.recovered(2, Place.BACKLOG)
    rig.journal.keep(key(100), lines(2), 2)

    async def main():
        async with rig.running():
            rig.submit(*(Batch(n) for n in range(10)))
            began = time.monotonic()
            left = await rig.drain(20)
            assert time.monotonic() - began < 5
            assert (left.dlq_files, left.backlog_files, left.lost_batches) == (0, 0, 0)
            assert rig.metrics.books.events_stored == 42

    asyncio.run(main())


@pytest.mark.parametrize("word", ["fail", "hang"])
def test_a_drain_without_a_store_saves_everything_in_the_dlq_in_time(tmp_path, word):
    rig = rig_of(tmp_path, then=word, upload_queue=20, s3_timeout="60s")

    async def main():
        async with rig.running() as uploader:
            rig.submit(*(Batch(n) for n in range(10)))
            began = time.monotonic()
            left = await rig.drain(4.0)
            assert time.monotonic() - began < 4.0
            assert (left.dlq_files, left.dlq_events, left.lost_batches) == (10, 30, 0)
            assert uploader.queue.is_empty
            assert len(rig.journal.released) == 10

    asyncio.run(main())


def test_a_second_signal_skips_to_the_dlq(tmp_path):
    rig = rig_of(tmp_path, then="hang", upload_queue=20, s3_timeout="60s")

    async def main():
        async with rig.running():
            rig.submit(*(Batch(n) for n in range(5)))
            began = time.monotonic()
            draining = asyncio.ensure_future(rig.drain(60))
            await asyncio.sleep(0.05)
            assert not draining.done()
            rig.skip.set()
            left = await draining
            assert time.monotonic() - began < 1.0
            assert left.dlq_files == 5
            assert rig.metrics.put_errors.total() == 0, "a put that was given up is no failure of the store"

    asyncio.run(main())


def test_a_second_signal_ends_the_recovery_put_under_way(tmp_path):
    rig = rig_of(tmp_path, then="hang", s3_timeout="60s")
    leave(rig.root, key(1), body(2))

    async def main():
        async with rig.running():
            await rig.until(lambda: rig.store_.tries)
            rig.skip.set()
            began = time.monotonic()
            left = await rig.drain(60)
            assert time.monotonic() - began < 1.0
            assert left.dlq_events == 2

    asyncio.run(main())


def test_a_drain_does_not_circle_over_files_that_nobody_takes(tmp_path):
    rig = rig_of(tmp_path)
    rig.store_.refused = {key(1), key(2)}
    for n in range(6):
        leave(rig.root, key(n), body(1))

    async def main():
        async with rig.running():
            began = time.monotonic()
            left = await rig.drain(20)
            assert time.monotonic() - began < 2
            assert left.dlq_files == 2
            assert rig.metrics.books.events_stored == 4

    asyncio.run(main())


def test_a_full_dlq_leaves_batches_to_their_segments_at_the_end(tmp_path):
    rig = rig_of(tmp_path, then="fail", upload_queue=20, dlq_max_size_bytes=10)

    async def main():
        async with rig.running():
            rig.submit(*(Batch(n) for n in range(5)))
            left = await rig.drain(1)
            assert (left.backlog_files, left.backlog_events, left.lost_batches) == (5, 15, 0)
            assert rig.journal.released == []

    asyncio.run(main())


def test_without_segments_the_end_of_the_process_saves_beyond_the_limit(tmp_path):
    """A limit is a wish; an acknowledged event that is only in memory is lost with the process."""
    rig = rig_of(tmp_path, then="fail", upload_queue=20, dlq_max_size_bytes=10, has_segments=False)

    async def main():
        async with rig.running():
            rig.submit(*(Batch(n) for n in range(5)))
            left = await rig.drain(2)
            assert (left.dlq_files, left.lost_batches) == (5, 0)

    asyncio.run(main())


def test_what_no_disk_takes_is_told(tmp_path):
    rig = rig_of(tmp_path, then="fail", has_segments=False)
    rig.fs.on("write").fail(errno.ENOSPC)

    async def main():
        async with rig.running():
            rig.submit(Batch(1), Batch(2))
            left = await rig.drain(0.5)
            assert (left.lost_batches, left.lost_events) == (2, 6)

    asyncio.run(main())


def test_a_bug_of_ours_ends_the_work_loudly_and_the_drain_still_saves_every_batch(tmp_path):
    rig = rig_of(tmp_path, upload_queue=20, upload_concurrency=1)
    rig.store_.took = 0.02

    async def broken(*_):
        raise RuntimeError("a bug")

    async def main():
        async with rig.open():
            uploader = rig.uploader = Uploader(
                rig.settings, rig.store_, rig.dlq, rig.journal, rig.journal, rig.metrics, rig.budget, rig.executor
            )
            task = asyncio.ensure_future(uploader.run())
            rig.submit(*(Batch(n) for n in range(5)))
            uploader.attempts.put = broken
            with pytest.raises(BaseExceptionGroup):
                await task
            rig.submit(Batch(5))
            began = time.monotonic()
            left = await rig.drain(20)
            assert time.monotonic() - began < 2
            assert (left.dlq_files, left.lost_batches) == (6, 0)

    asyncio.run(main())


def test_a_cancelled_run_leaves_every_batch_to_the_drain(tmp_path):
    rig = rig_of(tmp_path, then="hang", s3_timeout="60s", upload_queue=20)

    async def main():
        async with rig.open():
            uploader = rig.uploader = Uploader(
                rig.settings, rig.store_, rig.dlq, rig.journal, rig.journal, rig.metrics, rig.budget, rig.executor
            )
            task = asyncio.ensure_future(uploader.run())
            rig.submit(*(Batch(n) for n in range(5)))
            await rig.until(lambda: len(rig.store_.tries) == 2)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            left = await rig.drain(20)
            assert (left.dlq_files, left.lost_batches) == (5, 0)

    asyncio.run(main())


@pytest.mark.parametrize("batches", [0, 1], ids=["files", "a batch too"])
def test_a7_a_drain_tries_a_store_that_is_back_whatever_the_breaker_knew(tmp_path, monkeypatch, batches):
    monkeypatch.setattr("ingest.delivery.breaker.FIRST_PAUSE", 3600.0)
    rig = rig_of(tmp_path, then="fail", upload_queue=20, s3_app_retries=3)

    async def main():
        async with rig.running() as uploader:
            rig.submit(*(Batch(n) for n in range(4)))
            await rig.until(lambda: rig.dlq.files == 4)
            assert uploader.attempts.breaker.state is State.OPEN
            rig.store_.then = "ok"
            rig.submit(*(Batch(n) for n in range(10, 10 + batches)))
            await rig.until(lambda: rig.dlq.files == 4 + batches)
            left = await rig.drain(20)
            assert (left.dlq_files, left.lost_batches) == (0, 0)
            assert rig.metrics.books.events_stored == 3 * (4 + batches)

    asyncio.run(main())


def test_a_drain_whose_one_try_fails_does_not_wait_for_the_store(tmp_path, monkeypatch):
    monkeypatch.setattr("ingest.delivery.breaker.FIRST_PAUSE", 3600.0)
    rig = rig_of(tmp_path, then="fail", upload_queue=20, s3_app_retries=3)

    async def main():
        async with rig.running() as uploader:
            rig.submit(*(Batch(n) for n in range(4)))
            await rig.until(lambda: rig.dlq.files == 4)
            assert uploader.attempts.breaker.state is State.OPEN
            tries = len(rig.store_.tries)
            began = time.monotonic()
            left = await rig.drain(60)
            assert time.monotonic() - began < 20
            assert len(rig.store_.tries) == tries + 1
            assert left.dlq_files == 4

    asyncio.run(main())


def test_a_batch_that_is_spilled_while_the_process_drains_is_put_too(tmp_path):
    """Recovery must not end its work while a batch may still come to the disk."""
    rig = rig_of(tmp_path, upload_concurrency=1, upload_queue=1)
    rig.store_.took = 0.05

    async def main():
        async with rig.running():
            rig.submit(*(Batch(n) for n in range(8)))
            left = await rig.drain(30)
            assert (left.dlq_files, left.lost_batches) == (0, 0)
            assert rig.metrics.books.events_stored == 24

    asyncio.run(main())


def test_c5_a_drain_ends_in_time_while_the_disk_hangs_and_leaves_batches_to_their_segments(tmp_path):
    rig = rig_of(tmp_path, then="fail", upload_queue=20, s3_app_retries=1)
    rule = rig.fs.on("open").hang()

    async def main():
        try:
            async with rig.open(scan=False) as dlq:
                uploader = rig.uploader = Uploader(
                    rig.settings, rig.store_, dlq, rig.journal, rig.journal, rig.metrics, rig.budget, rig.executor
                )
                task = asyncio.ensure_future(uploader.run())
                rig.submit(*(Batch(n) for n in range(6)))
                began = time.monotonic()
                left = await rig.drain(4)
                assert time.monotonic() - began < 4.5
                assert (left.backlog_events, left.lost_events) == (18, 0)
                # The process ends here: nobody waits for the disk any more when it answers after all.
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                rule.release()
        finally:
            rule.release()

    asyncio.run(main())


@pytest.mark.parametrize("contrast", [False, True], ids=["an outage", "a verdict"])
def test_a7_a_refused_file_that_is_the_probe_leaves_no_other_on_the_disk(tmp_path, monkeypatch, contrast):
    """A4 and A7 at once: the store is back while the breaker waits, and does not take the first file that is tried."""
    monkeypatch.setattr("ingest.delivery.breaker.FIRST_PAUSE", 3600.0)
    rig = rig_of(tmp_path, upload_queue=20, s3_app_retries=3)
    rig.store_.denied = {"aaa", "zzz"}
    refused = [key(n, prefix=prefix) for n in range(3) for prefix in ("aaa", "zzz")]
    for name in refused:
        leave(rig.root, name, body(1))

    async def main():
        async with rig.running() as uploader:
            await rig.until(lambda: len({name for _, name in rig.store_.tries}) == len(refused))
            if contrast:
                rig.submit(Batch(99))
                await rig.until(lambda: uploader.queue.is_empty)
            rig.store_.then = "fail"
            rig.submit(*(Batch(n) for n in range(4)))
            await rig.until(lambda: rig.dlq.files == 4 + len(refused))
            assert uploader.attempts.breaker.state is State.OPEN
            rig.store_.then = "ok"
            began = time.monotonic()
            left = await rig.drain(20)
            assert time.monotonic() - began < 10
            assert (left.dlq_files, left.lost_batches) == (len(refused), 0)
            assert rig.metrics.books.events_stored == 3 * (4 + contrast)

    asyncio.run(main())
