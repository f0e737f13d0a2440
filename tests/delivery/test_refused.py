"""One bad thing stops itself only: refused files, puts of recovery that come to nothing."""

from __future__ import annotations

import asyncio
import errno

import pytest
from structlog.testing import capture_logs

from ingest.delivery import aside as aside_room
from ingest.delivery import recovery as recovery_room
from ingest.delivery.breaker import State
from ingest.delivery.recovery import Recovery
from ingest.store import Refusal
from ingest.telemetry import PutError
from tests.delivery.rig import Batch, rig_of
from tests.stand_ins.letters import OWN, body, files, key, leave


def test_a4_live_batches_do_not_notice_files_whose_prefix_is_denied(tmp_path, monkeypatch):
    monkeypatch.setattr(aside_room, "FIRST_REFUSED", 3600.0)
    passes, passed = [], Recovery._passed
    monkeypatch.setattr(Recovery, "_passed", lambda recovery: passes.append(recovery) or passed(recovery))
    rig = rig_of(tmp_path, upload_queue=50)
    rig.store_.denied = {"old"}
    bad = [key(n, prefix="old") for n in range(20)]
    for name in bad:
        leave(rig.root, name, body(1))
    good = key(99, prefix="raw", unix=1764684001)
    leave(rig.root, good, body(1))

    async def main():
        async with rig.running() as uploader:
            for n in range(30):
                rig.submit(Batch(n))
                await asyncio.sleep(0.02)
            await rig.until(lambda: uploader.queue.is_empty)
            await rig.until(lambda: len(files(rig.root)) == 20, 30)
            await rig.until(lambda: uploader.aside.refused == 20, 30)
            assert uploader.attempts.breaker.state is State.CLOSED
            assert rig.metrics.enqueued == 0, "no batch was diverted to the disk"
            assert good in rig.store_.objects
            tries, seen = len(rig.store_.tries), len(passes)
            await rig.until(lambda: len(passes) >= seen + 2)
            assert len(rig.store_.tries) == tries, "a file that is set aside is not tried before its time"
            rig.store_.denied = set()
            rig.submit(Batch(1000))
            left = await rig.drain(20)
            assert left.dlq_files == 0, "a drain tries each once more"
            assert uploader.aside.refused == 0

    asyncio.run(main())


def test_a4_files_of_a_prefix_follow_the_first_one_that_is_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(aside_room, "FIRST_REFUSED", 3600.0)
    rig = rig_of(tmp_path)
    rig.store_.denied = {"old"}
    for n in range(5):
        leave(rig.root, key(n, prefix="old"), body(1))

    async def main():
        async with rig.running() as uploader:
            await rig.until(lambda: len({name for _, name in rig.store_.tries}) == 5)
            rig.submit(Batch(1))
            await rig.until(lambda: uploader.aside.refused == 5)
            rig.store_.denied = set()
            uploader.aside.stored(key(77, prefix="old"))
            await rig.done()

    asyncio.run(main())


def test_without_contrast_a_refusal_is_an_outage(tmp_path):
    """Whoever may put nothing is told the same as whoever may not put this."""
    rig = rig_of(tmp_path, upload_queue=20, s3_app_retries=1)
    rig.store_.denied = {"raw"}

    async def main():
        async with rig.running() as uploader:
            rig.submit(*(Batch(n) for n in range(5)))
            await rig.until(lambda: rig.dlq.files == 5)
            assert uploader.attempts.breaker.state is not State.CLOSED
            assert uploader.aside.refused == 0
            assert rig.metrics.put_errors[PutError.REFUSED] == 0
            rig.store_.denied = set()
            await rig.done(30)

    asyncio.run(main())


def removed_by_hand(rig, name):
    (rig.root / name).unlink()


def evicted(rig, _name):
    assert rig.dlq._letters._evict_oldest()


@pytest.mark.parametrize("goes", [removed_by_hand, evicted])
def test_a_refused_file_that_goes_otherwise_than_to_the_store_is_refused_no_more(tmp_path, monkeypatch, goes):
    monkeypatch.setattr(recovery_room, "IDLE_PAUSE", 0.01)
    monkeypatch.setattr(recovery_room, "LONGEST_IDLE_PAUSE", 0.05)
    rig = rig_of(tmp_path)
    rig.store_.denied = {"old"}
    bad = key(1, prefix="old")
    leave(rig.root, bad, body(1))

    async def main():
        async with rig.running() as uploader:
            await rig.until(lambda: rig.store_.tries)
            rig.submit(Batch(1))
            await rig.until(lambda: uploader.aside.refused == 1)
            await asyncio.sleep(0.2)
            assert uploader.aside.refused == 1, "it is there, and waits"
            goes(rig, bad)
            await rig.until(lambda: uploader.aside.refused == 0)
            assert uploader.aside.refused_hours() == set()
            assert uploader.aside.next_due() is None, "nothing is looked for any more"

    asyncio.run(main())


def test_a_batch_that_alone_is_refused_is_set_aside_and_the_breaker_stays_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(aside_room, "FIRST_REFUSED", 3600.0)
    rig = rig_of(tmp_path, upload_concurrency=2, upload_queue=50, s3_timeout="10s")
    put, large, others = rig.store_.put, Batch(5), asyncio.Event()

    async def choosy(name, *rest):
        if name != large.key:
            await put(name, *rest)
            others.set()
            return
        await others.wait()
        raise Refusal("put", name, "too large", transient=False, cause={"code": "EntityTooLarge", "status": 400})

    async def main():
        async with rig.running(recovers=False) as uploader:
            rig.store_.put = choosy
            rig.submit(large, *(Batch(n) for n in range(10, 20)))
            await rig.until(lambda: uploader.queue.is_empty)
            assert files(rig.root) == [large.key]
            assert rig.metrics.books.events_stored == 30
            assert rig.metrics.put_errors[PutError.REFUSED] == 1, "it is not tried again at once"
            assert uploader.aside.refused == 1
            assert uploader.attempts.breaker.state is State.CLOSED

    asyncio.run(main())


@pytest.mark.parametrize("word", ["fail", "409", "412", "hang"])
def test_puts_of_recovery_that_come_to_nothing_never_open_the_breaker(tmp_path, word):
    rig = rig_of(tmp_path, s3_timeout="20ms")
    for n in range(6):
        leave(rig.root, key(n), body(1))

    async def main():
        async with rig.running() as uploader:
            rig.store_.then = word
            await rig.until(lambda: len(rig.store_.tries) >= 8)
            assert uploader.attempts.breaker.state is State.CLOSED
            rig.store_.then = "ok"
            await rig.done(20)

    asyncio.run(main())


@pytest.mark.parametrize("word", ["409", "412"])
def test_409_and_412_to_batches_never_count(tmp_path, word):
    rig = rig_of(tmp_path, upload_queue=20)

    async def main():
        async with rig.running() as uploader:
            rig.store_.then = word
            rig.submit(*(Batch(n) for n in range(8)))
            await rig.until(lambda: rig.dlq.files == 8)
            assert uploader.attempts.breaker.state is State.CLOSED
            rig.store_.then = "ok"
            await rig.done(20)

    asyncio.run(main())


def test_f5_the_log_of_a_failed_put_has_cause_address_attempt_and_hint(tmp_path):
    rig = rig_of(tmp_path, s3_app_retries=2, upload_concurrency=1)
    rig.store_.denied = {"raw"}

    async def main():
        async with rig.running(recovers=False):
            with capture_logs() as logs:
                rig.submit(Batch(1))
                await rig.until(lambda: rig.dlq.files == 1)
            told = [line for line in logs if line["event"] == "put_failed"]
            assert [line["attempt"] for line in told] == [1, 2]
            for line in told:
                assert (line["error"], line["code"], line["status"]) == ("AccessDenied", "AccessDenied", 403)
                assert (line["address"], line["hint"], line["verdict"]) == ("memory", "not allowed", "away")

    asyncio.run(main())


def test_a8_a_store_that_takes_batches_ends_the_state_in_which_the_disk_refuses(tmp_path):
    rig = rig_of(tmp_path, "fail", "fail", has_segments=False, upload_queue=1, upload_concurrency=1)
    rig.fs.on("write").fail(errno.ENOSPC)

    async def main():
        async with rig.running() as uploader:
            with capture_logs() as logs:
                rig.submit(Batch(1))
                await rig.until(lambda: "disk_refuses=True" in repr(uploader))
                rig.fs.heal()
                await rig.until(lambda: uploader.queue.is_empty)
            assert uploader.has_room
            assert "disk_refuses=False" in repr(uploader)
            assert [line["event"] for line in logs].count("dlq_takes_again") == 1
            assert rig.metrics.books.events_stored == 3
            assert key(1, token=OWN) in rig.store_.objects

    asyncio.run(main())
