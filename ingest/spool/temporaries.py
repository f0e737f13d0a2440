"""Temporaries: dead letters whose save did not come to its end, because the process was killed in it.

    .<name>.*.tmp     removed if its batch lies elsewhere too, as a segment or a published file. Else it is published,
                      if it is whole: gzip to its end, every line sound
    torn              half of one. A segment goes only after its dead letter is published, so the whole batch lay
                      elsewhere, and still does, or is stored: in the journal of another host, on a volume that is not
                      mounted. It waits, because its lines under its key would stand in the way of the batch
    .<name>.only-*    torn, and from a process without a journal: what is sound in it is all there is, and is published

Owns those of counted hours until somebody has asked where else their batches lie, those that are torn, and those that
could be neither salvaged nor removed. Promises that a published file is never replaced, and that less than a batch is
published only where nothing can have more. Never asks anybody itself.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

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

_TORN_HINT = "its batch is in a journal that is not here: mount it; if it is gone for good, `dlq replay --salvage`"

log = structlog.get_logger()


class Torn(NamedTuple):
    """Half of a dead letter. `declared`: the events of the whole, 0 if not even that can be read."""

    key: str
    path: Path
    declared: int


class Temporaries:
    """See the module's text. With `salvages` torn ones do not wait: somebody said that their journals are gone."""

    __slots__ = ("_found", "_fs", "_holdings", "_kept", "_marks", "_salvages", "_slots", "_spent", "_torn")

    def __init__(
        self, fs: disk.Filesystem, slots: Slots, marks: Marks, holdings: Holdings, *, salvages: bool = False
    ) -> None:
        self._fs = fs
        self._slots = slots
        self._marks = marks
        self._holdings = holdings
        self._salvages = salvages
        self._kept: set[Path] = set()
        """Those that could not be salvaged, or not be removed. Until they are."""
        self._spent: set[Path] = set()
        """Those of which nothing is needed, and that are still to be removed."""
        self._torn: dict[Path, Torn] = {}
        """Those whose batches were found nowhere. Until one is, or they are given up."""
        self._found: list[tuple[str, Path]] = []
        """By the key that they were to get, until somebody takes them."""

    def __len__(self) -> int:
        """Count those that could be neither salvaged nor removed, and those that are torn."""
        return len(self._kept) + len(self._torn)

    def is_done_with(self, slot: Path) -> bool:
        """Tell whether none below a slot is still to be looked at; a torn one was."""
        left = [*self._kept, *(path for _, path in self._found if path not in self._torn)]
        return not any(path.is_relative_to(slot) for path in left)

    def folders_below(self, slot: Path) -> list[Path]:
        """Return the hours' folders of a slot in which torn ones wait."""
        return [path.parent for path in self._torn if path.is_relative_to(slot)]

    def torn(self) -> list[Torn]:
        """Return those that are torn."""
        return list(self._torn.values())

    def note(self, temporary: Path) -> None:
        """Take note of one that was found."""
        target = disk.published_path(temporary)
        if target is not None:
            with suppress(ValueError):
                self._found.append((dlq_key(self._slots.root(temporary), target), temporary))

    def note_kept(self) -> None:
        """Have those seen to again that could not be, and those whose batches may have appeared."""
        for temporary in [*self._kept, *self._torn]:
            self.note(temporary)

    def take(self) -> list[tuple[str, Path]]:
        """Return those that were found, by key, for `salvage` or `keep`."""
        taken, self._found = self._found, []
        return taken

    def keep(self, temporary: Path) -> None:
        """Leave one until the next count: its batch may lie in a place that cannot be read now."""
        if self._slots.holds(temporary) and temporary not in self._torn:
            self._kept.add(temporary)

    def leave(self, root: Path) -> None:
        """Have nothing more to do with those in a slot: another process may hold it."""
        self._kept = {path for path in self._kept if not path.is_relative_to(root)}
        self._spent = {path for path in self._spent if not path.is_relative_to(root)}
        self._torn = {path: torn for path, torn in self._torn.items() if not path.is_relative_to(root)}
        self._found = [(key, path) for key, path in self._found if not path.is_relative_to(root)]

    def give_up(self, torn: Torn) -> None:
        """Remove a torn one."""
        if self._slots.holds(torn.path):
            self._unlink(torn.path)
            self._forget(torn.path)

    def salvage(self, temporary: Path, has_segment: bool) -> None:
        """Remove one if its batch lies elsewhere too; publish it if it is whole, or the only copy; else it is torn."""
        if not self._slots.holds(temporary):
            return  # its slot was lost since it was taken
        counted: Tally | None = Tally()
        try:
            if temporary not in self._spent:
                counted = self._publish(temporary, has_segment=has_segment)
                self._kept.discard(temporary)
                if counted is None:
                    return
                self._torn.pop(temporary, None)
                self._spent.add(temporary)
            # Crash point: both names stand. The next start finds the key published and only removes the temporary.
            self._unlink(temporary)
        except FileNotFoundError:
            self._forget(temporary)
        except (OSError, StorageError) as error:
            reason = error if isinstance(error, StorageError) else StorageError.of("salvage", temporary, error)
            if temporary not in self._torn:
                self._kept.add(temporary)
            self._marks.complain("dlq_temporary_kept", temporary, reason)
        else:
            self._forget(temporary)
        if counted is not None and counted.files:
            self._holdings.found(temporary.parent, counted)
            log.warning("dlq_temporary_salvaged", path=str(temporary), events=counted.events)

    def _publish(self, temporary: Path, *, has_segment: bool) -> Tally | None:
        """Return what was published, if that is needed; None if it is torn, and waits."""
        target = disk.published_path(temporary)
        if target is None or has_segment or disk.exists(self._fs, target):
            return Tally()
        if temporary in self._torn and disk.exists(self._fs, temporary):
            return None
        with disk.Reader(self._fs, temporary) as file:
            declared = codec.event_count(file.read(codec.HEAD_BYTES))
            file.seek(0)
            found = codec.inspect_gzip(file)
            file.seek(0)
            body = file.read_all() if found.is_good_as_it_is else found.body
        if found.events == 0 or body is None:
            return Tally()
        if not (found.sound or self._salvages or disk.is_only_copy(temporary)):
            self._torn[temporary] = Torn(dlq_key(self._slots.root(temporary), target), temporary, declared or 0)
            reason = StorageError("salvage", temporary, _TORN_HINT, transient=True)
            self._marks.complain("dlq_temporary_torn", temporary, reason)
            return None
        self._slots.tree_of(target).publish(target, body)
        return Tally(1, found.events, len(body))

    def _unlink(self, temporary: Path) -> None:
        try:
            self._fs.unlink(temporary)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError.of("unlink", temporary, error) from error

    def _forget(self, temporary: Path) -> None:
        self._kept.discard(temporary)
        self._spent.discard(temporary)
        self._torn.pop(temporary, None)
        self._marks.drop(temporary, Mark.TOLD)
