"""Recovery: what lies on disk, back to the store, one file at a time.

Owns the pace (`Recovery.run`) and one file's way (`Recovery.step`): read it once, create its object, quarantine the
original if it was damaged, settle the books, let the file go.

Promises:

    create-only   what is read from a disk may be less than what is stored, so it never replaces an object; "it exists
                  already" is as good as stored
    two copies    of a key in both the journal's backlog and the DLQ: see `choice`. While a place that may hold the
                  other copy cannot be read, a file that does not verify waits
    damage        sound lines are stored under the file's own key, the original bytes under `DLQ_PREFIX`, and only then
                  is the file gone; without a sound line nothing is put; one bad file never stops the rest
    one bad file  is put off (see `aside`), and the rest goes on
    pace          one file at a time, after each a pause as long as it took; only while no batch waits, but at least one
                  file per `DUE_AFTER` seconds while the breaker is closed. While tries fail, the pauses grow
    expiry        a file older than `DLQ_MAX_AGE` goes only after a put of it failed in this run
    drain         while the process is HURRYING there are no pauses and every file is due once; it ends when a pass
                  stores nothing and no batch is left, or when the store does not answer

Never: holds more than one file in memory (two of one key), takes a file that cannot be read for a damaged one.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

import structlog

from ingest.delivery.breaker import State
from ingest.delivery.choice import Choice, Copy, Why, choose
from ingest.delivery.phase import Course, Phase
from ingest.disk import StorageError
from ingest.format import parse_key, quarantine_key
from ingest.spool import Whereabouts
from ingest.store import ObjectMetadata, Outcome, Refusal, Verdict
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


DUE_AFTER: Final = 5.0
SHORTEST_PAUSE: Final = 0.01
IDLE_PAUSE: Final = 1.0
LONGEST_IDLE_PAUSE: Final = 10.0
BUSY_PAUSE: Final = 0.1
LONGEST_REFUSED_PAUSE: Final = 0.32
LONGEST_AWAY_PAUSE: Final = 15.0
LAST_TRIES: Final = 3
"""Tries without an answer, one behind the other, after which a drain leaves the files where they are."""
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


def _no_batches() -> bool:
    return False


class Recovery:
    """See the module's text.

    `batches_wait` says whether the upload queue has work of its own, `batches_left` whether a batch may still come to
    the disk.
    """

    def __init__(
        self,
        settings: Settings,
        dlq: Waiting,
        backlog: Waiting,
        attempts: Attempts,
        aside: Aside,
        metrics: Metrics,
        course: Course,
        *,
        on_stored: Callable[[], None],
        clock: Callable[[], float],
        now: Callable[[], float],
        batches_wait: Callable[[], bool] = _no_batches,
        batches_left: Callable[[], bool] = _no_batches,
    ) -> None:
        self.ended = False
        self.aside = aside
        self._dlq_prefix = settings.dlq_prefix
        self._max_age = settings.dlq_max_age
        self._dlq = dlq
        self._backlog = backlog
        self._attempts = attempts
        self._metrics = metrics
        self._course = course
        self._batches_wait = batches_wait
        self._batches_left = batches_left
        self._on_stored = on_stored
        self._clock = clock
        self._now = now

        self._woken = asyncio.Event()
        self._last_put = clock()

        # The pass: the two sources take turns until each has come to its end.
        self._turns: list[Waiting] = [backlog, dlq]
        self._pass_began = clock()
        self._stored_in_pass = 0
        self._idle_pause = IDLE_PAUSE
        self._failures = 0
        """Tries that failed, one behind the other."""
        self._unanswered = 0
        """The last ones of these, to which no store gave an answer."""
        self._told: set[Path] = set()
        course.listen(self._entered)

    def __repr__(self) -> str:
        return f"<Recovery {self._course.phase.name} ended={self.ended} {self.aside!r}>"

    # ------------------------------------------------------------------------------------------------- the pace

    async def run(self) -> None:
        """Recover until the disk's turn has come, or while HURRYING until nothing is left that the store takes."""
        while not self._has_ended():
            pause = self._until_turn()
            if pause > 0:
                await self._nap(pause)
                continue
            began = self._clock()
            step = await self.step()
            if step is Step.NOTHING:
                if await self._passed():
                    break
                continue
            self._count(step)
            if step is not Step.WAITS and not self._hurries():
                await self._nap(self._pause_after(step, self._clock() - began), whole=True)
        self.ended = True
        self._on_stored()

    def wake(self) -> None:
        """Something changed that may make it recovery's turn."""
        self._woken.set()

    def _entered(self, phase: Phase) -> None:
        if phase is Phase.HURRYING:
            self.aside.all_due()
            self._unanswered = 0
        self._woken.set()

    def _hurries(self) -> bool:
        return self._course.phase is Phase.HURRYING

    def _has_ended(self) -> bool:
        if not self._hurries():
            return self._course.phase > Phase.HURRYING
        breaker = self._attempts.breaker
        # Open, and no probe is due: since the drain began the store was tried.
        is_away = breaker.state is State.OPEN and not breaker.ready
        return (is_away or self._unanswered >= LAST_TRIES) and not self._batches_wait()

    def _until_turn(self) -> float:
        breaker = self._attempts.breaker
        if not breaker.ready:
            return BUSY_PAUSE if self._hurries() else max(breaker.retry_at - self._clock(), BUSY_PAUSE)
        if not self._batches_wait():
            return 0.0
        if breaker.state is State.CLOSED and not self._hurries():
            return self._last_put + DUE_AFTER - self._clock()
        return BUSY_PAUSE  # a batch is the probe

    def _count(self, step: Step) -> None:
        if step is Step.STORED:
            self._stored_in_pass += 1
            self._failures = self._unanswered = 0
            self._on_stored()
        elif step in (Step.REFUSED, Step.AWAY):
            self._failures += 1
            self._unanswered = self._unanswered + 1 if step is Step.AWAY else 0

    def _pause_after(self, step: Step, took: float) -> float:
        if step not in (Step.REFUSED, Step.AWAY):
            return max(took, SHORTEST_PAUSE)
        # What answers is there, and the next file may be taken. What does not answer is left in peace.
        longest = LONGEST_REFUSED_PAUSE if step is Step.REFUSED else LONGEST_AWAY_PAUSE
        return max(took, min(SHORTEST_PAUSE * 2.0 ** min(self._failures, 20), longest))

    async def _passed(self) -> bool:
        """Rest after a pass; True if there is no other to be made."""
        stored, self._stored_in_pass = self._stored_in_pass, 0
        took = self._clock() - self._pass_began
        if self._hurries():
            if self._dlq.scanning or self._backlog.scanning or self._batches_left():
                await self._nap(BUSY_PAUSE)
            elif not stored:
                return True
        else:
            # Files that nothing can be done about are looked at ever more seldom.
            self._idle_pause = IDLE_PAUSE if stored else min(self._idle_pause * 2, LONGEST_IDLE_PAUSE)
            pause = max(self._idle_pause, took)
            if (due := self.aside.next_due()) is not None:
                pause = max(min(pause, due - self._clock()), IDLE_PAUSE)
            await self._nap(pause, whole=True)
        self._pass_began = self._clock()
        return False

    async def _nap(self, seconds: float, *, whole: bool = False) -> None:
        """Sleep, but no longer than until something changes (`whole`: until the phase does)."""
        end = self._clock() + seconds
        phase = self._course.phase
        while (left := end - self._clock()) > 0:
            self._woken.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._woken.wait()
            if not whole or self._course.phase is not phase:
                return

    # ------------------------------------------------------------------------------------------------- one file

    async def step(self) -> Step:
        """Take the next file all the way to the store and off the disk."""
        letter = await self._next()
        if letter is None:
            return Step.NOTHING
        async with letter:
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
        outcome = await self._attempts.create(key, body, metadata)
        self._last_put = self._clock()
        return outcome

    def _quarantine_key(self, letter: Letter) -> str:
        key = quarantine_key(letter.key, self._dlq_prefix)
        return key.removesuffix(".gz") if letter.is_segment else key

    def _not_put(self, letter: Letter, outcome: Outcome, key: str) -> Step:
        if outcome.verdict is Verdict.UNTRIED:
            return Step.WAITS
        if key == letter.key and self._is_expired(letter):
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
        lost = max(max(copy.letter.events for copy in choice.copies) - best.events, 0)
        if counted > best.events:
            books.dropped(lost, DropReason.CORRUPT, place)
            books.stored(counted - lost, place)
        else:
            books.recovered(best.events - counted, place)
            books.stored(best.events, place)
        self._metrics.reuploaded += best.events
        if choice.why is not Why.ALONE:
            log.info("copy_chosen", key=best.letter.key, why=choice.why.value, events=best.events)
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
            copy.letter.settle()

    def _is_expired(self, letter: Letter) -> bool:
        return 0 < self._max_age < self._now() - parse_key(letter.key).unix

    def _expire(self, letter: Letter) -> None:
        self.aside.forget(letter.key)
        self._metrics.books.dropped(letter.events, DropReason.EXPIRED, letter.lender.place)
        self._metrics.files_expired += 1
        hint = "older than DLQ_MAX_AGE, and its put failed"
        log.error("file_expired", key=letter.key, events=letter.events, hint=hint)
        letter.settle()

    def _tell_unreadable(self, letter: Letter, error: OSError | StorageError) -> None:
        """Log once that the disk would not say what is in a file, which is no verdict upon the file."""
        if letter.path in self._told:
            return
        if len(self._told) >= MOST_TOLD:
            self._told.clear()
        self._told.add(letter.path)
        log.warning("recovery_file_unreadable", key=letter.key, errno=error.errno, hint="it is tried again later")


def instance_of(key: str) -> str:
    """Name the process that took in a batch's events, as its key has it."""
    parsed = parse_key(key)
    return f"{parsed.host}-{parsed.token}"
