"""Mending: what is done on the disk after it failed, before anything is acknowledged again.

Owns the rewrite of a segment from memory, and the probe. Promises that nothing is published in a slot that another
process may have taken: a lock that has lost its name is taken again first, in the first free slot if need be.

Crash points of a rewrite: temporary written, synced, renamed, folder synced. Before the rename the old segment counts,
and recovery deletes the temporary; after it the new one does. Both hold every acknowledged line.

Never blocks the loop: all of it runs in the lane. Never decides when: the journal and its latch do.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from ingest.disk import TEMPORARY_SUFFIX, Filesystem, Identity, StorageError
from ingest.disk.append import append
from ingest.disk.folders import discard
from ingest.disk.publish import publish
from ingest.format import codec, segment_path
from ingest.intake.names import identity_of

if TYPE_CHECKING:
    from pathlib import Path

    from ingest.disk import Lane, Slot

PROBE_BYTES: Final = 65536

log = structlog.get_logger()


class Rewritten(NamedTuple):
    """A segment's new file, opened to append."""

    path: Path
    root: Path
    fd: int
    identity: Identity | None


class Mender:
    """See the module's text."""

    __slots__ = ("_fs", "_lane", "_probe_name", "_slot")

    def __init__(self, fs: Filesystem, slot: Slot, lane: Lane) -> None:
        self._fs = fs
        self._slot = slot
        self._lane = lane
        self._probe_name = f".probe.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"

    async def rewrite(self, key: str, path: Path, lines: memoryview | bytes) -> Rewritten:
        """Publish a batch's lines over its segment's name, and open the file; `StorageError` if that fails.

        Bytes are lines that are compressed already.
        """
        return await self._lane.run(self._rewrite, key, path, lines)

    async def probe(self) -> None:
        """Write and sync some bytes; `OSError` or `StorageError` while the disk refuses."""
        await self._lane.run(self._probe)

    def _rewrite(self, key: str, path: Path, lines: memoryview | bytes) -> Rewritten:
        if isinstance(lines, bytes):
            lines = memoryview(codec.lines_of(lines))
        with lines:
            self._hold_slot()
            root, previous = self._slot.path, path
            if not path.is_relative_to(root):
                path = segment_path(root, key)
            publish(self._fs, path, lines, root=root)
        try:
            if path != previous:
                # It lies in the slot of another process now, which would recover what is refused.
                with suppress(FileNotFoundError, NotADirectoryError):
                    self._fs.unlink(previous)
            fd = self._fs.open(path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            raise StorageError.of("open", path, error) from error
        return Rewritten(path, root, fd, identity_of(self._fs, fd))

    def _hold_slot(self) -> None:
        """Take the lock again if its name is gone; nothing is published in a slot that others may take."""
        if not self._slot.is_ours():
            self._slot.take_again()
            log.warning("slot_taken_again", path=str(self._slot.path))

    def _probe(self) -> None:
        self._hold_slot()
        # Under one name, so that a disk which lets nothing go is not filled.
        path = self._slot.path / self._probe_name
        fd = self._fs.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC)
        try:
            append(self._fs, fd, bytes(PROBE_BYTES), 0, subject=path)
            self._fs.fdatasync(fd)
        finally:
            try:
                self._fs.close(fd)
            finally:
                discard(self._fs, path)
