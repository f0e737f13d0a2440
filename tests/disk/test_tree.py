"""A tree syncs what is new, and only that; what it pruned is new again."""

from __future__ import annotations

import shutil

import pytest

from ingest.disk import Tree
from tests.stand_ins.disk import CrashableDisk


@pytest.fixture
def disk(tmp_path):
    return CrashableDisk(tmp_path)


def synced_folders(disk, work):
    disk.calls.clear()
    work()
    return [path.relative_to(disk.root).as_posix() for operation, path in disk.calls if operation == "fsync_dir"]


def test_a_folder_in_use_is_not_synced_again(disk):
    tree = Tree(disk, disk.root)
    path = disk.root / "raw/hr=14/file"
    assert synced_folders(disk, lambda: tree.publish(path, b"1")) == [".", "raw", "raw/hr=14"]
    assert synced_folders(disk, lambda: tree.publish(path, b"2")) == ["raw/hr=14"]
    assert synced_folders(disk, lambda: tree.publish_new(path.with_name("other"), b"3")) == ["raw/hr=14"]


def test_a_folder_that_was_pruned_and_made_by_another_is_synced_again(disk):
    tree = Tree(disk, disk.root)
    path = disk.root / "raw/hr=14/file"
    tree.publish(path, b"1")
    disk.unlink(path)
    tree.prune(path.parent)
    assert not (disk.root / "raw").exists()
    disk.mkdir(disk.root / "raw")
    disk.mkdir(disk.root / "raw/hr=14")
    assert synced_folders(disk, lambda: tree.publish(path, b"2")) == [".", "raw", "raw/hr=14"]
    disk.crash(lambda _: 0)
    assert path.read_bytes() == b"2"


def test_temporaries_lie_where_they_are_told_to_also_when_that_was_removed(disk):
    tree = Tree(disk, disk.root, temporaries=disk.root / ".tmp")
    path = disk.root / "raw/file"
    for content in (b"1", b"2"):
        disk.calls.clear()
        tree.publish(path, content)
        (written,) = {at.parent for operation, at in disk.calls if operation == "write"}
        assert written == disk.root / ".tmp"
        assert path.read_bytes() == content
        shutil.rmtree(disk.root / ".tmp")
        disk.settle()


def test_a_name_that_is_taken_is_never_replaced(disk):
    tree = Tree(disk, disk.root)
    path = disk.root / "raw/file"
    assert tree.publish_new(path, b"1")
    assert not tree.publish_new(path, b"2")
    assert path.read_bytes() == b"1"
