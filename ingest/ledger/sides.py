"""A side: one of the two places on disk with its ledgers, as who closes hours sees it.

Owns what is looked at together: the files of the ledgers of every slot held, and the hours of which files still wait
there. Promises that what is said of a slot was true of one instant in its lane: a file that went before it has its
line in the ledger that is read after it. Never touches a disk on the loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from ingest.disk import StorageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from pathlib import Path

    from ingest.disk import Lane
    from ingest.ledger.files import File, Ledger
    from ingest.spool import Held

WAIT: Final = 10.0

log = structlog.get_logger()


class Slot(NamedTuple):
    """A slot that this process holds: what waits in it, and what its ledger has."""

    root: Path
    held: Held
    files: list[File]

    @property
    def name(self) -> str:
        """Its number, as part of a writer's name."""
        return self.root.name


class Side:
    """See the module's text. `held` tells of each slot what waits in it, the first one is this process's own."""

    __slots__ = ("_held", "_lane", "_told", "ledger", "on_settled", "place")

    def __init__(
        self,
        place: str,
        lane: Lane,
        ledger: Ledger,
        held: Callable[[], Awaitable[Mapping[Path, Held]]],
        on_settled: Callable[[], None],
    ) -> None:
        self.place = place
        self.ledger = ledger
        self.on_settled = on_settled
        """Called when the ledger of a slot was removed: it may be let go."""
        self._lane = lane
        self._held = held
        self._told: set[Path] = set()
        """Slots and files of ledgers that could not be read, from the line about one until it can be."""

    async def look(self) -> list[Slot]:
        """Look at every slot; `StorageError` if the disk does not answer."""
        known = self.ledger.slots()  # before it is asked what is held: a slot that is taken meanwhile is not let go
        held = await self._held()
        found = await self._lane.run(self._list, list(held), known - held.keys(), within=WAIT)
        return [
            Slot(root, held[root] if files is not None else held[root]._replace(sure=False), files or [])
            for root, files in found.items()
        ]

    async def lines(self, path: Path) -> bytes | None:
        """Read a file of a ledger; None, and told once, if it cannot be read, `StorageError` if nothing can be."""
        try:
            found = await self._lane.run(self.ledger.lines, path, within=WAIT)
        except StorageError as error:
            if error.errno is None:
                raise
            self._complain(path, error)
            return None
        self._told.discard(path)
        return found

    async def remove(self, files: Iterable[File]) -> None:
        """Remove files of a ledger, of which everything was told, unless they have grown since."""
        await self._lane.run(self.ledger.remove, list(files), within=WAIT)
        self.on_settled()

    async def begin(self, root: Path, instance: str, said: bytes) -> bool:
        """Leave word in a slot that a process has begun; False if the disk does not take it."""
        return await self._lane.run(self.ledger.begin, root, instance, said, within=WAIT)

    def _list(self, roots: list[Path], gone: set[Path]) -> dict[Path, list[File] | None]:
        self.ledger.let_go(gone)
        self.ledger.write_kept()
        return {root: self._files(root) for root in roots}

    def _files(self, root: Path) -> list[File] | None:
        """List the ledger of one slot; None, and told once, if it cannot be read: that keeps no other slot waiting."""
        try:
            files = self.ledger.files(root)
        except StorageError as error:
            self._complain(root, error)
            return None
        self._told.discard(root)
        return files

    def _complain(self, path: Path, error: StorageError) -> None:
        if path not in self._told:
            self._told.add(path)
            log.warning("ledger_not_read", path=str(path), error=str(error), hint=error.hint)
