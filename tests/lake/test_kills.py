"""`compact` killed at each of its steps, while a reader reads through the pointer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.lake.dying import POINTS
from tests.lake.hour import HOUR, numbered, numbers, pointer, put
from tests.process.collector import bare_environment

QUICK = ("part_put", "published")
KILLS = 5
DAYS_AGO = time.time() - 49 * 3600


def run(folder, *words):
    return subprocess.run(
        [sys.executable, "-m", *words, "--hour", HOUR],
        cwd=folder,
        env=bare_environment(
            {"STORE_DIR": str(folder / "objects"), "MANIFESTS": "false", "TMPDIR": str(folder / "scratch")}
        ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class Reader:
    """Reads the hour again and again; keeps every answer that differs from the last."""

    def __init__(self, store_dir):
        self.seen = []
        self.reads = 0
        self._store_dir = store_dir
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    def _read(self):
        while not self._done.is_set():
            try:
                found = numbers(self._store_dir)
            except Exception as error:  # noqa: BLE001 - whatever a reader meets is told
                found = repr(error)
            self.reads += 1
            if found not in self.seen:
                self.seen.append(found)


def leave_old_parts(objects, kill):
    """Make the generation old, and beside it what two runs left that were killed."""
    path = objects / "raw_parquet/_hours" / f"{HOUR}.json"
    aged = path.with_suffix(".aged")
    aged.write_bytes(json.dumps(pointer(objects) | {"published": int(DAYS_AGO)}).encode())
    os.utime(aged, (DAYS_AGO, DAYS_AGO))
    aged.rename(path)
    for name in ("a", "b"):
        orphan = objects / f"raw_parquet/_parts/{name}{kill:015d}/2025-12-02-14/part-00000.parquet"
        orphan.parent.mkdir(parents=True)
        orphan.write_bytes(b"of a run that was killed")
        os.utime(orphan, (DAYS_AGO, DAYS_AGO))


@pytest.mark.parametrize(
    ("point", "kills"),
    [
        *(pytest.param(point, 1, id=point) for point in QUICK),
        *(
            pytest.param(point, KILLS, id=f"{point}, {KILLS} times", marks=pytest.mark.proof)
            for point in POINTS
            if "commit" not in point
        ),
    ],
)
def test_a_kill_leaves_the_old_hour_or_the_new_one_and_the_next_run_ends_it(tmp_path, point, kills):
    objects = tmp_path / "objects"
    (tmp_path / "scratch").mkdir()
    put(objects, 0, numbered(0, 10))
    assert run(tmp_path, "ingest", "compact").returncode == 0
    sweeping = point in ("sweep_begins", "swept_one")
    allowed = [list(range(10))]
    with Reader(objects) as reader:
        for kill in range(1, kills + 1):
            if sweeping:
                leave_old_parts(objects, kill)
            else:
                put(objects, kill, numbered(kill * 10, 10))
                allowed.append(list(range((kill + 1) * 10)))
            nth = kill if point in ("head_read", "fetched") else 1
            died = run(tmp_path, "tests.lake.dying", point, str(nth), "compact")
            assert died.returncode == -signal.SIGKILL, died.stderr
            assert numbers(objects) in allowed
        ended = run(tmp_path, "ingest", "compact")
    assert ended.returncode == 0, ended.stderr
    assert numbers(objects) == allowed[-1]
    assert list((tmp_path / "scratch").iterdir()) == []
    assert reader.reads > 1
    assert all(seen in allowed for seen in reader.seen), reader.seen
    if sweeping:
        left = {path.relative_to(objects).as_posix() for path in (objects / "raw_parquet/_parts").rglob("*.parquet")}
        assert left == {part["key"] for part in pointer(objects)["parts"]}
