"""Where generations are published: the pointers of hours, or a table that has its own.

Owns `Shelf`, the promises of both, and `Pointers`, one document an hour. Promises that a generation is published only
if the one that was read is still in force, and that no part of it goes while it is. Never makes rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ingest.lake.generation import HOURS, JSON, PARTS, Generation, decode, pointer_key
from ingest.lake.sources import Differs

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from ingest.lake.patience import Patient
    from ingest.store import Listed


class Unneeded(NamedTuple):
    """Parts that may go, and in words why others stay of which it cannot be said."""

    keys: list[str]
    doubts: list[str]


class Shelf(Protocol):
    """A place for generations. Parts in its folder are its own, and no other shelf's."""

    def folder(self, version: Any) -> str:  # noqa: ANN401 - each shelf has its own
        """Return where below COMPACT_PREFIX the parts of a generation lie that is to replace this version."""

    async def folder_to_sweep(self) -> str | None:
        """Return the folder as well, when nothing is to be replaced; None if there is no shelf yet."""

    async def current(self, hour: str) -> tuple[Generation | None, Any]:
        """Return the generation in force, and the version of what says so; both None if there is none."""

    async def publish(self, made: Generation, version: Any) -> bool:  # noqa: ANN401 - each shelf has its own
        """Put a generation in force, if what is there still has this version; False, and no change, if it has not."""

    async def is_whole(self, generation: Generation) -> bool:
        """Tell whether the parts of the generation in force are there."""

    async def unneeded(
        self, parts: Mapping[str, Sequence[Listed]], before: float, hours_done: Collection[str]
    ) -> Unneeded:
        """Tell which parts of these hours may go: older than `before`, and of no generation that may be read."""


class Pointers:
    """A `Shelf`: the pointer of each hour, replaced by one conditional put."""

    def __init__(self, store: Patient, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    def folder(self, version: str | None) -> str:  # noqa: ARG002 - it is one for all
        """Return the folder that all hours share."""
        return PARTS

    async def folder_to_sweep(self) -> str:
        """Return the same."""
        return PARTS

    async def current(self, hour: str) -> tuple[Generation | None, str | None]:
        """Read the pointer, and by which version the store knows it."""
        key = pointer_key(self._prefix, hour)
        found = await self._store.find(key)
        if found is None:
            return None, None
        try:
            return decode(found.body, hour, f"{self._prefix}/{PARTS}"), found.version
        except ValueError as error:
            raise Differs(f"{key}: {error}; remove it, or run the version that wrote it") from error

    async def publish(self, made: Generation, version: str | None) -> bool:
        """Replace the pointer."""
        return await self._store.replace(pointer_key(self._prefix, made.hour), made.encode(), version, JSON)

    async def is_whole(self, generation: Generation) -> bool:
        """Look for the parts: somebody's rule for the bucket, or a hand, may have removed what the pointer names."""
        sizes: dict[str, int] = {}
        for folder in {part.key.rpartition("/")[0] for part in generation.parts}:
            sizes |= {listed.key: listed.size for listed in await self._store.listing(f"{folder}/")}
        return all(sizes.get(part.key) == part.bytes for part in generation.parts)

    async def unneeded(
        self, parts: Mapping[str, Sequence[Listed]], before: float, hours_done: Collection[str]
    ) -> Unneeded:
        """Tell which parts the pointer does not name, once it is older than `before` as well.

        An hour without a pointer is left alone, because its first generation may be on its way. A pointer is read only
        if there are parts of two runs, or if the hour was just compacted. One that cannot be read, or that names what
        is not there, is a doubt about all that lies here.
        """
        asked = [
            hour
            for hour, listed in parts.items()
            if any(one.modified < before for one in listed)
            and (hour in hours_done or len({one.key.rsplit("/", 3)[1] for one in listed}) > 1)
        ]
        named: dict[str, set[str]] = {}
        doubts: list[str] = []
        for hour in asked:
            try:
                generation, _ = await self.current(hour)
            except Differs as differs:
                doubts.append(str(differs))
                continue
            if generation is not None:
                named[hour] = {part.key for part in generation.parts}
        # Read after the pointers themselves: one that was replaced meanwhile is young.
        young = await self._replaced_since(before, named)
        unneeded: list[str] = []
        for hour in named:
            if hour in young:
                continue
            if missing := named[hour] - {one.key for one in parts[hour]}:
                doubts.append(f"{pointer_key(self._prefix, hour)} names {min(missing)}, which is not listed")
            old = [one.key for one in parts[hour] if one.modified < before]
            unneeded += [key for key in old if key not in named[hour]]
        return Unneeded([], doubts) if doubts else Unneeded(unneeded, [])

    async def _replaced_since(self, before: float, hours: Collection[str]) -> set[str]:
        """Return the hours whose pointers are not older, by the store's clock. A pointer that is not listed is not."""
        young = set(hours)
        for day in {hour.partition("/")[0] for hour in hours}:
            for listed in await self._store.listing(f"{self._prefix}/{HOURS}/{day}/"):
                if listed.modified < before:
                    young -= {hour for hour in young if listed.key == pointer_key(self._prefix, hour)}
        return young
