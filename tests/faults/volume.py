"""A small disk of the test's own: a tmpfs, or a read-only view, in a private mount namespace that nobody else sees.

Owns the namespace, held open by a sleeping process, and what is mounted in it. It needs root; `why_not` says why it
cannot be had. The collector enters with `prefix`; the test looks in through `seen`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Self

_HOLD = "{mount} && echo held && exec sleep 3600"


def why_not() -> str:
    """Empty when namespaces can be had."""
    if os.geteuid() != 0:
        return "a private mount namespace needs root"
    missing = [tool for tool in ("unshare", "nsenter", "mount") if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"unshare: {tried.stderr.strip()}"


class Volume:
    """`with Volume.tmpfs(path, size) as volume:`; `path` must exist and is what the mount covers."""

    def __init__(self, path: Path, mount: str) -> None:
        self.path = path
        self._mount = mount
        self._holder: subprocess.Popen[str] | None = None

    @classmethod
    def tmpfs(cls, path: Path, size: int) -> Volume:
        path.mkdir(parents=True, exist_ok=True)
        return cls(path, f"mount -t tmpfs -o size={size} tmpfs '{path}'")

    @classmethod
    def read_only(cls, path: Path) -> Volume:
        path.mkdir(parents=True, exist_ok=True)
        return cls(path, f"mount --bind '{path}' '{path}' && mount -o remount,bind,ro '{path}'")

    def __enter__(self) -> Self:
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _HOLD.format(mount=self._mount)]
        self._holder = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "held\n", "the mount failed"
        return self

    def __exit__(self, *_exc: object) -> None:
        assert self._holder is not None
        assert self._holder.stdout is not None
        self._holder.kill()
        self._holder.wait()
        self._holder.stdout.close()

    @property
    def prefix(self) -> list[str]:
        """What a command is started with to see the volume. The process keeps its pid."""
        assert self._holder is not None
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--"]

    @property
    def seen(self) -> Path:
        """The volume as this process sees it."""
        assert self._holder is not None
        return Path(f"/proc/{self._holder.pid}/root{self.path}")

    @property
    def free(self) -> int:
        volume = os.statvfs(self.seen)
        return volume.f_bavail * volume.f_frsize

    def fill(self, leave: int) -> None:
        """Something else on the disk grows until `leave` bytes are free."""
        with (self.seen / "balloon").open("ab") as balloon:
            while (size := self.free - leave) > 0:
                balloon.write(bytes(min(size, 1 << 20)))
                balloon.flush()

    def relieve(self) -> None:
        """That something is deleted."""
        (self.seen / "balloon").unlink()
