"""The collector as a real process: start it, read what it says about itself, stop or kill it.

Owns one folder (the process's working directory), one environment that holds nothing but what the test gave, and the
process's standard error in a file. It never shares a port: the server binds port 0 and its `listening` line says which.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.request import ProxyHandler, build_opener

from ingest.ledger import FOLDER as LEDGER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from resource import struct_rusage

REPOSITORY = Path(__file__).resolve().parents[2]
_direct = build_opener(ProxyHandler({}))
SERVE = (sys.executable, "-m", "ingest", "serve")
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{([^}]*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Metrics:
    """One scrape: `value("estat_events_pending", place="dlq")` sums the samples that carry these labels."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._samples: list[tuple[str, dict[str, str], float]] = []
        for line in text.splitlines():
            if match := _SAMPLE.match(line):
                name, labels, value = match.groups()
                self._samples.append((name, dict(_LABEL.findall(labels or "")), float(value)))

    def value(self, name: str, **labels: str) -> float:
        found = [v for n, have, v in self._samples if n == name and labels.items() <= have.items()]
        if not found:
            raise KeyError(f"{name}{labels or ''} is not in the scrape")
        return sum(found)

    @property
    def pending(self) -> int:
        return int(self.value("estat_events_pending"))


class Collector:
    """`python -m ingest serve`, or another script in its place, in `folder` with `env` on top of a bare environment."""

    def __init__(
        self,
        folder: Path,
        env: Mapping[str, str] | None = None,
        *,
        command: Sequence[str] = SERVE,
        prefix: Sequence[str] = (),
        name: str = "collector",
        dlq_folder: Path | None = None,
        measured: bool = True,
    ) -> None:
        """`measured=False` spares a process that will be killed the cost of coverage, which it could never report."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.dlq_folder = dlq_folder or folder / "data" / "dlq"
        self.env = {"HTTP_ADDR": "127.0.0.1:0", **(env or {})}
        self.measured = measured
        self.command = [*prefix, *command]
        self.stderr = _fresh(folder, name)
        self.rusage: struct_rusage | None = None
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    # Starting

    def spawn(self) -> Collector:
        """Starts the process and does not wait for it."""
        with self.stderr.open("wb") as out:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=bare_environment(self.env, measured=self.measured),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        return self

    def start(self, timeout: float = 20.0) -> Collector:
        """Returns when it listens."""
        self.spawn()
        deadline = time.monotonic() + timeout
        while not self.port:
            assert self.alive, f"exit {self._process.returncode} before it listened: {self.tail()}"  # type: ignore[union-attr]
            assert time.monotonic() < deadline, f"not listening after {timeout} s: {self.tail()}"
            for line in self.said("listening"):
                # On every interface and port 0 there is a port for each family: ours is that of IPv4.
                if "." in line["host"]:
                    self.port = int(line["port"])
            time.sleep(0.01)
        return self

    def __enter__(self) -> Self:
        return self if self._process else self.start()

    def __exit__(self, *_exc: object) -> None:
        self.kill()

    # Watching

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def started(self) -> bool:
        return self._process is not None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._poll() is None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, timeout: float = 10.0) -> bytes:
        with _direct.open(self.url + path, timeout=timeout) as answer:
            return bytes(answer.read())

    def metrics(self) -> Metrics:
        return Metrics(self.get("/metrics").decode())

    def wait_until(self, told: Callable[[Metrics], bool], timeout: float = 30.0, what: str = "") -> Metrics:
        """Polls the metrics until they tell it; every scrape on the way must balance."""
        deadline = time.monotonic() + timeout
        while True:
            assert self.alive, f"the collector died: {self.tail()}"
            seen = self.metrics()
            assert seen.value("estat_events_unaccounted") == 0, f"the books do not balance:\n{_story(seen)}"
            if told(seen):
                return seen
            assert time.monotonic() < deadline, f"{what or 'not so'} after {timeout} s:\n{_story(seen)}\n{self.tail()}"
            time.sleep(0.1)

    def wait_delivered(self, timeout: float = 30.0) -> Metrics:
        """Returns when nothing is pending in any place, and nothing waits on disk that was not counted yet."""
        return self.wait_until(lambda m: m.pending == 0 and not self.left_on_disk(), timeout, "events still pending")

    def logs(self) -> list[dict[str, Any]]:
        """Its structured lines; what is not one (a traceback) appears as `{"raw": line}`."""
        lines: list[dict[str, Any]] = []
        for line in self.stderr.read_text(errors="replace").split("\n")[:-1]:
            try:
                parsed = json.loads(line)
            except ValueError:
                parsed = line
            lines.append(parsed if isinstance(parsed, dict) else {"raw": line})
        return lines

    def said(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.logs() if line.get("event") == event]

    def wait_said(self, event: str, times: int = 1, timeout: float = 30.0) -> list[dict[str, Any]]:
        """Its lines of this event, once there are so many."""
        deadline = time.monotonic() + timeout
        while len(told := self.said(event)) < times:
            assert time.monotonic() < deadline, f"no {event} after {timeout} s: {self.tail()}"
            time.sleep(0.01)
        return told

    def tail(self, size: int = 4000) -> str:
        return f"{self.stderr}:\n" + self.stderr.read_text(errors="replace")[-size:]

    def rss_bytes(self, *, peak: bool = False) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]

    def left_on_disk(self) -> list[str]:
        """What waits in DLQ and journal, as paths below the DLQ's folder; locks and ledgers are not counted."""
        found = []
        for folder, _, names in os.walk(self.dlq_folder):
            if os.path.basename(folder) == LEDGER:
                continue
            found += [os.path.relpath(os.path.join(folder, name), self.dlq_folder) for name in names if name != "lock"]
        return sorted(found)

    # Ending

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL by pid and reap; harmless when it has ended already."""
        if self.alive:
            self.send_kill()
            self.wait(10)

    def send_kill(self) -> None:
        """SIGKILL and nothing else: what another thread may call while the test waits for the end."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float) -> int:
        """Its exit status; negative is the signal that ended it."""
        deadline = time.monotonic() + timeout
        while (status := self._poll()) is None:
            assert time.monotonic() < deadline, f"still running after {timeout} s: {self.tail()}"
            time.sleep(0.005)
        return status

    def stop(self, timeout: float = 30.0) -> float:
        """SIGTERM; asserts exit 0 within `timeout` and returns the seconds it took."""
        began = time.monotonic()
        self.terminate()
        status = self.wait(timeout)
        assert status == 0, f"exit {status}: {self.tail()}"
        return time.monotonic() - began

    def _poll(self) -> int | None:
        assert self._process is not None
        if self._process.returncode is None:
            pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
            if pid:
                self._process.returncode = os.waitstatus_to_exitcode(status)
                self.rusage = usage
        return self._process.returncode


def bare_environment(env: Mapping[str, str], *, measured: bool = True) -> dict[str, str]:
    """Nothing of the caller's but path, locale and coverage's switches; no AWS file or metadata service is found."""
    plain = ("PATH", "LANG", "LD_LIBRARY_PATH")
    kept = {k: v for k, v in os.environ.items() if k in plain or (measured and k.startswith("COVERAGE_"))}
    if start := kept.get("COVERAGE_PROCESS_START"):
        kept["COVERAGE_PROCESS_START"] = str(Path(start).absolute())
    return {
        **kept,
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "DEBUG_CHECKS": "1",
        **env,
    }


def _fresh(folder: Path, name: str) -> Path:
    number = 0
    while (path := folder / f"{name}.{number}.log").exists():
        number += 1
    path.touch()
    return path


def _story(metrics: Metrics) -> str:
    telling = ("estat_events", "estat_spool", "estat_put", "estat_requests", "estat_breaker", "estat_store")
    return "\n".join(line for line in metrics.text.splitlines() if line.startswith(telling))
