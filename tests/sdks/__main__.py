"""What `make sdks` runs: every SDK of the routes, from its registry, against a real collector.

    python -m tests.sdks [--keep FILE]

All send at once, each through a relay that listens in, twice. First nothing happens to the collector: each event has to
be stored once, under the name of its write key, with no error and nothing sent again. Then the collector is killed in
the middle and comes back on the same disk: nothing may be lost of what an SDK was told is stored. Both times the view
of docs/sdks.md has to have one row for each event stored. It ends with 1 if that is not so. --keep writes a line of
each SDK to a file, as it was stored.

An SDK may send again what got no answer, so that an event may be stored twice in the second round; and it may give up.
Both are printed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from tests.process.collector import REPOSITORY, Collector
from tests.sdks import views
from tests.sdks.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FOLDER = REPOSITORY / "tests" / "sdks"
NODE = ("node", str(FOLDER / "drive.mjs"))
PYTHON = (sys.executable, "-m", "tests.sdks.drive")
EVENTS = 100
READY_SECONDS = 60.0
QUIET_SECONDS = 20.0
"""No SDK waits longer than that before it sends again what it will send again at all."""


@dataclass
class Case:
    """One SDK in one way of sending."""

    package: str
    command: tuple[str, ...]
    sdk: str
    option: str = ""
    relay: Relay = field(default_factory=Relay)
    process: subprocess.Popen[str] | None = None
    log: Path = Path()
    errors: list[str] = field(default_factory=list)

    @property
    def tag(self) -> str:
        language = "node" if self.command is NODE else "py"
        return "-".join(filter(None, (self.sdk, language, self.option)))

    @property
    def ids(self) -> set[str]:
        return {f"{self.tag}-{number:04}" for number in range(EVENTS)}

    def sent(self, *, stored: bool = False) -> Counter[str]:
        """How often each event was sent; or how often the SDK was told that it is stored."""
        return Counter(
            probe
            for exchange in list(self.relay.exchanges)
            if not stored or exchange.status == 200
            for probe in self.probes(exchange.text)
        )

    def probes(self, text: str) -> list[str]:
        return re.findall(rf"\b{self.tag}-\d{{4}}\b", text)

    def is_told(self) -> bool:
        return self.sent(stored=True).keys() >= self.ids

    def start(self, folder: Path, pause: float) -> None:
        url = f"http://127.0.0.1:{self.relay.start().port}"
        words = (self.sdk, url, f"key-{self.tag}", self.tag, str(EVENTS), str(pause), self.option)
        self.log = folder / f"{self.tag}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*self.command, *words],
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def wait_ready(self) -> None:
        while (line := self._output.readline()) != "ready\n":
            assert line, f"{self.tag} ended before it was ready: {self.log.read_text()[-2000:]}"

    def go(self) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """End it; what it printed last are its errors."""
        assert self.process is not None
        out, _ = self.process.communicate(timeout=READY_SECONDS)
        self.errors = json.loads(out.splitlines()[-1])
        self.relay.stop()

    @property
    def _output(self) -> Any:
        assert self.process is not None
        return self.process.stdout


def cases() -> list[Case]:
    return [
        Case("@segment/analytics-node", NODE, "segment"),
        Case("@rudderstack/rudder-sdk-node", NODE, "rudderstack"),
        Case("@rudderstack/rudder-sdk-node", NODE, "rudderstack", "gzip"),
        Case("posthog-node", NODE, "posthog"),
        Case("posthog-node", NODE, "posthog", "gzip"),
        Case("@snowplow/node-tracker", NODE, "snowplow"),
        Case("@snowplow/node-tracker", NODE, "snowplow", "get"),
        Case("segment-analytics-python", PYTHON, "segment"),
        Case("segment-analytics-python", PYTHON, "segment", "gzip"),
        Case("rudder-sdk-python", PYTHON, "rudderstack"),
        Case("rudder-sdk-python", PYTHON, "rudderstack", "gzip"),
        Case("posthog", PYTHON, "posthog"),
        Case("posthog", PYTHON, "posthog", "gzip"),
        Case("snowplow-tracker", PYTHON, "snowplow"),
        Case("snowplow-tracker", PYTHON, "snowplow", "get"),
    ]


def run(folder: Path, *, kill: bool) -> list[Case]:
    """Have all send, and the collector store it."""
    running = cases()
    env = {
        "SDK_ROUTES": "segment,snowplow,posthog",
        "WRITE_KEYS": ",".join(f"{case.tag}:key-{case.tag}" for case in running),
        "FLUSH_INTERVAL": "1s",
    }
    collector = Collector(folder, env, measured=False).start()
    try:
        for case in running:
            case.relay.target = collector.port
            case.start(folder, pause=0.05 if kill else 0.005)
        for case in running:
            case.wait_ready()
        for case in running:
            case.go()
        if kill:
            wait(lambda: all(case.sent(stored=True) for case in running))
            for case in running:
                case.relay.target = None
            collector.kill()
            collector = Collector(folder, env, measured=False).start()
            for case in running:
                case.relay.target = collector.port
        wait(
            lambda: all(case.is_told() for case in running),
            heard=lambda: sum(len(case.relay.exchanges) for case in running),
        )
        for case in running:
            case.end()
        collector.wait_delivered()
        collector.stop()
    finally:
        collector.kill()
        for case in running:
            if case.process is not None and case.process.poll() is None:
                case.process.kill()
    return running


def lines_below(objects: Path) -> list[dict[str, Any]]:
    files = sorted(objects.rglob("*.jsonl.gz"))
    return [json.loads(line) for path in files for line in gzip.decompress(path.read_bytes()).splitlines()]


def wait(so: Callable[[], bool], heard: Callable[[], object] = tuple) -> None:
    """Wait until it is so, or nothing more is heard for long: who looks at the figures then sees what is missing."""
    before, deadline = None, 0.0
    while not so():
        now = heard()
        if now != before:
            before, deadline = now, time.monotonic() + QUIET_SECONDS
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)


HEADS = (
    "package",
    "how",
    "events",
    "requests",
    "told stored",
    "stored",
    "lost",
    "doubled",
    "rows",
    "sent again",
    "errors",
)


def report(running: Iterable[Case], lines: list[dict[str, Any]], rows: list[dict[str, Any]], *, kill: bool) -> bool:
    """Print the table; tell whether all is as promised. `rows` are those of the view."""
    sound = True
    table = [HEADS]
    for case in running:
        own = [line for line in lines if line.get("key") == case.tag]
        stored = Counter(probe for line in own for probe in case.probes(unquote_plus(json.dumps(line))))
        told = case.sent(stored=True)
        again = sum(case.sent().values()) - len(case.sent())
        lost = told.keys() - stored.keys()
        doubled = sum(stored.values()) - len(stored)
        statuses = Counter(exchange.status for exchange in case.relay.exchanges)
        events = [row for row in rows if row["key"] == case.tag]
        figures = (EVENTS, statuses.total(), len(told), len(stored), len(lost), doubled, len(events), again)
        table.append((case.package, case.option or "plain", *map(str, (*figures, len(case.errors)))))
        sound &= not lost and len(events) == len(stored)
        if not kill:
            sound &= stored == Counter(case.ids) and not again and not case.errors and statuses.keys() == {200}
        for what, unusual in (("statuses", statuses - Counter({200: statuses[200]})), ("errors", Counter(case.errors))):
            if unusual:
                say(f"  {case.tag}: {what} {dict(unusual.most_common(3))}")
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    return sound


def say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description="Send with every SDK there is a route for.")
    parser.add_argument("--keep", type=Path, help="write a line of each SDK there")
    arguments = parser.parse_args()
    sound = True
    for kill, title in ((False, "nothing happens to the collector"), (True, "it is killed and comes back")):
        with tempfile.TemporaryDirectory(prefix="estat-ingest-") as folder:
            running = run(Path(folder), kill=kill)
            objects = Path(folder, "data", "objects", "raw")
            lines, rows = lines_below(objects), views.rows(objects)
        say(f"\n{title}:")
        kept = report(running, lines, rows, kill=kill)
        say("as promised" if kept else "NOT as promised")
        sound &= kept
        if arguments.keep and not kill:
            first = {line["key"]: line for line in reversed(lines) if not line["key"].endswith("-gzip")}
            arguments.keep.write_text("".join(f"{json.dumps(first[key])}\n" for key in sorted(first)))
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
