"""Room: how much the dead-letter queue may take.

Owns the limit (`DLQ_MAX_SIZE_BYTES`, the backlog counted), the reserve of the volume (`DISK_RESERVE`, at most a tenth),
and the figure of what is free, measured at most once a second and carried on from there with what we write and remove.
Promises that asking costs nothing. Never removes a file: the queue does, oldest first, when `evicts`.

`measure` is called in the lane's thread; the rest reads and sets single integers, and is right on the loop too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog

from ingest.disk import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ingest.config import Settings
    from ingest.disk import Filesystem


MEASURE_EVERY: Final = 1.0
RESERVE_SHARE: Final = 10
"""The reserve is at most this part of the volume: on a small one the default would leave no room for anything."""

log = structlog.get_logger()


class Room:
    """See the module's text. Until the volume has been measured it lacks nothing."""

    __slots__ = (
        "_clock",
        "_failed",
        "_fs",
        "_max_bytes",
        "_max_reserve",
        "_measured_at",
        "_path",
        "_reserve",
        "evicts",
        "free",
    )

    def __init__(self, settings: Settings, fs: Filesystem, path: Path, clock: Callable[[], float]) -> None:
        self.evicts = settings.dlq_on_full == "evict"
        self._max_bytes = settings.dlq_max_size_bytes
        self._max_reserve = settings.disk_reserve
        self._fs = fs
        self._path = path
        self._clock = clock
        self.free: int | None = None
        self._reserve = 0
        self._measured_at = -MEASURE_EVERY
        self._failed = False
        """From a failed measurement to the next good one: it is told once."""

    @property
    def stale(self) -> bool:
        """It is time to measure."""
        return self._clock() - self._measured_at >= MEASURE_EVERY

    def lacks(self, held: int, size: int) -> bool:
        """With `size` bytes more than the `held` ones, a limit would be passed."""
        return held + size > self._max_bytes or (self.free is not None and self.free - size < self._reserve)

    def never_takes(self, backlog: int, size: int) -> bool:
        """Not even an empty queue would take `size` bytes beside the backlog."""
        return backlog + size > self._max_bytes

    def took(self, size: int) -> None:
        """Note what was written there, or, below zero, removed."""
        if self.free is not None:
            self.free -= size

    def measure(self) -> None:
        """Look at the volume, unless that was done less than `MEASURE_EVERY` ago. Blocks."""
        if not self.stale:
            return
        self._measured_at = self._clock()
        try:
            found = self._fs.statvfs(self._path)
        except OSError as error:
            if not self._failed:
                reason = StorageError.of("statvfs", self._path, error)
                log.error("volume_not_measured", path=str(self._path), hint=reason.hint, errno=reason.errno)
            self._failed = True
        else:
            self._failed = False
            self.free = found.f_bavail * found.f_frsize
            self._reserve = min(self._max_reserve, found.f_blocks * found.f_frsize // RESERVE_SHARE)
