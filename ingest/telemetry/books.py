"""The books: where every event that was taken is, and what became of it.

Owns the counts accepted, recovered, stored and dropped, and by place the events that still wait. Each move of events is
a verb here, called once, in the same step of the loop in which the place itself changes.
Promises accepted + recovered = stored + pending + dropped + handed on, in events, at the end of every step of the
loop: `unaccounted` compares these counts with what the places say that they hold. With `checked` (DEBUG_CHECKS) each
verb also fails when more events leave a place than ever came to it, and `story` when a place holds other than the verbs
say.
Never locks: all verbs are the event loop's. Never counts a file or a byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingest.config import DEBUG_CHECKS
from ingest.telemetry.counters import Counters, Label

if TYPE_CHECKING:
    from collections.abc import Callable


class Place(Label):
    """Where an event may wait: the open batch (with what its journal still seals), memory, and two kinds of files."""

    OPEN = "open"
    QUEUE = "queue"
    DLQ = "dlq"
    BACKLOG = "backlog"


class DropReason(Label):
    """Why an acknowledged event was given up."""

    EVICTED = "evicted"
    EXPIRED = "expired"
    CORRUPT = "corrupt"


class Books:
    """See the module's text."""

    __slots__ = (
        "_witnesses",
        "checked",
        "events_accepted",
        "events_dropped",
        "events_handed_on",
        "events_recovered",
        "events_stored",
        "waiting",
    )

    def __init__(self, *, checked: bool = DEBUG_CHECKS) -> None:
        self.checked = checked
        self.events_accepted = 0
        self.events_recovered = 0
        self.events_stored = 0
        self.events_dropped = Counters(DropReason)
        self.events_handed_on = 0
        self.waiting = Counters(Place)
        """By the verbs, the events at each place. `pending` asks the places themselves."""
        self._witnesses: dict[Place, Callable[[], int]] = {}

    # The verbs.

    def accepted(self, n: int, place: Place = Place.OPEN) -> None:
        """Take in events that are acknowledged now."""
        self.events_accepted += n
        self.waiting.counts[place] += n
        if self.checked:
            self._check(n)

    def recovered(self, n: int, place: Place) -> None:
        """Take in events of an earlier process, or more of them than were first counted."""
        self.events_recovered += n
        self.waiting.add(place, n)
        if self.checked:
            self._check(n)

    def moved(self, n: int, origin: Place, to: Place) -> None:
        """Have events wait somewhere else."""
        self.waiting.add(origin, -n)
        self.waiting.add(to, n)
        if self.checked:
            self._check(n)

    def stored(self, n: int, place: Place) -> None:
        """Let go of events that the store has confirmed."""
        self.events_stored += n
        self.waiting.add(place, -n)
        if self.checked:
            self._check(n)

    def dropped(self, n: int, reason: DropReason, place: Place) -> None:
        """Let go of acknowledged events that nobody will store."""
        self.events_dropped.add(reason, n)
        self.waiting.add(place, -n)
        if self.checked:
            self._check(n)

    def handed_on(self, n: int, place: Place) -> None:
        """Let go of events that stay on disk for whoever takes their slot; then they are recovered again."""
        self.events_handed_on += n
        self.waiting.add(place, -n)
        if self.checked:
            self._check(n)

    # What they say.

    def ask(self, place: Place, count: Callable[[], int]) -> None:
        """Have `count` tell how many events this place holds."""
        self._witnesses[place] = count

    def pending(self, place: Place) -> int:
        """Return the events that a place says it holds; 0 until it can be asked."""
        count = self._witnesses.get(place)
        return count() if count is not None else 0

    def unaccounted(self) -> int:
        """Return the events the books cannot place: 0, or we have lost (above) or doubled (below) some."""
        taken = self.events_accepted + self.events_recovered
        left = self.events_stored + self.events_dropped.total() + self.events_handed_on
        return taken - left - sum(count() for count in self._witnesses.values())

    def differing(self) -> dict[Place, tuple[int, int]]:
        """Return the places that hold other than the verbs say, with what the verbs say and what the place does."""
        asked = {place: (self.waiting[place], count()) for place, count in self._witnesses.items()}
        return {place: counts for place, counts in asked.items() if counts[0] != counts[1]}

    def _check(self, n: int) -> None:
        if n < 0 or any(count < 0 for _, count in self.waiting):
            raise AssertionError(f"{n} events moved, and the books say {self!r}")

    def __repr__(self) -> str:
        taken = f"accepted={self.events_accepted} recovered={self.events_recovered}"
        return f"<Books {taken} stored={self.events_stored} dropped={self.events_dropped} waiting={self.waiting}>"
