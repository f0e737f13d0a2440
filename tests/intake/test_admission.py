"""The open batch: where events go, when it seals, when none may come in, and whose the buffers are."""

from __future__ import annotations

import errno
import gc
from mmap import mmap
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ingest.config.settings import load
from ingest.format.keys import KeyFactory, parse_key, partition_of
from ingest.intake.admission import Intake
from ingest.intake.batch import BUFFER_BYTES, POOLED_BYTES, Batch, BufferPool
from ingest.intake.journal import NoJournal
from ingest.telemetry import Budget, Reason, SealReason
from ingest.telemetry.metrics import Metrics
from ingest.wire.turn import Turn
from tests.stand_ins.wire import FakeLoop

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

HOUR = 1_764_720_000  # 2025-12-03T00:00:00Z
UTC = ZoneInfo("UTC")


class FakeJournal:
    """A journal in memory: what was written to which batch, and groups that wait until a test settles them."""

    def __init__(self, rig: Rig, *, deferred: bool) -> None:
        self.rig = rig
        self.deferred = deferred
        self.latched = False
        self.refuses = False
        self.segments: dict[str, bytearray] = {}
        self.waiting: list[tuple[Batch | None, Turn]] = []
        self.sealing: list[Batch] = []

    def begin(self, batch: Batch) -> bool:
        if self.refuses or self.latched:
            return False
        self.segments[batch.key] = bytearray()
        return True

    def write(self, batch: Batch, data: bytes) -> bool:
        if self.refuses or self.latched:
            return False
        self.segments[batch.key] += data
        return True

    def acknowledge(self, batch: Batch, turn: Turn) -> None:
        self.waiting.append((batch, turn))
        if not self.deferred:
            self.sync()

    def refuse(self, turn: Turn) -> None:
        self.waiting.append((None, turn))
        if not self.deferred:
            self.sync()

    def seal(self, batch: Batch) -> None:
        if batch.tail_events:
            self.sealing.append(batch)
        elif batch.events:
            self.rig.submit(batch)
        else:
            batch.release_buffer()

    def sync(self) -> None:
        waiting, self.waiting = self.waiting, []
        for batch, turn in waiting:
            if batch is not None:
                batch.acknowledge(turn.size, turn.events, turn.seconds)
                self.rig.metrics.books.accepted(turn.events)
            turn.settle(committed=batch is not None)
        for batch in self.sealing:
            self.rig.submit(batch)
        self.sealing = []


class Client:
    """One request's client: what it asked for, and whether it was told yes."""

    pending = 0

    def __init__(self, rig: Rig, asked: int | str) -> None:
        self.rig = rig
        self.asked = asked

    def write(self, answer: bytes) -> None:
        self.rig.answers.append((self.asked, answer == b"yes"))

    def await_commit(self, _: int) -> None:
        raise AssertionError("nobody deferred this turn")

    answered = await_commit


class Rig:
    """An intake between a test that commits and an uploader that keeps what it is given."""

    def __init__(self, *, journal: str = "", tz: str = "UTC", **variables: str) -> None:
        self.settings = load({"FLUSH_INTERVAL": "120s", "MAX_BUFFER_BYTES": "64MiB", **variables})
        self.loop = FakeLoop()
        self.metrics = Metrics()
        self.answers: list[tuple[int | str, bool]] = []
        self.sealed: list[Batch] = []
        self.room = True
        self.budget = Budget(self.settings.max_buffer_bytes)
        self.held = 0
        self.journal = (
            FakeJournal(self, deferred=journal == "fsync") if journal else NoJournal(self.metrics, self.submit)
        )
        self.intake = Intake(
            self.settings,
            KeyFactory("raw", ZoneInfo(tz), host="host", token="0123456789abcdef"),
            self.metrics,
            self.loop,  # type: ignore[arg-type]
            self.budget,
            has_room=lambda: self.room,
            journal=self.journal,
        )
        self.count = 0

    def submit(self, batch: Batch) -> None:
        self.sealed.append(batch)
        self.budget.batches -= batch.size

    @property
    def size(self) -> int:
        """Bytes in the open batch."""
        return self.budget.batches - self.held

    def hold(self, elsewhere: int) -> None:
        """Have so many bytes be held by others."""
        self.budget.batches += elsewhere - self.held
        self.held = elsewhere

    def refuses(self, unfinished: int) -> bool:
        self.budget.requests = unfinished
        return self.intake.refusing()

    def commit(self, events: int, seconds: int = HOUR, *, size: int = 0, blanks: Sequence[int] = ()) -> list[int]:
        """Commit a tick of numbered lines, with answers to no event before those at `blanks`; return the numbers."""
        turn = Turn(seconds)
        numbers = []
        for index in range(events + 1):
            for _ in range(list(blanks).count(index)):
                turn.reply(Client(self, "page"), b"shown")
            if index < events:
                line = b"%d\n" % self.count
                turn.event(Client(self, self.count), line.rjust(size, b" ") if size else line, b"yes", b"no")
                numbers.append(self.count)
                self.count += 1
        turn.close()
        self.intake.commit(turn)
        return numbers

    @property
    def refused(self) -> list[int]:
        return [entry for entry, committed in self.answers if not committed and entry != "page"]

    @property
    def reasons(self) -> list[str | None]:
        return [batch.reason and batch.reason.value for batch in self.sealed]


def numbers(batch: Batch) -> list[int]:
    return [int(line) for line in bytes(batch.view()).splitlines()]


# When a batch seals.


def test_it_seals_at_batch_size_and_a_tick_is_split_there():
    rig = Rig(BATCH_SIZE="10")
    rig.commit(7)
    assert rig.sealed == []
    assert rig.intake.events == 7
    rig.commit(25)
    assert rig.reasons == ["size", "size", "size"]
    assert [numbers(batch) for batch in rig.sealed] == [list(range(at, at + 10)) for at in (0, 10, 20)]
    assert rig.intake.events == 2
    assert rig.answers == [(number, True) for number in range(32)]
    assert rig.metrics.books.events_accepted == 32
    assert [batch.events for batch in rig.sealed] == [10, 10, 10]
    assert all(batch.size == len(batch.view()) for batch in rig.sealed)


def test_it_seals_when_a_tick_ends_at_batch_size():
    rig = Rig(BATCH_SIZE="10")
    rig.commit(10)
    assert [numbers(batch) for batch in rig.sealed] == [list(range(10))]
    assert rig.intake.events == 0
    assert rig.size == 0


def test_answers_to_no_event_keep_their_place_in_a_split_tick():
    rig = Rig(BATCH_SIZE="3")
    rig.commit(5, blanks=[0, 2, 3, 3, 5])
    assert [entry for entry, _ in rig.answers] == ["page", 0, 1, "page", 2, "page", "page", 3, 4, "page"]
    assert [numbers(batch) for batch in rig.sealed] == [[0, 1, 2]]
    rig.commit(0, blanks=[0, 0])
    assert rig.answers[-2:] == [("page", False)] * 2, "an answer to no event is the same either way"


def test_it_seals_at_batch_bytes():
    rig = Rig(BATCH_BYTES="64KiB", BATCH_SIZE="1000000")
    while not rig.sealed:
        rig.commit(1, size=1000)
    (batch,) = rig.sealed
    assert batch.reason is SealReason.BYTES
    assert 65536 <= batch.size < 65536 + 1000


@pytest.mark.parametrize("journal", ["", "journal", "fsync"])
@pytest.mark.parametrize("batch_bytes", ["1GiB", "128KiB", "120KiB"])
def test_a_batch_that_memory_has_no_room_for_seals_at_half_of_it_and_nobody_is_refused(batch_bytes, journal):
    rig = Rig(BATCH_BYTES=batch_bytes, MAX_BUFFER_BYTES="128KiB", BATCH_SIZE="1000000", journal=journal)
    for _ in range(200):
        rig.commit(1, size=1000)
        if journal == "fsync":
            rig.journal.sync()
    assert rig.refused == []
    assert rig.reasons == ["bytes"] * 3
    assert {batch.size for batch in rig.sealed} == {66_000}


def test_it_seals_after_flush_interval_on_the_monotonic_clock():
    rig = Rig(FLUSH_INTERVAL="120s")
    rig.loop.advance(1000)
    rig.commit(1)
    rig.loop.advance(119)
    rig.commit(1, HOUR + 119)
    assert rig.sealed == []
    rig.loop.advance(1)
    assert rig.reasons == ["interval"]
    assert numbers(rig.sealed[0]) == [0, 1]
    rig.loop.advance(1000)
    assert len(rig.sealed) == 1, "nothing is open: nothing to seal"


def test_the_interval_begins_with_each_batch():
    rig = Rig(BATCH_SIZE="2", FLUSH_INTERVAL="120s")
    rig.commit(1)
    rig.loop.advance(100)
    rig.commit(2)
    rig.loop.advance(119)
    assert rig.reasons == ["size"], "the timer of a sealed batch does not seal the next"
    rig.loop.advance(1)
    assert rig.reasons == ["size", "interval"]
    assert all(timer.cancelled for timer in rig.loop.timers)


def test_it_seals_when_the_partition_changes():
    rig = Rig()
    rig.commit(2, HOUR + 3599)
    rig.commit(2, HOUR + 3600)
    assert rig.reasons == ["partition"]
    assert numbers(rig.sealed[0]) == [0, 1]
    assert "/dt=2025-12-03/hr=00/" in rig.sealed[0].key
    rig.intake.seal(SealReason.DRAIN)
    assert "/dt=2025-12-03/hr=01/" in rig.sealed[1].key
    assert numbers(rig.sealed[1]) == [2, 3]


def test_it_seals_when_the_clock_steps_back_over_the_hour():
    rig = Rig()
    for seconds in (HOUR, HOUR - 1, HOUR, HOUR - 5, HOUR - 3600, HOUR - 3601):
        rig.commit(1, seconds)
    rig.intake.seal(SealReason.DRAIN)
    hours = [parse_key(batch.key).partition for batch in rig.sealed]
    today, yesterday = "dt=2025-12-03/hr=00", "dt=2025-12-02/hr="
    assert hours == [today, f"{yesterday}23", today, f"{yesterday}23", f"{yesterday}22"]
    assert rig.reasons == ["partition"] * 4 + ["drain"]
    assert [batch.events for batch in rig.sealed] == [1, 1, 1, 2, 1]


def test_a_step_back_within_the_hour_seals_nothing():
    rig = Rig()
    for seconds in (HOUR + 100, HOUR + 50, HOUR + 99):
        rig.commit(1, seconds)
    assert rig.sealed == []


@pytest.mark.parametrize(("tz", "minute"), [("Asia/Kolkata", 30), ("Asia/Kathmandu", 15), ("Europe/Berlin", 0)])
def test_the_hour_is_that_of_the_partition_zone(tz, minute):
    rig = Rig(tz=tz)
    edge = HOUR + minute * 60
    rig.commit(1, edge - 1)
    rig.commit(1, edge)
    rig.intake.seal(SealReason.DRAIN)
    assert [parse_key(batch.key).partition for batch in rig.sealed] == [
        partition_of(seconds, ZoneInfo(tz)).path for seconds in (edge - 1, edge)
    ]
    assert len(rig.sealed) == 2


def test_it_seals_for_the_drain_and_takes_nothing_after_it():
    rig = Rig()
    rig.commit(3)
    rig.intake.close()
    assert rig.reasons == ["drain"]
    # A straggler's event would be acknowledged and never leave this process.
    late = rig.commit(2)
    assert rig.refused == late
    assert rig.intake.events == 0
    assert rig.metrics.books.events_accepted == 3
    rig.intake.close()
    assert len(rig.sealed) == 1


def test_sealing_nothing_is_nothing():
    rig = Rig()
    rig.intake.seal(SealReason.DRAIN)
    assert rig.sealed == []


def test_the_key_is_fixed_when_the_batch_opens():
    rig = Rig(journal="journal")
    rig.commit(1, HOUR + 10)
    (key,) = rig.journal.segments
    rig.commit(1, HOUR + 3000)
    rig.loop.advance(120)
    rig.commit(1, HOUR + 3001)
    rig.intake.seal(SealReason.DRAIN)
    assert rig.sealed[0].key == key
    assert parse_key(key).unix == HOUR + 10
    assert [parse_key(batch.key).sequence for batch in rig.sealed] == [1, 2]
    assert (rig.sealed[0].first_ts, rig.sealed[0].last_ts) == (HOUR + 10, HOUR + 3000)


# When there is no room.

FULL = {"BATCH_SIZE": "10", "CHANNEL_SIZE": "4"}


def test_without_room_the_batch_grows_by_channel_size_and_then_events_are_refused():
    rig = Rig(**FULL)
    rig.room = False
    taken = rig.commit(9) + rig.commit(4)
    assert rig.refused == []
    last = rig.commit(3)
    assert rig.refused == last[1:]
    assert rig.commit(2) == rig.refused[2:]
    assert rig.sealed == []
    assert rig.intake.events == 14
    assert rig.metrics.rejected[Reason.QUEUE_FULL] == 4
    assert rig.intake.refusing()
    rig.room = True
    rig.intake.room_made()
    assert [numbers(batch) for batch in rig.sealed] == [[*taken, last[0]]]
    assert rig.reasons == ["size"]
    assert not rig.intake.refusing()
    rig.commit(10)
    assert len(rig.sealed) == 2, "the next batch has its own size again"


def test_room_that_nobody_announced_is_found():
    rig = Rig(**FULL)
    rig.room = False
    rig.commit(14)
    assert rig.intake.refusing()
    rig.room = True
    assert not rig.intake.refusing()
    rig.commit(1)
    assert rig.refused == []
    assert [batch.events for batch in rig.sealed] == [14]
    assert rig.intake.events == 1


def test_room_made_before_the_growth_is_used_up_seals_at_the_next_event():
    rig = Rig(**FULL)
    rig.room = False
    rig.commit(11)
    rig.room = True
    rig.commit(1)
    assert [batch.events for batch in rig.sealed] == [12]


def test_an_interval_that_ends_without_room_is_made_up_for():
    rig = Rig(**FULL)
    rig.room = False
    rig.commit(3)
    rig.loop.advance(120)
    assert rig.sealed == []
    rig.commit(4)
    refused = rig.commit(1)
    assert rig.refused == refused
    rig.intake.room_made()
    assert rig.sealed == [], "there is none yet"
    rig.room = True
    rig.intake.room_made()
    assert rig.reasons == ["interval"]
    assert rig.sealed[0].events == 7


def test_a_new_hour_without_room_is_refused_rather_than_mixed():
    rig = Rig(**FULL)
    rig.room = False
    rig.commit(3, HOUR)
    late = rig.commit(2, HOUR + 3600)
    assert rig.refused == late
    rig.commit(1, HOUR + 3599)  # the clock stepped back
    rig.room = True
    rig.commit(1, HOUR + 3600)
    rig.intake.seal(SealReason.DRAIN)
    assert [batch.events for batch in rig.sealed] == [4, 1]
    assert [parse_key(batch.key).partition[-2:] for batch in rig.sealed] == ["00", "01"]


def test_room_made_when_nothing_is_due_seals_nothing():
    rig = Rig(**FULL)
    rig.commit(3)
    rig.intake.room_made()
    assert rig.sealed == []


def test_a_sealed_batch_is_gone_with_who_holds_it_last():
    rig = Rig()
    rig.commit(3)
    rig.intake.seal(SealReason.SIZE)
    gc.collect()
    gc.disable()
    try:
        rig.sealed.clear()
        left = [one for one in gc.get_objects() if isinstance(one, Batch)]
    finally:
        gc.enable()
    assert left == [], "its compressed lines would stay until the collector of cycles comes, which is seldom"


# MAX_BUFFER_BYTES

BUFFER = {"MAX_BUFFER_BYTES": "100000", "BATCH_BYTES": "65536", "MAX_BODY_SIZE": "1000", "BATCH_SIZE": "1000000"}


def test_events_over_the_buffer_are_refused_until_there_is_space():
    rig = Rig(**BUFFER)
    rig.hold(90_000)
    rig.commit(10, size=1000)
    assert rig.size == 10_000
    assert rig.commit(1) == rig.refused
    assert rig.refuses(1)
    assert not rig.refuses(0)
    rig.hold(89_000)
    rig.commit(1, size=1000)
    assert rig.size == 11_000
    assert len(rig.refused) == 1
    assert rig.metrics.books.events_accepted == 11
    assert rig.refuses(1), "unfinished requests count"


def test_what_was_refused_leaves_no_trace():
    rig = Rig(**BUFFER, journal="journal")
    rig.commit(1, size=1000)
    rig.hold(98_990)
    rig.commit(5, size=1000)
    rig.hold(0)
    rig.commit(1, size=1000)
    rig.intake.seal(SealReason.DRAIN)
    (batch,) = rig.sealed
    assert numbers(batch) == [0, 6]
    assert rig.journal.segments[batch.key] == batch.view()


def test_a_batch_of_refused_events_alone_is_never_submitted():
    rig = Rig(**BUFFER)
    rig.hold(100_000)
    rig.commit(2)
    rig.loop.advance(120)
    assert rig.sealed == []
    assert rig.size == 0


@pytest.fixture
def no_memory(monkeypatch):
    """The system gives none until `undo`."""

    def refuse(*_):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("ingest.intake.batch.mmap", refuse)
    return monkeypatch


@pytest.mark.parametrize("journal", ["", "journal", "fsync"])
def test_without_memory_for_a_batch_events_are_refused_until_there_is_some(no_memory, journal):
    rig = Rig(journal=journal)
    rig.commit(3)
    if journal == "fsync":
        rig.journal.sync()
    assert rig.refused == [0, 1, 2]
    no_memory.undo()
    rig.commit(2)
    rig.intake.seal(SealReason.DRAIN)
    if journal == "fsync":
        rig.journal.sync()
    (batch,) = rig.sealed
    assert numbers(batch) == [3, 4]
    assert batch.key.endswith("_0000000001.jsonl.gz"), "no number is drawn for what never was"


@pytest.mark.parametrize("journal", ["", "journal", "fsync"])
def test_a_batch_that_memory_does_not_let_grow_is_sealed_whole_and_the_next_one_takes_events(monkeypatch, journal):
    rig = Rig(journal=journal, BATCH_BYTES="16MiB")
    monkeypatch.setattr("ingest.intake.batch.BUFFER_BYTES", 10_000)
    taken = [rig.commit(1, size=900)[0] for _ in range(11)]

    def refuse(_, size):
        if size > 10_000:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return mmap(-1, size)

    monkeypatch.setattr("ingest.intake.batch.mmap", refuse)
    rig.commit(1, size=900)
    taken += rig.commit(1, size=900)
    rig.intake.seal(SealReason.DRAIN)
    if journal == "fsync":
        rig.journal.sync()
    assert rig.refused == [11]
    assert [number for batch in rig.sealed for number in numbers(batch)] == taken
    assert rig.reasons == ["bytes", "drain"]


# The journal.


def test_an_event_is_in_the_journal_before_its_answer():
    rig = Rig(journal="journal", BATCH_SIZE="10")

    class Watchful(list[tuple[int | str, bool]]):
        def append(self, answer: tuple[int | str, bool]) -> None:
            written = b"".join(rig.journal.segments.values()).splitlines()
            assert b"%d" % answer[0] in written
            super().append(answer)

    rig.answers = Watchful()
    rig.commit(25)
    assert [bytes(batch.view()) for batch in rig.sealed] == [rig.journal.segments[batch.key] for batch in rig.sealed]
    assert len(rig.answers) == 25


@pytest.mark.parametrize("attribute", ["refuses", "latched"])
def test_what_the_disk_refuses_is_refused_and_not_kept(attribute):
    rig = Rig(journal="journal")
    setattr(rig.journal, attribute, True)
    first = rig.commit(2)
    setattr(rig.journal, attribute, False)
    rig.commit(2)
    setattr(rig.journal, attribute, True)
    second = rig.commit(2)
    setattr(rig.journal, attribute, False)
    rig.commit(1)
    assert rig.refused == first + second
    rig.intake.seal(SealReason.DRAIN)
    assert numbers(rig.sealed[0]) == [2, 3, 6]
    latched = attribute == "latched"
    assert rig.metrics.rejected[Reason.DISK_FULL] == (4 if latched else 0)
    assert rig.metrics.rejected[Reason.QUEUE_FULL] == (0 if latched else 4)


def test_a_latched_journal_is_told_ahead():
    rig = Rig(journal="journal")
    assert not rig.intake.refusing()
    rig.journal.latched = True
    assert rig.intake.refusing()


def test_with_fsync_events_count_when_they_are_synced():
    rig = Rig(journal="fsync", BATCH_SIZE="10")
    rig.commit(4)
    assert rig.answers == []
    assert (rig.intake.events, rig.metrics.books.events_accepted) == (0, 0)
    assert rig.size > 0, "what waits is held"
    rig.commit(8)
    assert rig.sealed == [], "it waits for the sync of its last line"
    rig.journal.sync()
    assert rig.answers == [(number, True) for number in range(12)]
    assert [numbers(batch) for batch in rig.sealed] == [list(range(10))]
    assert (rig.intake.events, rig.metrics.books.events_accepted) == (2, 12)


def test_with_fsync_refusals_wait_their_turn():
    rig = Rig(journal="fsync", **FULL)
    rig.room = False
    rig.commit(13)
    rig.commit(3, blanks=[3])
    rig.commit(0, blanks=[0])
    assert rig.answers == []
    rig.journal.sync()
    assert rig.answers == [
        *((number, True) for number in range(14)),
        (14, False),
        (15, False),
        ("page", False),
        ("page", False),
    ]


def test_with_fsync_the_tail_fills_the_batch_too():
    rig = Rig(journal="fsync", **FULL)
    for _ in range(5):
        rig.commit(3)
    assert [group[0].tail_events for group in rig.journal.waiting[:1]] == [10]
    assert rig.intake._open.batch.tail_events == 5


# Buffers.


def batch_of(pool: BufferPool) -> Batch:
    return Batch("key", partition_of(HOUR, UTC), HOUR, pool)


def fill(batch: Batch, data: bytes) -> None:
    assert batch.has_room(len(data))
    batch.append(data, 1)
    batch.acknowledge(len(data), 1, HOUR)


def test_a_buffer_returns_when_its_last_reader_lets_go():
    pool = BufferPool(keep=2, budget=Budget(1 << 26))
    batch = batch_of(pool)
    fill(batch, b"one\n")
    batch.hold_buffer()
    batch.hold_buffer()
    view = batch.view()
    for _ in range(2):
        batch.release_buffer()
        other = batch_of(pool)
        fill(other, b"other\n")
        assert view == b"one\n", "its memory is still its own"
    view.release()
    batch.release_buffer()
    third, fourth = pool.lend(), pool.lend()
    assert (third[:4], fourth[:4]) == (b"one\n", bytes(4)), "then it is lent again, and only once"


def test_releasing_once_too_often_lends_no_buffer_twice():
    pool = BufferPool(keep=4, budget=Budget(1 << 26))
    batch = batch_of(pool)
    batch.release_buffer()
    batch.release_buffer()
    assert pool.lend() is not pool.lend()


def test_a_pool_keeps_no_more_than_it_needs():
    pool = BufferPool(keep=2, budget=Budget(1 << 26))
    batches = [batch_of(pool) for _ in range(5)]
    for batch in batches:
        batch.release_buffer()
    assert len(pool._free) == 2


def test_a_batch_in_an_old_buffer_shows_its_own_lines_only():
    pool = BufferPool(keep=1, budget=Budget(1 << 26))
    first = batch_of(pool)
    fill(first, b"x" * 1000)
    first.release_buffer()
    second = batch_of(pool)
    fill(second, b"ab\n")
    assert second.view() == b"ab\n"


def test_a_batch_grows_under_a_reader_who_keeps_what_he_saw():
    pool = BufferPool(keep=2, budget=Budget(1 << 26))
    batch = batch_of(pool)
    fill(batch, b"a" * 1000)
    batch.hold_buffer()
    seen = batch.view()
    fill(batch, b"b" * BUFFER_BYTES * 3)
    assert seen == b"a" * 1000
    assert batch.view() == b"a" * 1000 + b"b" * BUFFER_BYTES * 3
    assert batch.has_room(BUFFER_BYTES * 5)
    batch.append(b"c" * BUFFER_BYTES * 5, 1)
    assert len(batch.view()) == 1000 + BUFFER_BYTES * 3
    batch.acknowledge(BUFFER_BYTES * 5, 1, HOUR)
    assert bytes(batch.view()[-BUFFER_BYTES * 5 :]) == b"c" * BUFFER_BYTES * 5
    seen.release()
    batch.release_buffer()
    batch.release_buffer()
    assert len(pool.lend()) == BUFFER_BYTES, "one that grew beyond what is pooled is let go"


@pytest.mark.parametrize(("size", "kept"), [(POOLED_BYTES, True), (POOLED_BYTES + 1, False)])
def test_a_pool_keeps_what_an_ordinary_batch_needs_and_lets_go_of_more_c12(size, kept):
    pool = BufferPool(keep=1, budget=Budget(1 << 26))
    batch = batch_of(pool)
    fill(batch, b"x" * size)
    batch.release_buffer()
    assert (len(pool.lend()) == size) is kept


def test_a_tail_that_is_cut_was_never_there():
    batch = batch_of(BufferPool(keep=1, budget=Budget(1 << 26)))
    fill(batch, b"one\n")
    batch.append(b"two\n", 1)
    batch.cut()
    assert batch.view() == b"one\n"
    fill(batch, b"3\n")
    assert batch.view() == b"one\n3\n"
    assert (batch.events, batch.tail_events, batch.tail_size) == (2, 0, 0)


def test_the_intake_lends_again_what_came_back():
    rig = Rig(BATCH_SIZE="2")
    rig.commit(2)
    first = rig.sealed[0]
    buffer = first._buffer
    first.release_buffer()
    rig.commit(1)
    assert rig.intake._open.batch._buffer is buffer
    rig.commit(3)
    assert rig.sealed[1]._buffer is not rig.sealed[2]._buffer


# Everything at once, against a model that only keeps lists.


class EveryEvent(RuleBasedStateMachine):
    """Every event is answered once, in order, and stored as it was answered, in a batch of its own hour."""

    @initialize(journal=st.sampled_from(["", "journal", "fsync"]))
    def start(self, journal: str) -> None:
        self.rig = Rig(
            journal=journal,
            BATCH_SIZE="7",
            CHANNEL_SIZE="5",
            BATCH_BYTES="65536",
            MAX_BUFFER_BYTES="90000",
            MAX_BODY_SIZE="100",
        )
        self.clock = HOUR
        self.stamps: dict[int, int] = {}
        self.expected: list[int | str] = []

    @rule(events=st.sampled_from([1, 1, 2, 5, 9, 20]), size=st.sampled_from([0, 0, 3000]), draw=st.randoms())
    def commit(self, events: int, size: int, draw: random.Random) -> None:
        blanks = [draw.randrange(events + 1) for _ in range(draw.choice([0, 0, 1, 3]))]
        first = self.rig.count
        self.stamps |= dict.fromkeys(self.rig.commit(events, self.clock, size=size, blanks=blanks), self.clock)
        for index in range(events + 1):
            self.expected += ["page"] * blanks.count(index)
            self.expected += [first + index] * (index < events)

    @rule()
    def commit_no_event(self) -> None:
        self.rig.commit(0, self.clock, blanks=[0])
        self.expected.append("page")

    @rule(seconds=st.sampled_from([1, 60, 3600, -1, -3600]))
    def step_the_clock(self, seconds: int) -> None:
        self.clock += seconds

    @rule(seconds=st.sampled_from([1, 60, 121]))
    def let_time_pass(self, seconds: int) -> None:
        self.rig.loop.advance(seconds)

    @rule(room=st.booleans(), announced=st.booleans())
    def change_the_room(self, room: bool, announced: bool) -> None:
        self.rig.room = room
        if announced:
            self.rig.intake.room_made()

    @rule(held=st.sampled_from([0, 60_000, 90_000]))
    def hold(self, held: int) -> None:
        self.rig.hold(held)

    @precondition(lambda self: isinstance(self.rig.journal, FakeJournal))
    @rule(refuses=st.booleans())
    def change_the_disk(self, refuses: bool) -> None:
        self.rig.journal.refuses = refuses

    @precondition(lambda self: isinstance(self.rig.journal, FakeJournal))
    @rule()
    def sync(self) -> None:
        self.rig.journal.sync()

    @invariant()
    def the_open_batch_is_bounded(self) -> None:
        into = self.rig.intake._open
        assert into is None or into.batch.events + into.batch.tail_events <= 7 + 5
        assert self.rig.size <= 90_000

    @invariant()
    def nobody_waits_but_for_a_sync(self) -> None:
        if not self.rig.journal.deferred:
            assert len(self.rig.answers) == len(self.expected)

    def teardown(self) -> None:
        rig = self.rig
        rig.intake.close()
        written = isinstance(rig.journal, FakeJournal)
        if written:
            rig.journal.sync()
        assert [entry for entry, _ in rig.answers] == self.expected
        accepted = [entry for entry, committed in rig.answers if committed and entry != "page"]
        assert [number for batch in rig.sealed for number in numbers(batch)] == accepted
        assert rig.metrics.books.events_accepted == len(accepted)
        assert len({batch.key for batch in rig.sealed}) == len(rig.sealed)
        for batch in rig.sealed:
            inside = numbers(batch)
            assert len(inside) == batch.events
            assert (batch.first_ts, batch.last_ts) == (self.stamps[inside[0]], self.stamps[inside[-1]])
            hours = {partition_of(self.stamps[number], UTC).path for number in inside}
            assert hours == {parse_key(batch.key).partition}
            if written:
                assert rig.journal.segments[batch.key] == batch.view()


EveryEvent.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestEveryEvent = EveryEvent.TestCase


# Requests of many events.


def together(rig: Rig, *requests: int, seconds: int = HOUR) -> None:
    """Commit a turn of requests with so many events each; none: an answer to no event."""
    turn = Turn(seconds)
    for events in requests:
        if events:
            lines = b"".join(b"%d\n" % (rig.count + number) for number in range(events))
            turn.event(Client(rig, rig.count), lines, b"yes", b"no", events)
            rig.count += events
        else:
            turn.reply(Client(rig, "page"), b"shown")
    turn.close()
    rig.intake.commit(turn)


@pytest.mark.parametrize(
    ("requests", "batches"),
    [
        ((4, 4, 4), [8, 4]),
        ((10, 1), [10]),
        ((25, 1), [25]),
        ((1, 25, 1), [1, 25]),
        ((9, 0, 2, 0, 8), [9, 10]),
        ((0, 11, 0), [11]),
        ((5, 5, 0, 5, 5, 1), [10, 10]),
        ((1,) * 12, [10]),
    ],
)
def test_the_events_of_one_request_go_into_one_batch(requests, batches):
    rig = Rig(BATCH_SIZE="10", journal="journal")
    together(rig, *requests)
    rig.intake.seal(SealReason.DRAIN)
    stored = [numbers(batch) for batch in rig.sealed]
    assert [len(batch) for batch in stored][: len(batches)] == batches
    assert [number for batch in stored for number in batch] == list(range(rig.count))
    assert sum(batch.events for batch in rig.sealed) == rig.count
    assert rig.refused == []
    assert len(rig.answers) == len(requests)


def test_a_request_that_finds_no_room_is_refused_whole_and_one_that_may_grow_into_the_channel_is_not():
    rig = Rig(BATCH_SIZE="10", CHANNEL_SIZE="5", journal="journal")
    rig.room = False
    together(rig, 8)
    together(rig, 5)
    assert rig.refused == []
    together(rig, 1)
    assert rig.refused == [13]
    rig.room = True
    together(rig, 30)
    assert rig.refused == [13]
    assert [batch.events for batch in rig.sealed] == [13, 30]

    rig = Rig(BATCH_SIZE="10", CHANNEL_SIZE="5", journal="journal")
    rig.room = False
    together(rig, 8, 6, 1)
    assert rig.refused == [8, 14]
    assert rig.intake.events == 8
    assert rig.metrics.rejected[Reason.QUEUE_FULL] == 7
