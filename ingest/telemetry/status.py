"""The state of a process as one value and one sentence.

Owns `Status`, which the log's story, the command and the page all show, and the words for it. Promises that the
sentence says first what an operator would ask first. Never looks anything up: `story` fills it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from ingest import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BRIEF: Final = 80
_LATEST: Final = int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp())


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
    workers: int = 1
    """How many processes it is told of."""


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

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Status:
        """Take it from what `asdict` made of it, and JSON of that."""
        error = values["last_error"]
        return cls(
            **{
                **values,
                "phase": Phase(values["phase"]),
                "last_minute": LastMinute(**values["last_minute"]),
                "disk": Disk(**values["disk"]),
                "last_error": None if error is None else LastError(**error),
                "about": About(**values["about"]),
            }
        )

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
        files = f"{self.waiting_files:,} file{'' if self.waiting_files == 1 else 's'} on disk"
        waiting = f"{self.waiting_events:,} events wait, {files}"
        match self.phase:
            case Phase.REFUSING:
                return f"Events are refused since {since} ({self.reason}); {waiting}."
            case Phase.STORE_AWAY:
                cause = self.code or _brief(self.error) or "no cause known"
                when = "" if self.next_try is None else f", the next try is in {self.next_try:.0f} s"
                room = f"room for {self.room_left / (1 << 20):,.0f} MiB more"
                return f"The store is away since {since} ({cause}); {waiting}, {room}{when}."
            case Phase.RECOVERING:
                return f"The store is back since {since}; {waiting} still to go up."
        return f"All is well since {since}: {self.stored:,} events stored, {self.waiting_events:,} on their way."


def _brief(error: str) -> str:
    """Return an error as a sentence bears it: whole if it is short, else its name, or its beginning if it has none."""
    name, colon, _ = error.partition(": ")
    if len(error) <= BRIEF:
        return error
    return name if colon and name.isidentifier() else f"{error[: BRIEF - 1]}…"


_PRESSING: Final = (Phase.REFUSING, Phase.STORE_AWAY, Phase.RECOVERING, Phase.SERVING)
_BREAKERS: Final = ("open", "half-open", "closed")


def merged(statuses: Sequence[Status]) -> Status:
    """Return how several workers are together: what is most pressing of any, and the sums of what can be added."""
    phase = next(phase for phase in _PRESSING if any(one.phase is phase for one in statuses))
    concerned = [one for one in statuses if one.phase is phase]
    # All is well since it is with the last of them; anything else is so since the first of them.
    first = (max if phase is Phase.SERVING else min)(concerned, key=lambda one: one.since)
    disk = Disk(
        used=sum(one.disk.used for one in statuses),
        limit=sum(one.disk.limit for one in statuses),
        free=min((one.disk.free for one in statuses if one.disk.free), default=0),
    )
    left = disk.limit - disk.used
    about = statuses[0].about
    errors = [one.last_error for one in statuses if one.last_error is not None]
    return Status(
        phase=phase,
        since=first.since,
        accepted=sum(one.accepted for one in statuses),
        stored=sum(one.stored for one in statuses),
        dropped=sum(one.dropped for one in statuses),
        refused=sum(one.refused for one in statuses),
        waiting_events=sum(one.waiting_events for one in statuses),
        waiting_files=sum(one.waiting_files for one in statuses),
        room_left=max(min(left, disk.free) if disk.free else left, 0),
        next_try=min((one.next_try for one in statuses if one.next_try is not None), default=None),
        reason=first.reason,
        error=first.error,
        code=first.code,
        last_minute=_pace([one.last_minute for one in statuses]),
        pending={place: sum(one.pending[place] for one in statuses) for place in statuses[0].pending},
        oldest_pending=min((one.oldest_pending for one in statuses if one.oldest_pending), default=0.0),
        breaker=min((one.breaker for one in statuses), key=_BREAKERS.index),
        disk=disk,
        refused_files=sum(one.refused_files for one in statuses),
        last_error=max(errors, key=lambda error: error.at, default=None),
        about=replace(
            about,
            started=min(one.about.started for one in statuses),
            slots={name: path for one in statuses for name, path in one.about.slots.items()},
            adopted=sum(one.about.adopted for one in statuses),
            workers=len(statuses),
        ),
    )


def _pace(paces: Sequence[LastMinute]) -> LastMinute:
    """Add up how fast things have gone; events were answered within what the slowest took."""
    return LastMinute(
        accepted_per_second=sum(pace.accepted_per_second for pace in paces),
        stored_per_second=sum(pace.stored_per_second for pace in paces),
        p50=max((pace.p50 for pace in paces if pace.p50 is not None), default=None),
        p99=max((pace.p99 for pace in paces if pace.p99 is not None), default=None),
        disk_per_second=sum(pace.disk_per_second for pace in paces),
    )


def clock_time(unix: float) -> str:
    """Return a time of the wall clock, UTC, to the second; one that no calendar shows as the nearest that one does."""
    return datetime.fromtimestamp(min(max(int(unix), 0), _LATEST), UTC).isoformat().replace("+00:00", "Z")
