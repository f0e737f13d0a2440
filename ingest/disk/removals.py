"""Files that are to go: removed beside the event loop, and again until the disk lets them.

Owns the removals under way, and the files that a removal left standing. Promises that a removal which fails is told
once and tried again while the process lives, ever more seldom; that the folder goes with its last file; that memory is
bounded: of more than `LEFT_MAX` files the rest waits for the next start, which finds them stored.
Never removes what it was not given, never touches the disk on the loop: the lane of the directory does the work.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from ingest.disk.errors import StorageError
from ingest.disk.folders import prune

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, KeysView
    from pathlib import Path

    from ingest.disk.filesystem import Filesystem
    from ingest.disk.lane import Lane

AGAIN_SECONDS: Final = 5.0
AGAIN_SECONDS_MAX: Final = 300.0
AT_ONCE: Final = 100
"""So many files are tried again in one call, so that others find the lane free."""
LEFT_MAX: Final = 10_000

log = structlog.get_logger()


def _no_folder(_: Path) -> bool:
    return False


def nothing_first() -> None:
    """Stand in for what nobody asked to be done first."""


def _tell_bug(task: asyncio.Task[None]) -> None:
    """Have a bug of ours end the process: asyncio tells no exception of a task that is still held."""
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler({"message": "the retrying of removals failed", "exception": error})


class Removals:
    """See the module's text. `keeps` tells which folder stays though it is empty."""

    __slots__ = ("_fs", "_keeps", "_lane", "_left", "_retrying", "_tasks")

    def __init__(self, fs: Filesystem, lane: Lane, keeps: Callable[[Path], bool] = _no_folder) -> None:
        self._fs = fs
        self._lane = lane
        self._keeps = keeps
        self._left: dict[Path, Path] = {}
        """Files that could not be removed, and the slot of each. Until they are gone."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._retrying: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Removals {len(self._tasks)} under way, {len(self._left)} left>"

    def __len__(self) -> int:
        """Count the files that the disk would not let go."""
        return len(self._left)

    @property
    def left(self) -> KeysView[Path]:
        """The files that the disk would not let go."""
        return self._left.keys()

    def remove(self, path: Path, root: Path, first: Callable[[], None] = nothing_first) -> asyncio.Task[None]:
        """Begin to remove a file of the slot `root`, waited for or not; `first` is called in the lane before that."""
        return self._begin(self._remove(path, root, first))

    def prune(self, folder: Path, root: Path) -> None:
        """Begin to remove a folder of the slot `root`, and what is above it, if it is empty."""
        self._begin(self._prune(folder, root))

    async def close(self) -> None:
        """Wait for the removals under way; try nothing again."""
        if self._retrying is not None:
            self._retrying.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _prune(self, folder: Path, root: Path) -> None:
        # An abandoned lane makes no call any more: what stays is found by the next start.
        with suppress(StorageError):
            await self._lane.run(self._prune_now, folder, root)

    async def _remove(self, path: Path, root: Path, first: Callable[[], None]) -> None:
        try:
            error = await self._lane.run(self._try, path, root, first)
        except StorageError:
            return  # as above
        if error is None:
            return
        log.warning("segment_not_removed", path=str(path), error=str(error), hint=error.hint)
        if len(self._left) < LEFT_MAX:
            self._left[path] = root
        if self._retrying is None or self._retrying.done():
            self._retrying = asyncio.get_running_loop().create_task(self._retry())
            self._retrying.add_done_callback(_tell_bug)

    async def _retry(self) -> None:
        pause = AGAIN_SECONDS
        while self._left:
            await asyncio.sleep(pause)
            pause = min(2 * pause, AGAIN_SECONDS_MAX)
            left = list(self._left.items())
            for at in range(0, len(left), AT_ONCE):
                try:
                    gone = await self._lane.run(self._try_each, left[at : at + AT_ONCE])
                except StorageError:
                    return  # as above
                for path in gone:
                    self._left.pop(path, None)

    # In the lane.

    def _try_each(self, files: list[tuple[Path, Path]]) -> list[Path]:
        return [path for path, root in files if self._try(path, root) is None]

    def _try(self, path: Path, root: Path, first: Callable[[], None] = nothing_first) -> StorageError | None:
        first()
        try:
            self._fs.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            return StorageError.of("unlink", path, error)
        self._prune_now(path.parent, root)
        return None

    def _prune_now(self, folder: Path, root: Path) -> None:
        if not self._keeps(folder):
            prune(self._fs, folder, root)
