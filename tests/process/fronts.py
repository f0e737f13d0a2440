"""What stands before a collector in production, as real processes: nginx and HAProxy.

Owns one process in one folder, on a free port of loopback. A test that needs a program which is not installed is
skipped, and says so.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import pytest

if TYPE_CHECKING:
    from pathlib import Path

PATHS = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin:/usr/local/bin"


def program(name: str) -> str:
    """Return where a program is, or skip the test."""
    found = shutil.which(name, path=PATHS)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Front:
    """A process that listens on `port`, from `with` until its end."""

    def __init__(self, folder: Path, port: int, command: list[str], host: str = "127.0.0.1") -> None:
        self.port = port
        self._host = host
        self._command = command
        self._output = folder / "output"
        self._folder = folder

    def __enter__(self) -> Self:
        with self._output.open("wb") as out:
            self._process = subprocess.Popen(self._command, cwd=self._folder, stdout=out, stderr=out)
        until = time.monotonic() + 20
        while True:
            assert self._process.poll() is None, self._output.read_text()
            with suppress(OSError), socket.create_connection((self._host, self.port), 1):
                return self
            assert time.monotonic() < until, self._output.read_text()
            time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr warn;
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  client_body_buffer_size 128k;
  upstream collector {{ server 127.0.0.1:{to}; {upstream} }}
  keepalive_requests 100000;
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://collector; {location} }} }}
}}
"""
POOL = "keepalive 8; keepalive_requests 100000;"
KEPT = 'proxy_http_version 1.1; proxy_set_header Connection "";'


def nginx(folder: Path, to: int, *, upstream: str = "", location: str = "") -> Front:
    """As it comes it forwards as HTTP/1.0, a connection each request; with `POOL` and `KEPT` it keeps eight."""
    found = program("nginx")
    folder.mkdir()
    folder.chmod(0o777)  # its workers are another user
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, to=to, port=port, upstream=upstream, location=location))
    return Front(folder, port, [found, "-p", str(folder), "-e", "stderr", "-c", str(config)])


HAPROXY = """
defaults
  mode {mode}
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend in
  bind 127.0.0.1:{port}
  default_backend collector
backend collector
  server collector 127.0.0.1:{to} {server}
"""


def haproxy(folder: Path, to: int, *, mode: str = "tcp", server: str = "send-proxy-v2") -> Front:
    """Pass bytes on behind a PROXY protocol header."""
    found = program("haproxy")
    folder.mkdir()
    port = free_port()
    config = folder / "haproxy.cfg"
    config.write_text(HAPROXY.format(mode=mode, port=port, to=to, server=server))
    return Front(folder, port, [found, "-db", "-f", str(config)])
