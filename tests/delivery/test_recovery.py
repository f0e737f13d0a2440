"""What lies on disk, back to the store."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ingest.delivery import Aside, Course, Phase, recovery
from ingest.delivery.breaker import Breaker
from ingest.delivery.carrying import Step
from ingest.disk import reading
from ingest.format import codec
from ingest.telemetry import DropReason, Place
from tests.delivery.rig import Batch, rig_of
from tests.stand_ins.disk import Disk
from tests.stand_ins.letters import bodies, body, files, key, leave, lines


def test_recovery_creates_the_original_bytes_under_the_file_s_own_key(tmp_path):
    rig = rig_of(tmp_path)
    name = key(7, prefix="another/prefix")
    leave(rig.root, name, body(6))

    async def main():
        async with rig.running():
            await rig.done()
            assert rig.store_.tries == [("create", name)]
            assert rig.store_.objects == {name: body(6)}
            metadata = rig.store_.metadata[name]
            assert (metadata.events, metadata.first_ts, metadata.last_ts) == (6, 1764684000, 1764684005)
            assert metadata.instance == "host-fedcba9876543210"
            assert (rig.metrics.books.events_recovered, rig.metrics.books.events_stored, rig.metrics.reuploaded) == (
                6,
                6,
                6,
            )
            assert files(rig.root) == []

    asyncio.run(main())


def test_recovery_never_replaces_what_is_stored(tmp_path):
    rig = rig_of(tmp_path)
    leave(rig.root, key(1), body(2))
    rig.store_.objects[key(1)] = body(5)

    async def main():
        async with rig.running():
            await rig.done()
            assert rig.store_.objects[key(1)] == body(5)
            assert rig.metrics.puts_already_stored == 1

    asyncio.run(main())


def test_a_segment_of_the_backlog_is_put_as_its_sound_lines(tmp_path):
    rig = rig_of(tmp_path)
    rig.metrics.books.recovered(4, Place.BACKLOG)
    rig.journal.keep(key(3), lines(4) + b'{"ts":1,"body":"to', 4)

    async def main():
        async with rig.running():
            await rig.done()
            assert bodies(rig.store_.objects[key(3)]) == ["0", "1", "2", "3"]
            assert list(rig.store_.objects) == [key(3)], "a torn tail is not quarantined"
            assert (rig.metrics.books.events_stored, rig.metrics.books.events_dropped[DropReason.CORRUPT]) == (4, 0)

    asyncio.run(main())


def damaged(kind):
    whole = body(2000)
    if kind == "truncated":
        return whole[: len(whole) * 2 // 3], 2000
    if kind == "garbage":
        return b"this was never gzip", 0
    if kind == "garbage in the middle":
        middle = len(whole) // 2
        return whole[:middle] + bytes(64) + whole[middle + 64 :], 2000
    if kind == "bad line":
        return codec.encode(lines(10) + b"{not json}\n" + lines(10, 10), 21), 21
    assert kind == "empty"
    return b"", 0


@pytest.mark.parametrize("kind", ["truncated", "garbage", "garbage in the middle", "bad line", "empty"])
def test_a_corrupt_file_is_salvaged_and_quarantined_and_never_stops_the_queue(tmp_path, kind):
    data, counted = damaged(kind)
    rig = rig_of(tmp_path)
    leave(rig.root, key(1), data)
    leave(rig.root, key(2), body(3))

    async def main():
        async with rig.running():
            await rig.done()
            quarantined = key(1, prefix="raw_dlq")
            assert rig.store_.objects[quarantined] == data
            assert rig.store_.objects[key(2)] == body(3)
            salvaged = bodies(rig.store_.objects[key(1)]) if key(1) in rig.store_.objects else []
            assert len(salvaged) == {"bad line": 20, "garbage": 0, "empty": 0}.get(kind, len(salvaged))
            if counted == 2000:
                assert 100 < len(salvaged) < 2000
                assert salvaged[:100] == [str(n) for n in range(100)]
            assert rig.metrics.books.events_dropped[DropReason.CORRUPT] == counted - len(salvaged)
            assert rig.metrics.files_quarantined == 1
            assert files(rig.root) == []

    asyncio.run(main())


def test_a_file_without_an_event_puts_nothing(tmp_path):
    rig = rig_of(tmp_path)
    leave(rig.root, key(1), codec.encode(b"", 0))

    async def main():
        async with rig.running():
            await rig.done()
            assert rig.store_.tries == []

    asyncio.run(main())


def test_a_header_that_counts_too_few_lets_the_lines_in(tmp_path):
    rig = rig_of(tmp_path)
    leave(rig.root, key(1), codec.encode(lines(9), 4))

    async def main():
        async with rig.running():
            await rig.done()
            books = rig.metrics.books
            assert (books.events_recovered, books.events_stored, books.events_dropped.total()) == (9, 9, 0)

    asyncio.run(main())


def test_a_quarantine_that_fails_keeps_the_file_and_is_tried_again(tmp_path):
    rig = rig_of(tmp_path, "ok", "fail")
    leave(rig.root, key(1), damaged("bad line")[0])

    async def main():
        async with rig.running():
            await rig.until(lambda: len(rig.store_.tries) >= 2)
            assert files(rig.root) == [key(1)]
            await rig.done()
            names = [key(1), key(1, prefix="raw_dlq")]
            assert [name for _, name in rig.store_.tries] == names * 2
            assert (rig.metrics.books.events_stored, rig.metrics.books.events_dropped[DropReason.CORRUPT]) == (20, 1)

    asyncio.run(main())


def test_a_file_that_cannot_be_read_is_skipped_and_tried_later(tmp_path):
    rig = rig_of(tmp_path)
    leave(rig.root, key(1), body(2))
    leave(rig.root, key(2), body(3))
    broken = True

    def pread(fd, size, offset):
        # Its head can be read, so that it is lent; the rest cannot.
        if broken and size > codec.HEAD_BYTES and rig.fs.path_of(fd).name.endswith("1.jsonl.gz"):
            raise OSError(errno.EIO, "as told")
        return Disk.pread(rig.fs, fd, size, offset)

    rig.fs.pread = pread

    async def main():
        nonlocal broken
        async with rig.running():
            await rig.until(lambda: rig.metrics.books.events_stored == 3)
            assert rig.dlq.events == 2
            broken = False
            await rig.done()
            assert rig.metrics.books.events_stored == 5

    asyncio.run(main())


def test_a_file_the_store_never_takes_does_not_stop_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr("ingest.delivery.breaker.FIRST_PAUSE", 0.01)
    rig = rig_of(tmp_path)
    rig.store_.refused = {key(1)}
    for n in range(1, 9):
        leave(rig.root, key(n), body(1))

    async def main():
        async with rig.running():
            await rig.until(lambda: files(rig.root) == [key(1)])
            assert rig.metrics.books.events_stored == 7

    asyncio.run(main())


def test_a_segment_with_a_bad_line_is_salvaged_and_quarantined_as_the_lines_it_is(tmp_path):
    rig = rig_of(tmp_path)
    data = lines(3) + b"{bad\n" + lines(2, 3) + b'{"torn'
    rig.metrics.books.recovered(6, Place.BACKLOG)
    rig.journal.keep(key(1), data, 6)

    async def main():
        async with rig.running():
            await rig.done()
            assert bodies(rig.store_.objects[key(1)]) == ["0", "1", "2", "3", "4"]
            name = key(1, prefix="raw_dlq").removesuffix(".gz")
            assert rig.store_.objects[name] == data
            assert rig.store_.metadata[name].instance == "host-fedcba9876543210"
            assert (rig.metrics.books.events_stored, rig.metrics.books.events_dropped[DropReason.CORRUPT]) == (5, 1)

    asyncio.run(main())


def test_a_file_that_vanishes_on_its_way_is_no_failure(tmp_path):
    rig = rig_of(tmp_path)
    gone = leave(rig.root, key(1), body(2))
    leave(rig.root, key(2), body(3))
    # It is opened to be counted, to be lent, and to be put.
    rig.fs.on("open_read", under=gone, nth=3, times=1).call(Path.unlink)

    async def main():
        async with rig.running():
            await rig.done()
            assert (rig.metrics.books.events_stored, rig.metrics.books.events_dropped[DropReason.CORRUPT]) == (3, 2)

    asyncio.run(main())


def test_recovery_pauses_as_long_as_its_put_took(tmp_path):
    rig = rig_of(tmp_path)
    rig.store_.took = 0.04
    for n in range(4):
        leave(rig.root, key(n), body(1))

    async def main():
        async with rig.running():
            began = time.monotonic()
            await rig.done()
            assert time.monotonic() - began >= 4 * 0.04 + 3 * 0.04
            assert rig.store_.most_running == 1

    asyncio.run(main())


def test_recovery_waits_while_batches_wait_but_not_longer_than_its_due(tmp_path, monkeypatch):
    monkeypatch.setattr(recovery, "DUE_AFTER", 0.3)
    rig = rig_of(tmp_path, upload_concurrency=1, upload_queue=100)
    rig.store_.took = 0.02
    for n in range(3):
        leave(rig.root, key(n), body(1))

    async def main():
        async with rig.running():
            rig.submit(*(Batch(n) for n in range(50)))
            await rig.until(lambda: ("create", key(0)) in rig.store_.tries)
            before = rig.store_.tries.index(("create", key(0)))
            assert 5 <= before < 40
            await rig.done()

    asyncio.run(main())


def test_files_nothing_can_be_done_about_are_looked_at_ever_more_seldom(tmp_path, monkeypatch):
    monkeypatch.setattr(recovery, "IDLE_PAUSE", 0.01)
    looked = []
    rig = rig_of(tmp_path)
    leave(rig.root, key(1), body(2))

    def pread(fd, size, offset):
        if size == codec.HEAD_BYTES:
            return Disk.pread(rig.fs, fd, size, offset)
        looked.append(time.monotonic())
        raise OSError(errno.EIO, "as told")

    async def main():
        async with rig.running():
            rig.fs.pread = pread
            await asyncio.sleep(0.6)
            assert len(looked) < 10

    asyncio.run(main())


@pytest.mark.parametrize(("step", "in_vain"), [(Step.STORED, 0.0), (Step.WAITS, 30.0)])
def test_after_a_long_pass_what_came_meanwhile_waits_only_for_what_was_spent_in_vain(step, in_vain):
    """A pass over a long outage's files takes hours: those that came in meanwhile must not wait as long again."""
    steps = [step] * 3 + [Step.NOTHING]
    now = 0.0
    naps = []

    class Carrier:
        aside = Aside(lambda: now)
        scanning = False

        async def step(self):
            nonlocal now
            now += 10.0
            return steps.pop(0)

    async def nap(seconds, *, whole=False):
        nonlocal now
        assert whole
        now += seconds
        naps.append(seconds)
        if not steps:
            course.enter(Phase.DISK_ONLY)

    course = Course()
    recovering = recovery.Recovery(
        Carrier(), Breaker(lambda: now, lambda _: None), course, on_stored=lambda: None, clock=lambda: now
    )
    recovering._nap = nap
    asyncio.run(recovering.run())
    assert naps[-1] == max(in_vain, recovery.IDLE_PAUSE)
    assert recovering.ended


def test_a_file_that_is_larger_than_any_of_ours_is_not_read_and_stops_nothing(tmp_path, monkeypatch):
    """A hole of terabytes costs no disk, and would cost all memory."""
    monkeypatch.setattr(reading, "MOST_BYTES", 4000)
    rig = rig_of(tmp_path)
    os.truncate(leave(rig.root, key(1), body(5)), 4001)
    leave(rig.root, key(2), body(3))

    async def main():
        async with rig.running():
            await rig.until(lambda: key(2) in rig.store_.objects)
            await rig.until(lambda: files(rig.root) == [key(1)])
            assert {name for _, name in rig.store_.tries} == {key(2)}

    with capture_logs() as logs:
        asyncio.run(main())
    assert [told["key"] for told in logs if told["event"] == "recovery_file_unreadable"] == [key(1)]
