"""What `make api` runs: schemathesis over docs/openapi.yaml, against a real server for each kind of settings.

Owns one server at a time, in a temporary directory, on a port of its own. It ends with 1 if an answer is none that the
description allows, or if an event that was taken is not stored once. What a request must be like to be taken is
described for a server without settings, and asked of that one alone.
"""

from __future__ import annotations

import gzip
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.process.collector import REPOSITORY, Collector

DESCRIPTION = REPOSITORY / "docs" / "openapi.yaml"
EXAMPLES = "100"
SETTINGS: dict[str, dict[str, str]] = {
    "as it comes": {},
    "small limits": {"MAX_BODY_SIZE": "64", "MAX_HEADER_BYTES": "2KiB"},
    "JSON bodies": {"BODY_FORMAT": "json"},
    "synced": {"DURABILITY": "fsync"},
}


def main() -> int:
    return max(run(name, env) for name, env in SETTINGS.items())


def run(name: str, env: dict[str, str]) -> int:
    say(f"{name}: {' '.join(f'{key}={value}' for key, value in env.items()) or 'no variable is set'}")
    with tempfile.TemporaryDirectory(prefix="estat-ingest-") as folder, Collector(Path(folder), env) as server:
        found = subprocess.call(
            [
                *(Path(sys.executable).with_name("schemathesis"), "run", DESCRIPTION, "--url", server.url),
                # One worker: CPython 3.11 may lose count of the depth of a schema that two threads draw from.
                *("--checks", "all", "--max-examples", EXAMPLES, "--workers", "1", "--warnings", "off", "--no-color"),
                *(("--exclude-checks", "positive_data_acceptance,negative_data_rejection") if env else ()),
            ],
            cwd=folder,
        )
        accepted = int(server.metrics().value("estat_events_accepted_total"))
        server.stop()
        objects = Path(folder, "data", "objects").rglob("*.jsonl.gz")
        stored = sum(gzip.decompress(path.read_bytes()).count(b"\n") for path in objects)
        say(f"{name}: schemathesis ended with {found}; events accepted {accepted}, stored {stored}")
        return 1 if found or accepted != stored else 0


def say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
