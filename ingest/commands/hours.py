"""Hours as an operator names them.

Owns the words: an hour, a day, or a first and a last of them with `..` between; and the exit codes beside verdicts.
Promises hours in their order, each once, with the instant at which it is over. Never reads a clock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from ingest.format.keys import partition_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from zoneinfo import ZoneInfo

WRONG_WORDS: Final = 64
FAILED: Final = 69
"""Exit codes of commands that judge hours, where 1 to 3 are verdicts: `EX_USAGE` and `EX_UNAVAILABLE` of sysexits."""
FORM: Final = "dt=YYYY-MM-DD/hr=HH, a day dt=YYYY-MM-DD, or two of them: FIRST..LAST"
_WORD: Final = re.compile(r"dt=(\d{4}-\d{2}-\d{2})(?:/hr=(\d{2}))?", re.ASCII)
_MOST: Final = 24 * 3660


@dataclass(frozen=True, slots=True)
class Hour:
    """One hour by the partition's clock."""

    path: str
    """`dt=2026-11-23/hr=13`"""
    end: int
    """The first second that is not in it any more, unix time."""


def hours_of(text: str, tz: ZoneInfo) -> list[Hour]:
    """Return the hours that the words name; a ValueError if they name none."""
    first, dots, last = text.partition("..")
    try:
        begin, _ = _span(first)
        _, end = _span(last if dots else first)
        if not begin < end or end - begin > timedelta(hours=_MOST):
            raise ValueError(text)  # noqa: TRY301 - as the days that no calendar has
        hours = list(_between(begin, end, tz))
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is not {FORM}; at most {_MOST // 24} days") from None
    if not hours:
        raise ValueError(f"{text!r} is an hour that the clocks of PARTITION_TZ skip")
    return hours


def _between(begin: datetime, end: datetime, tz: ZoneInfo) -> Iterator[Hour]:
    while begin < end:
        # An hour that the clocks skip is in no partition's name; `partition_of` tells the one that stands for it.
        partition = partition_of(int(begin.replace(tzinfo=tz).timestamp()), tz)
        if partition.path == f"dt={begin:%Y-%m-%d}/hr={begin:%H}":
            yield Hour(partition.path, partition.end)
        begin += timedelta(hours=1)


def _span(word: str) -> tuple[datetime, datetime]:
    found = _WORD.fullmatch(word)
    if not found:
        raise ValueError(word)
    day, hour = found.groups()
    begin = datetime.fromisoformat(f"{day}T{hour or '00'}:00")
    return begin, begin + timedelta(hours=1 if hour else 24)
