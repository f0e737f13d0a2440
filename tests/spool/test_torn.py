"""Half of a dead letter: its batch is in a journal that is not here, and nothing of it is lost (E8, E12)."""

from __future__ import annotations

import errno

import pytest

from ingest.format import codec
from ingest.telemetry import DropReason
from tests.model.world import World

EVENTS = 1500
SETTINGS = {"flush_interval": "10s", "s3_app_retries": 1, "batch_size": 2000}


@pytest.fixture
def worlds(tmp_path):
    made = []

    def make(**variables):
        folder = tmp_path / f"world-{len(made)}"
        folder.mkdir()
        made.append(World(folder, **SETTINGS, **variables))
        return made[-1]

    yield make
    for world in made:
        world.close()


def host(world, name, **variables):
    """Return the settings of a host that has its journal on its own disk."""
    return {**SETTINGS, "durability": "journal", "journal_dir": world.root / name, **variables}


def torn(world):
    return [name for name in world.files() if name.endswith(".tmp")]


def die_within_a_save(world, **variables):
    """Have a process acknowledge a batch and be killed when its dead letter is half-written."""
    process = world.start(**variables)
    world.store.down = True

    def is_letter(path):
        return "dlq/0/" in str(path) and path.name.endswith(".tmp")

    world.fs.on("write", times=1, when=is_letter).shorten(2000)
    world.burn(1, "write", when=is_letter)
    process.commit(EVENTS, padding=40)
    process.seal()
    assert world.processes == []
    assert len(torn(world)) == 1
    world.heal()


def told(world, event):
    return [line for line in world.logs if line["event"] == event]


def test_e12_half_a_dead_letter_is_no_batch_while_its_host_is_gone(worlds):
    """The queue is on a disk that hosts share, the journals are not: another host adopts the half."""
    world = worlds(durability="journal")
    die_within_a_save(world, **host(world, "a"))
    other = world.start(**host(world, "b"))
    world.advance(120)
    assert world.store.objects == {}
    assert (other.dlq.unknown, len(told(world, "dlq_temporary_torn"))) == (1, 1)
    first = world.start(**host(world, "a"))
    assert world.wait_for(lambda: not torn(world), seconds=120, step=5), "the whole batch is stored, so it goes"
    assert world.files() == []
    assert world.stored_numbers().keys() == world.ledger.owed
    assert (first.metrics.books.events_stored, other.dlq.unknown) == (EVENTS, 0)
    world.check()


def test_e8_half_a_dead_letter_waits_for_a_volume_that_is_not_mounted(worlds):
    world = worlds(durability="journal")
    die_within_a_save(world)
    journal, away = world.root / "dlq/journal", world.root / "unmounted"
    journal.rename(away)
    journal.mkdir()
    world.fs.settle()
    process = world.start()
    world.advance(60)
    assert (world.store.objects, process.dlq.unknown) == ({}, 1)
    world.kill(process)
    for path in sorted(journal.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    journal.rmdir()
    away.rename(journal)
    world.fs.settle()
    last = world.start()
    assert world.wait_for(lambda: not world.files(), seconds=120, step=5)
    assert world.stored_numbers().keys() == world.ledger.owed
    assert last.metrics.books.events_dropped[DropReason.CORRUPT] == 0


@pytest.mark.parametrize(
    ("stored", "max_age", "goes"),
    [(EVENTS, 0, True), (EVENTS - 1, 0, False), (None, 0, False), (None, "30s", True), (b"a page", 0, False)],
    ids=["its whole batch is stored", "less is stored", "nothing is", "it is too old", "something else is"],
)
def test_e12_a_torn_dead_letter_goes_upon_evidence_only(worlds, stored, max_age, goes):
    world = worlds(durability="journal")
    die_within_a_save(world, **host(world, "a"))
    _, _, name = torn(world)[0].partition("dlq/0/")
    folder, _, last = name.rpartition("/")
    key = f"{folder}/{last[1:].partition('.jsonl.gz')[0]}.jsonl.gz"
    if stored is not None:
        world.store.objects[key] = stored if isinstance(stored, bytes) else encoded(stored)
    process = world.start(**host(world, "b", dlq_max_age=max_age))
    world.advance(120)
    assert (torn(world) == []) is goes
    assert process.metrics.files_expired == (1 if max_age else 0)
    assert process.dlq.unknown == (0 if goes else 1)
    world.check()


def test_a_torn_dead_letter_that_cannot_be_removed_is_tried_again(worlds):
    world = worlds(durability="journal")
    die_within_a_save(world, **host(world, "a"))
    fault = world.fs.on("unlink", when=lambda path: path.name.endswith(".tmp")).fail(errno.EIO)
    world.start(**host(world, "b"))
    world.start(**host(world, "a"))
    world.advance(120)
    assert len(torn(world)) == 1
    fault.lift()
    assert world.wait_for(lambda: not world.files(), seconds=120, step=5)


def test_a_torn_dead_letter_of_a_process_without_a_journal_is_all_there_is(worlds):
    world = worlds(durability="memory")
    die_within_a_save(world)
    process = world.start()
    assert world.wait_for(lambda: not world.files(), seconds=120, step=5)
    assert 0 < len(world.stored_numbers()) == process.metrics.books.events_stored < EVENTS


def encoded(events):
    return codec.encode(b"{}\n" * events, events)
