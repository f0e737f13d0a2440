"""Torn dead letters: the store is asked for their batches, which were found in no journal.

Owns when one goes: its object is there with all the events that its header declares, or it is older than `DLQ_MAX_AGE`.
Promises that one goes upon evidence only: an object with fewer events, one that is none of ours, no object and no
answer say nothing; nor does its age while the clock is in doubt. A look ends within `S3_TIMEOUT` for each of `AT_ONCE`
files, and at the first that is not answered. Never puts anything, never looks while the breaker is not closed.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from ingest.delivery.breaker import State
from ingest.disk import StorageError
from ingest.format import codec, parse_key
from ingest.store import doubts_clock

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.config import Settings
    from ingest.delivery.breaker import Breaker
    from ingest.spool import Spool, Torn
    from ingest.store import ObjectStore
    from ingest.telemetry import Metrics

AT_ONCE: Final = 20

log = structlog.get_logger()


class TornLetters:
    """See the module's text."""

    __slots__ = ("_asked", "_breaker", "_dlq", "_limit", "_max_age", "_metrics", "_now", "_store")

    def __init__(
        self,
        settings: Settings,
        dlq: Spool,
        store: ObjectStore,
        breaker: Breaker,
        metrics: Metrics,
        now: Callable[[], float],
    ) -> None:
        self._limit = settings.s3_timeout
        self._max_age = settings.dlq_max_age
        self._dlq = dlq
        self._store = store
        self._breaker = breaker
        self._metrics = metrics
        self._now = now
        self._asked = 0
        """Files that earlier looks asked for: each look goes on behind the last one."""

    async def look(self) -> None:
        """Ask for some of them, and let those go whose time has come. A disk that does not answer is no news here."""
        with suppress(StorageError):
            await self._look()

    async def _look(self) -> None:
        torn = await self._dlq.torn()
        begin = self._asked % len(torn) if torn else 0
        for letter in [*torn[begin:], *torn[:begin]][:AT_ONCE]:
            self._asked += 1
            if self._breaker.state is not State.CLOSED:
                return
            try:
                async with asyncio.timeout(self._limit):
                    is_stored = await self._is_stored(letter)
            except TimeoutError:
                return
            except Exception as error:  # noqa: BLE001 - whatever a store makes of it, it is no evidence
                if doubts_clock(error):
                    return
                is_stored = False
            if is_stored:
                await self._dlq.give_up(letter)
                log.info("dlq_temporary_removed", key=letter.key, hint="its whole batch is stored")
            elif 0 < self._max_age < self._now() - parse_key(letter.key).unix:
                await self._dlq.give_up(letter)
                self._metrics.files_expired += 1
                hint = "older than DLQ_MAX_AGE, and its batch was found nowhere"
                log.error("dlq_temporary_expired", key=letter.key, events=letter.declared, hint=hint)

    async def _is_stored(self, torn: Torn) -> bool:
        await self._store.prepare()
        head = await self._store.first_bytes(torn.key, codec.HEAD_BYTES)
        return 0 < torn.declared <= (codec.event_count(head) or 0)
