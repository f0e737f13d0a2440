"""What it costs to make an hour into Parquet, and what a query costs before and after.

    python loadtest/lake.py FOLDER [--engines duckdb spark] [--objects 30 60 120 240] [--events 5000]

An hour has so many objects of 5,000 events, each event with a body of its own of some 300 bytes. `estat-ingest compact`
runs as a process of its own over a directory store: seconds and CPU are of the whole process, start included; MiB is
its peak, Spark's Java with it. After each run the rows are counted by number: acknowledged (what was laid), lines of
the raw objects, rows of the Parquet files, and, if PyIceberg is there, rows that its scan finds. The query groups by a
field of the body, over the raw objects and over the Parquet files that the pointer names. It prints one JSON object.
"""

import argparse
import gzip
import importlib.util
import json
import os
import random
import resource
import shutil
import string
import subprocess
import sys
import time
from pathlib import Path

from ingest.format import codec

ROOT = Path(__file__).resolve().parent.parent
HOUR = "dt=2025-12-02/hr=14"
BEGIN = 1_764_684_000
MIB = 1024 * 1024
POOL = "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=1 << 20))
AGENTS = [
    f"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML) Chrome/{n}.0.0.0 Safari/537.36" for n in range(90)
]
PAGES = ["home", "list", "product", "cart", "paid"]


def lay(store, objects, events):
    """Put an hour into a directory store; return how many events it has."""
    folder = store / "raw" / HOUR
    folder.mkdir(parents=True)
    number = 0
    for sequence in range(objects):
        lines = []
        for _ in range(events):
            noise = POOL[(number * 7919) % (len(POOL) - 160) :][:160]
            body = json.dumps(
                {"n": number, "event": PAGES[number % 5], "url": f"https://shop.example/p/{number}", "x": noise}
            )
            line = {
                "ts": BEGIN + number % 3600,
                "ip": f"203.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}",
                "user_agent": AGENTS[number % len(AGENTS)],
                "cookie": f"sid={noise[:16]}",
                "body": body,
            }
            lines.append(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            number += 1
        name = f"{BEGIN + sequence}_bench-0123456789abcdef_{sequence + 1:010d}.jsonl.gz"
        (folder / name).write_bytes(codec.encode(b"".join(lines), events))
    return number


def compact(folder, *words):
    """Run it; return seconds, CPU seconds and MiB of the process with its children."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "STORE_DIR": str(folder / "objects"),
        "TMPDIR": str(folder / "scratch"),
        "MANIFESTS": "false",
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYICEBERG_CATALOG__DEFAULT__URI": f"sqlite:///{folder}/catalog.db",
        "PYICEBERG_CATALOG__DEFAULT__WAREHOUSE": (folder / "warehouse").as_uri(),
    }
    command = [sys.executable, "-m", "ingest", "compact", "--hour", HOUR, "--json", *words]
    began = time.perf_counter()
    with (folder / "stderr").open("wb") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors)
        peak, spent = 0, {}
        while process.poll() is None:
            resident = 0
            for pid, size, ticks in _tree(process.pid):
                resident += size
                spent[pid] = ticks
            peak = max(peak, resident)
            time.sleep(0.02)
        told = process.stdout.read()
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit((folder / "stderr").read_text())
    (row,) = json.loads(told)["hours"]
    return {
        "seconds": seconds,
        "cpu_seconds": sum(spent.values()) / os.sysconf("SC_CLK_TCK"),
        "mib": peak / MIB,
        "rows": row["rows"],
        "bytes": row["bytes"],
        "parts": len(row["parts"]),
        "within": row["seconds"],
    }


def _tree(pid):
    """Yield number, resident bytes and ticks of CPU of a process and of those it started, Spark's Java too."""
    pending = [pid]
    while pending:
        one = pending.pop()
        try:
            size = int(Path(f"/proc/{one}/statm").read_text().split()[1]) * resource.getpagesize()
            user, system = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[11:13]
            for task in Path(f"/proc/{one}/task").iterdir():
                pending += map(int, (task / "children").read_text().split())
        except OSError:
            continue
        yield one, size, int(user) + int(system)


def parts_of(store):
    pointer = json.loads((store / "raw_parquet/_hours" / f"{HOUR}.json").read_bytes())
    return [str(store / part["key"]) for part in pointer["parts"]]


def query(source):
    """Return the seconds of the same question, the best of three, and the answer."""
    import duckdb

    best = None
    for _ in range(3):
        with duckdb.connect(config={"threads": 2}) as connection:
            began = time.perf_counter()
            answer = connection.execute(
                f"SELECT body ->> '$.event' AS event, count(*), sum(CAST(body ->> '$.n' AS BIGINT)) FROM {source} "
                "GROUP BY ALL ORDER BY ALL"
            ).fetchall()
            seconds = time.perf_counter() - began
        best = seconds if best is None else min(best, seconds)
    return best, answer


def raw_lines(store):
    return sum(gzip.decompress(path.read_bytes()).count(b"\n") for path in (store / "raw" / HOUR).iterdir())


def scanned(folder):
    """Count what PyIceberg's scan finds, by number."""
    from pyiceberg.catalog import load_catalog

    catalog = load_catalog("default", uri=f"sqlite:///{folder}/catalog.db", warehouse=(folder / "warehouse").as_uri())
    rows, distinct = 0, set()
    for batch in catalog.load_table("estat.events").scan(selected_fields=("body",)).to_arrow_batch_reader():
        bodies = batch.column("body").to_pylist()
        rows += len(bodies)
        distinct.update(json.loads(body)["n"] for body in bodies)
    return rows, len(distinct)


def measure(folder, objects, events, engines, *, tables):
    import duckdb

    shutil.rmtree(folder, ignore_errors=True)
    for name in ("objects", "scratch", "warehouse"):
        (folder / name).mkdir(parents=True)
    store = folder / "objects"
    acknowledged = lay(store, objects, events)
    raw_bytes = sum(path.stat().st_size for path in (store / "raw" / HOUR).iterdir())
    result = {"objects": objects, "acknowledged": acknowledged, "raw_bytes": raw_bytes, "lines": raw_lines(store)}
    for engine in engines:
        words = ["--engine", engine, *(["--master", "local[2]"] if engine == "spark" else [])]
        (store / "raw_parquet/_hours" / f"{HOUR}.json").unlink(missing_ok=True)
        one = result[engine] = compact(folder, *words)
        print(f"{objects} objects, {engine}: {one}", file=sys.stderr, flush=True)
        with duckdb.connect() as connection:
            counted = connection.execute(
                "SELECT count(*), count(DISTINCT body ->> '$.n') FROM read_parquet($parts)", {"parts": parts_of(store)}
            ).fetchone()
        one["counted"], one["distinct"] = counted
        if tables:
            for path in (folder / "catalog.db", folder / "warehouse"):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            (folder / "warehouse").mkdir()
            one["iceberg"] = compact(folder, *words, "--table", "iceberg")
            one["scanned"], one["scanned_distinct"] = scanned(folder)
    one = result["duckdb"]
    began = time.perf_counter()
    compact(folder)
    one["again_seconds"] = time.perf_counter() - began
    columns = "{ts: 'BIGINT', ip: 'VARCHAR', user_agent: 'VARCHAR', cookie: 'VARCHAR', body: 'VARCHAR'}"
    before, answer = query(f"read_json('{store}/raw/*/*/*.jsonl.gz', format='newline_delimited', columns={columns})")
    after, same = query(f"read_parquet({parts_of(store)})")
    assert answer == same
    result["query"] = {"before": before, "after": after}
    shutil.rmtree(folder)
    return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engines", nargs="+", default=["duckdb", "spark"], choices=["duckdb", "spark"])
    parser.add_argument("--objects", nargs="+", type=int, default=[30, 60, 120, 240])
    parser.add_argument("--events", type=int, default=5000)
    arguments = parser.parse_args()
    engines = [name for name in arguments.engines if name == "duckdb" or importlib.util.find_spec("pyspark")]
    tables = importlib.util.find_spec("pyiceberg") is not None
    rows = [
        measure(arguments.folder / "lake", objects, arguments.events, engines, tables=tables)
        for objects in arguments.objects
    ]
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
