"""Recovery: what lies on disk, back to the store, one file at a time.

Owns the pace. `Carrier` has one file's way. Promises:

    pace          one file at a time, after each a pause as long as it took; only while no batch waits, but at least one
                  file per `DUE_AFTER` seconds while the breaker is closed. While tries fail, the pauses grow. After a
                  pass that stored something the next begins after a second, or as long as was spent in vain
    drain         while the process is HURRYING there are no pauses and every file is due once; it ends when a pass
                  that began then stores nothing and no batch is left, or when the store does not answer

Never: reads a file, puts one, moves a book.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from ingest.delivery.breaker import State
from ingest.delivery.carrying import Step
from ingest.delivery.phase import Course, Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.delivery.breaker import Breaker
    from ingest.delivery.carrying import Carrier


DUE_AFTER: Final = 5.0
SHORTEST_PAUSE: Final = 0.01
IDLE_PAUSE: Final = 1.0
LONGEST_IDLE_PAUSE: Final = 10.0
BUSY_PAUSE: Final = 0.1
LONGEST_REFUSED_PAUSE: Final = 0.32
LONGEST_AWAY_PAUSE: Final = 15.0
LAST_TRIES: Final = 3
"""Tries without an answer, one behind the other, after which a drain leaves the files where they are."""


def _no_batches() -> bool:
    return False


class Recovery:
    """See the module's text.

    `batches_wait` says whether the upload queue has work of its own, `batches_left` whether a batch may still come to
    the disk.
    """

    def __init__(
        self,
        carrier: Carrier,
        breaker: Breaker,
        course: Course,
        *,
        on_stored: Callable[[], None],
        clock: Callable[[], float],
        batches_wait: Callable[[], bool] = _no_batches,
        batches_left: Callable[[], bool] = _no_batches,
    ) -> None:
        self.ended = False
        self.carrier = carrier
        self._breaker = breaker
        self._course = course
        self._batches_wait = batches_wait
        self._batches_left = batches_left
        self._on_stored = on_stored
        self._clock = clock

        self._woken = asyncio.Event()
        self._last_put = clock()

        self._in_vain = 0.0
        """Seconds of this pass that went into files whose time had not come, or that could not be read."""
        self._stored_in_pass = 0
        self._idle_pause = IDLE_PAUSE
        self._failures = 0
        """Tries that failed, one behind the other."""
        self._unanswered = 0
        """The last ones of these, to which no store gave an answer."""
        self._began_before = False
        """From the phase HURRYING on until the pass ends that was under way: it passed over files that are due now."""
        course.listen(self._entered)

    def __repr__(self) -> str:
        return f"<Recovery {self._course.phase.name} ended={self.ended} {self.carrier.aside!r}>"

    # ------------------------------------------------------------------------------------------------- the pace

    async def run(self) -> None:
        """Recover until the disk's turn has come, or while HURRYING until nothing is left that the store takes."""
        while not self._has_ended():
            pause = self._until_turn()
            if pause > 0:
                await self._nap(pause)
                continue
            began = self._clock()
            step = await self.carrier.step()
            if step is Step.NOTHING:
                if await self._passed():
                    break
                continue
            self._count(step)
            if step is Step.WAITS:
                self._in_vain += self._clock() - began
            elif not self._hurries():
                await self._nap(self._pause_after(step, self._clock() - began), whole=True)
        self.ended = True
        self._on_stored()

    def wake(self) -> None:
        """Something changed that may make it recovery's turn."""
        self._woken.set()

    def _entered(self, phase: Phase) -> None:
        if phase is Phase.HURRYING:
            self.carrier.aside.all_due()
            self._began_before = True
            self._unanswered = 0
        self._woken.set()

    def _hurries(self) -> bool:
        return self._course.phase is Phase.HURRYING

    def _has_ended(self) -> bool:
        if not self._hurries():
            return self._course.phase > Phase.HURRYING
        breaker = self._breaker
        # Open, and no probe is due: since the drain began the store was tried.
        is_away = breaker.state is State.OPEN and not breaker.ready
        return (is_away or self._unanswered >= LAST_TRIES) and not self._batches_wait()

    def _until_turn(self) -> float:
        breaker = self._breaker
        if not breaker.ready:
            return BUSY_PAUSE if self._hurries() else max(breaker.retry_at - self._clock(), BUSY_PAUSE)
        if not self._batches_wait():
            return 0.0
        if breaker.state is State.CLOSED and not self._hurries():
            return self._last_put + DUE_AFTER - self._clock()
        return BUSY_PAUSE  # a batch is the probe

    def _count(self, step: Step) -> None:
        if step is not Step.WAITS:
            self._last_put = self._clock()
        if step is Step.STORED:
            self._stored_in_pass += 1
            self._failures = self._unanswered = 0
            self._on_stored()
        elif step in (Step.REFUSED, Step.AWAY):
            self._failures += 1
            self._unanswered = self._unanswered + 1 if step is Step.AWAY else 0

    def _pause_after(self, step: Step, took: float) -> float:
        if step not in (Step.REFUSED, Step.AWAY):
            return max(took, SHORTEST_PAUSE)
        # What answers is there, and the next file may be taken. What does not answer is left in peace.
        longest = LONGEST_REFUSED_PAUSE if step is Step.REFUSED else LONGEST_AWAY_PAUSE
        return max(took, min(SHORTEST_PAUSE * 2.0 ** min(self._failures, 20), longest))

    async def _passed(self) -> bool:
        """Rest after a pass; True if there is no other to be made."""
        stored, self._stored_in_pass = self._stored_in_pass, 0
        in_vain, self._in_vain = self._in_vain, 0.0
        if self._hurries():
            if self.carrier.scanning or self._batches_left():
                await self._nap(BUSY_PAUSE)
            elif not stored and not self._began_before:
                return True
            self._began_before = False
        else:
            # Files that nothing can be done about are looked at ever more seldom, and take half the time at most. The
            # time that was well spent does not count: whatever came meanwhile would wait as long once more.
            self._idle_pause = IDLE_PAUSE if stored else min(self._idle_pause * 2, LONGEST_IDLE_PAUSE)
            pause = max(self._idle_pause, in_vain)
            if (due := self.carrier.aside.next_due()) is not None:
                pause = max(min(pause, due - self._clock()), IDLE_PAUSE)
            await self._nap(pause, whole=True)
        return False

    async def _nap(self, seconds: float, *, whole: bool = False) -> None:
        """Sleep, but no longer than until something changes (`whole`: until the phase does)."""
        end = self._clock() + seconds
        phase = self._course.phase
        while (left := end - self._clock()) > 0:
            self._woken.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._woken.wait()
            if not whole or self._course.phase is not phase:
                return
