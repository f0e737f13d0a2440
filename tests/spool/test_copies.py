"""Two copies of one key, a segment and a dead letter: what is stored, and when, and what the books say (A11, C11)."""

from __future__ import annotations

import errno

import pytest

from ingest.format import codec
from ingest.telemetry import DropReason
from tests.model.ledger import line
from tests.model.world import START, World

DEAD = "dead" * 4
KEY = f"raw/dt=2025-12-03/hr=00/{START}_host-{DEAD}_0000000001.jsonl.gz"
NUMBERS = list(range(100))


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path, durability="journal", flush_interval="1h")
    yield made
    made.close()


def lines(numbers):
    return b"".join(line(START, number) for number in numbers)


def leave(world, *, segment=None, letter=None, journal_slot="0", dlq_slot="0"):
    """Put files where a process of another token would have left them."""
    for data, path in (
        (segment, world.root / "dlq/journal" / journal_slot / KEY.removesuffix(".gz")),
        (letter, world.root / "dlq" / dlq_slot / KEY),
    ):
        if data is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    world.fs.settle()


def corrupt(data, at=0.4):
    """Damage a gzip file behind so much of it."""
    where = int(len(data) * at)
    return data[:where] + bytes([data[where] ^ 0xFF, data[where + 1] ^ 0xFF]) + data[where + 2 :]


def whole():
    return codec.encode(lines(NUMBERS), len(NUMBERS))


def settled(world, process):
    return lambda: not process.pending and not process.scanning and not world.files()


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize(
    ("operation", "under"),
    [
        ("open_read", "journal/0/raw"),
        ("read", "journal/0/raw"),
        ("scandir", "journal/0/raw"),
        ("stat", "journal/0/raw"),
        ("listdir", "journal"),
    ],
)
def test_a11_a_corrupt_dead_letter_waits_until_its_segment_can_be_read(world, operation, under, number):
    leave(world, segment=lines(NUMBERS), letter=corrupt(whole()))
    fault = world.fs.on(operation, under=world.root / "dlq" / under).fail(number)
    process = world.start()
    world.advance(60)
    if operation in ("stat", "listdir"):
        assert sorted(world.stored_numbers()) == NUMBERS, "the segment itself can be read, and all of it counts"
    else:
        assert world.store.objects == {}, "it was salvaged though its segment may hold more"
    fault.lift()
    assert world.wait_for(settled(world, process), seconds=120, step=5)
    assert sorted(world.stored_numbers()) == NUMBERS
    assert process.metrics.books.events_stored == 100
    assert process.metrics.books.events_dropped[DropReason.CORRUPT] == 0


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize(("operation", "under"), [("scandir", "0/raw"), ("open_read", "0/raw"), ("stat", "0/raw")])
def test_a11_a_segment_waits_until_its_dead_letter_can_be_read(world, operation, under, number):
    """The segment lost its end in a power cut; the dead letter is whole."""
    leave(world, segment=lines(NUMBERS[:40]), letter=whole())
    fault = world.fs.on(operation, under=world.root / "dlq" / under).fail(number)
    process = world.start()
    world.advance(60)
    assert world.store.objects == {}
    fault.lift()
    assert world.wait_for(settled(world, process), seconds=120, step=5)
    assert sorted(world.stored_numbers()) == NUMBERS
    assert process.metrics.books.events_stored == 100


def test_a11_a_corrupt_dead_letter_waits_for_a_segment_that_another_process_holds(world):
    other = world.start()
    leave(world, segment=lines(NUMBERS), letter=corrupt(whole()), journal_slot="0", dlq_slot="5")
    fault = world.fs.on("open_read", "stat", under=world.root / "dlq/journal/0/raw").fail()
    world.advance(60)
    assert world.store.objects == {}
    fault.lift()
    other.stop()
    last = world.start()
    assert world.wait_for(settled(world, last), seconds=120, step=5)
    assert sorted(world.stored_numbers()) == NUMBERS


@pytest.mark.parametrize(
    ("segment", "letter", "stored", "lost"),
    [
        (NUMBERS, whole(), 100, 0),
        (NUMBERS[:30], whole(), 100, 0),
        (NUMBERS, codec.encode(lines(NUMBERS[:66]), 66), 100, 0),
        (NUMBERS, corrupt(whole()), 100, 0),
        (NUMBERS[:95], corrupt(whole()), 95, 5),
        ([], whole(), 100, 0),
    ],
    ids=[
        "both whole",
        "a short segment",
        "a salvaged letter",
        "a corrupt letter",
        "a corrupt letter and a short segment",
        "an empty segment",
    ],
)
def test_c11_two_copies_of_a_key_count_as_one_batch(world, segment, letter, stored, lost):
    leave(world, segment=lines(segment), letter=letter)
    process = world.start()
    assert world.wait_for(settled(world, process), seconds=120, step=5)
    books = process.metrics.books
    assert (books.events_recovered, books.events_stored) == (stored + lost, stored)
    assert books.events_dropped[DropReason.CORRUPT] == lost
    assert len(world.stored_numbers()) == stored


def test_c11_a_segment_removed_by_hand_is_pending_no_more(world):
    leave(world, segment=lines(NUMBERS))
    world.store.down = True
    process = world.start()
    world.advance(5)
    assert process.backlog.events == 100
    (world.root / "dlq/journal/0" / KEY.removesuffix(".gz")).unlink()
    world.fs.settle()
    world.store.down = False
    assert world.wait_for(lambda: not process.pending, seconds=120, step=5)
    assert process.metrics.books.events_dropped[DropReason.CORRUPT] == 100
