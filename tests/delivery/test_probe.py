"""The breaker: batches while it is open, and the probe."""

from __future__ import annotations

import asyncio
import time

from ingest.delivery.breaker import State
from ingest.telemetry import BreakerState
from tests.delivery.rig import Batch, rig_of
from tests.stand_ins.letters import OWN, key


def test_while_the_breaker_is_open_batches_go_to_the_dlq_without_a_try(tmp_path):
    rig = rig_of(tmp_path, then="fail", s3_app_retries=3)

    async def main():
        async with rig.running() as uploader:
            rig.submit(Batch(1))
            await rig.until(lambda: uploader.attempts.breaker.state is State.OPEN)
            assert rig.metrics.breaker is BreakerState.OPEN
            tried = len(rig.store_.tries)
            rig.submit(Batch(2), Batch(3))
            await rig.until(lambda: rig.dlq.files == 3)
            assert len(rig.store_.tries) == tried == 3

    asyncio.run(main())


def test_the_next_batch_is_the_probe_when_one_is_due(tmp_path):
    rig = rig_of(tmp_path, "fail", "fail", "fail", then="ok", s3_app_retries=3)
    offset = 0.0
    rig.clock = lambda: time.monotonic() + offset

    async def main():
        nonlocal offset
        async with rig.running() as uploader:
            rig.submit(Batch(1))
            await rig.until(lambda: rig.dlq.files == 1)
            offset = 5.0
            rig.submit(Batch(2))
            await rig.until(lambda: key(2, token=OWN) in rig.store_.objects)
            assert ("put", key(2, token=OWN)) in rig.store_.tries
            assert uploader.attempts.breaker.state is State.CLOSED
            await rig.done()

    asyncio.run(main())


def test_when_idle_a_dlq_file_is_the_probe(tmp_path, monkeypatch):
    monkeypatch.setattr("ingest.delivery.breaker.FIRST_PAUSE", 0.05)
    rig = rig_of(tmp_path, "fail", "fail", "fail", s3_app_retries=3)

    async def main():
        async with rig.running() as uploader:
            rig.submit(Batch(1))
            await rig.until(lambda: rig.metrics.enqueued == 3)
            await rig.done()
            assert rig.store_.tries[3] == ("create", key(1, token=OWN))
            assert uploader.attempts.breaker.state is State.CLOSED

    asyncio.run(main())


def test_one_probe_fails_and_the_rest_of_a_batch_s_tries_is_not_made(tmp_path):
    rig = rig_of(tmp_path, then="fail", s3_app_retries=3)
    offset = 0.0
    rig.clock = lambda: time.monotonic() + offset

    async def main():
        nonlocal offset
        async with rig.running(recovers=False):
            rig.submit(Batch(1))
            await rig.until(lambda: rig.dlq.files == 1)
            offset = 100.0
            tried = len(rig.store_.tries)
            rig.submit(Batch(2))
            await rig.until(lambda: rig.dlq.files == 2)
            assert len(rig.store_.tries) == tried + 1

    asyncio.run(main())
