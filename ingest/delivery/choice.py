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
    LONGER = "it has more sound lines"


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


def choose(copies: list[Copy]) -> Choice:
    """Take the dead letter if it verifies, else the copy with more sound lines, of equal ones the first."""
    verified = next((copy for copy in copies if not copy.letter.is_segment and copy.contents.found.sound), None)
    best = verified or max(copies, key=lambda copy: copy.events)
    others = tuple(copy for copy in copies if copy is not best)
    if not others:
        return Choice(best, others, Why.ALONE)
    return Choice(best, others, Why.VERIFIES if best is verified else Why.LONGER)
