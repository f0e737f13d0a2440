"""The limits of one connection.

Owns the figures, taken from the settings once. Never counts anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from ingest.config import Settings

SLICE: Final = 8192
"""Bytes fed at once: the smallest requests in it cannot cause much more than 64 KiB of answers."""
ANSWERS_OF_A_SLICE: Final = 65536
"""Bytes of answers to no event after which the next of a slice is the last: a page is larger than its request."""
TURN_LINES: Final = 512
TURN_BYTES: Final = 1 << 20
"""A turn commits as soon as it has so many lines, or bytes of lines, and goes on."""
TURN_COMMITS: Final = 4
"""After so many commits it lets the loop read, so that a request for `/health` is not behind all that has come."""


class ConnectionLimits(NamedTuple):
    """Bytes and seconds."""

    head: int
    body: int
    slice: int
    buffered: int
    unfinished: int
    """The part of `buffered` that requests may hold, on all connections, while they are not complete."""
    read_timeout: float
    idle_timeout: float

    @classmethod
    def of(cls, settings: Settings) -> ConnectionLimits:
        """Take the limits from the settings."""
        return cls(
            settings.max_header_bytes,
            settings.max_body_size,
            min(SLICE, settings.max_header_bytes),
            settings.max_buffer_bytes,
            settings.max_buffer_bytes // 4,
            settings.read_timeout,
            settings.idle_timeout,
        )
