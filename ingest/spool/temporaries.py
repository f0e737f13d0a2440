"""Temporaries: dead letters whose save did not come to its end, because the process was killed in it.

    .<name>.*.tmp     removed if its batch lies elsewhere too, as a segment or a published file; else what is sound in
                      it becomes the batch's file

Owns those of counted hours until somebody has asked where else their batches lie, and those that could be neither
salvaged nor removed. Promises that a published file is never replaced. Never asks anybody itself.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from ingest import disk
from ingest.disk import StorageError
from ingest.format import codec, dlq_key
from ingest.spool.marks import Mark
from ingest.spool.tally import Tally

if TYPE_CHECKING:
    from pathlib import Path

    from ingest.spool.holdings import Holdings
    from ingest.spool.marks import Marks
    from ingest.spool.slots import Slots

log = structlog.get_logger()


class Temporaries:
    """See the module's text."""

    __slots__ = ("_found", "_fs", "_holdings", "_kept", "_marks", "_slots", "_spent")

    def __init__(self, fs: disk.Filesystem, slots: Slots, marks: Marks, holdings: Holdings) -> None:
        self._fs = fs
        self._slots = slots
        self._marks = marks
        self._holdings = holdings
        self._kept: set[Path] = set()
        """Those that could not be salvaged, or not be removed. Until they are."""
        self._spent: set[Path] = set()
        """Those of which nothing is needed, and that are still to be removed."""
        self._found: list[tuple[str, Path]] = []
        """By the key that they were to get, until somebody takes them."""

    def __len__(self) -> int:
        """Count those that could be neither salvaged nor removed."""
        return len(self._kept)

    def is_done_with(self, slot: Path) -> bool:
        """Tell whether none is left below a slot."""
        left = [*self._kept, *(path for _, path in self._found)]
        return not any(path.is_relative_to(slot) for path in left)

    def note(self, temporary: Path) -> None:
        """Take note of one that was found."""
        target = disk.published_path(temporary)
        if target is not None:
            with suppress(ValueError):
                self._found.append((dlq_key(self._slots.root(temporary), target), temporary))

    def note_kept(self) -> None:
        """Have those seen to again that could not be."""
        for temporary in list(self._kept):
            self.note(temporary)

    def take(self) -> list[tuple[str, Path]]:
        """Return those that were found, by key, for `salvage` or `keep`."""
        taken, self._found = self._found, []
        return taken

    def keep(self, temporary: Path) -> None:
        """Leave one until the next count: its batch may lie in a place that cannot be read now."""
        if self._slots.holds(temporary):
            self._kept.add(temporary)

    def leave(self, root: Path) -> None:
        """Have nothing more to do with those in a slot: another process may hold it."""
        self._kept = {path for path in self._kept if not path.is_relative_to(root)}
        self._spent = {path for path in self._spent if not path.is_relative_to(root)}
        self._found = [(key, path) for key, path in self._found if not path.is_relative_to(root)]

    def salvage(self, temporary: Path, has_segment: bool) -> None:
        """Remove one if its batch lies elsewhere too; else what is sound in it becomes the batch's file."""
        if not self._slots.holds(temporary):
            return  # its slot was lost since it was taken
        has_segment = has_segment or temporary in self._spent
        counted = None
        try:
            counted = self._salvage_step(temporary, has_segment=has_segment)
            self._spent.add(temporary)
            self._remove(temporary)
            self._spent.discard(temporary)
        except (OSError, StorageError) as error:
            reason = error if isinstance(error, StorageError) else StorageError.of("salvage", temporary, error)
            self._kept.add(temporary)
            self._marks.complain("dlq_temporary_kept", temporary, reason)
        else:
            self._kept.discard(temporary)
            self._marks.drop(temporary, Mark.TOLD)
        if counted is not None:
            self._holdings.found(temporary.parent, counted)
            log.warning("dlq_temporary_salvaged", path=str(temporary), events=counted.events)

    def _salvage_step(self, temporary: Path, *, has_segment: bool) -> Tally | None:
        target = disk.published_path(temporary)
        counted = None
        if target is not None and not disk.exists(self._fs, target) and not has_segment:
            with disk.Reader(self._fs, temporary) as file:
                found = codec.inspect_gzip(file)
                file.seek(0)
                body = file.read_all() if found.sound else found.body
            if found.events and body is not None:
                self._slots.tree_of(target).publish(target, body)
                counted = Tally(1, found.events, len(body))
        # Crash point: both names stand. The next start finds the key published and only removes the temporary.
        return counted

    def _remove(self, temporary: Path) -> None:
        with suppress(FileNotFoundError):
            self._fs.unlink(temporary)
