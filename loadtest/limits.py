"""A real CPU limit around a process: cgroup v2, cgroup v1, or a scope that systemd makes; and what was spent inside it.

`open_limit(name)` gives the first kind that works here, tried and not guessed, or raises `NoLimitError`: a figure "at a
quarter of a vCPU" without a quota would be a guess. A limit holds every process and thread that is started in it.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

PERIOD_US = 100_000  # as Fargate, Docker and Kubernetes set it: a quarter of a vCPU is 25 ms of every 100
MEMORY = 512 * 1024 * 1024


class NoLimitError(Exception):
    """No kind of CPU limit can be had on this machine by this user."""


class Limit:
    """What all kinds share: starting inside, looking at what runs inside, and ending it."""

    kind = ""

    def __init__(self, name, memory):
        self.name = name
        self.memory = memory

    def set_cpu(self, share):
        """Limit to `share` of a core, None: no limit."""
        raise NotImplementedError

    def cpu_seconds(self):
        """User and system time of everything that ever ran inside."""
        raise NotImplementedError

    def pids(self):
        raise NotImplementedError

    def start(self, command, *, cores=None, **options):
        def enter():
            self.enter()
            if cores:
                os.sched_setaffinity(0, cores)

        return subprocess.Popen(command, preexec_fn=enter, **options)

    def enter(self):
        """Called in the new process, before it becomes the command."""

    def resident(self):
        """Resident bytes of all processes inside, now and at most: (VmRSS, VmHWM)."""
        now = most = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmRSS:"):
                        now += int(line.split()[1]) * 1024
                    elif line.startswith("VmHWM:"):
                        most += int(line.split()[1]) * 1024
        return now, most

    def end(self):
        """Terminate what still runs inside, then remove the limit."""
        self.set_cpu(None)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + 5
            while self.pids() and time.monotonic() < deadline:
                time.sleep(0.01)
        self.remove()

    def remove(self):
        """Remove the limit itself."""


class CgroupV2(Limit):
    kind = "cgroup v2 (cpu.max)"

    def __init__(self, name, memory):
        super().__init__(name, memory)
        root = _mount_of("cgroup2", None)
        for parent in (root, root / _own_cgroup(0).lstrip("/")):
            with contextlib.suppress(OSError):
                (parent / "cgroup.subtree_control").write_text("+cpu +memory")
                self.folder = parent / name
                self.folder.mkdir()
                self.set_cpu(0.25)
                self.set_cpu(None)
                break
        else:
            raise OSError("the cpu controller cannot be given to a new group")
        if memory is not None:
            with contextlib.suppress(OSError):
                (self.folder / "memory.max").write_text(str(memory))

    def set_cpu(self, share):
        quota = "max" if share is None else int(share * PERIOD_US)
        (self.folder / "cpu.max").write_text(f"{quota} {PERIOD_US}")

    def enter(self):
        (self.folder / "cgroup.procs").write_text("0")

    def cpu_seconds(self):
        return int((self.folder / "cpu.stat").read_text().split()[1]) / 1e6

    def pids(self):
        return [int(pid) for pid in (self.folder / "cgroup.procs").read_text().split()]

    def remove(self):
        self.folder.rmdir()


class CgroupV1(Limit):
    kind = "cgroup v1 (cpu.cfs_quota_us)"

    def __init__(self, name, memory):
        super().__init__(name, memory)
        self.folders = {}
        for controller in ("cpu", "cpuacct", "memory"):
            with contextlib.suppress(LookupError):
                self.folders[controller] = _mount_of("cgroup", controller) / name
        for controller in ("cpu", "cpuacct"):
            self.folders[controller].mkdir(exist_ok=True)
        self.set_cpu(0.25)
        self.set_cpu(None)
        with contextlib.suppress(OSError, LookupError):
            self.folders["memory"].mkdir(exist_ok=True)
            if memory is not None:
                (self.folders["memory"] / "memory.limit_in_bytes").write_text(str(memory))

    def set_cpu(self, share):
        (self.folders["cpu"] / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (self.folders["cpu"] / "cpu.cfs_quota_us").write_text(str(-1 if share is None else int(share * PERIOD_US)))

    def enter(self):
        for folder in self.folders.values():
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    def cpu_seconds(self):
        return int((self.folders["cpuacct"] / "cpuacct.usage").read_text()) / 1e9

    def pids(self):
        return [int(pid) for pid in (self.folders["cpu"] / "cgroup.procs").read_text().split()]

    def remove(self):
        for folder in set(self.folders.values()):
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()


class SystemdScope(Limit):
    kind = "systemd-run --user --scope (CPUQuota)"

    def __init__(self, name, memory):
        super().__init__(name, memory)
        self.unit = f"{name}.scope"
        self.folder = None
        probe = ["systemd-run", "--user", "--scope", "--quiet", "-p", "CPUQuota=25%", "true"]
        if not shutil.which("systemd-run") or subprocess.run(probe, capture_output=True, check=False).returncode:
            raise OSError("systemd-run --user --scope does not work here")

    def start(self, command, *, cores=None, **options):
        prefix = ["systemd-run", "--user", "--scope", "--quiet", "--unit", self.name]
        bound = [] if self.memory is None else ["-p", f"MemoryMax={self.memory}"]
        process = super().start([*prefix, *bound, *command], cores=cores, **options)
        while self.folder is None or self.name not in self.folder.name:
            time.sleep(0.01)
            path = next(
                line for line in Path(f"/proc/{process.pid}/cgroup").read_text().splitlines() if line[:3] == "0::"
            )
            self.folder = _mount_of("cgroup2", None) / path[3:].lstrip("/")
        return process

    def set_cpu(self, share):
        if self.folder is not None and self.folder.exists():
            quota = "" if share is None else f"{share:.0%}"
            subprocess.run(["systemctl", "--user", "set-property", self.unit, f"CPUQuota={quota}"], check=True)

    def cpu_seconds(self):
        return int((self.folder / "cpu.stat").read_text().split()[1]) / 1e6

    def pids(self):
        with contextlib.suppress(OSError):
            return [int(pid) for pid in (self.folder / "cgroup.procs").read_text().split()]
        return []


def open_limit(name, memory=MEMORY):
    """Return a limit that has no CPU quota yet; `memory` is in bytes, None: no bound."""
    reasons = []
    for kind in (CgroupV2, CgroupV1, SystemdScope):
        try:
            return kind(f"estat-{os.getpid()}-{name}", memory)
        except (OSError, LookupError) as error:
            reasons.append(f"{kind.kind}: {error}")
    raise NoLimitError("no CPU limit can be set here (run it as root?): " + "; ".join(reasons))


def _mount_of(kind, controller):
    for line in Path("/proc/mounts").read_text().splitlines():
        _, folder, found, options, *_ = line.split()
        if found == kind and (controller is None or controller in options.split(",")):
            return Path(folder)
    raise LookupError(f"no {kind} mount" + (f" with {controller}" if controller else ""))


def _own_cgroup(hierarchy):
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, _, path = line.split(":", 2)
        if int(number) == hierarchy:
            return path
    raise LookupError("not in a cgroup")
