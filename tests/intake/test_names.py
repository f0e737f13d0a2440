"""A journal whose files lose their names: somebody removes the folder, or the lock, under the living process (C9).

A descriptor goes on taking lines then, and recovery would never see them. Each test takes names away behind the
process's back, lets less than two seconds pass, and kills the process: nothing acknowledged may be lost by that.
"""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from ingest.collector import ADOPT_SECONDS
from ingest.intake.journal import LOOKS_BETWEEN_REWRITES, WATCH_SECONDS
from ingest.telemetry import DropReason
from tests.intake.test_journal import committed, in_journal, is_rewrite, on_disk, refused, said, segments
from tests.model.world import World

NOTICED = 2 * WATCH_SECONDS


@pytest.fixture(params=["journal", "fsync"])
def journal(request, tmp_path):
    """A world in each mode that has a journal."""
    made = []

    def make(**variables):
        folder = tmp_path / f"world-{len(made)}"
        folder.mkdir()
        made.append(World(folder, durability=request.param, **{"flush_interval": "1h", **variables}))
        return made[-1]

    yield make
    for one in made:
        one.close()


def remove(world, path):
    """Do what `rm -r` does, on the world's disk and as nobody's process."""
    if path.is_dir():
        for below in path.iterdir():
            remove(world, below)
        world.fs.rmdir(path)
    else:
        world.fs.unlink(path)


def folder(world):
    return world.root / "dlq" / "journal"


def kill_and_recover(world, process, numbers):
    world.kill(process)
    world.recover()
    assert sorted(world.stored_numbers()) == sorted(numbers)


@pytest.mark.parametrize("what", ["", "0", "0/raw"])
def test_c9_a_folder_that_is_removed_latches_and_all_that_is_acknowledged_lies_on_disk_again(journal, what):
    world = journal(batch_size=4)
    process = world.start()
    world.store.down = True
    numbers = process.commit(6)
    remove(world, folder(world) / what)
    assert on_disk(world) == []
    world.advance(WATCH_SECONDS + 0.01, threads=False)
    world.run()
    assert len(said(world, "journal_refused")) == 1
    assert set(numbers[4:]) <= set(on_disk(world)), "what is still open was written anew"
    world.advance(NOTICED)
    assert len(said(world, "journal_resumed")) == 1
    more = process.commit(1)
    assert process.answers == committed(numbers + more)
    kill_and_recover(world, process, numbers + more)


def test_c9_nothing_is_taken_between_the_loss_and_the_mend(journal):
    world = journal()
    process = world.start()
    numbers = process.commit(3)
    remove(world, folder(world))
    world.fs.fail("open", errno.EROFS, times=99, when=in_journal)
    world.fs.fail("mkdir", errno.EROFS, times=99, when=in_journal)
    world.advance(NOTICED)
    lost = process.commit(2)
    assert process.answers == committed(numbers) + refused(lost)
    world.advance(30)
    assert process.answers[-2:] == refused(lost)
    assert len(said(world, "journal_refused")) == 1
    assert said(world, "journal_resumed") == []
    world.fs.heal()
    world.advance(3)
    assert len(said(world, "journal_resumed")) == 1
    more = process.commit(2)
    assert process.answers[-2:] == committed(more)
    kill_and_recover(world, process, numbers + more)


def test_c9_a_segment_that_cannot_be_written_anew_uploads_from_memory(journal):
    world = journal()
    process = world.start()
    numbers = process.commit(3)
    remove(world, folder(world) / "0" / "raw")
    world.fs.fail("open", errno.ENOSPC, when=is_rewrite)
    world.advance(NOTICED)
    assert len(said(world, "segment_rewrite_failed")) == 1
    assert sorted(world.stored_numbers()) == numbers
    kill_and_recover(world, process, numbers)


def test_c9_a_lock_that_is_removed_is_taken_again(journal):
    world = journal()
    process = world.start()
    numbers = process.commit(3)
    remove(world, folder(world) / "0" / "lock")
    world.advance(NOTICED + 1)
    assert len(said(world, "slot_taken_again")) == len(said(world, "journal_resumed")) == 1
    assert on_disk(world) == numbers
    other = world.start()
    assert (process.journal_slot.number, other.journal_slot.number) == (0, 1)
    kill_and_recover(world, process, numbers)


def test_c9_a_lock_that_is_removed_while_nothing_is_open_is_taken_again(journal):
    world = journal()
    process = world.start()
    remove(world, folder(world) / "0" / "lock")
    world.advance(NOTICED + 1)
    assert len(said(world, "slot_taken_again")) == len(said(world, "journal_resumed")) == 1
    other = world.start()
    assert (process.journal_slot.number, other.journal_slot.number) == (0, 1)
    kill_and_recover(world, process, process.commit(3))


def test_c9_a_slot_that_another_process_made_anew_is_left_to_it(journal):
    world = journal()
    process = world.start()
    numbers = process.commit(3)
    remove(world, folder(world))
    other = world.start()
    theirs = other.commit(2)
    assert other.journal_slot.number == 0
    world.fs.calls.clear()
    world.advance(NOTICED + 1)
    assert process.journal_slot.number == 1
    published = [path for operation, path in world.fs.calls if operation == "rename"]
    assert [path.relative_to(folder(world)).parts[0] for path in published] == ["1"], "nothing was in the other's slot"
    more = process.commit(2)
    assert process.answers == committed(numbers + more)
    assert {path.parts[2] for path in segments(world)} == {"0", "1"}
    world.kill(other)
    kill_and_recover(world, process, numbers + theirs + more)


def test_c9_a_slot_whose_lock_another_process_has_is_left_with_everything_in_it(journal):
    world = journal()
    process = world.start()
    numbers = process.commit(3)
    remove(world, folder(world) / "0" / "lock")
    other = world.start(run=False)
    assert other.journal_slot.number == 0
    world.advance(NOTICED + 1)
    assert process.journal_slot.number == 1
    more = process.commit(2)
    assert process.answers == committed(numbers + more)
    kill_and_recover(world, process, numbers + more)


def test_what_waits_in_a_slot_that_another_process_has_now_is_left_to_that_one(journal):
    """It finds the segments that we kept there; both would count them, and miss what the other one removes."""
    world = journal(s3_app_retries=1)
    process = world.start()
    world.store.down = True
    full = world.fs.on("write", when=lambda path: "/dlq/0/" in f"{path}").fail(errno.ENOSPC)
    numbers = process.commit(3)
    process.seal()
    world.advance(30)
    assert (process.backlog.files, process.backlog.events) == (1, 3)
    full.lift()
    remove(world, folder(world) / "0" / "lock")
    other = world.start()
    assert other.journal_slot.number == 0
    world.advance(NOTICED + 1)
    assert process.journal_slot.number == 1
    world.store.down = False
    assert world.wait_for(lambda: not segments(world), seconds=120, step=5)
    assert world.stored_numbers() == dict.fromkeys(numbers, 1)
    assert [one.metrics.books.events_dropped[DropReason.CORRUPT] for one in (process, other)] == [0, 0]
    assert not [path for path in folder(world).rglob(".ledger") if path.parent.parent != folder(world)]
    world.check()


def test_c9_a_sealed_batch_whose_segment_is_gone_is_no_backlog(journal):
    """It cannot be written anew either, and its put hangs: memory is the only place it has."""
    world = journal()
    process = world.start()
    world.late_puts = 1
    numbers = process.commit(3)
    process.seal()
    remove(world, folder(world) / "0" / "raw")
    world.fs.fail("open", errno.ENOSPC, when=is_rewrite)
    world.advance(NOTICED)
    assert len(said(world, "segment_rewrite_failed")) == 1
    world.store.down = True
    world.fs.fail("open", errno.EIO, times=3, when=lambda path: path.suffix == ".tmp" and not in_journal(path))
    world.advance(60)
    assert process.backlog.files == 0
    kill_and_recover(world, process, numbers)


def test_c9_a_look_that_the_disk_refuses_latches_nothing_and_is_told_once(journal):
    world = journal()
    process = world.start()
    numbers = process.commit(2)
    world.fs.fail("stat", errno.EIO, times=20, when=in_journal)
    world.advance(3 * WATCH_SECONDS)
    assert len({line["path"] for line in said(world, "journal_not_looked_at")}) == 2, "the lock, and the segment"
    assert len(said(world, "journal_not_looked_at")) == 2
    numbers += process.commit(2)
    assert process.answers == committed(numbers)
    assert said(world, "journal_refused") == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_segment_that_cannot_be_looked_at_hides_no_other_that_lost_its_name(journal, number):
    world = journal(upload_queue=4, dlq_max_size_bytes="1")
    process = world.start()
    world.store.down = True
    waiting = process.commit(3)
    process.seal()
    world.time.step(3600)
    numbers = process.commit(3)
    hidden = next(path for path in segments(world) if "hr=00" in path.parts)
    world.fs.on("stat", under=folder(world) / "0" / hidden.relative_to("dlq/journal/0").parent).fail(number)
    world.advance(NOTICED)
    assert [Path(line["path"]).name for line in said(world, "journal_not_looked_at")] == [hidden.name]
    (lost,) = folder(world).glob("0/raw/*/hr=01")
    remove(world, lost)
    world.advance(NOTICED)
    assert len(said(world, "journal_refused")) == len(said(world, "journal_resumed")) == 1
    more = process.commit(2)
    world.fs.heal()
    world.advance(NOTICED)
    assert len(said(world, "journal_not_looked_at")) == len(said(world, "journal_looked_at_again")) == 1
    assert process.answers == committed(waiting + numbers + more)
    world.store.down = False
    kill_and_recover(world, process, waiting + numbers + more)


def test_a_lock_that_cannot_be_looked_at_hides_no_segment_that_lost_its_name(journal):
    world = journal()
    process = world.start()
    numbers = process.commit(3)
    world.fs.on("stat", under=process.journal_slot.lock).fail(errno.EIO)
    remove(world, folder(world) / "0" / "raw")
    world.advance(NOTICED)
    assert len(said(world, "journal_not_looked_at")) == 1
    assert [line["path"] for line in said(world, "journal_refused")], "its name is gone, whosever the slot is"
    world.fs.heal()
    world.advance(NOTICED + 1)
    assert sorted(world.stored_numbers()) == numbers, "nobody could say where to write it anew: it went from memory"
    kill_and_recover(world, process, numbers)


def test_c9_a_name_that_is_lost_while_a_sync_is_under_way_refuses_what_waits_for_it(tmp_path):
    world = World(tmp_path, durability="fsync", flush_interval="1h")
    try:
        process = world.start()
        numbers = process.commit(2)
        lost = process.commit(2, run=False)
        remove(world, folder(world))
        world.advance(WATCH_SECONDS + 0.01, threads=False)
        world.run_job(1)  # the look; the sync's thread has the descriptor in hand still
        assert len(said(world, "journal_refused")) == 1
        world.advance(NOTICED)
        assert process.answers == committed(numbers) + refused(lost)
        kill_and_recover(world, process, numbers)
    finally:
        world.close()


def test_c9_a_batch_that_neither_store_nor_disk_takes_is_written_anew_from_its_compressed_lines(journal):
    world = journal(batch_size=4, dlq_max_size_bytes="1")
    process = world.start()
    world.store.down = True
    numbers = process.commit(4)
    world.advance(30)
    assert said(world, "batch_kept"), "it is compressed, and in memory alone but for its segment"
    assert [batch.packed != b"" for batch in process.collector.journal._batches] == [True]
    remove(world, folder(world))
    world.advance(NOTICED)
    assert on_disk(world) == numbers
    assert len(said(world, "journal_resumed")) == 1
    world.store.down = False
    kill_and_recover(world, process, numbers)


def test_c9_what_could_not_be_written_anew_is_written_when_the_disk_takes_it(journal):
    world = journal(dlq_max_size_bytes="1")
    process = world.start()
    world.store.down = True
    numbers = process.commit(3)
    remove(world, folder(world) / "0" / "raw")
    world.fs.fail("open", errno.ENOSPC, times=2, when=is_rewrite)
    world.advance(NOTICED)
    assert on_disk(world) == []
    world.advance(3 * LOOKS_BETWEEN_REWRITES * WATCH_SECONDS)
    assert len(said(world, "segment_rewrite_failed")) == 1
    assert on_disk(world) == numbers
    world.store.down = False
    kill_and_recover(world, process, numbers)


def test_c9_what_is_stored_meanwhile_is_not_written_anew(journal):
    world = journal()
    process = world.start()
    numbers = process.commit(3)
    remove(world, folder(world) / "0" / "raw")
    world.fs.fail("open", errno.ENOSPC, when=is_rewrite)
    world.advance(3 * LOOKS_BETWEEN_REWRITES * WATCH_SECONDS)
    assert sorted(world.stored_numbers()) == numbers
    assert said(world, "segment_rewritten") == []
    assert process.collector.journal._unwritten == []


def test_an_adopted_slot_that_another_process_took_is_left_to_it_with_its_segments(journal):
    world = journal()
    process, dead = world.start(), world.start()
    world.store.down = True
    numbers = dead.commit(3)
    world.kill(dead)
    assert world.wait_for(lambda: process.backlog.files == 1, seconds=2 * ADOPT_SECONDS)
    world.fs.unlink(folder(world) / "1" / "lock")
    other = world.start()
    assert other.journal_slot.number == 1
    world.advance(NOTICED)
    assert (process.backlog.files, process.backlog.adopted, process.metrics.books.events_handed_on) == (0, 0, 3)
    assert (other.backlog.files, len(said(world, "journal_slot_lost"))) == (1, 1)
    world.store.down = False
    world.recover()
    assert sorted(world.stored_numbers()) == numbers
    assert [one.metrics.books.events_dropped.total() for one in (process, other)] == [0, 0]


def test_what_an_earlier_run_left_in_our_slot_goes_with_it_and_the_new_one_is_listed(journal):
    world = journal()
    world.store.down = True
    first, second = world.start(), world.start()
    numbers = first.commit(3) + second.commit(2)
    world.kill(first)
    world.kill(second)
    process = world.start()
    assert world.wait_for(lambda: process.backlog.events == 5, seconds=2 * ADOPT_SECONDS), (
        "its own, and the adopted one"
    )
    remove(world, folder(world) / "0" / "lock")
    other = world.start()
    assert other.journal_slot.number == 0
    world.advance(NOTICED + 1)
    assert process.journal_slot.number == 2
    assert (process.backlog.events, process.metrics.books.events_handed_on, other.backlog.events) == (2, 3, 3)
    world.store.down = False
    world.recover()
    assert sorted(world.stored_numbers()) == numbers
    assert [one.metrics.books.events_dropped.total() for one in (process, other)] == [0, 0]


def test_without_a_journal_the_lock_in_its_folder_is_taken_again_all_the_same(tmp_path):
    world = World(tmp_path, durability="memory", flush_interval="1h")
    try:
        process = world.start()
        remove(world, folder(world) / "0" / "lock")
        world.advance(NOTICED)
        assert len(said(world, "slot_taken_again")) == 1
        remove(world, folder(world) / "0" / "lock")
        other = world.start()
        world.advance(NOTICED)
        assert (other.journal_slot.number, process.journal_slot.number) == (0, 1)
        assert process.collector.slots["journal"] == str(folder(world) / "1")
    finally:
        world.close()
