"""The signals of a process, and the end of it in time.

Owns the signals that begin a drain, the thread that hears them and the one that counts down. They are threads because
a loop that hangs in a system call (a write to a dead disk) runs no handler, and the kernel hands a signal to a thread
that waits for one.

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

from ingest.threads import start

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_IGNORED: Final = frozenset({signal.SIGUSR1, signal.SIGUSR2})


def hold() -> None:
    """Have the kernel keep our signals until `Watch` hears them. Threads begun later inherit it.

    A helper for credentials does not: uvloop begins each process with no signal held.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _heeded() | _IGNORED)


class Watch:
    """Hears signals in threads of its own: `tell(signal, when)` for each, there; `end()` when time is up, there too."""

    __slots__ = ("_changed", "_end", "_ends_at", "_limit", "_longer", "_tell", "_threads")

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
        self._changed = threading.Condition()
        # Two threads, because CPython's wait for signals with a limit (`sigtimedwait`) tells of some that never came,
        # when a process that was stopped goes on only after the limit.
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for work, name in ((self._listen, "signals"), (self._count_down, "limit"))
        ]

    def start(self) -> None:
        """Begin to hear, those signals first that came since `hold`."""
        hold()
        for thread in self._threads:
            start(thread)

    def arm(self) -> None:
        """Let the time run, unless it does already: a drain began without a signal."""
        if self._ends_at is None:
            self._end_at(time.monotonic() + self._limit)

    def _end_at(self, ends_at: float) -> None:
        with self._changed:
            self._ends_at = ends_at if self._ends_at is None else min(self._ends_at, ends_at)
            self._changed.notify()

    def _listen(self) -> None:
        awaited = _heeded() | _IGNORED
        while True:
            number = signal.sigwaitinfo(awaited).si_signo
            if number not in _IGNORED:
                now = time.monotonic()
                self._end_at(now + self._limit + self._longer.get(number, 0.0))
                self._tell(signal.Signals(number), now)

    def _count_down(self) -> None:
        with self._changed:
            while self._ends_at is None or (left := self._ends_at - time.monotonic()) > 0:
                self._changed.wait(None if self._ends_at is None else left)
        self._end()


def _heeded() -> frozenset[signal.Signals]:
    heeded = {signal.SIGTERM, signal.SIGINT}
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        heeded.add(signal.SIGHUP)
    return frozenset(heeded)
