"""How many processors there are for us: what `WORKERS=auto` means here.

Owns the question to the kernel. Promises a whole number, at least 1: of the processors we may run on, and of the CPU
quota of our control group and of those above it, rounded down, because a worker uses little more than one. Never
raises.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_GROUPS: Final = Path("/sys/fs/cgroup")
_OURS: Final = Path("/proc/self/cgroup")


def count(groups: Path = _GROUPS, ours: Path = _OURS) -> int:
    """Return how many workers are of use."""
    return max(int(min([len(os.sched_getaffinity(0)), *_quotas(groups, ours)])), 1)


def _quotas(groups: Path, ours: Path) -> Iterator[float]:
    """Yield every quota that holds for us, in processors."""
    lines: list[str] = []
    with suppress(OSError):
        lines = ours.read_text(errors="surrogateescape").splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        here = Path(path.lstrip("/"))
        for group in (here, *here.parents):
            if not controllers:
                yield from _of(groups / group / "cpu.max")
            elif "cpu" in controllers.split(","):
                for name in dict.fromkeys((controllers, "cpu")):
                    folder = groups / name / group
                    yield from _of(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")


def _of(*files: Path) -> Iterator[float]:
    """Yield the quota that these files say, if they say one: `max` and -1 are none."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (int(word) for file in files for word in file.read_text().split())
        if quota > 0:
            yield quota / period
