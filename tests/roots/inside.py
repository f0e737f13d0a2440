"""A command in a root, in namespaces of its own, and one more beside it.

Owns the mounts of one command, which go with it: nothing is mounted for others to see. Promises that what runs is the
first process there and ends with the `unshare` that started it. `Setting` says what it may do: as whom it runs, what it
may write, whether it has a network. Without one it has loopback alone.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.roots.debian import PATHS

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


def tool(name: str) -> str:
    found = shutil.which(name, path=PATHS)
    assert found is not None, name
    return found


@dataclass(frozen=True)
class Setting:
    """What a command in a root meets."""

    env: Mapping[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: int = 0
    group: int = 0
    bound: Mapping[str, Path] = field(default_factory=dict)
    """Places in the root, and what lies there instead, writable: volumes."""
    lent: Mapping[str, Path] = field(default_factory=dict)
    """The same, read-only."""
    network: bool = False
    read_only: bool = False
    """But for `bound`, `/dev/shm` and `/proc`."""


def command(root: Path, words: Sequence[str], setting: Setting) -> list[str]:
    """What to start for that: `unshare`, which ends as the command does."""
    spaces = ["--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
    if not setting.network:
        spaces.append("--net")
    return [tool("unshare"), *spaces, "/bin/sh", "-euc", script(root, words, setting)]


def script(root: Path, words: Sequence[str], setting: Setting) -> str:
    at = shlex.quote(str(root))
    steps = [
        f"mount --bind {at} {at}",
        f"mount -t proc -o nosuid,noexec,nodev proc {at}/proc",
        f"mount -t tmpfs -o mode=755,size=64k dev {at}/dev",
        f"mkdir -m 1777 {at}/dev/shm",
        f"mount -t tmpfs -o mode=1777,size=64m shm {at}/dev/shm",
        f"ln -s /proc/self/fd {at}/dev/fd",
        *(f"touch {at}/dev/{name}; mount --bind /dev/{name} {at}/dev/{name}" for name in DEVICES),
    ]
    for place, source in {**setting.bound, **setting.lent}.items():
        to = shlex.quote(f"{root}{place}")
        made = f"mkdir -p {to}" if source.is_dir() else f"mkdir -p $(dirname {to}); touch {to}"
        steps += [made, f"mount --bind {shlex.quote(str(source))} {to}"]
        if place in setting.lent:
            steps.append(f"mount -o remount,bind,ro {to}")
    if setting.read_only:
        steps.append(f"mount -o remount,bind,ro {at}")
    if not setting.network:
        steps.append("ip link set lo up")
    environment = [f"{name}={value}" for name, value in setting.env.items()]
    enter = [tool("setpriv"), "--clear-groups"]
    if setting.user:
        enter.append("--no-new-privs")
    enter += [tool("env"), "-i", *environment, tool("unshare"), f"--root={root}", f"--wd={setting.folder}"]
    enter += [f"--setgid={setting.group}", f"--setuid={setting.user}", *words]
    return "\n".join([f"PATH={PATHS}", *steps, f"exec {shlex.join(enter)}"])


def first_process(started: subprocess.Popen[bytes], program: str, timeout: float = 30) -> int:
    """The pid, as seen here, of what `command` started, once it runs that program in its root."""
    until = time.monotonic() + timeout
    while True:
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        for child in children:
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if words[0] == os.fsencode(program):
                return int(child)
        if started.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"{program} did not start: exit {started.returncode}")
        time.sleep(0.01)


def beside(pid: int, words: Sequence[str], setting: Setting) -> list[str]:
    """What to start for a command in the same root and namespaces, as the same user."""
    spaces = ["--mount", "--pid", "--ipc", "--uts", "--net", "--root", f"--wd=/proc/{pid}/cwd"]
    user = [f"--setuid={setting.user}", f"--setgid={setting.group}"]
    return [tool("nsenter"), f"--target={pid}", *spaces, *user, "--", *words]


def on_its_network(pid: int, words: Sequence[str]) -> list[str]:
    """What to start for a command of ours that has the network of that process."""
    return [tool("nsenter"), f"--target={pid}", "--net", "--", *words]


ASK = """
import sys, urllib.request
method, url, body = sys.argv[1:]
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
request = urllib.request.Request(url, body.encode() if method == "POST" else None, method=method)
with opener.open(request, timeout=10) as answer:
    sys.stdout.write(answer.read().decode("latin-1"))
"""


def ask(pid: int, method: str, url: str, body: str = "") -> list[str]:
    """What to start for one request on the network of that process; another status than 2xx is a failure."""
    return on_its_network(pid, [sys.executable, "-c", ASK, method, url, body])
