"""Slots: the folders whose dead letters are ours to lend, our own and those of processes that are gone.

Owns which slot a path lies in, and which slots were listed by a count: from one that was not, nothing is lent.
Promises that an adopted slot is held until it is released here, or until its lock has lost its name: then another
process may have it, and it is `lost`. Never reads a folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingest import disk

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


class Slots:
    """See the module's text. The first one is our own."""

    __slots__ = ("_fs", "_listed", "_own", "_tree", "_unlisted", "lost")

    def __init__(self, fs: disk.Filesystem, slots: Sequence[disk.Slot]) -> None:
        self.lost: list[Path] = []
        """Slots that another process may hold, from when that is noticed until nothing is lent from them any more."""
        self._fs = fs
        self._own = slots[0]
        self._tree = disk.Tree(fs, self.own)
        self._unlisted = list(slots)
        self._listed: list[disk.Slot] = []

    def __len__(self) -> int:
        """Count the slots that are held."""
        return len(self._listed) + len(self._unlisted)

    @property
    def own(self) -> Path:
        """The folder of our own."""
        return self._own.path

    @property
    def held(self) -> list[disk.Slot]:
        """All slots, our own first."""
        return [self._own, *(slot for slot in [*self._listed, *self._unlisted] if slot is not self._own)]

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
        return [slot for slot in self._listed if slot is not self._own]

    def adopt(self, slots: Iterable[disk.Slot]) -> None:
        """Take over slots of processes that are gone."""
        self._unlisted.extend(slots)

    def note_listed(self) -> None:
        """Take note that all are listed."""
        self._listed += self._unlisted
        self._unlisted = []

    def release(self, slot: disk.Slot) -> None:
        """Let an adopted slot go: it is somebody else's to take."""
        self._drop(slot)
        slot.release()

    def lose(self, slot: disk.Slot) -> None:
        """Take note that somebody else may hold an adopted slot."""
        self.lost.append(slot.path)
        self.release(slot)

    def take_own_again(self) -> Path | None:
        """Hold our own slot again after its lock has lost its name; return the old folder if it is in another one now.

        `StorageError` if the disk lets us hold none.
        """
        before = self.own
        self._own.take_again([*(slot.path for slot in self.held[1:]), *self.lost])
        self._tree = disk.Tree(self._fs, self.own)
        if self.own == before:
            return None
        self.lost.append(before)
        self._drop(self._own)
        self._unlisted.append(self._own)
        return before

    def release_all(self) -> None:
        """Let go of every slot."""
        for slot in self.held:
            slot.release()

    def holds(self, path: Path) -> bool:
        """Tell whether a path lies in a slot that is held."""
        return any(path.is_relative_to(slot.path) for slot in self.held)

    def volume_is_there(self, path: Path) -> bool:
        """Tell whether a path leads to the volume on which we hold its slot; where that cannot be told, it does not.

        Then what is not found there was removed. Else nothing is known of it.
        """
        for slot in self.held:
            if path.is_relative_to(slot.path):
                try:
                    return slot.volume_is_there(path)
                except disk.StorageError:
                    return False
        return False

    def root(self, path: Path) -> Path:
        """Return the slot in which a path lies."""
        for root in [*(slot.path for slot in self.held), *self.lost]:
            if path.is_relative_to(root):
                return root
        raise ValueError(f"{path} is in no slot")

    def tree_of(self, path: Path) -> disk.Tree:
        """Return what publishes and prunes in the slot in which a path lies."""
        return self._tree if path.is_relative_to(self.own) else disk.Tree(self._fs, self.root(path))

    def _drop(self, slot: disk.Slot) -> None:
        (self._listed if slot in self._listed else self._unlisted).remove(slot)
