"""Micro-benchmarks of the partial scan: one step of 1,000 names, in hours that hold few and many files.

loadtest/recovery.py has the same at 1,000,000 files and after most were drained, with the files' headers and removal.
"""

import pytest

from ingest.disk import Filesystem
from ingest.spool.hours import Walk
from ingest.spool.letters import SCAN_LIMIT

HOUR = "raw/dt=2025-12-03/hr=00"


@pytest.mark.parametrize("files", [10, 1_000, 50_000])
def bench_step(benchmark, tmp_path, files):
    folder = tmp_path / HOUR
    folder.mkdir(parents=True)
    for number in range(files):
        (folder / f"1764721594_host-0123456789abcdef_{number:010}.jsonl.gz").touch()

    walks = []

    def new_walk():
        walks.append(Walk(Filesystem(), [folder], lambda _: tmp_path))
        return (walks[-1],), {}

    def step(walk):
        return walk.step(SCAN_LIMIT)

    chunk = benchmark.pedantic(step, setup=new_walk, rounds=50)
    for walk in walks:
        walk.close()
    assert len(chunk.paths) == min(files, SCAN_LIMIT)
