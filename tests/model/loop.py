"""A loop that stops when it has nothing to do, and threads that work when they are told to.

Whatever a thread may be late with, it can be late with here: what was handed to an executor waits for `run_one`.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from concurrent.futures import Executor, Future
from functools import partial
from typing import TYPE_CHECKING, Any

from ingest.disk.lane import Lane

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.model.time import Time

MOST_TURNS = 20_000
"""A loop that turns more often without time passing is spinning."""


class Died(BaseException):
    """Raised by the call that the process did not live to make; nothing that handles errors may meet it."""


class _Selector(selectors.DefaultSelector):
    """Stops the loop instead of blocking it."""

    def __init__(self, time: Time) -> None:
        super().__init__()
        self.time = time
        self.turns = 0
        self.wakes_at: float | None = None
        self.idle: Callable[[], None] = lambda: None

    def select(self, timeout=None):
        self.turns += 1
        assert self.turns < MOST_TURNS, "the loop spins"
        self.time.monotonic += 1e-6
        if timeout is None or timeout > 0:
            self.wakes_at = None if timeout is None else self.time.monotonic + timeout
            self.idle()
        return super().select(0)


class StepLoop(asyncio.SelectorEventLoop):
    """Runs until it is idle, and tells when its next timer is due."""

    def __init__(self, time: Time) -> None:
        self._when = time
        self._steps = _Selector(time)
        self._steps.idle = self.stop
        super().__init__(self._steps)

    def time(self) -> float:
        return self._when.monotonic

    @property
    def wakes_at(self) -> float | None:
        return self._steps.wakes_at

    def settle(self) -> None:
        self._steps.turns = 0
        self.run_forever()


class StepExecutor(Executor):
    """Keeps what it is given until it is told to run it; up to `threads` of its jobs may be next."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self.jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def submit(self, call, /, *args, **named):
        future: Future[Any] = Future()
        self.jobs.append((future, partial(call, *args, **named)))
        return future

    def run_one(self, which: int = 0) -> None:
        which %= min(self._threads, len(self.jobs))
        future, call = self.jobs[which]
        del self.jobs[which]
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = call()
        except Died:
            return
        except BaseException as error:  # noqa: BLE001 - it is the caller's, as with a thread
            future.set_exception(error)
        else:
            future.set_result(result)


class StepLane(Lane):
    """A lane whose thread is a `StepExecutor` of one."""

    def __init__(self, name: str, time: Time, executor: StepExecutor) -> None:
        super().__init__(name, lambda: time.monotonic)
        self._executor = executor

    def _add(self, call: Any) -> None:
        if self._abandoned:
            raise self._does_not_answer()
        self._calls.append(call)
        self._executor.submit(self._make_next)

    def _make_next(self) -> None:
        if self._calls:  # or its caller left, and there is one less than there are jobs
            call = self._next()
            assert call is not None
            call.make()
            self._busy_since = None
