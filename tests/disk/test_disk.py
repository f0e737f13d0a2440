"""Each write, sync, rename, lock, roll-back and create-only condition of the room: without it a test here fails."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.disk import errors, folders
from ingest.disk.append import append, create
from ingest.disk.errors import StorageError, TornTail
from ingest.disk.filesystem import Filesystem
from ingest.disk.folders import make_dirs, prune
from ingest.disk.publish import publish, publish_new, published_path
from ingest.disk.slots import LOCK_NAME, Slot
from tests.stand_ins.disk import CrashableDisk, Disk, PowerCut, power_cuts

OLD = b"old line\n" * 20
NEW = b"the new line\n" * 30


@pytest.fixture
def fs(tmp_path) -> CrashableDisk:
    return CrashableDisk(tmp_path)


def lost(_n: int) -> int:
    return 0


def kept(n: int) -> int:
    return n - 1


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def old_file(_fs: CrashableDisk, root: Path) -> None:
    (root / "file").write_bytes(OLD)


# ---------------------------------------------------------------------------------------------------- append


def opened(fs: Filesystem, path: Path, content: bytes = b"") -> int:
    fd = fs.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if content:
        assert fs.write(fd, content) == len(content)
    return fd


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_append_returns_the_new_size(fs, kind):
    fd = opened(fs, fs.root / "a")
    size = append(fs, fd, kind(b"one\n"), 0)
    size = append(fs, fd, kind(b"two\n"), size)
    assert (size, (fs.root / "a").read_bytes()) == (8, b"one\ntwo\n")


def test_append_writes_all_when_the_kernel_takes_it_in_pieces(fs):
    fd = opened(fs, fs.root / "a")
    fs.on("write", times=1).shorten(2)
    fs.on("write", times=1).shorten(3)
    assert append(fs, fd, b"123456789", 0) == 9
    assert (fs.root / "a").read_bytes() == b"123456789"
    assert [operation for operation, _ in fs.calls].count("write") == 3


def test_append_frees_the_buffer_it_was_given(fs):
    fd = opened(fs, fs.root / "a")
    buffer = bytearray(b"12345")
    fs.on("write", times=1).shorten(2)
    append(fs, fd, buffer, 0)
    buffer.extend(b"6")  # a view that is still held would make this a BufferError


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_an_append_that_fails_is_rolled_back(fs, taken):
    path = fs.root / "a"
    fd = opened(fs, path, OLD)
    fs.capacity = len(OLD) + taken
    with pytest.raises(StorageError) as caught:
        append(fs, fd, NEW, len(OLD), subject=path)
    assert path.read_bytes() == OLD
    assert not isinstance(caught.value, TornTail)
    assert (caught.value.operation, caught.value.subject) == ("write", str(path))
    assert (caught.value.errno, caught.value.transient) == (errno.ENOSPC, True)


def test_what_is_appended_after_a_roll_back_leaves_no_hole(fs):
    path = fs.root / "a"
    fd = opened(fs, path, OLD)
    fs.capacity = len(OLD) + 5
    with pytest.raises(StorageError):
        append(fs, fd, NEW, len(OLD))
    fs.capacity = None
    append(fs, fd, NEW, len(OLD))
    assert path.read_bytes() == OLD + NEW


def test_a_write_that_takes_nothing_is_an_error_and_no_endless_loop(fs):
    fd = opened(fs, fs.root / "a")
    fs.on("write", times=1).shorten(0)
    fs.on("write", times=1).shorten(0)
    with pytest.raises(StorageError) as caught:
        append(fs, fd, NEW, 0)
    assert caught.value.errno == errno.EIO


def test_an_append_that_cannot_be_rolled_back_says_that_the_tail_is_torn(fs):
    fd = opened(fs, fs.root / "a", OLD)
    fs.capacity = len(OLD) + 5
    fs.fail("truncate")
    with pytest.raises(TornTail) as caught:
        append(fs, fd, NEW, len(OLD), subject=fs.root / "a")
    assert (caught.value.operation, caught.value.errno) == ("truncate", errno.EIO)
    assert isinstance(caught.value.__cause__, StorageError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert (fs.root / "a").read_bytes() == OLD + NEW[:5]


def test_a_synced_roll_back_is_not_undone_by_a_power_cut(tmp_path):
    for seed in range(20):
        root = tmp_path / str(seed)
        root.mkdir()
        fs = CrashableDisk(root)
        fd = opened(fs, root / "a", OLD)
        fs.sync_all()
        fs.capacity = len(OLD) + len(NEW) - 1  # all lines but the last are written before the disk is full
        with pytest.raises(StorageError):
            append(fs, fd, NEW, len(OLD), sync_roll_back=True)
        fs.crash(random.Random(seed))
        assert (root / "a").read_bytes() == OLD


def test_a_roll_back_whose_sync_fails_says_that_the_tail_is_torn(fs):
    fd = opened(fs, fs.root / "a", OLD)
    fs.capacity = len(OLD)
    fs.fail("fdatasync")
    with pytest.raises(TornTail):
        append(fs, fd, NEW, len(OLD), sync_roll_back=True)


def test_a_roll_back_without_sync_makes_none(fs):
    fd = opened(fs, fs.root / "a", OLD)
    fs.capacity = len(OLD)
    with pytest.raises(StorageError):
        append(fs, fd, NEW, len(OLD))
    assert "fdatasync" not in [operation for operation, _ in fs.calls]


# ---------------------------------------------------------------------------------------------------- create


def test_a_created_file_and_its_folders_survive_a_power_cut(tmp_path):
    def scenario(fs, root):
        fd = create(fs, root / "0/raw/hr=14/a", root, sync=True)
        append(fs, fd, NEW, 0)
        fs.fdatasync(fd)

    finished = 0
    for left in power_cuts(tmp_path, scenario):
        if left.finished:
            finished += 1
            assert files(left.root) == {"0/raw/hr=14/a": NEW}
    assert finished


def test_create_refuses_a_name_that_is_taken(fs):
    (fs.root / "a").write_bytes(OLD)
    fs.settle()
    with pytest.raises(StorageError) as caught:
        create(fs, fs.root / "a", fs.root, sync=False)
    assert caught.value.errno == errno.EEXIST
    assert (fs.root / "a").read_bytes() == OLD


def test_a_create_whose_name_cannot_be_synced_leaves_nothing(fs):
    descriptors = len(os.listdir("/proc/self/fd"))
    fs.fail("fsync_dir")
    with pytest.raises(StorageError):
        create(fs, fs.root / "a", fs.root, sync=True)
    assert files(fs.root) == {}
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_what_is_appended_to_a_created_file_after_a_roll_back_leaves_no_hole(fs):
    fd = create(fs, fs.root / "a", fs.root, sync=False)
    size = append(fs, fd, OLD, 0)
    fs.capacity = len(OLD) + 5
    with pytest.raises(StorageError):
        append(fs, fd, NEW, size)
    fs.capacity = None
    append(fs, fd, NEW, size)
    assert (fs.root / "a").read_bytes() == OLD + NEW


def test_create_without_sync_makes_none(fs):
    create(fs, fs.root / "d/a", fs.root, sync=False)
    assert {operation for operation, _ in fs.calls} == {"mkdir", "open"}


# --------------------------------------------------------------------------------------------------- publish


def test_at_every_power_cut_the_old_or_the_whole_new_file_has_the_name(tmp_path):
    seen = set()
    for left in power_cuts(tmp_path, lambda fs, root: publish(fs, root / "file", NEW), before=old_file):
        seen.add((left.root / "file").read_bytes())
    assert seen == {OLD, NEW}


def test_what_publish_returned_for_survives_a_power_cut(tmp_path):
    for left in power_cuts(tmp_path, lambda fs, root: publish(fs, root / "file", NEW), before=old_file):
        if left.finished:
            assert files(left.root) == {"file": NEW}


def test_folders_that_publish_made_survive_a_power_cut(tmp_path):
    for left in power_cuts(tmp_path, lambda fs, root: publish(fs, root / "raw/dt=1/hr=2/file", NEW, root=root)):
        if left.finished:
            assert files(left.root) == {"raw/dt=1/hr=2/file": NEW}


def test_what_a_power_cut_leaves_beside_the_name_says_what_it_was_to_become(tmp_path):
    leftovers = 0
    for left in power_cuts(tmp_path, lambda fs, root: publish(fs, root / "file", NEW), before=old_file):
        for path in left.root.iterdir():
            if path.name != "file":
                leftovers += 1
                assert published_path(path) == left.root / "file"
    assert leftovers


@pytest.mark.parametrize("operation", ["open", "write", "fdatasync", "close", "rename"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_a_publish_that_fails_leaves_the_old_file_and_nothing_else(fs, operation, error):
    old_file(fs, fs.root)
    fs.settle()
    fs.fail(operation, error)
    with pytest.raises(StorageError) as caught:
        publish(fs, fs.root / "file", NEW)
    assert caught.value.errno == error
    assert files(fs.root) == {"file": OLD}


def test_a_publish_whose_name_cannot_be_synced_fails_and_leaves_the_new_file_standing(fs):
    old_file(fs, fs.root)
    fs.settle()
    fs.fail("fsync_dir")
    with pytest.raises(StorageError) as caught:
        publish(fs, fs.root / "file", NEW)
    assert (caught.value.operation, caught.value.subject) == ("fsync", str(fs.root))
    assert files(fs.root) == {"file": NEW}


def test_publish_writes_all_when_the_kernel_takes_it_in_pieces(fs):
    fs.on("write", times=1).shorten(1)
    fs.on("write", times=1).shorten(7)
    publish(fs, fs.root / "file", NEW)
    assert files(fs.root) == {"file": NEW}


def test_publish_without_sync_makes_none(fs):
    publish(fs, fs.root / "d/file", NEW, sync=False, root=fs.root)
    assert {operation for operation, _ in fs.calls}.isdisjoint({"fdatasync", "fsync_dir"})


def test_publish_of_nothing_is_an_empty_file(fs):
    publish(fs, fs.root / "file", b"")
    assert files(fs.root) == {"file": b""}


def pruned_by_another(root: Path, times: int) -> Disk:
    """A disk on which another thread prunes each folder as soon as it was made, so many times."""
    disk = Disk()

    def prunes(path: Path) -> None:
        for folder in [folder for folder in path.iterdir() if folder.is_dir()]:
            prune(disk, folder, root)

    disk.on("fsync_dir", times=times, after=True).call(prunes)
    return disk


@pytest.mark.parametrize("times", range(1, folders.PUBLISH_ATTEMPTS))
def test_publish_makes_a_folder_again_that_was_pruned_under_its_hands(tmp_path, times):
    publish(pruned_by_another(tmp_path, times), tmp_path / "d/e/file", NEW, root=tmp_path)
    assert files(tmp_path) == {"d/e/file": NEW}


def test_publish_gives_up_on_a_folder_that_never_stays(tmp_path):
    with pytest.raises(StorageError) as caught:
        publish(pruned_by_another(tmp_path, 1000), tmp_path / "d/e/file", NEW, root=tmp_path)
    assert caught.value.errno == errno.ENOENT


def test_publish_into_a_folder_that_does_not_exist_fails(fs):
    with pytest.raises(StorageError) as caught:
        publish(fs, fs.root / "d/file", NEW)
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("name", ["file", ".file", "file.tmp", ".tmp", "..tmp", ".file.tmp"])
def test_other_names_are_no_temporaries(name):
    assert published_path(Path("/d") / name) is None


@given(name=st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=40))
def test_every_temporary_knows_its_name(tmp_path_factory, name):
    path = tmp_path_factory.mktemp("names") / name
    if name in (".", ".."):
        return
    fs = CrashableDisk(path.parent)
    fs.cut_power_before(3)
    with pytest.raises(PowerCut):
        publish(fs, path, NEW)
    (temporary,) = path.parent.iterdir()
    assert published_path(temporary) == path


# ----------------------------------------------------------------------------------------------- publish_new


def test_create_only_never_touches_what_is_there(fs):
    old_file(fs, fs.root)
    fs.settle()
    assert publish_new(fs, fs.root / "file", NEW) is False
    assert files(fs.root) == {"file": OLD}
    assert publish_new(fs, fs.root / "other", NEW) is True
    assert files(fs.root) == {"file": OLD, "other": NEW}


def test_of_many_writers_of_one_name_one_wins(tmp_path):
    for attempt in range(20):
        path = tmp_path / str(attempt)
        start = threading.Barrier(8)

        def write(number, path=path, start=start):
            start.wait()
            return publish_new(Filesystem(), path, b"%d" % number * 1000)

        with ThreadPoolExecutor(8) as threads:
            won = list(threads.map(write, range(8)))
        assert won.count(True) == 1
        assert path.read_bytes() == b"%d" % won.index(True) * 1000


def test_at_every_power_cut_a_new_name_has_the_whole_file_or_does_not_exist(tmp_path):
    seen = set()
    for left in power_cuts(tmp_path, lambda fs, root: publish_new(fs, root / "file", NEW)):
        seen.add(files(left.root).get("file"))
        if left.finished:
            assert (left.outcome, files(left.root)["file"]) == (True, NEW)
    assert seen == {None, NEW}


def test_stored_already_is_said_only_of_a_name_that_survives_a_power_cut(tmp_path):
    def scenario(fs, root):
        # Another process has synced its bytes and linked them, and died before it synced the folder.
        fs.fdatasync(opened(fs, root / ".other", OLD))
        fs.link(root / ".other", root / "file")
        return publish_new(fs, root / "file", NEW)

    for left in power_cuts(tmp_path, scenario):
        if left.finished:
            assert left.outcome is False
            assert (left.root / "file").read_bytes() == OLD


def test_a_create_whose_name_cannot_be_synced_is_taken_back_and_can_be_tried_again(fs):
    fs.fail("fsync_dir")
    with pytest.raises(StorageError):
        publish_new(fs, fs.root / "file", NEW)
    assert files(fs.root) == {}
    assert publish_new(fs, fs.root / "file", NEW) is True
    fs.crash(lost)
    assert files(fs.root)["file"] == NEW


@pytest.mark.parametrize("operation", ["open", "write", "fdatasync", "close", "link"])
def test_a_create_that_fails_leaves_nothing(fs, operation):
    fs.fail(operation)
    with pytest.raises(StorageError) as caught:
        publish_new(fs, fs.root / "file", NEW)
    assert caught.value.errno == errno.EIO
    assert files(fs.root) == {}


def test_no_temporary_stays_behind(fs):
    for _ in range(2):
        publish_new(fs, fs.root / "file", NEW)
    assert files(fs.root) == {"file": NEW}


def test_a_temporary_that_cannot_be_removed_does_not_undo_the_create(fs):
    fs.fail("unlink")
    assert publish_new(fs, fs.root / "file", NEW) is True
    assert (fs.root / "file").read_bytes() == NEW


@pytest.mark.parametrize("call", [publish, publish_new])
def test_temporaries_may_lie_elsewhere(tmp_path, call):
    def scenario(fs, root):
        call(fs, root / "d/file", NEW, root=root, temporary_in=root / "t")

    for left in power_cuts(tmp_path, scenario, before=lambda _fs, root: (root / "t").mkdir()):
        assert files(left.root).get("d/file") in (None, NEW)
        assert {path.name for path in left.root.glob("d/*")} <= {"file"}
        if left.finished:
            assert (left.root / "d/file").read_bytes() == NEW


# --------------------------------------------------------------------------------------------------- folders


def test_folders_survive_a_power_cut_once_they_are_made(tmp_path):
    for left in power_cuts(tmp_path, lambda fs, root: make_dirs(fs, root / "a/b/c", root / "a", sync=True)):
        if left.finished:
            assert (left.root / "a/b/c").is_dir()


def test_a_folder_that_a_killed_process_left_unsynced_is_synced(tmp_path):
    def scenario(fs, root):
        fs.mkdir(root / "a")
        fs.mkdir(root / "a/b")
        make_dirs(fs, root / "a/b/c", root, sync=True)

    for left in power_cuts(tmp_path, scenario):
        if left.finished:
            assert (left.root / "a/b/c").is_dir()


def test_folders_are_synced_once_while_they_are_remembered(fs):
    synced: set[Path] = set()
    make_dirs(fs, fs.root / "a/b", fs.root, sync=True, synced=synced)
    fs.calls.clear()
    make_dirs(fs, fs.root / "a/b", fs.root, sync=True, synced=synced)
    assert "fsync_dir" not in [operation for operation, _ in fs.calls]
    make_dirs(fs, fs.root / "a/c", fs.root, sync=True, synced=synced)
    assert [path for operation, path in fs.calls if operation == "fsync_dir"] == [fs.root / "a"]


def test_a_remembered_folder_that_was_pruned_is_synced_again(fs):
    synced: set[Path] = set()
    make_dirs(fs, fs.root / "a/b", fs.root, sync=True, synced=synced)
    prune(fs, fs.root / "a/b", fs.root)
    fs.sync_all()
    make_dirs(fs, fs.root / "a/b", fs.root, sync=True, synced=synced)
    fs.crash(lost)
    assert (fs.root / "a/b").is_dir()


def test_what_is_remembered_does_not_grow_for_ever(fs, monkeypatch):
    monkeypatch.setattr(folders, "SYNCED_MAX", 5)
    synced: set[Path] = set()
    for number in range(20):
        make_dirs(fs, fs.root / str(number), fs.root, sync=True, synced=synced)
        assert len(synced) <= 5


def test_a_folder_that_could_not_be_synced_is_not_remembered(fs):
    synced: set[Path] = set()
    fs.fail("fsync_dir")
    with pytest.raises(StorageError):
        make_dirs(fs, fs.root / "a", fs.root, sync=True, synced=synced)
    assert synced == set()


def test_a_file_in_the_way_of_a_folder_is_named(fs):
    (fs.root / "a").write_bytes(b"")
    fs.settle()
    with pytest.raises(StorageError) as caught:
        make_dirs(fs, fs.root / "a", fs.root, sync=False)
    assert (caught.value.subject, caught.value.errno) == (str(fs.root / "a"), errno.ENOTDIR)


def test_folders_are_only_made_below_the_root(fs):
    with pytest.raises(ValueError, match="is not below"):
        make_dirs(fs, fs.root / "a", fs.root / "b", sync=False)


def test_prune_removes_empty_folders_up_to_the_root(fs):
    make_dirs(fs, fs.root / "r/a/b", fs.root, sync=False)
    make_dirs(fs, fs.root / "r/a/c", fs.root, sync=False)
    prune(fs, fs.root / "r/a/b", fs.root / "r")
    assert (fs.root / "r/a/c").is_dir()
    assert not (fs.root / "r/a/b").exists()
    prune(fs, fs.root / "r/a/c", fs.root / "r")
    assert [str(path.relative_to(fs.root)) for path in fs.root.rglob("*")] == ["r"]


def test_prune_stops_at_a_folder_that_holds_a_file_and_outside_the_root(fs):
    make_dirs(fs, fs.root / "r/a", fs.root, sync=False)
    fs.close(opened(fs, fs.root / "r/a/file"))
    prune(fs, fs.root / "r/a", fs.root)
    assert (fs.root / "r/a/file").exists()
    make_dirs(fs, fs.root / "other", fs.root, sync=False)
    prune(fs, fs.root / "other", fs.root / "r")
    assert (fs.root / "other").is_dir()


def test_prune_never_raises(fs):
    make_dirs(fs, fs.root / "a/b", fs.root, sync=False)
    for error in (errno.EACCES, errno.EIO, errno.EBUSY):
        fs.fail("rmdir", error)
        prune(fs, fs.root / "a/b", fs.root)
        assert (fs.root / "a/b").is_dir()
    prune(fs, fs.root / "a/b/absent", fs.root)
    assert not (fs.root / "a").exists()


# ----------------------------------------------------------------------------------------------------- slots


def test_no_two_hold_one_slot(tmp_path):
    slots = [Slot.take_first_free(Filesystem(), tmp_path) for _ in range(4)]
    assert [slot.number for slot in slots] == [0, 1, 2, 3]
    assert [slot.path for slot in slots] == [tmp_path / str(number) for number in range(4)]
    for slot in slots:
        slot.release()


def test_a_released_slot_is_taken_first(tmp_path):
    first, second = (Slot.take_first_free(Filesystem(), tmp_path) for _ in range(2))
    first.release()
    first.release()
    third = Slot.take_first_free(Filesystem(), tmp_path)
    assert (third.number, second.number) == (0, 1)
    second.release()
    third.release()


HOLDER = """
import sys, time
from pathlib import Path
from ingest.disk.filesystem import Entries, Filesystem
from ingest.disk.slots import Slot
slot = Slot.take_first_free(Filesystem(), Path(sys.argv[1]))
print(slot.number, flush=True)
time.sleep(60)
"""


def test_kill_9_frees_a_slot_and_only_that(tmp_path):
    processes = [
        subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) for _ in range(2)
    ]
    try:
        numbers = [int(process.stdout.readline()) for process in processes if process.stdout]
        assert sorted(numbers) == [0, 1]
        for number in numbers:
            (tmp_path / str(number) / "file").write_bytes(b"x")
        assert Slot.adopt_free(Filesystem(), tmp_path) == ([], [])
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait()
        (adopted,) = Slot.adopt_free(Filesystem(), tmp_path).slots
        assert adopted.number == numbers[0]
        adopted.release()
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_power_cut_frees_every_slot_and_keeps_its_folder(tmp_path):
    for left in power_cuts(tmp_path, lambda fs, root: Slot.take_first_free(fs, root / "dlq")):
        if left.finished:
            assert (left.root / "dlq/0").is_dir()
        slot = Slot.take_first_free(left.fs, left.root / "dlq")
        assert slot.number == 0
        left.fs.kill()


def test_only_free_slots_with_files_are_adopted(tmp_path):
    fs = Filesystem()
    slots = [Slot.take_first_free(fs, tmp_path) for _ in range(5)]
    own, held, empty, hollow, full = slots
    for slot in (own, held, full):
        (slot.path / "raw/dt=1").mkdir(parents=True)
        (slot.path / "raw/dt=1/file").write_bytes(b"x")
    (hollow.path / "raw/dt=1").mkdir(parents=True)
    for slot in (empty, hollow, full):
        slot.release()
    (adopted,) = Slot.adopt_free(fs, tmp_path).slots
    assert adopted.number == full.number
    assert Slot.adopt_free(fs, tmp_path) == ([], [])
    for slot in (adopted, own, held):
        slot.release()


def test_a_file_named_lock_deeper_down_is_a_file(tmp_path):
    fs = Filesystem()
    slot = Slot.take_first_free(fs, tmp_path)
    (slot.path / "raw").mkdir()
    (slot.path / "raw" / LOCK_NAME).write_bytes(b"x")
    slot.release()
    (adopted,) = Slot.adopt_free(fs, tmp_path).slots
    adopted.release()


def test_a_slot_emptied_between_the_look_and_the_lock_is_left_alone(tmp_path):
    fs = Disk()
    slot = Slot.take_first_free(fs, tmp_path)
    (slot.path / "file").write_bytes(b"x")
    slot.release()
    fs.on("flock").call(lambda _: (tmp_path / "0/file").unlink(missing_ok=True))
    assert Slot.adopt_free(fs, tmp_path) == ([], [])
    again = Slot.take_first_free(fs, tmp_path)
    assert again.number == 0
    again.release()


def lock_removed(slot: Slot) -> None:
    (slot.path / LOCK_NAME).unlink()


def slot_removed(slot: Slot) -> None:
    lock_removed(slot)
    slot.path.rmdir()


def base_moved(slot: Slot) -> None:
    slot.path.parent.rename(slot.path.parent.with_name("elsewhere"))


def lock_replaced(slot: Slot) -> None:
    lock_removed(slot)
    (slot.path / LOCK_NAME).touch()


def lock_moved_and_replaced(slot: Slot) -> None:
    (slot.path / LOCK_NAME).rename(slot.path / "elsewhere")
    (slot.path / LOCK_NAME).touch()


@pytest.mark.parametrize("befalls", [lock_removed, slot_removed, base_moved, lock_replaced, lock_moved_and_replaced])
def test_c9_a_lock_that_lost_its_name_is_noticed_and_taken_again(tmp_path, befalls):
    base = tmp_path / "journal"
    slot = Slot.take_first_free(Filesystem(), base)
    assert slot.is_ours()
    befalls(slot)
    assert not slot.is_ours()
    slot.take_again()
    assert slot.is_ours()
    assert (slot.path, slot.number) == (base / "0", 0)
    other = Slot.take_first_free(Filesystem(), base)
    assert other.number == 1, "the lock holds again"
    for held in (slot, other):
        held.release()
    assert not slot.is_ours()


def test_c9_a_slot_that_another_process_took_meanwhile_is_left_to_it(tmp_path):
    slot = Slot.take_first_free(Filesystem(), tmp_path)
    slot_removed(slot)
    other = Slot.take_first_free(Filesystem(), tmp_path)
    assert (other.number, slot.is_ours()) == (0, False)
    slot.take_again()
    assert (slot.path, slot.is_ours(), other.is_ours()) == (tmp_path / "1", True, True)
    for held in (slot, other):
        held.release()


@pytest.mark.parametrize(("error", "ours"), [(errno.ESTALE, False), (errno.EIO, None), (errno.EACCES, None)])
def test_c9_a_lock_that_the_disk_does_not_tell_of_is_neither_ours_nor_lost(tmp_path, error, ours):
    fs = Disk()
    slot = Slot.take_first_free(fs, tmp_path)
    fs.on("stat").fail(error)
    if ours is None:
        with pytest.raises(StorageError):
            slot.is_ours()
    else:
        assert slot.is_ours() is ours
    fs.heal()
    assert slot.is_ours()
    slot.release()


def test_other_names_beside_slots_are_left_alone(tmp_path):
    for name in ("journal", "01", "-1", "1.5", "\u0663", "x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x")
    assert Slot.adopt_free(Filesystem(), tmp_path) == ([], [])
    assert Slot.adopt_free(Filesystem(), tmp_path / "absent") == ([], [])


def test_a_slot_that_is_held_costs_no_descriptor(tmp_path):
    held = [Slot.take_first_free(Filesystem(), tmp_path) for _ in range(3)]
    for slot in held:
        (slot.path / "file").write_bytes(b"x")
    descriptors = len(os.listdir("/proc/self/fd"))
    Slot.adopt_free(Filesystem(), tmp_path)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    for slot in held:
        slot.release()


def test_a_file_system_without_locks_is_an_error_and_not_a_free_slot(tmp_path):
    fs = Disk()
    fs.on("flock").fail(errno.ENOLCK)
    with pytest.raises(StorageError) as caught:
        Slot.take_first_free(fs, tmp_path)
    assert caught.value.operation == "flock"
    assert "locking" in caught.value.hint


def bad_slot(operation: str, error: int, folder: Path) -> Disk:
    """The real disk, but for one call about what lies below one folder."""
    disk = Disk()
    disk.on(operation, under=folder).fail(error)
    return disk


def left_by_the_dead(base: Path, count: int) -> None:
    for number in range(count):
        (base / str(number) / "raw").mkdir(parents=True)
        (base / str(number) / "raw/file").write_bytes(b"x")
        (base / str(number) / LOCK_NAME).touch()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("bad", [0, 1, 3])
@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("operation", ["open", "flock", "scandir"])
def test_c3_a_bad_slot_is_passed_over_and_the_others_are_adopted(tmp_path, operation, error, bad):
    left_by_the_dead(tmp_path, 4)
    before = descriptors()
    fs = bad_slot(operation, error, tmp_path / str(bad))
    found = Slot.adopt_free(fs, tmp_path)
    assert [slot.number for slot in found.slots] == [number for number in range(4) if number != bad]
    assert [failure.errno for failure in found.unread] == [error]
    assert str(tmp_path / str(bad)) in found.unread[0].subject
    assert descriptors() == before + 3
    for slot in found.slots:
        slot.release()
    assert descriptors() == before
    again = Slot.adopt_free(Filesystem(), tmp_path)
    assert len(again.slots) == 4
    for slot in again.slots:
        slot.release()


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_c3_a_slot_of_another_user_does_not_keep_a_process_from_one_of_its_own(tmp_path, error):
    left_by_the_dead(tmp_path, 3)
    slot = Slot.take_first_free(bad_slot("open", error, tmp_path / "0"), tmp_path)
    assert slot.number == 1
    slot.release()
    for number in range(3):
        (tmp_path / str(number) / LOCK_NAME).unlink()
        (tmp_path / str(number) / LOCK_NAME).mkdir()
    slot = Slot.take_first_free(Filesystem(), tmp_path)
    assert slot.number == 3
    slot.release()


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.EUCLEAN, errno.EBADMSG])
def test_c3_a_slot_that_the_disk_will_not_show_keeps_no_process_from_one_of_its_own(tmp_path, error):
    left_by_the_dead(tmp_path, 2)
    for operation in ("stat", "mkdir", "flock"):
        slot = Slot.take_first_free(bad_slot(operation, error, tmp_path / "0"), tmp_path)
        assert slot.number == 1
        slot.release()
    with pytest.raises(StorageError) as caught:
        Slot.take_first_free(bad_slot("stat", error, tmp_path), tmp_path)
    assert caught.value.errno == error


def file_in_its_place(path: Path) -> None:
    path.write_bytes(b"")


def link_to_nowhere(path: Path) -> None:
    path.symlink_to(path.with_name("not-mounted"))


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("takes", [file_in_its_place, link_to_nowhere, link_to_itself])
def test_c3_what_is_no_folder_in_the_place_of_a_slot_is_passed_over(tmp_path, takes):
    takes(tmp_path / "0")
    slot = Slot.take_first_free(Filesystem(), tmp_path)
    assert slot.number == 1
    shutil.rmtree(slot.path)
    takes(slot.path)
    slot.take_again()
    assert (slot.number, slot.is_ours()) == (2, True)
    slot.release()


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.EROFS, errno.ENOLCK, errno.EMFILE])
def test_c4_where_no_slot_can_be_had_the_error_is_raised_and_no_folders_pile_up(tmp_path, error):
    disk = Disk()
    disk.on("open", under="lock").fail(error)
    for _ in range(3):
        with pytest.raises(StorageError) as caught:
            Slot.take_first_free(disk, tmp_path)
        assert caught.value.errno == error
    if error in (errno.EROFS, errno.ENOLCK, errno.EMFILE):
        assert [path.name for path in tmp_path.iterdir()] == ["0"]


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_c3_a_folder_of_slots_that_cannot_be_read_is_a_value(tmp_path, error):
    found = Slot.adopt_free(bad_slot("listdir", error, tmp_path), tmp_path)
    assert found.slots == []
    assert [failure.errno for failure in found.unread] == [error]


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE])
def test_c7_without_descriptors_the_scan_ends_and_keeps_what_it_has(tmp_path, error):
    left_by_the_dead(tmp_path, 5)
    found = Slot.adopt_free(bad_slot("open", error, tmp_path / "2"), tmp_path)
    assert [slot.number for slot in found.slots] == [0, 1]
    assert [failure.errno for failure in found.unread] == [error]
    for slot in found.slots:
        slot.release()


def test_c7_a_few_slots_are_adopted_at_a_time_lowest_first(tmp_path):
    left_by_the_dead(tmp_path, 12)
    before = descriptors()
    held: list[Slot] = []
    for expected in ([0, 1, 2], [3, 4, 5], []):
        found = Slot.adopt_free(Filesystem(), tmp_path, at_most=len(expected))
        assert [slot.number for slot in found.slots] == expected
        held += found.slots
    assert descriptors() == before + 6
    for slot in held:
        slot.release()


def test_c8_a_slot_in_use_is_not_looked_into(tmp_path):
    left_by_the_dead(tmp_path, 2)
    held = Slot.take_first_free(Filesystem(), tmp_path)
    found = Slot.adopt_free(bad_slot("scandir", errno.EIO, tmp_path / "0"), tmp_path)
    assert [slot.number for slot in found.slots] == [1]
    assert found.unread == []
    for slot in (held, *found.slots):
        slot.release()


# ---------------------------------------------------------------------------------------------------- errors


def test_an_error_names_operation_subject_cause_and_next_step():
    error = StorageError.of("rename", Path("/d/file"), OSError(errno.ENOSPC, "text that nobody looks at"))
    assert str(error) == "rename /d/file [ENOSPC]: the volume is full: free space or grow it"
    assert (error.operation, error.subject, error.transient, error.errno) == ("rename", "/d/file", True, errno.ENOSPC)


def test_an_error_that_nobody_foresaw_keeps_its_text_and_is_not_transient():
    error = StorageError.of("write", "key", OSError(errno.EDOM, "argument out of domain"))
    assert (error.hint, error.transient) == ("argument out of domain", False)
    assert StorageError.of("write", "key", OSError()).hint == "OSError"


def test_errors_are_told_apart_by_number_never_by_text():
    same_text = [StorageError.of("write", "f", OSError(number, "boom")) for number in (errno.ENOSPC, errno.EIO)]
    assert [error.transient for error in same_text] == [True, False]
    assert same_text[0].hint != same_text[1].hint


def test_every_advice_is_a_step_that_fits_a_log_line():
    for hint, _ in errors._ADVICE.values():
        assert "\n" not in hint
        assert len(hint) < 120
