"""The bytes that are held in memory, and how many there may be.

Owns the one figure that `MAX_BUFFER_BYTES` bounds, in two parts. Promises nothing by itself: whoever holds bytes takes
them here when they come, and gives them back when they go. Never refuses: who asks decides what follows.
"""

from __future__ import annotations


class Budget:
    """Bytes in memory, of which there may be `limit`."""

    __slots__ = ("batches", "limit", "requests", "whole")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.batches = 0
        """Bytes of lines, from when a batch takes them until its events are in another book. Once a batch is
        compressed that counts, which is sent, in place of its lines."""
        self.requests = 0
        """Bytes of unfinished requests on all connections, and of reads that wait there."""
        self.whole = 0
        """Bytes of requests that have come whole and wait to be unpacked, and of what was unpacked of them."""

    def __repr__(self) -> str:
        return f"<Budget {self.batches} in batches, {self.requests} and {self.whole} in requests of {self.limit}>"

    @property
    def held(self) -> int:
        """All of them."""
        return self.batches + self.requests + self.whole

    def lacks(self, more: int = 0) -> bool:
        """Tell whether so many bytes more would be too many."""
        return self.batches + self.requests + self.whole + more > self.limit
