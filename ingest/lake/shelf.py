"""Where generations are published: the pointers of hours, or a table that has its own.

Owns `Shelf`, the promises of both, and `Pointers`, one document an hour. Promises that a generation is published only
if the one that was read is still in force, and that no part of it goes while it is. Never makes rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ingest.lake.generation import JSON, PARTS, Generation, decode, pointer_key
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
            return decode(found.body), found.version
        except ValueError as error:
            raise Differs(f"{key}: {error}; remove it, or run the version that wrote it") from error

    async def publish(self, made: Generation, version: str | None) -> bool:
        """Replace the pointer."""
        return await self._store.replace(pointer_key(self._prefix, made.hour), made.encode(), version, JSON)

    async def unneeded(
        self, parts: Mapping[str, Sequence[Listed]], before: float, hours_done: Collection[str]
    ) -> Unneeded:
        """Tell which parts the pointer does not name, once its generation is older than `before` as well.

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
        return Unneeded(unneeded, [])
