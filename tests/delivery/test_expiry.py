"""Files that are too old."""

from __future__ import annotations

import asyncio

import pytest
from botocore.exceptions import ClientError

from ingest.store.s3_errors import storage_error
from ingest.telemetry import DropReason
from tests.delivery.rig import rig_of
from tests.stand_ins.letters import body, files, key, leave


@pytest.mark.parametrize(("word", "kept"), [("ok", 0), ("fail", 0), ("none", 1)])
def test_an_old_file_expires_only_after_its_put_has_failed(tmp_path, word, kept):
    rig = rig_of(tmp_path, word, dlq_max_age="1h")
    rig.now = lambda: 1764684000.0 + 3601
    leave(rig.root, key(1), body(4))

    async def main():
        async with rig.running(scan=False, recovers=word != "none"):
            await rig.dlq.scan()
            if word == "none":
                await asyncio.sleep(0.05)
                assert len(files(rig.root)) == kept
                return
            await rig.done()
            assert rig.metrics.books.events_dropped[DropReason.EXPIRED] == (4 if word == "fail" else 0)
            assert rig.metrics.files_expired == (1 if word == "fail" else 0)
            assert files(rig.root) == []

    asyncio.run(main())


@pytest.mark.parametrize("age", ["0", "2h"])
def test_a_file_that_is_young_enough_never_expires(tmp_path, age):
    rig = rig_of(tmp_path, "fail", dlq_max_age=age)
    rig.now = lambda: 1764684000.0 + 3601
    leave(rig.root, key(1), body(4))

    async def main():
        async with rig.running():
            await rig.done()
            assert (rig.metrics.books.events_dropped[DropReason.EXPIRED], rig.metrics.books.events_stored) == (0, 4)

    asyncio.run(main())


@pytest.mark.parametrize("code", ["RequestTimeTooSkewed", "RequestExpired"])
def test_a_file_does_not_expire_by_a_clock_that_the_store_disputes(tmp_path, monkeypatch, code):
    """A clock that stepped forth makes each file old, and each put fail."""
    monkeypatch.setattr("ingest.delivery.aside.FIRST_AWAY", 0.05)
    rig = rig_of(tmp_path, dlq_max_age="1h")
    now = 1764684000.0 + 10 * 365 * 86400
    rig.now = lambda: now
    leave(rig.root, key(1), body(4))
    create = rig.store_.create
    tries = []

    async def skewed(name, *_):
        tries.append(name)
        answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 403}}
        raise storage_error("create", name, ClientError(answer, "PutObject"))

    rig.store_.create = skewed

    async def main():
        nonlocal now
        async with rig.running():
            await rig.until(lambda: len(tries) >= 2)
            assert files(rig.root) == [key(1)]
            now = 1764684000.0 + 60
            rig.store_.create = create
            await rig.done()
            assert (rig.metrics.books.events_dropped[DropReason.EXPIRED], rig.metrics.books.events_stored) == (0, 4)

    asyncio.run(main())
