"""The operator's hand on the dead-letter queue: `python -m ingest dlq ls|verify|replay|export`.

Owns four commands over all slots of `DLQ_DIR`:

    ls        files, events, bytes and age of each hour, from names and gzip headers
    verify    every file read whole; the corrupt ones named, exit 1 if there are any
    replay    the files of slots nobody holds, put to the store as the server would: create-only, corrupt ones
              salvaged and quarantined; exit 1 if something stays
    export    the sound lines of every file, as `.jsonl.gz`, to a directory or to standard output; no file is changed

Promises to be safe beside a running server. A command that only reads takes no lock. A file that is gone when its
turn comes was stored meanwhile, and is passed over. A command that removes files takes the slot's lock first; it leaves
alone a slot that a process holds, and says so.

Never: touches the journal, puts a file whose key also has a segment there (only a server may choose between the two).
"""

from __future__ import annotations

import asyncio
import resource
import secrets
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ingest.delivery import Aside, Attempts, Course, Phase, Recovery
from ingest.disk import Filesystem, Lane, Reader, Slot, StorageError, slot_folders
from ingest.disk.publish import publish
from ingest.format import codec, dlq_key, dlq_path, parse_key
from ingest.spool import Copy, Places, Spool, Walk, Whereabouts, hour_folders, look
from ingest.store import Head, create_store
from ingest.telemetry import DropReason, Metrics

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from ingest.config import Settings
    from ingest.spool import Letter


CHUNK: Final = 1_000
STDOUT: Final = "-"


def add_arguments(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the four commands to `dlq`."""
    actions.add_parser("ls", help="show files, events, bytes and age of each hour")
    actions.add_parser("verify", help="read every file whole and name the corrupt ones; exit 1 if there are any")
    actions.add_parser("replay", help="put what slots hold that belong to no running process")
    export = actions.add_parser("export", help="copy the sound lines as .jsonl.gz, changing nothing")
    export.add_argument("target", help="a directory, or - for standard output")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Run the command; 0 done, 1 something is wrong or stays, 2 it cannot be run."""
    fs = Filesystem()
    try:
        match arguments.action:
            case "ls":
                return _list(fs, settings)
            case "verify":
                return _verify(fs, settings)
            case "export":
                return _export(fs, settings, arguments.target)
            case _:
                return asyncio.run(_replay(fs, settings))
    except StorageError as error:
        _say(str(error))
        return 2


# ---------------------------------------------------------------------------------------------------------- ls


@dataclass(slots=True)
class _Hour:
    files: int = 0
    events: int = 0
    size: int = 0
    oldest: int | None = None


def _list(fs: Filesystem, settings: Settings) -> int:
    hours: dict[str, _Hour] = {}
    unread: list[StorageError] = []
    for root, path in _files(fs, settings, unread):
        try:
            size, events = look(fs, path)
        except OSError as error:
            _unreadable(root, path, error)
            continue
        parsed = parse_key(dlq_key(root, path))
        hour = hours.setdefault(f"{parsed.partition} {parsed.prefix}", _Hour())
        hour.files += 1
        hour.events += events or 0
        hour.size += size
        hour.oldest = parsed.unix if hour.oldest is None else min(hour.oldest, parsed.unix)
    now = time.time()
    total = _Hour()
    row = "{:<24} {:<16} {:>9} {:>12} {:>12} {:>8}\n".format
    sys.stdout.write(row("hour", "prefix", "files", "events", "bytes", "age"))
    for name in sorted(hours):
        hour = hours[name]
        partition, prefix = name.split(" ")
        age = _age(now - (hour.oldest or 0))
        sys.stdout.write(row(partition, prefix, hour.files, hour.events, hour.size, age))
        total.files += hour.files
        total.events += hour.events
        total.size += hour.size
    sys.stdout.write(row("total", "", total.files, total.events, total.size, ""))
    return 1 if _told(unread) else 0


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


# ------------------------------------------------------------------------------------------------------- verify


def _verify(fs: Filesystem, settings: Settings) -> int:
    sound = corrupt = unread = 0
    folders: list[StorageError] = []
    for root, path in _with_progress("verify", fs, settings, folders):
        try:
            with Reader(fs, path) as file:
                found = codec.inspect_gzip(file, salvage=False)
        except FileNotFoundError:
            continue
        except OSError as error:
            _unreadable(root, path, error)
            unread += 1
            continue
        if found.sound:
            sound += 1
            continue
        corrupt += 1
        cut = ", cut off" if found.torn_tail else ""
        _say(f"{dlq_key(root, path)}: corrupt, {found.events} sound lines, {found.bad_lines} bad ones{cut}")
    sys.stdout.write(f"{sound} sound, {corrupt} corrupt, {unread} unreadable\n")
    return 1 if _told(folders) or corrupt or unread else 0


# ------------------------------------------------------------------------------------------------------- export


def _export(fs: Filesystem, settings: Settings, target: str) -> int:
    if target == STDOUT and sys.stdout.isatty():
        _say("export: standard output is a terminal: redirect it, or name a directory")
        return 2
    folder = Path(target)
    files = events = unread = 0
    folders: list[StorageError] = []
    for root, path in _with_progress("export", fs, settings, folders):
        try:
            with Reader(fs, path) as file:
                found = codec.inspect_gzip(file)
                file.seek(0)
                body = file.read_all() if found.sound else found.body
        except FileNotFoundError:
            continue
        except OSError as error:
            _unreadable(root, path, error)
            unread += 1
            continue
        if not found.events or body is None:
            continue
        key = dlq_key(root, path)
        if target == STDOUT:
            # Gzip members one behind the other are a gzip file.
            sys.stdout.buffer.write(body)
        else:
            publish(fs, dlq_path(folder, key), body, root=folder)
        if not found.sound:
            _say(f"{key}: corrupt, its {found.events} sound lines are exported")
        files += 1
        events += found.events
    sys.stdout.flush()
    _say(f"{files} files, {events} events exported")
    return 1 if _told(folders) or unread else 0


# ------------------------------------------------------------------------------------------------------- replay


class _Segments:
    """The journal as `Recovery` sees it here: never a file to put, and a file whose key has a segment has to wait."""

    scanning = False

    def __init__(self, places: Places) -> None:
        self._places = places

    async def next(self) -> Letter | None:
        return None

    async def find(self, key: str) -> Letter | Whereabouts:
        copy = await self._places.segment(key)
        return Whereabouts.NOT_THERE if copy is Copy.NOT_THERE else Whereabouts.UNKNOWN


async def _replay(fs: Filesystem, settings: Settings) -> int:
    # Each slot costs a descriptor until the end, and the store needs some as well.
    at_most = max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2, 1)
    slots, unread = Slot.adopt_free(fs, settings.dlq_dir, at_most=at_most)
    for error in unread:
        _say(str(error))
    more = len(slots) == at_most
    held = [
        slot.name
        for slot in slot_folders(fs, settings.dlq_dir)
        if not more and slot.name not in {str(free.number) for free in slots} and any(_files_of(fs, slot, []))
    ]
    for name in held:
        _say(f"slot {name} is held by a running process, which recovers its files itself: left alone")
    if not slots:
        if not held and not unread:
            sys.stdout.write("nothing to replay\n")
        return 1 if held or unread else 0
    metrics = Metrics()
    lane = Lane("dlq")
    places = Places(fs, (settings.journal_dir, lane), (settings.dlq_dir, lane))
    with ThreadPoolExecutor(2) as executor:
        store = create_store(settings, Head(codec.HEAD_BYTES, codec.event_count), fs=fs, executor=executor)
        dlq = Spool(settings, fs, slots, metrics, lane, executor, places, token=secrets.token_hex(8))
        try:
            await store.start()
            await dlq.scan()
            with _bar("replay", dlq.files) as show:
                course = Course()
                recovery = Recovery(
                    settings,
                    dlq,
                    _Segments(places),
                    Attempts(settings, store, metrics, course, clock=time.monotonic),
                    Aside(time.monotonic),
                    metrics,
                    course,
                    on_stored=lambda: show(dlq.files),
                    clock=time.monotonic,
                    now=time.time,
                )
                course.enter(Phase.HURRYING)
                await recovery.run()
        finally:
            dlq.close()
            lane.abandon()
            await store.close()
    dropped = metrics.books.events_dropped
    sys.stdout.write(
        f"{metrics.books.events_stored} events stored, {metrics.files_quarantined} corrupt files quarantined, "
        f"{dropped[DropReason.CORRUPT]} events lost in them, {dropped[DropReason.EXPIRED]} expired; "
        f"{dlq.files} files with {dlq.events} events stay\n"
    )
    if dlq.unknown:
        _say(f"{dlq.unknown} files or folders cannot be read: what is in them stays")
    if more:
        _say(f"{at_most} slots are done, as many as the limit of descriptors allows; there may be more: run it again")
    return 1 if held or more or unread or dlq.files or dlq.unknown else 0


# -------------------------------------------------------------------------------------------------------- below


def _files(fs: Filesystem, settings: Settings, unread: list[StorageError]) -> Iterator[tuple[Path, Path]]:
    """Slot and path of every dead-letter file, oldest hour first within a slot; add to `unread` what may hide more."""
    for root in slot_folders(fs, settings.dlq_dir):
        for path in _files_of(fs, root, unread):
            yield root, path


def _files_of(fs: Filesystem, root: Path, unread: list[StorageError]) -> Iterator[Path]:
    listing = hour_folders(fs, [root])
    unread += listing.unreadable.values()
    walk = Walk(fs, listing.hours, lambda _: root)
    try:
        while (chunk := walk.step(CHUNK)) is not None:
            yield from chunk.paths
            if chunk.error is not None:
                unread.append(chunk.error)
    finally:
        walk.close()


def _with_progress(
    what: str, fs: Filesystem, settings: Settings, unread: list[StorageError]
) -> Iterator[tuple[Path, Path]]:
    """Yield the files, with a bar on the terminal; only then is it worth counting them first."""
    total = sum(1 for _ in _files(fs, settings, [])) if sys.stderr.isatty() else 0
    with _bar(what, total) as show:
        for number, found in enumerate(_files(fs, settings, unread)):
            yield found
            show(total - number - 1)


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield what takes the number of files that are left."""
    if not total or not sys.stderr.isatty():
        yield lambda _: None
        return
    from tqdm import tqdm

    # Asked here, because tqdm takes a terminal that tells no size for one without room.
    columns, lines = shutil.get_terminal_size()
    with tqdm(desc=what, total=total, unit="file", ncols=columns, nrows=lines, file=sys.stderr) as progress:

        def show(left: int) -> None:
            progress.update(total - left - progress.n)

        yield show


def _told(unread: list[StorageError]) -> bool:
    """Name the folders that cannot be read, each of which may hide files; False if there are none."""
    for error in unread:
        _say(str(error))
    return bool(unread)


def _unreadable(root: Path, path: Path, error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        _say(f"{dlq_key(root, path)}: unreadable: {StorageError.of('read', path, error)}")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
