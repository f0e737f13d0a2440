"""Holdings: what is counted of the dead letters, hour by hour, and what the books on the loop are still to hear of it.

Owns a tally for each hour's folder, because files are too many to be remembered. When a folder is gone, what remains of
its tally (a file somebody removed, a header that rotted after it was counted) is dropped as corrupt or counted as
recovered: an error of one file lasts no longer than its folder.
Promises that `held` is the sum of all tallies. Never touches a disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from ingest.format import unix_of
from ingest.spool.tally import Change, Tally

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

log = structlog.get_logger()


class Holdings:
    """See the module's text."""

    __slots__ = ("_change", "_first_in", "_tallies", "additions", "held")

    def __init__(self) -> None:
        self.held = 0
        """Bytes of all files that are counted."""
        self.additions = 0
        """How often files were counted: by it a reading in several calls knows whether one came meanwhile."""
        self._change = Change()
        self._tallies: dict[Path, Tally] = {}
        self._first_in: dict[Path, int] = {}
        """Unix time of the first event that a folder has held since it was last empty."""

    def __repr__(self) -> str:
        return f"<Holdings {len(self._tallies)} hours, {self.held} bytes>"

    @property
    def oldest(self) -> int:
        """Unix time of the oldest event in any file, to the hour; 0 if there is no file."""
        tallies = self._tallies
        held = (unix for folder, unix in self._first_in.items() if folder in tallies and tallies[folder].files > 0)
        return min(held, default=0)

    def holds_files(self, folder: Path) -> bool:
        """Tell whether a file is counted in a folder."""
        tally = self._tallies.get(folder)
        return tally is not None and tally.files > 0

    def counts(self, folder: Path) -> bool:
        """Tell whether the books have anything of a folder, be it a difference."""
        return self._tallies.get(folder, Tally()) != Tally()

    def counted_below(self, root: Path) -> set[Path]:
        """Return the folders of a slot of which the books have anything."""
        return {folder for folder in self._tallies if folder.is_relative_to(root) and self.counts(folder)}

    def folders_below(self, root: Path) -> list[Path]:
        """Return the hours' folders of a slot in which files are counted."""
        return [folder for folder in self._tallies if folder.is_relative_to(root) and self.holds_files(folder)]

    def take_change(self) -> Change:
        """Return what changed in the books since this was last asked."""
        change, self._change = self._change, Change()
        return change

    def add(self, path: Path, tally: Tally) -> None:
        """Count a file whose events the caller moves in the books."""
        self._add(path.parent, tally)
        self.note_first([path])

    def take(self, folder: Path, tally: Tally) -> None:
        """Count a file no longer; the caller has its events out of the books."""
        self._tallies.setdefault(folder, Tally()).take(tally)
        self.held -= tally.size

    def found(self, folder: Path, tally: Tally) -> None:
        """Count what an earlier run left; its events come into the books, or leave them as corrupt."""
        self._add(folder, tally)
        self._change.waiting.add(tally)
        if tally.events >= 0:
            self._change.recovered += tally.events
        else:
            self._change.corrupt -= tally.events

    def evicted(self, folder: Path, tally: Tally) -> None:
        """Count a file no longer that was dropped to make room."""
        self.take(folder, tally)
        self._change.waiting.take(tally)
        self._change.evicted.add(tally)

    def note_first(self, paths: Iterable[Path]) -> None:
        """Take note of how old these files' events are."""
        for path in paths:
            unix = unix_of(path.name)
            self._first_in[path.parent] = min(unix, self._first_in.get(path.parent, unix))

    def settle(self, folder: Path) -> None:
        """Correct the books by what is counted in a folder that holds nothing."""
        rest = self._tallies.pop(folder, Tally())
        self._first_in.pop(folder, None)
        if rest == Tally():
            return
        self.held -= rest.size
        self._change.waiting.take(rest)
        if rest.events > 0:
            self._change.corrupt += rest.events
        else:
            self._change.recovered -= rest.events
        if rest.events or rest.files:
            log.error(
                "dlq_books_corrected",
                folder=str(folder),
                files=rest.files,
                events=rest.events,
                hint="files there were changed or removed by something else",
            )

    def settle_below(self, root: Path) -> None:
        """Correct the books by what is counted in a slot that holds nothing."""
        for folder in [folder for folder in self._tallies if folder.is_relative_to(root)]:
            self.settle(folder)

    def hand_on(self, root: Path) -> None:
        """Have the books forget what is in a slot that is let go with its files."""
        for folder in [folder for folder in self._tallies if folder.is_relative_to(root)]:
            tally = self._tallies.pop(folder)
            self._first_in.pop(folder, None)
            self.held -= tally.size
            self._change.waiting.take(tally)
            if tally.events >= 0:
                self._change.handed_on += tally.events
            else:
                self._change.recovered -= tally.events  # more left the folder than were found in it
        self.released(root)

    def taken(self, root: Path) -> None:
        """Take note that another slot is our own now."""
        self._change.taken.append(root)

    def released(self, root: Path) -> None:
        """Take note that a slot was let go."""
        self._change.released.append(root)

    def check(self) -> None:
        """Hold the fields against each other (DEBUG_CHECKS)."""
        assert self.held == sum(tally.size for tally in self._tallies.values()), self  # noqa: S101 - it is a check

    def _add(self, folder: Path, tally: Tally) -> None:
        self._tallies.setdefault(folder, Tally()).add(tally)
        self.held += tally.size
        self.additions += 1
