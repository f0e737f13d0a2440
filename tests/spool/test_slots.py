"""Slots of the dead-letter queue under a living process: a lock that is removed, a slot that another process takes.

Each test takes names away behind the process's back, as a cleaner or `rm -r` does, and holds the books to the end.
"""

from __future__ import annotations

import pytest

from ingest.collector import ADOPT_SECONDS
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
    numbers = []
    for _ in range(batches):
        numbers += process.commit(events)
        process.seal()
    assert world.wait_for(lambda: process.dlq.events >= len(numbers), seconds=60)
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
    world.fs.unlink(process.dlq_slot.path / "lock")
    world.advance(2 * ADOPT_SECONDS)
    assert (process.dlq.files, process.dlq.events, process.dlq.adopted) == (2, len(left), 0), "counted once"
    all_stored(world, process)
    assert sorted(world.stored_numbers()) == left
    assert (process.metrics.books.events_stored, process.metrics.books.events_dropped.total()) == (len(left), 0)
