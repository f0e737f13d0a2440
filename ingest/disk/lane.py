"""One thread for one directory, so that a disk that hangs holds up nothing but what lies there.

Owns the thread and the calls that wait for it, which it makes one after the other in the order in which they came.

Promises:

    order     no two calls run at once: what one owner keeps in plain fields needs no lock
    bounds    with `within`, the wait ends then, whatever the disk does (`StorageError`, transient)
    withdrawn a call whose caller left before it began is never made
    late      a call that was under way when its caller left goes on; `late` is given its result, on the loop
    exit      the thread is a daemon and nobody joins it: no hanging system call keeps the process alive

Never touches a disk itself, never bounds its queue: each caller waits for its own call, so callers bound it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Final, Generic, TypeVar, TypeVarTuple

import structlog

from ingest.disk.errors import StorageError
from ingest.threads import NoThreadError, start

if TYPE_CHECKING:
    from collections.abc import Callable

A = TypeVarTuple("A")
T = TypeVar("T")

HINT: Final = "the disk does not answer: check the volume, its mount and the kernel log"

log = structlog.get_logger()


class _State(Enum):
    """A call: WAITING until the thread takes it (RUNNING) or its caller leaves (WITHDRAWN)."""

    WAITING = "waiting"
    RUNNING = "running"
    WITHDRAWN = "withdrawn"


class _Call(Generic[T]):
    __slots__ = ("_late", "_left", "_loop", "_work", "answer", "state")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, work: Callable[[], T], late: Callable[[T], None] | None
    ) -> None:
        self.state = _State.WAITING
        self.answer: asyncio.Future[T] = loop.create_future()
        self._left = False
        """From when the caller left on; the answer is nobody's then but `late`'s."""
        self._late = late
        self._loop = loop
        self._work = work

    def make(self) -> None:
        """Do the work, and bring the outcome to the loop. Runs in the lane's thread."""
        try:
            result = self._work()
        except BaseException as error:  # noqa: BLE001 - the caller's, whatever it is
            self._post(self._fail, error)
        else:
            self._post(self._succeed, result)

    def leave(self) -> None:
        """Note that nobody waits any more. Its answer may have come in the same step of the loop."""
        self._left = True
        if self.answer.done():
            error = self.answer.exception()
            if error is None:
                self._succeed(self.answer.result())
            elif self.state is not _State.WITHDRAWN:
                self._fail(error)  # it was made; of a call that was not, nothing has failed

    def _post(self, tell: Callable[[*A], None], *args: *A) -> None:
        try:
            self._loop.call_soon_threadsafe(tell, *args)
        except RuntimeError:
            # The loop has ended, and with it everybody who could have wanted the answer.
            if not self._loop.is_closed():
                raise

    def _succeed(self, result: T) -> None:
        if not self._left:
            self.answer.set_result(result)
        elif self._late is not None:
            self._late(result)

    def _fail(self, error: BaseException) -> None:
        if not self._left:
            self.answer.set_exception(error)
        elif isinstance(error, (OSError, StorageError)):
            log.warning("late_call_failed", error=str(error))
        else:
            raise error


class Lane:
    """See the module's text. `run`, `begin` and `abandon` are called on the loop."""

    __slots__ = ("_abandoned", "_busy_since", "_calls", "_clock", "_more", "_thread", "name")

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._clock = clock
        self._calls: deque[_Call[object]] = deque()
        self._more = threading.Condition()
        self._busy_since: float | None = None
        self._abandoned = False
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        since = self._busy_since
        if self._abandoned:
            state = "abandoned"
        elif since is None:
            state = "idle"
        else:
            state = f"busy {self._clock() - since:.1f}s"
        return f"<Lane {self.name} {state}, {len(self._calls)} waiting>"

    @property
    def busy_since(self) -> float | None:
        """When the call that is under way began, by the lane's clock; None while there is none."""
        return self._busy_since

    @property
    def waiting(self) -> int:
        """How many calls have not begun."""
        return len(self._calls)

    async def run(
        self,
        work: Callable[[*A], T],
        *args: *A,
        within: float | None = None,
        late: Callable[[T], None] | None = None,
    ) -> T:
        """Make the call in the lane's thread and return its result.

        `StorageError` of the operation "wait" if that takes longer than `within` seconds, its turn included, or if the
        lane was abandoned. `late`: see the module's text; it is called on the loop, once at most, and never when `run`
        returned the result.
        """
        call = _Call(asyncio.get_running_loop(), lambda: work(*args), late)
        self._add(call)
        try:
            await asyncio.wait((call.answer,), timeout=within)
        except asyncio.CancelledError:
            self._leave(call)
            raise
        if not call.answer.done():
            self._leave(call)
            raise self._does_not_answer()
        return call.answer.result()

    def begin(self) -> None:
        """Start the thread before the first call is made; a `NoThreadError` if there is none to be had."""
        with self._more:
            if self._thread is None:
                self._start()

    def abandon(self) -> None:
        """Make no call that has not begun, now or later. The thread ends with the call under way, and is not joined."""
        with self._more:
            self._abandoned = True
            left, self._calls = list(self._calls), deque()
            for call in left:
                call.state = _State.WITHDRAWN
            self._more.notify()
        for call in left:
            if not call.answer.done():
                call.answer.set_exception(self._does_not_answer())

    def _start(self) -> None:
        thread = threading.Thread(target=self._serve, name=self.name, daemon=True)
        start(thread)
        self._thread = thread  # only now: one that was not started would never serve

    def _add(self, call: _Call[T]) -> None:
        with self._more:
            if self._abandoned:
                raise self._does_not_answer()
            if self._thread is None:
                try:
                    self._start()
                except NoThreadError as error:
                    raise StorageError("start", self.name, str(error), transient=True) from None
            self._calls.append(call)  # type: ignore[arg-type]  # what a call returns is between it and its caller
            self._more.notify()

    def _leave(self, call: _Call[T]) -> None:
        with self._more:
            if call.state is _State.WAITING:
                call.state = _State.WITHDRAWN
                self._calls.remove(call)  # type: ignore[arg-type]  # as above
        call.leave()

    def _does_not_answer(self) -> StorageError:
        return StorageError("wait", self.name, HINT, transient=True)

    def _serve(self) -> None:
        while (call := self._next()) is not None:
            call.make()
            self._busy_since = None
            del call  # or the last call's arguments, a whole batch among them, stay in memory until the next

    def _next(self) -> _Call[object] | None:
        with self._more:
            while not self._calls:
                if self._abandoned:
                    return None
                self._more.wait()
            call = self._calls.popleft()
            call.state = _State.RUNNING
            self._busy_since = self._clock()
            return call
