"""Looking: what lies in the store for an hour, and what was told of it.

Owns the reads: listings, the first bytes of each object, manifests, and the registry. Promises that nothing is changed;
that a name below `MANIFEST_PREFIX` is told to the judge whether its document can be read or not; that the registry is
listed anew for each hour, before its manifests and those before its objects, so that an object which is stored
meanwhile is one too many at worst, and never missing.

The words of a process that ended a day before the hour are not read, because they are many and say nothing of it. An
hour that is not over by the clock of this machine is open, whatever was told: who starts before its end is not known.

Memory: no more than `AT_ONCE` heads or documents, or with `deep` `OBJECTS_AT_ONCE` objects, are asked for at a time.
One above `LARGE` waits until it is the only large one. A document above `LARGEST_DOCUMENT` is not read, and is one that
cannot be; an object above `LARGEST_OBJECT` is not read, and is no whole one. Lines are inflated piece by piece.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from typing import TYPE_CHECKING, Final

from ingest.format import codec, manifest
from ingest.format.codec import Extent
from ingest.format.keys import partition_of
from ingest.lake.each import each
from ingest.lake.judging import NOT_OVER, Open, Said, Seen, Verdict, judge, told_objects
from ingest.lake.patience import Patient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager

    from ingest.config import Settings
    from ingest.format.manifest import Name
    from ingest.lake.judging import Document
    from ingest.store import Listed, ObjectStore

AT_ONCE: Final = 16
OBJECTS_AT_ONCE: Final = 4
LARGE: Final = 16 << 20
LARGEST_DOCUMENT: Final = 64 << 20
"""Half a million objects of one process in one hour."""
LARGEST_OBJECT: Final = 2 << 30
"""Twice the most that `BATCH_BYTES` takes."""
DAY: Final = 24 * 3600.0
"""More than clocks differ by."""
SETTLED: Final = 10.0
"""Seconds. The clock of a store that tells seconds only has gone on by then, and so does that of its other machines."""
_DAMAGED: Final = Extent(0, 0, 0, is_whole=False)


@dataclass(slots=True)
class _Kept:
    """A word of the registry, as it was read. It stands while its listing stays the same.

    It is final if it was read `SETTLED` after its listing was first seen: an earlier read may be that of a document
    which was written once more within the same second of the store's clock, with the same size.
    """

    said: Said
    size: int
    seen: float
    is_final: bool


class Looking:
    """See the module's text. `say` hears of documents that cannot be read, once of each; `now` dates."""

    def __init__(
        self,
        settings: Settings,
        store: ObjectStore,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] | None = None,
    ) -> None:
        self._settings = settings
        self._store = Patient(store)
        self._say = say
        self._clock = clock
        self._now = now or time.time
        self._registry: dict[str, _Kept] = {}
        self._unread: set[str] = set()
        self._large = asyncio.Lock()

    async def verdict(self, hour: str, *, deep: bool = False) -> Verdict:
        """Look at one hour."""
        prefix, start = self._settings.manifest_prefix, self._start_of(hour)
        is_over = self._now() >= partition_of(int(start), self._settings.partition_tz).end
        since = start - DAY
        words = _since(await self._list(f"{prefix}/{manifest.INSTANCES}/"), since)
        registry = await self._read(words, self._word)
        manifests = await self._read(await self._list(f"{prefix}/{hour}/"), self._said)
        found = await self._store.listing(f"{self._settings.raw_prefix}/{hour}/")
        told = told_objects(said.document for said in manifests.values() if said.document is not None) if deep else {}
        seen = await each(found, OBJECTS_AT_ONCE if deep else AT_ONCE, lambda one: self._see(one, told, deep=deep))
        objects = {listed.key: one for listed, one in zip(found, seen, strict=True)}
        verdict = judge(hour, objects, manifests, registry, start)
        if not is_over:
            verdict.still_open.append(Open("", NOT_OVER))
        return verdict

    async def registry(self) -> dict[Name, Said]:
        """Read the registry, whatever can be read of it."""
        return await self._read(await self._list(f"{self._settings.manifest_prefix}/{manifest.INSTANCES}/"), self._said)

    async def _list(self, prefix: str) -> dict[Name, Listed]:
        named = [
            (manifest.parse_name(self._settings.manifest_prefix, listed.key), listed)
            for listed in await self._store.listing(prefix)
        ]
        return {name: listed for name, listed in named if name is not None}

    async def _read(
        self, names: Mapping[Name, Listed], read: Callable[[Name, Listed], Awaitable[Said]]
    ) -> dict[Name, Said]:
        found = await each(list(names.items()), AT_ONCE, lambda one: read(*one))
        return dict(zip(names, found, strict=True))

    async def _word(self, name: Name, listed: Listed) -> Said:
        """Read a word of the registry, if it is another one than was read before."""
        now = self._clock()
        kept = self._registry.get(listed.key)
        if kept is None or (kept.said.stored, kept.size) != (listed.modified, listed.size):
            kept = _Kept(await self._said(name, listed), listed.size, now, is_final=False)
            self._registry[listed.key] = kept
        elif not kept.is_final:
            kept.said = await self._said(name, listed)
            kept.is_final = now - kept.seen >= SETTLED
        return kept.said

    async def _said(self, name: Name, listed: Listed) -> Said:
        document = None
        if listed.size <= LARGEST_DOCUMENT:
            async with self._alone_if_large(listed):
                document = manifest.read(name, await self._store.get(listed.key))
        if document is None and listed.key not in self._unread:
            self._unread.add(listed.key)
            self._say(f"{listed.key}: it cannot be read: torn, of another name, or of a later version")
        return Said(listed.key, document, listed.modified)

    async def _see(self, listed: Listed, told: Mapping[str, Document], *, deep: bool) -> Seen:
        if not deep:
            return Seen(listed.size, codec.event_count(await self._store.first_bytes(listed.key, codec.HEAD_BYTES)))
        if listed.size > LARGEST_OBJECT:
            events = codec.event_count(await self._store.first_bytes(listed.key, codec.HEAD_BYTES))
            return Seen(listed.size, events, _DAMAGED)
        async with self._alone_if_large(listed):
            body = await self._store.get(listed.key)
            return await asyncio.to_thread(_seen, listed.size, body, told.get(listed.key))

    def _alone_if_large(self, listed: Listed) -> AbstractAsyncContextManager[None]:
        return self._large if listed.size > LARGE else nullcontext()

    def _start_of(self, hour: str) -> float:
        return datetime.strptime(hour, "dt=%Y-%m-%d/hr=%H").replace(tzinfo=self._settings.partition_tz).timestamp()


def _since(words: Mapping[Name, Listed], since: float) -> dict[Name, Listed]:
    """Leave out the words of processes that have ended before `since`."""
    written: dict[str, float] = {}
    for name, listed in words.items():
        written[name.instance] = max(written.get(name.instance, 0.0), listed.modified)
    # An empty document ends nothing; others that cannot be read are not told apart here, because none is read.
    over = _ended(name for name, listed in words.items() if listed.size)
    return {
        name: listed for name, listed in words.items() if name.instance not in over or written[name.instance] >= since
    }


def _ended(names: Iterable[Name]) -> set[str]:
    """Name the processes that have ended by their own word, or by that of whoever recovered each of their slots."""
    places: dict[str, set[str]] = {}
    for name in names:
        if name.kind is manifest.Kind.ENDED:
            place = name.writer.rpartition(".")[2].rstrip("0123456789")
            places.setdefault(name.instance, set()).update((place,) if name.writer else manifest.PLACES)
    return {instance for instance, known in places.items() if known.issuperset(manifest.PLACES)}


def _seen(size: int, body: bytes, told: Document | None) -> Seen:
    """Read an object. One that has as many events as were told has as many bytes of lines; else it may be longer."""
    events = codec.event_count(body[: codec.HEAD_BYTES])
    if events is None:
        return Seen(size, None)
    begin = 0 if told is None else told["size"]
    most = begin if told is not None and told["events"] == events else codec.MOST_INFLATED
    return Seen(size, events, codec.extent(BytesIO(body), begin, events, most))
