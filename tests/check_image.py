"""What `make image-check` runs: the image without Docker, laid out in a folder and run as the Dockerfile says.

Owns the folder, and the processes it starts in it. The root is read-only but for the volume, the user is the image's
own, the network is loopback. What the image is must be what the Dockerfile and the pages say: each is a line, and
one that differs makes it end with 1. Where roots of Debian cannot be laid out it ends with 2. It shows what the
product does in the image, and not what a registry holds: the base images are made of the packages of this Debian.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.roots import debian, inside
from tests.roots.dockerfile import Build, Image

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.roots.inside import Setting

REPOSITORY = Path(__file__).parent.parent
UNCOMPILED = """
import sys, os
import aiobotocore.session, ingest.__main__, ingest.server, ingest.store.s3, uvloop
loaded = [(m.__name__, m.__spec__) for m in list(sys.modules.values()) if getattr(m, "__spec__", None)]
sources = [(name, spec.cached) for name, spec in loaded if (spec.origin or "").endswith(".py")]
print(len(sources), *sorted(name for name, cached in sources if not cached or not os.path.exists(cached)))
"""
WRITE = """
import os
def takes(folder):
    try:
        os.close(os.open(folder + "/written", os.O_CREAT | os.O_WRONLY))
        os.unlink(folder + "/written")
    except OSError:
        return False
    return True
print(*(at for at in sorted({"/", *(folder for folder, _, _ in os.walk("/"))})
        if not at.startswith(("/proc", "/sys")) and takes(at)))
"""


class Findings:
    """Lines of what was looked at."""

    def __init__(self) -> None:
        self.differ = 0

    def say(self, what: str, told: object, *, good: bool = True) -> None:
        self.differ += not good
        print(f"{'ok     ' if good else 'DIFFERS'}  {what}: {told}", flush=True)  # noqa: T201


class Container:
    """The image started once, with its volume."""

    def __init__(self, image: Image, volume: Path, log: Path, env: Mapping[str, str]) -> None:
        self.image = image
        self.env = {**image.env, **env}
        self.volume = volume
        self.setting: Setting = inside.Setting(
            env=self.env, folder=image.folder, user=image.user, group=image.group,
            bound=dict.fromkeys(image.volumes, volume), read_only=True,
        )  # fmt: skip
        self.began = time.monotonic()
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                inside.command(image.root, [*image.entry, *image.words], self.setting),
                stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip
        self.log = log
        self.pid = inside.first_process(self.process, image.entry[0])

    def healthy(self) -> tuple[int, float]:
        """The exit code of the health check, and the seconds of CPU that it took."""
        words = inside.beside(self.pid, self.image.health, self.setting)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            words, env=self.env, timeout=self.image.health_options["timeout"], capture_output=True, check=False
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return done.returncode, spent

    def wait_healthy(self) -> float:
        """Seconds until a health check passes; it has as long as an orchestrator would give it."""
        options = self.image.health_options
        until = options["start-period"] + options["retries"] * options["interval"]
        while self.healthy()[0]:
            if self.process.poll() is not None or time.monotonic() - self.began > until:
                raise SystemExit(f"it does not become healthy:\n{self.log.read_text()[-4000:]}")
        return time.monotonic() - self.began

    def look(self, code: str) -> list[str]:
        """What a script prints that runs in the image beside the process."""
        words = inside.beside(self.pid, [self.image.entry[0], "-c", code], self.setting)
        return subprocess.run(
            words, env=self.env, capture_output=True, text=True, timeout=120, check=True
        ).stdout.split()

    def ask(self, method: str, path: str, body: str = "") -> str:
        url = f"http://127.0.0.1:{self.image.ports[0]}{path}"
        words = inside.ask(self.pid, method, url, body)
        return subprocess.run(words, capture_output=True, text=True, timeout=30, check=True).stdout

    def metric(self, name: str) -> float:
        found = re.findall(rf"(?m)^{name}(?:\{{[^}}]*\}})? (\S+)$", self.ask("GET", "/metrics"))
        return sum(map(float, found))

    def status(self, name: str) -> str:
        (value,) = re.findall(rf"(?m)^{name}:\s+(.*)$", Path(f"/proc/{self.pid}/status").read_text())
        return value

    def workers(self) -> list[str]:
        return Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()

    def cpu(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> tuple[int, float]:
        """The exit code after the image's stop signal, and the seconds that it took."""
        began = time.monotonic()
        os.kill(self.pid, signal.Signals[self.image.stop_signal])
        return self.process.wait(60), time.monotonic() - began

    def kill(self) -> None:
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.process.wait(10)


@contextmanager
def container(image: Image, volume: Path, log: Path, **env: str) -> Iterator[Container]:
    started = Container(image, volume, log, env)
    try:
        yield started
    finally:
        started.kill()


def make_volume(image: Image, folder: Path) -> Path:
    """A named volume as Docker makes it: with the content and the owner of the folder that it covers."""
    (place,) = image.volumes
    covered = image.root / place.lstrip("/")
    shutil.copytree(covered, folder, symlinks=True)
    for copied in (folder, *folder.rglob("*")):
        status = (covered / copied.relative_to(folder)).stat()
        os.chown(copied, status.st_uid, status.st_gid)
    return folder


def bodies(volume: Path) -> list[str]:
    """Those of all stored events."""
    found = []
    for path in sorted(volume.glob("objects/raw/*/*/*.jsonl.gz")):
        found += [json.loads(line)["body"] for line in gzip.decompress(path.read_bytes()).splitlines()]
    return found


def lines(log: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def mib(size: float) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def look_at(image: Image, volume: Path, log: Path, found: Findings) -> None:
    """Everything that the Dockerfile and the pages promise."""
    shell = [name for name in ("sh", "bash", "dash", "busybox") if (image.root / "usr/bin" / name).exists()]
    found.say("no shell in it", shell or "none", good=not shell)
    with container(image, volume, log) as first:
        took = first.wait_healthy()
        found.say("healthy after the start", f"{took:.1f} s, {first.cpu():.2f} s of CPU")
        look_at_rights(first, found)
        look_at_costs(first, found)
        first.ask("POST", "/collect", "first")
        code, took = first.stop()
        found.say(f"exit code after {image.stop_signal}", f"{code} after {took:.1f} s", good=code == 0)
    found.say("stored", bodies(volume), good=bodies(volume) == ["first"])
    with container(image, volume, log) as second:
        second.wait_healthy()
        second.ask("POST", "/collect", "second")
        second.kill()
    with container(image, volume, log) as third:
        third.wait_healthy()
        until = time.monotonic() + 60
        while len(bodies(volume)) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        found.say("stored after a SIGKILL and a start", bodies(volume), good=bodies(volume) == ["first", "second"])
        unaccounted = third.metric("estat_events_unaccounted")
        found.say("events unaccounted", int(unaccounted), good=unaccounted == 0)
        code, took = third.stop()
        found.say("exit code of the last", f"{code} after {took:.1f} s", good=code == 0)
    look_at_workers(image, volume, log, found)
    look_at_an_outage(image, volume, log, found)
    left = [str(path.relative_to(volume)) for path in volume.rglob("*.jsonl*") if "objects" not in path.parts]
    found.say("left in the volume beside objects", left or "nothing", good=not left)
    told = sorted({line["event"] for line in lines(log) if line["level"] != "info"})
    found.say("said by warnings and errors", told or "nothing", good=not {*told} - {"setting_questionable"})


def look_at_workers(image: Image, volume: Path, log: Path, found: Findings) -> None:
    """Several processes and a supervisor, which are replaced while they serve."""
    with container(image, volume, log, WORKERS="2", ADMIN_ADDR=":9090") as several:
        several.wait_healthy()
        before = several.workers()
        sizes = [resident(int(pid)) for pid in (several.pid, *before)]
        found.say("with 2 workers", " + ".join(map(mib, sizes)), good=len(before) == 2)
        several.ask("POST", "/collect", "third")
        os.kill(several.pid, signal.SIGHUP)
        until = time.monotonic() + 60
        while (now := several.workers()) and (len(now) != 2 or {*now} & {*before}) and time.monotonic() < until:
            several.ask("GET", "/health")
        found.say("replaced at SIGHUP", f"{len({*now} - {*before})} of 2", good=len({*now} - {*before}) == 2)
        several.ask("POST", "/collect", "fourth")
        code, took = several.stop()
        found.say("exit code with workers", f"{code} after {took:.1f} s", good=code == 0)
    found.say("stored by workers", bodies(volume)[2:], good=bodies(volume)[2:] == ["third", "fourth"])


def look_at_an_outage(image: Image, volume: Path, log: Path, found: Findings) -> None:
    """With a bucket that is away events wait in the volume; without one they go into the directory."""
    keys = {"AWS_ACCESS_KEY_ID": "made-up", "AWS_SECRET_ACCESS_KEY": "made-up"}
    away = {"RAW_BUCKET": "away", "AWS_REGION": "eu-west-1", "S3_ENDPOINT_URL": "http://127.0.0.1:9", **keys}
    with container(image, volume, log.with_name("away"), FLUSH_INTERVAL="1s", **away) as cut_off:
        cut_off.wait_healthy()
        cut_off.ask("POST", "/collect", "fifth")
        until = time.monotonic() + 60
        while not cut_off.metric("estat_put_errors_total") and time.monotonic() < until:
            time.sleep(0.1)
        rss = resident(cut_off.pid)
        (limit,) = re.findall(r"with the AWS SDK \| (\d+) MiB", (REPOSITORY / "docs/tuning.md").read_text())
        found.say("resident, with the AWS SDK", f"{mib(rss)}, told are {limit} MiB", good=rss <= int(limit) << 20)
        code, took = cut_off.stop()
        found.say("exit code while the store is away", f"{code} after {took:.1f} s", good=code == 0)
    with container(image, volume, log) as again:
        until = time.monotonic() + 60
        while len(bodies(volume)) < 5 and time.monotonic() < until:
            time.sleep(0.1)
        code, _ = again.stop()
    found.say("stored after the outage", bodies(volume)[4:], good=code == 0 and bodies(volume)[4:] == ["fifth"])


def resident(pid: int) -> int:
    (size,) = re.findall(r"(?m)^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text())
    return int(size) << 10


def look_at_rights(running: Container, found: Findings) -> None:
    image = running.image
    users = running.status("Uid").split(), running.status("Gid").split()
    good = users == ([str(image.user)] * 4, [str(image.group)] * 4) and image.user != 0
    found.say("runs as", f"{image.user}:{image.group}", good=good)
    rights = {name: int(running.status(name), 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")}
    found.say("capabilities", {k: v for k, v in rights.items() if v} or "none", good=not any(rights.values()))
    found.say("process", "1", good=running.status("NSpid").split()[-1] == "1")
    writable = running.look(WRITE)
    (volume,) = image.volumes
    foreign = [at for at in writable if at != volume and not at.startswith((f"{volume}/", "/dev/shm"))]
    found.say("writable", foreign or volume, good=volume in writable and not foreign)


def look_at_costs(running: Container, found: Findings) -> None:
    loaded, *uncompiled = running.look(UNCOMPILED)
    told = f"{len(uncompiled)} of {loaded} modules that are loaded" + "".join(f" {name}" for name in uncompiled[:5])
    found.say("compiled at each start", told, good=not uncompiled)
    spent = [running.healthy() for _ in range(5)]
    limit = float(re.findall(r"in (\d+) ms of CPU", (REPOSITORY / "Dockerfile").read_text())[0])
    took = 1000 * sorted(seconds for _, seconds in spent)[2]
    good = took <= 2 * limit and not any(code for code, _ in spent)  # a busy machine takes longer
    found.say("a health check", f"{took:.0f} ms of CPU, told are {limit:.0f}", good=good)
    found.say("resident memory", mib(resident(running.pid)))


def main() -> int:
    try:
        version = re.findall(r"debian:(\d+)", (REPOSITORY / "Dockerfile").read_text())[0]
        debian.refuse_unfit_machines(version)
        with tempfile.TemporaryDirectory(prefix="estat-image-") as name:
            return check(Path(name))
    except debian.UnfitError as why:
        print(f"the image cannot be laid out: {why}", file=sys.stderr)  # noqa: T201
        return 2


def check(folder: Path) -> int:
    folder.chmod(0o755)
    began = time.monotonic()
    image = Build(REPOSITORY, folder, print).run()
    print(f"laid out in {time.monotonic() - began:.0f} s\n")  # noqa: T201
    found = Findings()
    ours = sum(debian.size(image.root / name) for name in ("app", "pycache") if (image.root / name).exists())
    (told,) = re.findall(r"tells the size \((\d+) MiB\)", (REPOSITORY / "docs/deploy.md").read_text())
    size = debian.size(image.root)
    good = abs(size / (int(told) << 20) - 1) < 0.1
    found.say("size", f"{mib(size)}, told are {told} MiB; {mib(ours)} on top of the base image", good=good)
    look_at(image, make_volume(image, folder / "volume"), folder / "log", found)
    return 1 if found.differ else 0


if __name__ == "__main__":
    sys.exit(main())
