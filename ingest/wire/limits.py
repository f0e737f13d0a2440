"""The limits of one connection.

Owns the figures, taken from the settings once. Never counts anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from ingest.config import Settings

SLICE: Final = 8192
"""Bytes fed at once: the smallest requests in it cannot cause much more than 64 KiB of answers."""


class ConnectionLimits(NamedTuple):
    """Bytes and seconds."""

    head: int
    body: int
    slice: int
    buffered: int
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
            settings.read_timeout,
            settings.idle_timeout,
        )
