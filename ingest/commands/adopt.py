"""`dlq adopt DIR`: what the volume of a host that is gone holds comes home, under its own keys.

Owns where on such a volume the files are, and that nothing is put while somebody may still write there. The rest is
`replay`: create-only, each key's dead letter and segment judged together, a file removed only once the store has it. So
an object that the dead host had stored already stays as it is, and the next call goes on where a kill interrupted one.

Promises that a volume of which a process holds one slot is left alone as a whole, because that process brings its files
home itself; that a folder without slots is an error, and a journal is never taken for an empty queue; that no file
expires here. Never looks at the directories that the settings name.
"""

from __future__ import annotations

import secrets
import stat
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ingest.commands import interrupt
from ingest.commands.replay import rehearse, replay
from ingest.commands.report import Report
from ingest.disk import StorageError, is_folder, kept_free, slot_folders
from ingest.spool import Segments, hour_folders

if TYPE_CHECKING:
    from pathlib import Path

    from ingest.config import Settings
    from ingest.disk import Filesystem

_WORD = "adopt"
_BELOW = "journal"
"""Where the journal is below `DLQ_DIR` unless `JOURNAL_DIR` says otherwise."""
_WORK = ".adopt"
"""The slot of whoever adopts, on a volume that holds a journal alone."""


class _Volume(NamedTuple):
    """The two directories of a host that is gone; None where the volume has none."""

    dlq: Path | None
    journal: Path | None


def adopt(
    fs: Filesystem,
    settings: Settings,
    folder: Path,
    journal: Path | None,
    hour: str | None,
    *,
    as_json: bool,
    dry_run: bool,
    salvages: bool,
) -> int:
    """Put what the volume at `folder` holds; 1 if something stays or a process holds it, 2 if it is no volume."""
    report = Report(_WORD, folder, journal, hour, as_json=as_json)
    try:
        volume = _find(fs, folder, journal, report)
        if volume is None:
            return 2
        if (held := _held(fs, volume)) is not None:
            report.say(f"{held} is held by a running process, which brings its files home itself: nothing is done")
            return 1
    except StorageError as error:
        report.say(str(error))
        return 2
    report = Report(_WORD, *volume, hour, as_json=as_json)
    theirs = replace(
        settings,
        dlq_dir=volume.dlq or folder / _WORK,
        journal_dir=volume.journal or folder / _BELOW,
        dlq_max_age=0,
    )
    if dry_run:
        return interrupt.run(rehearse(fs, theirs, report, hour, _WORD))
    return interrupt.run(replay(fs, theirs, report, hour, _WORD, salvages=salvages))


def _find(fs: Filesystem, folder: Path, journal: Path | None, report: Report) -> _Volume | None:
    """Return what is where below `folder`; None, and said why, if it is no volume of ours."""
    for named in (folder, journal):
        if named is not None and not is_folder(fs, named):
            report.say(f"{named}: there is no such directory; is the volume mounted?")
            return None
    if journal is not None and not slot_folders(fs, journal):
        report.say(f"{journal}: no slot is in it; name the JOURNAL_DIR that the server had")
        return None
    slots = slot_folders(fs, folder)
    below = folder / _BELOW
    journals = slot_folders(fs, journal or below) if journal or is_folder(fs, below) else []
    for name in (*slots, *(() if journal else (below,)), *journals):
        if _is_link(fs, name):
            report.say(f"{name} is a symbolic link, which leads off the volume: name the folder that was meant")
            return None
    for name in hour_folders(fs, [*slots, *journals]).links:
        report.say(f"{name} is a symbolic link, which leads off the volume: move what it leads to into its place")
        return None
    segments = Segments(fs, secrets.token_hex(8))
    if any(segments.names(root).segments for root in slots):
        if journal is None:
            return _Volume(None, folder)
        report.say(f"{folder}: segments are in it, so it is a JOURNAL_DIR itself; name the DLQ_DIR in its place")
        return None
    if journal is None and is_folder(fs, below):
        journal = below
    if not slots and (journal is None or not slot_folders(fs, journal)):
        guess = folder / "dlq"
        hint = f"did you mean {guess}?" if is_folder(fs, guess) else "name the DLQ_DIR that the server had"
        report.say(f"{folder}: no slot is in it; {hint}")
        return None
    if journal is None:
        report.say(f"{below}: there is no such directory; if that server had a JOURNAL_DIR, name it with --journal-dir")
    return _Volume(folder, journal)


def _is_link(fs: Filesystem, path: Path) -> bool:
    try:
        return stat.S_ISLNK(fs.lstat(path).st_mode)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError.of("stat", path, error) from error


def _held(fs: Filesystem, volume: _Volume) -> Path | None:
    """Return a slot that a process holds, if there is one."""
    for base in volume:
        for root in () if base is None else slot_folders(fs, base):
            with kept_free(fs, root) as free:
                if not free:
                    return root
    return None
