"""The interrupt: a command that gets SIGINT ends soon, whatever it waits for.

Owns SIGINT while the work of a command runs in an event loop. Promises that the first one cancels the work, and does so
again until it has ended, because a library may lose a cancellation (`asyncio.wait_for` of Python 3.11 does when what it
waits for ends in that moment); and that the process ends with 130 at a second one, or `LIMIT_SECONDS` after the first.
Never undoes anything: a command leaves on disk and in the store what a kill would leave, and both can bear that.

A thread hears it, by the byte that the interpreter writes when the signal comes (`signal.set_wakeup_fd`). The main
thread runs Python's handlers between two of its own steps: one whose signal came just before a system call runs when
that returns, which may be never.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

from ingest.threads import NoThreadError, start

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

T = TypeVar("T")

LIMIT_SECONDS: Final = 5.0
"""So long the work has to end in good order: to close its connections and give back its locks."""
_AGAIN_SECONDS: Final = 1.0
"""Longer than an end in good order takes: a cancellation in the midst of one would cut it short."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in an event loop of its own, in the main thread, and return what it returns.

    Raises KeyboardInterrupt when an interrupt ended it, NoThreadError if it could not begin.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: an interrupt is not meant for it
        return asyncio.run(work)
    watch = _Watch()
    try:
        watch.begin()
    except NoThreadError:
        work.close()  # or Python complains that nobody has awaited it
        raise
    try:
        result = asyncio.run(watch.over(work))
    except asyncio.CancelledError:
        # It goes on hearing: what the interpreter joins at its end may hang as well.
        watch.told = True
        raise KeyboardInterrupt from None
    except BaseException:
        watch.end()
        raise
    watch.end()
    return result


class _Watch:
    def __init__(self) -> None:
        self.told = False
        """From when KeyboardInterrupt is raised: its catcher prints the line."""
        self._heard, self._signalled = socket.socketpair()
        self._signalled.setblocking(False)
        self._handler = signal.getsignal(signal.SIGINT)
        self._wakeup = -1
        self._thread = threading.Thread(target=self._listen, name="interrupt", daemon=True)
        self._interrupted = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    def begin(self) -> None:
        start(self._thread)
        self._wakeup = signal.set_wakeup_fd(self._signalled.fileno())
        signal.signal(signal.SIGINT, _leave_to_the_thread)

    def end(self) -> None:
        signal.signal(signal.SIGINT, self._handler)
        signal.set_wakeup_fd(self._wakeup)
        self._signalled.close()
        self._thread.join()
        self._heard.close()

    async def over(self, work: Coroutine[Any, Any, T]) -> T:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self._interrupted.is_set():  # before the loop ran
            self._cancel()
        return await work

    def _listen(self) -> None:
        if not self._hears_one():
            return
        self._interrupted.set()
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it is closed already
                loop.call_soon_threadsafe(self._cancel)
        self._heard.settimeout(LIMIT_SECONDS)
        with suppress(TimeoutError):
            if not self._hears_one():
                return
        self._cut_short()

    def _hears_one(self) -> bool:
        """Wait for the next interrupt; False when there is none to come."""
        while byte := self._heard.recv(1):
            if byte[0] == signal.SIGINT:
                return True
        return False

    def _cancel(self) -> None:
        if self._loop is not None and self._task is not None and not self._task.done():
            self._task.cancel()
            self._loop.call_later(_AGAIN_SECONDS, self._cancel)

    def _cut_short(self) -> NoReturn:
        if not self.told:
            sys.stderr.write("interrupted\n")
            sys.stderr.flush()
        os._exit(130)


def _leave_to_the_thread(*_: object) -> None:
    """Stand in for a handler: without one the interpreter writes no byte."""
