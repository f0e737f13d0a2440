"""One try to store one object.

Owns the breaker, the places for puts that run at once, each try's deadline, what is remembered of keys whose tries
failed, and each try's latency or error in the metrics.

Promises:

    a value    whatever a store does or raises, a try ends as an `Outcome`; the log has the cause of one that failed
    bounded    a try ends within `S3_TIMEOUT` once the store has the keys that sign, which is bounded by itself
    places     no more than `UPLOAD_CONCURRENCY` tries run at once, recovery's included
    the end    from DISK_ONLY on no try begins, and those that run end at once, as UNTRIED
    contrast   a store's refusal is REFUSED only if another key was stored since this one was first tried
    breaker    it is fed by puts of batches and by probes. A file that recovery could not put says nothing about the
               store; a refusal, and an answer of 409 or 412, never count either, nor does what may be a refusal of a
               file that was the probe

Never: tries twice, knows a batch or a file, decides what happens to what was not stored.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from ingest.delivery.breaker import Breaker, State
from ingest.delivery.phase import Course, Phase
from ingest.disk import StorageError
from ingest.store import ALREADY_THERE, STORED, UNTRIED, Outcome, Refusal, Verdict
from ingest.telemetry import BreakerState, PutError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ingest.config import Settings
    from ingest.delivery.breaker import Permit
    from ingest.store import ObjectMetadata, ObjectStore
    from ingest.telemetry import Metrics


MOST_REMEMBERED: Final = 20_000
_BUG: Final = "the store raised what it should not: please report it, with this line"
_TIMES_OUT: Final = "no answer within S3_TIMEOUT"

_SHOWN: Final = {
    State.CLOSED: BreakerState.CLOSED,
    State.HALF_OPEN: BreakerState.HALF_OPEN,
    State.OPEN: BreakerState.OPEN,
}

log = structlog.get_logger()


class _Failed:
    """A key whose tries failed so far: how many, and how many objects were stored when the first one began."""

    __slots__ = ("stored", "tries")

    def __init__(self, stored: int) -> None:
        self.stored = stored
        self.tries = 0


class Attempts:
    """See the module's text. `on_change` is called when the breaker changes."""

    def __init__(
        self,
        settings: Settings,
        store: ObjectStore,
        metrics: Metrics,
        course: Course,
        *,
        clock: Callable[[], float],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.breaker = Breaker(clock, self._report)
        self._store = store
        self._limit = settings.s3_timeout
        self._places = asyncio.Semaphore(settings.upload_concurrency)
        self._running: set[asyncio.Timeout] = set()
        self._stored = 0
        self._failed: dict[str, _Failed] = {}
        self._metrics = metrics
        self._course = course
        self._clock = clock
        self._on_change = on_change
        course.listen(self._entered)

    def __repr__(self) -> str:
        return f"<Attempts running={len(self._running)} failed={len(self._failed)} {self.breaker!r}>"

    async def put(self, key: str, body: bytes, metadata: ObjectMetadata) -> Outcome:
        """Put a batch from memory, whatever the store has under its key."""

        async def put() -> Outcome:
            await self._store.put(key, body, metadata)
            return STORED

        return await self._make(key, put, feeds_breaker=True)

    async def create(self, key: str, body: bytes, metadata: ObjectMetadata) -> Outcome:
        """Create the object of something read from a disk, unless the store has one of its key."""

        async def create() -> Outcome:
            return STORED if await self._store.create(key, body, metadata) else ALREADY_THERE

        return await self._make(key, create, feeds_breaker=False)

    async def _make(self, key: str, call: Callable[[], Awaitable[Outcome]], *, feeds_breaker: bool) -> Outcome:
        async with self._places:
            if self._course.phase >= Phase.DISK_ONLY or (permit := self.breaker.ask()) is None:
                return UNTRIED
            began = self._clock()
            failed = self._failed.get(key) or _Failed(self._stored)
            failed.tries += 1
            self._metrics.puts += 1
            try:
                outcome = await self._bounded(call)
            except BaseException as error:
                if self._course.phase >= Phase.DISK_ONLY or not isinstance(error, Exception):
                    self.breaker.abandoned(permit)
                    if isinstance(error, Exception):
                        return UNTRIED
                    raise
                outcome = Outcome.of(self._cause(key, error), contrast=self._stored > failed.stored)
                self._note(key, failed, outcome, self._clock() - began, feeds_breaker=feeds_breaker)
            else:
                self._metrics.put_seconds.observe(self._clock() - began)
                self._metrics.store.stored()
                self._metrics.puts_already_stored += outcome is ALREADY_THERE
                self._failed.pop(key, None)
                self._stored += 1
            if feeds_breaker or permit.is_probe:
                self._tell(permit, outcome, is_batch=feeds_breaker)
            return outcome

    async def _bounded(self, call: Callable[[], Awaitable[Outcome]]) -> Outcome:
        deadline = asyncio.timeout(None)
        self._running.add(deadline)
        try:
            async with deadline:
                # To find keys is no part of a try's time.
                await self._store.prepare()
                if self._course.phase < Phase.DISK_ONLY:
                    deadline.reschedule(asyncio.get_running_loop().time() + self._limit)
                return await call()
        finally:
            self._running.discard(deadline)

    def _entered(self, phase: Phase) -> None:
        if phase >= Phase.DISK_ONLY:
            now = asyncio.get_running_loop().time()
            for deadline in self._running:
                if not deadline.expired():
                    deadline.reschedule(now)
        elif phase is Phase.HURRYING:
            self.breaker.hurry()

    def _tell(self, permit: Permit, outcome: Outcome, *, is_batch: bool) -> None:
        # What may be a refusal of one file says nothing about the store: the next batch does.
        is_of_one = outcome.verdict is Verdict.REFUSED or (isinstance(outcome.error, Refusal) and not is_batch)
        if outcome.is_there:
            self.breaker.succeeded(permit)
        elif is_of_one or outcome.is_conflict:
            self.breaker.undecided(permit)
        else:
            self.breaker.failed(permit)

    @staticmethod
    def _cause(key: str, error: Exception) -> StorageError:
        if isinstance(error, StorageError):
            return error
        cause: dict[str, str | int] = {"error": f"{type(error).__name__}: {error}".rstrip(": ")}
        hint = _TIMES_OUT if isinstance(error, TimeoutError) else _BUG
        failure = StorageError("put", key, hint, transient=True, cause=cause)
        failure.__cause__ = error
        return failure

    def _note(self, key: str, failed: _Failed, outcome: Outcome, took: float, *, feeds_breaker: bool) -> None:
        error = outcome.error
        assert error is not None  # noqa: S101 - what failed has one
        self._failed.pop(key, None)
        self._failed[key] = failed
        if len(self._failed) > MOST_REMEMBERED:
            del self._failed[next(iter(self._failed))]
        told = {"address": self._store.address, **error.cause, "attempt": failed.tries, "took": round(took, 3)}
        verdict = outcome.verdict.name.lower()
        # A file that the store may have refused says nothing about the store: the next batch does.
        if outcome.verdict is Verdict.AWAY and not (isinstance(error, Refusal) and not feeds_breaker):
            self._metrics.store.failed(str(error.cause.get("error", error)), str(error.cause.get("code", "")))
        if error.hint is _TIMES_OUT:
            self._metrics.put_errors.add(PutError.TIMED_OUT)
            log.warning("put_timed_out", key=key, verdict=verdict, hint=error.hint, **told)
        elif error.hint is _BUG:
            bug = error.__cause__
            self._metrics.put_errors.add(PutError.BUG)
            log.error("put_failed", key=key, operation="put", verdict=verdict, hint=error.hint, exc_info=bug, **told)
        else:
            self._metrics.put_errors.add(PutError.REFUSED if outcome.verdict is Verdict.REFUSED else PutError.AWAY)
            log.warning("put_failed", key=key, operation=error.operation, verdict=verdict, hint=error.hint, **told)

    def _report(self, state: State) -> None:
        self._metrics.breaker = _SHOWN[state]
        tell = log.warning if state is State.OPEN else log.info
        tell("breaker_changed", state=self._metrics.breaker.value)
        self._on_change()
