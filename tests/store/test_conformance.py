"""One suite for every store: memory, a directory, S3 with conditional puts, and S3 that looks first."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from ingest.config.settings import load
from ingest.disk.errors import StorageError
from ingest.disk.filesystem import Filesystem
from ingest.format import codec
from ingest.store import create_store
from ingest.store.object_store import Head, ObjectMetadata, ObjectStore
from ingest.store.outcome import Refusal
from tests.stand_ins.fakes import MemoryStore
from tests.stand_ins.s3_server import REGION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HEAD = Head(codec.HEAD_BYTES, codec.event_count)
KEY = "raw/dt=2025-12-02/hr=14/1764687600_host-0123456789abcdef_0000000001.jsonl.gz"
METADATA = ObjectMetadata(events=3, first_ts=1_764_687_600, last_ts=1_764_687_720, instance="host-0123456789abcdef")


@pytest.fixture(params=["memory", "directory", "s3", "s3 without conditional puts"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def opened(kind, request, tmp_path):
    """`async with opened() as store`: each call opens one more store over the same objects."""
    if kind == "memory":
        memory = MemoryStore()
    environ = {"STORE_DIR": str(tmp_path / "objects")}
    if kind.startswith("s3"):
        environ = {
            "RAW_BUCKET": request.getfixturevalue("bucket"),
            "AWS_REGION": REGION,
            "S3_ENDPOINT_URL": request.getfixturevalue("s3_server"),
            "S3_TIMEOUT": "20s",
            "S3_CONDITIONAL_PUTS": str(kind == "s3").lower(),
        }

    @asynccontextmanager
    async def open_store() -> AsyncIterator[ObjectStore]:
        with ThreadPoolExecutor(4) as executor:
            store = (
                memory if kind == "memory" else create_store(load(environ), HEAD, fs=Filesystem(), executor=executor)
            )
            await store.start()
            try:
                yield store
            finally:
                await store.close()

    return open_store


def file_of(events: int) -> bytes:
    return codec.encode(b'{"ts":1,"body":"x"}\n' * events, events)


@pytest.mark.parametrize("original", [b"", b"{torn", b"longer than the head of a file"], ids=["empty", "short", "long"])
def test_an_original_is_created_once(opened, original):
    async def scenario(store):
        assert await store.create(KEY, original, METADATA) is True
        assert await store.create(KEY, original, METADATA) is False
        assert await store.get(KEY) == original

    run(opened, scenario)


def run(opened, scenario) -> None:
    async def main() -> None:
        async with opened() as store:
            await scenario(store)

    asyncio.run(main())


@pytest.mark.parametrize("body", [b"", b"body", bytes(range(256)) * 12_000], ids=["nothing", "bytes", "3 MB"])
def test_what_is_put_is_there(opened, body):
    async def scenario(store):
        await store.put(KEY, body, METADATA)
        assert await store.get(KEY) == body

    run(opened, scenario)


def test_a_put_replaces(opened):
    async def scenario(store):
        await store.put(KEY, b"old", METADATA)
        await store.put(KEY, b"new", METADATA)
        assert await store.get(KEY) == b"new"

    run(opened, scenario)


def test_a_new_key_is_created(opened):
    async def scenario(store):
        assert await store.create(KEY, b"body", METADATA) is True
        assert await store.get(KEY) == b"body"

    run(opened, scenario)


@pytest.mark.parametrize("first", ["put", "create"])
def test_create_only_never_replaces(opened, first):
    async def scenario(store):
        whole = file_of(3)
        await getattr(store, first)(KEY, whole, METADATA)
        for _ in range(2):
            assert await store.create(KEY, file_of(2), METADATA) is False
        assert await store.get(KEY) == whole

    run(opened, scenario)


def test_a_create_of_more_of_the_same_batch_replaces_less(opened):
    """Half a file was stored under the key; the whole one is found later (E8)."""

    async def scenario(store):
        assert await store.create(KEY, file_of(2), METADATA) is True
        assert await store.create(KEY, file_of(3), METADATA) is True
        assert await store.create(KEY, file_of(2), METADATA) is False
        assert await store.get(KEY) == file_of(3)

    run(opened, scenario)


@pytest.mark.parametrize(
    "there",
    [b"", bytes(40), file_of(3)[:19], b"something else that is not ours"],
    ids=["nothing", "zeros", "a torn head", "no gzip of ours"],
)
def test_a_create_neither_replaces_nor_trusts_what_is_no_batch(opened, there):
    async def scenario(store):
        await store.put(KEY, there, METADATA)
        with pytest.raises(Refusal):
            await store.create(KEY, file_of(3), METADATA)
        assert await store.get(KEY) == there
        await store.delete(KEY)
        assert await store.create(KEY, file_of(3), METADATA) is True

    run(opened, scenario)


def test_of_many_who_create_one_key_one_wins(opened, kind):
    if kind == "s3 without conditional puts":
        pytest.skip("looking first is a race, as `store/s3.py` says")

    async def scenario(store):
        async with opened() as other:
            stores = [store, other] * 4
            won = await asyncio.gather(*(s.create(KEY, b"%d" % n * 999, METADATA) for n, s in enumerate(stores)))
        assert won.count(True) == 1
        assert await store.get(KEY) == b"%d" % won.index(True) * 999

    run(opened, scenario)


def test_other_keys_are_left_alone(opened):
    async def scenario(store):
        await asyncio.gather(*(store.put(f"{KEY}{n}", b"%d" % n, METADATA) for n in range(10)))
        await store.delete(f"{KEY}3")
        assert await store.create(f"{KEY}4", b"4", METADATA) is False
        for n in [n for n in range(10) if n != 3]:
            assert await store.get(f"{KEY}{n}") == b"%d" % n

    run(opened, scenario)


def test_no_such_key_is_a_storage_error_that_no_retry_mends(opened):
    async def scenario(store):
        with pytest.raises(StorageError) as caught:
            await store.get(KEY)
        assert caught.value.operation in ("get", "read")
        assert caught.value.subject.endswith(KEY)

    run(opened, scenario)


def test_a_deleted_key_is_gone_and_can_be_created(opened):
    async def scenario(store):
        await store.put(KEY, b"old", METADATA)
        await store.delete(KEY)
        with pytest.raises(StorageError):
            await store.get(KEY)
        assert await store.create(KEY, b"new", METADATA) is True

    run(opened, scenario)


def test_to_delete_what_is_not_there_is_no_error(opened):
    async def scenario(store):
        await store.delete(KEY)

    run(opened, scenario)


def test_a_cancelled_put_is_cancelled_and_harms_no_later_call(opened):
    async def scenario(store):
        for turns in range(2):
            task = asyncio.create_task(store.put(KEY, b"cancelled", METADATA))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await store.put(f"{KEY}2", b"body", METADATA)
        assert await store.get(f"{KEY}2") == b"body"

    run(opened, scenario)


def test_what_is_stored_is_there_for_the_next_process(opened):
    async def scenario(store):
        await store.put(KEY, file_of(3), METADATA)
        async with opened() as later:
            assert await later.get(KEY) == file_of(3)
            assert await later.create(KEY, file_of(1), METADATA) is False

    run(opened, scenario)


LATER = KEY.replace("_0000000001", "_0000000002")


def test_a_listing_has_all_of_a_prefix_and_nothing_else(opened):
    async def scenario(store):
        hour = f"{KEY.rpartition('/')[0]}/"
        assert await store.listing(hour) == []
        before = time.time() - 2
        await asyncio.gather(*(store.put(key, b"%d" % size * size, METADATA) for size, key in ((3, LATER), (2, KEY))))
        await store.put(KEY.replace("hr=14", "hr=15"), b"another hour", METADATA)
        await store.put(KEY.replace("hr=14", "hr=149"), b"not even an hour", METADATA)
        listed = await store.listing(hour)
        assert [(one.key, one.size) for one in listed] == [(KEY, 2), (LATER, 3)]
        assert all(before < one.modified < time.time() + 2 for one in listed)
        assert len(await store.listing("raw/")) == 4

    run(opened, scenario)


def test_a_listing_of_many_pages_is_whole(opened, kind):
    if not kind.startswith("s3"):
        pytest.skip("only S3 has pages")

    async def scenario(store):
        keys = [f"raw/{number:04d}" for number in range(1003)]
        for begin in range(0, len(keys), 32):
            await asyncio.gather(*(store.put(key, b"", METADATA) for key in keys[begin : begin + 32]))
        assert [one.key for one in await store.listing("raw/")] == keys

    run(opened, scenario)


@pytest.mark.parametrize("body", [b"", b"short", b"longer than twenty bytes"])
def test_the_first_bytes_are_as_many_as_there_are(opened, body):
    async def scenario(store):
        await store.put(KEY, body, METADATA)
        assert await store.first_bytes(KEY, 20) == body[:20]
        with pytest.raises(StorageError):
            await store.first_bytes(LATER, 20)

    run(opened, scenario)


def test_only_the_version_that_was_found_is_replaced(opened):
    async def scenario(store):
        assert await store.find(KEY) is None
        assert await store.replace(KEY, b"one", None, "text/plain") is True
        assert await store.replace(KEY, b"other", None, "text/plain") is False
        first = await store.find(KEY)
        assert first.body == b"one"
        assert await store.replace(KEY, b"two", first.version, "text/plain") is True
        assert await store.replace(KEY, b"three", first.version, "text/plain") is False
        second = await store.find(KEY)
        assert (second.body, second.version != first.version) == (b"two", True)
        await store.delete(KEY)
        assert await store.replace(KEY, b"four", second.version, "text/plain") is False
        assert await store.find(KEY) is None

    run(opened, scenario)


@pytest.mark.parametrize("there", [False, True], ids=["new", "found"])
def test_of_many_who_replace_one_version_one_wins(opened, kind, there):
    if kind == "s3 without conditional puts":
        pytest.skip("looking first is a race, as `store/s3.py` says")

    async def scenario(store):
        if there:
            await store.put(KEY, b"old", METADATA)
        found = await store.find(KEY)
        version = found and found.version
        async with opened() as other:
            stores = [store, other] * 4
            won = await asyncio.gather(
                *(s.replace(KEY, b"%d" % n * 999, version, "text/plain") for n, s in enumerate(stores))
            )
        assert won.count(True) == 1
        assert await store.get(KEY) == b"%d" % won.index(True) * 999

    run(opened, scenario)
