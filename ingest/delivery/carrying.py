"""Carrying: one file's way from the disk to the store, and off the disk.

Owns what is done with one file: read it once, create its object, quarantine the original if it was damaged, settle the
books, let the file go. Promises:

    create-only   what is read from a disk may be less than what is stored, so it never replaces an object; "it exists
                  already" is as good as stored
    two copies    of a key in both the journal's backlog and the DLQ: see `choice`. While a place that may hold the
                  other copy cannot be read, a file that does not verify waits
    damage        sound lines are stored under the file's own key, the original bytes under `DLQ_PREFIX`, and only then
                  is the file gone; without a sound line nothing is put
    one bad file  is put off (see `aside`), and the rest goes on
    expiry        a file older than `DLQ_MAX_AGE` goes only after a put of it failed in this run, and not because the
                  clock is wrong by which it is old

Never: holds more than one file in memory (two of one key), takes a file that cannot be read for a damaged one, decides
when it is time for one.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

import structlog

from ingest.delivery.choice import Choice, Copy, Why, choose
from ingest.disk import StorageError
from ingest.format import ledger, parse_key, quarantine_key
from ingest.spool import Whereabouts
from ingest.store import ObjectMetadata, Outcome, Refusal, Verdict, doubts_clock
from ingest.telemetry import DropReason

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ingest.config import Settings
    from ingest.delivery.aside import Aside
    from ingest.delivery.attempt import Attempts
    from ingest.spool import Letter
    from ingest.spool.waiting import Waiting
    from ingest.telemetry import Metrics

MOST_TOLD: Final = 1_000

log = structlog.get_logger()


class Step(Enum):
    """The outcome of one step."""

    STORED = auto()
    REFUSED = auto()
    """The store answered, and did not take it."""
    AWAY = auto()
    EXPIRED = auto()
    WAITS = auto()
    """It is not its time, the disk would not say what is in it, or another copy of it has to be seen first."""
    NOTHING = auto()
    """A pass has ended."""


class Carrier:
    """See the module's text. The two sources take turns until each has come to its end."""

    def __init__(
        self,
        settings: Settings,
        dlq: Waiting,
        backlog: Waiting,
        attempts: Attempts,
        aside: Aside,
        metrics: Metrics,
        now: Callable[[], float],
    ) -> None:
        self.aside = aside
        self._dlq_prefix = settings.dlq_prefix
        self._max_age = settings.dlq_max_age
        self._dlq = dlq
        self._backlog = backlog
        self._attempts = attempts
        self._metrics = metrics
        self._now = now
        self._turns: list[Waiting] = [backlog, dlq]
        self._told: set[Path] = set()

    @property
    def scanning(self) -> bool:
        """There are files that are not in the books yet."""
        return self._dlq.scanning or self._backlog.scanning

    async def step(self) -> Step:
        """Take the next file all the way to the store and off the disk."""
        letter = await self._next()
        if letter is None:
            return Step.NOTHING
        async with letter:
            self.aside.met(letter.key)
            letter.refused = self.aside.is_refused(letter.key)
            if not self.aside.is_due(letter.key):
                return Step.WAITS
            try:
                return await self._carry(letter)
            except (OSError, StorageError) as error:
                self._tell_unreadable(letter, error)
                return Step.WAITS

    async def _next(self) -> Letter | None:
        while self._turns:
            source = self._turns.pop(0)
            letter = await source.next()
            if letter is not None:
                self._turns.append(source)
                return letter
        self._turns = [self._backlog, self._dlq]
        self.aside.passed()
        return None

    async def _carry(self, letter: Letter) -> Step:
        copies = [Copy(letter, await letter.contents())]
        async with AsyncExitStack() as lent:
            if letter.is_segment or not copies[0].contents.found.sound:
                other = await (self._dlq if letter.is_segment else self._backlog).find(letter.key)
                if other is Whereabouts.UNKNOWN:
                    return Step.WAITS
                if other is not Whereabouts.NOT_THERE:
                    await lent.enter_async_context(other)
                    copies.append(Copy(other, await other.contents()))
            return await self._deliver(letter, choose(copies))

    async def _deliver(self, letter: Letter, choice: Choice) -> Step:
        best = choice.best
        if best.contents.body is not None:
            outcome = await self._create(letter.key, best.contents.body, best)
            if not outcome.is_there:
                return self._not_put(letter, outcome, letter.key)
        for copy in choice.copies:
            if copy.contents.found.sound:
                continue
            key = self._quarantine_key(copy.letter)
            outcome = await self._create(key, await copy.letter.original(), copy)
            if not outcome.is_there:
                return self._not_put(letter, outcome, key)
            self.aside.stored(key)
        self.aside.stored(letter.key)
        self._settle(choice)
        return Step.STORED

    async def _create(self, key: str, body: bytes, copy: Copy) -> Outcome:
        # The instance is in the file's own key: a quarantined segment goes under a name that is no batch's.
        found = copy.contents.found
        metadata = ObjectMetadata(found.events, found.first_ts, found.last_ts, instance_of(copy.letter.key))
        return await self._attempts.create(key, body, metadata)

    def _quarantine_key(self, letter: Letter) -> str:
        key = quarantine_key(letter.key, self._dlq_prefix)
        return key.removesuffix(".gz") if letter.is_segment else key

    def _not_put(self, letter: Letter, outcome: Outcome, key: str) -> Step:
        if outcome.verdict is Verdict.UNTRIED:
            return Step.WAITS
        if key == letter.key and self._is_expired(letter) and not doubts_clock(outcome.error):
            self._expire(letter)
            return Step.EXPIRED
        self.aside.put_off(letter.key, outcome, object_key=key)
        letter.refused = outcome.verdict is Verdict.REFUSED
        return Step.REFUSED if isinstance(outcome.error, Refusal) else Step.AWAY

    def _settle(self, choice: Choice) -> None:
        """Move the events of all copies to where they are now, in this step of the loop. They are one batch's."""
        books, best = self._metrics.books, choice.best
        place = best.letter.lender.place
        counted = best.letter.events
        for other in choice.others:
            books.moved(other.letter.events, other.letter.lender.place, place)
            counted += other.letter.events
        lost = choice.lost
        if counted > best.events:
            books.dropped(lost, DropReason.CORRUPT, place)
            books.stored(counted - lost, place)
        else:
            books.recovered(best.events - counted, place)
            books.stored(best.events, place)
        self._metrics.reuploaded += best.events
        if choice.why is not Why.ALONE:
            log.info("copy_chosen", key=best.letter.key, why=choice.why.value, events=best.events)
        lines = _lines(best, choice.damage)
        for copy in choice.copies:
            self._metrics.files_reuploaded += 1
            found = copy.contents.found
            if not found.sound:
                self._metrics.files_quarantined += 1
                log.error(
                    "file_quarantined",
                    key=copy.letter.key,
                    salvaged=found.events,
                    bad_lines=found.bad_lines,
                    lost=max(copy.letter.events - best.events, 0),
                    prefix=self._dlq_prefix,
                )
            elif found.body is not None and not copy.letter.is_segment:
                log.warning("file_recounted", key=copy.letter.key, declared=copy.letter.events, events=found.events)
            copy.letter.settle(lines)

    def _is_expired(self, letter: Letter) -> bool:
        return 0 < self._max_age < self._now() - parse_key(letter.key).unix

    def _expire(self, letter: Letter) -> None:
        self.aside.forget(letter.key)
        self._metrics.books.dropped(letter.events, DropReason.EXPIRED, letter.lender.place)
        self._metrics.files_expired += 1
        hint = "older than DLQ_MAX_AGE, and its put failed"
        log.error("file_expired", key=letter.key, events=letter.events, hint=hint)
        letter.settle(ledger.dropped(letter.key, DropReason.EXPIRED.value, letter.events))

    def _tell_unreadable(self, letter: Letter, error: OSError | StorageError) -> None:
        """Log once that the disk would not say what is in a file, which is no verdict upon the file."""
        if letter.path in self._told:
            return
        if len(self._told) >= MOST_TOLD:
            self._told.clear()
        self._told.add(letter.path)
        log.warning("recovery_file_unreadable", key=letter.key, errno=error.errno, hint="it is tried again later")


def _lines(best: Copy, lost: int | None) -> bytes:
    """Return what the ledger is told of a key: its object, and what was lost of it."""
    key, body = best.letter.key, best.contents.body
    gone = b"" if lost == 0 and body is not None else ledger.dropped(key, DropReason.CORRUPT.value, lost)
    return gone if body is None else ledger.stored(key, best.events, body) + gone


def instance_of(key: str) -> str:
    """Name the process that took in a batch's events, as its key has it."""
    return parse_key(key).instance
