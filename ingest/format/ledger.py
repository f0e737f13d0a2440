"""The lines of a ledger: what became of each number that a process drew.

Owns the three kinds of line, in ASCII, each with its newline:

    <key> <events> <size> <crc32>       stored. Size and CRC-32 are those of the object's lines, not of its gzip: any
                                        gzip of them ends in the same eight bytes
    <key> void                          the number has no event: all that its batch was opened for was refused
    <key> dropped <reason> <events>     so many events of the key were given up; 0: nobody knows how many

Promises that `parse` takes only what is made here, and that `settle` makes of all lines about a key one fate, however
often and wherever they were written: the union of ledgers counts. Never touches a disk.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from ingest.format.keys import parse_key

if TYPE_CHECKING:
    from collections.abc import Iterable

CORRUPT: Final = "corrupt"
"""The one reason that may stand beside a stored object: a part of its file was damaged."""

_TRAILER: Final = struct.Struct("<II")
_LINE: Final = re.compile(
    r"(\S+) (?:(?P<events>\d{1,10}) (?P<size>\d{1,10}) (?P<crc>[0-9a-f]{8})"
    r"|(?P<void>void)|dropped (?P<reason>[a-z]+) (?P<lost>\d{1,10}))"
)


class Entry(NamedTuple):
    """One line. `events` are stored, or, with a `reason`, dropped; a void number has neither."""

    key: str
    events: int = 0
    size: int = 0
    crc32: int = 0
    reason: str = ""
    stored: bool = False


class Fate(NamedTuple):
    """The end of one key, by all lines about it."""

    stored: Entry | None
    dropped: dict[str, int]
    """Events by reason; 0: nobody knows how many."""


def stored(key: str, events: int, body: bytes) -> bytes:
    """Return the line of an object; `body` is its gzip, of one member."""
    crc32, size = _TRAILER.unpack(body[-_TRAILER.size :])
    return f"{key} {events} {size} {crc32:08x}\n".encode()


def void(key: str) -> bytes:
    """Return the line of a number without an event."""
    return f"{key} void\n".encode()


def dropped(key: str, reason: str, events: int | None) -> bytes:
    """Return the line of events that were given up; `void` if there are none. None: nobody knows how many."""
    return void(key) if events == 0 else f"{key} dropped {reason} {events or 0}\n".encode()


def parse(line: bytes) -> Entry | None:
    """Take a line without its newline apart; None if it is none of ours."""
    try:
        found = _LINE.fullmatch(line.decode("ascii"))
    except UnicodeDecodeError:
        return None
    if found is None:
        return None
    key = found[1]
    try:
        parse_key(key)
    except ValueError:
        return None
    if found["events"] is not None:
        return Entry(key, int(found["events"]), int(found["size"]), int(found["crc"], 16), stored=True)
    if found["reason"] is not None:
        return Entry(key, int(found["lost"]), reason=found["reason"])
    return Entry(key)


def settle(entries: Iterable[Entry]) -> dict[str, Fate]:
    """Return the fate of each key.

    The longer one of two objects under one key counts, because files of one key are prefixes of one batch. A key that
    is stored was not given up after all, but for what was damaged in its file: that is lost if no other copy had it.
    """
    fates: dict[str, Fate] = {}
    most: dict[str, int] = {}
    for entry in entries:
        before = fates.setdefault(entry.key, Fate(None, {}))
        if entry.stored:
            if before.stored is None or before.stored.events < entry.events:
                fates[entry.key] = Fate(entry, before.dropped)
        elif entry.reason:
            before.dropped[entry.reason] = max(before.dropped.get(entry.reason, 0), entry.events)
            most[entry.key] = max(most.get(entry.key, 0), entry.events)
    for key in most:
        fate = fates[key]
        if fate.stored is not None:
            lost = fate.dropped.get(CORRUPT, 0)
            fates[key] = Fate(fate.stored, {CORRUPT: lost} if lost else {})
        elif len(fate.dropped) > 1:
            # Given up twice, as by one process that was killed in it and by the next: it was lost once.
            reason = max(fate.dropped, key=lambda reason: fate.dropped[reason])
            fates[key] = Fate(None, {reason: fate.dropped[reason]})
    return fates
