"""Whatever a command meets outside, and an interrupt, is one line and an exit code, never a traceback."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.process.collector import bare_environment


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("check", 1),
        ("dlq ls", 1),
        ("dlq ls --json", 1),
        ("--help", 1),
        ("reconcile --hour dt=2026-11-25/hr=14", os.EX_UNAVAILABLE),
    ],
)
def test_an_output_that_takes_nothing_is_one_line(tmp_path, command, code):
    for name in ("objects", "dlq"):
        (tmp_path / name).mkdir()
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "ingest", *command.split()],
            env=bare_environment({"STORE_DIR": str(tmp_path / "objects"), "DLQ_DIR": str(tmp_path / "dlq")}),
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == code
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("warning: ")]
    assert lines == ["No space left on device; the output may not be whole"]


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    "env",
    [{"BATCH_SIZE": "x"}, {"HTTP_ADDR": "192.0.2.1:80"}, {"DLQ_DIR": "/proc/none"}, {"ADMIN_ADDR": "unix:/none/x"}],
)
def test_a_start_that_fails_has_its_exit_code_though_nobody_can_be_told(tmp_path, env, workers):
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "ingest", "serve"],
            env=bare_environment({"HTTP_ADDR": "127.0.0.1:0", "WORKERS": workers, **env}),
            cwd=tmp_path,
            stdout=full,
            stderr=full,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 2


@pytest.mark.parametrize("command", ["health", "status"])
def test_a_question_to_a_server_that_hangs_is_interrupted_in_one_line(tmp_path, command):
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "ingest", command],
            env=bare_environment({"HTTP_ADDR": f"127.0.0.1:{server.getsockname()[1]}"}),
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        server.settimeout(30)
        asked, _ = server.accept()
        with asked:
            asked.recv(1)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "interrupted\n")
