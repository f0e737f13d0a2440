"""Looking: what lies in the store for an hour, and what was told of it.

Owns the reads: listings, the first bytes of each object, manifests, and the registry, which is read once. Promises that
nothing is changed; that no more than `AT_ONCE` objects are asked for, and with `deep` held in memory, at a time.
The words of a process that ended a day before the hour are not read, because they are many and say nothing of it. A
document that is none of ours, or of a later version, is told and passed over, so that its process is not taken for
one that closed anything.
"""

from __future__ import annotations

import asyncio
import zlib
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ingest.format import codec, manifest
from ingest.lake.judging import Seen, Verdict, judge
from ingest.lake.patience import Patient

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from ingest.config import Settings
    from ingest.format.manifest import Name
    from ingest.store import ObjectStore

AT_ONCE: Final = 16
DAY: Final = 24 * 3600.0
"""More than clocks differ by."""
T = TypeVar("T")


class Looking:
    """See the module's text. `say` hears of what is passed over."""

    def __init__(self, settings: Settings, store: ObjectStore, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._store = Patient(store)
        self._say = say
        self._registry: dict[Name, dict[str, Any]] | None = None
        self._places = asyncio.Semaphore(AT_ONCE)

    async def verdict(self, hour: str, *, deep: bool = False) -> Verdict:
        """Look at one hour."""
        prefix = self._settings.manifest_prefix
        # What is told is read first: an object that is stored meanwhile is one too many at worst, and never missing.
        if self._registry is None:
            self._registry = await self._documents(f"{prefix}/{manifest.INSTANCES}/", since=self._start_of(hour) - DAY)
        manifests = await self._documents(f"{prefix}/{hour}/")
        found = await self._store.listing(f"{self._settings.raw_prefix}/{hour}/")
        seen = await _each(self._see(listed.key, listed.size, deep=deep) for listed in found)
        objects = {listed.key: one for listed, one in zip(found, seen, strict=True)}
        return judge(hour, objects, manifests, self._registry, tz=self._settings.partition_tz)

    async def registry(self) -> dict[Name, dict[str, Any]]:
        """Read the registry."""
        return await self._documents(f"{self._settings.manifest_prefix}/{manifest.INSTANCES}/")

    async def _documents(self, prefix: str, *, since: float = 0) -> dict[Name, dict[str, Any]]:
        """Read the documents below a prefix, but for those of processes that have ended before `since`."""
        names: dict[str, Name] = {}
        written: dict[str, float] = {}
        for listed in await self._store.listing(prefix):
            name = manifest.parse_name(self._settings.manifest_prefix, listed.key)
            if name is not None:
                names[listed.key] = name
                written[name.instance] = max(written.get(name.instance, 0.0), listed.modified)
        over = {instance for instance in _ended(names.values()) if written[instance] < since}
        names = {key: name for key, name in names.items() if name.instance not in over}
        bodies = await _each(self._get(key) for key in names)
        found = {}
        for (key, name), body in zip(names.items(), bodies, strict=True):
            document = manifest.parse(body)
            if document is None:
                self._say(f"{key}: no document of ours, or of a later version: passed over")
            else:
                found[name] = document
        return found

    async def _see(self, key: str, size: int, *, deep: bool) -> Seen:
        async with self._places:
            if deep:
                body = await self._store.get(key)
                return await asyncio.get_running_loop().run_in_executor(None, _read, size, body)
            return Seen(size, codec.event_count(await self._store.first_bytes(key, codec.HEAD_BYTES)))

    async def _get(self, key: str) -> bytes:
        async with self._places:
            return await self._store.get(key)

    def _start_of(self, hour: str) -> float:
        return datetime.strptime(hour, "dt=%Y-%m-%d/hr=%H").replace(tzinfo=self._settings.partition_tz).timestamp()


def _ended(names: Iterable[Name]) -> set[str]:
    """Name the processes that have ended by their own word, or by that of whoever recovered each of their slots."""
    places: dict[str, set[str]] = {}
    for name in names:
        if name.kind is manifest.Kind.ENDED:
            place = name.writer.rpartition(".")[2].rstrip("0123456789")
            places.setdefault(name.instance, set()).update((place,) if name.writer else manifest.PLACES)
    return {instance for instance, known in places.items() if known.issuperset(manifest.PLACES)}


async def _each(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Wait for all of them; one that fails ends the others."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
    return [task.result() for task in tasks]


def _read(size: int, body: bytes) -> Seen:
    """Count the lines themselves. An object that is damaged has none."""
    if codec.event_count(body[: codec.HEAD_BYTES]) is None:
        return Seen(size, None)
    lines = codec.whole_lines(body)
    if lines is None:
        return Seen(size, 0, 0, 0)
    return Seen(size, lines.count(b"\n"), len(lines), zlib.crc32(lines))
