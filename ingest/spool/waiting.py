"""Files on disk whose batches wait for the store: what the dead-letter queue and the journal's backlog have in common.

Owns `KeyedFile` and `Waiting`, the face that recovery sees. Promises nothing by itself. Never touches a disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path


# ----------------------------------------------------------------------------------------------------- files


@dataclass(slots=True)
class KeyedFile:
    """A file on disk whose batch waits for the store. `events` is None until the file was inspected."""

    key: str
    path: Path
    size: int
    events: int | None


class Waiting(Protocol):
    """Files that wait for the store: the dead-letter queue, and the journal's backlog."""

    @property
    def scanning(self) -> bool:
        """There are files that are not in the books yet."""

    async def next(self) -> KeyedFile | None:
        """Lend the next file; None at the end of each pass."""

    async def find(self, key: str) -> KeyedFile | None:
        """Lend the file of this key if there is one; its `events` is None while it is not in the books yet."""

    def defer(self, file: KeyedFile) -> None:
        """Take a lent file back until the next pass."""

    async def done(self, file: KeyedFile) -> None:
        """Take a lent file out of the books, before the first await, and off the disk."""
