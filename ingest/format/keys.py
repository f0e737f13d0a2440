"""Names: an instant to its partition, a batch to its key, a key to its file and back.

Owns the shape of a key, `<prefix>/dt=YYYY-MM-DD/hr=HH/<unix>_<host>-<token>_<seq>.jsonl.gz`, and the rule that on disk
the path below a slot is the key, so that a file recovered under other settings still knows where it belongs.
Promises that no two processes, restarts or forks make the same key, for 64 random bits and a counter stand behind each
(of ten digits, and of twelve at most, which a thousand objects a second reach in thirty years); that `parse_key` takes
apart exactly what `new_key` puts together, so that the hour of a key is one that a calendar has and its instant one
that a calendar shows; and that the file of such a key lies within its slot.
Never reads a clock, touches a file, or looks at the settings.
"""

import os
import re
import socket
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

OBJECT_SUFFIX: Final = ".jsonl.gz"
LATEST: Final = 253_402_300_799
"""The last second that a calendar of four-digit years shows, in UTC. A key's instant is between 0 and it."""


@dataclass(frozen=True, slots=True)
class Partition:
    """One hour as the partition's clock shows it, and the instants it holds for."""

    path: str
    """`dt=2025-12-02/hr=14`"""
    start: int
    """First second that belongs to it, unix time. The hot path compares two ints and asks for no calendar."""
    end: int
    """First second that does not."""


def partition_of(unix: int, tz: ZoneInfo) -> Partition:
    """Return the partition of `unix`, with the unbroken window around it in which date and hour stay the same.

    The window is an hour, but where the zone's offset changes in it: 02:00 to 03:00 lasts two hours in the night the
    clocks go back by one, and 01:00 to 02:00 an hour and a half on Lord Howe.
    """
    shown = datetime.fromtimestamp(unix, tz)
    return Partition(f"dt={shown:%Y-%m-%d}/hr={shown:%H}", _start_of_hour(unix, tz), _end_of_hour(unix, tz))


class KeyFactory:
    """The keys of one process: its host and token in each, and a number that only counts up."""

    __slots__ = ("_name", "_prefix", "_sequence", "_tz", "instance", "token")

    def __init__(self, prefix: str, tz: ZoneInfo, host: str | None = None, token: str | None = None) -> None:
        # Drawn here and not as a default argument: a fork after the import must not share it.
        self.token = os.urandom(8).hex() if token is None else token
        if not re.fullmatch(_TOKEN, self.token):
            raise ValueError(f"token {self.token!r} is not 16 hexadecimal digits")
        self.instance = f"{_host_part(socket.gethostname() if host is None else host)}-{self.token}"
        self._prefix = prefix
        self._tz = tz
        self._sequence = 0

    def partition_of(self, unix: int) -> Partition:
        """Return the partition of `unix` on this factory's clock."""
        return partition_of(unix, self._tz)

    def new_key(self, unix: int, partition: Partition) -> str:
        """Return a key no other batch has, for one whose first event came at `unix`, which is in `partition`.

        A clock before 1970 is named 0, because a key without a sign is what `parse_key` takes.
        """
        self._sequence += 1
        unix = min(max(unix, 0), LATEST)
        return f"{self._prefix}/{partition.path}/{unix}_{self.instance}_{self._sequence:010d}{OBJECT_SUFFIX}"

    def take_back(self) -> None:
        """Draw the last number again: no file got it. So a number that is missing means an object that is missing."""
        self._sequence -= 1


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """The parts of a key."""

    prefix: str
    partition: str
    unix: int
    host: str
    token: str
    sequence: int

    @property
    def instance(self) -> str:
        """The process that made it."""
        return f"{self.host}-{self.token}"


def parse_key(key: str) -> ParsedKey:
    """Take a key apart; a ValueError when `new_key` cannot have made it."""
    if not (match := _KEY.fullmatch(key)):
        raise ValueError(f"not a key: {key!r}")
    prefix, partition, day, unix, host, token, sequence = match.groups()
    if int(unix) > LATEST or not _is_date(day):
        raise ValueError(f"not a key: {key!r}")
    return ParsedKey(prefix, partition, int(unix), host, token, int(sequence))


def _is_date(day: str) -> bool:
    try:
        date.fromisoformat(day)
    except ValueError:
        return False
    return True


def quarantine_key(key: str, dlq_prefix: str) -> str:
    """Return where the corrupt original of `key` goes: the same partition and name below `DLQ_PREFIX`."""
    return f"{dlq_prefix}{key[len(parse_key(key).prefix) :]}"


def unix_of(name: str) -> int:
    """Return the second of a batch's first event, by its file's name alone; 0 when that is no name of ours."""
    found = _FIRST_SECOND.match(name)
    unix = int(found[1]) if found else 0
    return unix if unix <= LATEST else 0


def dlq_path(root: Path, key: str) -> Path:
    """Return the dead-letter file of `key` in the slot `root`."""
    return root / key


def dlq_key(root: Path, path: Path) -> str:
    """Return the key of a dead-letter file in the slot `root`; a ValueError when it is not named by one."""
    key = path.relative_to(root).as_posix()
    parse_key(key)
    return key


def segment_path(root: Path, key: str) -> Path:
    """Return the journal segment of `key` in the slot `root`: plain lines, so it ends in `.jsonl`."""
    return root / key.removesuffix(".gz")


def segment_key(root: Path, path: Path) -> str:
    """Return the key of a journal segment in the slot `root`; a ValueError when it is not named by one."""
    key = f"{path.relative_to(root).as_posix()}.gz"
    parse_key(key)
    return key


# A part neither hides itself nor climbs: no `.`, no `..`, no temporary (they begin with a dot).
_PART: Final = r"[A-Za-z0-9_][A-Za-z0-9_.=-]*"
_TOKEN: Final = r"[0-9a-f]{16}"  # noqa: S105 -- a pattern
_UNIX: Final = r"(0|[1-9][0-9]{0,11})"
_FIRST_SECOND: Final = re.compile(rf"{_UNIX}_")
_KEY: Final = re.compile(
    rf"({_PART}(?:/{_PART})*)/(dt=([0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})/hr=(?:[01][0-9]|2[0-3]))"
    rf"/{_UNIX}_([A-Za-z0-9-]+)-({_TOKEN})_([0-9]{{10}}|[1-9][0-9]{{10,11}}){re.escape(OBJECT_SUFFIX)}"
)


def _host_part(host: str) -> str:
    # At most 63 characters, as a DNS label: a file name ends at 255.
    return re.sub(r"[^A-Za-z0-9-]+", "-", host)[:63].strip("-") or "host"


def _end_of_hour(unix: int, tz: ZoneInfo) -> int:
    hour = _local_hour(unix, tz)
    at = unix
    while _local_hour(at, tz) == hour:
        offset = _offset(at, tz)
        last = (hour + 1) * 3600 - offset - 1  # where this hour ends should the offset hold until then
        at = last + 1 if _offset(last, tz) == offset else _change_between(at, last, tz)
    return at


def _start_of_hour(unix: int, tz: ZoneInfo) -> int:
    hour = _local_hour(unix, tz)
    at = unix + 1
    while _local_hour(at - 1, tz) == hour:
        offset = _offset(at - 1, tz)
        first = hour * 3600 - offset
        at = first if _offset(first, tz) == offset else _change_between(first, at - 1, tz)
    return at


def _local_hour(unix: int, tz: ZoneInfo) -> int:
    return (unix + _offset(unix, tz)) // 3600


def _change_between(early: int, late: int, tz: ZoneInfo) -> int:
    """Return the first instant in (early, late] that has the offset of `late`; the offset changes once between them."""
    offset = _offset(late, tz)
    while late - early > 1:
        middle = (early + late) // 2
        if _offset(middle, tz) == offset:
            late = middle
        else:
            early = middle
    return late


def _offset(unix: int, tz: ZoneInfo) -> int:
    delta = datetime.fromtimestamp(unix, tz).utcoffset()
    assert delta is not None  # noqa: S101 -- an instant shown in a zone has an offset
    return delta.days * 86400 + delta.seconds
