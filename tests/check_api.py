"""What `make api` runs: schemathesis over docs/openapi.yaml, against a real server for each kind of settings.

Owns one server at a time, in a temporary directory, on a port of its own. It ends with 1 if an answer is none that the
description allows, if an event that was taken is not stored once, or if nothing was refused for what the settings are
to refuse. What a request must be like to be taken is described for a server without settings, and asked of that one
alone.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ingest.event.sdks import SDKS
from tests.process.collector import REPOSITORY, Collector

if TYPE_CHECKING:
    from collections.abc import Mapping

DESCRIPTION = REPOSITORY / "docs" / "openapi.yaml"
EXAMPLES = "100"
KEYS = {"WRITE_KEYS": "shop:made-up-and-long-enough"}


class Case(NamedTuple):
    """A server, and what every request to it has."""

    env: Mapping[str, str]
    header: str = ""
    refused: str = ""
    """The reason for which some events must have been refused."""
    sdks: bool = False
    """Whether the paths of SDKs are asked too, which are most of all."""


CASES = {
    "as it comes": Case({}, sdks=True),
    "small limits": Case({"MAX_BODY_SIZE": "64", "MAX_HEADER_BYTES": "2KiB"}, refused="body_too_large", sdks=True),
    "JSON bodies": Case({"BODY_FORMAT": "json"}, refused="not_json"),
    "synced": Case({"DURABILITY": "fsync"}),
    "a key that is known": Case(KEYS, header="X-Write-Key: made-up-and-long-enough"),
    "no key, or another": Case(KEYS, refused="bad_key", sdks=True),
    "a limit": Case({"RATE_LIMIT": "20/s"}, refused="rate_limited"),
    "a list of origins": Case(
        {"CORS_ORIGINS": "https://shop.example"}, header="Origin: https://another.example", refused="bad_origin"
    ),
    "all that hides": Case(
        {
            "IP_MODE": "mask",
            "COOKIES": "session",
            "RESPECT_GPC": "true",
            "EXTRA_HEADERS": "content-type,x-*",
            "TS_MS": "true",
        }
    ),
}


def main() -> int:
    return max(run(name, case) for name, case in CASES.items())


def run(name: str, case: Case) -> int:
    env = {"SDK_ROUTES": ",".join(SDKS), **case.env}
    say(
        f"{name}: {' '.join(f'{key}={value}' for key, value in case.env.items()) or 'no variable is set'} {case.header}"
    )
    with tempfile.TemporaryDirectory(prefix="estat-ingest-") as folder, Collector(Path(folder), env) as server:
        found = subprocess.call(
            [
                *(Path(sys.executable).with_name("schemathesis"), "run", DESCRIPTION, "--url", server.url),
                # One worker: CPython 3.11 may lose count of the depth of a schema that two threads draw from.
                *("--checks", "all", "--max-examples", EXAMPLES, "--workers", "1", "--warnings", "off", "--no-color"),
                *(("--exclude-checks", "positive_data_acceptance,negative_data_rejection") if case.env else ()),
                *(("--header", case.header) if case.header else ()),
                *(() if case.sdks else ("--exclude-tag", "sdks")),
            ],
            cwd=folder,
        )
        seen = server.metrics()
        accepted = json.loads(server.get("/status"))["accepted"]  # the figures of now: a scrape may be a second old
        refused = int(seen.value("estat_requests_rejected_total", reason=case.refused)) if case.refused else 0
        server.stop()
        objects = Path(folder, "data", "objects").rglob("*.jsonl.gz")
        stored = sum(gzip.decompress(path.read_bytes()).count(b"\n") for path in objects)
        say(f"{name}: schemathesis ended with {found}; events accepted {accepted}, stored {stored}, refused {refused}")
        return 1 if found or accepted != stored or bool(refused) is not bool(case.refused) else 0


def say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
