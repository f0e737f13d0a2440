"""The journal, step by step: what is on the disk when an answer is given, and what becomes of it when a step fails.

Each test drives one process of `model.world.World` over a disk that fails, dies or loses power where it is told to. The
order of the calls is read from `fs.calls`; what survives is judged by recovering it and counting.
"""

from __future__ import annotations

import errno
import json
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ingest.collector import ADOPT_SECONDS
from ingest.disk.removals import AGAIN_SECONDS, AGAIN_SECONDS_MAX
from ingest.format import codec
from ingest.format.keys import dlq_path
from ingest.intake.latch import PROBE_SECONDS
from ingest.telemetry import DropReason, Reason
from tests.model.ledger import line
from tests.model.time import START
from tests.model.world import World
from tests.process.collector import REPOSITORY, bare_environment

DEAD = "fedcba9876543210"
HOUR = "raw/dt=2025-12-03/hr=00"


@pytest.fixture
def world(tmp_path):
    """`world("fsync", batch_size=5)` makes the one world of a test."""
    made = []

    def make(durability="journal", **variables):
        folder = tmp_path / f"world-{len(made)}"
        folder.mkdir()
        made.append(World(folder, durability=durability, **{"flush_interval": "1h", **variables}))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(params=["journal", "fsync"])
def journal(request, world):
    """A world in each mode that has a journal."""
    return lambda **variables: world(request.param, **variables)


def segments(world):
    return [Path(name) for name in world.files() if name.endswith(".jsonl") and "/." not in name]


def on_disk(world):
    """Every number in every segment, in order."""
    return [
        json.loads(text)["body"] for path in segments(world) for text in (world.root / path).read_text().splitlines()
    ]


def said(world, event):
    return [entry for entry in world.logs if entry["event"] == event]


def in_journal(path):
    return "/journal/" in str(path)


def is_segment(path):
    return in_journal(path) and path.name.endswith(".jsonl") and not path.name.startswith(".")


def is_rewrite(path):
    return in_journal(path) and path.name.startswith(".1")


def committed(numbers):
    return [(number, True) for number in numbers]


def refused(numbers):
    return [(number, False) for number in numbers]


def nothing_kept(_n):
    return 0


def leave(world, key, data, *, slot="0", suffix=None):
    """Put a file where a process of another token would have left it, before anybody starts."""
    path = world.root / "dlq" / "journal" / slot / (suffix or key.removesuffix(".gz"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    world.fs.settle()
    return path


def dead_key(sequence=1):
    return f"{HOUR}/{START}_host-{DEAD}_{sequence:010d}.jsonl.gz"


def events(numbers):
    return b"".join(line(START, number) for number in numbers)


# ----------------------------------------------------------------------------------------------- written, then answered


def test_a_tick_is_one_write_before_it_is_answered(journal):
    world = journal()
    process = world.start()
    process.commit(1)
    world.fs.calls.clear()
    numbers = process.commit(20, blanks=(0, 7), run=False)
    assert [call for call in world.fs.calls if is_segment(call[1])] == [("write", world.root / segments(world)[0])]
    assert on_disk(world)[1:] == numbers
    world.run()
    assert process.answers[1:] == committed(numbers)


def test_journal_syncs_nothing_on_the_way_of_a_request(world):
    world = world("journal")
    process = world.start()
    world.fs.calls.clear()
    process.commit(3)
    process.commit(3)
    assert not {"fdatasync", "fsync_dir"} & {operation for operation, _ in world.fs.calls}


def test_fsync_answers_after_the_sync_and_not_before(world):
    world = world("fsync")
    process = world.start()
    numbers = process.commit(3, run=False)
    assert process.answers == []
    world.run_job()
    assert process.answers == committed(numbers)


def test_the_loop_goes_on_accepting_while_a_sync_runs_and_one_more_serves_all_that_wait(world):
    world = world("fsync")
    process = world.start()
    numbers = process.commit(2)
    world.fs.calls.clear()
    for _ in range(5):
        numbers += process.commit(2, run=False)
    assert on_disk(world) == numbers, "they were written while the first sync was still to come"
    assert len(process.answers) == 2
    world.run()
    assert process.answers == committed(numbers)
    assert [operation for operation, _ in world.fs.calls].count("fdatasync") == 2


def test_a_group_spans_several_segments_and_each_has_its_own_outcome(world):
    world = world("fsync", batch_size=3)
    process = world.start()
    world.store.down = True
    numbers = process.commit(7, run=False)
    first, second, third = (world.root / path for path in segments(world))
    # The first segment's sync is under way when the other two are written; they share the next one.
    world.fs.fail("fdatasync", when=lambda path: path == second)
    world.run()
    assert process.answers == [*committed(numbers[:3]), *refused(numbers[3:6]), *committed(numbers[6:])]
    assert {first, second, third} >= {world.root / path for path in segments(world)}
    world.recover()
    assert sorted(world.stored_numbers()) == [*numbers[:3], *numbers[6:]]


def test_a_batch_is_submitted_only_after_its_last_sync(world):
    world = world("fsync", batch_size=3)
    process = world.start()
    numbers = process.commit(3, run=False)
    assert process.intake.events == 0, "it is sealed"
    assert (process.journal.sealing, len(process.uploader.queue.batches)) == (True, 0)
    world.advance(60, threads=False)
    assert world.store.calls == []
    world.run()
    assert not process.journal.sealing
    assert sorted(world.stored_numbers()) == numbers


def test_a_drain_waits_for_the_last_sync(world):
    world = world("fsync")
    process = world.start()
    numbers = process.commit(3, run=False)
    process.stop()
    assert process.answers == committed(numbers)
    assert sorted(world.stored_numbers()) == numbers


def test_answers_keep_their_order_whatever_becomes_of_them(world):
    """`Process` holds every answer against the order of its turns; here are the ways in which they could overtake."""
    world = world("fsync", batch_size=4, channel_size=0, max_buffer_bytes=600)
    process = world.start()
    world.store.down = True
    sent = process.commit(3, blanks=(1, 2), run=False)
    sent += process.commit(30, blanks=(0, 29), run=False)  # more than the buffer holds: refused at once, told later
    process.commit(0, blanks=(0,), run=False)
    assert process.answers == []
    world.fs.fail("fdatasync")
    sent += process.commit(2, run=False)
    world.run()
    assert [number for number, _ in process.answers] == sent
    world.recover()


# ---------------------------------------------------------------------------------------------------- names and folders


@pytest.mark.parametrize("kept", [nothing_kept, lambda n: n - 1])
def test_the_first_acknowledgement_of_a_segment_survives_a_power_cut_with_name_and_folders(world, kept):
    world = world("fsync")
    process = world.start()
    numbers = process.commit(3)
    assert process.answers == committed(numbers)
    world.power_cut(kept)
    world.recover()
    assert sorted(world.stored_numbers()) == numbers


def test_every_acknowledgement_survives_a_power_cut_before_any_call(world):
    """Two ticks, an hour's end between them, and the lights go out before the first, second, .. call to the disk."""
    finished, calls = False, 0
    while not finished:
        one = world("fsync", batch_size=2)
        process = one.start()
        one.burn(calls, power=nothing_kept)
        process.commit(3)
        if process in one.processes:
            one.time.step(3600)
            process.commit(2)
        finished = one.fuse is not None
        one.recover()
        calls += 1
    assert calls > 20


def test_the_folder_of_an_hour_that_was_emptied_is_synced_when_it_is_made_again(world):
    """The clock goes an hour on and back: the first hour's folder was pruned, and what was synced once is gone."""
    world = world("fsync", batch_size=3)
    process = world.start()
    process.commit(3)
    world.time.step(3600)
    process.commit(3)
    assert not (process.journal_slot.path / HOUR).exists()
    world.time.step(-3600)
    process.commit(2)
    assert len(process.answers) == 8
    world.power_cut(nothing_kept)
    world.recover()


def test_a_segment_that_cannot_be_named_refuses_and_nothing_of_it_is_stored(world):
    world = world("fsync")
    process = world.start()
    world.fs.fail("fsync_dir", when=in_journal)
    lost = process.commit(2)
    assert process.answers == refused(lost)
    world.advance(2 * PROBE_SECONDS)
    kept = process.commit(2)
    world.recover()
    assert sorted(world.stored_numbers()) == kept


def test_an_event_is_in_the_segment_of_its_own_hour(journal):
    world = journal()
    process = world.start()
    world.store.down = True
    first = process.commit(2)
    world.time.step(3600)
    second = process.commit(2)
    world.time.step(-3600)
    third = process.commit(2)
    assert {path.parent.name for path in segments(world)} <= {"hr=00", "hr=01"}
    world.recover()
    assert sorted(world.stored_numbers()) == first + second + third


# -------------------------------------------------------------------------------------------------- when the disk fails


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("taken", [0, 1, 17, 60])
def test_a_write_that_fails_is_rolled_back_and_refused(journal, error, taken):
    world = journal()
    process = world.start()
    kept = process.commit(2)
    before = (world.root / segments(world)[0]).read_bytes()
    world.fs.on("write", times=1).shorten(taken)
    world.fs.fail("write", error, nth=1)
    lost = process.commit(3)
    assert process.answers == committed(kept) + refused(lost)
    assert (world.root / segments(world)[0]).read_bytes() == before
    assert process.intake.events == 2
    world.advance(2 * PROBE_SECONDS)
    kept += process.commit(1)
    assert on_disk(world) == kept, "it goes on in the same segment, without a hole"
    world.recover()
    assert sorted(world.stored_numbers()) == kept


@pytest.mark.parametrize("seed", range(8))
def test_what_was_rolled_back_does_not_come_back_with_a_power_cut(world, seed):
    world = world("fsync")
    process = world.start()
    kept = process.commit(2)
    world.fs.on("write", times=1).shorten(60)  # two whole lines and a part
    world.fs.fail("write", errno.ENOSPC)
    lost = process.commit(3)
    assert process.answers == committed(kept) + refused(lost)
    world.power_cut(random.Random(seed).randrange)
    world.recover()
    assert sorted(world.stored_numbers()) == kept


def test_a_full_volume_refuses_and_takes_again_when_space_returns(journal):
    world = journal()
    process = world.start()
    kept = process.commit(2)
    world.fs.capacity = sum(path.stat().st_size for path in world.root.rglob("*") if path.is_file()) + 40
    lost = process.commit(5)
    assert process.answers == committed(kept) + refused(lost)
    assert on_disk(world) == kept
    lost += process.commit(1)
    world.advance(20)
    assert process.journal.latched, "the probe takes more room than one event, so that the volume is not filled again"
    world.fs.capacity = None
    world.advance(2 * PROBE_SECONDS)
    kept += process.commit(5)
    assert process.answers[-5:] == committed(kept[-5:])
    world.recover()
    assert sorted(world.stored_numbers()) == kept


def test_a_segment_that_cannot_be_created_refuses(journal):
    world = journal()
    process = world.start()
    world.fs.fail("open", errno.ENOSPC, when=is_segment)
    lost = process.commit(2)
    assert process.answers == refused(lost)
    assert process.metrics.rejected[Reason.DISK_FULL] == 2
    world.advance(2 * PROBE_SECONDS)
    kept = process.commit(2)
    assert process.answers[2:] == committed(kept)
    world.recover()


def test_both_edges_of_the_latch_are_logged_once_and_a_probe_makes_the_second(journal):
    world = journal()
    process = world.start()
    process.commit(1)
    world.fs.fail("write", errno.ENOSPC, times=10_000, when=in_journal)
    for _ in range(5):
        process.commit(2)
    world.advance(3.5 * PROBE_SECONDS)
    assert process.journal.latched
    assert process.metrics.journal_failed == 1
    assert [entry["operation"] for entry in said(world, "journal_refused")] == ["write"]
    assert said(world, "journal_resumed") == []
    probes = [path for operation, path in world.fs.calls if operation == "open" and path.name.startswith(".probe")]
    assert 3 <= len(probes) <= 6, "once a second"
    world.fs.heal()
    world.advance(1.5 * PROBE_SECONDS)
    assert not process.journal.latched
    assert process.metrics.journal_failed == 0
    assert len(said(world, "journal_refused")) == len(said(world, "journal_resumed")) == 1
    assert not any(".probe" in name for name in world.files())


def test_while_latched_the_disk_is_left_in_peace_but_for_the_probe(journal):
    world = journal()
    process = world.start()
    process.commit(1)
    world.fs.fail("write", errno.ENOSPC, times=10_000, when=in_journal)
    process.commit(1)
    world.fs.calls.clear()
    for _ in range(10):
        process.commit(3)
    assert [call for call in world.fs.calls if is_segment(call[1])] == []
    assert process.metrics.rejected[Reason.DISK_FULL] == 31


def test_a_probe_that_cannot_be_synced_does_not_unlatch(journal):
    world = journal()
    process = world.start()
    process.commit(1)
    world.fs.fail("write", when=is_segment)
    world.fs.fail("fdatasync", times=10_000, when=lambda path: path.name.startswith(".probe"))
    process.commit(1)
    world.advance(5)
    assert process.journal.latched
    world.fs.heal()
    world.advance(1.5)
    assert not process.journal.latched


# ---------------------------------------------------------------------------------- a sync that fails, a cut that fails


def test_a_failed_fdatasync_is_never_retried_and_the_batch_is_rewritten_and_published(world):
    world = world("fsync")
    process = world.start()
    kept = process.commit(3)
    segment = world.root / segments(world)[0]
    world.fs.calls.clear()
    world.fs.fail("fdatasync", when=is_segment)
    lost = process.commit(2)
    calls = [(operation, path) for operation, path in world.fs.calls if in_journal(path) and "probe" not in path.name]
    failed = calls.index(("fdatasync", segment))
    published = calls.index(("rename", segment))
    assert ("fdatasync", segment) not in calls[failed + 1 :]
    assert ("close", segment) in calls[failed:published]
    steps = [operation for operation, path in calls[failed:published] if is_rewrite(path)]
    assert steps == ["open", "write", "fdatasync", "close"]
    assert calls[published + 1 :] == [("fsync_dir", segment.parent), ("open", segment)]
    assert process.answers == committed(kept) + refused(lost)
    assert on_disk(world) == kept
    world.advance(2 * PROBE_SECONDS)
    kept += process.commit(2)
    world.power_cut(nothing_kept)
    world.recover()
    assert sorted(world.stored_numbers()) == kept


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "cut fails"])
def test_a_refusal_is_told_only_when_its_lines_are_gone_from_the_disk(world, cut):
    """Before that, a crash would have recovery store what got a 503. It comes before each call, as a kill and as a
    power cut."""
    for calls in range(12):
        for power in (None, nothing_kept, lambda n: n - 1):
            one = world("fsync")
            process = one.start()
            process.commit(2)
            one.fs.fail("fdatasync", when=is_segment)
            if not cut:
                one.fs.fail("truncate", when=is_segment)
            process.commit(2, run=False)
            one.burn(calls, power=power)
            one.run()
            one.recover()
            one.close()


def test_what_was_written_behind_a_failed_sync_is_refused_with_it(world):
    world = world("fsync")
    process = world.start()
    kept = process.commit(1)
    lost = process.commit(2, run=False)
    lost += process.commit(2, run=False)  # waits for the next sync, in the same segment
    world.fs.fail("fdatasync", when=is_segment)
    world.run()
    assert process.answers == committed(kept) + refused(lost)
    world.recover()
    assert sorted(world.stored_numbers()) == kept


@pytest.mark.parametrize("taken", [0, 40, 90])
def test_a_torn_tail_is_rewritten_from_memory(journal, taken):
    world = journal()
    process = world.start()
    kept = process.commit(2)
    world.fs.on("write", times=1).shorten(taken)
    world.fs.fail("write", errno.EIO)
    world.fs.fail("truncate", errno.EIO, times=2)
    lost = process.commit(4)
    assert process.answers == committed(kept) + refused(lost)
    assert on_disk(world) == kept
    assert len(said(world, "segment_rewritten")) == 1
    world.advance(2 * PROBE_SECONDS)
    kept += process.commit(1)
    assert on_disk(world) == kept
    world.kill(process)
    world.recover()
    assert sorted(world.stored_numbers()) == kept


def test_a_torn_tail_is_rewritten_before_anybody_is_refused(journal):
    """A kill before any call: nothing that was answered 503 by then is stored."""
    for calls in range(14):
        world = journal()
        process = world.start()
        process.commit(2)
        world.fs.on("write", times=1).shorten(60)
        world.fs.fail("write", errno.EIO)
        world.fs.fail("truncate", errno.EIO, times=2)
        world.burn(calls)
        process.commit(4)
        world.recover()


def test_a_torn_tail_is_rewritten_beside_the_loop_and_what_is_refused_meanwhile_keeps_its_order(journal):
    """Only an open and a write may hang with the disk: a rewrite syncs and renames."""
    world = journal()
    process = world.start()
    kept = process.commit(2)
    world.fs.on("write", times=1).shorten(60)
    world.fs.fail("write", errno.EIO)
    world.fs.fail("truncate", errno.EIO, times=2)
    rewrites = world.fs.on("open", "fdatasync", "rename", "fsync_dir")
    lost = process.commit(4, run=False)
    lost += process.commit(1, blanks=(1,), run=False)
    world.run_loops()
    assert rewrites.count == 0
    assert process.answers == committed(kept)
    world.run()
    assert rewrites.count > 0
    assert process.answers == committed(kept) + refused(lost)
    assert process.owed == 0
    world.recover()


def test_a_segment_that_cannot_be_rewritten_is_uploaded_from_memory_and_stays_until_it_is_stored(journal):
    world = journal()
    process = world.start()
    kept = process.commit(3)
    world.late_puts = 1
    world.fs.on("write", times=1).shorten(10)
    world.fs.fail("write", errno.EIO)
    world.fs.fail("truncate", errno.EIO, times=2)
    world.fs.fail("open", errno.ENOSPC, when=is_rewrite)
    lost = process.commit(2)
    assert process.answers == committed(kept) + refused(lost)
    assert len(said(world, "segment_rewrite_failed")) == 1
    assert process.intake.events == 0, "sealed where it was"
    assert len(segments(world)) == 1, "stays while its put is under way"
    world.advance(10)
    assert sorted(world.stored_numbers()) == kept
    assert segments(world) == []
    world.recover()


def test_a_segment_that_cannot_be_rewritten_is_at_least_cut(world):
    """What was refused is not stored even if the process is killed before its batch is."""
    world = world("fsync")
    process = world.start()
    kept = process.commit(3)
    world.late_puts = 1
    world.fs.fail("fdatasync", when=is_segment)
    world.fs.fail("open", errno.ENOSPC, when=is_rewrite)
    lost = process.commit(2)
    assert process.answers == committed(kept) + refused(lost)
    assert on_disk(world) == kept
    world.kill(process)
    world.recover()
    assert sorted(world.stored_numbers()) == kept


def test_a_broken_segment_is_no_backlog_and_its_batch_keeps_its_place(journal):
    world = journal(upload_concurrency=1, s3_app_retries=1)
    process = world.start()
    kept = process.commit(3)
    world.store.down = True
    world.fs.on("write", times=1).shorten(30)
    world.fs.fail("write", errno.EIO)
    world.fs.fail("truncate", errno.EIO, times=2)
    world.fs.fail("open", errno.ENOSPC, when=is_rewrite)
    world.fs.fail("rename", errno.EIO, times=10_000)
    process.commit(2)
    world.advance(5)
    assert (process.backlog.events, process.uploader.queue.events, process.dlq.events) == (0, 3, 0)
    assert len(segments(world)) == 1
    world.check()
    world.recover()
    assert sorted(world.stored_numbers()) == kept


def test_a_sealed_batch_waits_for_its_rewrite(world):
    world = world("fsync", batch_size=4)
    process = world.start()
    kept = process.commit(2)
    lost = process.commit(2, run=False)  # seals it
    world.fs.fail("fdatasync", when=is_segment)
    world.run()
    assert process.answers == committed(kept) + refused(lost)
    assert sorted(world.stored_numbers()) == kept
    world.recover()


def test_a_batch_that_holds_nothing_in_the_end_leaves_nothing(journal):
    world = journal()
    process = world.start()
    world.fs.fail("write", errno.ENOSPC, when=is_segment)
    process.commit(2)
    process.seal()
    assert segments(world) == []
    assert world.store.calls == []
    world.recover()


def test_a_batch_that_holds_nothing_is_not_put_in_memory_mode_either(world):
    world = world("memory", max_buffer_bytes=100)
    process = world.start()
    lost = process.commit(9)
    assert process.answers == refused(lost)
    process.seal()
    world.advance(5)
    assert world.store.calls == []
    world.recover()


def test_an_object_is_dated_by_what_was_acknowledged(journal):
    world = journal()
    process = world.start()
    world.fs.fail("write", when=is_segment)
    process.commit(1)
    world.advance(3)
    kept = process.commit(2)
    world.advance(3)
    world.fs.fail("write", when=is_segment)
    process.commit(1)
    process.seal()
    (metadata,) = world.store.metadata.values()
    seconds = {world.ledger.second[number] for number in kept}
    assert {metadata.first_ts, metadata.last_ts} == seconds
    world.recover()


# ----------------------------------------------------------------------------------------------- when a batch is stored


def test_a_stored_batch_s_segment_goes_and_an_older_hour_s_folder_with_it(journal):
    world = journal(batch_size=2)
    process = world.start()
    process.commit(2)
    folder = process.journal_slot.path / HOUR
    assert (segments(world), folder.exists()) == ([], True), "the hour that segments are created in stays"
    world.time.step(3600)
    process.commit(2)
    assert not folder.exists()
    assert (process.journal_slot.path / "lock").exists()
    world.recover()


def test_the_segment_stays_until_the_object_is_stored(journal):
    world = journal(batch_size=2)
    process = world.start()
    world.late_puts = 1
    process.commit(2)
    assert len(segments(world)) == 1
    world.advance(10)
    assert segments(world) == []
    world.recover()


def test_the_segment_stays_until_the_dead_letter_is_published(journal):
    """A kill before each call of the save: there is always a copy."""
    for calls in range(14):
        world = journal(batch_size=2, s3_app_retries=1)
        process = world.start()
        world.store.down = True
        world.burn(calls, when=lambda path: not in_journal(path) and "hr=" in str(path))
        process.commit(2)
        world.advance(3)
        assert segments(world) or (process.dlq_slot.path / HOUR).exists()
        world.recover()


def test_a_segment_that_cannot_be_removed_is_recovered_and_found_stored(journal):
    world = journal(batch_size=2)
    process = world.start()
    world.fs.fail("unlink", errno.EROFS, when=is_segment)
    process.commit(2)
    assert len(said(world, "segment_not_removed")) == len(segments(world)) == 1
    world.fs.heal()
    process.stop()
    before = dict(world.store.objects)
    world.start()
    world.advance(10)
    assert segments(world) == []
    assert world.store.objects == before
    world.recover()


@pytest.mark.parametrize("adopted", [False, True])
def test_a_segment_that_cannot_be_removed_goes_as_soon_as_the_disk_lets_it(journal, adopted):
    """The slot of a dead process is held until then: released, it would be adopted again and again."""
    world = journal(batch_size=2)
    process, other = world.start(), world.start()
    process.commit(1)
    world.fs.fail("unlink", errno.EROFS, times=None, when=is_segment)
    if adopted:
        world.kill(process)
        process = other
        world.advance(2 * ADOPT_SECONDS)
    else:
        process.commit(1)
    gauge = process.metrics.gauges.unremoved_in_journal
    assert (len(segments(world)), len(world.store.objects), gauge()) == (1, 1, 1)
    world.advance(4 * AGAIN_SECONDS)
    assert len(said(world, "segment_not_removed")) == 1, "told once"
    assert process.backlog.adopted == adopted
    world.fs.heal()
    world.advance(AGAIN_SECONDS_MAX)
    assert (segments(world), gauge(), process.backlog.adopted) == ([], 0, 0)
    assert len([told for told in said(world, "slot_adopted") if "journal" in told["path"]]) == adopted
    world.recover()


def test_a_dlq_that_fails_leaves_the_segment_as_backlog_and_it_is_recovered_like_a_dead_letter(journal):
    world = journal(batch_size=3, s3_app_retries=1)
    process = world.start()
    world.store.down = True
    world.fs.fail("rename", errno.EIO, times=10_000)
    numbers = process.commit(3)
    world.advance(10)
    assert (process.backlog.files, process.backlog.events, process.uploader.queue.events) == (1, 3, 0)
    assert on_disk(world) == numbers
    world.store.down = False
    world.store.calls.clear()
    world.advance(60)
    assert {operation for operation, _ in world.store.calls} == {"create"}
    assert (segments(world), process.backlog.events) == ([], 0)
    assert sorted(world.stored_numbers()) == numbers
    world.recover()


@pytest.mark.parametrize("saves", [False, True], ids=["no dead letter is taken", "dead letters are taken"])
def test_a_segment_that_is_not_known_to_be_written_when_it_is_closed_is_written_anew(world, saves):
    """A network disk writes when it likes, and what it could not write it tells when the file is closed."""
    world = world(batch_size=3, s3_app_retries=1)
    process = world.start()
    world.store.down = True
    if not saves:
        world.fs.on("rename", when=lambda path: not in_journal(path)).fail()

    def lose(path):
        path.write_bytes(b"")
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    closes = world.fs.on("close", times=1, when=is_segment).call(lose)
    numbers = process.commit(3)
    assert closes.reached.is_set()
    world.advance(10)
    assert (process.backlog.events, process.dlq.events) == ((0, 3) if saves else (3, 0))
    assert on_disk(world) == ([] if saves else numbers)
    assert len(said(world, "journal_refused")) == len(said(world, "journal_resumed")) == 1
    world.check()
    world.kill(process)
    world.recover()
    assert sorted(world.stored_numbers()) == numbers


def test_with_fsync_a_close_that_fails_says_nothing_of_what_was_synced(world):
    world = world("fsync", batch_size=3)
    process = world.start()
    closes = world.fs.on("close", when=is_segment).fail()
    numbers = process.commit(3)
    world.advance(10)
    assert closes.reached.is_set()
    assert sorted(world.stored_numbers()) == numbers
    assert said(world, "journal_refused") == []


@pytest.mark.parametrize("operation", ["unlink", "close"])
def test_probes_that_cannot_be_removed_do_not_fill_the_disk(journal, operation):
    world = journal()
    process = world.start()
    process.commit(2)
    fault = world.fs.on(operation, under=".probe.").fail(errno.EPERM)
    world.fs.fail("write", errno.ENOSPC, when=in_journal)
    process.commit(1)
    world.advance(30)
    assert fault.reached.is_set()
    assert len([name for name in world.files() if ".probe." in name]) <= 1
    if operation == "unlink":
        taken = process.commit(2)
        assert process.answers[-2:] == committed(taken), "the disk takes writes"
    fault.lift()
    world.advance(3)
    taken = process.commit(2)
    assert process.answers[-2:] == committed(taken)
    world.kill(process)
    world.recover()


def test_in_memory_mode_the_batch_keeps_its_place_instead(world):
    world = world("memory", batch_size=3, s3_app_retries=1)
    process = world.start()
    world.store.down = True
    world.fs.fail("rename", errno.EIO, times=10_000)
    numbers = process.commit(3)
    world.advance(10)
    assert (process.backlog.events, process.uploader.queue.events) == (0, 3)
    world.recover()
    assert sorted(world.stored_numbers()) == numbers


# ---------------------------------------------------------------------------------------------------- what a crash left


def test_kill_9_keeps_every_acknowledged_event(journal):
    world = journal(batch_size=3)
    process = world.start()
    world.late_puts = 2
    numbers = process.commit(8)
    world.kill(process)
    assert on_disk(world) == numbers
    world.recover()
    assert sorted(world.stored_numbers()) == numbers


def test_recovery_never_replaces_what_is_stored_with_less(journal):
    """The answer of the put was lost, and what the disk gave back is shorter."""
    world = journal()
    process = world.start()
    numbers = process.commit(5)
    key, lines = segments(world)[0], (world.root / segments(world)[0]).read_bytes()
    world.store.lose_next_answers(2)
    process.seal()
    world.kill(process)
    (world.root / key).parent.mkdir(parents=True, exist_ok=True)
    (world.root / key).write_bytes(lines[: len(lines) // 2])
    world.fs.settle()
    fresh = world.start()
    world.advance(10)
    assert sorted(world.stored_numbers()) == numbers
    assert fresh.metrics.puts_already_stored == 1
    assert world.store.replaced == []
    world.recover()


def test_a_torn_last_line_is_dropped_and_is_no_damage(journal):
    world = journal()
    leave(world, dead_key(), events([1, 2]) + line(START, 3)[:-7])
    process = world.start()
    world.advance(5)
    assert sorted(world.stored_numbers()) == [1, 2]
    assert process.metrics.files_quarantined == 0
    assert process.metrics.books.events_dropped[DropReason.CORRUPT] == 0
    assert segments(world) == []


def test_a_bad_line_is_quarantined_and_the_sound_ones_are_stored(journal):
    world = journal()
    original = events([1]) + b"\0\0\0 not an event\n" + events([2])
    leave(world, dead_key(), original)
    process = world.start()
    world.advance(5)
    assert sorted(world.stored_numbers()) == [1, 2]
    (quarantined,) = [key for key in world.store.objects if key.startswith("raw_dlq/")]
    assert world.store.objects[quarantined] == original
    assert process.metrics.books.events_dropped[DropReason.CORRUPT] == 1
    assert segments(world) == []
    world.check()


@pytest.mark.parametrize("left", [b"", b'{"ts":17'])
def test_a_segment_without_a_whole_line_is_removed_and_nothing_is_put(journal, left):
    world = journal()
    leave(world, dead_key(), left)
    world.start()
    world.advance(5)
    assert world.store.calls == []
    assert world.files() == []


def test_a_rewrite_that_was_not_published_is_removed_if_its_segment_is_there(journal):
    world = journal()
    leave(world, dead_key(), events([1, 2]))
    leave(world, dead_key(), events([1]), suffix=f"{HOUR}/.{dead_key().rpartition('/')[2][:-3]}.0a1b2c.tmp")
    world.start()
    world.advance(5)
    assert sorted(world.stored_numbers()) == [1, 2]
    assert world.files() == []


def test_a_rewrite_that_was_not_published_is_removed_if_its_dead_letter_is_there(journal):
    world = journal()
    letter = dlq_path(world.root / "dlq" / "3", dead_key())
    letter.parent.mkdir(parents=True)
    letter.write_bytes(codec.encode(events([1, 2]), 2))
    leave(world, dead_key(), events([1]), suffix=f"{HOUR}/.{dead_key().rpartition('/')[2][:-3]}.0a1b2c.tmp")
    process = world.start()
    world.advance(40)
    assert sorted(world.stored_numbers()) == [1, 2]
    assert world.files() == []
    assert process.metrics.books.events_recovered == 2
    assert said(world, "segment_found") == [], "it was made a segment beside its dead letter"


def test_a_rewrite_that_is_all_there_is_takes_the_segment_s_name(journal):
    world = journal()
    leave(world, dead_key(), events([1, 2]), suffix=f"{HOUR}/.{dead_key().rpartition('/')[2][:-3]}.0a1b2c.tmp")
    world.start()
    world.advance(5)
    assert sorted(world.stored_numbers()) == [1, 2]
    assert world.files() == []


def test_a_probe_that_a_crash_left_is_removed(journal):
    world = journal()
    leave(world, dead_key(), bytes(100), suffix=".probe.0a1b2c3d.tmp")
    world.start()
    assert world.files() == []


def test_a_file_that_is_no_segment_is_left_alone(journal):
    world = journal()
    leave(world, dead_key(), b"?", suffix="raw/notes.jsonl")
    world.start()
    world.advance(60)
    assert world.files() == ["dlq/journal/0/raw/notes.jsonl"]
    assert len(said(world, "not_a_segment")) == 1


def test_a_torn_dead_letter_is_not_salvaged_while_another_process_holds_the_segment(world):
    """The dead process's journal is adopted by one process, its DLQ is taken by another that starts."""
    world = world("journal", batch_size=40)
    dying, other = world.start(), world.start()
    world.store.down = True

    def is_letter(path):
        return path.name.endswith(".tmp") and not in_journal(path)

    world.fs.on("write", times=1, when=is_letter).shorten(100)
    world.burn(1, "write", when=is_letter)
    numbers = dying.commit(40)
    world.advance(5)
    assert dying not in world.processes
    assert any(name.endswith(".tmp") for name in world.files())
    world.store.down = False
    world.late_puts = 1  # the one that has the segment is slow
    locked = world.fs.on("open", under=dying.dlq_slot.path / "lock").fail(errno.EACCES)
    while not other.link.under_way:
        if not world.run_job():
            world.advance(0.5, threads=False)
    locked.lift()
    fresh = world.start()
    assert (fresh.dlq_slot.number, fresh.journal_slot.number) == (0, 2)
    world.advance(20)
    assert sorted(world.stored_numbers()) == numbers
    world.recover()


# ------------------------------------------------------------------------------------------------------ slots and locks


def test_two_processes_have_two_slots_and_leave_each_other_alone(journal):
    world = journal()
    one, two = world.start(), world.start()
    assert one.journal_slot.path != two.journal_slot.path
    numbers = one.commit(2) + two.commit(2)
    world.advance(100)
    assert sorted(on_disk(world)) == numbers
    assert [process.pending for process in (one, two)] == [2, 2]
    assert world.store.calls == []
    world.recover()
    assert sorted(world.stored_numbers()) == numbers


def test_a_living_process_adopts_what_a_dead_one_left_and_lets_the_slot_go(journal):
    world = journal()
    one, two = world.start(), world.start()
    numbers = two.commit(3)
    world.kill(two)
    assert world.wait_for(lambda: sorted(world.stored_numbers()) == numbers, seconds=40)
    assert one.metrics.books.events_recovered == 3
    assert segments(world) == []
    world.advance(40)
    assert world.start().journal_slot.number == 1, "it was let go"
    world.recover()


def test_the_own_segments_are_never_recovered(journal):
    """Not those that lie there before the listing has begun, and not in the slot's next listing."""
    world = journal()
    world.store.down = True
    process = world.start(run=False)
    numbers = process.commit(3)
    world.advance(100)
    assert (process.backlog.files, process.metrics.books.events_recovered, process.pending) == (0, 0, 3)
    assert on_disk(world) == numbers
    world.store.down = False
    world.recover()
    assert sorted(world.stored_numbers()) == numbers


def test_a_temporary_of_this_process_is_not_taken_for_one_that_was_left(journal):
    """The journal may be rewriting while the slot is listed; its temporary bears our own token."""
    world = journal()
    name = f"{START}_host-{1:016x}_0000000001.jsonl"  # the token of the world's first process
    temporary = leave(world, dead_key(), events([1]), suffix=f"{HOUR}/.{name}.0a1b2c.tmp")
    process = world.start()
    assert process.token == f"{1:016x}"
    world.advance(5)
    assert temporary.exists()
    assert world.store.calls == []


# --------------------------------------------------------------------------------------------------------------- memory


SEGMENT_MB = 200


def test_a_segment_of_200_mb_is_recovered_in_bounded_memory(tmp_path):
    """Through the whole of recovery, in a process of its own whose peak is read at its end."""
    path = tmp_path / "dlq" / "journal" / "0" / dead_key().removesuffix(".gz")
    path.parent.mkdir(parents=True)
    block = b"".join(line(START, number, padding=1000) for number in range(1000))
    count = SEGMENT_MB * 1_000_000 // len(block)
    with path.open("wb") as file:
        for _ in range(count):
            file.write(block)
    script = textwrap.dedent("""
        import asyncio, json, resource, sys, time
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        from ingest.spool.backlog import Backlog
        from ingest.disk.lane import Lane
        from ingest.spool.places import Places
        from ingest.spool.spool import Spool
        from ingest.disk.filesystem import Filesystem
        from ingest.disk.slots import Slot
        from ingest.intake.journal import NoJournal
        from ingest.telemetry.metrics import Metrics
        from ingest.telemetry import Budget
        from ingest.delivery import Drain, Uploader
        from tests.model.world import settings
        from tests.stand_ins.fakes import MemoryStore

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

        async def main():
            root, fs, metrics, executor = Path(sys.argv[1]), Filesystem(), Metrics(), ThreadPoolExecutor(4)
            chosen, store, token = settings(root, s3_timeout="60s"), MemoryStore(), "0123456789abcdef"
            budget = Budget(chosen.max_buffer_bytes)
            slots = [Slot.take_first_free(fs, base) for base in (chosen.dlq_dir, chosen.journal_dir)]
            lane = Lane("disk")
            places = Places(fs, (chosen.journal_dir, lane), (chosen.dlq_dir, lane))
            backlog = Backlog(fs, slots[1], metrics, lane, executor, places, token=token)
            dlq = Spool(chosen, fs, slots[:1], metrics, lane, executor, places, token=token)
            uploader = Uploader(chosen, store, dlq, backlog, NoJournal(metrics, print), metrics, budget, executor)
            before = peak()
            running = asyncio.create_task(uploader.run())
            await backlog.scan()
            while backlog.files:
                await asyncio.sleep(0.05)
            drain = Drain(uploader, clock=time.monotonic)
            await drain.run(time.monotonic() + 5, asyncio.Event())
            await running
            (body,) = store.objects.values()
            stored = metrics.books.events_stored
            print(json.dumps({"before": before, "peak": peak(), "body": len(body), "stored": stored}))

        asyncio.run(main())
    """)
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=REPOSITORY,
        env=bare_environment({}, measured=False),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["stored"] == count * 1000
    assert told["peak"] - told["before"] < 40_000_000 + 3 * told["body"], told
    assert not path.exists()
