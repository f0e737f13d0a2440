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
TURN_BYTES: Final = 1 << 20
FULL_TURN: Final = (512, 64)
SHORT_TURN: Final = (192, 16)
"""A turn commits and lets the loop read as soon as it has so many answers, or reads fed to a parser, or `TURN_BYTES` of
lines. A read that causes no answer costs time too."""
FEEDING_SECONDS: Final = 0.02
"""So long a turn feeds reads to parsers: one of 8 KiB takes milliseconds if its lines are short, in head or chunk."""
UNPACKING_SECONDS: Final = 0.01
"""So long a turn may unpack bodies, be it one that feeds reads or one that serves who waits; then the loop reads."""
SHARE_SECONDS: Final = 0.005
"""So long one body that waits is unpacked before the next one that waits has its share."""
SMALL_READ: Final = 2048
"""A read of so many bytes at most, which is an event or a few, goes before what others have left to the next turn."""

LONGEST_BODY: Final = 8 << 20
"""The most that a line is made of: recovery takes one of 64 MiB for damage, and JSON may write six bytes for one."""
LONGEST_QUERY: Final = 1 << 20
"""The most that a query adds to such a line, which writes three bytes for one of it."""
BESIDE_QUERY: Final = 8192
"""Bytes of a request line beside its query: method, path and version (RFC 9112 §3 asks for 8,000 in all)."""
LINE_PASSED_OVER: Final = 2 << 20
"""So much more of a line that is too long is read, to find its Origin behind it: no browser sends a longer one."""
FIELDS_PASSED_OVER: Final = 256 << 10
"""The same for header fields that are too large: mostly cookies."""


class ConnectionLimits(NamedTuple):
    """Bytes and seconds."""

    line: int
    """The first line of a request."""
    head: int
    """Its header fields, and all framing around its body."""
    query: int
    """The query of an event."""
    body: int
    batch: int
    """The body of a request with many events."""
    whole: int
    """The body of a request with many events that becomes one line."""
    least: int
    """The least of the three for bodies."""
    slice: int
    unfinished: int
    """The part of MAX_BUFFER_BYTES that requests may hold, on all connections, while they are not complete."""
    read_timeout: float
    idle_timeout: float
    connections_of_a_peer: int
    """Zero: no limit."""

    @classmethod
    def of(cls, settings: Settings) -> ConnectionLimits:
        """Take the limits from the settings."""
        return cls(
            min(settings.max_body_size, LONGEST_QUERY) + BESIDE_QUERY,
            settings.max_header_bytes,
            min(settings.max_body_size, LONGEST_QUERY),
            settings.max_body_size,
            settings.max_batch_body_size,
            min(settings.max_batch_body_size, LONGEST_BODY),
            min(settings.max_body_size, settings.max_batch_body_size, LONGEST_BODY),
            min(SLICE, settings.max_header_bytes),
            settings.max_buffer_bytes // 4,
            settings.read_timeout,
            settings.idle_timeout,
            settings.max_connections_per_ip,
        )
