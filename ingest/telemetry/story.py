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
from ingest.telemetry.pulse import Pulse
from ingest.telemetry.status import About, Disk, LastError, Phase, Status, clock_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.telemetry.metrics import Metrics

AWAY_AFTER: Final = 10.0
REMIND_EVERY: Final = 60.0
QUIET: Final = 5.0
WANT_OF_ROOM: Final = (Reason.QUEUE_FULL, Reason.DISK_FULL)

log = structlog.get_logger()


class _Figures:
    """The figures that a line tells beside its edge."""

    __slots__ = ("_next_try", "clock", "metrics", "now")

    def __init__(
        self,
        metrics: Metrics,
        clock: Callable[[], float],
        now: Callable[[], float],
        next_try: Callable[[], float],
    ) -> None:
        self.metrics = metrics
        self.clock = clock
        self.now = now
        self._next_try = next_try

    def waiting(self) -> int:
        return sum(self.metrics.books.pending(place) for place in Place)

    def files(self) -> int:
        gauges = self.metrics.gauges
        return int(gauges.dlq_files() + gauges.backlog_files())

    def room_left(self) -> int:
        gauges = self.metrics.gauges
        left = gauges.spool_limit() - gauges.dlq_bytes() - gauges.backlog_bytes()
        free = gauges.disk_free()
        return int(max(min(left, free) if free else left, 0))

    def seconds_to_next_try(self) -> float:
        return max(self._next_try() - self.clock(), 0.0)


class _Outage:
    """The store is away, from when tries have failed for long enough until one succeeds."""

    __slots__ = ("_figures", "_reminded_at", "away")

    def __init__(self, figures: _Figures) -> None:
        self.away = False
        self._figures = figures
        self._reminded_at = 0.0

    def tell(self) -> bool:
        """Tell what is new; True when the outage is over."""
        figures = self._figures
        store, now, clock = figures.metrics.store, figures.now(), figures.clock()
        if store.up:
            if not self.away:
                return False
            self.away = False
            away_for = round(now - store.failing_since, 1)
            log.info("store_back", away_for=away_for, waiting=figures.waiting(), files=figures.files())
            return True
        if not self.away:
            if figures.metrics.breaker is not BreakerState.CLOSED or now - store.failing_since >= AWAY_AFTER:
                self.away = True
                self._reminded_at = clock
                log.warning("store_away", error=store.error, code=store.code, since=clock_time(store.failing_since))
        elif clock - self._reminded_at >= REMIND_EVERY:
            self._reminded_at = clock
            log.warning(
                "store_still_away",
                error=store.error,
                since=clock_time(store.failing_since),
                waiting=figures.waiting(),
                files=figures.files(),
                room_left=figures.room_left(),
                next_try=round(figures.seconds_to_next_try(), 1),
            )
        return False


class _Recovering:
    """Files wait that the store takes, from when it is back, or they were found, until none does."""

    __slots__ = ("_began_at", "_figures", "_found", "_stored_before", "on", "since")

    def __init__(self, figures: _Figures) -> None:
        self.on = False
        self.since = 0.0
        self._figures = figures
        self._began_at = 0.0
        self._stored_before = (0, 0)
        """Files and events that had been stored from disk when files last began to wait: a probe is a file, too."""
        self._found = 0
        """Events of earlier runs that the story has seen come into the books."""

    def begin(self) -> None:
        """Take note that the store takes files, if some wait."""
        if not self.on and self._figures.files():
            self.on = True
            self.since = self._figures.now()
            self._began_at = self._figures.clock()

    def tell(self, *, away: bool) -> bool:
        """Tell what is new; True when no file waits any more."""
        metrics = self._figures.metrics
        found = metrics.books.events_recovered
        if found > self._found:
            self._found = found
            if not away:
                self.begin()
        if self._figures.files():
            return False
        was_on, self.on = self.on, False
        if was_on:
            files, events = self._stored_before
            log.info(
                "recovered",
                files=metrics.files_reuploaded - files,
                events=metrics.reuploaded - events,
                took=round(self._figures.clock() - self._began_at, 1),
            )
        self._stored_before = (metrics.files_reuploaded, metrics.reuploaded)
        return was_on


class _Refusing:
    """Events are refused for want of room, from the first one until none was for a while and none would be."""

    __slots__ = ("_before", "_began_at", "_counted", "_figures", "_last_at", "_refuses", "reason", "since")

    def __init__(self, figures: _Figures, refuses: Callable[[], bool]) -> None:
        self.reason: Reason | None = None
        self.since = 0.0
        self._figures = figures
        self._refuses = refuses
        self._counted = dict.fromkeys(WANT_OF_ROOM, 0)
        self._before = 0
        """Events that had been refused when it began."""
        self._began_at = 0.0
        self._last_at = 0.0

    def tell(self) -> bool:
        """Tell what is new; True when events are taken again."""
        figures = self._figures
        now = figures.clock()
        for reason in WANT_OF_ROOM:
            count = figures.metrics.rejected[reason]
            if count == self._counted[reason]:
                continue
            if self.reason is None:
                self._before = sum(self._counted.values())
                self._began_at = now
                self.since = figures.now()
            self._counted[reason] = count
            self._last_at = now
            if self.reason is not reason:
                self.reason = reason
                log.warning(
                    "refusing_events",
                    reason=reason.value,
                    waiting=figures.waiting(),
                    room_left=figures.room_left(),
                )
        if self.reason is None or now - self._last_at < QUIET or self._refuses():
            return False
        self.reason = None
        refused = sum(self._counted.values()) - self._before
        lasted = {"for": round(self._last_at - self._began_at, 1)}
        log.info("taking_events_again", refused=refused, **lasted)
        return True


class Story:
    """See the module's text. `tick` is to be called about twice a second."""

    __slots__ = ("_about", "_figures", "_outage", "_pulse", "_recovering", "_refusing", "_well_since")

    def __init__(
        self,
        metrics: Metrics,
        *,
        clock: Callable[[], float],
        now: Callable[[], float],
        refuses: Callable[[], bool],
        next_try: Callable[[], float],
        about: Callable[[], About] = About,
    ) -> None:
        """`refuses`: whether an event that came now would be refused; `next_try`: on `clock`."""
        self._about = about
        self._pulse = Pulse(metrics, clock)
        self._figures = figures = _Figures(metrics, clock, now, next_try)
        self._outage = _Outage(figures)
        self._recovering = _Recovering(figures)
        self._refusing = _Refusing(figures, refuses)
        self._well_since = now()

    def __repr__(self) -> str:
        return f"<Story {self.status().sentence()}>"

    def tick(self) -> None:
        """Look at the figures, and tell what has begun or ended since the last look."""
        books = self._figures.metrics.books
        if books.checked and (differing := books.differing()):
            raise AssertionError(f"the places hold other than the books say: {differing}, {books!r}")
        self._pulse.feed()
        is_back = self._outage.tell()
        if is_back:
            self._recovering.begin()
        is_through = self._recovering.tell(away=self._outage.away)
        if self._refusing.tell() or is_back or is_through:
            self._well_since = self._figures.now()

    def status(self) -> Status:
        """Return what would be said if somebody asked now."""
        figures, refusing, is_away = self._figures, self._refusing.reason, self._outage.away
        metrics = figures.metrics
        books, store, gauges = metrics.books, metrics.store, metrics.gauges
        if refusing is not None:
            phase, since = Phase.REFUSING, self._refusing.since
        elif is_away:
            phase, since = Phase.STORE_AWAY, store.failing_since
        elif self._recovering.on:
            phase, since = Phase.RECOVERING, self._recovering.since
        else:
            phase, since = Phase.SERVING, self._well_since
        return Status(
            phase=phase,
            since=since,
            accepted=books.events_accepted,
            stored=books.events_stored,
            dropped=books.events_dropped.total(),
            refused=sum(metrics.rejected[reason] for reason in WANT_OF_ROOM),
            waiting_events=figures.waiting(),
            waiting_files=figures.files(),
            room_left=figures.room_left(),
            next_try=figures.seconds_to_next_try() if is_away else None,
            reason="" if refusing is None else refusing.value,
            error=store.error if is_away else "",
            code=store.code if is_away else "",
            last_minute=self._pulse.last_minute(),
            pending={place.value: books.pending(place) for place in Place},
            oldest_pending=gauges.oldest_pending(),
            breaker=metrics.breaker.value,
            disk=Disk(
                int(gauges.dlq_bytes() + gauges.backlog_bytes()), int(gauges.spool_limit()), int(gauges.disk_free())
            ),
            refused_files=int(gauges.refused_files()),
            last_error=LastError(store.error, store.code, store.failed_at) if store.failed_at else None,
            about=self._about(),
        )
