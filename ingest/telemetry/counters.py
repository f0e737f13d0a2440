"""Counters by label: one slot for each member of an enum, so that a slip is found by the type checker.

Owns `Counters`, `Histogram`, and the enums that label what more than one room counts.
Promises that every member has its figure from the start, and that nothing but a member can be counted.
Never knows a metric's name: that is `metrics`.
"""

from __future__ import annotations

from bisect import bisect_left
from enum import Enum
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

EnumT = TypeVar("EnumT", bound=Enum)


class Label(Enum):
    """The members of a label. They hash as plain objects: an Enum's own hash is a call into Python a look-up."""

    __hash__ = object.__hash__


class Counters(Generic[EnumT]):
    """A figure for each member of one enum; a member's value is what the label says.

    Code that counts once a turn adds to `counts` itself, because there a call is most of what counting costs.
    """

    __slots__ = ("counts",)

    def __init__(self, members: type[EnumT]) -> None:
        self.counts: dict[EnumT, int] = dict.fromkeys(members, 0)

    def add(self, member: EnumT, n: int = 1) -> None:
        """Count `n` more under this member."""
        self.counts[member] += n

    def set(self, member: EnumT, n: int) -> None:
        """Have this member's figure be `n`."""
        if member not in self.counts:
            raise KeyError(member)
        self.counts[member] = n

    def __getitem__(self, member: EnumT) -> int:
        return self.counts[member]

    def __iter__(self) -> Iterator[tuple[EnumT, int]]:
        return iter(self.counts.items())

    def values(self) -> Collection[int]:
        """Return the figures in the order of the members."""
        return self.counts.values()

    def total(self) -> int:
        """Return the sum of all members' figures."""
        return sum(self.counts.values())

    def by_label(self) -> dict[str, float]:
        """Return each figure under the text of its label."""
        return {str(member.value): count for member, count in self.counts.items()}

    def __repr__(self) -> str:
        told = ", ".join(f"{member.value}={count}" for member, count in self.counts.items() if count)
        return f"<Counters {told or 'all 0'}>"


class Histogram:
    """Counts of observations by upper bound; the last bucket has none."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total: float = 0

    def observe(self, value: float, n: int = 1) -> None:
        """Count `n` observations of one value."""
        self.counts[bisect_left(self.bounds, value)] += n
        self.total += value * n

    def __repr__(self) -> str:
        return f"<Histogram {sum(self.counts)} observed, {self.total:g} in all>"


class Reason(Label):
    """Why a request or an event is refused."""

    BODY_TOO_LARGE = "body_too_large"
    HEAD_TOO_LARGE = "head_too_large"
    MALFORMED = "malformed"
    NOT_JSON = "not_json"
    QUEUE_FULL = "queue_full"
    DISK_FULL = "disk_full"
    BAD_KEY = "bad_key"
    BAD_ORIGIN = "bad_origin"
    RATE_LIMITED = "rate_limited"
    OTHER = "other"


class SealReason(Label):
    """The causes that seal a batch."""

    SIZE = "size"
    BYTES = "bytes"
    INTERVAL = "interval"
    PARTITION = "partition"
    DRAIN = "drain"
    STORAGE = "storage"


class Overdue(Label):
    """The state of a connection when its time was up."""

    IDLE = "idle"
    REQUEST = "request"
    ANSWER = "answer"


class Handshake(Label):
    """The outcomes of a TLS handshake."""

    DONE = "done"
    FAILED = "failed"


class Answer(Label):
    """The class of an answer's status."""

    OK = "2xx"
    UNCHANGED = "3xx"
    REFUSED = "4xx"
    UNAVAILABLE = "5xx"


class PutError(Label):
    """Why a try to put an object failed."""

    AWAY = "away"
    TIMED_OUT = "timed_out"
    REFUSED = "refused"
    BUG = "bug"


class BreakerState(Label):
    """The states of the breaker, as they are shown."""

    CLOSED = "closed"
    HALF_OPEN = "half-open"
    OPEN = "open"
