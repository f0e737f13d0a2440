"""The files that wait on disk, looked at and left as they are: dead letters, and segments of processes that are gone.

Owns one reading of both places, `DLQ_DIR` and `JOURNAL_DIR`, key by key: a key's dead letter and its segments come
together, because they are copies of one batch. Recovery's own code reads and judges them.

Promises:

    segments   those of a slot that a process holds are left alone, for it writes them; `held` names the slot. Names are
               read while the slot's lock is shared, so that no process can begin to write what is listed here
    letters    are whole from the moment they have a name, so that those of a held slot are read too, without a lock
    gone       a file that is gone when its turn comes was stored meanwhile, and is passed over
    unread     a file, folder or lock that cannot be read is told, and hides nothing beside it

Never changes a disk.
"""

from __future__ import annotations

import secrets
import sys
from typing import TYPE_CHECKING, Final

from ingest.commands.report import progress
from ingest.delivery.choice import Copy
from ingest.disk import StorageError, kept_free, slot_folders
from ingest.format import dlq_key, parse_key, segment_key
from ingest.spool import Letter, Segments, Walk, hour_folders, look
from ingest.spool.reading import Reading
from ingest.telemetry import Place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor
    from pathlib import Path

    from ingest.commands.report import Report
    from ingest.config import Settings
    from ingest.disk import Filesystem, Lane
    from ingest.spool import Contents


CHUNK: Final = 1_000
WAIT: Final = 60.0
"""Seconds for one read, after which the disk counts as one that does not answer."""


class Shelf:
    """See the module's text."""

    def __init__(self, fs: Filesystem, settings: Settings, hour: str | None, *, free_only: bool = False) -> None:
        """`hour` is `dt=…/hr=…`, or None for all; with `free_only` held slots' dead letters are left alone too."""
        self.unread: list[StorageError] = []
        self.held: list[Path] = []
        self.unfinished: list[Path] = []
        """Temporaries of processes that died while they wrote: a server, or `replay`, brings them to their end."""
        self._fs = fs
        self._settings = settings
        self._hour = hour
        self._free_only = free_only
        self._segments = Segments(fs, secrets.token_hex(8))
        self._lender = _Reading(fs)

    def groups(self) -> Iterator[list[Letter]]:
        """Yield each key's files, of dead letters the oldest hour first within a slot, then segments without one."""
        segments: dict[str, list[Letter]] = {}
        for root in self._slots(self._settings.journal_dir):
            for letter in self._segments_of(root):
                segments.setdefault(letter.key, []).append(letter)
        for root in self._slots(self._settings.dlq_dir):
            for path in self._dead_letters_of(root):
                letter = Letter(dlq_key(root, path), path, 0, 0, self._lender)
                yield [letter, *segments.pop(letter.key, [])]
        yield from segments.values()

    def measured(self) -> Iterator[list[Letter]]:
        """Yield `groups` with their bytes and events; a segment beside its dead letter counts for no event."""
        for group in self.groups():
            found: list[Letter] = []
            for letter in group:
                if self.measure(letter):
                    letter.events = 0 if found else letter.events
                    found.append(letter)
            if found:
                yield found

    def measure(self, letter: Letter) -> bool:
        """Look up a file's bytes and events as a server counts them; False if it is gone or cannot be read."""
        try:
            if letter.is_segment:
                letter.size, letter.events = self._segments.count(letter.path)
            else:
                letter.size, declared = look(self._fs, letter.path)
                letter.events = declared or 0
        except FileNotFoundError:
            return False
        except OSError as error:
            self.unread.append(StorageError.of("read", letter.path, error))
            return False
        return True

    def events_of(self, key: str, path: Path) -> int | None:
        """Return the events of one file as a server counts them; None if they cannot be told."""
        letter = Letter(key, path, 0, 0, self._lender)
        self.measure(letter)
        return letter.events or None

    async def judge(self, group: list[Letter], lane: Lane, executor: Executor) -> list[Copy]:
        """Read each file of a key whole, as recovery does."""
        self._lender.use(lane, executor)
        copies = []
        for letter in group:
            try:
                copies.append(Copy(letter, await letter.contents()))
            except FileNotFoundError:
                continue
            except StorageError as error:
                self.unread.append(StorageError("read", letter.path, error.hint, transient=True, errno=error.errno))
            except OSError as error:
                self.unread.append(StorageError.of("read", letter.path, error))
        return copies

    def with_progress(self, what: str) -> Iterator[list[Letter]]:
        """Yield `groups` and show how far it is; on a terminal they are worth counting first."""
        total = None
        if sys.stderr.isatty():
            first = Shelf(self._fs, self._settings, self._hour, free_only=self._free_only)
            total = sum(1 for _ in first.groups())
        with progress(what, total) as show:
            for done, group in enumerate(self.groups(), start=1):
                yield group
                show(done)

    def tell(self, report: Report) -> bool:
        """Tell people what was left alone, and what could not be read; True if something could not."""
        for error in self.unread:
            report.say(str(error))
        for root in self.held:
            report.say(f"{root} is held by a running process: left alone")
        for path in self.unfinished:
            report.say(f"{path} was not finished: a server, or replay, sees to it or says why it stays")
        return bool(self.unread)

    def facts(self) -> dict[str, object]:
        """Tell a program the same."""
        return {
            "held": [str(root) for root in self.held],
            "unfinished": [str(path) for path in self.unfinished],
            "unreadable": [{"path": error.subject, "error": str(error)} for error in self.unread],
        }

    def _slots(self, base: Path) -> list[Path]:
        try:
            return slot_folders(self._fs, base)
        except StorageError as error:
            self.unread.append(error)
            return []

    def _segments_of(self, root: Path) -> Iterator[Letter]:
        try:
            with kept_free(self._fs, root) as free:
                names = self._segments.names(root)
        except StorageError as error:
            self.unread.append(error)
            return
        self.unread += names.unread
        segments = [(key, path) for path in names.segments if self._is_asked_for(key := _key(root, path))]
        temporaries = [path for key, path in names.temporaries if self._is_asked_for(key)]
        if not free:
            if segments or temporaries:
                self.held.append(root)
            return
        self.unfinished += temporaries
        for key, path in segments:
            yield Letter(key, path, 0, 0, self._lender)

    def _dead_letters_of(self, root: Path) -> Iterator[Path]:
        try:
            with kept_free(self._fs, root) as free:
                pass
        except StorageError as error:
            self.unread.append(error)
            if self._free_only:
                return
            free = False
        listing = hour_folders(self._fs, [root])
        self.unread += listing.unreadable.values()
        hours = [folder for folder in listing.hours if self._hour in (None, f"{folder.parent.name}/{folder.name}")]
        walk = Walk(self._fs, hours, lambda _: root)
        try:
            while (chunk := walk.step(CHUNK)) is not None:
                if chunk.error is not None:
                    self.unread.append(chunk.error)
                if free:
                    self.unfinished += chunk.temporaries
                elif self._free_only:
                    if chunk.paths:
                        self.held.append(root)
                        return
                    continue
                yield from chunk.paths
        finally:
            walk.close()

    def _is_asked_for(self, key: str) -> bool:
        return bool(key) and self._hour in (None, parse_key(key).partition)


def damage(copy: Copy) -> dict[str, object]:
    """Tell a program what is wrong with a file."""
    found = copy.contents.found
    return {
        "path": str(copy.letter.path),
        "key": copy.letter.key,
        "events": found.events,
        "bad_lines": found.bad_lines,
        "torn_tail": found.torn_tail,
    }


class _Reading:
    """The lender of files that nobody has taken: it reads them as recovery does, and never lets one go."""

    place: Final = Place.DLQ

    def __init__(self, fs: Filesystem) -> None:
        self._fs = fs
        self._reading: Reading | None = None

    def use(self, lane: Lane, executor: Executor) -> None:
        """Take the threads in which files are read and judged."""
        self._reading = Reading(self._fs, lane, executor, WAIT)

    async def contents(self, letter: Letter) -> Contents:
        """Read a file once, and judge it."""
        assert self._reading is not None  # noqa: S101 - `judge` sets it
        return await (self._reading.segment if letter.is_segment else self._reading.dead_letter)(letter)

    async def original(self, letter: Letter) -> bytes:
        """Read a file as it lies there."""
        assert self._reading is not None  # noqa: S101 - as above
        return await self._reading.original(letter)

    def settle(self, letter: Letter) -> None:
        """Do nothing: there are no books here."""

    async def take_back(self, letter: Letter) -> None:
        """Do nothing: the file stays."""


def _key(root: Path, path: Path) -> str:
    try:
        return segment_key(root, path)
    except ValueError:
        return ""
