"""What tests of dead-letter queue, recovery and upload share: files of an earlier run, a disk and a store that fail.

`Bench` has a `Disk` that fails as it is told. `Store` does what its script says and counts.
`Books` looks at every turn of the event loop whether the books balance.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from ingest.config import settings as config
from ingest.disk.errors import StorageError
from ingest.disk.lane import Lane
from ingest.disk.slots import Slot
from ingest.format import codec
from ingest.ledger import FOLDER as LEDGER
from ingest.spool.places import Copy
from ingest.spool.spool import Spool
from ingest.spool.waiting import no_note
from ingest.store import Refusal
from ingest.telemetry import Place
from ingest.telemetry.metrics import Metrics
from tests.stand_ins.disk import Disk

if TYPE_CHECKING:
    from pathlib import Path

OWN = "0123456789abcdef"
OTHER = "fedcba9876543210"
HOUR = "dt=2025-12-02/hr=14"


def settings(tmp_path, **variables):
    environ = {"DLQ_DIR": str(tmp_path / "dlq"), "STORE_DIR": str(tmp_path / "objects"), "DISK_RESERVE": "0"}
    return config.load(environ | {name.upper(): str(value) for name, value in variables.items()})


def key(sequence, *, token=OTHER, hour=HOUR, prefix="raw", unix=1764684000):
    return f"{prefix}/{hour}/{unix}_host-{token}_{sequence:010d}.jsonl.gz"


def lines(events, start=0):
    return b"".join(b'{"ts":%d,"body":"%d"}\n' % (1764684000 + n, n) for n in range(start, start + events))


def body(events, start=0):
    return codec.encode(lines(events, start), events)


def leave(slot: Path, name: str, data: bytes) -> Path:
    """Put a file where an earlier run would have left it."""
    path = slot / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def bodies(data: bytes) -> list[str]:
    return [json.loads(line).get("body") for line in gzip.decompress(data).splitlines()]


def files(folder: Path) -> list[str]:
    """Every file below a folder but the locks, the ledgers and the manifests, relative to it."""
    found = [
        os.path.join(at, name)
        for at, _, names in os.walk(folder)
        if os.path.basename(at) != LEDGER and "raw_manifest" not in at
        for name in names
        if name != "lock"
    ]
    return sorted(os.path.relpath(path, folder) for path in found)


class Store:
    """A store in memory. `script` yields one word a call: ok, fail, hang, lose (stored, and the answer lost).

    Keys in `refused` fail always. Keys below a prefix in `denied` get the answer of a store that does not let us.
    """

    def __init__(self, *script, then="ok"):
        self.objects = {}
        self.metadata = {}
        self.tries = []
        self.running = 0
        self.most_running = 0
        self.took = 0.0
        self.then = then
        self.refused = set()
        self.denied = set()
        self.answers = {"409": 409, "412": 412}
        self._script = list(script)

    address = "memory"

    async def prepare(self):
        pass

    async def put(self, key, body, metadata):
        await self._run("put", key, body, metadata)

    async def create(self, key, body, metadata):
        return await self._run("create", key, body, metadata)

    async def _run(self, operation, key, body, metadata):
        self.tries.append((operation, key))
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            await asyncio.sleep(self.took)
            word = self._script.pop(0) if self._script else self.then
            if key in self.refused:
                word = "fail"
            if key.partition("/dt=")[0] in self.denied:
                cause = {"error": "AccessDenied", "code": "AccessDenied", "status": 403}
                raise Refusal(operation, key, "not allowed", transient=False, cause=cause)
            if word in self.answers:
                raise StorageError(operation, key, "as told", transient=True, cause={"status": self.answers[word]})
            if word == "hang":
                await asyncio.Event().wait()
            if word == "fail":
                raise StorageError(operation, key, "as told", transient=True)
            created = operation == "put" or key not in self.objects
            if created:
                self.objects[key] = body
                self.metadata[key] = metadata
            if word == "lose":
                raise StorageError(operation, key, "the answer was lost", transient=True)
            return created
        finally:
            self.running -= 1

    def keys(self, prefix="raw/"):
        return sorted(key for key in self.objects if key.startswith(prefix))

    def stored(self, prefix="raw/"):
        """Every event's body, of all objects."""
        return [event for key in self.keys(prefix) for event in bodies(self.objects[key])]


class Books:
    """Fails when the books were out of balance after any turn of the loop; it causes no turn of its own."""

    def __init__(self, metrics):
        self.metrics = metrics
        self.turns = 0
        self._problem = None
        self._turn = None

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        self._turn = loop._run_once
        loop._run_once = self._run_once
        return self

    async def __aexit__(self, *error):
        del asyncio.get_running_loop()._run_once
        assert self.turns, "no turn was looked at"
        if self._problem is not None:
            raise self._problem
        assert self.metrics.books.unaccounted() == 0

    def _run_once(self):
        self._turn()
        self.turns += 1
        if self._problem is None:
            try:
                assert self.metrics.books.unaccounted() == 0, self.metrics
                assert self.metrics.books.differing() == {}, self.metrics
            except AssertionError as problem:
                self._problem = problem


class Elsewhere:
    """Places in which there is what a test says; by default nothing."""

    def __init__(self, segment=Copy.NOT_THERE, dead_letter=Copy.NOT_THERE):
        self.answers = {"segment": segment, "dead_letter": dead_letter}
        self.asked = []
        self.gone = set()

    def settled(self, key):
        self.gone.add(key)

    def is_settled(self, key):
        return key in self.gone

    async def segment(self, key):
        self.asked.append(key)
        return self.answers["segment"]

    async def dead_letter(self, key, but=()):
        self.asked.append((key, but))
        return self.answers["dead_letter"]


class Bench:
    """A dead-letter queue over a slot in a temporary directory."""

    def __init__(self, tmp_path, fs=None, **variables):
        self.backlog_bytes = variables.pop("backlog_bytes", lambda: 0)
        self.places = variables.pop("places", None) or Elsewhere()
        self.salvages = variables.pop("salvages", False)
        self.wait = variables.pop("wait", 10.0)
        self.settings = settings(tmp_path, **variables)
        self.fs = fs or Disk()
        self.metrics = Metrics()
        self.executor = ThreadPoolExecutor(2)
        self.lane = Lane("dlq")
        self.slot = Slot.take_first_free(self.fs, self.settings.dlq_dir)
        self.root = self.slot.path
        self.slots = [self.slot]
        self.dlq = None
        self.uploader = None
        self.saving = 0
        """Events that `save` has accepted and that are not on the disk yet."""
        self.slept = []
        self.note = no_note

    async def _sleep(self, seconds):
        self.slept.append(seconds)
        await asyncio.sleep(0)

    @asynccontextmanager
    async def open(self, *, scan=True):
        self.dlq = Spool(
            self.settings,
            self.fs,
            self.slots,
            self.metrics,
            self.lane,
            self.executor,
            self.places,
            token=OWN,
            backlog_bytes=self.backlog_bytes,
            note=self.note,
            salvages=self.salvages,
            wait=self.wait,
            sleep=self._sleep,
        )
        books = self.metrics.books
        books.ask(Place.DLQ, lambda: self.dlq.events)
        books.ask(Place.QUEUE, lambda: self.saving + (self.uploader.queue.events if self.uploader else 0))
        try:
            async with Books(self.metrics):
                if scan:
                    await self.dlq.scan()
                yield self.dlq
        finally:
            self.dlq.close()
            self.lane.abandon()
            self.executor.shutdown()

    async def save(self, sequence, events=3, **how):
        """Save a batch of this run; the books see it accepted first."""
        self.metrics.books.accepted(events, Place.QUEUE)
        self.saving += events
        name = key(sequence, token=OWN, **how)
        await self.dlq.save(name, body(events), events)
        self.metrics.books.moved(events, Place.QUEUE, Place.DLQ)
        self.saving -= events
        return name

    async def store(self, file):
        """What recovery does when all goes well."""
        async with file:
            self.metrics.books.stored(file.events, Place.DLQ)
            file.settle()

    async def all_keys(self):
        """One whole pass, after the one that is under way; every file is deferred."""
        while (file := await self.dlq.next()) is not None:
            await self.dlq.take_back(file)
        found = []
        while (file := await self.dlq.next()) is not None:
            found.append(file.key)
            await self.dlq.take_back(file)
        return found
