"""A file that appears whole.

Promises, with *published* for synced, then renamed or linked, then its folder synced:

    publish      under the name lies the old file or the whole new one, at every instant and after every crash
    publish_new  the same, and a name that exists already is never replaced

Never reads a file's content, never knows what a key or an event is. All of it blocks.
"""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

from ingest.disk.append import write_all
from ingest.disk.errors import NameInDoubt, StorageError
from ingest.disk.folders import discard, open_new, sync_folder

if TYPE_CHECKING:
    from pathlib import Path

    from ingest.disk.filesystem import Bytes, Filesystem

TEMPORARY_SUFFIX = ".tmp"
ONLY_COPY = "only-"


def publish(
    fs: Filesystem,
    path: Path,
    data: Bytes,
    *,
    sync: bool = True,
    root: Path | None = None,
    synced: set[Path] | None = None,
    temporary_in: Path | None = None,
    only_copy: bool = False,
) -> None:
    """Put a whole file under `path`, replacing what is there. `StorageError`: the old file, or none, is still there.

    One exception, `NameInDoubt`: if only the last step fails, the folder's sync, the new file stands under its name but
    a power cut may bring back the old one. It is left standing, since to remove it could remove the only copy. A rename
    that fails is in doubt too: a network disk may have done it, and its answer is lost.
    With `root`, missing folders below it are made (`synced` as in `make_dirs`); without it the folder must exist.
    `temporary_in` is where the temporary goes (same volume; by default beside the file). `sync=False` is for what need
    not survive a power cut. `only_copy` is for what lies on no disk yet: the temporary's name says so, because half of
    it is then all that a crash leaves.
    """
    mark = ONLY_COPY if only_copy else ""
    temporary = _write_temporary(fs, path, data, temporary_in or path.parent, root, synced, sync=sync, mark=mark)
    # Crash point "temporary": the bytes are synced, the name is not given yet. The temporary stays behind; whoever
    # owns the folder finds by `published_path` what it was to become, and removes or salvages it.
    try:
        # After the sync of the bytes, never before: the rename may reach the device first, and a power cut would
        # then leave the name on an empty file, and the old one gone.
        fs.rename(temporary, path)
    except OSError as error:
        discard(fs, temporary)
        raise NameInDoubt.of("rename", path, error) from error
    # Crash point "renamed": old or new file, each whole. Nobody was told that it is published.
    if sync:
        _sync_name(fs, path.parent)


def publish_new(
    fs: Filesystem,
    path: Path,
    data: Bytes,
    *,
    root: Path | None = None,
    synced: set[Path] | None = None,
    temporary_in: Path | None = None,
) -> bool:
    """Put a whole file under `path` only if nothing has that name; False, and no change, if something does.

    `link(2)` is the condition: the kernel refuses a name that exists, so two writers can never both win. Both answers
    mean that a whole file is published under the name. The other arguments are those of `publish`.
    """
    temporary = _write_temporary(fs, path, data, temporary_in or path.parent, root, synced, sync=True)
    try:
        try:
            fs.link(temporary, path)
        except FileExistsError:
            # Whoever linked it synced its bytes before, but may have died, or be about to, before the folder's sync.
            # False makes the caller remove its own copy, so the name must survive from here on.
            sync_folder(fs, path.parent)
            return False
        except OSError as error:
            raise StorageError.of("link", path, error) from error
        # Crash point "linked": two names for one whole file, or only the temporary. Nobody was told.
        try:
            sync_folder(fs, path.parent)
        except StorageError:
            # A try that failed must not look like "it exists already" to the next one: after a failed sync the kernel
            # may report success for a name that never reached the device. Only we can have made this name.
            discard(fs, path)
            raise
        return True
    finally:
        # Last, and not synced: if a power cut brings the temporary back it is a second name of a published file.
        discard(fs, temporary)


def published_path(temporary: Path) -> Path | None:
    """Return the path that a temporary beside its target was to get; None if this is no temporary's name."""
    name = temporary.name
    if not (name.startswith(".") and name.endswith(TEMPORARY_SUFFIX)):
        return None
    target, dot, _ = name[1 : -len(TEMPORARY_SUFFIX)].rpartition(".")
    return temporary.with_name(target) if dot and target else None


def is_only_copy(temporary: Path) -> bool:
    """Tell whether a temporary's name says that what it is to hold lay on no disk when it was begun."""
    return temporary.name.rpartition(TEMPORARY_SUFFIX)[0].rpartition(".")[2].startswith(ONLY_COPY)


def _sync_name(fs: Filesystem, folder: Path) -> None:
    try:
        fs.fsync_dir(folder)
    except OSError as error:
        raise NameInDoubt.of("fsync", folder, error) from error


def _write_temporary(
    fs: Filesystem,
    path: Path,
    data: Bytes,
    folder: Path,
    root: Path | None,
    synced: set[Path] | None,
    *,
    sync: bool,
    mark: str = "",
) -> Path:
    temporary = folder / f".{path.name}.{mark}{secrets.token_hex(6)}{TEMPORARY_SUFFIX}"
    fd = open_new(fs, temporary, os.O_WRONLY, path.parent, root, synced, sync=sync)
    operation = "write"
    try:
        try:
            # A temporary is deleted when it fails, so unlike an append it needs no roll-back.
            write_all(fs, fd, data, 0)
            if sync:
                operation = "fdatasync"
                fs.fdatasync(fd)
        finally:
            fs.close(fd)
    except OSError as error:
        discard(fs, temporary)
        raise StorageError.of(operation, path, error) from error
    return temporary
