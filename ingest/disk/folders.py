"""Folders, and the names in them.

Owns the making and pruning of folders and the opening of new files in them. Promises that with `sync` the name of each
folder made is on the device when the call returns. Never reads a file's content. All of it blocks.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from ingest.disk.errors import StorageError
from ingest.disk.filesystem import FILE_MODE, Filesystem
from ingest.disk.reading import is_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PUBLISH_ATTEMPTS = 5
SYNCED_MAX = 1024


def open_new(
    fs: Filesystem,
    path: Path,
    flags: int,
    folder: Path,
    root: Path | None,
    synced: set[Path] | None,
    *,
    sync: bool,
) -> int:
    """Open a file that must not exist yet, with the missing folders below `root`; return its descriptor."""
    attempt = 1
    while True:
        try:
            if root is not None:
                make_dirs(fs, folder, root, sync=sync, synced=synced)
            return fs.open(path, flags | os.O_CREAT | os.O_EXCL, FILE_MODE)
        except (OSError, StorageError) as error:
            # `prune` may remove an emptied folder at any instant until there is a file in it: make it again.
            if error.errno != errno.ENOENT or root is None or attempt == PUBLISH_ATTEMPTS:
                raise error if isinstance(error, StorageError) else StorageError.of("open", path, error) from error
        attempt += 1


def sync_folder(fs: Filesystem, folder: Path) -> None:
    """Return once the names in this folder are on the device."""
    try:
        fs.fsync_dir(folder)
    except OSError as error:
        raise StorageError.of("fsync", folder, error) from error


def sync_file(fs: Filesystem, path: Path, root: Path) -> None:
    """Return once a file that somebody else wrote is on the device, with its name and the folders below `root`."""
    try:
        fd = fs.open(path, os.O_RDONLY)
        try:
            fs.fdatasync(fd)
        finally:
            fs.close(fd)
    except OSError as error:
        raise StorageError.of("fdatasync", path, error) from error
    for folder in path.parents:
        sync_folder(fs, folder)
        if folder == root:
            return


def discard(fs: Filesystem, path: Path) -> None:
    """Remove a file that nobody needs; one that stays is only untidy."""
    with suppress(OSError):
        fs.unlink(path)


def make_dirs(fs: Filesystem, path: Path, root: Path, *, sync: bool, synced: set[Path] | None = None) -> None:
    """Make the missing folders from `root` down to `path`, and `root` itself with what is above it.

    With `sync`, each folder's name is on the device when this returns, also that of a folder found in place: a process
    that was killed between `mkdir` and the sync left it there. `synced` remembers which were seen to, and spares the
    repetition; give each root its own, empty set. `root`, if it is in place, is the operator's and taken as it is.
    """
    folders = [path, *path.parents]
    if root not in folders:
        raise ValueError(f"{path} is not below {root}")
    below = folders[: folders.index(root)]
    for folder in _missing(fs, root):
        if _mkdir(fs, folder) and sync:
            sync_folder(fs, folder.parent)
    for folder in reversed(below):
        made = _mkdir(fs, folder)
        # Crash point "mkdir": the folder may vanish in a power cut with all that is in it, however well that is synced.
        if sync and (made or synced is None or folder not in synced):
            sync_folder(fs, folder.parent)
            if synced is not None:
                if len(synced) >= SYNCED_MAX:
                    synced.clear()
                synced.add(folder)


def prune(fs: Filesystem, folder: Path, root: Path) -> None:
    """Remove `folder` and its parents below `root` while they are empty. Never raises: a folder left is only untidy."""
    while folder != root and root in folder.parents:
        try:
            fs.rmdir(folder)
        except FileNotFoundError:
            pass  # somebody else was quicker; the parent may be empty now
        except OSError:
            return
        folder = folder.parent


def _missing(fs: Filesystem, root: Path) -> Iterator[Path]:
    if is_folder(fs, root):
        return
    for folder in (*reversed(root.parents), root):
        if not is_folder(fs, folder):
            yield folder


def _mkdir(fs: Filesystem, folder: Path) -> bool:
    try:
        fs.mkdir(folder)
    except FileExistsError as error:
        if is_folder(fs, folder):
            return False
        # `prune` may have removed it between the two looks: then it is missing, and `open_new` makes it again.
        missing = _is_no_name(fs, folder)
        raise StorageError.of("mkdir", folder, OSError(errno.ENOENT if missing else errno.ENOTDIR, "")) from error
    except OSError as error:
        raise StorageError.of("mkdir", folder, error) from error
    return True


def _is_no_name(fs: Filesystem, path: Path) -> bool:
    try:
        fs.lstat(path)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise StorageError.of("stat", path, error) from error
    return False
