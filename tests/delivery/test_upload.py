"""A batch's way to the store."""

from __future__ import annotations

import asyncio
import errno
import random
import time

import pytest
from structlog.testing import capture_logs

from ingest.delivery import backoff
from ingest.delivery.upload import Uploader
from ingest.format import codec
from tests.delivery.rig import Batch, Rig, rig_of
from tests.stand_ins.letters import OWN, Store, body, files, key, leave


def test_a_batch_is_put_under_its_key_with_what_is_known_of_it(tmp_path):
    rig = rig_of(tmp_path)
    batch = Batch(1, 5)
    lines = bytes(batch.data)

    async def main():
        async with rig.running() as uploader:
            rig.submit(batch)
            assert uploader.queue.events == 5
            assert rig.budget.batches == batch.size
            await rig.done()
            assert rig.store_.tries == [("put", batch.key)]
            assert list(rig.store_.objects) == [batch.key]
            assert codec.lines_of(rig.store_.objects[batch.key]) == lines
            metadata = rig.store_.metadata[batch.key]
            assert (metadata.events, metadata.first_ts, metadata.last_ts) == (5, batch.first_ts, batch.last_ts)
            assert metadata.instance == f"host-{OWN}"
            assert rig.journal.released == [batch.key]
            assert (uploader.queue.events, rig.budget.batches, len(uploader.queue.batches)) == (0, 0, 0)
            assert batch.given_back == 1
            assert rig.metrics.books.events_stored == 5

    asyncio.run(main())


def test_no_more_puts_run_at_once_than_upload_concurrency(tmp_path):
    rig = rig_of(tmp_path, upload_concurrency=3, upload_queue=50)
    rig.store_.took = 0.02
    for n in range(20):
        leave(rig.root, key(n), body(1))

    async def main():
        async with rig.running():
            rig.submit(*(Batch(n) for n in range(20)))
            await rig.done()
            assert rig.store_.most_running == 3

    asyncio.run(main())


def test_a_failed_try_is_repeated_and_the_batch_stored_from_memory(tmp_path):
    rig = rig_of(tmp_path, "fail", s3_app_retries=2)

    async def main():
        async with rig.running():
            rig.submit(Batch(1))
            await rig.done()
            assert rig.store_.tries == [("put", key(1, token=OWN))] * 2
            assert rig.metrics.put_errors.total() == 1
            assert rig.metrics.enqueued == 0

    asyncio.run(main())


@pytest.mark.parametrize("tries", [1, 3])
def test_after_s3_app_retries_tries_the_batch_goes_to_the_dlq_and_from_there_to_the_store(tmp_path, tries, monkeypatch):
    monkeypatch.setattr("ingest.delivery.breaker.FAILURES_TO_OPEN", 100)
    rig = rig_of(tmp_path, *["fail"] * tries, s3_app_retries=tries)
    batch = Batch(1, 4)

    async def main():
        async with rig.running():
            rig.submit(batch)
            await rig.until(lambda: rig.metrics.enqueued == 4)
            await rig.done()
            assert rig.store_.tries == [("put", batch.key)] * tries + [("create", batch.key)]
            assert rig.metrics.reuploaded == 4
            assert rig.store_.stored() == ["100", "101", "102", "103"]
            assert files(rig.root) == []

    asyncio.run(main())


def test_a_store_that_hangs_ends_at_s3_timeout(tmp_path):
    rig = rig_of(tmp_path, "hang", "hang", s3_timeout="30ms", s3_app_retries=2)

    async def main():
        async with rig.running():
            began = time.monotonic()
            rig.submit(Batch(1))
            await rig.until(lambda: rig.metrics.enqueued == 3)
            assert 0.06 <= time.monotonic() - began < 1.0
            assert rig.metrics.put_errors.total() == 2

    asyncio.run(main())


def test_the_backoff_is_full_jitter_and_grows(tmp_path, monkeypatch):
    monkeypatch.setattr("ingest.delivery.breaker.FAILURES_TO_OPEN", 100)
    rig = rig_of(tmp_path, *["fail"] * 8, s3_app_retries=9)
    drawn = []

    async def main():
        async with rig.running() as uploader:
            uploader._backoff._draw = lambda low, high: drawn.append((low, high)) or 0.0
            rig.submit(Batch(1))
            await rig.until(lambda: rig.metrics.books.events_stored == 3)

    asyncio.run(main())
    assert {low for low, _ in drawn} == {0.0}
    highs = [high for _, high in drawn]
    assert highs == sorted(highs)
    assert highs[-1] == highs[-2] == backoff.BACKOFF_CAP


def test_an_answer_that_was_lost_stores_nothing_twice(tmp_path):
    rig = rig_of(tmp_path, "lose", "lose", s3_app_retries=2)

    async def main():
        async with rig.running():
            rig.submit(Batch(1, 4))
            await rig.done()
            assert rig.store_.stored() == ["100", "101", "102", "103"]
            assert [operation for operation, _ in rig.store_.tries] == ["put", "put", "create"]
            assert rig.metrics.puts_already_stored == 1
            assert rig.metrics.books.events_stored == 4

    asyncio.run(main())


def test_b_whatever_a_store_raises_is_a_failed_try_that_the_log_names(tmp_path):
    rig = rig_of(tmp_path, upload_queue=20)
    put, create = rig.store_.put, rig.store_.create

    async def broken(*_):
        raise KeyError("AccessKeyId")

    async def main():
        async with rig.running():
            rig.store_.put = rig.store_.create = broken
            with capture_logs() as logs:
                rig.submit(Batch(1, 5))
                await rig.until(lambda: rig.dlq.files == 1)
            lines = [line for line in logs if line["event"] == "put_failed"]
            assert {line["error"] for line in lines} == {"KeyError: 'AccessKeyId'"}
            rig.store_.put, rig.store_.create = put, create
            await rig.done()
            assert rig.metrics.books.events_stored == 5

    asyncio.run(main())


def test_a_cancelled_upload_gives_the_buffer_back_only_when_the_executor_has_read_it(tmp_path, monkeypatch):
    import threading

    gate, reading, read = threading.Event(), threading.Event(), []
    real = codec.encode

    def encode(data, events):
        reading.set()
        gate.wait(10)
        read.append(bytes(data))
        return real(data, events)

    monkeypatch.setattr(codec, "encode", encode)
    rig = rig_of(tmp_path)
    batch = Batch(1)
    whole = bytes(batch.data)

    async def main():
        async with rig.open():
            uploader = Uploader(
                rig.settings, rig.store_, rig.dlq, rig.journal, rig.journal, rig.metrics, rig.budget, rig.executor
            )
            task = asyncio.ensure_future(uploader.run())
            await asyncio.sleep(0)
            rig.uploader = uploader
            rig.submit(batch)
            await asyncio.to_thread(reading.wait)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert batch.given_back == 0
            gate.set()
            await rig.until(lambda: batch.given_back == 1)
            assert read == [whole]

    asyncio.run(main())


def test_the_oldest_event_is_found_in_memory_and_on_disk_and_forgotten_when_it_is_stored(tmp_path):
    rig = rig_of(tmp_path, then="fail", upload_queue=20)
    early, late = Batch(1), Batch(2)
    early.first_ts, late.first_ts = 1764684000 - 7000, 1764684000 + 10

    async def main():
        async with rig.running() as uploader:
            assert (uploader.queue.oldest, rig.dlq.oldest) == (0, 0)
            rig.submit(late, early)
            assert uploader.queue.oldest == early.first_ts
            await rig.until(lambda: rig.dlq.files == 2 and uploader.queue.is_empty)
            assert uploader.queue.oldest == 0
            assert rig.dlq.oldest == 1764684000, "as their keys say"
            rig.store_.then = "ok"
            await rig.done()
            await rig.until(lambda: rig.dlq.oldest == 0)

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(6))
def test_whatever_fails_every_event_is_stored_once_and_the_books_balance_at_every_step(tmp_path, seed, monkeypatch):
    monkeypatch.setattr("ingest.delivery.breaker.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("ingest.delivery.breaker.LONGEST_PAUSE", 0.02)
    chance = random.Random(seed)
    rig = Rig(
        tmp_path,
        Store(*chance.choices(["ok", "fail", "hang", "lose"], [5, 3, 1, 2], k=120)),
        has_segments=seed % 2 == 0,
        s3_timeout="15ms",
        upload_queue=2,
        upload_concurrency=2,
        dlq_max_size_bytes=chance.choice([600, 10_000_000]),
    )
    for n in range(20):
        leave(rig.root, key(n), body(3, 1_000_000 + 10 * n))

    async def main():
        async with rig.running(scan=False):
            scanning = asyncio.ensure_future(rig.dlq.scan())
            for n in range(60):
                rig.submit(Batch(n, 3, 10 * n))
                number = chance.choice([None, None, errno.EIO, errno.ENOSPC])
                operation = chance.choice(["write", "rename", "fsync_dir"])
                rig.fs.heal()
                if number:
                    rig.fs.on(operation).fail(number)
                await asyncio.sleep(chance.choice([0, 0.001, 0.005]))
            rig.fs.heal()
            await scanning
            await rig.done(20)
            stored = rig.store_.stored()
            assert len(stored) == len(set(stored)) == 240
            assert (
                rig.metrics.books.events_stored
                == rig.metrics.books.events_accepted + rig.metrics.books.events_recovered
            )
            assert files(rig.root) == []

    asyncio.run(main())
