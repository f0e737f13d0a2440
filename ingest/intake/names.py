"""Names: whether the lock and the segments still have theirs.

Owns one look at all of them. Somebody may remove or move the folder of a living process: then lines go where recovery
never looks. Promises that a name which the disk does not let us look at is told once, is no verdict, and hides no other
one. Never changes anything on the disk: the journal decides what becomes of a segment without a name.
"""

from __future__ import annotations

from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import structlog

from ingest.disk import Filesystem, Identity, StorageError, has_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from ingest.disk import Lane, Slot
    from ingest.intake.segments import Segment

log = structlog.get_logger()


class Name(Enum):
    """A name, as one look at it found it. UNKNOWN: the disk would not say."""

    KEPT = "kept"
    LOST = "lost"
    UNKNOWN = "unknown"


class Looked(NamedTuple):
    """The outcome of a look: the lock, and the segments that have lost their names."""

    lock: Name
    lost: set[Segment]


class _Look(NamedTuple):
    """A segment as it was when a look at it began."""

    segment: Segment
    path: Path
    fd: int | None
    identity: Identity | None


class _Seen(NamedTuple):
    """The outcome of a look, as the lane's thread found it."""

    lock: Name
    lost: set[Segment]
    learned: list[tuple[_Look, Identity]]
    unknown: dict[Path, StorageError]


class Names:
    """See the module's text."""

    __slots__ = ("_fs", "_lane", "_slot", "_told")

    def __init__(self, fs: Filesystem, slot: Slot, lane: Lane) -> None:
        self._fs = fs
        self._slot = slot
        self._lane = lane
        self._told: set[Path] = set()
        """Names that the disk does not let us look at. Until it does, or nobody asks for them any more."""

    async def look(self, segments: Iterable[Segment]) -> Looked:
        """Look at the lock and at these segments."""
        looks = [_Look(segment, segment.path, segment.fd, segment.identity) for segment in segments]
        seen = await self._lane.run(self._look, looks)
        self._tell(seen.unknown, {self._slot.lock, *(look.path for look in looks)})
        for look, identity in seen.learned:
            # The loop may have closed a descriptor meanwhile, so what is learned counts only if it has not.
            if look.segment.fd == look.fd and look.segment.identity is None:
                look.segment.identity = identity
        return Looked(seen.lock, seen.lost)

    def _look(self, looks: list[_Look]) -> _Seen:
        unknown: dict[Path, StorageError] = {}

        def name(path: Path, has_name: Callable[[], bool]) -> Name:
            try:
                return Name.KEPT if has_name() else Name.LOST
            except StorageError as error:
                unknown[path] = error
                return Name.UNKNOWN

        # The lock first: whoever takes it away may take all, and whoever has it then may read what is here.
        lock = name(self._slot.lock, self._slot.is_ours)
        lost = {
            look.segment
            for look in looks
            if name(look.path, partial(has_name, self._fs, look.path, look.identity)) is Name.LOST
        }
        fresh = [look for look in looks if look.identity is None]
        learned = [(look, found) for look in fresh if (found := identity_of(self._fs, look.fd))]
        return _Seen(lock, lost, learned, unknown)

    def _tell(self, unknown: dict[Path, StorageError], looked_at: set[Path]) -> None:
        """Log which names cannot be looked at, and which can again, each at its edge."""
        for path, error in unknown.items():
            if path not in self._told:
                log.warning("journal_not_looked_at", path=str(path), error=str(error), hint=error.hint)
        for path in self._told & looked_at - unknown.keys():
            log.info("journal_looked_at_again", path=str(path))
        self._told = set(unknown)


def identity_of(fs: Filesystem, fd: int | None) -> Identity | None:
    """Tell which file a descriptor leads to; None if the disk would not say."""
    if fd is None:
        return None
    try:
        return Identity.of(fs.fstat(fd))
    except OSError:
        return None
