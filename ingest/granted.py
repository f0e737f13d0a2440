"""The grants of the machine: so many processors, which is what `WORKERS=auto` means here, and so much memory.

Owns the questions to the kernel. Promises a whole number, at least 1: of the processors we may run on, and of the CPU
quota of our control group and of those above it, rounded down, because a worker uses little more than one; and the
least limit on memory of these groups, or all that the machine has. Never raises.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_GROUPS: Final = Path("/sys/fs/cgroup")
_OURS: Final = Path("/proc/self/cgroup")


def processors(groups: Path = _GROUPS, ours: Path = _OURS) -> int:
    """Return how many workers are of use."""
    quotas = [
        numbers[0] / numbers[1]
        for folder, unified in _folders("cpu", groups, ours)
        for numbers in _read(*(folder / name for name in _CPU[unified]))
        if len(numbers) == 2 and min(numbers) > 0
    ]
    return max(int(min([len(os.sched_getaffinity(0)), *quotas])), 1)


def memory(groups: Path = _GROUPS, ours: Path = _OURS) -> int:
    """Return at how many bytes the kernel ends us."""
    limits = [
        numbers[0]
        for folder, unified in _folders("memory", groups, ours)
        for numbers in _read(folder / _MEMORY[unified])
        if len(numbers) == 1
    ]
    limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min([limit for limit in limits if limit > 0], default=sys.maxsize)


def _folders(controller: str, groups: Path, ours: Path) -> Iterator[tuple[Path, bool]]:
    """Yield where the limits of a controller stand that hold for us, and whether all controllers' stand there."""
    lines: list[str] = []
    with suppress(OSError):
        lines = ours.read_text(errors="surrogateescape").splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        here = Path(path.lstrip("/"))
        for group in (here, *here.parents):
            if not controllers:
                yield groups / group, True
            elif controller in controllers.split(","):
                for name in dict.fromkeys((controllers, controller)):
                    yield groups / name / group, False


def _read(*files: Path) -> Iterator[list[int]]:
    """Yield the numbers that these files have, if each has some: `max` is none."""
    with suppress(OSError, ValueError):
        yield [int(word) for file in files for word in file.read_text().split()]


_CPU: Final = {True: ("cpu.max",), False: ("cpu.cfs_quota_us", "cpu.cfs_period_us")}
_MEMORY: Final = {True: "memory.max", False: "memory.limit_in_bytes"}
"""The files of cgroup v2, and of v1."""
