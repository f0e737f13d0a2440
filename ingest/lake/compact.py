"""One hour to Parquet, published by one conditional put.

Owns the order of a compaction, and what became of it (`Done`):

    1  the pointer is read, the objects are listed and their heads read: this list is the hour, whatever comes later
    2  the same recipe and the same objects: nothing is done
    3  in batches that the local disk holds: fetched and checked, made into Parquet, put under a name never used before
    4  the rows are compared with what the heads declare
    5  the pointer is replaced, if it is still the one that was read. If it is not, the new one is read and all is
       decided anew: it may say the same already

Promises that a reader who goes through the pointer sees the old generation or the new one, whenever this process is
killed: until step 5 only new names appear, and step 5 is one put. Nothing is ever doubled, because a generation names
its files. Parts of a run that did not come to its end are nobody's; `sweep` removes them.
Never removes or changes what lies below RAW_PREFIX. Never publishes after `LONGEST`, for by then `sweep` may take its
parts for a dead run's.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from ingest.disk import read_file, scratch_folder
from ingest.lake.engine import EngineError
from ingest.lake.generation import JSON, PARQUET, Generation, Inputs, Part, Recipe, decode, part_key, pointer_key
from ingest.lake.sources import Differs, batches, fetch, freeze, unsound

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ingest.disk import Filesystem
    from ingest.lake.engine import Engine, Written
    from ingest.lake.patience import Patient
    from ingest.lake.sources import Frozen
    from ingest.store import Found

LONGEST: Final = 24 * 3600.0
ROUNDS: Final = 8
"""So often an hour is decided anew before it is left to the others."""


class Result(Enum):
    """The end of an hour that was looked at."""

    PUBLISHED = auto()
    NOTHING_TO_DO = auto()
    """The pointer says the same already."""


@dataclass(frozen=True, slots=True)
class Done:
    """A compaction's end: what the pointer says now, and keys in the hour's folder that are no collector's."""

    result: Result
    generation: Generation
    strange: tuple[str, ...]


class Contended(Exception):  # noqa: N818 - nothing is wrong with the hour
    """Others went on publishing this hour; theirs is in force."""


@dataclass(frozen=True, slots=True)
class Lake:
    """Where a compaction reads and writes, and by what."""

    store: Patient
    fs: Filesystem
    raw_prefix: str
    prefix: str
    recipe: Recipe
    engine: Engine
    local: Path
    """Holds the copies of a batch and their Parquet files while a run lasts."""
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic


async def compact(lake: Lake, hour: str, *, force: bool = False) -> Done:
    """Bring the pointer of an hour up to its objects. With `force` also to fewer events than it has now."""
    key = pointer_key(lake.prefix, hour)
    for _ in range(ROUNDS):
        found = await lake.store.find(key)
        current = _current(key, found)
        frozen = await freeze(lake.store, lake.raw_prefix, hour)
        inputs = Inputs.of(frozen.sources)
        if current is not None and current.is_made_of(lake.recipe, inputs):
            return Done(Result.NOTHING_TO_DO, current, frozen.strange)
        if current is not None and inputs.events < current.inputs.events and not force:
            raise Differs(
                f"{hour}: {inputs.events} events are left of the {current.inputs.events} that generation "
                f"{current.generation} was made of; --force publishes fewer"
            )
        made = await _make(lake, hour, frozen, inputs, current)
        if await lake.store.replace(key, made.encode(), None if found is None else found.version, JSON):
            return Done(Result.PUBLISHED, made, frozen.strange)
    raise Contended(f"{hour}: {ROUNDS} times another compaction was quicker")


def _current(key: str, found: Found | None) -> Generation | None:
    if found is None:
        return None
    try:
        return decode(found.body)
    except ValueError as error:
        raise Differs(f"{key}: {error}; remove it, or run the version that wrote it") from error


async def _make(lake: Lake, hour: str, frozen: Frozen, inputs: Inputs, current: Generation | None) -> Generation:
    """Put the parts of a new generation, which nobody sees yet."""
    began = lake.monotonic()
    run = secrets.token_hex(8)
    parts: list[Part] = []
    for batch in batches(frozen):
        with scratch_folder(lake.fs, lake.local) as folder:
            into = folder / "parts"
            lake.fs.mkdir(into)
            copies = await fetch(lake.store, lake.fs, batch, folder)
            try:
                files = await asyncio.to_thread(lake.engine.write, copies, hour, into)
                _check_rows(hour, sum(file.rows for file in files), copies.events)
            except EngineError as error:
                bad = await asyncio.to_thread(unsound, lake.fs, batch, copies.files)
                if bad:
                    raise Differs(f"{', '.join(bad)}: a line is no event") from error
                raise
            for file in files:
                parts.append(await _put(lake, part_key(lake.prefix, run, hour, len(parts)), file))
                # Crash point "part put": parts lie under names that nothing refers to.
    rows = sum(part.rows for part in parts)
    _check_rows(hour, rows, inputs.events)
    if lake.monotonic() - began > LONGEST:
        raise Contended(f"{hour}: it took longer than a day, and its parts may be swept already")
    generation = 1 if current is None else current.generation + 1
    return Generation(generation, hour, lake.recipe, inputs, tuple(parts), rows, int(lake.clock()))


async def _put(lake: Lake, key: str, file: Written) -> Part:
    body = await asyncio.to_thread(read_file, lake.fs, file.path)
    if len(body) != file.bytes or not await lake.store.replace(key, body, None, PARQUET):
        raise EngineError(f"{key}: it is not what was written for it")
    return Part(key, file.rows, len(body))


def _check_rows(hour: str, rows: int, events: int) -> None:
    if rows != events:
        raise EngineError(f"{hour}: {rows} rows were made of {events} events; nothing is published")
