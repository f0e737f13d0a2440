"""A folder of one owner, and what appears and vanishes below it.

Owns which folders below its root are known to be synced, so that a file in a folder in use costs no sync but its own.
Promises what `publish`, `publish_new` and `make_dirs` promise. Never remembers a folder that it has pruned: that may be
made anew, by anybody, and then has to be synced again. All of it blocks. While one thread prunes no other may make.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingest.disk.folders import make_dirs, prune
from ingest.disk.publish import publish, publish_new

if TYPE_CHECKING:
    from pathlib import Path

    from ingest.disk.filesystem import Bytes, Filesystem


class Tree:
    """See the module's text. `temporaries` is where files are written before they are published: by default beside."""

    __slots__ = ("_fs", "_synced", "_temporaries", "root")

    def __init__(self, fs: Filesystem, root: Path, *, temporaries: Path | None = None) -> None:
        self.root = root
        self._fs = fs
        self._temporaries = temporaries
        self._synced: set[Path] = set()

    def publish(self, path: Path, data: Bytes, *, only_copy: bool = False) -> None:
        """Put a whole file under `path`, replacing what is there."""
        self._make_temporaries()
        where = self._temporaries
        publish(self._fs, path, data, root=self.root, synced=self._synced, temporary_in=where, only_copy=only_copy)

    def publish_new(self, path: Path, data: Bytes) -> bool:
        """Put a whole file under `path` only if nothing has that name; False, and no change, if something does."""
        self._make_temporaries()
        return publish_new(self._fs, path, data, root=self.root, synced=self._synced, temporary_in=self._temporaries)

    def make(self, folder: Path) -> None:
        """Make the missing folders down to this one; their names are on the device when it returns."""
        make_dirs(self._fs, folder, self.root, sync=True, synced=self._synced)

    def prune(self, folder: Path) -> None:
        """Remove `folder` and its parents below the root while they are empty. Never raises."""
        prune(self._fs, folder, self.root)
        self._synced.difference_update((folder, *folder.parents))

    def _make_temporaries(self) -> None:
        # Each time: whoever tidies up here may take an empty folder away.
        if self._temporaries is not None:
            self.make(self._temporaries)
