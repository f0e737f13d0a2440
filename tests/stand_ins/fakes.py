"""Stand-ins for what a test must be able to break or to hold still: the clock and the store.

`FakeClock` stands still until it is told to go. `MemoryStore` is an `ObjectStore` that fails, hangs or loses its answer
on demand. None of them draws chance by itself: the same calls with the same choices give the same outcome.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import time
from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING, TypeVar

from ingest.disk.errors import StorageError
from ingest.format import codec
from ingest.store import Found, Listed, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.store.object_store import ObjectMetadata

_Result = TypeVar("_Result")


def is_less(there: bytes, body: bytes) -> bool:
    """Tell whether an object has fewer events of its batch than a body, as the heads of both have it."""
    found, wanted = codec.event_count(there[: codec.HEAD_BYTES]), codec.event_count(body[: codec.HEAD_BYTES])
    return found is not None and wanted is not None and found < wanted


def _refuse_strange(key: str, there: bytes, body: bytes) -> None:
    """Raise where a batch would be created over what is none."""
    found, wanted = codec.event_count(there[: codec.HEAD_BYTES]), codec.event_count(body[: codec.HEAD_BYTES])
    if wanted is not None and found is None:
        raise Refusal("create", key, "what is there is no object of ours", transient=False)


# ----------------------------------------------------------------------------------------------------- clock


class FakeClock:
    """Time that passes when told to: `time` (may be set back), `monotonic` (never), and `sleep`, which follows it."""

    __slots__ = ("_monotonic", "_sleepers", "_slept", "_time")

    def __init__(self, now: float = 1_764_720_000.0) -> None:
        self._time = now
        self._monotonic = 1000.0
        self._slept = 0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def time(self) -> float:
        return self._time

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass, and wake who slept until then."""
        self._time += seconds
        self._monotonic += seconds
        while self._sleepers and self._sleepers[0][0] <= self._monotonic:
            future = heapq.heappop(self._sleepers)[2]
            if not future.done():
                future.set_result(None)

    def step(self, seconds: float) -> None:
        """Set the wall clock forward or back, as NTP does; nobody wakes."""
        self._time += seconds

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        self._slept += 1
        heapq.heappush(self._sleepers, (self._monotonic + seconds, self._slept, future))
        await future

    @property
    def next_wake(self) -> float | None:
        """In how many seconds the first sleeper wakes."""
        awake = [deadline for deadline, _, future in self._sleepers if not future.done()]
        return min(awake) - self._monotonic if awake else None


# ----------------------------------------------------------------------------------------------------- store


class MemoryStore:
    """An `ObjectStore` in a dictionary. What shall go wrong is said beforehand and happens to the calls that come next.

    fail_next         the call fails and stores nothing
    lose_next_answers the call stores, then fails as if the answer had been lost
    hang_next         the call waits until `resume`, or until it is cancelled; it stores only after that
    down              every call fails until it is False again
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.metadata: dict[str, ObjectMetadata] = {}
        self.calls: list[tuple[str, str]] = []
        """Operation and key of every call, in order."""
        self.replaced: list[tuple[str, bytes, bytes]] = []
        """Key, old and new body, whenever a put changed what was stored."""
        self.down = False
        self.running = 0
        """How many calls are under way."""
        self.started = self.closed = False
        self.clock = time.time
        self._fates: deque[StorageError | _Fate] = deque()
        self._resumed: asyncio.Event | None = None

    def fail_next(self, n: int = 1, *, transient: bool = True) -> None:
        self._fates.extend(StorageError("put", "", "told to fail", transient=transient) for _ in range(n))

    def lose_next_answers(self, n: int = 1) -> None:
        self._fates.extend([_Fate.LOSE_ANSWER] * n)

    def hang_next(self, n: int = 1) -> None:
        self._fates.extend([_Fate.HANG] * n)

    def succeed_next(self, n: int = 1) -> None:
        """Let n calls pass before the next fate."""
        self._fates.extend([_Fate.PASS] * n)

    def resume(self) -> None:
        """Let go of the calls that hang."""
        if self._resumed is not None:
            self._resumed.set()
            self._resumed = None

    async def start(self) -> None:
        self.started = True

    address = "memory"

    async def prepare(self) -> None:
        """Nothing to do."""

    async def put(self, key: str, body: bytes, metadata: ObjectMetadata) -> None:
        await self._call("put", key, lambda: self._store(key, body, metadata))

    async def create(self, key: str, body: bytes, metadata: ObjectMetadata) -> bool:
        def create() -> bool:
            if key in self.objects and not is_less(self.objects[key], body):
                _refuse_strange(key, self.objects[key], body)
                return False
            self._store(key, body, metadata)
            return True

        return await self._call("create", key, create)

    async def get(self, key: str) -> bytes:
        def get() -> bytes:
            if key not in self.objects:
                raise StorageError("get", key, "there is no such object", transient=False)
            return self.objects[key]

        return await self._call("get", key, get)

    async def listing(self, prefix: str) -> list[Listed]:
        def listing() -> list[Listed]:
            return [
                Listed(key, len(body), self.clock())
                for key, body in sorted(self.objects.items())
                if key.startswith(prefix)
            ]

        return await self._call("list", prefix, listing)

    async def first_bytes(self, key: str, size: int) -> bytes:
        return (await self.get(key))[:size]

    async def find(self, key: str) -> Found | None:
        return await self._call("get", key, lambda: self._found(key))

    async def replace(self, key: str, body: bytes, version: str | None, content_type: str) -> bool:  # noqa: ARG002 - a dictionary has none
        def replace() -> bool:
            found = self._found(key)
            if (found and found.version) != version:
                return False
            self.objects[key] = bytes(body)
            return True

        return await self._call("replace", key, replace)

    def _found(self, key: str) -> Found | None:
        body = self.objects.get(key)
        return None if body is None else Found(body, hashlib.sha256(body).hexdigest())

    async def delete(self, key: str) -> None:
        await self._call("delete", key, lambda: self.objects.pop(key, None))

    async def close(self) -> None:
        self.closed = True

    def _store(self, key: str, body: bytes, metadata: ObjectMetadata) -> None:
        if self.objects.get(key, body) != body:
            self.replaced.append((key, self.objects[key], body))
        self.objects[key] = bytes(body)
        self.metadata[key] = metadata

    async def _call(self, operation: str, key: str, effect: Callable[[], _Result]) -> _Result:
        self.calls.append((operation, key))
        self.running += 1
        try:
            await asyncio.sleep(0)  # every store lets others run in between
            if self.down:
                raise StorageError(operation, key, "the store is down", transient=True)
            fate = self._fates.popleft() if self._fates else _Fate.PASS
            if isinstance(fate, StorageError):
                raise StorageError(operation, key, fate.hint, transient=fate.transient)
            if fate is _Fate.HANG:
                self._resumed = self._resumed or asyncio.Event()
                await self._resumed.wait()
            result = effect()
            if fate is _Fate.LOSE_ANSWER:
                raise StorageError(operation, key, "the answer was lost", transient=True)
            return result
        finally:
            self.running -= 1


class _Fate(Enum):
    PASS = auto()
    LOSE_ANSWER = auto()
    HANG = auto()
