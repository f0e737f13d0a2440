"""A real S3-speaking server, as a process of its own, for tests and for scripts.

    with running_s3_server() as endpoint:
        ...

`s3_server` is one such server for a whole pytest worker, `bucket` a fresh bucket in it, with credentials for it in the
environment. What is stored is gone when the process stops.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

REGION = "us-east-1"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
START_TIMEOUT = 30.0
MOTO_SERVER = [sys.executable, "-P", str(Path(__file__).with_name("moto_server.py"))]

_direct = build_opener(ProxyHandler({}))


@contextmanager
def running_s3_server() -> Iterator[str]:
    """Start a server on a free port of the loopback, wait until it answers, and stop it in the end."""
    # Bound but not listening: the number stays ours between finding it and the server's own bind.
    with socket.socket() as guard:
        guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        guard.bind(("127.0.0.1", 0))
        port = guard.getsockname()[1]
        process = subprocess.Popen(
            [*MOTO_SERVER, "-H", "127.0.0.1", "-p", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            endpoint = f"http://127.0.0.1:{port}"
            _wait_until_it_answers(process, endpoint)
            yield endpoint
        finally:
            process.kill()
            process.wait()


def make_bucket(endpoint: str, name: str) -> None:
    """Make a bucket; the server asks for no signature."""
    _direct.open(Request(f"{endpoint}/{name}", method="PUT"), timeout=10).close()


def _wait_until_it_answers(process: subprocess.Popen[bytes], endpoint: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            _direct.open(f"{endpoint}/moto-api/", timeout=5).close()
        except (URLError, OSError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the S3 server did not start (exit {process.poll()})") from error
            time.sleep(0.05)
        else:
            return


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Yield the endpoint of a server that lives as long as this worker."""
    with running_s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a fresh bucket; credentials that reach it, and no others, are in the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    name = f"bucket-{secrets.token_hex(6)}"
    make_bucket(s3_server, name)
    return name
