"""The puts of documents: one at a time, beside the events, and only while the store is well.

Owns the pause after a put that failed: 5 s, twice as long each time, 5 min at most; an hour after the store has said
that it does not let us. Promises that while events cannot be put a document is tried every 5 min at most, that a put
ends, and that whatever a store does or raises is a False; both edges are logged once. Never feeds the breaker, never
takes the place of a batch: the store's client keeps one connection beside those of batches.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from ingest.disk import StorageError
from ingest.format.manifest import CONTENT_TYPE
from ingest.store import ObjectMetadata, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.store import ObjectStore
    from ingest.telemetry import Metrics

FIRST_PAUSE: Final = 5.0
LONGEST_PAUSE: Final = 300.0
DENIED_PAUSE: Final = 3600.0
KEYS_SECONDS: Final = 60.0
"""How long the store may take to find keys, before a try begins."""

log = structlog.get_logger()


class Post:
    """See the module's text. `limit` bounds one try."""

    __slots__ = (
        "_clock",
        "_due",
        "_failing",
        "_instance",
        "_limit",
        "_metrics",
        "_pause",
        "_store",
        "_tried_at",
        "is_denied",
    )

    def __init__(
        self, store: ObjectStore, metrics: Metrics, instance: str, *, limit: float, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._instance = instance
        self._limit = limit
        self._clock = clock
        self._due = 0.0
        """When the next try may be made; it matters while `_failing`."""
        self._pause = FIRST_PAUSE
        self._tried_at = -LONGEST_PAUSE
        self._failing = False
        """From a put that failed until one succeeds."""
        self.is_denied = False
        """The store has said that it does not let us, until it takes one or fails in another way."""

    def __repr__(self) -> str:
        return f"<Post {'failing' if self._failing else 'well'}>"

    @property
    def is_due(self) -> bool:
        """A put may be tried now."""
        now = self._clock()
        if self._failing and now < self._due:
            return False
        # While events cannot be put, a document now and then finds out whether that is over: maybe no event comes.
        return self._metrics.store.up or now - self._tried_at >= LONGEST_PAUSE

    def hurry(self) -> None:
        """Pause no longer after a put that failed: there may be no other time."""
        self._due = self._clock()

    async def put(self, key: str, body: bytes) -> bool:
        """Put a document, whatever is there; False if it may not be tried now, or did not succeed."""
        if not self.is_due:
            return False
        self._tried_at = self._clock()
        metadata = ObjectMetadata(0, 0, 0, self._instance, CONTENT_TYPE)
        try:
            async with asyncio.timeout(KEYS_SECONDS):
                await self._store.prepare()
            async with asyncio.timeout(self._limit):
                await self._store.put(key, body, metadata)
        except Exception as error:  # noqa: BLE001 - whatever a store raises is its own, and no event waits for this
            self._failed(key, error)
            return False
        self._metrics.manifests_stored += 1
        self._pause = FIRST_PAUSE
        self.is_denied = False
        if self._failing:
            self._failing = False
            log.info("manifests_put_again", key=key)
        return True

    def _failed(self, key: str, error: Exception) -> None:
        self._metrics.manifest_errors += 1
        self.is_denied = isinstance(error, Refusal)
        self._due = self._clock() + (DENIED_PAUSE if self.is_denied else self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        if not self._failing:
            self._failing = True
            hint = error.hint if isinstance(error, StorageError) else "no answer in time"
            what = str(error) or type(error).__name__
            log.warning("manifest_not_put", key=key, error=what, hint=hint, next_try=round(self._due - self._clock()))
