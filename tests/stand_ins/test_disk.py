"""The disk of the tests does as its rules say, to the calls that are meant and to no other."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from ingest.disk import files_below, read_file
from ingest.disk.append import write_all
from tests.stand_ins.disk import CHANGES, LOOKS, CrashableDisk, Disk, PowerCut


@pytest.fixture(params=[Disk, CrashableDisk])
def disk(request, tmp_path):
    return Disk() if request.param is Disk else CrashableDisk(tmp_path)


def every_operation(disk, root):
    """Return each operation as a call on files of its own."""
    (root / "folder").mkdir()
    for name in ("file", "old", "gone"):
        (root / "folder" / name).write_bytes(b"0123456789")
    (root / "empty").mkdir()
    if isinstance(disk, CrashableDisk):
        disk.settle()
    file = root / "folder/file"
    writing = disk.open(file, os.O_WRONLY | os.O_APPEND)
    closing = disk.open(file, os.O_RDONLY)
    reading = disk.open(file, os.O_RDONLY)

    entries = disk.scandir(root)

    def readdir():
        with entries:
            return next(entries)

    return {
        "open": lambda: disk.open(root / "new", os.O_WRONLY | os.O_CREAT),
        "write": lambda: disk.write(writing, b"x"),
        "fdatasync": lambda: disk.fdatasync(writing),
        "truncate": lambda: disk.truncate(writing, 5),
        "close": lambda: disk.close(closing),
        "rename": lambda: disk.rename(root / "folder/old", root / "folder/older"),
        "link": lambda: disk.link(file, root / "second"),
        "unlink": lambda: disk.unlink(root / "folder/gone"),
        "mkdir": lambda: disk.mkdir(root / "made"),
        "rmdir": lambda: disk.rmdir(root / "empty"),
        "fsync_dir": lambda: disk.fsync_dir(root),
        "open_read": lambda: disk.open(file, os.O_RDONLY),
        "read": lambda: disk.pread(reading, 10, 0),
        "stat": lambda: disk.stat(file),
        "listdir": lambda: disk.listdir(root),
        "scandir": lambda: disk.scandir(root),
        "readdir": readdir,
        "access": lambda: disk.access(file, os.R_OK),
        "statvfs": lambda: disk.statvfs(root),
        "flock": lambda: disk.flock(writing, 2),
    }


@pytest.mark.parametrize("operation", [*CHANGES, *LOOKS])
def test_each_operation_can_be_failed_and_only_that_one_fails(disk, tmp_path, operation):
    calls = every_operation(disk, tmp_path)
    assert calls.keys() == {*CHANGES, *LOOKS}
    rule = disk.on(operation).fail(errno.ESTALE)
    for name, call in calls.items():
        if name == operation:
            with pytest.raises(OSError, match="Stale") as caught:
                call()
            assert caught.value.errno == errno.ESTALE
            assert rule.reached.is_set()
        else:
            result = call()
            if name == "scandir":
                result.close()
    disk.heal()


def test_a_rule_begins_with_the_nth_call_and_ends_after_so_many(disk, tmp_path):
    rule = disk.on("stat", nth=3, times=2).fail(errno.EIO)
    outcomes = []
    for _ in range(6):
        try:
            disk.stat(tmp_path)
            outcomes.append("ok")
        except OSError:
            outcomes.append("fails")
    assert outcomes == ["ok", "ok", "fails", "fails", "ok", "ok"]
    assert rule.count == 4


def test_a_rule_concerns_a_text_a_folder_or_what_it_is_asked(disk, tmp_path):
    names = ("hr=14/a", "hr=15/a", "hr=15/b")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def failing(**how):
        rule = disk.on("stat", **how).fail(errno.EIO)
        failed = []
        for name in names:
            try:
                disk.stat(tmp_path / name)
            except OSError:
                failed.append(name)
        rule.lift()
        return failed

    assert failing(under="hr=14") == ["hr=14/a"]
    assert failing(under=tmp_path / "hr=15") == ["hr=15/a", "hr=15/b"]
    assert failing(when=lambda path: path.name == "a") == ["hr=14/a", "hr=15/a"]
    assert failing(under="hr=15", when=lambda path: path.name == "a") == ["hr=15/a"]
    assert failing(under="elsewhere") == []


def test_a_call_that_hangs_goes_on_when_it_is_released_and_holds_up_no_other(disk, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    hang = disk.on("stat", under=tmp_path / "folder").hang()
    done = threading.Event()
    thread = threading.Thread(target=lambda: disk.stat(tmp_path / "folder") and done.set())
    thread.start()
    assert hang.reached.wait(10)
    assert read_file(disk, tmp_path / "file") == b"x"
    assert not done.is_set()
    hang.release()
    assert done.wait(10)
    thread.join(10)
    disk.stat(tmp_path / "folder")


def test_healing_lets_go_what_hangs(disk, tmp_path):
    hang = disk.on("stat").hang()
    thread = threading.Thread(target=disk.stat, args=(tmp_path,))
    thread.start()
    assert hang.reached.wait(10)
    disk.heal()
    thread.join(10)
    assert not thread.is_alive()


def test_a_write_that_is_shortened_takes_so_much_and_a_read_gives_so_much(disk, tmp_path):
    fd = disk.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    short = disk.on("write").shorten(7)
    assert disk.write(fd, b"0123456789") == 7
    write_all(disk, fd, b"0123456789", 7)
    assert short.count == 2
    disk.close(fd)
    disk.on("read").shorten(3)
    assert read_file(disk, tmp_path / "file") == b"0123456789"


@pytest.mark.parametrize("after", [False, True])
def test_a_disk_that_dies_makes_the_call_or_not_and_no_other_one(disk, tmp_path, after):
    (tmp_path / "file").touch()
    if isinstance(disk, CrashableDisk):
        disk.settle()
    disk.on("unlink", after=after).die()
    with pytest.raises(PowerCut):
        disk.unlink(tmp_path / "file")
    assert (tmp_path / "file").exists() is not after
    for call in (lambda: disk.stat(tmp_path), lambda: disk.mkdir(tmp_path / "d"), lambda: disk.listdir(tmp_path)):
        with pytest.raises(PowerCut):
            call()


def test_a_step_through_a_folder_fails_after_what_was_read(disk, tmp_path):
    for number in range(5):
        (tmp_path / str(number)).touch()
    disk.on("readdir", nth=4).fail(errno.EIO)
    unread = []
    assert len(list(files_below(disk, tmp_path, unread))) == 3
    assert [error.errno for error in unread] == [errno.EIO]


def test_a_rule_for_what_no_disk_does_is_refused(disk):
    with pytest.raises(ValueError, match="renam"):
        disk.on("renam")
