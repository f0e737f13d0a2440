"""The volume the dead-letter queue lies on: how much of it is free.

Owns the one figure, measured in the executor at most once a second and carried on from there with what we write and
remove ourselves. Promises that asking costs nothing and never waits for the disk. Never decides what is done about it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from ingest.disk.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from pathlib import Path

    from ingest.disk.filesystem import Filesystem


MEASURE_EVERY: Final = 1.0
RESERVE_SHARE: Final = 10
"""The reserve is at most this part of the volume: on a small one the default would leave no room for anything."""

log = structlog.get_logger()


class Volume:
    """See the module's text. Until it has been measured it lacks nothing."""

    def __init__(
        self, fs: Filesystem, path: Path, reserve: int, executor: Executor, clock: Callable[[], float]
    ) -> None:
        self._fs = fs
        self._path = path
        self._max_reserve = reserve
        self._executor = executor
        self._clock = clock
        self._free: int | None = None
        self._reserve = 0
        self._measured_at = -MEASURE_EVERY
        self._measuring: asyncio.Task[None] | None = None
        self._failed = False

    @property
    def free(self) -> int:
        """Bytes free, as last measured; 0 until then."""
        return self._free or 0

    def lacks(self, size: int) -> bool:
        """With `size` bytes more, less than the reserve would be free."""
        return self._free is not None and self._free - size < self._reserve

    def took(self, size: int) -> None:
        """Note what was written there, or, below zero, removed."""
        if self._free is not None:
            self._free -= size

    async def measure(self) -> None:
        """Measure it, unless that was done less than `MEASURE_EVERY` ago."""
        self.measure_soon()
        if self._measuring is not None:
            await asyncio.shield(self._measuring)

    def measure_soon(self) -> None:
        """Have it measured, and do not wait."""
        now = self._clock()
        if self._measuring is None and now - self._measured_at >= MEASURE_EVERY:
            self._measured_at = now
            self._measuring = asyncio.get_running_loop().create_task(self._measure())

    async def _measure(self) -> None:
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._executor, self._fs.statvfs, self._path)
        except OSError as error:
            if not self._failed:
                reason = StorageError.of("statvfs", self._path, error)
                log.error("volume_not_measured", path=str(self._path), hint=reason.hint, errno=reason.errno)
            self._failed = True
        else:
            self._failed = False
            self._free = found.f_bavail * found.f_frsize
            self._reserve = min(self._max_reserve, found.f_blocks * found.f_frsize // RESERVE_SHARE)
        finally:
            self._measuring = None
