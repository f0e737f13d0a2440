"""Closing: which hours hold nothing more, and who is told.

Owns the round that looks at memory, journal and spool, puts the manifest of each hour that has come to its end, and
keeps the registry. An hour of this process is closed when it is over, and nothing of it is in memory, in a segment or
in a dead letter. An hour of a process that is gone is closed, by whoever holds one of its slots, when no file of that
hour waits there. A document that the store did not take, a disk that does not answer or a file that cannot be read
leaves its hours open, and the next round tries again.

Promises:

    truth      a manifest is made of the ledger as it is after the round has seen that nothing more waits. Memory is
               looked at first and the disks after it, because events move in this direction only
    again      if something comes after all, the manifest is put once more with a higher generation. Nobody writes over
               the manifest of another process
    kept       a ledger's file goes when the store has its manifest and nothing of its process waits in the slot. Our
               own stays some hours longer
    beside     no event waits for any of it, not for its computing either, and `end` takes what time is left of a drain

Never feeds the breaker, never removes a file that holds events.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple

import orjson
import structlog

from ingest.disk import StorageError
from ingest.format import ledger, manifest, parse_key
from ingest.format.manifest import PLACES, Kind, Taken
from ingest.ledger.files import entries_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from ingest.config import Settings
    from ingest.format import KeyFactory
    from ingest.format.ledger import Fate
    from ingest.ledger.files import File
    from ingest.ledger.post import Post
    from ingest.ledger.sides import Side, Slot
    from ingest.telemetry import Metrics

A = TypeVarTuple("A")
T = TypeVar("T")

LOOK_SECONDS: Final = 15.0
RETELL_SECONDS: Final = 60.0
"""The registry is told of a change no sooner than this after the last one."""
KEPT_HOURS: Final = 3
"""So long the ledger of an hour that is told stays, in case the clock steps back."""
LONGEST_KEPT: Final = 31 * 24 * 3600.0
"""Older ledgers go untold: somebody who may put no manifest must not fill a disk with what nobody reads."""
TRIED_SECONDS: Final = 2 * 3600.0
"""So long this process has tried to tell of what another one has left, before that goes untold."""

NOT_OVER: Final = "it is not over"
NOT_READ: Final = "files that cannot be read, or are not counted yet"
NOT_TOLD: Final = "its manifest is not put yet"
NOT_FOUND: Final = "events that are in no place"
LOST_LINES: Final = "its ledger could not be written"
IN_MEMORY: Final = "it kept events in memory, and did not drain"
IN_PLACE: Final = {"journal": "journal segments wait", "dlq": "dead letters wait"}

log = structlog.get_logger()


@dataclass(slots=True)
class _Hour:
    """An hour of this process."""

    accepted: int = 0
    first_ts: int = 0
    last_ts: int = 0
    told: tuple[object, ...] | None = None
    """The state of the ledger when the store took the manifest last."""
    generation: int = 0
    numbers: list[int] = field(default_factory=list)
    """Those of its batches, some of which may have come between those of another hour."""
    doubted: bool = False
    """Its sums did not agree in the last round: something may have been on its way."""


@dataclass(slots=True)
class _Estate:
    """The ledger that a process which is gone left in one slot."""

    since: float
    """When it was found."""
    told: dict[str, int] = field(default_factory=dict)
    """Bytes of the ledger of each hour whose manifest is put."""
    generations: dict[str, int] = field(default_factory=dict)
    ended: dict[str, str] | None = None
    """The hours that were told as open when its end was told last."""


class Closing:
    """See the module's text.

    `executor` makes the documents. `in_memory` tells the hours of batches that are in memory or in segments of this
    process, each with why; `refused` the hours of files that the store refuses.
    """

    def __init__(
        self,
        settings: Settings,
        keys: KeyFactory,
        post: Post,
        metrics: Metrics,
        sides: Sequence[Side],
        *,
        executor: Executor,
        in_memory: Callable[[], Mapping[str, str]],
        refused: Callable[[], set[str]],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._prefix = settings.manifest_prefix
        self._raw_prefix = settings.raw_prefix
        self._tz = settings.partition_tz
        self._durability = settings.durability
        self._keys = keys
        self._post = post
        self._metrics = metrics
        self._sides = sides
        self._executor = executor
        self._in_memory = in_memory
        self._refused = refused
        self._clock = clock
        self._now = now
        self._sleep = sleep
        self._started = now()
        self._hours: dict[str, _Hour] = {}
        self._estates: dict[tuple[Path, str], _Estate] = {}
        self._present = self._furthest = self._hour_now()
        """The hour in which the last round began, and the latest of all these: a clock may have been ahead."""
        self._registered: tuple[str, Mapping[str, str]] | None = None
        self._registered_at = 0.0
        self._volumes: dict[str, int] = {}
        """How often the ledger of an hour of ours was removed as told."""
        self._is_over = False
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Closing {len(self._hours)} hours, {len(self._estates)} estates, through {self._present}>"

    # ------------------------------------------------------------------------------------------------- its life

    def took(self, hour: str, key: str, events: int, first_ts: int, last_ts: int) -> None:
        """Count what a sealed batch of this process holds."""
        mine = self._hours.get(hour)
        if mine is None:
            mine = self._hours[hour] = _Hour(first_ts=first_ts)
        mine.accepted += events
        mine.numbers.append(parse_key(key).sequence)
        mine.first_ts = min(mine.first_ts, first_ts)
        mine.last_ts = max(mine.last_ts, last_ts)

    async def run(self) -> None:
        """Look now and again, until cancelled."""
        while True:
            await self.look()
            await self._sleep(LOOK_SECONDS)

    async def end(self) -> None:
        """Close what this process has, once it takes nothing more; what waits on disk stays open."""
        self._is_over = True
        async with self._turn:
            self._post.hurry()
            await self._look()

    async def settle(self) -> set[str]:
        """Close what others have left in the slots that are held, and nothing else: for who takes no events.

        Return the processes of which an hour is not told though no file of it waits there, and "" if a disk did not
        answer.
        """
        untold: set[str] = set()
        async with self._turn:
            self._post.hurry()
            try:
                seen = [(side, await side.look()) for side in self._sides]
                for side, slots in seen:
                    for slot in slots:
                        await self._close_theirs(side, slot, seen)
                    for slot in await side.look():
                        untold |= {file.instance for file in slot.files if not self._is_told(slot, file)}
            except StorageError as error:
                log.warning("hours_not_looked_at", error=str(error), hint=error.hint)
                untold.add("")
        return untold

    async def look(self) -> None:
        """Make one round; a disk that does not answer ends it."""
        async with self._turn:
            await self._look()

    async def _look(self) -> None:
        # Asked first: an hour that is over only by the end of the round may have got an event that this round missed.
        self._present = self._hour_now()
        in_memory = self._in_memory()
        # What was settled before this step reaches its lane before what follows does.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        try:
            seen = [(side, await side.look()) for side in self._sides]
            if not self._is_over:
                said = {"started": int(self._started), "durability": self._durability}
                for side, slots in seen:
                    await side.begin(slots[0].root, self._keys.instance, orjson.dumps(said) + b"\n")
            mine = await self._close_mine(in_memory, seen)
            await self._register(mine, seen)
            theirs = [await self._close_theirs(side, slot, seen) for side, slots in seen for slot in slots]
        except StorageError as error:
            log.debug("hours_not_looked_at", error=str(error))
            return
        self._show(mine, theirs)

    # ------------------------------------------------------------------------------------------------- our hours

    async def _close_mine(self, in_memory: Mapping[str, str], seen: list[tuple[Side, list[Slot]]]) -> dict[str, str]:
        """Put what can be put, and return our hours that are not closed, with why."""
        files: dict[str, list[tuple[Side, File]]] = {}
        for side, slots in seen:
            for slot in slots:
                for file in slot.files:
                    if file.instance == self._keys.instance and file.hour:
                        files.setdefault(file.hour, []).append((side, file))
        for hour in files:
            self._hours.setdefault(hour, _Hour())
        still_open: dict[str, str] = {}
        for hour in sorted(self._hours.keys() | in_memory.keys()):
            why = in_memory.get(hour) or self._waits(hour, seen) or await self._close(hour, files)
            if self._is_hopeless(hour, why):
                log.warning("ledger_dropped", hour=hour, hint=f"for a month: {why}")
                await self._forget(hour, files.get(hour, []))
            elif why:
                still_open[hour] = why
            elif not self._is_over and self._is_old(hour):
                await self._forget(hour, files.get(hour, []))
        return still_open

    def _waits(self, hour: str, seen: list[tuple[Side, list[Slot]]]) -> str:
        if hour >= self._present and not self._is_over:
            return NOT_OVER
        for side, slots in seen:
            held = slots[0].held
            if hour in held.hours:
                return f"{IN_PLACE[side.place]}, some refused" if hour in self._refused() else IN_PLACE[side.place]
            if not held.sure:
                return NOT_READ
        return ""

    async def _close(self, hour: str, by_hour: Mapping[str, list[tuple[Side, File]]]) -> str:
        mine, files = self._hours[hour], by_hour.get(hour, [])
        known = (mine.accepted, *((file.path, file.size) for _, file in files))
        if known == mine.told:
            return ""
        if any(side.ledger.lacks(hour, self._keys.instance) for side in self._sides):
            return LOST_LINES
        if not self._post.is_due:  # nothing is read for a document that may not be put
            return NOT_TOLD
        texts: list[tuple[Path, bytes]] = []
        for side, file in files:
            lines = await side.lines(file.path)
            if lines is None:
                return NOT_READ
            texts.append((file.path, lines))
        fates, found = await self._compute(_fates, self._raw_prefix, texts)
        if found != mine.accepted and not mine.doubted:
            mine.doubted = True
            return NOT_FOUND
        mine.doubted = False
        volume = self._volumes.get(hour)
        writer = f"{self._keys.token}.{volume}" if volume else self._keys.token
        make = partial(
            manifest.manifest,
            instance=self._keys.instance,
            writer=writer,
            hour=hour,
            generation=mine.generation + 1,
            at=self._now(),
            places=PLACES,
            fates=fates,
            taken=Taken(mine.accepted, mine.first_ts, mine.last_ts),
        )
        others: list[Sequence[int]] = [tuple(one.numbers) for other, one in self._hours.items() if other != hour]
        if await self._compute(_has_hole, fates, others):
            # A number that was drawn for another hour and got no event is in that hour's ledger alone.
            abroad = [one for other, found_there in by_hour.items() if other != hour for one in found_there]
            drawn = await self._numbers(abroad)
            if drawn is None:
                return NOT_READ
            others += drawn.values()
        body = await self._compute(_with_elsewhere, make, fates, others)
        if not await self._post.put(manifest.manifest_key(self._prefix, hour, self._keys.instance, writer), body):
            return NOT_TOLD
        mine.told = known
        mine.generation += 1
        log.info("hour_closed", hour=hour, objects=len(fates), events=found, generation=mine.generation)
        return ""

    async def _forget(self, hour: str, files: list[tuple[Side, File]]) -> None:
        """Let go of an hour told long ago. Should the clock step back into it, its next manifest is another one."""
        for side, file in files:
            await side.remove([file])
        for side in self._sides:
            side.ledger.forgive(hour, self._keys.instance)
        del self._hours[hour]
        self._volumes[hour] = self._volumes.get(hour, 0) + 1

    # ------------------------------------------------------------------------------------------------- their hours

    async def _close_theirs(self, side: Side, slot: Slot, seen: list[tuple[Side, list[Slot]]]) -> dict[str, str]:
        """Put what processes that are gone have left to be told in a slot; return the hours that are not closed."""
        still_open: dict[str, str] = {}
        by_instance: dict[str, list[File]] = {}
        for file in slot.files:
            if file.instance != self._keys.instance:
                by_instance.setdefault(file.instance, []).append(file)
        for known in [known for known in self._estates if known[0] == slot.root and known[1] not in by_instance]:
            del self._estates[known]
        for instance, files in by_instance.items():
            if not slot.held.sure:
                still_open |= {file.hour: NOT_READ for file in files if file.hour}
                continue
            estate = self._estates.setdefault((slot.root, instance), _Estate(self._clock()))
            abroad = [(one, file) for one, slots in seen for here in slots for file in here.files]
            ledgers = [(one, file) for one, file in abroad if file.instance == instance and file.hour]
            still_open |= await self._settle(side, slot, instance, files, estate, ledgers)
        return still_open

    def _is_told(self, slot: Slot, file: File) -> bool:
        """Tell whether all is told that a file of a ledger says, as far as no file waits of which it will say more."""
        estate = self._estates.get((slot.root, file.instance))
        if not file.hour:
            return bool(slot.held.hours)
        return file.hour in slot.held.hours or (estate is not None and estate.told.get(file.hour) == file.size)

    async def _settle(
        self,
        side: Side,
        slot: Slot,
        instance: str,
        files: list[File],
        estate: _Estate,
        ledgers: list[tuple[Side, File]],
    ) -> dict[str, str]:
        """Tell of one process by one slot. `ledgers`: all that are here of it, the other place's too."""
        waits = dict.fromkeys(slot.held.hours, IN_PLACE[side.place])
        writer = f"{self._keys.token}.{side.place}{slot.name}"
        hours = [file for file in files if file.hour]
        untold: dict[str, str] = {}
        numbers: dict[str, list[int]] | None = None
        for file in hours:
            if estate.told.get(file.hour) == file.size and file.hour not in waits:
                continue
            if why := waits.get(file.hour) or self._keeps_open(side, file):
                untold[file.hour] = why
                continue
            if numbers is None:
                numbers = await self._numbers(ledgers)
            lines = await side.lines(file.path)
            if numbers is None or lines is None:
                untold[file.hour] = NOT_READ
                continue
            fates, _ = await self._compute(_fates, self._raw_prefix, [(file.path, lines)])
            generation = estate.generations.get(file.hour, 0) + 1
            make = partial(
                manifest.manifest,
                instance=instance,
                writer=writer,
                hour=file.hour,
                generation=generation,
                at=self._now(),
                places=(side.place,),
                fates=fates,
                taken=None,
            )
            others = [has for hour, has in numbers.items() if hour != file.hour]
            body = await self._compute(_with_elsewhere, make, fates, others)
            if not await self._post.put(manifest.manifest_key(self._prefix, file.hour, instance, writer), body):
                untold[file.hour] = NOT_TOLD
                continue
            estate.told[file.hour] = file.size
            estate.generations[file.hour] = generation
            log.info("hour_closed", hour=file.hour, instance=instance, objects=len(fates), generation=generation)
        started = [file for file in files if not file.hour]
        if started and estate.ended != waits and untold.keys() <= waits.keys():
            ending = await self._ending(side, instance, started[0], waits)
            if ending is None:
                return untold
            if not await self._post.put(manifest.registry_key(self._prefix, instance, Kind.ENDED, writer), ending):
                return untold or dict.fromkeys(estate.told, NOT_TOLD)
            estate.ended = waits
        if not untold and not (waits and started):
            await side.remove(files)
        else:
            await self._drop_old(side, hours, untold, estate)
        return untold

    def _keeps_open(self, side: Side, file: File) -> str:
        if side.ledger.lacks(file.hour, file.instance):
            return LOST_LINES
        return "" if self._post.is_due else NOT_TOLD  # nothing is read for a document that may not be put

    async def _ending(self, side: Side, instance: str, started: File, still_open: Mapping[str, str]) -> bytes | None:
        """Make the word of a process's end; None if what it said when it began cannot be read."""
        said = await side.lines(started.path)
        if said is None:
            return None
        in_memory = b'"durability":"memory"' in said
        return manifest.ended(
            instance=instance,
            by=self._keys.instance,
            at=self._now(),
            places=() if in_memory else (side.place,),
            still_open=still_open,
            why=IN_MEMORY if in_memory else "",
        )

    async def _numbers(self, files: Iterable[tuple[Side, File]]) -> dict[str, list[int]] | None:
        """Return the numbers of each hour; None if one cannot be read: who closes another would call them missing."""
        numbers: dict[str, list[int]] = {}
        for side, file in files:
            lines = await side.lines(file.path)
            if lines is None:
                return None
            numbers.setdefault(file.hour, []).extend(await self._compute(_numbers, file.path, lines))
        return numbers

    async def _drop_old(self, side: Side, files: Iterable[File], untold: Mapping[str, str], estate: _Estate) -> None:
        """Let go of what will never be told. Other trouble ends, be a volume as old as it may."""
        old = [file for file in files if self._is_hopeless(file.hour, untold.get(file.hour, ""))]
        if old and self._clock() - estate.since > TRIED_SECONDS:
            log.warning("ledger_dropped", files=len(old), hint="their manifests could not be put for a month")
            await side.remove(old)

    def _is_hopeless(self, hour: str, why: str) -> bool:
        """Tell whether an hour that is open for this reason is given up: it is old, and nobody may tell or can."""
        is_lost = why == LOST_LINES or (why == NOT_TOLD and self._post.is_denied)
        return is_lost and self._now() - self._start_of(hour) > LONGEST_KEPT

    # ------------------------------------------------------------------------------------------------- the registry

    async def _register(self, mine: Mapping[str, str], seen: list[tuple[Side, list[Slot]]]) -> None:
        if self._is_over:
            await self._deregister(mine, seen)
            return
        self._furthest = max(self._furthest, self._present)
        # After a step back nothing is closed that is still to come. An hour that was told of by then is named as open.
        said = self._present, {hour: why for hour, why in mine.items() if hour < self._furthest}
        now = self._clock()
        if self._registered is not None:
            is_reopened = said[0] < self._registered[0] or bool(said[1].keys() - self._registered[1].keys())
            if said == self._registered or (now - self._registered_at < RETELL_SECONDS and not is_reopened):
                return
        body = manifest.opened(
            instance=self._keys.instance,
            started=self._started,
            at=self._now(),
            durability=self._durability,
            through=said[0],
            still_open=said[1],
        )
        if await self._post.put(manifest.registry_key(self._prefix, self._keys.instance, Kind.OPEN), body):
            self._registered, self._registered_at = said, now

    async def _deregister(self, mine: Mapping[str, str], seen: list[tuple[Side, list[Slot]]]) -> None:
        body = manifest.ended(
            instance=self._keys.instance, by=self._keys.instance, at=self._now(), places=PLACES, still_open=mine
        )
        if (
            await self._post.put(manifest.registry_key(self._prefix, self._keys.instance, Kind.ENDED), body)
            and not mine
        ):
            for side, slots in seen:
                await side.remove(file for slot in slots for file in slot.files if file.instance == self._keys.instance)

    # ------------------------------------------------------------------------------------------------- below

    def _show(self, mine: Mapping[str, str], theirs: Iterable[Mapping[str, str]]) -> None:
        hours = {*mine, *(hour for one in theirs for hour in one), self._hour_now()}
        self._metrics.oldest_open_hour = self._start_of(min(hours))
        self._metrics.ledger_lines_waiting = sum(side.ledger.waiting for side in self._sides)

    async def _compute(self, work: Callable[[*A], T], *args: *A) -> T:
        """Have a thread compute it: it may take a second, which no event waits for."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *args)

    def _hour_now(self) -> str:
        return self._keys.partition_of(int(self._now())).path

    def _is_old(self, hour: str) -> bool:
        return self._now() - self._start_of(hour) > (KEPT_HOURS + 1) * 3600

    def _start_of(self, hour: str) -> float:
        return datetime.strptime(hour, "dt=%Y-%m-%d/hr=%H").replace(tzinfo=self._tz).timestamp()


def _fates(prefix: str, files: list[tuple[Path, bytes]]) -> tuple[dict[str, Fate], int]:
    """Return the fate of each key that the lines of these files tell of, and the events of all.

    Keys of former prefixes are left out, because nobody lists them.
    """
    fates = ledger.settle(entry for path, lines in files for entry in entries_of(path, lines))
    ours = {key: fate for key, fate in fates.items() if parse_key(key).prefix == prefix}
    found = sum((fate.stored.events if fate.stored else 0) + sum(fate.dropped.values()) for fate in ours.values())
    return ours, found


def _numbers(path: Path, lines: bytes) -> list[int]:
    return [parse_key(entry.key).sequence for entry in entries_of(path, lines)]


def _has_hole(fates: Mapping[str, Fate], others: Iterable[Sequence[int]]) -> bool:
    """Tell whether numbers are missing between those of an hour, and those of others that lie between them."""
    here = {parse_key(key).sequence for key in fates}
    least, most = min(here, default=0), max(here, default=-1)
    between = {number for numbers in others for number in numbers if least < number < most}
    return most - least + 1 > len(here | between)


def _with_elsewhere(make: Callable[..., bytes], fates: Mapping[str, Fate], others: Iterable[Sequence[int]]) -> bytes:
    """Make a manifest that names those numbers of other hours which lie between its own: nobody is to miss them."""
    here = {parse_key(key).sequence for key in fates}
    least, most = min(here, default=0), max(here, default=0)
    return make(elsewhere=sorted({number for numbers in others for number in numbers if least < number < most}))
