"""Symbolic links below a slot, as an operator makes them who rescues a full disk: what is written through is found."""

from __future__ import annotations

import os

import pytest

from ingest.disk import Filesystem
from ingest.spool.hours import hour_folders
from tests.model.world import World


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path, durability="journal", flush_interval="1h")
    yield made
    made.close()


def letters(world, process, batches):
    world.store.down = True
    numbers, before = [], process.dlq.events
    for _ in range(batches):
        numbers += process.commit(3)
        process.seal()
    assert world.wait_for(lambda: process.dlq.events == before + len(numbers), seconds=60)
    return numbers


def move(path, to):
    """Move a folder to a larger disk, and leave a link in its place."""
    os.rename(path, to)
    path.symlink_to(to)


def all_stored(world, process):
    world.store.down = False
    assert world.wait_for(lambda: not process.pending and not process.scanning, seconds=4000, step=5)
    world.check()


@pytest.mark.parametrize("part", ["raw", "raw/dt=2025-12-03", "raw/dt=2025-12-03/hr=00"])
def test_dead_letters_behind_a_link_are_stored_by_this_process_and_counted_by_the_next(world, part):
    process = world.start()
    numbers = letters(world, process, 2)
    move(process.dlq_slot.path / part, world.root / "large")
    numbers += letters(world, process, 2)
    world.kill(process)
    process = world.start()
    assert world.wait_for(lambda: not process.scanning, seconds=60)
    assert (process.dlq.files, process.dlq.events) == (4, len(numbers))
    numbers += letters(world, process, 1)
    all_stored(world, process)
    assert sorted(world.stored_numbers()) == numbers
    assert world.files() == []


def test_segments_behind_a_link_are_recovered(world):
    process = world.start()
    numbers = process.commit(3)
    move(process.journal_slot.path / "raw", world.root / "large")
    world.advance(2)
    numbers += process.commit(3)
    assert [line for line in world.logs if line["event"] == "journal_refused"] == [], "its name leads to it as before"
    world.kill(process)
    process = world.start()
    assert world.wait_for(lambda: sorted(world.stored_numbers()) == numbers, seconds=60)
    assert process.metrics.books.events_recovered == len(numbers)
    world.recover()


@pytest.mark.parametrize(("link", "to"), [("raw/back", ".."), ("other", "raw"), ("raw/dt=2025-12-03/hr=01", "hr=00")])
def test_a_link_to_what_is_listed_anyway_lists_nothing_twice(world, link, to):
    process = world.start()
    numbers = letters(world, process, 2)
    world.kill(process)
    (world.root / "dlq/0" / link).symlink_to(to)
    listing = hour_folders(Filesystem(), [world.root / "dlq/0"])
    assert (listing.hours, listing.unreadable) == ([world.root / "dlq/0/raw/dt=2025-12-03/hr=00"], {})
    process = world.start()
    assert world.wait_for(lambda: not process.scanning, seconds=60)
    assert (process.dlq.files, process.dlq.events) == (2, len(numbers))


def test_a_link_to_itself_is_unknown_and_hides_nothing_beside_it(world):
    process = world.start()
    numbers = letters(world, process, 2)
    world.kill(process)
    (world.root / "dlq/0/other").symlink_to("other")
    (world.root / "dlq/journal/0/other").symlink_to("other")
    process = world.start()
    world.advance(60)
    assert (process.dlq.unknown, process.backlog.unknown, process.dlq.events) == (1, 1, len(numbers))


@pytest.mark.parametrize("place", ["dlq", "backlog"])
def test_a_link_whose_end_is_not_there_is_unknown_and_tried_again(world, place):
    process = world.start()
    if place == "dlq":
        numbers = letters(world, process, 2)
        raw = process.dlq_slot.path / "raw"
    else:
        numbers = process.commit(3)
        raw = process.journal_slot.path / "raw"
    world.kill(process)
    move(raw, world.root / "large")
    os.rename(world.root / "large", world.root / "unmounted")
    process = world.start()
    world.advance(60)
    assert getattr(process, place).unknown == 1
    event = "dlq_folder_unreadable" if place == "dlq" else "segment_not_read"
    assert [line["path"] for line in world.logs if line["event"] == event] == [str(raw)]
    os.rename(world.root / "unmounted", world.root / "large")
    world.store.down = False
    assert world.wait_for(lambda: sorted(world.stored_numbers()) == numbers, seconds=4000, step=5)
    assert getattr(process, place).unknown == 0
