"""One hour to Parquet, published by one conditional put.

Owns the order of a compaction, and what became of it (`Done`):

    1  the pointer is read, the objects are listed and their heads read: this list is the hour, whatever comes later
    2  the same recipe and the same objects, and the parts are there: nothing is done. Fewer events than before, or
       than when the hour was judged: a person has to wish it, and a second list to agree
    3  in batches that the local disk holds: fetched and checked, made into Parquet, put under a name never used before
    4  the rows are compared with what the heads declare
    5  the pointer is replaced, if it is still the one that was read. If it is not, the new one is read and all is
       decided anew: it may say the same already. Parts that were made of the same objects are used again

Promises that a reader who goes through the pointer sees the old generation or the new one, whenever this process is
killed: until step 5 only new names appear, and step 5 is one put. Nothing is ever doubled, because a generation names
its files. Parts of a run that did not come to its end are nobody's; `sweep` removes them.
Never removes or changes what lies below RAW_PREFIX. Never puts fewer events in force on one list's word. Never
publishes after `LONGEST`, for by then `sweep` may take its parts for a dead run's.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, cast

from ingest.disk import read_file, scratch_folder
from ingest.lake.engine import EngineError
from ingest.lake.generation import PARQUET, Generation, Inputs, Part, Recipe, part_folder, part_key
from ingest.lake.sources import Differs, batches, fetch, freeze, is_listed_again, unsound

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ingest.disk import Filesystem
    from ingest.lake.engine import Cluster, Engine, Written
    from ingest.lake.patience import Patient
    from ingest.lake.shelf import Shelf
    from ingest.lake.sources import Frozen

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
class Compactor:
    """Where a compaction reads and writes, and by what."""

    store: Patient
    fs: Filesystem
    raw_prefix: str
    prefix: str
    recipe: Recipe
    engine: Engine | Cluster
    shelf: Shelf
    """Where a generation is published."""
    local: Path
    """Holds the copies of a batch and their Parquet files while a run lasts."""
    works_on_store: bool = False
    """The engine is a `Cluster`."""
    clock: Callable[[], float] = field(default_factory=lambda: time.time)
    monotonic: Callable[[], float] = time.monotonic


async def compact(to: Compactor, hour: str, *, force: bool = False, at_least: int = 0) -> Done:
    """Bring the pointer of an hour up to its objects. With `force` also to fewer events than it has now.

    `at_least`: so many events were there when the hour was judged.
    """
    made: Generation | None = None
    folder = ""
    began = began_by_clock = 0.0
    for _ in range(ROUNDS):
        current, version = await to.shelf.current(hour)
        frozen = await freeze(to.store, to.raw_prefix, hour)
        inputs = Inputs.of(frozen.sources)
        if current is not None and current.is_made_of(to.recipe, inputs) and await to.shelf.is_whole(current):
            return Done(Result.NOTHING_TO_DO, current, frozen.strange)
        had = 0 if current is None else current.inputs.events
        if inputs.events < max(had, at_least):
            left = f"{inputs.events} events are left of the {_told(current, had, at_least)}"
            await _check_fewer(to, hour, frozen, left, force=force)
        if made is None or made.inputs != inputs or folder != to.shelf.folder(version):
            folder = to.shelf.folder(version)
            began, began_by_clock = to.monotonic(), to.clock()
            made = await _make(to, hour, frozen, inputs, folder)
        # The monotonic clock stands still while a machine sleeps.
        if max(to.monotonic() - began, to.clock() - began_by_clock) > LONGEST:
            raise Contended(f"{hour}: it took longer than a day, and its parts may be swept already")
        number = 1 if current is None else current.generation + 1
        made = replace(made, generation=number, published=int(to.clock()))
        if await to.shelf.publish(made, version):
            return Done(Result.PUBLISHED, made, frozen.strange)
    raise Contended(f"{hour}: {ROUNDS} times another compaction was quicker")


def _told(current: Generation | None, had: int, at_least: int) -> str:
    if current is None or had < at_least:
        return f"{at_least} that were there when the hour was judged"
    return (
        f"{had} that generation {current.generation} was made of" if current.generation else f"{had} that the table has"
    )


async def _check_fewer(to: Compactor, hour: str, frozen: Frozen, left: str, *, force: bool) -> None:
    if not force:
        raise Differs(f"{hour}: {left}; --force publishes fewer")
    if not await is_listed_again(to.store, to.raw_prefix, hour, frozen):
        raise Differs(f"{hour}: {left}, and a second list names other objects; nothing is published")


async def _make(to: Compactor, hour: str, frozen: Frozen, inputs: Inputs, folder: str) -> Generation:
    """Put the parts of a new generation, which nobody sees yet."""
    run = secrets.token_hex(8)
    if to.works_on_store:
        parts = await _make_there(to, hour, frozen, inputs, part_folder(to.prefix, folder, run, hour))
    else:
        parts = await _make_here(to, hour, frozen, folder, run)
    rows = sum(part.rows for part in parts)
    _check_rows(hour, rows, inputs.events)
    return Generation(0, hour, to.recipe, inputs, tuple(parts), rows, 0)


async def _make_here(to: Compactor, hour: str, frozen: Frozen, folder: str, run: str) -> list[Part]:
    """Have the engine work on copies, a batch at a time, and put what it wrote."""
    engine = cast("Engine", to.engine)
    parts: list[Part] = []
    for batch in batches(frozen):
        with scratch_folder(to.fs, to.local) as scratch:
            into = scratch / "parts"
            to.fs.mkdir(into)
            copies = await fetch(to.store, to.fs, batch, scratch)
            try:
                files = await asyncio.to_thread(engine.write, copies, hour, into)
                _check_rows(hour, sum(file.rows for file in files), copies.events)
            except EngineError as error:
                bad = await asyncio.to_thread(unsound, to.fs, batch, copies.files)
                if bad:
                    raise Differs(f"{', '.join(bad)}: a line is no event") from error
                raise
            for file in files:
                parts.append(await _put(to, part_key(to.prefix, folder, run, hour, len(parts)), file))
                # Crash point "part put": parts lie under names that nothing refers to.
    return parts


async def _make_there(to: Compactor, hour: str, frozen: Frozen, inputs: Inputs, folder: str) -> list[Part]:
    """Have a cluster work on the store. If its rows are not the events, find the object to blame among copies."""
    cluster = cast("Cluster", to.engine)
    try:
        rows = await asyncio.to_thread(cluster.write, [source.key for source in frozen.sources], hour, folder)
        _check_rows(hour, sum(rows.values()), inputs.events)
    except EngineError:
        for batch in batches(frozen):
            with scratch_folder(to.fs, to.local) as copies:
                fetched = await fetch(to.store, to.fs, batch, copies)
                bad = await asyncio.to_thread(unsound, to.fs, batch, fetched.files)
                if bad:
                    raise Differs(f"{', '.join(bad)}: a line is no event") from None
        raise
    sizes = {listed.key: listed.size for listed in await to.store.listing(f"{folder}/")}
    if missing := rows.keys() - sizes.keys():
        raise EngineError(
            f"{min(missing)}: the engine wrote it, and the store does not have it: do both name one place?"
        )
    return [Part(key, count, sizes[key]) for key, count in rows.items()]


async def _put(to: Compactor, key: str, file: Written) -> Part:
    body = await asyncio.to_thread(read_file, to.fs, file.path)
    if len(body) != file.bytes or not await to.store.replace(key, body, None, PARQUET):
        raise EngineError(f"{key}: it is not what was written for it")
    return Part(key, file.rows, len(body))


def _check_rows(hour: str, rows: int, events: int) -> None:
    if rows != events:
        raise EngineError(f"{hour}: {rows} rows were made of {events} events; nothing is published")
