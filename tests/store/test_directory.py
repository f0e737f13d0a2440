"""The directory store: whole files under their names at every power cut, and nothing else where objects are."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import stat
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ingest.config.settings import load
from ingest.disk.errors import StorageError
from ingest.disk.filesystem import Filesystem
from ingest.format import codec
from ingest.store.calls import LEAST_WAIT
from ingest.store.directory import TEMPORARIES, TEMPORARY_MAX_AGE, DirectoryStore
from ingest.store.object_store import MOST_BYTES, Head, ObjectMetadata
from tests.stand_ins.disk import CrashableDisk, Disk, power_cuts

HEAD = Head(codec.HEAD_BYTES, codec.event_count)

KEY = "raw/dt=2025-12-02/hr=14/name.jsonl.gz"
METADATA = ObjectMetadata(events=1, first_ts=1, last_ts=1, instance="host-token")
OLD, NEW = b"old" * 1000, b"new" * 2000


def run(root, call, fs=None):
    async def main():
        with ThreadPoolExecutor(1) as executor:
            store = DirectoryStore(load({"STORE_DIR": str(root)}), HEAD, fs or Filesystem(), executor)
            return await call(store)

    return asyncio.run(main())


def objects(root):
    return {
        str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and TEMPORARIES not in p.parts
    }


async def put(store):
    await store.start()
    await store.put(KEY, NEW, METADATA)


async def create(store):
    await store.start()
    return await store.create(KEY, NEW, METADATA)


def old_object(_fs, root):
    (root / "objects" / KEY).parent.mkdir(parents=True)
    (root / "objects" / KEY).write_bytes(OLD)


@pytest.mark.parametrize("before", [None, old_object], ids=["new key", "old object"])
def test_at_every_power_cut_a_put_shows_the_old_or_the_whole_new_object(tmp_path, before):
    seen = set()
    for left in power_cuts(tmp_path, lambda fs, root: run(root / "objects", put, fs), before=before, fates=5):
        found = objects(left.root)
        assert set(found) <= {f"objects/{KEY}"}
        seen.add(found.get(f"objects/{KEY}"))
        if left.finished:
            assert found == {f"objects/{KEY}": NEW}
    assert seen == {NEW, OLD if before else None}


@pytest.mark.parametrize("before", [None, old_object], ids=["new key", "old object"])
def test_at_every_power_cut_a_create_has_added_a_whole_object_or_nothing(tmp_path, before):
    for left in power_cuts(tmp_path, lambda fs, root: run(root / "objects", create, fs), before=before, fates=5):
        found = objects(left.root)
        if before:
            assert found == {f"objects/{KEY}": OLD}
        else:
            assert found in ({}, {f"objects/{KEY}": NEW})
        if left.finished:
            assert left.outcome is (before is None)
            assert found == {f"objects/{KEY}": OLD if before else NEW}


def test_a_deleted_object_does_not_come_back(tmp_path):
    fs = CrashableDisk(tmp_path)

    async def put_and_delete(store):
        await put(store)
        await store.delete(KEY)

    run(tmp_path / "objects", put_and_delete, fs)
    for seed in range(10):
        fs.crash(random.Random(seed))
        assert objects(tmp_path) == {}


def test_only_objects_lie_where_objects_are(tmp_path):
    async def scenario(store):
        await put(store)
        assert await create(store) is False

    run(tmp_path, scenario)
    assert objects(tmp_path) == {KEY: NEW}
    assert list((tmp_path / TEMPORARIES).iterdir()) == []


def test_old_temporaries_are_swept_at_start_and_young_ones_left_to_their_owner(tmp_path):
    (tmp_path / TEMPORARIES).mkdir()
    for name, age in (("old", TEMPORARY_MAX_AGE + 60), ("young", 60)):
        path = tmp_path / TEMPORARIES / name
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age,) * 2)
    run(tmp_path, lambda store: store.start())
    assert [path.name for path in (tmp_path / TEMPORARIES).iterdir()] == ["young"]


def test_a_put_does_without_a_start_and_without_the_folder_of_temporaries(tmp_path):
    async def scenario(store):
        await store.put(KEY, OLD, METADATA)
        (tmp_path / TEMPORARIES).rmdir()
        await store.put(KEY, NEW, METADATA)

    run(tmp_path, scenario)
    assert objects(tmp_path) == {KEY: NEW}


@pytest.mark.parametrize("key", ["/etc/x", "../x", "raw/../../x", "", ".tmp/x", "raw/\0x"])
def test_no_key_leads_out_of_the_directory(tmp_path, key):
    async def scenario(store):
        for call in (
            store.put(key, NEW, METADATA),
            store.create(key, NEW, METADATA),
            store.get(key),
            store.delete(key),
        ):
            with pytest.raises(StorageError) as caught:
                await call
            assert not caught.value.transient

    run(tmp_path / "objects", scenario)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("operation", ["open", "write", "fdatasync", "rename", "fsync_dir"])
def test_a_full_disk_is_a_storage_error_that_says_so(tmp_path, operation):
    fs = CrashableDisk(tmp_path)
    fs.fail(operation, errno.ENOSPC, times=1000)
    with pytest.raises(StorageError) as caught:
        run(tmp_path / "objects", lambda store: store.put(KEY, NEW, METADATA), fs)
    assert (caught.value.errno, caught.value.transient) == (errno.ENOSPC, True)
    assert "free space" in caught.value.hint


def test_the_loop_goes_on_while_the_disk_works(tmp_path):
    disk = Disk()
    hang = disk.on("fdatasync").hang()

    async def scenario(store):
        task = asyncio.create_task(store.put(KEY, NEW, METADATA))
        while not hang.reached.is_set():  # noqa: ASYNC110 - a thread sets it
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not task.done()
        hang.release()
        await task

    run(tmp_path, scenario, disk)


def make_pipe(path):
    os.mkfifo(path)


def make_link_to_itself(path):
    path.symlink_to(path)


def make_dangling_link(path):
    path.symlink_to(path.parent / "nowhere")


def make_socket(path):
    os.mknod(path, stat.S_IFSOCK | 0o600)


def make_device(path):
    path.symlink_to("/dev/zero")


NO_FILES = {
    "a folder": os.mkdir,
    "a pipe": make_pipe,
    "a link to itself": make_link_to_itself,
    "a link that leads nowhere": make_dangling_link,
    "a socket": make_socket,
    "a device": make_device,
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_no_object_and_holds_nobody(tmp_path, kind):
    async def scenario(store):
        await store.start()
        await store.put("raw/hour/a", OLD, METADATA)
        NO_FILES[kind](tmp_path / "raw/hour/b")
        assert [listed.key for listed in await store.listing("raw/hour/")] == ["raw/hour/a"]
        for call in (
            store.get("raw/hour/b"),
            store.first_bytes("raw/hour/b", 20),
            store.create("raw/hour/b", NEW, METADATA),
        ):
            with pytest.raises(StorageError):
                await call
        if kind != "a link that leads nowhere":
            with pytest.raises(StorageError):
                await store.find("raw/hour/b")
        assert await store.get("raw/hour/a") == OLD

    run(tmp_path, scenario)


def test_a_name_that_is_no_text_is_in_no_listing(tmp_path):
    async def scenario(store):
        await store.put("raw/hour/\xe9", OLD, METADATA)
        for name in (b"\xff", b".hidden", b"\xfffolder/object"):
            path = os.path.join(os.fsencode(tmp_path), b"raw/hour", name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.close(os.open(path, os.O_CREAT))
        assert [listed.key for listed in await store.listing("raw/")] == ["raw/hour/\xe9"]

    run(tmp_path, scenario)


def test_a_file_that_goes_while_it_is_listed_is_not_listed(tmp_path):
    disk = Disk()

    async def scenario(store):
        for name in "abc":
            await store.put(f"raw/hour/{name}", OLD, METADATA)
        disk.on("stat", under="raw/hour/b", times=1).call(lambda path: path.unlink())
        assert [listed.key for listed in await store.listing("raw/hour/")] == ["raw/hour/a", "raw/hour/c"]
        assert await store.listing("raw/hour/a/") == []

    run(tmp_path, scenario, disk)


def test_a_directory_that_is_gone_is_no_listing_without_objects(tmp_path):
    async def scenario(store):
        await put(store)
        (tmp_path / "objects").rename(tmp_path / "elsewhere")
        with pytest.raises(StorageError) as caught:
            await store.listing("raw/")
        assert caught.value.transient

    run(tmp_path / "objects", scenario)


def test_an_object_larger_than_any_of_ours_is_not_read_whole(tmp_path):
    async def scenario(store):
        await store.put(KEY, OLD, METADATA)
        os.truncate(tmp_path / KEY, MOST_BYTES + 1)
        with pytest.raises(StorageError) as caught:
            await store.get(KEY)
        assert not caught.value.transient
        assert await store.first_bytes(KEY, 20) == OLD[:20]

    run(tmp_path, scenario)


def test_a_directory_that_hangs_fails_what_comes_next_at_once_and_keeps_no_body(tmp_path):
    fs = Disk()
    hanging = fs.on("open").hang()

    async def scenario(store):
        bodies = [bytes(1000 + number) for number in range(20)]
        failed = []
        for body in bodies:
            try:
                async with asyncio.timeout(2 * LEAST_WAIT):
                    await store.put(KEY, body, METADATA)
            except (TimeoutError, StorageError) as error:
                failed.append(type(error))
        del body
        await asyncio.sleep(0)  # a step that was cancelled keeps its error, and with it the body, to its end
        mine = sys.getrefcount(bodies[-1])
        kept = sum(sys.getrefcount(bodies[number]) > mine for number in range(19))
        hanging.release()
        return failed, kept

    failed, kept = run(tmp_path, scenario, fs)
    assert failed == [TimeoutError] * 2 + [StorageError] * 18
    assert kept == 1, "the one that is under way"
