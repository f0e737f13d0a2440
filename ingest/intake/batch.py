"""A batch: lines of one partition on their way to one object.

Owns the buffers. Promises that a key is fixed when its batch opens, and that a buffer returns to its pool only when
nobody reads it any more. Never does I/O.

Two positions in a batch: up to `size` its events are acknowledged; the tail behind it (`DURABILITY=fsync` only) is
written and waits for its group commit, which moves it into `size` or cuts it off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    import asyncio

    from ingest.format import Partition
    from ingest.telemetry import SealReason


BUFFER_BYTES: Final = 1 << 20
"""A new buffer's size; it doubles as a batch grows, and a pooled one keeps what it has."""


class Turn(Protocol):
    """Work of a loop turn that is to be committed: events of one second, and the answers that wait for them."""

    seconds: int
    events: int
    lines: list[bytes]
    size: int
    """Bytes of the lines."""

    def split(self, events: int) -> tuple[Turn, Turn]:
        """Return what belongs to the first so many events, and the rest."""

    def settle(self, *, committed: bool) -> None:
        """Answer: the events are durable as promised, or refused."""


class BufferPool:
    """Keeps a few bytearrays, so that a batch begins in memory the kernel has already mapped."""

    __slots__ = ("_free", "_keep")

    def __init__(self, keep: int) -> None:
        self._free: list[bytearray] = []
        self._keep = keep

    def lend(self) -> bytearray:
        """Return a buffer with arbitrary content."""
        return self._free.pop() if self._free else bytearray(BUFFER_BYTES)

    def give_back(self, buffer: bytearray) -> None:
        """Take a buffer that nobody reads any more."""
        if len(self._free) < self._keep:
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
        "limit",
        "partition",
        "reason",
        "segment",
        "size",
        "tail_events",
        "tail_size",
        "timer",
    )

    def __init__(self, key: str, partition: Partition, seconds: int, limit: int, pool: BufferPool) -> None:
        self.key = key
        self.partition = partition
        self.first_ts = self.last_ts = seconds
        self.limit = limit
        """Events it may hold: BATCH_SIZE, and CHANNEL_SIZE more when it is due but cannot be taken."""
        self.events = self.size = 0
        self.tail_events = self.tail_size = 0
        self.reason: SealReason | None = None
        self.segment: Any = None
        self.timer: asyncio.TimerHandle | None = None
        self._pool = pool
        self._buffer: bytearray | None = pool.lend()
        self._window = memoryview(self._buffer)
        self._readers = 1

    def append(self, data: bytes, events: int) -> None:
        """Add lines behind the tail; `acknowledge` makes them count."""
        at = self.size + self.tail_size
        end = at + len(data)
        if end > len(self._window):
            self._grow(end)
        self._window[at:end] = data
        self.tail_size += len(data)
        self.tail_events += events

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
        self.tail_size = self.tail_events = 0

    def view(self) -> memoryview:
        """Return the acknowledged lines; valid until the buffer is released."""
        return self._window[: self.size]

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

    def _grow(self, end: int) -> None:
        buffer = self._buffer
        assert buffer is not None  # noqa: S101 - a sealed batch is not appended to
        # A reader in the executor may hold a view of the old buffer, which cannot be resized then: it keeps it.
        grown = bytearray(max(2 * len(buffer), end))
        used = self.size + self.tail_size
        grown[:used] = self._window[:used]
        self._buffer = grown
        self._window = memoryview(grown)
