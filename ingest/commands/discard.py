"""`dlq discard KEY`: one batch given up by hand, its dead letter and its segment.

Owns the order: every copy is found, the lock of each slot is taken, and only then is the first file removed. Promises
that nothing is removed while a process holds one of the slots, or while a folder that may hold a copy cannot be read;
that a removed file stays removed when the power goes. Never takes less than the whole key.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, NamedTuple

from ingest.commands.shelf import Shelf
from ingest.disk import Slot, StorageError, exists, kept_free, prune, published_path, slot_folders
from ingest.format import dlq_path, ledger, parse_key, segment_path
from ingest.ledger import Ledger

if TYPE_CHECKING:
    from pathlib import Path

    from ingest.commands.report import Report
    from ingest.config import Settings
    from ingest.disk import Filesystem


DISCARDED: Final = "discarded"
"""Why the events were dropped, as the ledger has it."""


class _Found(NamedTuple):
    root: Path
    path: Path
    events: int | None


def discard(fs: Filesystem, settings: Settings, report: Report, key: str, *, dry_run: bool) -> int:
    """Remove the files of this key; 1 if there are none or a process holds them, 2 if it is no key."""
    try:
        parse_key(key)
    except ValueError:
        report.say(f"{key}: no whole key: write the path below the slot, to its end .jsonl.gz")
        return 2
    try:
        found = _find(fs, settings, key)
        if not found:
            report.say(f"{key}: no file below {settings.dlq_dir} or {settings.journal_dir} has this key")
            return 1
        held = _held(fs, found) if dry_run else _remove(fs, settings, key, found)
    except StorageError as error:
        report.say(str(error))
        return 1
    if held is not None:
        report.say(f"{held} is held by a running process: stop it first, or let it recover the file")
        return 1
    events = max((copy.events for copy in found if copy.events is not None), default=None)
    number = "an unknown number of" if events is None else events
    done = "dry run: would drop" if dry_run else "dropped"
    for copy in found:
        report.say(f"{'would be removed' if dry_run else 'removed'}: {copy.path}")
    return report.end(
        0,
        f"{done} {number} events in {len(found)} files",
        dry_run=dry_run,
        key=key,
        events=events,
        files=[str(copy.path) for copy in found],
    )


def _find(fs: Filesystem, settings: Settings, key: str) -> list[_Found]:
    shelf = Shelf(fs, settings, None)
    found = []
    for base, path_of in ((settings.dlq_dir, dlq_path), (settings.journal_dir, segment_path)):
        for root in slot_folders(fs, base):
            path = path_of(root, key)
            # Temporaries first: once its file is gone, one would become the file again.
            found += [_Found(root, temporary, None) for temporary in _temporaries_of(fs, path)]
            if exists(fs, path):
                found.append(_Found(root, path, shelf.events_of(key, path)))
    return found


def _temporaries_of(fs: Filesystem, path: Path) -> list[Path]:
    try:
        names = fs.listdir(path.parent)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError.of("list", path.parent, error) from error
    return sorted(path.parent / name for name in names if published_path(path.parent / name) == path)


def _held(fs: Filesystem, found: list[_Found]) -> Path | None:
    for copy in found:
        with kept_free(fs, copy.root) as free:
            if not free:
                return copy.root
    return None


def _remove(fs: Filesystem, settings: Settings, key: str, found: list[_Found]) -> Path | None:
    """Remove the files; the slot that a process holds, if there is one, and then none is removed."""
    with ExitStack() as locks:
        for root in {copy.root for copy in found}:
            slot = Slot.take(fs, root.parent, int(root.name))
            if slot is None:
                return root
            locks.callback(slot.release)
        told = Ledger(fs, sync=True, kept=settings.manifests)
        events = max((copy.events for copy in found if copy.events is not None), default=None)
        for copy in found:
            told.note(copy.root, ledger.dropped(key, DISCARDED, events))
            try:
                _unlink(fs, copy.path)
            except OSError as error:
                raise StorageError.of("unlink", copy.path, error) from error
            prune(fs, copy.path.parent, copy.root)
    return None


def _unlink(fs: Filesystem, path: Path) -> None:
    fs.unlink(path)
    fs.fsync_dir(path.parent)
