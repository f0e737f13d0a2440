"""Files whose put did not succeed, and when each is tried again.

Owns the time from which a file is due. A file that was *away* waits 5 s, twice as long after each further try, 5 min at
most. A file that was *refused* is set aside: 1 min, twice as long each time, 60 min at most. A file that was never
tried is due, so that each is tried once at a start.

Promises that one bad file, or one bad prefix, holds up nothing but itself; that all files of a prefix are due as soon
as one of it is stored, unless one was stored since their first try already, because then that is no news; that all are
due once when the process drains; that a file which something else took away is forgotten, once a pass has not met it;
that memory is bounded: of more than `MOST` files the one that waits longest is due.

Never reads a disk, never decides what a try came to.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from ingest.format import parse_key
from ingest.store import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.store import Outcome


MOST: Final = 20_000
FIRST_AWAY: Final = 5.0
LONGEST_AWAY: Final = 300.0
FIRST_REFUSED: Final = 60.0
LONGEST_REFUSED: Final = 3600.0


class _Wait:
    """One file that waits for its time."""

    __slots__ = ("due", "passes", "prefix", "refused", "seen", "tries")

    def __init__(self, prefix: str, seen: int) -> None:
        self.prefix = prefix
        self.seen = seen
        """Objects of the prefix that were stored when it was first tried."""
        self.tries = 0
        self.refused = False
        self.due = 0.0
        self.passes = 0
        """The pass in which it was put off, or met, last."""


class Aside:
    """See the module's text."""

    __slots__ = ("_clock", "_passes", "_stored", "_waits", "refused")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waits: dict[str, _Wait] = {}
        self._stored: Counter[str] = Counter()
        self._passes = 0
        self.refused = 0
        """Files that are set aside as refused."""

    def __repr__(self) -> str:
        return f"<Aside waiting={len(self._waits)} refused={self.refused}>"

    def is_due(self, key: str) -> bool:
        """Tell whether the file of this key may be tried now."""
        wait = self._waits.get(key)
        return wait is None or self._clock() >= wait.due

    def is_refused(self, key: str) -> bool:
        """Tell whether the store has refused this one."""
        wait = self._waits.get(key)
        return wait is not None and wait.refused

    def put_off(self, key: str, outcome: Outcome, *, object_key: str = "") -> None:
        """Have the file of this key wait; `object_key` is what was tried, where it is another one."""
        wait = self._waits.pop(key, None)
        if wait is None:
            prefix = _prefix(object_key or key)
            wait = _Wait(prefix, self._stored[prefix])
        refused = outcome.verdict is Verdict.REFUSED
        if refused and not wait.refused:
            wait.tries = 0
        self.refused += refused - wait.refused
        wait.refused = refused
        first, longest = (FIRST_REFUSED, LONGEST_REFUSED) if refused else (FIRST_AWAY, LONGEST_AWAY)
        wait.due = self._clock() + min(first * 2**wait.tries, longest)
        wait.tries = min(wait.tries + 1, 20)
        wait.passes = self._passes
        self._waits[key] = wait
        if len(self._waits) > MOST:
            self.forget(next(iter(self._waits)))

    def stored(self, key: str) -> None:
        """Take the news that an object of this key is stored: to its prefix, it is news once."""
        self.forget(key)
        prefix = _prefix(key)
        seen = self._stored[prefix]
        self._stored[prefix] += 1
        if self._waits:
            for wait in self._waits.values():
                if wait.prefix == prefix and wait.seen == seen:
                    wait.due = 0.0

    def met(self, key: str) -> None:
        """Take note that the file of this key is still there."""
        wait = self._waits.get(key)
        if wait is not None:
            wait.passes = self._passes

    def passed(self) -> None:
        """Let go of the files that were not met in the pass which ends now: something else took them away."""
        for key in [key for key, wait in self._waits.items() if wait.passes < self._passes]:
            self.forget(key)
        self._passes += 1

    def refused_hours(self) -> set[str]:
        """Return the hours of files that are set aside as refused."""
        return {parse_key(key).partition for key, wait in self._waits.items() if wait.refused}

    def forget(self, key: str) -> None:
        """Let go of a file that is stored, or gone."""
        wait = self._waits.pop(key, None)
        if wait is not None:
            self.refused -= wait.refused

    def all_due(self) -> None:
        """Have every file tried once more."""
        for wait in self._waits.values():
            wait.due = 0.0

    def next_due(self) -> float | None:
        """Return the time at which the next file is due; None if none waits."""
        return min((wait.due for wait in self._waits.values()), default=None)


def _prefix(key: str) -> str:
    return key.partition("/dt=")[0]
