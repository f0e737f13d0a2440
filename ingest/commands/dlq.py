"""The operator's hand on what waits on disk: `estat-ingest dlq ls|verify|replay|adopt|export|discard`.

Owns the words of these commands, and the two that only look, over all slots of `DLQ_DIR` and `JOURNAL_DIR`:

    ls        files, events, bytes and age of each hour, from names, gzip headers and the newlines of segments
    verify    every file read whole; the corrupt ones named, exit 1 if there are any

Promises to be safe beside a running server: what is read is what nobody writes (see `shelf`), and a command that
removes files holds the lock of their slot. A directory that is not there is an error, never an empty one; that of the
store too, for a command that removes what it has stored. `adopt` never uses a store that nobody named.

Never: writes to a slot, judges a file by other rules than recovery's.
"""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ingest.commands import interrupt
from ingest.commands.adopt import adopt
from ingest.commands.discard import discard
from ingest.commands.export import export
from ingest.commands.opened import require_store
from ingest.commands.replay import rehearse, replay
from ingest.commands.report import Report
from ingest.commands.shelf import Shelf, damage
from ingest.disk import Filesystem, Lane, StorageError, is_folder
from ingest.format import parse_key
from ingest.threads import pool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ingest.config import Settings


_HOUR: Final = re.compile(r"dt=(\d{4}-\d{2}-\d{2})/hr=(\d{2})", re.ASCII)
_EXITS: Final = "exit codes: 0 {}; 1 {}; 2 a directory is missing, or the words or settings are wrong; 130 interrupted"

# word -> (what it does, exit 0, exit 1, an example)
_ACTIONS: Final = {
    "ls": (
        "show files, events, bytes and age of each hour",
        "done",
        "something cannot be read",
        "ls --hour dt=2026-11-23/hr=13",
    ),
    "verify": (
        "read every file whole and name the corrupt ones",
        "all are sound",
        "a file is corrupt or cannot be read",
        "verify --json | jq .corrupt",
    ),
    "replay": (
        "put what slots hold that belong to no running process",
        "nothing stays",
        "something stays, or would",
        "replay --dry-run",
    ),
    "adopt": (
        "put what the volume of a host that is gone holds in the store that RAW_BUCKET or STORE_DIR names",
        "nothing stays there",
        "something stays, or would, or a process holds it",
        "adopt /mnt/dead/dlq",
    ),
    "export": (
        "copy the sound lines as .jsonl.gz, changing nothing",
        "all is copied whole",
        "something is corrupt or cannot be read, or a name has other bytes",
        "export - | zcat",
    ),
    "discard": (
        "remove one batch's files, its events with them",
        "they are removed",
        "no file has the key, a running process holds it, or it cannot be removed",
        "discard raw/dt=2026-11-23/hr=13/1795442264_web-3978c546747caa01_0000000003.jsonl.gz",
    ),
}


def add_arguments(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to `dlq`."""
    words = {}
    for word, (what, good, bad, example) in _ACTIONS.items():
        words[word] = parser = actions.add_parser(
            word,
            help=what,
            description=f"{what[0].upper()}{what[1:]}.",
            epilog=f"{_EXITS.format(good, bad)}\n\nexample: estat-ingest dlq {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
        if word != "discard":
            parser.add_argument("--hour", type=_hour, metavar="dt=YYYY-MM-DD/hr=HH", help="this hour only")
        if word in ("replay", "adopt", "discard"):
            parser.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")
        if word in ("replay", "adopt"):
            parser.add_argument(
                "--salvage",
                action="store_true",
                help="put what is sound in half-written files too: no journal that is not here has their batches",
            )
    words["adopt"].add_argument(
        "folder", type=Path, metavar="DIR", help="the DLQ_DIR or the JOURNAL_DIR on that volume"
    )
    words["adopt"].add_argument(
        "--journal-dir", type=Path, metavar="DIR", help="its JOURNAL_DIR, if that is not DIR/journal"
    )
    words["export"].add_argument("target", help="a directory, or - for standard output")
    words["discard"].add_argument("key", help="the whole key: the file's path below its slot, ending in .jsonl.gz")


def _hour(text: str) -> str:
    hour = _HOUR.fullmatch(text)
    try:
        datetime.fromisoformat("{}T{}:00".format(*hour.groups()) if hour else "")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not dt=YYYY-MM-DD/hr=HH") from None
    return text


def run(arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]) -> int:
    """Run the command; 0 done, 1 something is wrong or stays, 2 it cannot be run.

    `environ`: the one that the settings are of. It tells a store that was named from the default.
    """
    fs = Filesystem()
    settings = replace(
        settings,
        dlq_dir=settings.dlq_dir.absolute(),
        journal_dir=settings.journal_dir.absolute(),
        store_dir=settings.store_dir.absolute(),
    )
    hour: str | None = getattr(arguments, "hour", None)
    report = Report(arguments.action, settings.dlq_dir, settings.journal_dir, hour, as_json=arguments.json)
    try:
        if arguments.action == "adopt":
            if not any(environ.get(name, "").strip() for name in ("RAW_BUCKET", "STORE_DIR")):
                report.say("adopt: set RAW_BUCKET or STORE_DIR: what is stored there is removed from the volume")
                return 2
            require_store(fs, settings)
            return adopt(
                fs,
                settings,
                arguments.folder.absolute(),
                None if arguments.journal_dir is None else arguments.journal_dir.absolute(),
                hour,
                as_json=arguments.json,
                dry_run=arguments.dry_run,
                salvages=arguments.salvage,
            )
        if (missing := _missing(fs, settings)) is not None:
            report.say(missing)
            return 2
        match arguments.action:
            case "ls":
                return _list(Shelf(fs, settings, hour), report)
            case "verify":
                return interrupt.run(_verify(Shelf(fs, settings, hour), report))
            case "export":
                return export(fs, settings, Shelf(fs, settings, hour), report, arguments.target)
            case "discard":
                return discard(fs, settings, report, arguments.key, dry_run=arguments.dry_run)
            case _:
                require_store(fs, settings)
                if arguments.dry_run:
                    return interrupt.run(rehearse(fs, settings, report, hour))
                return interrupt.run(replay(fs, settings, report, hour, salvages=arguments.salvage))
    except StorageError as error:
        report.say(str(error))
        return 2


def _missing(fs: Filesystem, settings: Settings) -> str | None:
    """Return the line about a directory that is not there."""
    folders = {"DLQ_DIR": settings.dlq_dir, "JOURNAL_DIR": settings.journal_dir}
    if settings.journal_dir.is_relative_to(settings.dlq_dir):
        del folders["JOURNAL_DIR"]  # it is on the volume that is there, so that nothing is in it
    for name, folder in folders.items():
        if not is_folder(fs, folder):
            return f"{name}={folder}: there is no such directory; name the one that the server has"
    return None


# ---------------------------------------------------------------------------------------------------------- ls


@dataclass(slots=True)
class _Hour:
    files: int = 0
    events: int = 0
    size: int = 0
    oldest: int | None = None


def _list(shelf: Shelf, report: Report) -> int:
    hours: dict[tuple[str, str, str], _Hour] = {}
    total = _Hour()
    for group in shelf.measured():
        for letter in group:
            parsed = parse_key(letter.key)
            place = "journal" if letter.is_segment else "dlq"
            hour = hours.setdefault((parsed.partition, parsed.prefix, place), _Hour())
            hour.oldest = parsed.unix if hour.oldest is None else min(hour.oldest, parsed.unix)
            for row in (hour, total):
                row.files += 1
                row.events += letter.events
                row.size += letter.size
    unread = shelf.tell(report)
    return report.end(
        1 if unread else 0,
        _table(hours, total),
        hours=[
            {
                "hour": partition,
                "prefix": prefix,
                "place": place,
                "files": hour.files,
                "events": hour.events,
                "bytes": hour.size,
                "oldest": hour.oldest,
            }
            for (partition, prefix, place), hour in sorted(hours.items())
        ],
        total={"files": total.files, "events": total.events, "bytes": total.size},
        **shelf.facts(),
    )


def _table(hours: dict[tuple[str, str, str], _Hour], total: _Hour) -> str:
    row = "{:<24} {:<16} {:<8} {:>9} {:>12} {:>12} {:>8}".format
    now = time.time()
    lines = [row("hour", "prefix", "place", "files", "events", "bytes", "age")]
    for (partition, prefix, place), hour in sorted(hours.items()):
        age = _age(now - (hour.oldest or 0))
        lines.append(row(partition, prefix, place, hour.files, hour.events, hour.size, age))
    lines.append(row("total", "", "", total.files, total.events, total.size, "").rstrip())
    return "\n".join(lines)


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


# ------------------------------------------------------------------------------------------------------- verify


async def _verify(shelf: Shelf, report: Report) -> int:
    sound = 0
    corrupt: list[dict[str, object]] = []
    lane = Lane("dlq")
    with pool(1) as executor:
        try:
            for group in shelf.with_progress("verify"):
                for copy in await shelf.judge(group, lane, executor):
                    found = copy.contents.found
                    if found.sound:
                        sound += 1
                        if found.torn_tail:
                            report.say(
                                f"{copy.letter.path}: sound; its last line was cut off before it was acknowledged"
                            )
                        continue
                    corrupt.append(damage(copy))
                    cut = ", cut off" if found.torn_tail else ""
                    counts = f"{found.events} sound lines, {found.bad_lines} bad ones{cut}"
                    report.say(f"{copy.letter.path}: corrupt, {counts}")
        finally:
            lane.abandon()
    unread = shelf.tell(report)
    return report.end(
        1 if corrupt or unread else 0,
        f"{sound} sound, {len(corrupt)} corrupt, {len(shelf.unread)} unreadable",
        sound=sound,
        corrupt=corrupt,
        **shelf.facts(),
    )
