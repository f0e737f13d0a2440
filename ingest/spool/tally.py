"""Tallies: files, their events and their bytes, and how one call changed what the books say of them.

Owns `Tally` and `Change`, plain figures that travel from the thread that touches the disk to the loop that keeps the
books. Never asks anybody anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(slots=True)
class Tally:
    """Files, their events, their bytes."""

    files: int = 0
    events: int = 0
    size: int = 0

    def add(self, other: Tally) -> None:
        """Count more."""
        self.files += other.files
        self.events += other.events
        self.size += other.size

    def take(self, other: Tally) -> None:
        """Count less."""
        self.files -= other.files
        self.events -= other.events
        self.size -= other.size


@dataclass(slots=True)
class Change:
    """One call's effect upon the books; `waiting` is what the queue holds more, or, below zero, less."""

    waiting: Tally = field(default_factory=Tally)
    recovered: int = 0
    """Events of earlier runs that were found."""
    corrupt: int = 0
    """Events that were counted, and are in no file any more."""
    evicted: Tally = field(default_factory=Tally)
    handed_on: int = 0
    """Events that stay in slots which were let go."""
    taken: list[Path] = field(default_factory=list)
    """The slot that is our own now, because another process has the one that was."""
    released: list[Path] = field(default_factory=list)
    """The slots that were let go."""
