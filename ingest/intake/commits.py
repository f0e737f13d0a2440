"""Group commit: turns whose answers wait for one sync.

Owns the order of answers under `DURABILITY=fsync`. Each turn's part for one batch is a group; there is one line of
groups, and answers leave from its front only, so that no answer overtakes an earlier one.

| fate      | until                                                                            |
| --------- | -------------------------------------------------------------------------------- |
| waiting   | the sync under way is over, and the next one begins                              |
| syncing   | the sync that covers its lines is over                                           |
| committed | it is answered: its lines are synced                                             |
| refused   | it is answered: its lines are cut off, or it never had any                       |

Never syncs anything: the journal does, and tells how it ended.
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ingest.intake.batch import Batch, Turn
    from ingest.intake.segments import Segment


class Fate(Enum):
    """The decision about a group."""

    WAITING = "waiting"
    SYNCING = "syncing"
    COMMITTED = "committed"
    REFUSED = "refused"


class Group:
    """The part of a turn that went into one batch and its segment; or, without them, a turn that was refused."""

    __slots__ = ("batch", "fate", "segment", "turn")

    def __init__(self, turn: Turn, batch: Batch | None = None, segment: Segment | None = None) -> None:
        self.turn = turn
        self.batch = batch
        self.segment = segment
        self.fate = Fate.REFUSED if batch is None else Fate.WAITING

    def __repr__(self) -> str:
        return f"<Group {self.fate.value} events={self.turn.events}>"


class GroupCommit:
    """The line of groups."""

    __slots__ = ("_groups", "_over", "_syncing", "holds_back")

    def __init__(self) -> None:
        self.holds_back = False
        """Answers wait here although nothing is synced. Set and cleared by the journal, which says why."""
        self._groups: deque[Group] = deque()
        self._syncing: frozenset[Segment] = frozenset()
        self._over = asyncio.Event()
        """Set while no sync is under way, or just ended."""

    def __repr__(self) -> str:
        return f"<GroupCommit {[group.fate.value for group in self._groups]}>"

    def add(self, group: Group) -> None:
        """Put a group at the end of the line."""
        self._groups.append(group)

    def is_syncing(self, segment: Segment) -> bool:
        """Tell whether the thread that syncs has this segment's descriptor in hand."""
        return segment in self._syncing

    async def synced(self, segment: Segment) -> None:
        """Return when the thread has this segment's descriptor in hand no more."""
        while self.is_syncing(segment):
            await self._over.wait()

    def begin(self) -> frozenset[Segment]:
        """Begin a sync for all groups that wait; return their segments, none if there is nothing to sync now."""
        if self._syncing:
            return frozenset()
        segments = set()
        for group in self._groups:
            if group.fate is Fate.WAITING and group.segment is not None:
                group.fate = Fate.SYNCING
                segments.add(group.segment)
        self._syncing = frozenset(segments)
        if segments:
            self._over.clear()
        return self._syncing

    def end(self) -> Iterator[tuple[Group, Batch, Segment]]:
        """End the sync under way, and yield its groups; one that is refused meanwhile is passed over."""
        self._syncing = frozenset()
        self._over.set()
        for group in list(self._groups):
            if group.fate is Fate.SYNCING and group.batch is not None and group.segment is not None:
                yield group, group.batch, group.segment

    def refuse(self, batch: Batch) -> int:
        """Decide against all undecided groups of a batch; return their events."""
        events = 0
        for group in self._groups:
            if group.batch is batch and group.fate in (Fate.WAITING, Fate.SYNCING):
                group.fate = Fate.REFUSED
                events += group.turn.events
        return events

    def answer(self) -> None:
        """Answer what is decided, up to the first group that is not."""
        groups = self._groups
        while groups and groups[0].fate in (Fate.COMMITTED, Fate.REFUSED):
            group = groups.popleft()
            group.turn.settle(committed=group.fate is Fate.COMMITTED)

    # What must be true.

    def undecided(self, batch: Batch) -> tuple[int, int]:
        """Return the events and the bytes of a batch's undecided groups: its tail."""
        turns = [
            group.turn for group in self._groups if group.batch is batch and group.fate in (Fate.WAITING, Fate.SYNCING)
        ]
        return sum(turn.events for turn in turns), sum(turn.size for turn in turns)

    def check(self) -> None:
        """Fail if a group waits for nothing, or what is synced is not what groups wait for."""
        fates = [group.fate for group in self._groups]
        syncing = {group.segment for group in self._groups if group.fate is Fate.SYNCING}
        holds = (
            # Groups of a segment that failed meanwhile are refused already; the thread has its descriptor still.
            syncing <= self._syncing,
            bool(self._syncing) or Fate.WAITING not in fates,
            Fate.WAITING not in fates or Fate.SYNCING not in fates[fates.index(Fate.WAITING) :],
        )
        if not all(holds):
            raise AssertionError(f"{holds}: {self!r}")
