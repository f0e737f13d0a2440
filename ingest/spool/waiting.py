"""Files on disk whose batches wait for the store: what the dead-letter queue and the journal's backlog have in common.

Owns `Letter`, one such file while somebody has it, and `Waiting`, the face that recovery sees.
Promises that a letter that is lent by `async with` is back in its queue, or out of it, when the block ends, whatever
happened inside. Never touches a disk: the `Lender` does, where it likes.

    letter = await waiting.next()
    async with letter:
        contents = await letter.contents()      # one reading: the verdict, and what is to be put
        ...                                     # put it
        letter.settle()                         # out of the books now, in this step of the loop
    # settled: off the disk. Not settled: its turn comes again in the next pass
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from ingest.format import OBJECT_SUFFIX

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from ingest.format.codec import Inspection
    from ingest.telemetry import Place


class Held(NamedTuple):
    """The hours of which files wait in a slot; not `sure`, there may be more."""

    hours: frozenset[str]
    sure: bool


def hour_of(folder: Path) -> str:
    """Return the hour whose folder this is: `dt=…/hr=…`."""
    return f"{folder.parent.name}/{folder.name}"


def no_note(_: Path, __: bytes) -> None:
    """Keep no ledger."""


def no_ledger(_: Path) -> bool:
    """Tell that nobody has still to be told of a slot."""
    return True


class Whereabouts(Enum):
    """Why there is no letter of a key. UNKNOWN: a place where it may be cannot be read now, or is somebody else's."""

    NOT_THERE = auto()
    UNKNOWN = auto()


@dataclass(frozen=True, slots=True)
class Contents:
    """The result of one reading of a file. `body` is what to put, gzip; None when there is not one sound line."""

    found: Inspection
    body: bytes | None


class Lender(Protocol):
    """Who lends letters, as a letter sees it."""

    @property
    def place(self) -> Place:
        """Where the books have its letters' events."""

    async def contents(self, letter: Letter) -> Contents:
        """Read the file once, and judge it."""

    async def original(self, letter: Letter) -> bytes:
        """Read the file as it lies there."""

    def settle(self, letter: Letter) -> None:
        """Take the letter out of the books."""

    async def take_back(self, letter: Letter) -> None:
        """Have the file off the disk if it was settled, else in the queue again."""


@dataclass(slots=True)
class KeyedFile:
    """A file on disk whose batch waits for the store, and how many events the books have for it."""

    key: str
    path: Path
    size: int
    events: int


@dataclass(slots=True, eq=False)
class Letter(KeyedFile):
    """A file that is lent: nobody else has it until the `async with` around it ends."""

    lender: Lender = field(repr=False)
    settled: bool = False
    """From `settle` on: its events are in another book."""
    refused: bool = False
    """Set by whoever found that the store refuses it: it is the first to be evicted. It stays so while it waits."""
    lines: bytes = field(default=b"", repr=False)
    """Lines for the ledger, written before the file goes; set when it is settled."""

    @property
    def is_segment(self) -> bool:
        """The file is a journal's segment: lines, not gzip."""
        return not self.path.name.endswith(OBJECT_SUFFIX)

    async def contents(self) -> Contents:
        """Read the file once: the verdict, and what is to be put. `OSError`, `StorageError`: no verdict."""
        return await self.lender.contents(self)

    async def original(self) -> bytes:
        """Return the file's bytes as they lie there. `OSError`, `StorageError`: the disk would not say."""
        return await self.lender.original(self)

    def settle(self, lines: bytes = b"") -> None:
        """Take the file out of the books, in this step of the loop; the file goes when the `async with` ends.

        `lines` are for the ledger of the slot in which it lies, and are written before it goes.
        """
        if not self.settled:
            self.settled = True
            self.lines = lines
            self.lender.settle(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.lender.take_back(self)


class Waiting(Protocol):
    """Files that wait for the store: the dead-letter queue, and the journal's backlog."""

    @property
    def scanning(self) -> bool:
        """There are files that are not in the books yet."""

    async def next(self) -> Letter | None:
        """Lend the next file; None at the end of each pass."""

    async def find(self, key: str) -> Letter | Whereabouts:
        """Lend the file of this key, or tell why not."""
