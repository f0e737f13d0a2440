"""The state of a process as one value and one sentence.

Owns `Status`, which the log's story, the command and the page all show, and the words for it. Promises that the
sentence says first what an operator would ask first. Never looks anything up: `story` fills it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import Enum


class Phase(Enum):
    """The most pressing thing that can be said of a process."""

    SERVING = "serving"
    RECOVERING = "recovering"
    STORE_AWAY = "store_away"
    REFUSING = "refusing"


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

    def figures(self) -> dict[str, object]:
        """Return it as plain values, which JSON has too."""
        return asdict(self) | {"phase": self.phase.value, "since": clock_time(self.since)}

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
