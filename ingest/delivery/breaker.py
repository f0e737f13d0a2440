"""The breaker: whether a put is worth trying now.

Owns one state and the rules by which it changes:

    closed     puts run; the third failure in a row opens it
    open       no put runs until `retry_at`; then whoever asks next becomes the probe, and it is half-open
    half-open  one probe runs; it succeeds: closed; it fails: open, for twice as long; it says nothing about the store:
               open, for as long as before, in a hurry for no time; it is given up: open, and the next who asks is the
               probe

A put that began while it was closed may end when it is open or half-open. Its success closes it (the store works); its
failure says nothing new.

Never waits, reads a clock of its own, or knows what a put is: it is asked before each try and told how the try ended.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable


FAILURES_TO_OPEN: Final = 3
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 15.0


class State(IntEnum):
    """The value that the gauge shows."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Permit:
    """Leave for one try. Hand it back to the breaker with how the try ended."""

    __slots__ = ("is_probe",)

    def __init__(self, *, is_probe: bool) -> None:
        self.is_probe = is_probe


class Breaker:
    """See the module's text. `on_change` is called with the new state, after it holds."""

    __slots__ = ("_clock", "_failures", "_hurries", "_on_change", "_pause", "retry_at", "state")

    def __init__(self, clock: Callable[[], float], on_change: Callable[[State], None]) -> None:
        self._clock = clock
        self._on_change = on_change
        self.state = State.CLOSED
        self.retry_at = 0.0
        self._failures = 0
        self._pause = FIRST_PAUSE
        self._hurries = False
        """From `hurry` on, which is the end of the process."""

    def __repr__(self) -> str:
        return f"<Breaker {self.state.name} failures={self._failures} pause={self._pause}>"

    @property
    def ready(self) -> bool:
        """`ask` would grant a permit now."""
        return self.state is State.CLOSED or (self.state is State.OPEN and self._clock() >= self.retry_at)

    def ask(self) -> Permit | None:
        """Leave for one try, or None; in the open state the first who asks after `retry_at` is the probe."""
        if self.state is State.CLOSED:
            return Permit(is_probe=False)
        if not self.ready:
            return None
        self._become(State.HALF_OPEN)
        return Permit(is_probe=True)

    def succeeded(self, permit: Permit) -> None:  # noqa: ARG002 - any success closes it, the probe's or another's
        """Close: a try reached the store."""
        self._failures = 0
        self._pause = FIRST_PAUSE
        self._become(State.CLOSED)

    def failed(self, permit: Permit) -> None:
        """Count a try that did not reach the store, whatever the reason."""
        if permit.is_probe and self.state is State.HALF_OPEN:
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
            self._open(self._pause)
        elif self.state is State.CLOSED:
            self._failures += 1
            if self._failures >= FAILURES_TO_OPEN:
                self._open(self._pause)

    def undecided(self, permit: Permit) -> None:
        """Forget a try whose answer was about its object alone; the next probe waits as long as this one did."""
        if permit.is_probe and self.state is State.HALF_OPEN:
            self._open(0.0 if self._hurries else self._pause)

    def hurry(self) -> None:
        """Let the next who asks be the probe, however long the pause still is, until one tells of the store."""
        self._hurries = True
        self.retry_at = self._clock()

    def abandoned(self, permit: Permit) -> None:
        """Forget a try that was given up: it says nothing about the store."""
        if permit.is_probe and self.state is State.HALF_OPEN:
            self._open(0.0)

    def _open(self, pause: float) -> None:
        self._failures = 0
        self.retry_at = self._clock() + pause
        self._become(State.OPEN)

    def _become(self, state: State) -> None:
        if state is not self.state:
            self.state = state
            self._on_change(state)
