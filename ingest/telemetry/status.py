"""The state of a process as one value and one sentence.

Owns `Status`, which the log's story, the command and the page all show, and the words for it. Promises that the
sentence says first what an operator would ask first. Never looks anything up: `story` fills it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING

from ingest import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping


class Phase(Enum):
    """The most pressing thing that can be said of a process."""

    SERVING = "serving"
    RECOVERING = "recovering"
    STORE_AWAY = "store_away"
    REFUSING = "refusing"


@dataclass(frozen=True, slots=True)
class LastMinute:
    """How fast things have gone in the last minute, or since the start."""

    accepted_per_second: float = 0.0
    stored_per_second: float = 0.0
    p50: float | None = None
    """Seconds within which half of the events were answered, as the histogram's buckets tell it; infinite if none of
    them is long enough, None if there was no event."""
    p99: float | None = None
    disk_per_second: float = 0.0
    """Bytes by which what waits on disk has grown; negative while it shrinks."""


@dataclass(frozen=True, slots=True)
class Disk:
    """The room that what waits on disk takes, and may take, in bytes."""

    used: int = 0
    limit: int = 0
    free: int = 0
    """Free on the volume, as last measured; 0 before."""


@dataclass(frozen=True, slots=True)
class LastError:
    """The last try that the store did not take, be it long ago."""

    error: str
    code: str
    at: float


@dataclass(frozen=True, slots=True)
class About:
    """The process itself: nothing of it changes while it lives, but for the slots that it adopts."""

    version: str = __version__
    started: float = 0.0
    durability: str = ""
    store: str = ""
    slots: Mapping[str, str] = field(default_factory=dict)
    """The folders of its own, by what they hold."""
    adopted: int = 0
    """How many slots of dead processes it holds beside them."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Those that differ from their defaults; a secret is not shown."""


@dataclass(frozen=True, slots=True)
class Status:
    """The answer of a process to the question how it is."""

    phase: Phase
    since: float
    """Unix time at which the phase began."""
    accepted: int
    stored: int
    dropped: int
    refused: int
    waiting_events: int
    waiting_files: int
    room_left: int
    """Bytes that the disk may still take."""
    next_try: float | None
    """Seconds until the store is tried again; None while it is not away."""
    reason: str = ""
    """Why events are refused, while they are."""
    error: str = ""
    """The last failure of the store, while it is away."""
    code: str = ""
    last_minute: LastMinute = LastMinute()
    pending: Mapping[str, int] = field(default_factory=dict)
    """Where events wait, and how many."""
    oldest_pending: float = 0.0
    """Unix time of the oldest of them, on disk to the hour; 0 if none waits."""
    breaker: str = ""
    disk: Disk = Disk()
    refused_files: int = 0
    last_error: LastError | None = None
    about: About = About()

    @property
    def seconds_to_full(self) -> float | None:
        """How long the disk has room at the pace of the last minute; None while no more comes than goes."""
        grows = self.last_minute.disk_per_second
        return self.room_left / grows if grows > 0 else None

    @property
    def is_well(self) -> bool:
        """Whether events are taken and the store takes them."""
        return self.phase in {Phase.SERVING, Phase.RECOVERING}

    def figures(self) -> dict[str, object]:
        """Return it as plain values, which JSON has too: there an infinite number is null."""
        error = self.last_error
        return asdict(self) | {
            "phase": self.phase.value,
            "since": clock_time(self.since),
            "is_well": self.is_well,
            "oldest_pending": clock_time(self.oldest_pending) if self.oldest_pending else None,
            "seconds_to_full": self.seconds_to_full,
            "last_error": None if error is None else asdict(error) | {"at": clock_time(error.at)},
            "about": asdict(self.about) | {"started": clock_time(self.about.started)},
        }

    def sentence(self) -> str:
        """Return it in words."""
        since = clock_time(self.since)
        waiting = f"{self.waiting_events:,} events in {self.waiting_files:,} files"
        match self.phase:
            case Phase.REFUSING:
                return f"Events are refused since {since} ({self.reason}); {waiting} wait for the store."
            case Phase.STORE_AWAY:
                cause = self.code or self.error or "no cause known"
                when = "" if self.next_try is None else f", the next try is in {self.next_try:.0f} s"
                room = f"room for {self.room_left / (1 << 20):,.0f} MiB more"
                return f"The store is away since {since} ({cause}); {waiting} wait on disk, {room}{when}."
            case Phase.RECOVERING:
                return f"The store is back since {since}; {waiting} are still to go up."
        return f"All is well since {since}: {self.stored:,} events stored, {self.waiting_events:,} on their way."


def clock_time(unix: float) -> str:
    """Return a time of the wall clock, UTC, to the second."""
    return datetime.fromtimestamp(int(unix), UTC).isoformat().replace("+00:00", "Z")
