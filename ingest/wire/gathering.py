"""Whether a turn waits for company.

Owns the question, and what earlier turns tell of the answer. Promises that a lone event waits for nobody, and that
clients that wait for an answer are not held up, whoever else sends beside them. Never knows what a turn holds.

Below saturation turns would be small: the loop is faster than events arrive, and spends more on waking for each than on
the event. So a turn that follows closely upon a small one waits two milliseconds before it reads on, as a network card
waits before it interrupts: what arrives meanwhile is read, committed and answered together. It does so asleep, which
costs nothing and lets gzip run.

That pays only where events come whether or not earlier ones are answered. Clients that wait for each answer send
nothing in that time but what they have sent already. One is told from the other by how fast reads come. While no turn
waits, it is measured how many come in a time as long as a wait. Where that is one or more, turns wait, and each wait is
held against it. Where waits bring clearly less, no turn waits for a while: for 4 ms, and twice as long each time it
happens again, up to two seconds. Waits that bring enough go on for a second; then it is measured again, because the
clients can be others by then.
"""

from __future__ import annotations

from typing import Final

SMALL_TURN: Final = 16
"""With fewer reads than this in a turn the next one waits for company."""
CLOSELY: Final = 0.002
"""Seconds after a small turn for which company is expected."""
GATHER_SECONDS: Final = 0.002
SILENCE: Final = 0.008
"""Seconds without a turn that do not count when it is measured how fast reads come: nobody sends, or a quota of CPU
time keeps the process from running."""
MEASURED_READS: Final = 32
"""So many tell how fast they come."""
LEAST_PAUSE: Final = 0.004
LONGEST_PAUSE: Final = 2.0
"""Seconds without a wait after waits that were in vain."""
WAITS_SECONDS: Final = 1.0
"""So long turns wait until it is measured again."""
ENOUGH: Final = 0.7
"""The share of the reads that come without waits which a wait has to bring."""
IN_VAIN: Final = 8.0
"""With so many reads less than enough the waits end; fewer can be chance."""
_TURNS_OF_A_NEWCOMER: Final = 2
_PROVEN: Final = 16
"""After so many waits that were not in vain the next pause is the least again."""


class Gathering:
    """Decides for one turn after the other."""

    __slots__ = (
        "_at",
        "_came",
        "_enough",
        "_lacking",
        "_newcomers",
        "_pause",
        "_seconds",
        "_until",
        "_waited_with",
        "_waits",
        "may_pay",
    )

    def __init__(self) -> None:
        self._at = 0.0
        """When the last turn ran."""
        self.may_pay = False
        """Whether turns wait, the last one was small, and others are there who could send: `pays` is worth asking."""
        self._newcomers = 0
        """Turns for which a connection still counts as new."""
        self._until = 0.0
        """When turns begin to wait, or end it."""

        # How fast reads come by themselves.
        self._came = 0
        self._seconds = 0.0
        self._pause = LEAST_PAUSE

        # The waits.
        self._enough = 0.0
        """Reads that a wait has to bring; 0 while no turn waits."""
        self._lacking = 0.0
        """Reads that the last waits have brought less than that; 0 when they brought more."""
        self._waits = 0
        self._waited_with = 0
        """From the wait until the turn runs: the reads that were there before; 0 when the turn does not wait."""

    def joined(self) -> None:
        """Take note of a new connection."""
        self._newcomers = _TURNS_OF_A_NEWCOMER
        self.may_pay = False

    def pays(self, now: float) -> bool:
        """Tell whether a turn that begins now should wait for more reads."""
        return self.may_pay and now - self._at < CLOSELY

    def waits(self, reads: int) -> None:
        """Take note that a turn waits, with so many reads in hand."""
        self._waited_with = reads

    def ran(self, reads: int, connections: int, now: float) -> None:
        """Take note of a turn that began at `now`: its reads, and how many connections are open."""
        brought = 1
        if self._waited_with:
            now += GATHER_SECONDS
            brought = reads - self._waited_with
            self._waited_with = 0
            self._weigh(brought, now)
        since = now - self._at
        self._at = now
        if since < SILENCE:
            self._came += reads
            self._seconds += since
        if now >= self._until:
            self._turn_over(now)
        if self._newcomers:
            self._newcomers -= 1
        # With a read of each connection, or none in the last wait, nobody may be left to send.
        others = reads < connections and brought > 0 and not self._newcomers
        self.may_pay = others and reads < SMALL_TURN and self._enough > 0.0

    def _weigh(self, brought: int, now: float) -> None:
        """Hold a wait against what comes without one; end the waits when they have brought too little."""
        self._waits += 1
        self._lacking = max(0.0, self._lacking + self._enough - brought)
        if self._lacking >= IN_VAIN:
            self._measure(now + self._pause)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _turn_over(self, now: float) -> None:
        """Begin to wait where company is to be expected; measure again after waits that have brought it."""
        if self._enough:
            if self._waits >= _PROVEN:
                self._pause = LEAST_PAUSE
            self._measure(now + LEAST_PAUSE)
        elif self._came >= MEASURED_READS:
            in_a_wait = GATHER_SECONDS * self._came / max(self._seconds, GATHER_SECONDS)
            self._measure(now + LEAST_PAUSE)
            if in_a_wait >= 1:
                self._enough = ENOUGH * in_a_wait
                self._until = now + WAITS_SECONDS

    def _measure(self, until: float) -> None:
        """From now on no turn waits; so it is at least until the time given."""
        self._until = until
        self._came = self._waits = 0
        self._seconds = self._enough = self._lacking = 0.0
