"""Whether a turn waits for company.

Owns the question, and the facts of earlier turns that answer it. Promises that a lone event waits for nobody, and that
nobody waits for clients that themselves wait for an answer. Never knows what a turn holds.

Below saturation turns would be small: the loop is faster than events arrive, and spends more on waking for each than on
the event. So a turn that follows closely upon a small one waits a millisecond before it reads on, as a network card
waits before it interrupts: what arrives meanwhile is read, committed and answered together. It does so asleep, which
costs nothing and lets gzip run.

That pays only where events come whether or not earlier ones are answered. A few clients that wait for each answer would
send nothing in that millisecond but what they have sent already. Therefore a wait after which every client that was
active lately has been served is followed by turns that do not wait: 16, and twice as many each time it happens again. A
wait that brings nothing is followed by one such turn, then two, and so on. No turn waits that follows upon a new
connection, which has its request with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

SMALL_TURN: Final = 8
"""With fewer reads than this in a turn the next one waits for company."""
CLOSELY: Final = 0.002
"""Seconds after a small turn for which company is expected."""
GATHER_SECONDS: Final = 0.001
LEAST_PAUSE: Final = 16
LONGEST_PAUSE: Final = 2048
"""Turns without a wait after one that was in vain."""
LATELY: Final = 0.05
"""Seconds in which a client counts as active, and up to as many more. Who sends is looked at in the last turns before
one that may wait."""
_TURNS_OF_A_NEWCOMER: Final = 2


class Gathering:
    """Decides for one turn after the other."""

    __slots__ = (
        "_active",
        "_active_before",
        "_active_since",
        "_at",
        "_newcomers",
        "_pause",
        "_pause_if_empty",
        "_turns_left",
        "_waited_with",
        "may_pay",
    )

    def __init__(self) -> None:
        self._at = 0.0
        """When the last turn ran."""
        self.may_pay = False
        """Whether it was small, others are there who could send, and no pause is to be kept: `pays` is worth asking."""
        self._newcomers = 0
        """Turns for which a connection still counts as new."""

        # Who sends, as small turns see it.
        self._active: set[object] = set()
        self._active_before: set[object] = set()
        self._active_since = 0.0

        # The waits.
        self._waited_with = 0
        """From the wait until the turn runs: the reads that were there before; 0 when the turn does not wait."""
        self._pause = LEAST_PAUSE
        self._pause_if_empty = 1
        self._turns_left = 0
        """Turns that do not wait, because a wait was in vain."""

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

    def ran(self, reads: Sequence[tuple[object, bytes]], connections: int, now: float) -> None:
        """Take note of a turn: its reads with their senders, and how many connections are open."""
        self._at = now
        if self._newcomers:
            self._newcomers -= 1
        if self._turns_left:
            self._turns_left -= 1
        small = len(reads) < SMALL_TURN and connections > 1
        if self._waited_with or (small and self._turns_left <= LEAST_PAUSE):
            senders = {sender for sender, _ in reads}
            self._note(senders, now)
            if self._waited_with:
                self._judge(len(reads) - self._waited_with, len(senders))
                self._waited_with = 0
        self.may_pay = small and not self._turns_left and not self._newcomers

    def _note(self, senders: set[object], now: float) -> None:
        if now - self._active_since > LATELY:
            self._active_before, self._active = self._active, set()
            self._active_since = now
        self._active |= senders

    def _judge(self, brought: int, served: int) -> None:
        """Decide from a wait whether the next turns wait."""
        if brought <= 0:
            self._turns_left = self._pause_if_empty
            self._pause_if_empty = min(2 * self._pause_if_empty, LONGEST_PAUSE)
            return
        self._pause_if_empty = 1
        if served >= len(self._active | self._active_before):
            self._turns_left = self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        else:
            self._pause = max(self._pause // 2, LEAST_PAUSE)
