"""What `make try` runs: a server on a free port, 1,000 events, the objects that it stored, and one query over them.

Owns a temporary directory, in which the server has its store and its queue, and the server's process. Both are gone
when it ends, however it ends.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

EVENTS = 1_000
PLANS = ("free", "team", "company")
KEPT = ("PATH", "HOME", "LD_LIBRARY_PATH")
"""Variables without which Python itself may not start."""
REPOSITORY = Path(__file__).resolve().parent.parent
QUERY = """
  SELECT dt, hr, body ->> '$.event' AS event, body ->> '$.plan' AS plan, count(*) AS events
  FROM read_json('{objects}', format = 'newline_delimited', hive_partitioning = true,
    columns = {{ts: 'BIGINT', ip: 'VARCHAR', user_agent: 'VARCHAR', cookie: 'VARCHAR', body: 'VARCHAR'}})
  GROUP BY ALL ORDER BY ALL"""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="estat-ingest-") as name:
        folder = Path(name)
        log = folder / "log"
        with log.open("wb") as out:
            server = subprocess.Popen(
                [sys.executable, "-m", "ingest", "serve"],
                cwd=folder,
                env=environment(folder),
                stdout=out,
                stderr=out,
            )
        try:
            port = port_of(server, log)
            print(f"serving on 127.0.0.1:{port}, for now in {folder}")
            answered = send(port)
            print(f"{answered} of {EVENTS} events answered with 200")
            began = time.monotonic()
            server.terminate()
            ended = server.wait(40)
            print(f"stopped after {time.monotonic() - began:.2f} s, exit {ended}")
        finally:
            server.kill()
            server.wait()
        if ended != 0 or answered != EVENTS:
            print(log.read_text(), file=sys.stderr)
            return 1
        return show(folder / "objects")


def environment(folder: Path) -> dict[str, str]:
    """Return settings of its own, none of the caller's; three small batches instead of one."""
    return {
        **{name: os.environ[name] for name in KEPT if name in os.environ},
        "PYTHONPATH": str(REPOSITORY),
        "HTTP_ADDR": "127.0.0.1:0",
        "STORE_DIR": str(folder / "objects"),
        "DLQ_DIR": str(folder / "dlq"),
        "BATCH_SIZE": "400",
    }


def port_of(server: subprocess.Popen[bytes], log: Path) -> int:
    """Return the port that the server's `listening` line tells."""
    deadline = time.monotonic() + 30
    while server.poll() is None and time.monotonic() < deadline:
        for line in log.read_text().split("\n")[:-1]:
            if line.startswith("{") and (said := json.loads(line))["event"] == "listening":
                return int(said["port"])
        time.sleep(0.01)
    raise SystemExit(f"it does not listen:\n{log.read_text()}")


def send(port: int) -> int:
    """Send over one connection, each event waiting for its answer, as an ordinary client does."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    answered = 0
    for number in range(EVENTS):
        event = {"event": "signup", "id": number, "plan": PLANS[number % len(PLANS)]}
        connection.request("POST", "/collect", json.dumps(event), {"User-Agent": "make try"})
        answer = connection.getresponse()
        answer.read()
        answered += answer.status == 200
    connection.close()
    return answered


def show(objects: Path) -> int:
    """Show the objects by name and size, and the query; 1 if they do not hold every event."""
    found = sorted((objects / "raw").rglob("*.jsonl.gz"))
    print("\nobjects:")
    for path in found:
        print(f"  {path.relative_to(objects)}  {path.stat().st_size:,} bytes")
    query = QUERY.format(objects=objects / "raw/*/*/*.jsonl.gz")
    print(f"\nquery:{query.replace(str(objects), 'objects')}\n")
    result = duckdb.sql(query)
    result.show()
    total = sum(row[-1] for row in result.fetchall())
    print(f"{total} events in {len(found)} objects")
    return 0 if total == EVENTS else 1


if __name__ == "__main__":
    sys.exit(main())
