"""Calls: from the event loop to `Letters`, in the thread of its lane, and back.

Owns the one way to the dead letters. Promises that no bounded wait lasts longer than `wait`; that what a call changed
is handed to `take_in` in the step of the loop in which its answer comes, also when nobody waits for it any more and
when it failed half way; that a disk which does not answer is told once, and so is the first answer after it.
Never keeps a book.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar, TypeVarTuple

import structlog

from ingest.config import DEBUG_CHECKS
from ingest.disk import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.disk import Lane
    from ingest.spool.letters import Letters
    from ingest.spool.tally import Change

A = TypeVarTuple("A")
T = TypeVar("T")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Said:
    """The figures of `Letters` at the end of a call."""

    unknown: int = 0
    """Files and folders that could not be read when they were to be counted; a folder may hold many files."""
    unremoved: int = 0
    """Files that are to go, and that the disk does not let go."""
    oldest: int = 0
    """Unix time of the oldest event that waits, to the hour; 0 if none does."""


@dataclass(slots=True)
class _Made(Generic[T]):
    """A call that was made: how it ended, and what changed."""

    change: Change
    said: Said
    result: T | None
    error: OSError | StorageError | None


class Calls:
    """See the module's text."""

    __slots__ = ("_clock", "_given_up", "_lane", "_letters", "_silent", "_take_in", "wait")

    def __init__(
        self,
        letters: Letters,
        lane: Lane,
        take_in: Callable[[Change, Said], None],
        *,
        wait: float,
        clock: Callable[[], float],
    ) -> None:
        self.wait = wait
        self._letters = letters
        self._lane = lane
        self._take_in = take_in
        self._clock = clock
        self._silent = False
        """From a wait that ended without an answer, which is told once, to the next answer."""
        self._given_up: float | None = None
        """When the call began behind which a wait has ended last. Until it is known what became of that call."""

    def __repr__(self) -> str:
        return repr(self._lane)

    @property
    def hangs(self) -> bool:
        """The call that is under way has not been answered for `wait`, or somebody behind it has given up."""
        since = self._lane.busy_since
        return since is not None and (since == self._given_up or self._clock() - since > self.wait)

    async def hear_late(self) -> None:
        """Wait until it is known what became of the call behind which somebody gave up, unless it still hangs."""
        given_up = self._given_up
        if given_up is not None and not self.hangs:
            # The lane answers in order: whatever came late is known when this is answered, and not before.
            await self.make(_nothing)
            if self._given_up == given_up:
                self._given_up = None

    async def make(
        self,
        work: Callable[[*A], T],
        *args: *A,
        bounded: bool = True,
        late: Callable[[T], None] | None = None,
    ) -> T:
        """Make a call to `Letters`; what it changed is taken in by the step in which this returns.

        If the caller leaves early, the change is taken in when it comes, and `late` gets the result.
        """

        def came_late(made: _Made[T]) -> None:
            self._take_in(made.change, made.said)
            if made.error is None and late is not None:
                late(made.result)  # type: ignore[arg-type]  # a call that did not fail has a result

        try:
            made = await self._lane.run(self._make, work, args, within=self.wait if bounded else None, late=came_late)
        except StorageError:
            self._given_up = self._lane.busy_since
            raise
        if self._silent:
            self._silent = False
            log.info("dlq_answers_again")
        self._take_in(made.change, made.said)
        if made.error is not None:
            raise made.error
        return made.result  # type: ignore[return-value]  # as above

    def tell_unanswered(self, error: StorageError) -> None:
        """Log that the disk did not answer, once."""
        if not self._silent:
            self._silent = True
            log.warning("dlq_not_answering", operation=error.operation, hint=error.hint, errno=error.errno)

    def _make(self, work: Callable[[*A], T], args: tuple[*A]) -> _Made[T]:
        """Run in the lane's thread. An error does not lose what was changed before it."""
        result: T | None = None
        failure: OSError | StorageError | None = None
        try:
            result = work(*args)
        except (OSError, StorageError) as error:
            failure = error
        letters = self._letters
        if DEBUG_CHECKS:
            letters.check()
        return _Made(letters.take_change(), Said(letters.unknown, letters.unremoved, letters.oldest), result, failure)


def _nothing() -> None:
    """Make no call: only its answer counts."""
