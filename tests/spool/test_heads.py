"""Dead letters whose head is damaged: all of their lines are stored, under a head that tells their number."""

from __future__ import annotations

import gzip

import pytest

from ingest.format import codec, ledger
from ingest.format.codec import HEAD_BYTES
from tests.model.world import World
from tests.spool.test_copies import KEY, NUMBERS, leave, lines, settled, whole


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path, durability="journal", flush_interval="1h")
    yield made
    made.close()


def flipped(at, bits=0x01):
    damaged = bytearray(whole())
    damaged[at] ^= bits
    return bytes(damaged)


def halves():
    """Somebody put two files of one batch together: the first head tells of its own lines only."""
    return codec.encode(lines(NUMBERS[:40]), 40) + codec.encode(lines(NUMBERS[40:]), 60)


@pytest.mark.parametrize(
    "letter",
    [
        flipped(0),
        flipped(2),
        flipped(3),
        flipped(3, 0x40),
        flipped(6),
        flipped(9),
        flipped(10),
        flipped(10, 0x40),
        flipped(11),
        flipped(13),
        flipped(14),
        flipped(16),
        flipped(16, 0x40),
        flipped(19, 0x80),
        bytes(HEAD_BYTES) + whole()[HEAD_BYTES:],
        gzip.compress(lines(NUMBERS)),
        halves(),
    ],
    ids=[
        "magic",
        "method",
        "flags",
        "reserved flags",
        "time",
        "system",
        "a longer field",
        "a field as long as the file",
        "a field longer than the file",
        "name of the field",
        "length of the count",
        "one event less or more",
        "very many less or more",
        "two billion events",
        "zeros",
        "packed anew",
        "two in one",
    ],
)
def test_a_dead_letter_with_a_damaged_head_loses_no_line_and_its_object_tells_their_number(world, letter):
    leave(world, letter=letter)
    process = world.start()
    assert world.wait_for(settled(world, process), seconds=120, step=5)
    assert sorted(world.stored_numbers().elements()) == NUMBERS
    stored = world.store.objects[KEY]
    assert codec.event_count(stored) == 100
    told = world.told()
    assert told[KEY].stored == ledger.parse(ledger.stored(KEY, 100, stored)[:-1])
    assert told[KEY].dropped == {}, "nothing was lost"


@pytest.mark.parametrize("letter", [b"", bytes(1000), whole()[:15]], ids=["empty", "zeros", "cut in its head"])
def test_a_dead_letter_of_which_nothing_is_left_is_no_number_without_an_event(world, letter):
    leave(world, letter=letter)
    process = world.start()
    assert world.wait_for(settled(world, process), seconds=120, step=5)
    assert KEY not in world.store.objects
    told = world.told()[KEY]
    assert (told.stored, told.dropped) == (None, {"corrupt": 0}), "nobody knows how many"
