"""Hosts on a network of their own: namespaces behind a bridge, gone with the process that made them.

Owns the addresses 10.0.1.0/24 of a network namespace in which this process runs alone (`apart` starts it there).
Promises that nothing of it is seen outside. Needs root.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.process.fronts import program

FRONT = "10.0.1.1"


def refuse_unfit_machines() -> None:
    """Skips the test where a network of its own cannot be made, and says why."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    unshare, ip = program("unshare"), program("ip")
    program("nsenter")
    tried = [unshare, "--net", ip, "link", "add", "v0", "type", "veth", "peer", "name", "v1"]
    done = subprocess.run(tried, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        pytest.skip(f"no network namespaces here: {done.stderr.strip()}")


def apart(module: str, *words: str) -> list[str]:
    """What to start for a module that has a network, and processes, of its own."""
    spaces = ["--net", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"]
    return [program("unshare"), *spaces, sys.executable, "-m", module, *words]


class Lan:
    """A bridge at which we are `FRONT`, and hosts that join it."""

    def __init__(self) -> None:
        self._hosts: list[subprocess.Popen[bytes]] = []
        self._ip("link", "set", "lo", "up")
        self._ip("link", "add", "lan", "type", "bridge")
        self._ip("address", "add", f"{FRONT}/24", "dev", "lan")
        self._ip("link", "set", "lan", "up")

    def join(self, address: str) -> list[str]:
        """Makes a host; returns what stands before a command that is to run on it."""
        host = subprocess.Popen([program("unshare"), "--net", "cat"], stdin=subprocess.PIPE)
        self._hosts.append(host)
        while os.readlink(f"/proc/{host.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            assert host.poll() is None
        number = len(self._hosts)
        there = [program("nsenter"), f"--target={host.pid}", "--net", "--"]
        self._ip("link", "add", f"host{number}", "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
        self._ip("link", "set", f"host{number}", "master", "lan", "up")
        self._ip("link", "set", "lo", "up", before=there)
        self._ip("address", "add", f"{address}/24", "dev", "eth0", before=there)
        self._ip("link", "set", "eth0", "up", before=there)
        return there

    def cut_off(self, number: int, *, for_good: bool = True) -> None:
        """The host with that number, counted from 1, is gone without a word; or it is back."""
        self._ip("link", "set", f"host{number}", "down" if for_good else "up")

    @staticmethod
    def _ip(*words: str, before: list[str] | None = None) -> None:
        subprocess.run([*(before or ()), program("ip"), *words], check=True, timeout=20)
