"""Slots of the dead-letter queue under a living process: a lock that is removed, a slot that another process takes.

Each test takes names away behind the process's back, as a cleaner or `rm -r` does, and holds the books to the end.
"""

from __future__ import annotations

import errno
import shutil

import pytest

from ingest.collector import ADOPT_SECONDS
from ingest.spool.spool import WATCH_SECONDS
from tests.model.world import World


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path, durability="journal", flush_interval="1h")
    yield made
    made.close()


def said(world, event):
    return [line for line in world.logs if line["event"] == event]


def letters(world, process, batches=1, events=3):
    """Have so many batches become dead letters: the store is down."""
    world.store.down = True
    numbers, before = [], process.dlq.events
    for _ in range(batches):
        numbers += process.commit(events)
        process.seal()
    assert world.wait_for(lambda: process.dlq.events == before + len(numbers), seconds=60)
    return numbers


def all_stored(world, process):
    world.store.down = False
    assert world.wait_for(lambda: not process.pending and not process.scanning, seconds=4000, step=5)
    world.check()


def test_a_slot_whose_lock_is_removed_is_never_adopted_by_the_process_that_holds_it(world):
    dead = world.start()
    left = letters(world, dead, batches=2)
    world.kill(dead)
    process = world.start()
    assert world.wait_for(lambda: not process.scanning and process.dlq.files == 2, seconds=60)
    world.fs.on("stat", under=process.dlq_slot.lock).fail(errno.EIO)  # so that it cannot be told that the name is gone
    world.fs.unlink(process.dlq_slot.lock)
    world.advance(2 * ADOPT_SECONDS)
    assert (process.dlq.files, process.dlq.events, process.dlq.adopted) == (2, len(left), 0), "counted once"
    world.fs.heal()
    all_stored(world, process)
    assert sorted(world.stored_numbers()) == left
    assert (process.metrics.books.events_stored, process.metrics.books.events_dropped.total()) == (len(left), 0)


def test_a_lock_that_is_removed_is_taken_again_before_another_process_comes(world):
    process = world.start()
    numbers = letters(world, process)
    world.fs.unlink(process.dlq_slot.path / "lock")
    world.advance(2 * WATCH_SECONDS)
    assert len(said(world, "slot_taken_again")) == 1
    other = world.start()
    assert (process.dlq_slot.number, other.dlq_slot.number) == (0, 1)
    numbers += letters(world, process)
    all_stored(world, process)
    assert sorted(world.stored_numbers()) == numbers


def test_a_slot_that_another_process_took_is_left_to_it_with_all_that_is_in_it(world):
    process = world.start()
    numbers = letters(world, process, batches=2)
    world.fs.unlink(process.dlq_slot.path / "lock")
    other = world.start()
    assert other.dlq_slot.number == 0
    world.advance(2 * WATCH_SECONDS)
    assert process.dlq_slot.number == 1
    assert (process.dlq.files, process.metrics.books.events_handed_on) == (0, len(numbers))
    numbers += letters(world, process, batches=2)
    world.fs.calls.clear()
    all_stored(world, other)
    all_stored(world, process)
    assert sorted(world.stored_numbers()) == numbers
    assert [one.metrics.books.events_dropped.total() for one in (process, other)] == [0, 0], "nothing counts as lost"
    world.recover()


@pytest.mark.parametrize("again", ["adopted", "our own"])
def test_letters_that_were_handed_on_are_counted_anew_by_the_process_that_had_saved_them(world, again):
    """Its token is in their names, by which it knows what it has counted as it saved it."""
    process = world.start()
    numbers = letters(world, process, batches=2)
    world.fs.unlink(process.dlq_slot.path / "lock")
    other = world.start()
    world.advance(2 * WATCH_SECONDS)
    assert (process.dlq_slot.number, process.metrics.books.events_handed_on) == (1, len(numbers))
    world.kill(other)
    if again == "our own":
        shutil.rmtree(process.dlq_slot.path)
        process.dlq_slot.path.touch()  # in whose way there is no slot
        world.advance(2 * WATCH_SECONDS)
        assert process.dlq_slot.number == 0
        numbers += letters(world, process)
    else:
        assert world.wait_for(lambda: process.dlq.adopted == 1, seconds=2 * ADOPT_SECONDS)
    books = process.metrics.books
    assert world.wait_for(lambda: books.events_recovered == 6 and not process.scanning, seconds=60)
    all_stored(world, process)
    assert sorted(world.stored_numbers()) == numbers
    assert (books.unaccounted(), books.events_dropped.total()) == (0, 0)


def test_nothing_is_saved_in_a_slot_that_another_process_took_a_moment_ago(world):
    """The one that took it counts what it finds there, and would not count what comes later."""
    process = world.start(upload_queue=1, upload_concurrency=1)
    numbers = letters(world, process)
    world.advance(2 * WATCH_SECONDS)
    world.fs.unlink(process.dlq_slot.path / "lock")
    other = world.start()
    world.advance(0.1)
    assert (other.scanning, other.dlq.files, process.dlq.files) == (False, 1, 1), "not looked at yet"
    for _ in range(4):
        numbers += process.commit(3)
        process.seal()
    assert process.dlq_slot.number == 1, "the upload queue is full, so a batch is saved at once"
    all_stored(world, process)
    all_stored(world, other)
    assert sorted(world.stored_numbers()) == numbers
    assert [one.metrics.books.events_dropped.total() for one in (process, other)] == [0, 0]
    world.recover()


def test_a_letter_lent_from_a_slot_that_another_process_took_is_removed_by_that_one(world):
    process = world.start()
    numbers = letters(world, process)
    world.late_puts = 1
    world.store.down = False
    assert world.wait_for(lambda: bool(process.link.under_way), seconds=400, step=1)
    world.fs.unlink(process.dlq_slot.path / "lock")
    other = world.start()
    assert other.dlq_slot.number == 0
    all_stored(world, other)
    world.advance(100)
    all_stored(world, process)
    assert sorted(world.stored_numbers()) == numbers
    assert [one.metrics.books.events_dropped.total() for one in (process, other)] == [0, 0]
    world.recover()


def test_an_adopted_slot_that_another_process_took_is_handed_on(world):
    process, dead = world.start(), world.start()
    numbers = letters(world, dead)
    world.kill(dead)
    assert world.wait_for(lambda: process.dlq.files == 1, seconds=2 * ADOPT_SECONDS)
    world.fs.unlink(world.root / "dlq/1/lock")
    other = world.start()
    assert other.dlq_slot.number == 1
    world.advance(2 * WATCH_SECONDS)
    assert (process.dlq.files, process.dlq.adopted, process.metrics.books.events_handed_on) == (0, 0, len(numbers))
    all_stored(world, other)
    assert sorted(world.stored_numbers()) == numbers
    assert [one.metrics.books.events_dropped.total() for one in (process, other)] == [0, 0]
    world.recover()


def test_a_lock_that_cannot_be_looked_at_is_told_once_and_is_no_verdict(world):
    process = world.start()
    numbers = letters(world, process)
    world.fs.on("stat", under=world.root / "dlq/0/lock").fail(errno.EIO)
    world.advance(10)
    assert len(said(world, "dlq_slot_not_looked_at")) == 1
    numbers += letters(world, process)
    assert (process.dlq_slot.number, process.dlq.files) == (0, 2)
    world.fs.heal()
    all_stored(world, process)
    assert sorted(world.stored_numbers()) == numbers


def test_slots_that_cannot_be_looked_into_are_told_once_each_and_when_they_can_be_again(world):
    world.start()
    for number in (5, 6):
        (world.root / "dlq" / str(number)).mkdir()
        (world.root / "dlq" / str(number) / "notes").write_bytes(b"")
    world.fs.settle()
    locks = [world.root / "dlq" / str(number) / "lock" for number in (5, 6)]
    for lock in locks:
        world.fs.on("open", under=lock).fail(errno.EACCES)
    world.advance(5 * ADOPT_SECONDS)
    assert sorted(line["path"] for line in said(world, "slots_not_read")) == [str(lock) for lock in locks]
    assert said(world, "slots_read_again") == []
    world.fs.heal()
    world.advance(2 * ADOPT_SECONDS)
    assert sorted(line["path"] for line in said(world, "slots_read_again")) == [str(lock) for lock in locks]
    world.fs.on("open", under=locks[1]).fail(errno.EACCES)
    world.kill(world.processes[0])
    world.start()
    world.advance(2 * ADOPT_SECONDS)
    assert len(said(world, "slots_not_read")) == 3, "a new process, a new line"
