"""Where generations are published: the pointers of hours, or a table that has its own.

Owns `Shelf`, the promises of both, and `Pointers`, one document an hour. Promises that a generation is published only
if the one that was read is still in force, and that no part of it goes while it is. Never makes rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ingest.lake.generation import JSON, PARTS, Generation, decode, pointer_key
from ingest.lake.sources import Differs

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from ingest.lake.patience import Patient
    from ingest.store import Listed


class Shelf(Protocol):
    """A place for generations. `folder` is where below COMPACT_PREFIX their parts lie."""

    folder: str

    async def current(self, hour: str) -> tuple[Generation | None, Any]:
        """Return the generation in force, and the version of what says so; both None if there is none."""

    async def publish(self, made: Generation, version: Any) -> bool:  # noqa: ANN401 - each shelf has its own
        """Put a generation in force, if what is there still has this version; False, and no change, if it has not."""

    async def unneeded(
        self, parts: Mapping[str, Sequence[Listed]], before: float, hours_done: Collection[str]
    ) -> list[str]:
        """Return which parts of these hours may go: older than `before`, and of no generation that may be read."""


class Pointers:
    """A `Shelf`: the pointer of each hour, replaced by one conditional put."""

    folder = PARTS

    def __init__(self, store: Patient, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    async def current(self, hour: str) -> tuple[Generation | None, str | None]:
        """Read the pointer, and by which version the store knows it."""
        key = pointer_key(self._prefix, hour)
        found = await self._store.find(key)
        if found is None:
            return None, None
        try:
            return decode(found.body), found.version
        except ValueError as error:
            raise Differs(f"{key}: {error}; remove it, or run the version that wrote it") from error

    async def publish(self, made: Generation, version: str | None) -> bool:
        """Replace the pointer."""
        return await self._store.replace(pointer_key(self._prefix, made.hour), made.encode(), version, JSON)

    async def unneeded(
        self, parts: Mapping[str, Sequence[Listed]], before: float, hours_done: Collection[str]
    ) -> list[str]:
        """Return parts that the pointer does not name, once its generation is older than `before` as well.

        An hour without a pointer is left alone, because its first generation may be on its way. A pointer is read only
        if there are parts of two runs, or if the hour was just compacted.
        """
        unneeded: list[str] = []
        for hour, listed in parts.items():
            old = [one.key for one in listed if one.modified < before]
            runs = {one.key.rsplit("/", 3)[1] for one in listed}
            if not old or (len(runs) == 1 and hour not in hours_done):
                continue
            try:
                generation, _ = await self.current(hour)
            except Differs:
                continue
            if generation is None or generation.published >= before:
                continue
            named = {part.key for part in generation.parts}
            unneeded += [key for key in old if key not in named]
        return unneeded
