"""`dlq export TARGET`: the sound lines of every batch that waits, copied to a directory or to standard output.

Owns which directory may be a target, and what could not be copied whole. Promises that no file is changed: a target is
never a directory of the server, nor above or below one, and a name that exists there already is never replaced; that a
batch without one sound line is named too; exit 1 if anything could not be copied whole. Never takes a lock for longer
than a look.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ingest.commands import interrupt
from ingest.commands.shelf import damage
from ingest.config import overlap
from ingest.delivery.choice import choose
from ingest.disk import Lane, StorageError, read_file
from ingest.disk.publish import publish_new
from ingest.format import codec, dlq_path
from ingest.threads import pool

if TYPE_CHECKING:
    from ingest.commands.report import Report
    from ingest.commands.shelf import Shelf
    from ingest.config import Settings
    from ingest.disk import Filesystem


STDOUT: Final = "-"


def export(fs: Filesystem, settings: Settings, shelf: Shelf, report: Report, target: str) -> int:
    """Copy the batches; 1 if something could not be copied whole or read, 2 if the target cannot be one."""
    if target == STDOUT:
        if report.as_json or sys.stdout.isatty():
            busy = "has the document of --json" if report.as_json else "is a terminal: redirect it"
            report.say(f"export: standard output {busy}, or name a directory")
            return 2
        return interrupt.run(_export(fs, shelf, report, None))
    folder = Path(target).absolute()
    if (why := _unfit(settings, folder)) is not None:
        report.say(why)
        return 2
    return interrupt.run(_export(fs, shelf, report, folder))


def _unfit(settings: Settings, target: Path) -> str | None:
    """Return the line about a target among the server's own files."""
    folders = {"DLQ_DIR": settings.dlq_dir, "JOURNAL_DIR": settings.journal_dir}
    if settings.raw_bucket is None:
        folders["STORE_DIR"] = settings.store_dir
    for name, folder in folders.items():
        if overlap(target, folder):
            return f"export: {target} is {name}={folder}, or above or below it: name a directory of its own"
    return None


async def _export(fs: Filesystem, shelf: Shelf, report: Report, folder: Path | None) -> int:
    files = events = 0
    corrupt: list[dict[str, object]] = []
    different: list[str] = []
    lane = Lane("dlq")
    with pool(1) as executor:
        try:
            for group in shelf.with_progress("export"):
                copies = await shelf.judge(group, lane, executor)
                if not copies:
                    continue
                best = choose(copies).best
                body = best.contents.body
                if not best.contents.found.sound:
                    corrupt.append(damage(best))
                    lines = "no line of it is sound" if body is None else f"its {best.events} sound lines are exported"
                    report.say(f"{best.letter.path}: corrupt, {lines}")
                if body is None:
                    continue
                if folder is None:
                    # Gzip members one behind the other are a gzip file.
                    sys.stdout.buffer.write(body)
                elif not _copied(fs, folder, path := dlq_path(folder, best.letter.key), body):
                    different.append(str(path))
                    report.say(f"{path}: it exists with other bytes, and stays; {best.letter.path} is not exported")
                    continue
                files += 1
                events += best.events
        finally:
            lane.abandon()
    unread = shelf.tell(report)
    code = 1 if unread or corrupt or different else 0
    text = f"{files} files, {events} events exported"
    if corrupt or different:
        text += f"; {len(corrupt)} corrupt, {len(different)} names taken by other bytes"
    if not report.as_json:
        sys.stdout.flush()
        report.say(text)
        return code
    return report.end(
        code,
        text,
        target=str(folder),
        files=files,
        events=events,
        corrupt=corrupt,
        different=different,
        **shelf.facts(),
    )


def _copied(fs: Filesystem, folder: Path, path: Path, body: bytes) -> bool:
    """Have these bytes under the name, or others that unpack to the same; False, and no change, if it has neither."""
    if publish_new(fs, path, body, root=folder):
        return True
    try:
        there = read_file(fs, path)
    except IsADirectoryError:
        return False
    except OSError as error:
        raise StorageError.of("read", path, error) from error
    if there == body:
        return True
    try:
        return codec.lines_of(there) == codec.lines_of(body)
    except codec.BadGzip:
        return False
