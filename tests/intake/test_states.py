"""The states of a segment: which may follow which, what holds in each, and who notices when it does not."""

from __future__ import annotations

import inspect
import re
from itertools import product
from pathlib import Path

import pytest

from ingest.intake import segments
from ingest.intake.journal import Journal
from ingest.intake.segments import FOLLOWS, OPEN, Segment, SegmentState
from tests.model.world import World

WAYS = {
    SegmentState.CREATED: [],
    SegmentState.NAMED: [SegmentState.NAMED],
    SegmentState.BROKEN: [SegmentState.BROKEN],
    SegmentState.SEALED: [SegmentState.SEALED],
    SegmentState.KEPT: [SegmentState.SEALED, SegmentState.KEPT],
    SegmentState.REMOVED: [SegmentState.SEALED, SegmentState.REMOVED],
}
"""How a new segment comes into each state."""


def segment(state: SegmentState) -> Segment:
    made = Segment(Path("1764720000_host-0123456789abcdef_0000000001.jsonl"), Path(), 7)
    for step in WAYS[state]:
        made.enter(step)
    return made


def rows() -> dict[str, list[str]]:
    """The table in the module's text: state -> the functions by which it is entered."""
    text = segments.__doc__
    assert text is not None
    found = re.findall(r"^\| (\w+) +\| (`.*?`) +\|", text, re.MULTILINE)
    return {state: re.findall(r"\w+", entered) for state, entered in found}


@pytest.mark.parametrize(("state", "after"), list(product(SegmentState, repeat=2)))
def test_a_state_follows_only_upon_those_that_the_table_names(state, after):
    one = segment(state)
    if after in FOLLOWS[state]:
        one.enter(after)
        assert one.state is after
    else:
        with pytest.raises(AssertionError, match=after.value):
            one.enter(after)
        assert one.state is state


def test_every_state_can_be_left_for_good():
    """Whatever becomes of a segment, the journal is through with it in the end."""
    ends = {SegmentState.KEPT, SegmentState.REMOVED}
    for state in SegmentState:
        reached = {state}
        while more := {after for one in reached for after in FOLLOWS[one]} - reached:
            reached |= more
        assert reached & ends, state


@pytest.mark.parametrize(
    ("state", "syncing", "has_descriptor"), list(product(SegmentState, (False, True), (False, True)))
)
def test_only_a_segment_that_takes_lines_has_a_descriptor(state, syncing, has_descriptor):
    one = segment(state)
    one.fd = 7 if has_descriptor else None
    in_a_sync = state is SegmentState.BROKEN and syncing
    if has_descriptor is (state in OPEN) or (in_a_sync and has_descriptor):
        one.check(syncing=syncing)
    else:
        with pytest.raises(AssertionError, match=state.value):
            one.check(syncing=syncing)


def test_the_table_names_every_state_and_the_functions_that_enter_it():
    table = rows()
    assert list(table) == [state.value for state in SegmentState]
    source = inspect.getsource(Journal)
    functions = re.split(r"^    (?:async )?def ", source, flags=re.MULTILINE)[1:]
    for state in SegmentState:
        entered = {text.split("(", 1)[0] for text in functions if f"enter(SegmentState.{state.name})" in text}
        named = set(table[state.value]) - {"Journal"}
        assert named == (entered or {"begin"}), state


SPOILS = {
    "bytes that nobody knows of": lambda _, batch: setattr(batch.segment, "size", batch.segment.size + 1),
    "a tail that waits for no sync": lambda _, batch: setattr(batch, "tail_events", 1),
    "a rewrite of what is whole": lambda journal, batch: journal._broken.append(batch),
    "a seal that waits for nothing": lambda journal, batch: journal._sealing.append(batch),
    "a descriptor that is closed": lambda journal, batch: journal._close(batch.segment),
}


@pytest.mark.parametrize("durability", ["journal", "fsync"])
@pytest.mark.parametrize("spoil", SPOILS.values(), ids=list(SPOILS))
def test_a_journal_that_contradicts_itself_is_noticed(tmp_path, durability, spoil):
    world = World(tmp_path, durability=durability, flush_interval="1h")
    try:
        process = world.start()
        process.commit(2)
        (batch,) = process.journal._batches
        process.journal._check()
        spoil(process.journal, batch)
        with pytest.raises(AssertionError):
            process.journal._check()
    finally:
        world.close()
