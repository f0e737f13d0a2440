"""A batch: lines of one partition on their way to one object.

Owns the buffers, and what a batch needs of a turn. Promises that a key is fixed when its batch opens, and that a buffer
returns to its pool only when nobody reads it any more. Never does I/O.

Two positions in a batch: up to `size` its events are acknowledged; the tail behind it (`DURABILITY=fsync` only) is
written and waits for its group commit, which moves it into `size` or cuts it off.
"""

from __future__ import annotations

from mmap import mmap
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.format import Partition
    from ingest.intake.segments import Segment
    from ingest.telemetry import Budget, SealReason


BUFFER_BYTES: Final = 1 << 20
"""A new buffer's size; it doubles as a batch grows, and a pooled one keeps what it has."""
POOLED_BYTES: Final = 8 << 20
"""A buffer that grew beyond this goes back to the system: one burst must not be held for good."""


class Turn(Protocol):
    """Work that the wire hands over once a turn: the lines of one second, and whoever waits for an answer."""

    seconds: int
    """The second in which its events were accepted (UTC epoch)."""
    events: int
    """0 if it only answers what must wait its turn."""
    lines: list[bytes]
    """One line an event, or all of a request in one piece, until whoever commits them has them elsewhere."""
    size: int
    """Bytes of the lines."""

    @property
    def first(self) -> int:
        """How many events its first request has that has any."""

    def split(self, events: int) -> tuple[Turn, Turn]:
        """Return what belongs to the first requests with at most so many events, and the rest; no request is cut."""

    def defer(self) -> None:
        """Have its answers come later, behind those of earlier turns. It may be late already."""

    def settle(self, *, committed: bool) -> None:
        """Answer: its events are durable as promised, or refused and forgotten."""


class BufferPool:
    """Keeps a few buffers, so that a batch begins in memory the kernel has already mapped.

    Each is a mapping of its own. Memory of `malloc` that is freed goes back to the system only from the heap's end, and
    after the first large buffer glibc keeps up to 64 MiB there: measured, 47 MiB stayed with nothing buffered.
    """

    __slots__ = ("_free", "_keep", "budget")

    def __init__(self, keep: int, budget: Budget) -> None:
        self._free: list[mmap] = []
        self._keep = keep
        self.budget = budget
        """Counts the lines in its buffers."""

    def lend(self) -> mmap:
        """Return a buffer with arbitrary content; an `OSError` if there is none, and no memory for another."""
        return self._free.pop() if self._free else mmap(-1, BUFFER_BYTES)

    def give_back(self, buffer: mmap) -> None:
        """Take a buffer that nobody reads any more."""
        if len(self._free) < self._keep and len(buffer) <= POOLED_BYTES:
            self._free.append(buffer)


class Batch:
    """Lines of one partition on their way to one object."""

    __slots__ = (
        "_buffer",
        "_pool",
        "_readers",
        "_window",
        "events",
        "first_ts",
        "key",
        "last_ts",
        "on_broken",
        "packed",
        "partition",
        "reason",
        "segment",
        "size",
        "tail_events",
        "tail_size",
    )

    def __init__(self, key: str, partition: Partition, seconds: int, pool: BufferPool) -> None:
        self.key = key
        self.partition = partition
        self.first_ts = self.last_ts = seconds
        self.events = self.size = 0
        self.tail_events = self.tail_size = 0
        self.reason: SealReason | None = None
        """Why it was sealed; None while it is open."""
        self.segment: Segment | None = None
        self.on_broken: Callable[[], None] = nothing_to_do
        """Called when its segment can take no more lines; set by whoever appends to it."""
        self.packed = b""
        """The lines, compressed: from before the buffer is let go of until the batch is safe elsewhere."""
        self._pool = pool
        self._buffer: mmap | None = pool.lend()
        self._window = memoryview(self._buffer)
        self._readers = 1

    def __repr__(self) -> str:
        return (
            f"<Batch {self.key} {self.reason.value if self.reason else 'open'} events={self.events}+{self.tail_events} "
            f"size={self.size}+{self.tail_size} {self.segment or 'no segment'}>"
        )

    def has_room(self, size: int) -> bool:
        """Make room for so many bytes more; False if the system gives no memory for them."""
        end = self.size + self.tail_size + size
        return end <= len(self._window) or self._grow(end)

    def append(self, data: bytes, events: int) -> None:
        """Add lines behind the tail, for which there `has_room`; `acknowledge` makes them count."""
        size = len(data)
        at = self.size + self.tail_size
        self._window[at : at + size] = data
        self.tail_size += size
        self.tail_events += events
        self._pool.budget.batches += size

    def acknowledge(self, size: int, events: int, seconds: int) -> None:
        """Move the first `size` bytes of the tail, `events` lines of second `seconds`, to what is promised."""
        if not self.events:
            self.first_ts = seconds  # what the batch was opened for may have been refused
        self.last_ts = seconds
        self.size += size
        self.events += events
        self.tail_size -= size
        self.tail_events -= events

    def cut(self) -> None:
        """Forget the tail: its requests were refused."""
        self._pool.budget.batches -= self.tail_size
        self.tail_size = self.tail_events = 0

    def view(self) -> memoryview:
        """Return the acknowledged lines; valid until the buffer is released."""
        return self._window[: self.size]

    @property
    def lines(self) -> memoryview | bytes:
        """The acknowledged lines as they are in memory: a view, which `hold_buffer` keeps valid, or `packed`."""
        return self.packed or self.view()

    def hold_buffer(self) -> None:
        """Keep the buffer for one more reader, who must release it too."""
        self._readers += 1

    def release_buffer(self) -> None:
        """Let go of the buffer; the last reader gives it back. Call when the executor call that reads it returned."""
        self._readers -= 1
        if self._readers == 0 and self._buffer is not None:
            self._window.release()
            self._pool.give_back(self._buffer)
            self._buffer = None

    def _grow(self, end: int) -> bool:
        buffer = self._buffer
        assert buffer is not None  # noqa: S101 - a sealed batch is not appended to
        # A reader in the executor may hold a view of the old buffer, which cannot be resized then: it keeps it.
        try:
            grown = mmap(-1, max(2 * len(buffer), end))
        except OSError:
            return False
        used = self.size + self.tail_size
        grown[:used] = self._window[:used]
        self._buffer = grown
        self._window = memoryview(grown)
        return True


def nothing_to_do() -> None:
    """Stand in for a callback that nobody set."""
