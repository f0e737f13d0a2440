"""Dead letters that something else removed: the books have them no longer than they are known to be there."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil

import pytest

from ingest.spool import letters as letters_module
from ingest.spool.letters import Pass
from ingest.telemetry import DropReason
from tests.model.world import World
from tests.stand_ins.disk import Disk
from tests.stand_ins.letters import HOUR, OWN, Bench, body, key, leave

LATER = "dt=2025-12-02/hr=15"


class Volume(Disk):
    """A disk whose folders can be on another volume than the files that are open: theirs is not mounted."""

    mounted = True

    def stat(self, path):
        found = super().stat(path)
        return found if self.mounted else os.stat_result((*found[:2], found.st_dev + 1, *found[3:10]))


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, Volume())


def the_hour(root):
    shutil.rmtree(root / "raw" / HOUR)


def the_prefix(root):
    shutil.rmtree(root / "raw")


def the_slot(root):
    shutil.rmtree(root)


def the_directory(root):
    root.parent.rename(root.parent.with_name("moved"))


def its_files(root):
    for path in (root / "raw" / HOUR).iterdir():
        path.unlink()


def its_notes(root):
    """Somebody leaves a note in each hour's folder in place of its files."""
    for folder in root.glob("raw/dt=*/hr=*"):
        for path in folder.iterdir():
            path.unlink()
        (folder / "NOTE").write_text("moved to another disk")


def names_for_others(root):
    """The files are unpacked where they lie, more of them than a step of a pass reads."""
    for path in (root / "raw" / HOUR).iterdir():
        path.rename(path.with_suffix(""))
    for number in range(10):
        (root / "raw" / HOUR / f"{number}.jsonl").write_bytes(b"")


@pytest.mark.parametrize(
    "remove", [the_hour, the_prefix, the_slot, the_directory, its_files, its_notes, names_for_others]
)
def test_an_hour_whose_files_something_else_removed_leaves_the_books_within_a_pass(bench, monkeypatch, remove):
    monkeypatch.setattr(letters_module, "SCAN_LIMIT", 2)
    leave(bench.root, key(1), body(4))

    async def main():
        async with bench.open() as dlq:
            for n in range(2, 6):
                await bench.save(n)
            remove(bench.root)
            assert await bench.all_keys() == []
            assert (dlq.files, dlq.events, dlq.size, dlq.oldest) == (0, 0, 0, 0)
            assert bench.metrics.books.events_dropped[DropReason.CORRUPT] == 16
            await bench.save(9)
            assert await bench.all_keys() == [key(9, token=OWN)]

    asyncio.run(main())


def unmounted(fs):
    fs.mounted = False


def unreadable(fs):
    fs.on("scandir").fail(errno.EIO)


def untold(fs):
    fs.on("stat").fail(errno.EIO)


@pytest.mark.parametrize("away", [unmounted, unreadable, untold])
@pytest.mark.parametrize("part", ["raw", f"raw/{HOUR}"])
def test_nothing_leaves_the_books_while_it_is_not_known_what_the_volume_holds(bench, away, part):
    async def main():
        async with bench.open() as dlq:
            await bench.save(1)
            await bench.save(2, hour=LATER)
            away(bench.fs)
            (bench.root / part).rename(bench.root.parent / "raw-of-the-volume")
            await bench.all_keys()
            assert (dlq.files, dlq.events) == (2, 6)
            (bench.root / part).parent.mkdir(exist_ok=True)
            (bench.root.parent / "raw-of-the-volume").rename(bench.root / part)
            bench.fs.heal()
            bench.fs.mounted = True
            assert await bench.all_keys() == [key(1, token=OWN), key(2, token=OWN, hour=LATER)]
            assert (dlq.files, dlq.events) == (2, 6)

    asyncio.run(main())


def test_an_hour_that_is_gone_stays_in_the_books_while_one_of_its_files_is_lent(bench):
    async def main():
        async with bench.open() as dlq:
            await bench.save(1)
            await bench.save(2)
            lent = await dlq.next()
            the_prefix(bench.root)
            assert await dlq.next() is None
            assert dlq.files == 2
            await bench.store(lent)
            assert await bench.all_keys() == []
            assert (dlq.files, dlq.events, bench.metrics.books.events_stored) == (0, 0, 3)
            assert bench.metrics.books.events_dropped[DropReason.CORRUPT] == 3

    asyncio.run(main())


def test_a_file_saved_while_a_pass_reads_a_folder_without_one_stays_in_the_books(bench, monkeypatch):
    monkeypatch.setattr(letters_module, "SCAN_LIMIT", 2)

    async def main():
        async with bench.open() as dlq:
            await bench.save(1)
            names_for_others(bench.root)
            read = bench.fs.on("readdir", under="hr=14")
            while not read.count:
                assert dlq._letters.next() is Pass.GOES_ON
            await bench.save(2)
            while dlq._letters.next() is Pass.GOES_ON:
                pass
            assert dlq.files == 2
            await bench.store(await dlq.next())
            assert await bench.all_keys() == []
            assert (dlq.files, bench.metrics.books.events_stored) == (0, 3)

    asyncio.run(main())


@pytest.mark.parametrize("remove", [the_prefix, the_slot, the_directory, its_notes])
def test_a_full_queue_takes_batches_once_somebody_made_room_though_the_store_is_away_and_batches_wait(tmp_path, remove):
    limits = {"dlq_max_size_bytes": 500, "upload_queue": 1, "channel_size": 3, "batch_size": 3}
    variables = {"flush_interval": "10s", "s3_app_retries": 1, "journal_dir": tmp_path / "journal"}
    world = World(tmp_path, durability="journal", **variables, **limits)
    process = world.start()
    world.store.down = True
    for _ in range(8):
        process.commit(3)
        process.seal()
    assert process.dlq.full
    remove(tmp_path / "dlq/0")
    assert world.wait_for(lambda: not process.dlq.full, seconds=60)
    assert world.wait_for(process.takes_an_event, seconds=60)
    world.store.down = False
    assert world.wait_for(lambda: not process.pending, seconds=600, step=5), process.figures()
    assert process.dlq.files == 0
    assert any(told["event"] == "dlq_books_corrected" for told in world.logs)
    world.close()
