"""A system that gives no more threads: told in one line at the start, and no matter to a server that has its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ingest.threads import NoThreadError
from tests.process.client import Sent, send
from tests.process.collector import REPOSITORY, SERVE, bare_environment
from tests.process.ledger import audit, read_directory

ANOTHER = str(54321 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")))
"""A user for whom the limit holds, which it does not for root; nobody else's, because all of a user's threads count."""
IS_ROOT = os.geteuid() == 0
AS_ANOTHER = ["setpriv", "--reuid", ANOTHER, "--regid", ANOTHER, "--clear-groups"] if IS_ROOT else []


def _may_be_read(path):
    return all(one.stat().st_mode & 0o5 == 0o5 for one in (path, *path.parents))


pytestmark = pytest.mark.skipif(
    IS_ROOT
    and not (shutil.which("setpriv") and all(map(_may_be_read, (REPOSITORY, Path(sys.executable).resolve().parent)))),
    reason="no other user can be had who may read the repository",
)


@pytest.fixture
def folder():
    """A folder that another user may write, below no folder of pytest's, which are its user's alone."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.mark.parametrize("durability", ["memory", "journal", "fsync"])
def test_a_server_that_gets_no_thread_any_more_goes_on_and_drains(collectors, folder, durability):
    env = {"DURABILITY": durability, "BATCH_SIZE": "50", "FLUSH_INTERVAL": "500ms"}
    collector = collectors(env, folder=folder, prefix=AS_ANOTHER, command=SERVE, measured=False).start()
    subprocess.run([*AS_ANOTHER, "prlimit", "--pid", str(collector.pid), "--nproc=1:1"], check=True, timeout=20)
    sent = Sent()
    send(sent, collector.port, 500)
    collector.wait_delivered()
    send(sent, collector.port, 60)
    collector.stop(20)
    assert audit(sent, read_directory(folder / "data/objects")).assert_kept().stored == 560
    assert collector.said("failed") == collector.said("unhandled") == []


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("most", [1, 2, 5] if IS_ROOT else [1])
def test_a_start_without_threads_is_one_line(collectors, folder, most, workers):
    env = {"WORKERS": workers, "ADMIN_ADDR": "127.0.0.1:0", "DLQ_MAX_SIZE_BYTES": "16MiB", "DISK_RESERVE": "0"}
    limited = [*AS_ANOTHER, "prlimit", f"--nproc={most}:{most}"]
    collector = collectors(env, folder=folder, prefix=limited, command=SERVE, measured=False).spawn()
    assert collector.wait(30) == 2, collector.tail()
    told = [line["raw"] for line in collector.logs() if "raw" in line]
    assert told, collector.tail()
    assert all(line.startswith(("RLIMIT_NPROC: the system starts no more threads", "WORKERS: ")) for line in told)


@pytest.mark.parametrize(
    "command", ["check --store", "dlq verify", "dlq replay", "dlq export out", "reconcile --hour dt=2026-11-25/hr=14"]
)
def test_a_command_without_threads_is_one_line(folder, command):
    for name in ("objects", "dlq"):
        (folder / name).mkdir()
        (folder / name).chmod(0o777)
    env = {"STORE_DIR": str(folder / "objects"), "DLQ_DIR": str(folder / "dlq"), "DISK_RESERVE": "0"}
    ended = subprocess.run(
        [*AS_ANOTHER, "prlimit", "--nproc=1:1", sys.executable, "-m", "ingest", *command.split()],
        env=bare_environment(env, measured=False),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("warning: ")]
    assert ended.returncode == 2
    assert lines == [str(NoThreadError())]
