"""An hour as collectors leave it: objects of real lines in a directory store, and what readers find of them."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import orjson

from ingest.format import codec

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

HOUR = "dt=2025-12-02/hr=14"
BEGIN = 1_764_684_000
END = BEGIN + 3600
AFTER = END + 3600.0
"""A time at which the hour is long over."""


def key(number: int, hour: str = HOUR, prefix: str = "raw") -> str:
    return f"{prefix}/{hour}/{BEGIN}_host-0123456789abcdef_{number:010d}.jsonl.gz"


def line(body: bytes, number: int = 0, more: bytes = b"") -> bytes:
    """A line whose `body` is these bytes of JSON, with members that come before it."""
    return b'{"ts":%d,"ip":"203.0.113.7","user_agent":"a \\"b\\" \xc3\xa9 ,\\"body\\":1","cookie":""%s,"body":%s}\n' % (
        BEGIN + number,
        b"," + more if more else b"",
        body,
    )


def text_line(body: str, number: int = 0, more: bytes = b"") -> bytes:
    return line(orjson.dumps(body), number, more)


def put(store_dir: Path, number: int, lines: Iterable[bytes], hour: str = HOUR) -> str:
    """Store one object, as a collector's put would be found; return its key."""
    lines = list(lines)
    path = store_dir / key(number, hour)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(codec.encode(b"".join(lines), len(lines)))
    return key(number, hour)


def numbered(first: int, count: int) -> list[bytes]:
    """Lines of which each has its own number in its body."""
    return [text_line(json.dumps({"n": number}), number) for number in range(first, first + count)]


def pointer(store_dir: Path, hour: str = HOUR) -> dict | None:
    path = store_dir / "raw_parquet/_hours" / f"{hour}.json"
    return json.loads(path.read_bytes()) if path.exists() else None


def rows(store_dir: Path, columns: str = "body", hour: str = HOUR) -> list[tuple]:
    """Read an hour as the docs say: through its pointer."""
    import duckdb

    told = pointer(store_dir, hour)
    parts = [str(store_dir / part["key"]) for part in told["parts"]]
    if not parts:
        return []
    with duckdb.connect() as connection:
        return connection.execute(f"SELECT {columns} FROM read_parquet($parts)", {"parts": parts}).fetchall()


def numbers(store_dir: Path) -> list[int]:
    return sorted(json.loads(body)["n"] for (body,) in rows(store_dir))


def all_bytes(count: int = 256) -> str:
    return base64.b64encode(bytes(range(count))).decode()


def settings_of(folder: Path) -> dict[str, str]:
    """The environment of a run over `folder / "objects"`, where nobody keeps manifests."""
    return {"STORE_DIR": str(folder / "objects"), "MANIFESTS": "false", "TMPDIR": str(folder / "scratch")}
