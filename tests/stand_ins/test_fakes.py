"""The fake disk is a disk: while no crash happens it is the real one, and a crash takes only what was not synced."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ingest.disk.errors import StorageError
from ingest.disk.filesystem import Filesystem
from ingest.store.object_store import ObjectMetadata
from tests.stand_ins.disk import CrashableDisk, PowerCut
from tests.stand_ins.fakes import FakeClock, MemoryStore

NAMES = st.sampled_from(["a", "b", "c", "d/a", "d/b", "d/e/a"])
FOLDERS = st.sampled_from(["", "d", "d/e", "f"])
OPENED_AS = st.sampled_from(
    [
        os.O_WRONLY | os.O_CREAT,
        os.O_WRONLY | os.O_CREAT | os.O_EXCL,
        os.O_WRONLY | os.O_APPEND,
        os.O_WRONLY | os.O_TRUNC,
    ]
)
METADATA = ObjectMetadata(events=1, first_ts=1, last_ts=1, instance="host-token")


def visible(root: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(root)): None if path.is_dir() else path.read_bytes() for path in root.rglob("*")}


def lost(_n: int) -> int:
    return 0


def kept(n: int) -> int:
    return n - 1


class SameAsTheRealOne(RuleBasedStateMachine):
    """Every operation on both file systems: the same outcome, the same tree."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.roots = [self.folder / "real", self.folder / "fake"]
        for root in self.roots:
            root.mkdir()
        self.fake = CrashableDisk(self.roots[1])
        self.both: list[Filesystem] = [Filesystem(), self.fake]
        self.open: list[list[int]] = []

    def teardown(self) -> None:
        for pair in self.open:
            for fs, fd in zip(self.both, pair, strict=True):
                fs.close(fd)
        shutil.rmtree(self.folder)

    def do(self, call):
        outcomes = []
        for index, (fs, root) in enumerate(zip(self.both, self.roots, strict=True)):
            try:
                outcomes.append((None, call(fs, root, index)))
            except OSError as error:
                outcomes.append((error.errno, None))
        assert outcomes[0][0] == outcomes[1][0]
        return [outcome for _, outcome in outcomes]

    @rule(name=NAMES, flags=OPENED_AS)
    def opens(self, name, flags):
        pair = self.do(lambda fs, root, _: fs.open(root / name, flags))
        if pair[0] is not None:
            self.open.append(pair)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), written=st.binary(max_size=20))
    def writes(self, data, written):
        pair = data.draw(st.sampled_from(self.open))
        done = self.do(lambda fs, _root, index: fs.write(pair[index], written))
        assert done[0] == done[1]

    @precondition(lambda self: self.open)
    @rule(data=st.data(), size=st.integers(0, 30))
    def truncates(self, data, size):
        pair = data.draw(st.sampled_from(self.open))
        self.do(lambda fs, _root, index: fs.truncate(pair[index], size))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def syncs(self, data):
        pair = data.draw(st.sampled_from(self.open))
        self.do(lambda fs, _root, index: fs.fdatasync(pair[index]))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def closes(self, data):
        pair = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        self.do(lambda fs, _root, index: fs.close(pair[index]))

    @rule(src=NAMES, dst=NAMES)
    def renames(self, src, dst):
        self.do(lambda fs, root, _: fs.rename(root / src, root / dst))

    @rule(src=NAMES, dst=NAMES)
    def links(self, src, dst):
        self.do(lambda fs, root, _: fs.link(root / src, root / dst))

    @rule(name=NAMES)
    def unlinks(self, name):
        self.do(lambda fs, root, _: fs.unlink(root / name))

    @rule(folder=FOLDERS)
    def makes_a_folder(self, folder):
        if folder:
            self.do(lambda fs, root, _: fs.mkdir(root / folder))

    @rule(folder=FOLDERS)
    def removes_a_folder(self, folder):
        if folder:
            self.do(lambda fs, root, _: fs.rmdir(root / folder))

    @rule(folder=FOLDERS)
    def syncs_a_folder(self, folder):
        self.do(lambda fs, root, _: fs.fsync_dir(root / folder))

    @rule(fate=st.randoms(use_true_random=False))
    def loses_nothing_in_a_crash_after_a_sync_of_everything(self, fate):
        before = visible(self.roots[1])
        self.fake.sync_all()
        self.fake.crash(fate)
        assert visible(self.roots[1]) == before
        for pair in self.open:
            self.both[0].close(pair[0])
        self.open.clear()

    @invariant()
    def shows_the_same_tree(self):
        assert visible(self.roots[0]) == visible(self.roots[1])


TestSameAsTheRealOne = SameAsTheRealOne.TestCase
TestSameAsTheRealOne.settings = settings(max_examples=60, stateful_step_count=40)


@pytest.fixture
def fs(tmp_path) -> CrashableDisk:
    return CrashableDisk(tmp_path)


def write(fs: CrashableDisk, path: Path, *parts: bytes) -> int:
    fd = fs.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for part in parts:
        fs.write(fd, part)
    return fd


@given(parts=st.lists(st.binary(min_size=1, max_size=9), max_size=5), synced=st.integers(0, 5), fate=st.data())
def test_a_crash_leaves_the_synced_bytes_and_a_first_part_of_the_rest(tmp_path_factory, parts, synced, fate):
    root = tmp_path_factory.mktemp("disk")
    fs = CrashableDisk(root)
    fd = write(fs, root / "a", *parts[:synced])
    fs.fdatasync(fd)
    fs.fsync_dir(root)
    for part in parts[synced:]:
        fs.write(fd, part)
    fs.crash(lambda n: fate.draw(st.integers(0, n - 1)))
    left = (root / "a").read_bytes()
    assert left.startswith(b"".join(parts[:synced]))
    assert b"".join(parts).startswith(left)


def test_a_crash_can_take_synced_bytes_whose_name_was_not_synced(fs):
    fs.fdatasync(write(fs, fs.root / "a", b"bytes"))
    fs.crash(lost)
    assert visible(fs.root) == {}


def test_a_crash_can_leave_a_synced_name_without_its_bytes(fs):
    write(fs, fs.root / "a", b"bytes")
    fs.fsync_dir(fs.root)
    fs.crash(lost)
    assert visible(fs.root) == {"a": b""}


def test_a_crash_can_take_a_folder_whose_name_was_not_synced_with_all_that_is_in_it(fs):
    fs.mkdir(fs.root / "d")
    fs.fdatasync(write(fs, fs.root / "d/a", b"bytes"))
    fs.fsync_dir(fs.root / "d")
    fs.crash(lost)
    assert visible(fs.root) == {}


def test_a_crash_shows_a_rename_done_or_not_done(fs):
    fs.fdatasync(write(fs, fs.root / "a", b"old"))
    fs.fdatasync(write(fs, fs.root / "b", b"new"))
    fs.sync_all()
    outcomes = []
    for fate in (lost, kept):
        fs.rename(fs.root / "b", fs.root / "a")
        fs.crash(fate)
        outcomes.append(visible(fs.root))
    assert outcomes == [{"a": b"old", "b": b"new"}, {"a": b"new"}]


def test_a_crash_can_bring_back_an_unlinked_file(fs):
    write(fs, fs.root / "a", b"bytes")
    fs.sync_all()
    fs.unlink(fs.root / "a")
    fs.crash(lost)
    assert visible(fs.root) == {"a": b"bytes"}


def test_unsynced_names_are_lost_independently(tmp_path):
    seen = set()
    for seed in range(60):
        root = tmp_path / str(seed)
        root.mkdir()
        fs = CrashableDisk(root)
        for name in "abc":
            write(fs, root / name)
        fs.crash(random.Random(seed))
        seen.add("".join(sorted(visible(root))))
    assert seen == {"", "a", "b", "c", "ab", "ac", "bc", "abc"}


def test_the_same_choices_leave_the_same_disk(tmp_path):
    left = []
    for run in range(2):
        root = tmp_path / str(run)
        root.mkdir()
        fs = CrashableDisk(root)
        for name in "abcdef":
            write(fs, root / name, b"12345", b"67890")
        fs.crash(random.Random(7))
        left.append(visible(root))
    assert left[0] == left[1]


def test_a_failed_fdatasync_loses_its_bytes_although_the_next_one_succeeds(fs):
    fd = write(fs, fs.root / "a", b"bytes")
    fs.fail("fdatasync")
    with pytest.raises(OSError, match="Input/output error"):
        fs.fdatasync(fd)
    fs.fdatasync(fd)
    fs.fsync_dir(fs.root)
    assert (fs.root / "a").read_bytes() == b"bytes"
    fs.crash(kept)
    assert (fs.root / "a").read_bytes() == b"\0\0\0\0\0"


def test_a_failed_fsync_of_a_folder_loses_its_names_although_the_next_one_succeeds(fs):
    fs.fdatasync(write(fs, fs.root / "a", b"bytes"))
    fs.fail("fsync_dir")
    with pytest.raises(OSError, match="Input/output error"):
        fs.fsync_dir(fs.root)
    fs.fsync_dir(fs.root)
    fs.crash(lost)
    assert visible(fs.root) == {}


def test_a_name_given_anew_after_a_failed_fsync_is_synced_by_the_next(fs):
    fd = write(fs, fs.root / "a", b"bytes")
    fs.fdatasync(fd)
    fs.fail("fsync_dir")
    with pytest.raises(OSError, match="Input/output error"):
        fs.fsync_dir(fs.root)
    fs.link(fs.root / "a", fs.root / "b")
    fs.unlink(fs.root / "a")
    fs.fsync_dir(fs.root)
    fs.crash(lost)
    assert visible(fs.root) == {"b": b"bytes"}


def test_faults_hit_the_nth_call_on_the_paths_that_count(fs):
    fs.fail("open", errno.EACCES, nth=2, times=2, when=lambda path: path.name == "a")
    outcomes = []
    for name in ("a", "b", "a", "b", "a", "a"):
        try:
            fs.close(write(fs, fs.root / name))
            outcomes.append(None)
        except OSError as error:
            outcomes.append(error.errno)
    assert outcomes == [None, None, errno.EACCES, None, errno.EACCES, None]


def test_a_full_disk_takes_what_fits_then_nothing_until_there_is_room(fs):
    fs.capacity = 8
    fd = write(fs, fs.root / "a", b"12345")
    assert fs.write(fd, b"67890") == 3
    with pytest.raises(OSError, match="No space left") as caught:
        fs.write(fd, b"0")
    assert caught.value.errno == errno.ENOSPC
    fs.truncate(fd, 2)
    assert fs.write(fd, b"34") == 2


def test_a_short_write_takes_only_so_much(fs):
    fs.on("write", times=1).shorten(2)
    fd = fs.open(fs.root / "a", os.O_WRONLY | os.O_CREAT)
    assert fs.write(fd, b"12345") == 2
    assert (fs.root / "a").read_bytes() == b"12"


def test_after_a_power_cut_every_call_fails_until_the_crash(fs):
    fs.cut_power_before(1)
    fs.mkdir(fs.root / "d")
    for _ in range(3):
        with pytest.raises(PowerCut):
            fs.mkdir(fs.root / "e")
    fs.crash(kept)
    fs.mkdir(fs.root / "e")
    assert set(visible(fs.root)) == {"d", "e"}


def test_a_kill_closes_what_is_open_and_loses_nothing(fs):
    fd = write(fs, fs.root / "a", b"bytes")
    fs.kill()
    with pytest.raises(OSError, match="Bad file descriptor"):
        fs.write(fd, b"more")
    assert visible(fs.root) == {"a": b"bytes"}


def test_the_clock_wakes_sleepers_in_order_and_never_runs_by_itself():
    async def run():
        clock = FakeClock(now=100.0)
        woken = []

        async def sleep(seconds):
            await clock.sleep(seconds)
            woken.append((seconds, clock.monotonic() - start))

        start = clock.monotonic()
        tasks = [asyncio.create_task(sleep(seconds)) for seconds in (3, 1, 2)]
        await asyncio.sleep(0)
        assert clock.next_wake == 1
        clock.step(-50)
        await asyncio.sleep(0)
        assert woken == []
        clock.advance(2)
        await asyncio.sleep(0)
        assert sorted(woken) == [(1, 2), (2, 2)]
        clock.advance(1)
        await asyncio.gather(*tasks)
        assert woken[-1] == (3, 3)
        assert clock.time() == 53

    asyncio.run(run())


def test_the_store_does_what_it_is_told_in_order():
    async def run():
        store = MemoryStore()
        store.fail_next()
        store.succeed_next()
        store.lose_next_answers()
        store.fail_next(transient=False)
        for key, stored, transient in (("a", False, True), ("b", True, None), ("c", True, True), ("d", False, False)):
            if transient is None:
                await store.put(key, b"1", METADATA)
            else:
                with pytest.raises(StorageError) as caught:
                    await store.put(key, b"1", METADATA)
                assert caught.value.transient is transient
            assert (key in store.objects) is stored
        assert await store.create("c", b"2", METADATA) is False
        await store.put("c", b"3", METADATA)
        assert store.replaced == [("c", b"1", b"3")]

    asyncio.run(run())


def test_a_store_that_hangs_stores_when_resumed_and_not_when_cancelled():
    async def run():
        store = MemoryStore()
        store.hang_next(2)
        first = asyncio.create_task(store.put("a", b"1", METADATA))
        second = asyncio.create_task(store.put("b", b"1", METADATA))
        for _ in range(5):
            await asyncio.sleep(0)
        assert store.running == 2
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        store.resume()
        await second
        assert set(store.objects) == {"b"}

    asyncio.run(run())
