"""Calls that a store makes in an executor, each for one caller that may leave before it is made.

Owns the calls that have not begun, and what each was given.

Promises:

    left      a caller that leaves before its call has begun takes along what it gave: no body stays in the queue
    standing  while the queue still has a call whose caller waited and left, no thread has come free since: a new call
              would only stand behind it. It fails at once (`StorageError`, transient), so that the queue does not grow
              either. A caller that leaves within `LEAST_WAIT` says nothing of that: it harms no other call
    late      a call that was under way when its caller left goes on, and its outcome is nobody's

Never bounds a call: a caller leaves when its time is over. `make` is called on the loop.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from ingest.disk import StorageError
from ingest.disk.lane import HINT

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from pathlib import Path

T = TypeVar("T")

LEAST_WAIT: Final = 0.05
"""Seconds within which a free thread takes a call, as a rule."""


class _Call(Generic[T]):
    """One call: it has its work until a thread takes it, or its caller takes it back."""

    __slots__ = ("answer", "began", "is_passed", "loop", "work")

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Callable[[], T]) -> None:
        self.answer: asyncio.Future[T] = loop.create_future()
        self.loop = loop
        self.began = loop.time()
        self.is_passed = False
        """Whether it is one of `Calls._passed`."""
        self.work: Callable[[], T] | None = work

    def post(self, tell: Callable[[], None]) -> None:
        try:
            self.loop.call_soon_threadsafe(tell)
        except RuntimeError:
            # The loop has ended, and with it everybody who could have wanted the answer.
            if not self.loop.is_closed():
                raise

    def succeed(self, result: T) -> None:
        if not self.answer.done():
            self.answer.set_result(result)

    def fail(self, error: BaseException) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Calls:
    """See the module's text. `subject` is what does not answer when nothing is made."""

    __slots__ = ("_executor", "_lock", "_passed", "_subject")

    def __init__(self, executor: Executor, subject: Path) -> None:
        self._executor = executor
        self._subject = subject
        self._lock = threading.Lock()
        self._passed = 0
        """Calls in the executor's queue whose callers have waited, and left."""

    def __repr__(self) -> str:
        return f"<Calls {self._subject}, {self._passed} left in the queue>"

    async def make(self, work: Callable[[], T]) -> T:
        """Make the call in a thread, and return its result."""
        if self._passed:
            raise StorageError("wait", self._subject, HINT, transient=True)
        call = _Call(asyncio.get_running_loop(), work)
        del work  # or the frame keeps it for as long as an error that came by here
        self._executor.submit(self._serve, call)
        try:
            return await call.answer
        except asyncio.CancelledError:
            with self._lock:
                if call.work is not None:
                    call.work = None
                    call.is_passed = call.loop.time() - call.began >= LEAST_WAIT
                    self._passed += call.is_passed
            if call.answer.done() and not call.answer.cancelled():
                call.answer.exception()  # it came in the same step of the loop, and nobody reads it
            raise

    def _serve(self, call: _Call[T]) -> None:
        """Run one call of the queue, in a thread."""
        with self._lock:
            work, call.work = call.work, None
            if work is None:
                self._passed -= call.is_passed
                return
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - the caller's, whatever it is
            failure = error
            call.post(lambda: call.fail(failure))
        else:
            call.post(lambda: call.succeed(result))
