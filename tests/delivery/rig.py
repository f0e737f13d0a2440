"""An uploader with all that belongs to it, over a real dead-letter queue and a store that does what it is told to.

The books are looked at in every turn of the event loop (`Books`); a batch's buffer that is read after it was given
back raises.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from ingest.delivery.drain import Drain
from ingest.delivery.phase import Phase
from ingest.delivery.upload import Uploader
from ingest.disk.filesystem import Filesystem
from ingest.disk.lane import Lane
from ingest.spool.reading import Reading
from ingest.spool.waiting import KeyedFile, Letter, Whereabouts
from ingest.telemetry import Budget, Place
from tests.stand_ins.letters import OWN, Bench, Store, files, key, leave, lines

if TYPE_CHECKING:
    from pathlib import Path


class Left(NamedTuple):
    """What a drain leaves behind: on disk, or (`lost`) in memory alone."""

    dlq_files: int
    dlq_events: int
    backlog_files: int
    backlog_events: int
    lost_batches: int
    lost_events: int


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

    def release(self, batch, line=b""):
        assert batch.key not in self.released
        assert not line or line.startswith(batch.key.encode())
        self.released.append(batch.key)

    def retain(self, batch):
        if not self.has_segments:
            return False
        assert batch.key not in self.waiting
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
        return await Reading(Filesystem(), self.lane, None, 5).segment(letter)

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
        self.budget = Budget(self.settings.max_buffer_bytes)
        self.journal = Journal(tmp_path / "journal", has_segments=has_segments)
        self.metrics.books.ask(Place.BACKLOG, lambda: self.journal.events)
        self.clock = time.monotonic
        self.now = lambda: 1764684000.0
        self.uploader = None
        self.rooms = 0
        self.skip = None

    @asynccontextmanager
    async def running(self, *, scan=True, fast=True, recovers=True):
        async with self.open(scan=scan) as dlq:
            self.skip = asyncio.Event()
            self.uploader = Uploader(
                self.settings,
                self.store_,
                dlq,
                self.journal,
                self.journal,
                self.metrics,
                self.budget,
                self.executor,
                on_room=self._room,
                clock=self.clock,
                now=self.now,
                sleep=(lambda seconds: asyncio.sleep(min(seconds, 0.01))) if fast else asyncio.sleep,
            )
            if not recovers:
                self.uploader.recovery.run = self._recover_nothing
            task = asyncio.ensure_future(self.uploader.run())
            try:
                yield self.uploader
                if not task.done() and self.uploader.course.phase is not Phase.OVER:
                    await self.drain(2)
                await asyncio.wait_for(task, 20)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def drain(self, seconds):
        """Drain as the collector does, and return what stays behind; `skip` is the second signal."""
        await Drain(self.uploader, clock=time.monotonic).run(time.monotonic() + seconds, self.skip or asyncio.Event())
        dlq, journal, queue = self.dlq, self.journal, self.uploader.queue
        return Left(dlq.files, dlq.events, journal.files, journal.events, len(queue.batches), queue.events)

    async def _recover_nothing(self):
        self.uploader.recovery.ended = True

    def _room(self):
        self.rooms += 1

    def submit(self, *batches):
        for batch in batches:
            self.metrics.books.accepted(batch.events)
            self.budget.batches += batch.size
            self.uploader.submit(batch)

    async def until(self, condition, seconds=20.0):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, (self.metrics, self.store_.tries)
            await asyncio.sleep(0.002)

    async def done(self, seconds=20.0):
        """Wait until everything is stored or dropped, and off the disk."""
        await self.until(lambda: not (self.uploader.queue.batches or self.dlq.files or self.journal.files), seconds)
        await self.until(lambda: not files(self.root))


def rig_of(tmp_path, *script, then="ok", **how):
    return Rig(tmp_path, Store(*script, then=then), **how)
