"""What `make sdks` runs: every SDK of the routes, from its registry, against a real collector.

    python -m tests.sdks [--keep FILE] [WORD]

All send at once, each through a relay that listens in, those for browsers from a page of another site, in one Chromium.
First nothing happens to the collector: each event has to be stored once, under the name of its write key, with no error
and nothing sent again. Then the collector is killed in the middle and comes back on the same disk: nothing may be lost
of what an SDK was told is stored. The same holds where many requests get 429. At last each page is left in the moment
of its last event, and comes back: each request that arrives whole has to get 200. Each time the view of docs/sdks.md
has to have one row for each event stored, under an id that the SDK made. It ends with 1 if that is not so. --keep
writes a line of each SDK to a file, as it was stored. With WORD only those SDKs send whose tag has it.

An SDK may send again what got no answer, so that an event may be stored twice; and it may give up. Both are printed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from tests.process.collector import REPOSITORY, Collector
from tests.sdks import views
from tests.sdks.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

FOLDER = REPOSITORY / "tests" / "sdks"
NODE = ("node", str(FOLDER / "drive.mjs"))
PYTHON = (sys.executable, "-m", "tests.sdks.drive")
PAGE = ("node", str(FOLDER / "page.mjs"))
LANGUAGES = {NODE: "node", PYTHON: "py", PAGE: "web"}
READY_SECONDS = 60.0
QUIET_SECONDS = 20.0
"""No SDK waits longer than that before it sends again what it will send again at all."""
SAME = ("-gzip", "-plain", "-batch", "-batching")
"""Tags with these ends store what others do."""
BEACONS = 50
"""More events than these may be too much for what a browser lets beacons have under way, 64 KiB."""
LEFT_SECONDS = 3.0
"""A request that a left page makes has come by then."""


class Round(Enum):
    """What happens while the SDKs send: how many events, and the pause between two."""

    UNDISTURBED = ("nothing happens to the collector", 100, 0.02)
    KILLED = ("it is killed and comes back", 100, 0.05)
    LIMITED = ("it takes 50 requests a second of all together", 100, 0.02)
    LEFT = ("the page is left in the moment of the last event, and comes back", 10, 0.005)

    def __init__(self, title: str, events: int, pause: float) -> None:
        self.title = title
        self.events = events
        self.pause = pause


@dataclass
class Case:
    """One SDK in one way of sending."""

    package: str
    command: tuple[str, ...]
    sdk: str
    option: str = ""
    events: int = 0
    left: int = 0
    """So many it was told are stored when its page had been left."""
    relay: Relay = field(default_factory=Relay)
    process: subprocess.Popen[str] | None = None
    log: Path = Path()
    errors: list[str] = field(default_factory=list)

    @property
    def tag(self) -> str:
        return "-".join(filter(None, (self.sdk, LANGUAGES[self.command], self.option)))

    @property
    def key(self) -> str:
        return f"key-{self.tag}:secret" if self.sdk == "jitsu" else f"key-{self.tag}"

    @property
    def ids(self) -> set[str]:
        return {f"{self.tag}-{number:04}" for number in range(self.events)}

    def sent(self, *, stored: bool = False) -> Counter[str]:
        """How often each event was sent; or how often the SDK was told that it is stored."""
        return Counter(
            probe
            for exchange in list(self.relay.exchanges)
            if not exchange.is_preflight and (not stored or exchange.status == 200)
            for probe in self.probes(exchange.text)
        )

    def probes(self, text: str) -> list[str]:
        return re.findall(rf"\b{self.tag}-\d{{4}}\b", text)

    def is_told(self) -> bool:
        return self.sent(stored=True).keys() >= self.ids

    def start(self, folder: Path, what: Round, browser: str) -> None:
        url = f"http://127.0.0.1:{self.relay.start().port}"
        self.events = min(what.events, BEACONS) if self.option == "beacon" else what.events
        words = [self.sdk, url, self.key, self.tag, str(self.events), str(what.pause), self.option]
        if what is Round.LEFT:
            words.append("leave")
        self.log = folder / f"{self.tag}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*self.command, *words],
                cwd=REPOSITORY,
                env={**os.environ, "BROWSER": browser},
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
        Case("@jitsu/js", NODE, "jitsu"),
        Case("@snowplow/node-tracker", NODE, "snowplow"),
        Case("@snowplow/node-tracker", NODE, "snowplow", "get"),
        Case("@segment/analytics-next", PAGE, "segment"),
        Case("@segment/analytics-next", PAGE, "segment", "batching"),
        Case("@rudderstack/analytics-js", PAGE, "rudderstack"),
        Case("@rudderstack/analytics-js", PAGE, "rudderstack", "batch"),
        Case("@rudderstack/analytics-js", PAGE, "rudderstack", "beacon"),
        Case("@jitsu/js", PAGE, "jitsu"),
        Case("posthog-js", PAGE, "posthog"),
        Case("posthog-js", PAGE, "posthog", "plain"),
        Case("@snowplow/browser-tracker", PAGE, "snowplow"),
        Case("@snowplow/browser-tracker", PAGE, "snowplow", "get"),
        Case("segment-analytics-python", PYTHON, "segment"),
        Case("segment-analytics-python", PYTHON, "segment", "gzip"),
        Case("rudder-sdk-python", PYTHON, "rudderstack"),
        Case("rudder-sdk-python", PYTHON, "rudderstack", "gzip"),
        Case("posthog", PYTHON, "posthog"),
        Case("posthog", PYTHON, "posthog", "gzip"),
        Case("snowplow-tracker", PYTHON, "snowplow"),
        Case("snowplow-tracker", PYTHON, "snowplow", "get"),
    ]


@contextmanager
def chromium() -> Iterator[str]:
    """Have a Chromium for pages; yield its address."""
    command = ("node", str(FOLDER / "chromium.mjs"))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            assert address, "Chromium does not start"
            yield address
        finally:
            process.stdin.close()


def run(running: list[Case], folder: Path, what: Round, browser: str) -> None:
    """Have all send, and the collector store it."""
    env = {
        "SDK_ROUTES": "segment,snowplow,posthog",
        "WRITE_KEYS": ",".join(f"{case.tag}:{case.key}" for case in running),
        "FLUSH_INTERVAL": "1s",
        **({"RATE_LIMIT": "50/s", "RATE_BURST": "50"} if what is Round.LIMITED else {}),
    }
    collector = Collector(folder, env, measured=False).start()
    try:
        for case in running:
            case.relay.target = collector.port
            case.start(folder, what, browser)
        for case in running:
            case.wait_ready()
        for case in running:
            case.go()
        if what is Round.KILLED:
            wait(lambda: all(case.sent(stored=True) for case in running))
            for case in running:
                case.relay.target = None
            collector.kill()
            collector = Collector(folder, env, measured=False).start()
            for case in running:
                case.relay.target = collector.port
        if what is Round.LEFT:
            wait_told(running, LEFT_SECONDS)
            for case in running:
                case.left = len(case.sent(stored=True))
                case.go()
        wait_told(running, QUIET_SECONDS)
        for case in running:
            case.end()
        collector.wait_delivered()
        collector.stop()
    finally:
        collector.kill()
        for case in running:
            if case.process is not None and case.process.poll() is None:
                case.process.kill()


def lines_below(objects: Path) -> list[dict[str, Any]]:
    files = sorted(objects.rglob("*.jsonl.gz"))
    return [json.loads(line) for path in files for line in gzip.decompress(path.read_bytes()).splitlines()]


def wait_told(running: list[Case], quiet: float) -> None:
    """Wait until all are told that all is stored, or nothing more is heard of any."""
    wait(
        lambda: all(case.is_told() for case in running),
        heard=lambda: sum(len(case.relay.exchanges) for case in running),
        quiet=quiet,
    )


def wait(so: Callable[[], bool], heard: Callable[[], object] = tuple, quiet: float = QUIET_SECONDS) -> None:
    """Wait until it is so, or nothing more is heard for long: who looks at the figures then sees what is missing."""
    before, deadline = None, 0.0
    while not so():
        now = heard()
        if now != before:
            before, deadline = now, time.monotonic() + quiet
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)


HEADS = (
    "package",
    "how",
    "events",
    "requests",
    "preflights",
    "told stored",
    "stored",
    "lost",
    "doubled",
    "ids",
    "sent again",
    "errors",
)


def report(running: Iterable[Case], lines: list[dict[str, Any]], rows: list[dict[str, Any]], what: Round) -> bool:
    """Print the table; tell whether all is as promised. `rows` are those of the view."""
    sound = True
    table = [(*HEADS, *(["told when left"] if what is Round.LEFT else []))]
    for case in running:
        own = [line for line in lines if line.get("key") == case.tag]
        stored = Counter(probe for line in own for probe in case.probes(unquote_plus(json.dumps(line))))
        told = case.sent(stored=True)
        again = sum(case.sent().values()) - len(case.sent())
        lost = told.keys() - stored.keys()
        doubled = sum(stored.values()) - len(stored)
        preflights = Counter(one.status for one in case.relay.exchanges if one.is_preflight)
        statuses = Counter(one.status for one in case.relay.exchanges if not one.is_preflight)
        events = [row for row in rows if row["key"] == case.tag]
        ids = {row["id"] for row in events}
        figures = [
            case.events,
            statuses.total(),
            preflights.total(),
            len(told),
            len(stored),
            len(lost),
            doubled,
            len(ids),
        ]
        figures += [again, len(case.errors), *([case.left] if what is Round.LEFT else [])]
        table.append((case.package, case.option or "default", *map(str, figures)))
        sound &= not lost and len(ids) == len(events) == len(stored) and None not in ids
        if what is Round.UNDISTURBED:
            sound &= stored == Counter(case.ids) and not again and not case.errors and None not in statuses
        if what is not Round.KILLED:
            limited = {429} if what is Round.LIMITED else set()
            sound &= statuses.keys() <= {200, None, *limited} and preflights.keys() <= {204, None}
        for kind, unusual in (("statuses", statuses - Counter({200: statuses[200]})), ("errors", Counter(case.errors))):
            if unusual:
                say(f"  {case.tag}: {kind} {dict(unusual.most_common(3))}")
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
    parser.add_argument("word", nargs="?", default="", help="what the tags of those that send have")
    arguments = parser.parse_args()
    sound = True
    with chromium() as browser:
        for what in Round:
            running = [case for case in cases() if arguments.word in case.tag]
            if what is Round.LEFT:
                running = [case for case in running if case.command is PAGE]
            with tempfile.TemporaryDirectory(prefix="estat-ingest-") as folder:
                run(running, Path(folder), what, browser)
                objects = Path(folder, "data", "objects", "raw")
                lines = lines_below(objects)
                rows = views.rows(objects) if lines else []
            say(f"\n{what.title}:")
            kept = report(running, lines, rows, what)
            say("as promised" if kept else "NOT as promised")
            sound &= kept
            if arguments.keep and what is Round.UNDISTURBED:
                first = {line["key"]: line for line in reversed(lines) if not line["key"].endswith(SAME)}
                arguments.keep.write_text("".join(f"{json.dumps(first[key])}\n" for key in sorted(first)))
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
