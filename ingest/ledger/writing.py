"""Lines of what has no file: written beside the event loop.

Owns the calls under way. Promises that `close` returns when they are made, or the lane makes none any more. With
DURABILITY=memory no segment is removed, so that nothing else would bring a line to the disk.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from ingest.disk import StorageError

if TYPE_CHECKING:
    from pathlib import Path

    from ingest.disk import Lane
    from ingest.ledger.files import Ledger


class Writing:
    """See the module's text."""

    __slots__ = ("_lane", "_ledger", "_tasks")

    def __init__(self, ledger: Ledger, lane: Lane) -> None:
        self._ledger = ledger
        self._lane = lane
        self._tasks: set[asyncio.Task[None]] = set()

    def write(self, root: Path, lines: bytes) -> None:
        """Begin to write lines into the ledger of the slot `root`."""
        task = asyncio.get_running_loop().create_task(self._write(root, lines))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Wait for what is under way."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _write(self, root: Path, lines: bytes) -> None:
        with suppress(StorageError):  # the lane was abandoned: the process is at its end
            await self._lane.run(self._ledger.note, root, lines)
