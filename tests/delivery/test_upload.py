"""Upload and recovery over a real dead-letter queue, and a store that does what it is told to.

The books are looked at in every turn of the event loop (`Books`); a batch's buffer that is read after it was given
back raises.
"""

from __future__ import annotations

import asyncio
import errno
import random
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ingest.delivery import recovery, upload
from ingest.delivery.breaker import State
from ingest.delivery.upload import Uploader
from ingest.disk.filesystem import Filesystem
from ingest.disk.lane import Lane
from ingest.format import codec
from ingest.spool.reading import lines_contents
from ingest.spool.waiting import KeyedFile, Letter, Whereabouts
from ingest.telemetry import BreakerState, DropReason, Place
from tests.stand_ins.disk import Disk
from tests.stand_ins.letters import OWN, Bench, Store, bodies, body, files, key, leave, lines


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(recovery, "IDLE_PAUSE", 0.05)
    monkeypatch.setattr(upload, "KEEP_PAUSE", 0.05)


class Batch:
    """A sealed batch. `given_back` counts; a view taken after that raises, and one that is still read shows."""

    def __init__(self, sequence, events=3, start=None, **how):
        self.key = key(sequence, token=OWN, **how)
        self.written = lines(events, sequence * 100 if start is None else start)
        self.data = bytearray(self.written)
        self.size = len(self.data)
        self.events = events
        self.first_ts, self.last_ts = 1764684000, 1764684000 + events
        self.given_back = 0
        self._window = memoryview(self.data)

    def view(self):
        assert not self.given_back
        return self._window[: self.size]

    def release_buffer(self):
        self.given_back += 1
        assert self.given_back == 1
        self._window.release()
        self.data[:] = b"\0" * self.size  # whoever still reads it reads rubbish


class Journal:
    """Segments as `journal` and `backlog` keep them, in memory but for the files that recovery reads."""

    place = Place.BACKLOG

    def __init__(self, folder: Path, *, has_segments=True):
        self.folder = folder
        self.has_segments = has_segments
        self.released = []
        self.kept = []
        self.waiting = {}
        self.lent = set()
        self.events = self.files = self.bytes = 0
        self.scanning = False
        self.lane = Lane("journal")
        self._pass = None

    def release(self, batch):
        assert batch.key not in self.released
        self.released.append(batch.key)

    def retain(self, batch):
        if not self.has_segments:
            return False
        self.keep(batch.key, batch.written, batch.events)
        self.kept.append((batch.key, batch.events))
        return True

    def keep(self, name, data, events):
        path = leave(self.folder, name.removesuffix(".gz"), data)
        self.waiting[name] = KeyedFile(name, path, len(data), events)
        self.events += events
        self.files += 1

    async def next(self):
        if self._pass is None:
            self._pass = sorted(self.waiting)
        while self._pass:
            name = self._pass.pop(0)
            if name in self.waiting and name not in self.lent:
                return self.lend(name)
        self._pass = None
        return None

    async def find(self, name):
        if name in self.lent or name not in self.waiting:
            return Whereabouts.NOT_THERE
        return self.lend(name)

    def lend(self, name):
        self.lent.add(name)
        file = self.waiting[name]
        return Letter(name, file.path, file.size, file.events, self)

    async def contents(self, letter):
        return await lines_contents(Filesystem(), self.lane, None, letter, within=5)

    async def original(self, letter):
        return letter.path.read_bytes()

    def settle(self, letter):
        del self.waiting[letter.key]
        self.events -= letter.events
        self.files -= 1

    async def take_back(self, letter):
        self.lent.discard(letter.key)
        if letter.settled:
            letter.path.unlink()
        await asyncio.sleep(0)


class Rig(Bench):
    """An uploader with all that belongs to it."""

    def __init__(self, tmp_path, store, *, has_segments=True, **variables):
        variables.setdefault("s3_timeout", "200ms")
        super().__init__(tmp_path, **variables)
        self.store_ = store
        self.journal = Journal(tmp_path / "journal", has_segments=has_segments)
        self.metrics.books.ask(Place.BACKLOG, lambda: self.journal.events)
        self.clock = time.monotonic
        self.now = lambda: 1764684000.0
        self.uploader = None
        self.rooms = 0
        self.skip = None

    @asynccontextmanager
    async def running(self, *, scan=True, fast=True):
        async with self.open(scan=scan) as dlq:
            self.skip = asyncio.Event()
            self.uploader = Uploader(
                self.settings,
                self.store_,
                dlq,
                self.journal,
                self.journal,
                self.metrics,
                self.executor,
                on_room=self._room,
                clock=self.clock,
                now=self.now,
                sleep=(lambda seconds: asyncio.sleep(min(seconds, 0.01))) if fast else asyncio.sleep,
            )
            task = asyncio.ensure_future(self.uploader.run())
            try:
                yield self.uploader
                if not task.done() and not self.uploader._closed:
                    await self.uploader.drain(time.monotonic() + 2, self.skip)
                await asyncio.wait_for(task, 5)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def _room(self):
        self.rooms += 1

    def submit(self, *batches):
        for batch in batches:
            self.metrics.books.accepted(batch.events)
            self.uploader.submit(batch)

    async def until(self, condition, seconds=5.0):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, (self.metrics, self.store_.tries)
            await asyncio.sleep(0.002)

    async def done(self, seconds=5.0):
        """Wait until everything is stored or dropped, and off the disk."""
        await self.until(lambda: not (self.uploader.pending_batches or self.dlq.files or self.journal.files), seconds)
        await self.until(lambda: not files(self.root))


def rig_of(tmp_path, *script, then="ok", **how):
    return Rig(tmp_path, Store(*script, then=then), **how)


# ------------------------------------------------------------------------------------------------------ the store


def test_a_batch_is_put_under_its_key_with_what_is_known_of_it(tmp_path):
    rig = rig_of(tmp_path)
    batch = Batch(1, 5)
    expected = codec.encode(bytes(batch.data), 5)

    async def main():
        async with rig.running() as uploader:
            rig.submit(batch)
            assert uploader.pending_events == 5
            assert uploader.pending_bytes == batch.size
            await rig.done()
            assert rig.store_.tries == [("put", batch.key)]
            assert rig.store_.objects == {batch.key: expected}
            metadata = rig.store_.metadata[batch.key]
            assert (metadata.events, metadata.first_ts, metadata.last_ts) == (5, batch.first_ts, batch.last_ts)
            assert metadata.instance == f"host-{OWN}"
            assert rig.journal.released == [batch.key]
            assert (uploader.pending_events, uploader.pending_bytes, uploader.pending_batches) == (0, 0, 0)
            assert batch.given_back == 1
            assert rig.metrics.books.events_stored == 5

    asyncio.run(main())


def test_no_more_puts_run_at_once_than_upload_concurrency(tmp_path):
    rig = rig_of(tmp_path, upload_concurrency=3, upload_queue=50)
    rig.store_.took = 0.02
    for n in range(20):
        leave(rig.root, key(n), body(1))

    async def main():
        async with rig.running():
            rig.submit(*(Batch(n) for n in range(20)))
            await rig.done()
            assert rig.store_.most_running == 3

    asyncio.run(main())


def test_a_failed_try_is_repeated_and_the_batch_stored_from_memory(tmp_path):
    rig = rig_of(tmp_path, "fail", s3_app_retries=2)

    async def main():
        async with rig.running():
            rig.submit(Batch(1))
            await rig.done()
            assert rig.store_.tries == [("put", key(1, token=OWN))] * 2
            assert rig.metrics.put_errors.total() == 1
            assert rig.metrics.enqueued == 0

    asyncio.run(main())


@pytest.mark.parametrize("tries", [1, 3])
def test_after_s3_app_retries_tries_the_batch_goes_to_the_dlq_and_from_there_to_the_store(tmp_path, tries, monkeypatch):
    monkeypatch.setattr("ingest.delivery.breaker.FAILURES_TO_OPEN", 100)
    rig = rig_of(tmp_path, *["fail"] * tries, s3_app_retries=tries)
    batch = Batch(1, 4)

    async def main():
        async with rig.running():
            rig.submit(batch)
            await rig.until(lambda: rig.metrics.enqueued == 4)
            await rig.done()
            assert rig.store_.tries == [("put", batch.key)] * tries + [("create", batch.key)]
            assert rig.metrics.reuploaded == 4
            assert rig.store_.stored() == ["100", "101", "102", "103"]
            assert files(rig.root) == []

    asyncio.run(main())


def test_a_store_that_hangs_ends_at_s3_timeout(tmp_path):
    rig = rig_of(tmp_path, "hang", "hang", s3_timeout="30ms", s3_app_retries=2)

    async def main():
        async with rig.running():
            began = time.monotonic()
            rig.submit(Batch(1))
            await rig.until(lambda: rig.metrics.enqueued == 3)
            assert 0.06 <= time.monotonic() - began < 1.0
            assert rig.metrics.put_errors.total() == 2

    asyncio.run(main())


def test_the_backoff_is_full_jitter_and_grows(tmp_path, monkeypatch):
    monkeypatch.setattr("ingest.delivery.breaker.FAILURES_TO_OPEN", 100)
    rig = rig_of(tmp_path, *["fail"] * 8, s3_app_retries=9)
    drawn = []

    async def main():
        async with rig.running() as uploader:
            uploader._draw = lambda low, high: drawn.append((low, high)) or 0.0
            rig.submit(Batch(1))
            await rig.until(lambda: rig.metrics.books.events_stored == 3)

    asyncio.run(main())
    assert {low for low, _ in drawn} == {0.0}
    highs = [high for _, high in drawn]
    assert highs == sorted(highs)
    assert highs[-1] == highs[-2] == upload.BACKOFF_CAP


def test_an_answer_that_was_lost_stores_nothing_twice(tmp_path):
    rig = rig_of(tmp_path, "lose", "lose", s3_app_retries=2)

    async def main():
        async with rig.running():
            rig.submit(Batch(1, 4))
            await rig.done()
            assert rig.store_.stored() == ["100", "101", "102", "103"]
            assert [operation for operation, _ in rig.store_.tries] == ["put", "put", "create"]
            assert rig.metrics.puts_already_stored == 1
            assert rig.metrics.books.events_stored == 4

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------ the queue


def test_submit_never_waits_and_a_full_queue_spills_its_oldest(tmp_path):
    rig = rig_of(tmp_path, then="hang", upload_concurrency=1, upload_queue=2, s3_timeout="60s")

    async def main():
        async with rig.running() as uploader:
            rig.submit(Batch(1))
            await rig.until(lambda: rig.store_.tries)
            rig.submit(*(Batch(n) for n in range(2, 6)))
            await rig.until(lambda: rig.dlq.files == 2)
            assert uploader.queue_length == 2
            assert uploader.has_room
            assert [n for n in range(1, 6) if key(n, token=OWN) in files(rig.root)] == [2, 3]
            assert rig.metrics.batches_spilled == 2
            rig.skip.set()

    asyncio.run(main())


def test_the_workers_that_wait_make_room(tmp_path):
    rig = rig_of(tmp_path, upload_concurrency=2, upload_queue=1)

    async def main():
        async with rig.running():
            await asyncio.sleep(0.01)
            rig.submit(Batch(1), Batch(2), Batch(3))
            await rig.done()
            assert rig.metrics.batches_spilled == 0

    asyncio.run(main())


def test_a_full_dlq_that_rejects_keeps_batches_in_their_places_until_the_store_takes_them(tmp_path):
    rig = rig_of(
        tmp_path, "hang", "hang", upload_concurrency=1, upload_queue=2, s3_timeout="60ms", dlq_max_size_bytes=10
    )
    batches = [Batch(n) for n in range(1, 6)]

    async def main():
        async with rig.running() as uploader:
            rig.submit(*batches)
            await rig.until(lambda: uploader._disk_refuses and uploader.queue_length >= 3)
            assert not uploader.has_room
            assert not rig.rooms
            assert rig.dlq.files == rig.journal.files == 0
            numbers = [upload.number for upload in uploader._queue]
            assert numbers == sorted(numbers)
            await rig.done()
            assert uploader.has_room
            assert rig.rooms
            assert len(rig.store_.stored()) == 15
            assert {operation for operation, _ in rig.store_.tries} == {"put"}

    asyncio.run(main())


def test_without_a_store_and_a_dlq_nothing_spins(tmp_path, monkeypatch):
    monkeypatch.setattr(upload, "KEEP_PAUSE", 1.0)
    rig = rig_of(tmp_path, then="fail", upload_queue=2, dlq_max_size_bytes=10, has_segments=False)

    async def main():
        async with rig.running(fast=False) as uploader:
            rig.submit(Batch(1), Batch(2))
            await rig.until(lambda: rig.metrics.save_errors >= 2)
            errors = rig.metrics.save_errors
            await asyncio.sleep(0.3)
            assert rig.metrics.save_errors <= errors + 2
            assert uploader.pending_batches == 2

    asyncio.run(main())


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_leaves_the_batch_to_its_segment(tmp_path, number):
    rig = rig_of(tmp_path, "fail", "fail")
    rig.fs.on("write").fail(number)

    async def main():
        async with rig.running() as uploader:
            rig.submit(Batch(1, 4))
            await rig.until(lambda: rig.journal.kept)
            assert rig.journal.kept == [(key(1, token=OWN), 4)]
            assert uploader.pending_events == 0
            assert rig.journal.released == []
            assert uploader.has_room
            await rig.done()
            assert rig.store_.tries[-1] == ("create", key(1, token=OWN))
            assert len(rig.store_.stored()) == 4

    asyncio.run(main())


def test_a_disk_that_fails_and_no_segment_keeps_the_batch_in_its_place(tmp_path):
    rig = rig_of(tmp_path, "fail", "fail", has_segments=False, upload_queue=1, upload_concurrency=1)
    rig.fs.on("write").fail(errno.EIO)

    async def main():
        async with rig.running() as uploader:
            rig.submit(Batch(1, 4), Batch(2, 4))
            await rig.until(lambda: uploader._disk_refuses)
            assert uploader.pending_events == 8
            assert not uploader.has_room
            await rig.done()
            assert rig.metrics.books.events_stored == 8
            assert {operation for operation, _ in rig.store_.tries} == {"put"}

    asyncio.run(main())


def test_a_disk_that_takes_again_is_noticed(tmp_path):
    rig = rig_of(tmp_path, then="fail", has_segments=False, upload_queue=1, upload_concurrency=1)
    rig.fs.on("write").fail(errno.EIO)

    async def main():
        async with rig.running() as uploader:
            rig.submit(*(Batch(n) for n in range(4)))
            await rig.until(lambda: uploader._disk_refuses)
            rig.fs.heal()
            await rig.until(lambda: rig.dlq.files == 4)
            assert uploader.has_room

    asyncio.run(main())


def test_a_cancelled_upload_gives_the_buffer_back_only_when_the_executor_has_read_it(tmp_path, monkeypatch):
    import threading

    gate, reading, read = threading.Event(), threading.Event(), []
    real = codec.encode

    def encode(data, events):
        reading.set()
        gate.wait(10)
        read.append(bytes(data))
        return real(data, events)

    monkeypatch.setattr(upload.codec, "encode", encode)
    rig = rig_of(tmp_path)
    batch = Batch(1)
    whole = bytes(batch.data)

    async def main():
        async with rig.open():
            uploader = Uploader(rig.settings, rig.store_, rig.dlq, rig.journal, rig.journal, rig.metrics, rig.executor)
            task = asyncio.ensure_future(uploader.run())
            await asyncio.sleep(0)
            rig.uploader = uploader
            rig.submit(batch)
            await asyncio.to_thread(reading.wait)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert batch.given_back == 0
            gate.set()
            await rig.until(lambda: batch.given_back == 1)
            assert read == [whole]

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------ the breaker


def test_while_the_breaker_is_open_batches_go_to_the_dlq_without_a_try(tmp_path):
    rig = rig_of(tmp_path, then="fail", s3_app_retries=3)

    async def main():
        async with rig.running() as uploader:
            rig.submit(Batch(1))
            await rig.until(lambda: uploader.attempts.breaker.state is State.OPEN)
            assert rig.metrics.breaker is BreakerState.OPEN
            tried = len(rig.store_.tries)
            rig.submit(Batch(2), Batch(3))
            await rig.until(lambda: rig.dlq.files == 3)
            assert len(rig.store_.tries) == tried == 3

    asyncio.run(main())


def test_the_next_batch_is_the_probe_when_one_is_due(tmp_path):
    rig = rig_of(tmp_path, "fail", "fail", "fail", then="ok", s3_app_retries=3)
    offset = 0.0
    rig.clock = lambda: time.monotonic() + offset

    async def main():
        nonlocal offset
        async with rig.running() as uploader:
            rig.submit(Batch(1))
            await rig.until(lambda: rig.dlq.files == 1)
            offset = 5.0
            rig.submit(Batch(2))
            await rig.until(lambda: key(2, token=OWN) in rig.store_.objects)
            assert ("put", key(2, token=OWN)) in rig.store_.tries
            assert uploader.attempts.breaker.state is State.CLOSED
            await rig.done()

    asyncio.run(main())


def test_when_idle_a_dlq_file_is_the_probe(tmp_path, monkeypatch):
    monkeypatch.setattr("ingest.delivery.breaker.FIRST_PAUSE", 0.05)
    rig = rig_of(tmp_path, "fail", "fail", "fail", s3_app_retries=3)

    async def main():
        async with rig.running() as uploader:
            rig.submit(Batch(1))
            await rig.until(lambda: rig.metrics.enqueued == 3)
            await rig.done()
            assert rig.store_.tries[3] == ("create", key(1, token=OWN))
            assert uploader.attempts.breaker.state is State.CLOSED

    asyncio.run(main())


def test_one_probe_fails_and_the_rest_of_a_batch_s_tries_is_not_made(tmp_path):
    rig = rig_of(tmp_path, then="fail", s3_app_retries=3)
    offset = 0.0
    rig.clock = lambda: time.monotonic() + offset

    async def main():
        nonlocal offset
        async with rig.running() as uploader:
            rig.submit(Batch(1))
            await rig.until(lambda: rig.dlq.files == 1)
            uploader.recovery.stop()
            await rig.until(lambda: uploader.recovery.ended)
            offset = 100.0
            tried = len(rig.store_.tries)
            rig.submit(Batch(2))
            await rig.until(lambda: rig.dlq.files == 2)
            assert len(rig.store_.tries) == tried + 1

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------ recovery


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


# Of the two copies of a key in backlog and DLQ (promise 7).


def rivals(tmp_path, segment, letter):
    rig = rig_of(tmp_path)
    rig.metrics.books.recovered(len(segment.splitlines()), Place.BACKLOG)
    rig.journal.keep(key(1), segment, len(segment.splitlines()))
    leave(rig.root, key(1), letter)

    async def main():
        async with rig.running():
            await rig.done()
            assert files(rig.root) == []
            return bodies(rig.store_.objects[key(1)])

    return asyncio.run(main()), rig


def test_the_dlq_file_is_put_if_it_verifies(tmp_path):
    stored, rig = rivals(tmp_path, lines(5), body(5))
    assert stored == ["0", "1", "2", "3", "4"]
    assert rig.store_.objects[key(1)] == body(5)
    assert len(rig.store_.tries) == 1
    assert rig.metrics.books.events_dropped[DropReason.CORRUPT] == 0


def test_the_longer_segment_is_put_if_the_dlq_file_is_corrupt(tmp_path):
    whole = body(500)
    stored, rig = rivals(tmp_path, lines(500), whole[: len(whole) // 2])
    assert len(stored) == 500
    assert rig.store_.objects[key(1, prefix="raw_dlq")] == whole[: len(whole) // 2]
    assert rig.metrics.books.events_dropped[DropReason.CORRUPT] == 0


def test_the_longer_dlq_file_is_put_even_if_it_is_corrupt(tmp_path):
    data = codec.encode(lines(30) + b"bad\n", 31)
    stored, _ = rivals(tmp_path, lines(5), data)
    assert len(stored) == 30


def test_the_segment_is_found_also_when_the_corrupt_dlq_file_comes_first(tmp_path):
    whole = body(500)
    rig = rig_of(tmp_path)
    rig.metrics.books.recovered(500, Place.BACKLOG)
    rig.journal.keep(key(1), lines(500), 500)
    leave(rig.root, key(1), whole[: len(whole) // 2])

    async def main():
        async with rig.running() as uploader:
            uploader.recovery._turns = [rig.dlq, rig.journal]
            await rig.done()
            assert len(bodies(rig.store_.objects[key(1)])) == 500

    asyncio.run(main())


def test_a_segment_waits_while_the_dlq_file_of_its_key_is_not_counted(tmp_path):
    rig = rig_of(tmp_path)
    rig.metrics.books.recovered(5, Place.BACKLOG)
    rig.journal.keep(key(1), lines(5), 5)
    leave(rig.root, key(1), body(9))

    async def main():
        async with rig.running(scan=False):
            await asyncio.sleep(0.05)
            assert rig.store_.tries == []
            await rig.dlq.scan()
            await rig.done()
            assert len(bodies(rig.store_.objects[key(1)])) == 9

    asyncio.run(main())


# Age.


@pytest.mark.parametrize(("word", "kept"), [("ok", 0), ("fail", 0), ("none", 1)])
def test_an_old_file_expires_only_after_its_put_has_failed(tmp_path, word, kept):
    rig = rig_of(tmp_path, word, dlq_max_age="1h")
    rig.now = lambda: 1764684000.0 + 3601
    leave(rig.root, key(1), body(4))

    async def main():
        async with rig.running(scan=False) as uploader:
            if word == "none":
                uploader.recovery.stop()
                await rig.until(lambda: uploader.recovery.ended)
            await rig.dlq.scan()
            if word == "none":
                await asyncio.sleep(0.05)
                assert len(files(rig.root)) == kept
                return
            await rig.done()
            assert rig.metrics.books.events_dropped[DropReason.EXPIRED] == (4 if word == "fail" else 0)
            assert rig.metrics.files_expired == (1 if word == "fail" else 0)
            assert files(rig.root) == []

    asyncio.run(main())


@pytest.mark.parametrize("age", ["0", "2h"])
def test_a_file_that_is_young_enough_never_expires(tmp_path, age):
    rig = rig_of(tmp_path, "fail", dlq_max_age=age)
    rig.now = lambda: 1764684000.0 + 3601
    leave(rig.root, key(1), body(4))

    async def main():
        async with rig.running():
            await rig.done()
            assert (rig.metrics.books.events_dropped[DropReason.EXPIRED], rig.metrics.books.events_stored) == (0, 4)

    asyncio.run(main())


# Pace.


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


# ------------------------------------------------------------------------------------------------------ drain


def test_a_drain_uploads_the_queue_then_backlog_and_dlq(tmp_path):
    rig = rig_of(tmp_path, upload_queue=20)
    rig.store_.took = 0.005
    for n in range(10):
        leave(rig.root, key(n), body(1))
    rig.metrics.books.recovered(2, Place.BACKLOG)
    rig.journal.keep(key(100), lines(2), 2)

    async def main():
        async with rig.running() as uploader:
            rig.submit(*(Batch(n) for n in range(10)))
            began = time.monotonic()
            left = await uploader.drain(time.monotonic() + 20, rig.skip)
            assert time.monotonic() - began < 5
            assert (left.dlq_files, left.backlog_files, left.lost_batches) == (0, 0, 0)
            assert rig.metrics.books.events_stored == 42

    asyncio.run(main())


@pytest.mark.parametrize("word", ["fail", "hang"])
def test_a_drain_without_a_store_saves_everything_in_the_dlq_in_time(tmp_path, word):
    rig = rig_of(tmp_path, then=word, upload_queue=20, s3_timeout="60s")

    async def main():
        async with rig.running() as uploader:
            rig.submit(*(Batch(n) for n in range(10)))
            began = time.monotonic()
            left = await uploader.drain(began + 1.0, rig.skip)
            assert time.monotonic() - began < 1.0
            assert (left.dlq_files, left.dlq_events, left.lost_batches) == (10, 30, 0)
            assert uploader.pending_batches == 0
            assert len(rig.journal.released) == 10

    asyncio.run(main())


def test_a_second_signal_skips_to_the_dlq(tmp_path):
    rig = rig_of(tmp_path, then="hang", upload_queue=20, s3_timeout="60s")

    async def main():
        async with rig.running() as uploader:
            rig.submit(*(Batch(n) for n in range(5)))
            began = time.monotonic()
            draining = asyncio.ensure_future(uploader.drain(began + 60, rig.skip))
            await asyncio.sleep(0.05)
            assert not draining.done()
            rig.skip.set()
            left = await draining
            assert time.monotonic() - began < 1.0
            assert left.dlq_files == 5
            assert rig.metrics.put_errors.total() == 0, "a put that was given up is no failure of the store"

    asyncio.run(main())


def test_a_second_signal_ends_the_recovery_put_under_way(tmp_path):
    rig = rig_of(tmp_path, then="hang", s3_timeout="60s")
    leave(rig.root, key(1), body(2))

    async def main():
        async with rig.running() as uploader:
            await rig.until(lambda: rig.store_.tries)
            rig.skip.set()
            began = time.monotonic()
            left = await uploader.drain(began + 60, rig.skip)
            assert time.monotonic() - began < 1.0
            assert left.dlq_events == 2

    asyncio.run(main())


def test_a_drain_does_not_circle_over_files_that_nobody_takes(tmp_path):
    rig = rig_of(tmp_path)
    rig.store_.refused = {key(1), key(2)}
    for n in range(6):
        leave(rig.root, key(n), body(1))

    async def main():
        async with rig.running() as uploader:
            began = time.monotonic()
            left = await uploader.drain(began + 20, rig.skip)
            assert time.monotonic() - began < 2
            assert left.dlq_files == 2
            assert rig.metrics.books.events_stored == 4

    asyncio.run(main())


def test_a_full_dlq_leaves_batches_to_their_segments_at_the_end(tmp_path):
    rig = rig_of(tmp_path, then="fail", upload_queue=20, dlq_max_size_bytes=10)

    async def main():
        async with rig.running() as uploader:
            rig.submit(*(Batch(n) for n in range(5)))
            left = await uploader.drain(time.monotonic() + 1, rig.skip)
            assert (left.backlog_files, left.backlog_events, left.lost_batches) == (5, 15, 0)
            assert rig.journal.released == []

    asyncio.run(main())


def test_without_segments_the_end_of_the_process_saves_beyond_the_limit(tmp_path):
    """A limit is a wish; an acknowledged event that is only in memory is lost with the process."""
    rig = rig_of(tmp_path, then="fail", upload_queue=20, dlq_max_size_bytes=10, has_segments=False)

    async def main():
        async with rig.running() as uploader:
            rig.submit(*(Batch(n) for n in range(5)))
            left = await uploader.drain(time.monotonic() + 2, rig.skip)
            assert (left.dlq_files, left.lost_batches) == (5, 0)

    asyncio.run(main())


def test_what_no_disk_takes_is_told(tmp_path):
    rig = rig_of(tmp_path, then="fail", has_segments=False)
    rig.fs.on("write").fail(errno.ENOSPC)

    async def main():
        async with rig.running() as uploader:
            rig.submit(Batch(1), Batch(2))
            left = await uploader.drain(time.monotonic() + 0.5, rig.skip)
            assert (left.lost_batches, left.lost_events) == (2, 6)

    asyncio.run(main())


def test_a_bug_of_ours_ends_the_work_loudly_and_the_drain_still_saves_every_batch(tmp_path):
    rig = rig_of(tmp_path, upload_queue=20, upload_concurrency=1)
    rig.store_.took = 0.02

    async def broken(*_):
        raise RuntimeError("a bug")

    async def main():
        async with rig.open():
            uploader = rig.uploader = Uploader(
                rig.settings, rig.store_, rig.dlq, rig.journal, rig.journal, rig.metrics, rig.executor
            )
            task = asyncio.ensure_future(uploader.run())
            rig.submit(*(Batch(n) for n in range(5)))
            uploader.attempts.make = broken
            with pytest.raises(BaseExceptionGroup):
                await task
            rig.submit(Batch(5))
            began = time.monotonic()
            left = await uploader.drain(began + 20, asyncio.Event())
            assert time.monotonic() - began < 2
            assert (left.dlq_files, left.lost_batches) == (6, 0)

    asyncio.run(main())


def test_b_whatever_a_store_raises_is_a_failed_try_that_the_log_names(tmp_path):
    rig = rig_of(tmp_path, upload_queue=20)
    put, create = rig.store_.put, rig.store_.create

    async def broken(*_):
        raise KeyError("AccessKeyId")

    async def main():
        async with rig.running():
            rig.store_.put = rig.store_.create = broken
            with capture_logs() as logs:
                rig.submit(Batch(1, 5))
                await rig.until(lambda: rig.dlq.files == 1)
            lines = [line for line in logs if line["event"] == "put_failed"]
            assert {line["error"] for line in lines} == {"KeyError: 'AccessKeyId'"}
            rig.store_.put, rig.store_.create = put, create
            await rig.done()
            assert rig.metrics.books.events_stored == 5

    asyncio.run(main())


def test_a_cancelled_run_leaves_every_batch_to_the_drain(tmp_path):
    rig = rig_of(tmp_path, then="hang", s3_timeout="60s", upload_queue=20)

    async def main():
        async with rig.open():
            uploader = rig.uploader = Uploader(
                rig.settings, rig.store_, rig.dlq, rig.journal, rig.journal, rig.metrics, rig.executor
            )
            task = asyncio.ensure_future(uploader.run())
            rig.submit(*(Batch(n) for n in range(5)))
            await rig.until(lambda: len(rig.store_.tries) == 2)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            left = await uploader.drain(time.monotonic() + 20, asyncio.Event())
            assert (left.dlq_files, left.lost_batches) == (5, 0)

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------ all at once


@pytest.mark.parametrize("seed", range(6))
def test_whatever_fails_every_event_is_stored_once_and_the_books_balance_at_every_step(tmp_path, seed, monkeypatch):
    monkeypatch.setattr("ingest.delivery.breaker.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("ingest.delivery.breaker.LONGEST_PAUSE", 0.02)
    chance = random.Random(seed)
    rig = Rig(
        tmp_path,
        Store(*chance.choices(["ok", "fail", "hang", "lose"], [5, 3, 1, 2], k=120)),
        has_segments=seed % 2 == 0,
        s3_timeout="15ms",
        upload_queue=2,
        upload_concurrency=2,
        dlq_max_size_bytes=chance.choice([600, 10_000_000]),
    )
    for n in range(20):
        leave(rig.root, key(n), body(3, 1_000_000 + 10 * n))

    async def main():
        async with rig.running(scan=False):
            scanning = asyncio.ensure_future(rig.dlq.scan())
            for n in range(60):
                rig.submit(Batch(n, 3, 10 * n))
                number = chance.choice([None, None, errno.EIO, errno.ENOSPC])
                operation = chance.choice(["write", "rename", "fsync_dir"])
                rig.fs.heal()
                if number:
                    rig.fs.on(operation).fail(number)
                await asyncio.sleep(chance.choice([0, 0.001, 0.005]))
            rig.fs.heal()
            await scanning
            await rig.done(20)
            stored = rig.store_.stored()
            assert len(stored) == len(set(stored)) == 240
            assert (
                rig.metrics.books.events_stored
                == rig.metrics.books.events_accepted + rig.metrics.books.events_recovered
            )
            assert files(rig.root) == []

    asyncio.run(main())
