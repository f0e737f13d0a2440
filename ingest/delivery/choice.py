"""Which copy of a key is put, when the backlog and the dead-letter queue both have one.

Owns `Copy`, a file and what one reading of it found, and `choose`. Promises that the choice depends on its arguments
alone, so that a table can test it. Never reads, puts or removes anything.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ingest.spool import Letter
    from ingest.spool.waiting import Contents


class Why(Enum):
    """The reason for a choice, as the log has it."""

    ALONE = "it is the only copy"
    VERIFIES = "the dead letter verifies"
    LONGER = "no other copy has more sound lines"


class Copy(NamedTuple):
    """A file that is lent, and what is in it."""

    letter: Letter
    contents: Contents

    @property
    def events(self) -> int:
        """Its sound lines."""
        return self.contents.found.events


class Choice(NamedTuple):
    """The copy that is put, and those that go with it."""

    best: Copy
    others: tuple[Copy, ...]
    why: Why

    @property
    def copies(self) -> tuple[Copy, ...]:
        """All of them."""
        return (self.best, *self.others)

    @property
    def lost(self) -> int:
        """Events that one of the files was counted with, and that no copy has: the books have them."""
        return max(max(copy.letter.events for copy in self.copies) - self.best.events, 0)

    @property
    def damage(self) -> int | None:
        """Events that are in no copy, by what damaged files and segments tell; None if nobody knows how many.

        A dead letter that is sound has all of its events, whatever its head says: nothing guards a head.
        """
        told = [copy.letter.events for copy in self.copies if copy.letter.is_segment or not copy.contents.found.sound]
        lost = max(max(told, default=0) - self.best.events, 0)
        is_unknown = any(
            not copy.letter.is_segment and not copy.contents.found.sound and copy.letter.events == 0
            for copy in self.copies
        )
        return None if is_unknown and not (lost or self.best.events) else lost


def choose(copies: list[Copy]) -> Choice:
    """Take the copy with the most sound lines; of equal ones the dead letter that verifies, else the first.

    The copies of a key are prefixes of one batch, so the longer one has all that the other has. That a dead letter
    verifies does not make it whole, because one that was salvaged from half a file verifies too.
    """
    best = max(copies, key=lambda copy: (copy.events, _verifies(copy)))
    others = tuple(copy for copy in copies if copy is not best)
    if not others:
        return Choice(best, others, Why.ALONE)
    is_tie = any(other.events == best.events for other in others)
    return Choice(best, others, Why.VERIFIES if is_tie and _verifies(best) else Why.LONGER)


def _verifies(copy: Copy) -> bool:
    return not copy.letter.is_segment and copy.contents.found.sound
