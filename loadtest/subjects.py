"""What is measured, and how each is started: the collector in its modes, the floor, the peers.

Every subject runs alone on one core (the generator has another), inside a CPU limit of its own, as a fresh process with
the interpreter that runs the benchmark. It is up when it has answered an event with 200.
"""

import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from limits import open_limit

HERE = Path(__file__).resolve().parent
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE = {CORES[0]}
GENERATOR_CORE = {CORES[-1]}
PROBE = b"POST /collect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


@dataclass(frozen=True)
class Subject:
    name: str
    title: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    ours: bool = False
    unparsed: bool = False
    """Has to be told when a read is not one event."""
    context: ssl.SSLContext | None = None
    """With what it is asked, if it speaks TLS."""


def _collector(name, title, durability, **more):
    return Subject(
        name,
        title,
        (sys.executable, "-m", "ingest", "serve"),
        (("DURABILITY", durability), ("LOG_LEVEL", "warning"), *more.items()),
        ours=True,
    )


def _peer(name, title, file):
    return Subject(name, title, (sys.executable, str(HERE / "peers" / file), "@PORT@"))


S3 = {
    "RAW_BUCKET": "bench",
    "AWS_REGION": "us-east-1",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:@S3_PORT@",
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench-secret",
}
FLOOR = Subject("floor", "floor (fixed bytes)", (sys.executable, str(HERE / "floor.py"), "@PORT@"), unparsed=True)
MEMORY = _collector("memory", "collector, memory", "memory")
JOURNAL = _collector("journal", "collector, journal", "journal")
FSYNC = _collector("fsync", "collector, fsync", "fsync")
JOURNAL_S3 = _collector("journal-s3", "collector, journal, S3", "journal", **S3)
TWO_WORKERS = _collector("journal-2", "collector, journal, 2 workers", "journal", WORKERS="2")
STARLETTE = _peer("starlette", "Starlette on uvicorn", "starlette_uvicorn.py")
PEERS = [
    STARLETTE,
    _peer("fastapi", "FastAPI on uvicorn", "fastapi_uvicorn.py"),
    _peer("blacksheep", "BlackSheep on uvicorn", "blacksheep_app.py"),
    _peer("aiohttp", "aiohttp on uvloop", "aiohttp_app.py"),
    _peer("granian", "Granian (RSGI)", "granian_rsgi.py"),
]
NGINX = Subject("nginx", "nginx, gzip access log", ("nginx", "-c", "@DIR@/nginx.conf"))


class Running:
    """A subject that has been started and has answered; ended by `end`, or at the end of a `with`."""

    def __init__(self, subject, folder, *, share=None, s3_port=0, kind="plain", tree=HERE.parent):
        """`kind`: of the floor, which has to be told what it reads; `tree`: the checkout that the collector is of."""
        self.subject = subject
        self.port = free_port()
        self.folder = folder / f"{subject.name}-{self.port}"
        self.folder.mkdir(parents=True)
        fill = {"@PORT@": str(self.port), "@DIR@": str(self.folder), "@S3_PORT@": str(s3_port)}
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAW_", "DLQ_", "OTEL_"))
        }
        if subject.ours:
            environment |= {
                "HTTP_ADDR": f"127.0.0.1:{self.port}",
                "STORE_DIR": str(self.folder / "objects"),
                "DLQ_DIR": str(self.folder / "dlq"),
                "PYTHONPATH": str(tree),
                **{name: _filled(value, fill) for name, value in subject.environment},
            }
        if subject is NGINX:
            self.folder.chmod(0o777)
            (self.folder / "collect").touch()
            (self.folder / "nginx.conf").write_text(_filled((HERE / "peers" / "nginx.conf").read_text(), fill))
            environment["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin"
        command = [_filled(word, fill) for word in subject.command]
        if subject.unparsed:
            command.append(kind)
        self.output = (self.folder / "output").open("wb")
        self.limit = open_limit(f"{subject.name}-{self.port}")
        self.limit.set_cpu(share)
        self.started = time.monotonic()
        self.process = self.limit.start(
            command,
            cores=SERVER_CORE,
            cwd=self.folder,
            env=environment,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        try:
            self.first_answer = self._wait_for_answer()
        except BaseException:
            self.end()
            raise

    def _wait_for_answer(self):
        while time.monotonic() < self.started + 30:
            if self.process.poll() is not None:
                break
            with suppress(OSError), self._connect() as connection:
                connection.sendall(PROBE)
                if b" 200 " in connection.recv(64):
                    self.acknowledged = 1
                    return time.monotonic() - self.started
            time.sleep(0.002)
        raise RuntimeError(f"{self.subject.name} did not answer: {(self.folder / 'output').read_text()[-2000:]}")

    def _connect(self):
        connection = socket.create_connection(("127.0.0.1", self.port), 5)
        return connection if self.subject.context is None else self.subject.context.wrap_socket(connection)

    def end(self):
        self.limit.end()
        self.process.wait()
        self.output.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


def start_sink(keep=None, port=None):
    """The S3 sink, on the generator's core: what it spends is not the collector's."""
    port = port or free_port()
    command = [sys.executable, str(HERE / "s3_sink.py"), str(port), *(["--keep", str(keep)] if keep else [])]
    process = subprocess.Popen(command, preexec_fn=lambda: os.sched_setaffinity(0, GENERATOR_CORE))
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return process, port
        time.sleep(0.02)
    process.kill()
    raise RuntimeError("the S3 sink did not come up")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _filled(text, fill):
    for mark, value in fill.items():
        text = text.replace(mark, value)
    return text
