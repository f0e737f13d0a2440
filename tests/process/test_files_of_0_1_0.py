"""What version 0.1.0 left on a disk is stored by this version: `tests/data/0.1.0/README.md` says what each file is."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

from tests.process.ledger import read_directory

FILES = Path(__file__).parent.parent / "data/0.1.0"
DAMAGED = [*sorted((FILES / "dlq/7").rglob("*.jsonl.gz")), *sorted((FILES / "journal/8").rglob("*.jsonl"))]


@pytest.fixture
def left_behind(tmp_path):
    """The disk of a host on which 0.1.0 died, with the default settings: the journal lies below the DLQ."""
    folder = tmp_path / "run"
    shutil.copytree(FILES / "dlq", folder / "data/dlq")
    shutil.copytree(FILES / "journal", folder / "data/dlq/journal")
    shutil.copytree(FILES / "objects", folder / "data/objects")
    return folder / "data"


def lines_to_store():
    folder = FILES / "stored"
    return {f"{path.relative_to(folder)}.gz": path.read_bytes() for path in folder.rglob("*.jsonl")}


@pytest.mark.parametrize("durability", ["memory", "journal", "fsync"])
def test_every_sound_event_of_0_1_0_is_stored_once_and_what_is_damaged_is_put_aside(
    collectors, left_behind, durability
):
    stored_before = {stored.key: stored.data for stored in read_directory(left_behind / "objects")}
    collector = collectors({"DURABILITY": durability}).start()
    collector.wait_delivered(60)
    collector.stop(30)

    stored = {found.key: found.data for found in read_directory(left_behind / "objects")}
    assert {key: gzip.decompress(data) for key, data in stored.items()} == lines_to_store()
    assert stored.items() >= stored_before.items(), "an object that was there has been written again"
    aside = {found.key: found.data for found in read_directory(left_behind / "objects", "raw_dlq")}
    assert aside == {"/".join(("raw_dlq", *path.parts[-3:])): path.read_bytes() for path in DAMAGED}
    assert [path for path in (left_behind / "dlq").rglob("*.jsonl*") if path.is_file()] == []


def test_the_files_are_those_that_the_table_counts():
    """A file that was lost on its way into the repository would make the test above pass for less."""
    names = sorted(path.name for path in FILES.rglob("*") if path.is_file())
    assert len([name for name in names if name == "lock"]) == 18
    assert len([name for name in names if name.endswith(".tmp")]) == 3
    lines = lines_to_store()
    assert len(lines) == 11
    assert sum(data.count(b"\n") for data in lines.values()) == 12 + 12 + 12 + 12 + 5 + 12 + 12 + 3 + 6 + 30 + 11
