"""Too low a limit on open files: one line and no process; a limit that may be raised is raised."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from ingest.__main__ import LEAST_DESCRIPTORS
from tests.process.collector import SERVE, bare_environment
from tests.stand_ins.s3_server import CREDENTIALS

COMMANDS = {
    "serve": 2,
    "check": 2,
    "health": 2,
    "status": 2,
    "dlq ls": 2,
    "compact --hour dt=2026-11-25/hr=14": os.EX_USAGE,
    "reconcile --hour dt=2026-11-25/hr=14": os.EX_USAGE,
}


@pytest.mark.parametrize("workers", ["1", "8"])
@pytest.mark.parametrize("most", [6, 20, LEAST_DESCRIPTORS - 1])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_process_that_may_open_too_few_files_says_so_in_one_line(tmp_path, command, most, workers):
    ended = subprocess.run(
        [sys.executable, "-m", "ingest", *command.split()],
        env=bare_environment({"WORKERS": workers, "HTTP_ADDR": "127.0.0.1:0"}),
        cwd=tmp_path,
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_NOFILE, (most, most)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == COMMANDS[command]
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"RLIMIT_NOFILE: expected at least {LEAST_DESCRIPTORS}, got {most}: ")
    assert list(tmp_path.iterdir()) == []


def test_a_limit_that_may_be_raised_is_raised_and_half_of_the_least_suffices_an_idle_collector(collectors, s3_process):
    s3_process.start("estat-raw-data")
    s3 = {
        "RAW_BUCKET": "estat-raw-data",
        "AWS_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL": s3_process.url,
        "WORKERS": "2",
        **CREDENTIALS,
    }
    collector = collectors(s3, command=SERVE, prefix=["prlimit", f"--nofile=20:{LEAST_DESCRIPTORS}"]).start()
    collector.wait_until(lambda metrics: metrics.value("estat_store_up") == 1)
    children = Path(f"/proc/{collector.pid}/task/{collector.pid}/children").read_text().split()
    assert len(children) == 2
    for pid in (collector.pid, *children):
        assert len(list(Path(f"/proc/{pid}/fd").iterdir())) <= LEAST_DESCRIPTORS // 2
    collector.stop()
