"""What `make stores` runs: a collector over each S3 server that installs from a registry, and what each does.

    python -m tests.stores [--write] [WORD]

Each server starts in a folder of its own. First it is asked what a collector relies on, each thing seen by reading it
back. Then `estat-ingest check --store` judges it, as the settings are by default, and if it fails with
`S3_CONDITIONAL_PUTS=false`. With the settings that passed a collector serves, and the server is killed with SIGKILL
under load and started again, twice: what was acknowledged is compared with what it holds, by unique id.

The tables of docs/stores.md have to say the same: it ends with 1 if they do not, or if a store that passed the check
lost or doubled an event though it keeps its objects in files. --write puts the tables into the page. With WORD only
those servers are started whose name has it, and the page is not looked at.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.process.client import Load, Sent
from tests.process.collector import REPOSITORY, Collector, bare_environment
from tests.process.ledger import Audit, StoredObject, audit, read_bucket
from tests.stores.probes import COLUMNS, Store
from tests.stores.servers import BUCKET, REGION, SERVERS, Running, Server

PAGE = REPOSITORY / "docs" / "stores.md"
KILLS = 2
RATE = 800
BUCKET_SECONDS = 60.0
DELIVERED_SECONDS = 120.0
FIRST = (
    ("create", "`If-None-Match: *`"),
    ("rivals", "8 creates of a key at once"),
    ("damaged", "A damaged body"),
)
SECOND = (
    ("replace", "`If-Match`"),
    ("range", "First 20 bytes"),
    ("missing", "No such key"),
    ("listing", "Listing, in pages"),
    ("metadata", "Metadata"),
    ("class", "`S3_STORAGE_CLASS`"),
    ("encryption", "`S3_SSE`"),
    ("tags", "`S3_TAGS`"),
)


@dataclass
class Row:
    """What is known of one server."""

    server: Server
    version: str
    answers: dict[str, str] = field(default_factory=dict)
    check: str = ""
    settings: dict[str, str] | None = None
    """What the check passed with; None: with nothing."""
    killed: str = ""
    is_kept: bool = True

    def first(self) -> str:
        cells = [f"{self.server.name} {self.version}", f"{self.server.source}: `{self.server.package}`"]
        return _line(*cells, *(self.answers[column] for column, _ in FIRST), self.check, self.killed)

    def second(self) -> str:
        return _line(self.server.name, *(self.answers[column] for column, _ in SECOND))


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.stores")
    options.add_argument("--write", action="store_true")
    options.add_argument("word", nargs="?", default="")
    given = options.parse_args()
    rows, absent = [], []
    for server in SERVERS:
        if given.word not in server.name:
            continue
        version = server.found()
        if version is None:
            absent.append(server)
            continue
        with tempfile.TemporaryDirectory(prefix="estat-store-") as folder:
            rows.append(examine(server, version, Path(folder)))
        row = rows[-1]
        _say(f"{server.name} {version}: {row.answers}\n  check: {row.check}\n  killed: {row.killed}")
    for server in absent:
        _say(f"{server.name}: not installed ({server.source}: {server.packages or server.package})")
    bad = [row.server.name for row in rows if not row.is_kept]
    for name in bad:
        _say(f"{name}: the check passes a store that does not keep what it took")
    if given.word and not given.write:
        return 1 if bad else 0
    return max(1 if bad else 0, _compare(rows, write=given.write))


def examine(server: Server, version: str, folder: Path) -> Row:
    row = Row(server, version)
    with Running(server, folder / "server") as running:
        running.start()
        store = Store(running.url, server.access_key, server.secret_key)
        _make_bucket(store)
        row.answers = {column: ask(store) for column, ask in COLUMNS.items()}
        environment = {
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": running.url,
            "RAW_BUCKET": BUCKET,
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
        }
        row.check, row.settings = check(environment, folder)
        if row.settings is None:
            row.killed = "not tried"
            return row
        found = kill_under_load(running, store, folder, {**environment, **row.settings})
        row.is_kept = server.keeps == "memory" or not (found.lost or found.doubled or found.broken)
        row.killed = f"lost {found.lost}, doubled {found.doubled}"
        if found.broken:
            row.killed += f", **{len(found.broken)} objects broken**"
        if server.keeps == "memory":
            row.killed = "all is lost: it keeps objects in memory"
        _say(f"  {server.name}: {found}")
    return row


def check(environment: dict[str, str], folder: Path) -> tuple[str, dict[str, str] | None]:
    """Run `check --store`, by default and without conditional puts, and say what it came to."""
    said = ""
    for settings in ({}, {"S3_CONDITIONAL_PUTS": "false"}):
        done = subprocess.run(
            [sys.executable, "-m", "ingest", "check", "--store"],
            cwd=folder,
            env=bare_environment({**environment, **settings}, measured=False),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode == 0:
            only = f"passes with `{'` `'.join(f'{name}={value}' for name, value in settings.items())}`"
            warned = "; warns of `If-Match`" if "If-Match" in done.stderr else ""
            return (only if settings else "passes") + warned, settings
        _say(f"  check with {settings or 'the defaults'}: {done.stderr.strip()}")
        said = done.stderr
    assert said
    return "**fails**", None


def kill_under_load(running: Running, store: Store, folder: Path, environment: dict[str, str]) -> Audit:
    """Serve, kill the store twice in the middle, and read back what it holds when all is delivered."""
    sent = Sent(300)
    served = {**environment, "BATCH_SIZE": "200", "FLUSH_INTERVAL": "500ms", "S3_TIMEOUT": "3s"}
    with Collector(folder / "collector", served, measured=False) as collector:
        load = Load(sent, collector.port, rate=RATE, connections=8).start()
        stored = 0.0
        for _ in range(KILLS):
            collector.wait_until(lambda seen, at=stored: seen.value("estat_events_stored_total") > at + 2000, 60)
            running.kill()
            collector.wait_until(lambda seen: seen.value("estat_store_up") == 0, 60)
            running.start()
            _make_bucket(store)
            stored = collector.metrics().value("estat_events_stored_total")
            collector.wait_until(lambda seen: seen.value("estat_store_up") == 1, 60)
        load.stop()
        collector.wait_delivered(DELIVERED_SECONDS)
        collector.stop(60)
    # What becomes of metadata has its own column, and the rest must not hang on it.
    return audit(sent, [StoredObject(found.key, found.data) for found in read_bucket(store.client, store.bucket)])


def _make_bucket(store: Store) -> None:
    """A server that listens may not be ready to do anything yet."""
    deadline = time.monotonic() + BUCKET_SECONDS
    while refused := store.make_bucket():
        if "BucketAlready" in refused:
            return
        assert time.monotonic() < deadline, f"it makes no bucket: {refused}"
        time.sleep(0.2)


def _compare(rows: list[Row], *, write: bool) -> int:
    """Hold the tables of the page against the rows; a server that is not installed keeps its line."""
    text = PAGE.read_text()
    said = {}
    for name, lines in (("first", [row.first() for row in rows]), ("second", [row.second() for row in rows])):
        begin, end = f"<!-- stores-{name}:begin -->\n", f"<!-- stores-{name}:end -->"
        before, rest = text.split(begin)
        table, after = rest.split(end)
        kept = table.splitlines()[:2]
        had = {line.split(" | ")[0]: line for line in table.splitlines()[2:]}
        now = {line.split(" | ")[0]: line for line in lines}
        said[name] = {key: (had.get(key), line) for key, line in now.items() if had.get(key) != line}
        new = sorted({**{key: line for key, line in had.items() if _stays(key, rows)}, **now}.items(), key=_place)
        text = before + begin + "\n".join([*kept, *(line for _, line in new)]) + "\n" + end + after
    if write:
        PAGE.write_text(text)
        return 0
    for differs in said.values():
        for was, is_now in differs.values():
            _say(f"docs/stores.md says {was}\n        it is now {is_now}")
    return 1 if any(said.values()) else 0


def _stays(key: str, rows: list[Row]) -> bool:
    return not any(key.removeprefix("| ").startswith(row.server.name) for row in rows)


def _place(row: tuple[str, str]) -> int:
    """Return where a server stands in the list."""
    return [row[0].removeprefix("| ").startswith(server.name) for server in SERVERS].index(True)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
