"""The objects of an hour: listed once, counted, fetched and checked.

Owns the frozen list of an hour's objects, and their copies on the local disk while an engine reads them.
Promises that a copy which an engine gets is whole gzip with as many lines as the object's head declares; `Differs`
names the object otherwise. Memory holds `AT_ONCE` compressed objects at most, and of an object's lines one and a few
chunks, however many it inflates to. Never changes or removes an object, and takes nothing into account that came after
the list.
"""

from __future__ import annotations

import asyncio
from io import BytesIO
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from ingest.disk import Reader, StorageError
from ingest.disk.publish import publish
from ingest.format import OBJECT_SUFFIX, codec, parse_key
from ingest.lake.each import each
from ingest.lake.generation import Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from ingest.disk import Filesystem
    from ingest.lake.patience import Patient
    from ingest.store import Listed

AT_ONCE: Final = 4
HEADS_AT_ONCE: Final = 16
BATCH_BYTES: Final = 512 * 1024 * 1024
"""Compressed bytes that lie on the local disk at a time, before those of one more object."""
_DAMAGED: Final = "it is damaged: it is not whole gzip"


class Differs(Exception):  # noqa: N818 - a verdict on the hour, as `reconcile` names it
    """The hour is not what its objects say; the text names what was found."""


class Frozen(NamedTuple):
    """An hour's objects at one instant, by key; `strange` are keys in its folder that no collector makes."""

    sources: tuple[Source, ...]
    sizes: dict[str, int]
    strange: tuple[str, ...]


class Fetched(NamedTuple):
    """Copies on the local disk, and what is known of all their lines."""

    files: tuple[Path, ...]
    events: int
    longest: int


async def freeze(store: Patient, prefix: str, hour: str) -> Frozen:
    """List the objects of an hour and how many events each declares."""
    listed = await store.listing(f"{prefix}/{hour}/")
    ours = [one for one in listed if _is_ours(one.key, prefix, hour)]
    whole = asyncio.Semaphore(AT_ONCE)
    events = await each(ours, HEADS_AT_ONCE, lambda one: _events_of(store, one, whole))
    return Frozen(
        tuple(Source(one.key, count) for one, count in zip(ours, events, strict=True)),
        {one.key: one.size for one in ours},
        tuple(one.key for one in listed if not _is_ours(one.key, prefix, hour)),
    )


async def is_listed_again(store: Patient, prefix: str, hour: str, frozen: Frozen) -> bool:
    """Tell whether the list of the whole day has the same objects of the hour.

    It is another question, so that an answer which was wrong, or kept by somebody in between, does not count twice.
    """
    day = hour.partition("/")[0]
    listed = await store.listing(f"{prefix}/{day}/")
    return {one.key: one.size for one in listed if _is_ours(one.key, prefix, hour)} == frozen.sizes


def batches(frozen: Frozen, at_most: int = BATCH_BYTES) -> Iterator[tuple[Source, ...]]:
    """Yield the objects in groups that the local disk holds at a time."""
    batch: list[Source] = []
    size = 0
    for source in frozen.sources:
        if batch and size + frozen.sizes[source.key] > at_most:
            yield tuple(batch)
            batch, size = [], 0
        batch.append(source)
        size += frozen.sizes[source.key]
    if batch:
        yield tuple(batch)


async def fetch(store: Patient, fs: Filesystem, sources: Sequence[Source], folder: Path) -> Fetched:
    """Copy the objects to a folder that is there."""
    copies = [folder / f"{number:06d}{OBJECT_SUFFIX}" for number in range(len(sources))]

    async def one(task: tuple[Source, Path]) -> int:
        source, copy = task
        body = await store.get(source.key)
        return await asyncio.to_thread(_keep, fs, source, body, copy)

    longest = await each(list(zip(sources, copies, strict=True)), AT_ONCE, one)
    return Fetched(tuple(copies), sum(source.events for source in sources), max(longest, default=0))


def unsound(fs: Filesystem, sources: Sequence[Source], files: Iterable[Path]) -> list[str]:
    """Name the objects of which a line is no JSON object with an instant; slow, for when an engine failed."""
    found = []
    for source, path in zip(sources, files, strict=True):
        try:
            with Reader(fs, path) as file:
                if not all(map(_is_event, codec.each_line(file))):
                    found.append(source.key)
        except OSError as error:
            raise StorageError.of("read", path, error) from error
    return found


def _is_ours(key: str, prefix: str, hour: str) -> bool:
    """Tell whether a collector put it for this very hour: a folder inside the hour may hold copies of others' keys."""
    try:
        parsed = parse_key(key)
    except ValueError:
        return False
    return (parsed.prefix, parsed.partition) == (prefix, hour)


def _is_event(line: bytes | None) -> bool:
    try:
        event = None if line is None else orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return type(event) is dict and type(event.get("ts")) is int


async def _events_of(store: Patient, listed: Listed, whole: asyncio.Semaphore) -> int:
    declared = codec.event_count(await store.first_bytes(listed.key, codec.HEAD_BYTES))
    if declared is not None:
        return declared
    # Somebody compressed it anew: its lines are all there is to go by.
    async with whole:
        body = await store.get(listed.key)
        return await asyncio.to_thread(_count, listed.key, body)


def _count(key: str, body: bytes) -> int:
    counted = codec.tally(BytesIO(body))
    if counted is None:
        raise Differs(f"{key}: {_DAMAGED}")
    return counted.lines


def _keep(fs: Filesystem, source: Source, body: bytes, copy: Path) -> int:
    """Write a copy, read it back, and return how long its longest line is."""
    publish(fs, copy, body, sync=False)
    try:
        with Reader(fs, copy) as file:
            counted = codec.tally(file)
    except OSError as error:
        raise StorageError.of("read", copy, error) from error
    if counted is None:
        raise Differs(f"{source.key}: {_DAMAGED}")
    if counted.lines != source.events:
        raise Differs(f"{source.key}: it has {counted.lines} lines, and its head declares {source.events}")
    return counted.longest
