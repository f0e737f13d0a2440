"""A segment: the file of one batch in the journal.

Owns the states of a segment, which may follow which, and the facts that hold in each. Promises that a state is entered
only by the function that the table names, and, with DEBUG_CHECKS, that no other change goes unnoticed. Never touches a
disk.

| state   | entered by                         | holds                                                          |
| ------- | ---------------------------------- | -------------------------------------------------------------- |
| created | `Journal.begin`                    | it takes lines; a power cut may take its name                  |
| named   | `Journal._sync_done`, `_rewritten` | it takes lines; its name and the folders above it are synced   |
| broken  | `Journal._fail`                    | its end, sync, close or name is in doubt: it takes no line     |
| sealed  | `Journal._pass_on`, `_rewritten`   | its descriptor is closed, its batch is on its way              |
| kept    | `Journal.retain`                   | the backlog has it; the journal does not touch it again        |
| removed | `Journal.release`                  | its batch is safe elsewhere; the file goes                     |

`FOLLOWS` has the changes. A broken segment that is rewritten becomes named, or sealed if its batch is on its way. If it
cannot be rewritten it stays broken until a later try succeeds, or it is removed.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from ingest.config import DEBUG_CHECKS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ingest.disk import Identity


class SegmentState(Enum):
    """Where a segment stands between two calls of the journal."""

    CREATED = "created"
    NAMED = "named"
    BROKEN = "broken"
    SEALED = "sealed"
    KEPT = "kept"
    REMOVED = "removed"


OPEN: Final = frozenset({SegmentState.CREATED, SegmentState.NAMED})
"""The states in which a segment takes lines, and has a descriptor."""

FOLLOWS: Final[Mapping[SegmentState, frozenset[SegmentState]]] = {
    SegmentState.CREATED: frozenset({SegmentState.NAMED, SegmentState.BROKEN, SegmentState.SEALED}),
    SegmentState.NAMED: frozenset({SegmentState.BROKEN, SegmentState.SEALED}),
    SegmentState.BROKEN: frozenset({SegmentState.NAMED, SegmentState.SEALED, SegmentState.REMOVED}),
    SegmentState.SEALED: frozenset({SegmentState.BROKEN, SegmentState.KEPT, SegmentState.REMOVED}),
    SegmentState.KEPT: frozenset(),
    SegmentState.REMOVED: frozenset(),
}
"""The states that may come after each."""


class Segment:
    """A file of the journal, in the slot `root`.

    `fd` is None once it is closed; `size` counts the bytes that are written to it; `identity` is None until the
    first look at it, which the disk may refuse.
    """

    __slots__ = ("_state", "fd", "identity", "path", "root", "size")

    def __init__(self, path: Path, root: Path, fd: int, identity: Identity | None = None) -> None:
        self.path = path
        self.root = root
        self.identity = identity
        self.fd: int | None = fd
        self.size = 0
        self._state = SegmentState.CREATED

    def __repr__(self) -> str:
        return f"<Segment {self.path.name} {self.state.value} size={self.size} fd={self.fd}>"

    @property
    def state(self) -> SegmentState:
        """Where it stands."""
        return self._state

    def enter(self, state: SegmentState) -> None:
        """Change the state."""
        if DEBUG_CHECKS and state not in FOLLOWS[self._state]:
            raise AssertionError(f"{state.value} does not follow upon {self!r}")
        self._state = state

    def check(self, *, syncing: bool) -> None:
        """Fail if a fact of its state does not hold. `syncing`: a thread has its descriptor in hand."""
        if self._state in OPEN:
            holds = self.fd is not None
        else:
            # Only a sync under way may keep the descriptor of what is given up.
            holds = self.fd is None or (self._state is SegmentState.BROKEN and syncing)
        if not holds:
            raise AssertionError(f"that cannot be: {self!r}{' in a sync' if syncing else ''}")
