"""One try to store one object.

Owns the breaker, the places for puts that run at once, each try's deadline, and its latency or error in the metrics.

Promises that a try ends within `S3_TIMEOUT` whatever the store does, once the store has the keys that sign; that no
more than `UPLOAD_CONCURRENCY` of them run at once, recovery's included; and that `abort` ends all of them at once and
for good. Whatever a store fails with is an outage: which error means what is the store's business, and a wrong guess
here would stop the wrong thing. An exception that no store should raise is a failed try too, and the log has its type
and text.

Never: tries twice, knows a batch or a file, decides what happens to what was not stored.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

import structlog

from ingest.delivery.breaker import Breaker, State
from ingest.disk import StorageError
from ingest.telemetry import BreakerState, PutError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ingest.config import Settings
    from ingest.store import ObjectStore
    from ingest.telemetry import Metrics


_BUG: Final = "the store raised what it should not: please report it, with this line"

_SHOWN: Final = {
    State.CLOSED: BreakerState.CLOSED,
    State.HALF_OPEN: BreakerState.HALF_OPEN,
    State.OPEN: BreakerState.OPEN,
}

log = structlog.get_logger()


class Result(Enum):
    """How a try ended. `REFUSED`: the breaker let none run. `ABORTED`: nothing more is tried, and nothing is known."""

    STORED = auto()
    FAILED = auto()
    REFUSED = auto()
    ABORTED = auto()


class Attempts:
    """See the module's text."""

    def __init__(
        self,
        settings: Settings,
        store: ObjectStore,
        metrics: Metrics,
        *,
        clock: Callable[[], float],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.breaker = Breaker(clock, self._report)
        self.aborted = False
        self._store = store
        self._limit = settings.s3_timeout
        self._places = asyncio.Semaphore(settings.upload_concurrency)
        self._running: set[asyncio.Timeout] = set()
        self._metrics = metrics
        self._clock = clock
        self._on_change = on_change

    async def make(self, key: str, put: Callable[[], Awaitable[object]]) -> Result:
        """Run one put, if the breaker lets it."""
        async with self._places:
            if self.aborted:
                return Result.ABORTED
            permit = self.breaker.ask()
            if permit is None:
                return Result.REFUSED
            self._metrics.puts += 1
            began = self._clock()
            deadline = asyncio.timeout(None)
            self._running.add(deadline)
            try:
                async with deadline:
                    # Bounded by the store: to find keys is no part of a try's time.
                    await self._store.prepare()
                    if not self.aborted:
                        deadline.reschedule(asyncio.get_running_loop().time() + self._limit)
                    await put()
            except Exception as error:  # noqa: BLE001 - see the module's text
                if self.aborted:
                    self.breaker.abandoned(permit)
                    return Result.ABORTED
                self._failed(key, error, self._clock() - began)
                self.breaker.failed(permit)
                return Result.FAILED
            except BaseException:
                self.breaker.abandoned(permit)
                raise
            finally:
                self._running.discard(deadline)
            self._metrics.put_seconds.observe(self._clock() - began)
            self._metrics.store.stored()
            self.breaker.succeeded(permit)
            return Result.STORED

    def abort(self) -> None:
        """End every try that runs, and let no other begin."""
        self.aborted = True
        now = asyncio.get_running_loop().time()
        for deadline in self._running:
            if not deadline.expired():
                deadline.reschedule(now)

    def _failed(self, key: str, error: Exception, took: float) -> None:
        lasted = round(took, 3)
        if isinstance(error, StorageError):
            self._metrics.put_errors.add(PutError.AWAY)
            self._metrics.store.failed(str(error.cause.get("error", error)), str(error.cause.get("code", "")))
            log.warning("put_failed", key=key, operation=error.operation, hint=error.hint, took=lasted, **error.cause)
        elif isinstance(error, TimeoutError):
            self._metrics.put_errors.add(PutError.TIMED_OUT)
            self._metrics.store.failed("no answer within S3_TIMEOUT")
            log.warning("put_timed_out", key=key, took=lasted, hint="no answer within S3_TIMEOUT")
        else:
            self._metrics.put_errors.add(PutError.BUG)
            cause = f"{type(error).__name__}: {error}"
            self._metrics.store.failed(cause)
            log.error("put_failed", key=key, operation="put", hint=_BUG, took=lasted, error=cause, exc_info=error)

    def _report(self, state: State) -> None:
        self._metrics.breaker = _SHOWN[state]
        tell = log.warning if state is State.OPEN else log.info
        tell("breaker_changed", state=self._metrics.breaker.value)
        self._on_change()
