"""The work of one turn of the loop: what is to be committed, and what is to be answered.

Owns the lines of a turn's events and the answers that wait for them. Promises that answers keep the order of their
requests, and that each is written once: by `settle`, called by whoever took the turn. Never commits, never parses.

A turn travels: `Tick` makes it, connections add to it, the injected `commit` takes it, may split it where a batch ends,
and settles each part when its lines are as durable as promised or gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable


ENTRY_BYTES: Final = 128
"""The memory of an answer that waits, and its share of what stands around it. Answers to events share their bytes."""


class Answerer(Protocol):
    """Who is owed an answer."""

    pending: int
    """Answers that wait for the disk."""

    @property
    def write(self) -> Callable[[bytes], object]:
        """Send bytes."""

    def await_commit(self, size: int) -> None:
        """One answer more waits for the disk; it takes `size` bytes of memory meanwhile."""

    def answered(self, size: int) -> None:
        """One answer that waited has been written."""


Settled: TypeAlias = "Callable[[int, float, bool], None]"
"""Told how many requests with events were answered, when the turn began, and whether they were committed."""

Entry: TypeAlias = "tuple[Answerer, bytes, bytes, int]"
"""One answer that is due: to whom, what is written once the turn is committed, what if it is refused, and how many
events it is for. A plain tuple, because one is made for every event."""


class Turn:
    """Events of one second, and the answers of one turn in the order of their requests."""

    __slots__ = ("_late", "_more", "_replies", "_settled", "arrived", "entries", "events", "lines", "seconds", "size")

    def __init__(self, seconds: int, arrived: float = 0.0, settled: Settled | None = None) -> None:
        self.seconds = seconds
        self.arrived = arrived
        """When the turn's first bytes came, on a stopwatch."""
        self._settled = settled
        self.lines: list[bytes] = []
        """One for each event, or one piece for all of a request, until whoever commits them has taken them."""
        self.entries: list[Entry] = []
        """The answers that are due."""
        self.events = 0
        """How many events it has, from `close` on."""
        self.size = 0
        """Bytes of the lines."""
        self._more = 0
        """Events beyond one a request."""
        self._replies = 0
        """How many of them are for no event."""
        self._late = False
        """From `defer` on: the answers come in a later turn."""

    def __repr__(self) -> str:
        late = ", late" if self._late else ""
        return f"<Turn {self.seconds}: {self.events} events, {self.size} bytes, {len(self.entries)} answers{late}>"

    def event(self, to: Answerer, line: bytes, answer: bytes, refusal: bytes, events: int = 1) -> None:
        """Add an event's line, or those of all events of a request, and the answer.

        The short way does the same by itself, for a call costs every event.
        """
        self.lines.append(line)
        self.size += len(line)
        self.entries.append((to, answer, refusal, events))
        self._more += events - 1

    def reply(self, to: Answerer, answer: bytes) -> None:
        """Add an answer that no commit decides, behind those its connection is owed."""
        self.entries.append((to, answer, answer, 0))
        self._replies += 1

    def close(self) -> None:
        """Count what is in it: nothing is added any more."""
        self.events = len(self.lines) + self._more

    @property
    def first(self) -> int:
        """How many events its first request has that has any."""
        return next(entry[3] for entry in self.entries if entry[3])

    def split(self, events: int) -> tuple[Turn, Turn]:
        """Return what belongs to the first requests with at most so many events, and the rest; no request is cut.

        Answers to no event go with the events before them.
        """
        entries = self.entries
        cut = lines = 0
        while cut < len(entries) and entries[cut][3] <= events:
            events -= entries[cut][3]
            lines += bool(entries[cut][3])
            cut += 1
        return self._part(self.lines[:lines], entries[:cut]), self._part(self.lines[lines:], entries[cut:])

    def _part(self, lines: list[bytes], entries: list[Entry]) -> Turn:
        part = Turn(self.seconds, self.arrived, self._settled)
        part.lines = lines
        part.size = sum(map(len, lines))
        part.entries = entries
        part._more = sum(entry[3] for entry in entries) - len(lines)
        part.close()
        part._replies = len(entries) - len(lines)
        part._late = self._late
        return part

    def defer(self) -> None:
        """Have the answers come later, when the disk has done its part. A turn that is late already stays so.

        A reply waits only if an answer before it on its connection does: `/health` must not hang with the disk.
        """
        if self._late:
            return
        late = []
        for entry in self.entries:
            to, answer, _, events = entry
            if not events and not to.pending:
                to.write(answer)
                self._replies -= 1
                continue
            to.await_commit(_memory_of(entry))
            late.append(entry)
        self.entries = late
        self._late = True

    def settle(self, *, committed: bool) -> None:
        """Answer: the events are durable as promised, or refused and forgotten."""
        entries = self.entries
        if committed:
            for to, answer, _, _ in entries:
                to.write(answer)
        else:
            for to, _, refusal, _ in entries:
                to.write(refusal)
        requests = len(entries) - self._replies
        if self._settled is not None and requests:
            self._settled(requests, self.arrived, committed)
        if self._late:
            for entry in entries:
                entry[0].answered(_memory_of(entry))


def _memory_of(entry: Entry) -> int:
    _, answer, _, events = entry
    return ENTRY_BYTES if events == 1 else ENTRY_BYTES + len(answer)
