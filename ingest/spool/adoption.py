"""Adoption: the slots of processes that are gone, taken a few at a time.

Owns how many are held at once, because each costs a descriptor until it is emptied: `ADOPTED_MAX`; more if those that
are held do not become empty, because files that the store refuses keep a slot for days and others may hold files that
it takes; `ADOPTED_LIMIT`, and a sixteenth of the descriptors, at the very most. From there on slots take turns: those
that are held longest are let go with their files, and come again when all others had their turn. Room for who comes is
kept below that limit, because who goes is let go only when somebody has come.
Promises that no slot waits for ever, and that one which cannot be looked into is told once. Never reads a file.
"""

from __future__ import annotations

import resource
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from ingest.disk import ADOPT_AT_ONCE, Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from pathlib import Path

    from ingest.disk import Filesystem, Lane, StorageError

ADOPTED_MAX: Final = 32
ADOPTED_LIMIT: Final = 1024
STANDS_AFTER: Final = 10
"""Looks in a row that found no room, after which it is made."""

log = structlog.get_logger()


class Holder(Protocol):
    """A place whose files lie in slots."""

    @property
    def adopted(self) -> int:
        """How many slots of dead processes are held."""

    @property
    def held_slots(self) -> Collection[Path]:
        """The slots that this process holds, its own included, and those that it still lends from."""

    async def adopt(self, slots: Iterable[Slot]) -> None:
        """Take over slots of processes that are gone."""

    async def hand_on(self, at_most: int) -> None:
        """Let so many go with their files, those first that are held longest."""


class Adoption:
    """See the module's text."""

    __slots__ = ("_at_most", "_base", "_fs", "_holder", "_lane", "_last", "_passes_over", "_stood", "_told")

    def __init__(
        self,
        fs: Filesystem,
        base: Path,
        lane: Lane,
        holder: Holder,
        *,
        passes_over: Callable[[Path], bool] = lambda _: False,
    ) -> None:
        """`passes_over` tells which files are no reason to take a slot."""
        self._fs = fs
        self._base = base
        self._lane = lane
        self._holder = holder
        self._passes_over = passes_over
        self._at_most = usual()
        self._stood = 0
        """Looks in a row that found no room."""
        self._last = -1
        """The number of the slot that was adopted last: the next one is above it."""
        self._told: set[str] = set()
        """Paths that could not be looked into, from the line about each until a look at all slots finds it well."""

    async def look(self) -> bool:
        """Adopt a few free slots; True if there may be more."""
        holder = self._holder
        if holder.adopted < usual():
            self._at_most = usual()
        self._stood = self._stood + 1 if holder.adopted >= self._at_most else 0
        room = self._at_most - holder.adopted
        if self._stood >= STANDS_AFTER:
            self._stood = 0
            self._at_most = min(self._at_most + ADOPT_AT_ONCE, limit() - ADOPT_AT_ONCE)
            room = self._at_most + ADOPT_AT_ONCE - holder.adopted
        room = min(room, ADOPT_AT_ONCE)
        if room <= 0:
            return True
        # A slot of ours whose lock has lost its name would be taken for one of a process that is gone.
        adopt = partial(
            Slot.adopt_free, passes_over=self._passes_over, at_most=room, after=self._last, held=holder.held_slots
        )
        found = await self._lane.run(adopt, self._fs, self._base)
        self._tell(found.unread, looked_at_all=len(found.slots) < room)
        for slot in found.slots:
            log.info("slot_adopted", path=str(slot.path))
            self._last = slot.number
        if (over := holder.adopted + len(found.slots) - self._at_most) > 0:
            await holder.hand_on(over)
        await holder.adopt(found.slots)
        return len(found.slots) == room

    def _tell(self, unread: Iterable[StorageError], *, looked_at_all: bool) -> None:
        subjects = {error.subject for error in unread}
        for error in unread:
            if error.subject not in self._told:
                log.warning("slots_not_read", path=error.subject, error=str(error), hint=error.hint)
                self._told.add(error.subject)
        if looked_at_all:
            for subject in self._told - subjects:
                log.info("slots_read_again", path=subject)
            self._told = subjects


def usual() -> int:
    """Return how many slots are held at once where they become empty."""
    return min(ADOPTED_MAX, limit() - ADOPT_AT_ONCE)


def limit() -> int:
    """Return how many slots may be held at the very most."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors == resource.RLIM_INFINITY:
        return ADOPTED_LIMIT
    return max(min(ADOPTED_LIMIT, descriptors // 16), ADOPTED_MAX)
