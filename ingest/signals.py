"""The signals of a process, and the end of it in time.

Owns the signals that begin a drain and the thread that hears them. It is a thread because a loop that hangs in a system
call (a write to a dead disk) runs no handler, and the kernel hands a signal to a thread that waits for one.

Promises:

    from the first moment  what comes after `hold` waits until `Watch` hears it, also for PID 1, to which the kernel
                           delivers nothing that it neither handles nor holds
    drain                  SIGTERM, SIGINT and SIGHUP are told; a SIGHUP that our parent ignores (`nohup`) stays ignored
    ignored                SIGUSR1 and SIGUSR2 change nothing
    in time                `limit` seconds after the first signal, or after `arm`, `end` is called, whatever hangs; a
                           signal in `longer` gives so many seconds more, and one that is not takes them back

Never drains anything itself.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_WAKE: Final = signal.SIGUSR1
"""We send it to our own thread, which takes it, like SIGUSR2, for nothing."""
_IGNORED: Final = frozenset({signal.SIGUSR1, signal.SIGUSR2})


def hold() -> None:
    """Have the kernel keep our signals until `Watch` hears them. Threads begun later inherit it.

    A helper for credentials does not: uvloop begins each process with no signal held.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _heeded() | _IGNORED)


class Watch:
    """Hears signals in a thread of its own: `tell(signal, when)` for each, in that thread; `end()` when time is up."""

    __slots__ = ("_end", "_ends_at", "_limit", "_longer", "_tell", "_thread")

    def __init__(
        self,
        limit: float,
        tell: Callable[[signal.Signals, float], object],
        end: Callable[[], None],
        longer: Mapping[int, float] | None = None,
    ) -> None:
        self._limit = limit
        self._longer = longer or {}
        self._tell = tell
        self._end = end
        self._ends_at: float | None = None
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)

    def start(self) -> None:
        """Begin to hear, those signals first that came since `hold`."""
        hold()
        self._thread.start()

    def arm(self) -> None:
        """Let the time run, unless it does already: a drain began without a signal."""
        if self._ends_at is None:
            self._ends_at = time.monotonic() + self._limit
            if self._thread.ident is not None:
                signal.pthread_kill(self._thread.ident, _WAKE)

    def _listen(self) -> None:
        awaited = _heeded() | _IGNORED
        while True:
            number = self._next(awaited)
            if number is None:
                self._end()
                return
            if number not in _IGNORED:
                now = time.monotonic()
                ends_at = now + self._limit + self._longer.get(number, 0.0)
                self._ends_at = ends_at if self._ends_at is None else min(self._ends_at, ends_at)
                self._tell(signal.Signals(number), now)

    def _next(self, awaited: frozenset[signal.Signals]) -> int | None:
        """Return the next signal, or None when the time is up."""
        if self._ends_at is None:
            return signal.sigwaitinfo(awaited).si_signo
        heard = signal.sigtimedwait(awaited, max(self._ends_at - time.monotonic(), 0.0))
        return None if heard is None else heard.si_signo


def _heeded() -> frozenset[signal.Signals]:
    heeded = {signal.SIGTERM, signal.SIGINT}
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        heeded.add(signal.SIGHUP)
    return frozenset(heeded)
