"""The ledger: told before a file goes, true whenever the power goes, and never in the way."""

from __future__ import annotations

import errno
import random

import pytest
from structlog.testing import capture_logs

from ingest.format import ledger, parse_key
from ingest.ledger import Ledger, entries_in, files, is_of_ledger, path_of
from tests.model.world import World
from tests.stand_ins.disk import CrashableDisk, Disk
from tests.stand_ins.letters import body, key

EVERY_CALL = 25
"""More calls to the file system than a batch's way from its put to the removal of its segment takes."""

pytestmark = pytest.mark.usefixtures("few_looks")


@pytest.fixture
def world(tmp_path):
    made = []

    def make(**variables):
        folder = tmp_path / f"world-{len(made)}"
        folder.mkdir()
        made.append(World(folder, flush_interval="1h", **variables))
        made[-1].documents_hang = True  # so that every ledger stays where it is
        return made[-1]

    yield make
    for one in made:
        one.close()


def told(world):
    """What all ledgers on the disk say, by key."""
    files = [path for path in world.root.rglob("*") if is_of_ledger(path) and path.is_file()]
    return ledger.settle(entry for path in files for entry in entries_in(world.fs, path))


def gone(world):
    """Whether the object is stored and nothing of it waits on the disk."""
    return bool(world.store.objects) and not world.files()


@pytest.mark.parametrize("durability", ["journal", "fsync"])
def test_the_ledger_tells_of_a_segment_before_it_goes_whenever_the_process_is_killed(world, durability):
    kills = went = 0
    for calls in range(EVERY_CALL):
        one = world(durability=durability)
        process = one.start()
        process.commit(3)
        one.burn(calls)
        process.seal()
        kills += process not in one.processes
        if gone(one):
            went += 1
            assert [fate.stored.events for fate in told(one).values()] == [3]
        one.recover()
        assert told(one).keys() == one.store.objects.keys()
    assert kills > 3
    assert went > 1


def test_fsync_the_ledger_tells_of_a_segment_that_is_gone_whenever_the_power_goes(world):
    went = 0
    for calls in range(EVERY_CALL):
        for keep in (lambda _: 0, lambda n: n - 1, random.Random(calls).randrange):
            one = world(durability="fsync")
            process = one.start()
            process.commit(3)
            one.burn(calls, power=keep)
            process.seal()
            if gone(one):
                went += 1
                assert [fate.stored.events for fate in told(one).values()] == [3]
    assert went > 1


def test_the_ledger_of_the_slot_tells_of_a_dead_letter_before_it_goes(world):
    for calls in range(EVERY_CALL):
        one = world(durability="journal", s3_app_retries=1)
        process = one.start()
        one.store.fail_next(1)
        process.commit(3)
        process.seal()
        assert process.dlq.files == 1
        one.burn(calls, when=lambda path: "journal" not in str(path))
        one.advance(400)
        if gone(one):
            assert [fate.stored.events for fate in told(one).values()] == [3]
        one.recover()
        assert told(one).keys() == one.store.objects.keys()


def test_memory_puts_have_their_line_though_there_is_no_segment(world):
    one = world(durability="memory")
    process = one.start()
    process.commit(3)
    process.seal()
    assert [fate.stored.events for fate in told(one).values()] == [3]


def test_a_number_whose_events_were_all_refused_is_void(world):
    one = world(durability="journal")
    process = one.start()
    one.fs.fail("write", times=1, when=lambda path: path.suffix == ".jsonl")
    process.commit(2)
    one.heal()
    process.seal()
    one.advance(5)
    assert list(told(one).values()) == [(None, {})]


def test_what_was_evicted_or_expired_is_dropped_by_reason(world):
    one = world(durability="journal", dlq_max_size_bytes=200, dlq_on_full="evict", s3_app_retries=1)
    process = one.start()
    one.store.down = True
    for _ in range(6):
        process.commit(3)
        process.seal()
        one.advance(5)
    fates = told(one).values()
    assert fates
    assert all(fate.dropped == {"evicted": 3} for fate in fates)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("operation", ["open", "write", "fdatasync", "mkdir"])
def test_a_disk_that_takes_no_line_keeps_no_segment_and_refuses_no_event(world, operation, error):
    one = world(durability="fsync")
    process = one.start()
    one.fs.on(operation, when=lambda path: ".ledger" in path.parts).fail(error)
    for _ in range(3):
        assert process.commit(3)
        process.seal()
        one.advance(1)
    assert [committed for _, committed in process.answers] == [True] * 9
    assert gone(one)
    assert process.collector.journal_ledger.waiting == 3
    assert told(one) == {}
    one.heal()
    process.commit(1)
    process.seal()
    one.advance(1)
    assert told(one).keys() == one.store.objects.keys()
    assert process.collector.journal_ledger.waiting == 0


def test_with_manifests_false_there_is_no_ledger(world):
    one = world(durability="journal", manifests="false")
    process = one.start()
    process.commit(3)
    process.seal()
    assert one.files() == []


@pytest.mark.parametrize("torn", [b"raw/dt=2025-12-02/hr=14/1_h", b"\0" * 5000, b"x" * 10_000, b""])
def test_a_torn_line_is_cut_off_before_the_next_one_is_written(tmp_path, torn):
    Ledger(Disk(), sync=False).note(tmp_path, ledger.stored(key(1), 3, body(3)))
    path = path_of(tmp_path, key(1))
    path.write_bytes(path.read_bytes() + torn)
    Ledger(Disk(), sync=False).note(tmp_path, ledger.void(key(2)))
    assert [entry.key for entry in entries_in(Disk(), path)] == [key(1), key(2)]
    assert torn not in path.read_bytes() or not torn


def test_a_line_that_note_returned_for_survives_a_power_cut_with_its_name(tmp_path):
    slot = tmp_path / "0"
    slot.mkdir()
    fs = CrashableDisk(tmp_path)
    for number in (1, 2):
        told = Ledger(fs, sync=True)
        told.note(slot, ledger.stored(key(number), 3, body(3)))
        fs.crash(lambda _: 0)
        assert [entry.key for entry in entries_in(fs, path_of(slot, key(1)))] == [key(n + 1) for n in range(number)]


def test_a_line_whose_sync_failed_is_written_anew(tmp_path):
    """The kernel may have dropped it, and calls the next sync a success."""
    (tmp_path / "0").mkdir()
    fs = CrashableDisk(tmp_path)
    told = Ledger(fs, sync=True)
    fs.on("fdatasync", times=1).fail(errno.EIO)
    told.note(tmp_path / "0", ledger.stored(key(1), 3, body(3)))
    assert told.waiting == 1
    told.write_kept()
    fs.crash(lambda _: 0)
    assert [entry.key for entry in entries_in(fs, path_of(tmp_path / "0", key(1)))] == [key(1)]


NEXT = key(1).replace("hr=14", "hr=15")


def of_hour(name):
    return lambda path: ".ledger" in path.parts and name in path.name


@pytest.mark.parametrize("first", [errno.EACCES, errno.ENOSPC])
def test_a_file_that_takes_no_line_keeps_no_other_files_line_waiting(tmp_path, first):
    fs = Disk()
    told = Ledger(fs, sync=False)
    fs.on("open", when=of_hour("hr=14")).fail(first)
    mended = fs.on("open", when=of_hour("hr=15")).fail(errno.ENOSPC)
    for one in (key(1), NEXT):
        told.note(tmp_path, ledger.void(one))
    mended.lift()
    told.write_kept()
    assert [entry.key for entry in entries_in(fs, path_of(tmp_path, NEXT))] == [NEXT]
    assert told.waiting == 1


def test_a_disk_that_does_not_answer_is_asked_for_one_file_a_time_and_for_each_in_turn(tmp_path):
    fs = Disk()
    told = Ledger(fs, sync=False)
    tried = []
    fs.on("open", when=lambda path: ".ledger" in path.parts and not tried.append(path.name)).fail(errno.ETIMEDOUT)
    for one in (key(1), NEXT):
        told.note(tmp_path, ledger.void(one))
    noted, tried[:] = list(tried), []
    for _ in range(4):
        told.write_kept()
    assert tried == noted * 2


def test_both_edges_of_a_failure_are_told_once_a_file_and_of_so_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "TOLD_MAX", 2)
    fs = Disk()
    told = Ledger(fs, sync=False)
    bad = fs.on("open", when=of_hour("hr=14")).fail(errno.EACCES)
    full = fs.on("open", when=of_hour("hr=15")).fail(errno.ENOSPC)
    more = fs.on("open", when=of_hour("hr=16")).fail(errno.ENOSPC)
    with capture_logs() as logs:
        for number in range(3):
            for hour in ("hr=14", "hr=15", "hr=16", "hr=17"):
                told.note(tmp_path, ledger.void(key(number + 1).replace("hr=14", hour)))
            told.write_kept()
        for rule in (bad, full, more):
            rule.lift()
        told.write_kept()
    assert [(line["event"], line["path"]) for line in logs] == [
        (event, str(path_of(tmp_path, key(1).replace("hr=14", hour))))
        for event, hour in (
            ("ledger_not_written", "hr=14"),
            ("ledger_not_written", "hr=15"),
            ("ledger_written_again", "hr=14"),
            ("ledger_written_again", "hr=15"),
        )
    ]
    assert told.waiting == 0


def test_lines_for_a_slot_that_was_let_go_are_forgotten_and_said_to_be_missing(tmp_path):
    fs = Disk()
    told = Ledger(fs, sync=False)
    slots = [tmp_path / "0", tmp_path / "1"]
    fs.on("open", when=lambda path: ".ledger" in path.parts).fail(errno.EACCES)
    for slot, one in zip(slots, (key(1), NEXT), strict=True):
        slot.mkdir()
        told.note(slot, ledger.void(one))
    fs.heal()
    told.let_go(told.slots() - {slots[1]})
    told.write_kept()
    assert told.waiting == 0
    assert not path_of(slots[0], key(1)).exists()
    assert [entry.key for entry in entries_in(fs, path_of(slots[1], NEXT))] == [NEXT]
    instance = parse_key(key(1)).instance
    assert [told.lacks(parse_key(one).partition, instance) for one in (key(1), NEXT)] == [True, False]
    told.forgive(parse_key(key(1)).partition, instance)
    assert not told.lacks(parse_key(key(1)).partition, instance)


def test_a_slot_that_is_held_again_is_looked_at_anew(tmp_path):
    """Whoever held it meanwhile has written to its files."""
    told = Ledger(Disk(), sync=False)
    told.note(tmp_path, ledger.void(key(1)))
    told.let_go(told.slots())
    Ledger(Disk(), sync=False).note(tmp_path, ledger.void(key(2)))
    told.note(tmp_path, ledger.void(key(3)))
    assert [entry.key for entry in entries_in(Disk(), path_of(tmp_path, key(1)))] == [key(1), key(2), key(3)]
    told.remove(told.files(tmp_path))
    assert told.files(tmp_path) == []


def test_lines_that_wait_do_not_hold_a_slot_that_was_removed(tmp_path):
    told = Ledger(Disk(), sync=False)
    told.note(tmp_path / "0", ledger.void(key(1)))
    assert told.files(tmp_path / "0") == []
    assert told.is_settled(tmp_path / "0")
    (tmp_path / "0").mkdir()
    told.note(tmp_path / "0", ledger.void(key(2)))
    assert told.files(tmp_path / "0")
    assert not told.is_settled(tmp_path / "0")


def test_a_slot_that_was_removed_is_not_made_anew_by_its_ledger(tmp_path):
    """Nobody would hold it, and its volume may only be away."""
    told = Ledger(Disk(), sync=False)
    told.note(tmp_path / "0", ledger.void(key(1)))
    assert (told.waiting, list(tmp_path.iterdir())) == (1, [])
    (tmp_path / "0").mkdir()
    told.write_kept()
    assert [entry.key for entry in entries_in(Disk(), path_of(tmp_path / "0", key(1)))] == [key(1)]


@pytest.mark.parametrize(
    "line", [b"x void", b"raw/x 3 100 0000abcd", ledger.void(key(1).replace("hr=14", "hr=15")).strip(), b"\xff" * 80]
)
def test_a_line_of_no_key_of_its_file_is_passed_over(tmp_path, line):
    Ledger(Disk(), sync=False).note(tmp_path, ledger.void(key(1)))
    path = path_of(tmp_path, key(1))
    path.write_bytes(line + b"\n" + path.read_bytes())
    assert [entry.key for entry in entries_in(Disk(), path)] == [key(1)]


def test_a_file_that_has_grown_since_it_was_listed_is_not_removed(tmp_path):
    """A line that came while the manifest was on its way is told by the next one."""
    told = Ledger(Disk(), sync=False)
    told.note(tmp_path, ledger.stored(key(1), 3, body(3)))
    listed = told.files(tmp_path)
    told.note(tmp_path, ledger.void(key(2)))
    told.remove(listed)
    assert [entry.key for entry in entries_in(Disk(), path_of(tmp_path, key(1)))] == [key(1), key(2)]
    told.remove(told.files(tmp_path))
    assert told.files(tmp_path) == []
    assert told.is_settled(tmp_path)
