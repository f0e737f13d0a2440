"""Names: whether the lock and the segments still have theirs.

Owns one look at all of them. Somebody may remove or move the folder of a living process: then lines go where recovery
never looks. Promises that a look which the disk refuses is told once, and is no verdict. Never changes anything on the
disk: the journal decides what becomes of a segment without a name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import structlog

from ingest.disk import Filesystem, Identity, StorageError, has_name

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ingest.disk import Lane, Slot
    from ingest.intake.segments import Segment

log = structlog.get_logger()


class Looked(NamedTuple):
    """The outcome of a look: whether the lock is ours, and which segments have lost their names."""

    is_ours: bool
    lost: set[Segment]


class _Look(NamedTuple):
    """A segment as it was when a look at it began."""

    segment: Segment
    path: Path
    fd: int | None
    identity: Identity | None


class Names:
    """See the module's text."""

    __slots__ = ("_blind", "_fs", "_lane", "_slot")

    def __init__(self, fs: Filesystem, slot: Slot, lane: Lane) -> None:
        self._fs = fs
        self._slot = slot
        self._lane = lane
        self._blind = False
        """From a look that the disk refused until one that it allowed."""

    async def look(self, segments: Iterable[Segment]) -> Looked | None:
        """Look at the lock and at these segments; None if the disk refused."""
        looks = [_Look(segment, segment.path, segment.fd, segment.identity) for segment in segments]
        try:
            is_ours, lost, learned = await self._lane.run(self._look, looks)
        except StorageError as error:
            if not self._blind:
                log.warning("journal_not_looked_at", error=str(error), hint=error.hint)
            self._blind = True
            return None
        self._blind = False
        for look, identity in learned:
            # The loop may have closed a descriptor meanwhile, so what is learned counts only if it has not.
            if look.segment.fd == look.fd and look.segment.identity is None:
                look.segment.identity = identity
        return Looked(is_ours, lost)

    def _look(self, looks: list[_Look]) -> tuple[bool, set[Segment], list[tuple[_Look, Identity]]]:
        lost = {look.segment for look in looks if not has_name(self._fs, look.path, look.identity)}
        fresh = [look for look in looks if look.identity is None]
        learned = [(look, found) for look in fresh if (found := identity_of(self._fs, look.fd))]
        return self._slot.is_ours(), lost, learned


def identity_of(fs: Filesystem, fd: int | None) -> Identity | None:
    """Tell which file a descriptor leads to; None if the disk would not say."""
    if fd is None:
        return None
    try:
        return Identity.of(fs.fstat(fd))
    except OSError:
        return None
