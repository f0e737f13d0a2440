"""The outcome of a try, as a value: the evidence that a store gave, never a status alone.

Owns `Outcome` and `Refusal`. A try ends as one of these:

    STORED         the store said so
    ALREADY_THERE  it holds a whole object of this key; as good as stored
    REFUSED        it will not take this one. A verdict by contrast: the store gave a `Refusal`, and another key has
                   been stored since this one was first tried. Without that contrast a refusal is AWAY, because whoever
                   may put nothing is told the same
    AWAY           everything else, also what no store should raise. Whether the body was stored is not known
    UNTRIED        no try was made: the breaker lets none run, or the process is at its end

Promises that only STORED and ALREADY_THERE say that an object is there. Never knows a store, a file or a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from ingest.disk import StorageError

if TYPE_CHECKING:
    from typing import Self


_CONFLICTS: Final = frozenset({409, 412})

CLOCK, IN_DOUBT = "clock", "in doubt"
"""An entry in the cause of an error by which the store, or the source of keys, disputes the time of this host."""


class Refusal(StorageError):  # noqa: N818 - the store's word, and by itself no verdict
    """The store answered that it does not take this object: its key, class, tags or encryption, or who puts it."""


class Verdict(Enum):
    """See the module's text."""

    STORED = auto()
    ALREADY_THERE = auto()
    REFUSED = auto()
    AWAY = auto()
    UNTRIED = auto()


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict, and for REFUSED and AWAY the error that it was drawn from."""

    verdict: Verdict
    error: StorageError | None = None

    @classmethod
    def of(cls, error: StorageError, *, contrast: bool) -> Self:
        """Judge a try that failed. `contrast`: another key has been stored since this one was first tried."""
        return cls(Verdict.REFUSED if contrast and isinstance(error, Refusal) else Verdict.AWAY, error)

    @property
    def is_there(self) -> bool:
        """The object is in the store: what held it elsewhere may go."""
        return self.verdict in (Verdict.STORED, Verdict.ALREADY_THERE)

    @property
    def is_conflict(self) -> bool:
        """The store spoke about this key only, or something spoke in its place: no news of whether it is there."""
        return self.error is not None and self.error.cause.get("status") in _CONFLICTS


def doubts_clock(error: BaseException | None) -> bool:
    """Tell whether this is the word of somebody else that the clock of this host is wrong: no age by it is known."""
    return isinstance(error, StorageError) and error.cause.get(CLOCK) == IN_DOUBT


STORED: Final = Outcome(Verdict.STORED)
ALREADY_THERE: Final = Outcome(Verdict.ALREADY_THERE)
UNTRIED: Final = Outcome(Verdict.UNTRIED)
