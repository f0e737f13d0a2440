"""The collector over a file system that kills the process at a named instant, or fails where it is told to.

`python -m tests.process.crashing_server POINT NTH` serves with the settings of the environment. `POINT` is a name of
`POINTS`; the process sends itself SIGKILL at its `NTH` occurrence, after a line `crash_point` on standard error, so
that a test knows that it died where it was to die. Nothing of this is in the product: it uses the `Filesystem` seam.

A file `armed` in the working directory is what a point with `armed=True` waits for: a test puts it there just before it
sends SIGTERM, so that the point is hit during the drain.
"""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from ingest.config.settings import load
from ingest.ledger import is_of_ledger
from tests.process.faulty_server import armed, die, room_of
from tests.process.hasty_server import hurry
from tests.stand_ins.disk import Disk

if TYPE_CHECKING:
    from pathlib import Path

    from ingest.config.settings import Settings


@dataclass(frozen=True, slots=True)
class Point:
    """Where the process dies, and what has to fail so that it gets there."""

    calls: tuple[str, ...]  # operations of `tests.stand_ins.disk`
    room: str  # "store", "dlq" or "journal": where its path lies
    when: str = "after"  # or "before" the call
    temporary: bool = False  # the path is a temporary's
    ledger: bool = False  # the path is the ledger's
    document: bool = False  # the path is a manifest's, or the registry's
    inherited: bool | None = None  # the file was (not) there when the process started
    published: bool = False  # for fsync_dir: of a folder in which a name has just been made
    armed: bool = False
    store_fails: bool = False  # every put fails, so that batches go to the DLQ
    sync_fails: bool = False  # every fourth fdatasync of a segment fails, so that it is rewritten


def _save(**more: object) -> Point:
    return Point(room="dlq", store_fails=True, **more)  # type: ignore[arg-type]


def _rewrite(**more: object) -> Point:
    return Point(room="journal", sync_fails=True, **more)  # type: ignore[arg-type]


POINTS: dict[str, Point] = {
    "segment_written": Point(("write",), "journal"),
    "segment_synced": Point(("fdatasync",), "journal"),
    "put_temporary_synced": Point(("fdatasync",), "store", temporary=True),
    "put_stored_answer_lost": Point(("rename",), "store"),
    "ledger_line_begins": Point(("write",), "journal", when="before", ledger=True),
    "ledger_line_written": Point(("write",), "journal", ledger=True),
    "ledger_line_synced": Point(("fdatasync",), "journal", ledger=True),
    "recovery_ledger_line_written": Point(("write",), "dlq", ledger=True),
    "segment_release_begins": Point(("unlink",), "journal", when="before", inherited=False),
    "segment_released": Point(("unlink",), "journal", inherited=False),
    "dlq_save_begins": _save(calls=("open",), temporary=True),
    "dlq_save_written": _save(calls=("write",), temporary=True),
    "dlq_save_synced": _save(calls=("fdatasync",), temporary=True),
    "dlq_save_renamed": _save(calls=("rename", "link")),
    "dlq_save_published": _save(calls=("fsync_dir",), published=True),
    "dlq_save_segment_released": Point(("unlink",), "journal", inherited=False, store_fails=True),
    "rewrite_begins": _rewrite(calls=("open",), temporary=True),
    "rewrite_written": _rewrite(calls=("write",), temporary=True),
    "rewrite_synced": _rewrite(calls=("fdatasync",), temporary=True),
    "rewrite_renamed": _rewrite(calls=("rename",)),
    "rewrite_published": _rewrite(calls=("fsync_dir",), published=True),
    "recovery_put_stored_answer_lost": Point(("link",), "store"),
    "recovery_release_begins": Point(("unlink",), "journal", when="before", inherited=True),
    "recovery_released": Point(("unlink",), "journal", inherited=True),
    "recovery_of_dlq_file_done": Point(("unlink",), "dlq", inherited=True),
    "drain_put_stored_answer_lost": Point(("rename",), "store", armed=True),
    "drain_manifest_temporary_synced": Point(("fdatasync",), "store", temporary=True, document=True, armed=True),
    "drain_manifest_stored": Point(("rename",), "store", document=True, armed=True),
    "drain_segment_released": Point(("unlink",), "journal", inherited=False, armed=True),
    "drain_dlq_save_synced": _save(calls=("fdatasync",), temporary=True, armed=True),
    "drain_dlq_save_renamed": _save(calls=("rename", "link"), armed=True),
}


def crashing_disk(name: str, nth: int, settings: Settings) -> Disk:
    """The real disk up to the instant in question."""
    point, room = POINTS[name], room_of(settings)
    folders = (settings.journal_dir, settings.dlq_dir)
    inherited = {os.path.abspath(path) for folder in folders for path in folder.rglob("*") if path.is_file()}
    named_in: set[Path] = set()
    disk = Disk()

    def is_it(path: Path) -> bool:
        return (
            room(path) == point.room
            and (path.suffix == ".tmp") == point.temporary
            and is_of_ledger(path) == point.ledger
            and (not point.ledger or path.name.startswith("dt="))  # a line, not the word that a process has started
            and (".json" in path.name and ".jsonl" not in path.name) == point.document
            and point.inherited in (None, os.path.abspath(path) in inherited)
            and path.name != "lock"
            and (not point.armed or armed())
            and (not point.published or path in named_in)
        )

    reached = disk.on(*point.calls, when=is_it, nth=nth, after=point.when == "after")
    reached.call(lambda path: die(event="crash_point", point=name, path=str(path)))
    if point.published:
        disk.on("rename", "link", after=True).call(lambda path: named_in.add(path.parent))
        disk.on("fsync_dir", after=True).call(named_in.discard)
    if point.store_fails:
        disk.on("open", when=lambda path: room(path) == "store").fail(errno.EIO)
    if point.sync_fails:
        segments = count()
        disk.on(
            "fdatasync",
            when=lambda path: room(path) == "journal" and path.suffix != ".tmp" and next(segments) % 4 == 3,
        ).fail(errno.EIO)
    return disk


def main() -> None:
    from ingest.server import serve

    settings = load(os.environ)
    hurry()
    serve(settings, fs=crashing_disk(sys.argv[1], int(sys.argv[2]), settings))


if __name__ == "__main__":
    main()
