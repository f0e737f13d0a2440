"""The log as a story: what began, what still goes on, what is over.

Owns the edges that an operator reads: `store_away`, once a minute `store_still_away`, `store_back`, `recovered`,
`refusing_events`, `taking_events_again`; and `Status`, which says the same when asked.
Promises one line for each edge however often the figures flicker, with the figures of that moment: how much waits,
since when, how much room is left, when the next try is.
Never changes anything: it looks at the figures twice a second, so that no room has to tell it, and an event costs
nothing.

| line                  | when                                                                              |
| --------------------- | --------------------------------------------------------------------------------- |
| `store_away`          | tries fail and the breaker has opened, or they have failed for `AWAY_AFTER`       |
| `store_still_away`    | each `REMIND_EVERY` after it                                                      |
| `store_back`          | a try has succeeded again                                                         |
| `recovered`           | no file waits any more, after `store_back` or after files of earlier runs         |
| `refusing_events`     | an event was refused for want of room; again when it is for another reason        |
| `taking_events_again` | none was for `QUIET`, and one that came now would be taken                        |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog

from ingest.telemetry.books import Place
from ingest.telemetry.counters import BreakerState, Reason
from ingest.telemetry.status import Phase, Status, clock_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.telemetry.metrics import Metrics

AWAY_AFTER: Final = 10.0
REMIND_EVERY: Final = 60.0
QUIET: Final = 5.0
WANT_OF_ROOM: Final = (Reason.QUEUE_FULL, Reason.DISK_FULL)

log = structlog.get_logger()


class Story:
    """See the module's text. `tick` is to be called about twice a second."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        clock: Callable[[], float],
        now: Callable[[], float],
        refuses: Callable[[], bool],
        next_try: Callable[[], float],
    ) -> None:
        """`refuses`: whether an event that came now would be refused; `next_try`: on `clock`."""
        self._metrics = metrics
        self._clock = clock
        self._now = now
        self._refuses = refuses
        self._next_try = next_try
        self._well_since = now()
        self._away = False
        self._reminded_at = 0.0
        self._recovering = False
        self._recovering_from = (0, 0)
        """Files and events that had been stored from disk when files last began to wait: a probe is a file, too."""
        self._recovering_at = 0.0
        self._recovering_since = 0.0
        self._found = 0
        """Events of earlier runs that the story has seen come into the books."""
        self._refusing: Reason | None = None
        self._refused = dict.fromkeys(WANT_OF_ROOM, 0)
        self._refused_before = 0
        self._refusing_at = 0.0
        self._refusing_since = 0.0
        self._refused_last_at = 0.0

    def __repr__(self) -> str:
        return f"<Story {self.status().sentence()}>"

    def tick(self) -> None:
        """Look at the figures, and tell what has begun or ended since the last look."""
        books = self._metrics.books
        if books.checked and (differing := books.differing()):
            raise AssertionError(f"the places hold other than the books say: {differing}, {books!r}")
        self._tell_store()
        self._tell_recovery()
        self._tell_refusals()

    def status(self) -> Status:
        """Return what would be said if somebody asked now."""
        books, store = self._metrics.books, self._metrics.store
        refusing = self._refusing
        if refusing is not None:
            phase, since = Phase.REFUSING, self._refusing_since
        elif self._away:
            phase, since = Phase.STORE_AWAY, store.failing_since
        elif self._recovering:
            phase, since = Phase.RECOVERING, self._recovering_since
        else:
            phase, since = Phase.SERVING, self._well_since
        return Status(
            phase=phase,
            since=since,
            accepted=books.events_accepted,
            stored=books.events_stored,
            dropped=books.events_dropped.total(),
            refused=sum(self._metrics.rejected[reason] for reason in WANT_OF_ROOM),
            waiting_events=self._waiting(),
            waiting_files=self._files(),
            room_left=self._room_left(),
            next_try=self._seconds_to_next_try() if self._away else None,
            reason="" if refusing is None else refusing.value,
            error=store.error if self._away else "",
            code=store.code if self._away else "",
        )

    # The store.

    def _tell_store(self) -> None:
        store = self._metrics.store
        if store.up:
            if self._away:
                self._away = False
                self._well_since = self._now()
                away_for = round(self._now() - store.failing_since, 1)
                log.info("store_back", away_for=away_for, waiting=self._waiting(), files=self._files())
                self._begin_recovery()
        elif not self._away:
            failing = self._now() - store.failing_since
            if self._metrics.breaker is not BreakerState.CLOSED or failing >= AWAY_AFTER:
                self._away = True
                self._reminded_at = self._clock()
                log.warning("store_away", error=store.error, code=store.code, since=clock_time(store.failing_since))
        elif self._clock() - self._reminded_at >= REMIND_EVERY:
            self._reminded_at = self._clock()
            log.warning(
                "store_still_away",
                error=store.error,
                since=clock_time(store.failing_since),
                waiting=self._waiting(),
                files=self._files(),
                room_left=self._room_left(),
                next_try=round(self._seconds_to_next_try(), 1),
            )

    # Files that wait.

    def _begin_recovery(self) -> None:
        if not self._recovering and self._files():
            self._recovering = True
            self._recovering_at = self._clock()
            self._recovering_since = self._now()

    def _tell_recovery(self) -> None:
        found = self._metrics.books.events_recovered
        if found > self._found:
            self._found = found
            if not self._away:
                self._begin_recovery()
        if self._files():
            return
        if self._recovering:
            self._recovering = False
            self._well_since = self._now()
            files, events = self._recovering_from
            log.info(
                "recovered",
                files=self._metrics.files_reuploaded - files,
                events=self._metrics.reuploaded - events,
                took=round(self._clock() - self._recovering_at, 1),
            )
        self._recovering_from = (self._metrics.files_reuploaded, self._metrics.reuploaded)

    # Events that are refused.

    def _tell_refusals(self) -> None:
        now = self._clock()
        for reason in WANT_OF_ROOM:
            count = self._metrics.rejected[reason]
            if count == self._refused[reason]:
                continue
            if self._refusing is None:
                self._refused_before = sum(self._refused.values())
                self._refusing_at = now
                self._refusing_since = self._now()
            self._refused[reason] = count
            self._refused_last_at = now
            if self._refusing is not reason:
                self._refusing = reason
                log.warning(
                    "refusing_events", reason=reason.value, waiting=self._waiting(), room_left=self._room_left()
                )
        if self._refusing is not None and now - self._refused_last_at >= QUIET and not self._refuses():
            self._refusing = None
            self._well_since = self._now()
            refused = sum(self._refused.values()) - self._refused_before
            lasted = {"for": round(self._refused_last_at - self._refusing_at, 1)}
            log.info("taking_events_again", refused=refused, **lasted)

    # Figures.

    def _waiting(self) -> int:
        return sum(self._metrics.books.pending(place) for place in Place)

    def _files(self) -> int:
        gauges = self._metrics.gauges
        return int(gauges.dlq_files() + gauges.backlog_files())

    def _room_left(self) -> int:
        gauges = self._metrics.gauges
        left = gauges.spool_limit() - gauges.dlq_bytes() - gauges.backlog_bytes()
        free = gauges.disk_free()
        return int(max(min(left, free) if free else left, 0))

    def _seconds_to_next_try(self) -> float:
        return max(self._next_try() - self._clock(), 0.0)
