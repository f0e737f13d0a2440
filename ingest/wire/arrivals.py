"""The reads that the kernel has handed over and no turn has taken yet.

Owns their order, and those that the last turn has left. Promises that all of them are counted into `MAX_BUFFER_BYTES`
before they can exceed it, and that who sends little is served before who sends a lot. Never looks at a byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingest.wire.limits import SLICE, SMALL_READ

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingest.telemetry import Budget
    from ingest.wire.crowd import Member


class Arrivals:
    """Reads, with their senders."""

    __slots__ = ("_budget", "_bytes", "_counted", "_most_uncounted", "holds_back", "late", "reads", "uncounted")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._most_uncounted = budget.limit // 8 // SLICE
        self.reads: list[tuple[Member, bytes]] = []
        self.late: list[tuple[Member, bytes]] = []
        """Reads that the last turn has left to the next."""
        self.uncounted = self._most_uncounted
        """So many reads of a slice at most find room in any case, and are not looked at when they come; none while
        reads are late."""
        self._bytes = 0
        """Bytes of what is late, and of the first reads: so many of them as are `_counted`."""
        self._counted = 0
        self.holds_back: set[Member] = set()
        """Those whose reads are late: they are not read meanwhile."""

    def __repr__(self) -> str:
        return f"<Arrivals {len(self.reads)} reads, {len(self.late)} late>"

    @property
    def unread(self) -> int:
        """Bytes that were read and are not fed yet. Each read is counted once, however often this is asked."""
        if self._counted < len(self.reads):
            self._bytes += _bytes_of(self.reads[self._counted :])
            self._counted = len(self.reads)
        return self._bytes

    def has_room(self, size: int) -> bool:
        """Tell whether a read of so many bytes finds room beside all that is held, and what was read before it."""
        unread = self.unread + size
        # Where batches have taken all there is, events are still read, to be refused one by one.
        return unread <= self._budget.limit // 8 or not self._budget.lacks(unread)

    def take(self) -> list[tuple[Member, bytes]]:
        """Give out all there is, for a turn; it says with `leave` what is left of it, or that nothing is any more."""
        reads = self.reads
        if self.late:
            reads = self._in_order()
            self.late = []
        self.reads = []
        self._bytes = self._counted = 0
        return reads

    def leave(self, late: list[tuple[Member, bytes]]) -> None:
        """Take back what a turn had no time for."""
        self.late = late
        self._bytes = _bytes_of(late)
        self.uncounted = 0 if late else self._most_uncounted
        self._hold_back({connection for connection, _ in late})

    def _hold_back(self, waiting: set[Member]) -> None:
        """Read nothing more of who waits for a turn: else small pieces come faster than turns can feed them."""
        before, self.holds_back = self.holds_back, waiting
        for connection in before - waiting:
            connection.go_on()
        for connection in waiting - before:
            connection.wait()

    def _in_order(self) -> list[tuple[Member, bytes]]:
        """Return what was left and what came meanwhile: who sends little does not wait for who sends a lot.

        All others take turns: who was served comes again behind those that were left. Else a few that send without end
        would hold up everybody who was left once.
        """
        first, rest = [], []
        waiting = set()
        for read in (*self.late, *self.reads):
            connection, data = read
            if 0 < len(data) <= SMALL_READ and connection not in waiting:
                first.append(read)
            else:
                waiting.add(connection)
                rest.append(read)
        return first + rest


def _bytes_of(reads: Sequence[tuple[Member, bytes]]) -> int:
    return sum([len(data) for _, data in reads])
