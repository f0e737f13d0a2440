"""Places: where the file of a key is, whoever holds the slot in which it lies.

Owns the one question about the two copies that a key may have, a segment and a dead letter: known, not there, or
unknown. It remembers the segments that went in this run, because whoever comes too late to find one finds nothing.
Promises that "not there" is said only when every slot was looked into: a folder that cannot be read, or a disk that
does not answer, may hold the file. Each disk is asked in its own lane, so that one that hangs holds up no other.
Never opens a file, never looks at a lock.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Final

import structlog

from ingest.disk import StorageError, exists
from ingest.format import dlq_path, segment_path

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from ingest.disk import Filesystem, Lane


WAIT: Final = 10.0
SETTLED_MAX: Final = 10_000
"""Segments that are remembered though they are gone; of more, those that went first are forgotten."""

log = structlog.get_logger()


class Copy(Enum):
    """One copy of a key. UNKNOWN: the disk would not say."""

    KNOWN = auto()
    NOT_THERE = auto()
    UNKNOWN = auto()


class Places:
    """The slots of the journal and of the dead-letter queue, all of them, each in the lane of its disk."""

    __slots__ = ("_dlq", "_fs", "_journal", "_settled", "_wait")

    def __init__(self, fs: Filesystem, journal: tuple[Path, Lane], dlq: tuple[Path, Lane], wait: float = WAIT) -> None:
        self._wait = wait
        self._fs = fs
        self._journal = journal
        self._dlq = dlq
        self._settled: dict[str, None] = {}
        """By key, in the order in which they went."""

    def settled(self, key: str) -> None:
        """Remember that the segment of this key is about to go, because its batch needs it no more."""
        self._settled[key] = None
        if len(self._settled) > SETTLED_MAX:
            del self._settled[next(iter(self._settled))]

    def is_settled(self, key: str) -> bool:
        """Tell whether the segment of this key went in this run."""
        return key in self._settled

    async def segment(self, key: str) -> Copy:
        """Tell whether any slot has a segment of this key.

        Two others may have adopted what a dead process left, one its DLQ, the other its journal.
        """
        return await self._ask(self._journal, segment_path, key, ())

    async def dead_letter(self, key: str, but: Collection[Path] = ()) -> Copy:
        """Tell whether any slot, `but` those, has a dead-letter file of this key."""
        return await self._ask(self._dlq, dlq_path, key, but)

    async def _ask(
        self,
        place: tuple[Path, Lane],
        path_of: Callable[[Path, str], Path],
        key: str,
        but: Collection[Path],
    ) -> Copy:
        base, lane = place
        try:
            return await lane.run(self._look, base, path_of, key, but, within=self._wait)
        except StorageError as error:
            log.debug("copy_unknown", key=key, path=str(base), hint=error.hint, errno=error.errno)
            return Copy.UNKNOWN

    def _look(self, base: Path, path_of: Callable[[Path, str], Path], key: str, but: Collection[Path]) -> Copy:
        """Look into every slot, in the lane. One that cannot be looked into does not hide the file in another."""
        try:
            slots = [base / name for name in self._fs.listdir(base) if name.isascii() and name.isdigit()]
        except (FileNotFoundError, NotADirectoryError):
            return Copy.NOT_THERE
        except OSError as error:
            raise StorageError.of("list", base, error) from error
        unread: StorageError | None = None
        for slot in slots:
            if slot in but:
                continue
            try:
                if exists(self._fs, path_of(slot, key)):
                    return Copy.KNOWN
            except StorageError as error:
                unread = error
        if unread is not None:
            raise unread
        return Copy.NOT_THERE
