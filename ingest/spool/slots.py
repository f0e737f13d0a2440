"""Slots: the folders whose dead letters are ours to lend, our own and those of processes that are gone.

Owns which slot a path lies in, and which slots were listed by a count: from one that was not, nothing is lent.
Promises that an adopted slot is held until it is released here. Never reads a folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingest import disk

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


class Slots:
    """See the module's text. The first one is our own."""

    __slots__ = ("_fs", "_listed", "_tree", "_unlisted", "own")

    def __init__(self, fs: disk.Filesystem, slots: Sequence[disk.Slot]) -> None:
        self.own = slots[0].path
        self._fs = fs
        self._tree = disk.Tree(fs, self.own)
        self._unlisted = list(slots)
        self._listed: list[disk.Slot] = []

    def __len__(self) -> int:
        """Count the slots that are held."""
        return len(self._listed) + len(self._unlisted)

    @property
    def listed(self) -> list[Path]:
        """The folders of the slots that a count has listed."""
        return [slot.path for slot in self._listed]

    @property
    def unlisted(self) -> list[Path]:
        """The folders of the slots that no count has listed yet."""
        return [slot.path for slot in self._unlisted]

    @property
    def adopted(self) -> list[disk.Slot]:
        """The slots of processes that are gone, of those that are listed."""
        return self._listed[1:]

    def adopt(self, slots: Iterable[disk.Slot]) -> None:
        """Take over slots of processes that are gone."""
        self._unlisted.extend(slots)

    def note_listed(self) -> None:
        """Take note that all are listed."""
        self._listed += self._unlisted
        self._unlisted = []

    def release(self, slot: disk.Slot) -> None:
        """Let an adopted slot go: it is somebody else's to take."""
        self._listed.remove(slot)
        slot.release()

    def release_all(self) -> None:
        """Let go of every slot."""
        for slot in [*self._listed, *self._unlisted]:
            slot.release()

    def root(self, path: Path) -> Path:
        """Return the slot in which a path lies."""
        for slot in [*self._listed, *self._unlisted]:
            if path.is_relative_to(slot.path):
                return slot.path
        raise ValueError(f"{path} is in no slot")

    def tree_of(self, path: Path) -> disk.Tree:
        """Return what publishes and prunes in the slot in which a path lies."""
        return self._tree if path.is_relative_to(self.own) else disk.Tree(self._fs, self.root(path))
