"""A real Prometheus with the alerts of deploy/, their times made shorter, that scrapes one collector.

Owns one process on a port of loopback, and its folder. `hurried` shortens what a drill would only wait for: how long an
alert has to hold, the windows of its rates, and the youth of a process. What an alert compares stays as it is.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import ProxyHandler, build_opener

import yaml

from tests.process.fronts import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

ALERTS = Path(__file__).parents[2] / "deploy/prometheus/alerts.yaml"
WHY_NOT = "" if shutil.which("prometheus") else "prometheus is not installed (Debian: prometheus)"
JOB = "estat-ingest"
FACTOR = 100
"""How many times shorter the times are."""
YOUNG = 15
"""Seconds that a process is young at least: on a busy machine the first scrape of it takes that long."""
EVERY = "500ms"
"""How often it scrapes and looks at its rules."""
_UNITS = {"s": 1, "m": 60, "h": 3600}
_direct = build_opener(ProxyHandler({}))


def rules() -> list[dict[str, Any]]:
    """Return the rules as they are shipped."""
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def hurried(rule: dict[str, Any]) -> dict[str, Any]:
    """Return a rule with its times made shorter."""

    def shorter(found: re.Match[str]) -> str:
        return f"{int(found[1]) * _UNITS[found[2]] * 1000 // FACTOR}ms"

    expr = re.sub(r"(?<=\[)(\d+)([smh])(?=\])", lambda found: shorter(found), rule["expr"])
    expr = re.sub(
        r"(?<=estat_process_start_time_seconds < )\d+", lambda age: f"{max(int(age[0]) / FACTOR, YOUNG):g}", expr
    )
    rule = {**rule, "expr": expr}
    if "for" in rule:
        rule["for"] = re.sub(r"(\d+)([smh])", lambda found: shorter(found), rule["for"])
    return rule


class Prometheus:
    """`with Prometheus(folder, port) as prometheus:` scrapes what listens on `port`, whether something does or not."""

    def __init__(self, folder: Path, target: int) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        (folder / "alerts.yaml").write_text(
            yaml.safe_dump({"groups": [{"name": "drill", "rules": [hurried(rule) for rule in rules()]}]})
        )
        (folder / "prometheus.yaml").write_text(
            yaml.safe_dump(
                {
                    "global": {"scrape_interval": EVERY, "scrape_timeout": EVERY, "evaluation_interval": EVERY},
                    "rule_files": ["alerts.yaml"],
                    "scrape_configs": [
                        {"job_name": JOB, "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]},
                    ],
                }
            )
        )

    def __enter__(self) -> Self:
        with (self.folder / "prometheus.log").open("wb") as out:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    "--config.file=prometheus.yaml",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                    "--storage.tsdb.path=data",
                    "--query.lookback-delta=2s",
                ],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        self.wait(self._is_ready, "it does not come up")
        return self

    def __exit__(self, *_exc: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def ask(self, query: str) -> list[float]:
        """Return the values of a query, now."""
        with _direct.open(f"http://127.0.0.1:{self.port}/api/v1/query?query={quote(query)}", timeout=10) as answer:
            told = json.load(answer)
        assert told["status"] == "success", told
        return [float(series["value"][1]) for series in told["data"]["result"]]

    def fires(self, alert: str) -> bool:
        """Tell whether an alert fires now."""
        return bool(self.ask(f'ALERTS{{alertname="{alert}",alertstate="firing"}}'))

    def wait(self, told: Callable[[], bool], what: str, timeout: float = 240.0) -> float:
        """Return after how many seconds it was so."""
        began = time.monotonic()
        while not told():
            assert self._process is not None
            assert self._process.poll() is None, (self.folder / "prometheus.log").read_text()[-4000:]
            assert time.monotonic() - began < timeout, f"{what} after {timeout} s"
            time.sleep(0.1)
        return time.monotonic() - began

    def _is_ready(self) -> bool:
        try:
            _direct.open(f"http://127.0.0.1:{self.port}/-/ready", timeout=5).close()
        except (URLError, OSError):
            return False
        return True
