"""The latch: the disk refused, so everything is refused until the disk takes a write again.

Owns the state, its two edges, which are logged here and only here, and the loop that ends it. Promises that a tripped
latch is released as soon as what is broken is mended and a probe goes through, with nobody doing anything; that a bug
in what mends or probes ends the process, because nothing would release the latch then. Never touches the disk by
itself: the journal hands in what mends and what probes.

    tripped   `trip`: the first failure logs `journal_refused`; each one is counted
    released  `_repair`: what was broken is mended, a probe went through, and nothing broke meanwhile
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from ingest.disk import StorageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ingest.disk import Slot
    from ingest.telemetry import Metrics

PROBE_SECONDS: Final = 1.0

log = structlog.get_logger()


class Latch:
    """See the module's text. `mend` returns when nothing is broken; `probe` raises while the disk refuses."""

    __slots__ = ("_is_whole", "_mend", "_metrics", "_probe", "_repairing", "_slot", "on")

    def __init__(
        self,
        slot: Slot,
        metrics: Metrics,
        *,
        mend: Callable[[], Awaitable[None]],
        probe: Callable[[], Awaitable[None]],
        is_whole: Callable[[], bool],
    ) -> None:
        self.on = False
        """From a failure of the disk until the probe that shows that it takes writes again."""
        self._slot = slot
        self._metrics = metrics
        self._mend = mend
        self._probe = probe
        self._is_whole = is_whole
        self._repairing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Latch {'on' if self.on else 'off'}>"

    def trip(self, error: StorageError) -> None:
        """Refuse from now on."""
        self._metrics.journal_errors += 1
        if not self.on:
            self.on = True
            self._metrics.journal_failed = 1
            log.error(
                "journal_refused",
                operation=error.operation,
                path=error.subject,
                error=str(error),
                hint=error.hint,
            )
        if self._repairing is None or self._repairing.done():
            self._repairing = asyncio.get_running_loop().create_task(self._repair())
            self._repairing.add_done_callback(_tell_bug)

    async def close(self) -> None:
        """Stop probing."""
        if self._repairing is not None:
            self._repairing.cancel()
            await asyncio.wait((self._repairing,))

    async def _repair(self) -> None:
        while True:
            await self._mend()
            try:
                await self._probe()
            except (OSError, StorageError):
                await asyncio.sleep(PROBE_SECONDS)
                continue
            if self._is_whole():
                break
        self.on = False
        self._metrics.journal_failed = 0
        log.info("journal_resumed", path=str(self._slot.path))


def _tell_bug(task: asyncio.Task[None]) -> None:
    """Have a bug of ours end the process: asyncio tells no exception of a task that is still held."""
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler({"message": "the repair of the journal failed", "exception": error})
