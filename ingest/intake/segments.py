"""A segment: the file of one batch in the journal.

Owns the states of a segment and the facts that hold in each. Promises that a state is entered only by the function that
the table names. Never touches a disk.

| state   | entered by                         | holds                                                                 |
| ------- | ---------------------------------- | --------------------------------------------------------------------- |
| created | `Journal.begin`                    | it takes lines; a power cut may take its name                         |
| named   | `Journal._sync_done`, `_rewritten` | it takes lines; its name and the folders above it are synced          |
| broken  | `Journal._fail`                    | its end or its last sync cannot be trusted: no line goes there again  |
| sealed  | `Journal._pass_on`                 | its descriptor is closed, its batch is on its way                     |
| kept    | `Journal.retain`                   | the backlog has it; the journal does not touch it again               |
| removed | `Journal.release`                  | its batch is safe elsewhere; the file goes                            |

A broken segment becomes named when it is rewritten. If it cannot be rewritten it stays broken until it is removed.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path


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


class Segment:
    """A file of the journal. `fd` is None once it is closed; `size` counts the bytes that are written to it."""

    __slots__ = ("fd", "path", "size", "state")

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd: int | None = fd
        self.size = 0
        self.state = SegmentState.CREATED

    def __repr__(self) -> str:
        return f"<Segment {self.path.name} {self.state.value} size={self.size} fd={self.fd}>"
