"""One reading of a lent file: the verdict upon it, and what is to be put.

Owns how a file is read: its bytes in the lane of its disk, and the judging in an executor, so that neither a slow disk
nor a large file holds up the other. Promises that the memory it takes is that of what is put, whatever the size of a
segment, which is read piece by piece. Never changes a file, never keeps one open, never waits longer than `within` for
one piece.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from ingest.disk import Reader, read_file
from ingest.format import codec
from ingest.spool.waiting import Contents

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

    from ingest.disk import Filesystem, Lane
    from ingest.spool.waiting import Letter


PIECE_BYTES: Final = 1 << 20


class Reading:
    """See the module's text."""

    __slots__ = ("_executor", "_fs", "_lane", "_within")

    def __init__(self, fs: Filesystem, lane: Lane, executor: Executor, within: float) -> None:
        self._fs = fs
        self._lane = lane
        self._executor = executor
        self._within = within

    async def dead_letter(self, letter: Letter) -> Contents:
        """Judge a dead letter. Its bytes are what is put, so they are read whole; `OSError` is no verdict."""
        data = await self.original(letter)
        found = await asyncio.get_running_loop().run_in_executor(self._executor, codec.inspect_gzip, _Held(data))
        return Contents(found, data if found.is_good_as_it_is else found.body)

    async def segment(self, letter: Letter) -> Contents:
        """Judge a segment, piece by piece; `OSError` is no verdict."""
        loop = asyncio.get_running_loop()
        inspection = codec.LinesInspection()
        offset = 0
        while piece := await self._lane.run(_piece, self._fs, letter.path, offset, within=self._within):
            await loop.run_in_executor(self._executor, inspection.feed, piece)
            offset += len(piece)
        found = await loop.run_in_executor(self._executor, inspection.end)
        return Contents(found, found.body)

    async def original(self, letter: Letter) -> bytes:
        """Return a file's bytes."""
        return await self._lane.run(read_file, self._fs, letter.path, within=self._within)


class _Held:
    """Bytes in memory, as the stream that an inspection reads."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes; nothing at the end."""
        piece = self._data[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def seek(self, offset: int) -> None:
        """Read on from `offset`."""
        self._at = offset

    def tell(self) -> int:
        """Return where the next read begins."""
        return self._at


def _piece(fs: Filesystem, path: Path, offset: int) -> bytes:
    with Reader(fs, path) as file:
        file.seek(offset)
        return file.read(PIECE_BYTES)
