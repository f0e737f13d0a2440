"""A process is gone in time whatever hangs, and hears the signals it should hear, from its first moment on."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.process.client import Load, Sent, send
from tests.process.collector import bare_environment
from tests.process.faulty_server import ARMED
from tests.process.hanging_server import HANGS
from tests.process.ledger import audit, read_bucket, read_directory
from tests.process.s3 import s3_client, s3_environment

DRAIN = 2.0
LIMIT = DRAIN + 1.0
SHORT = {
    "the journal's fdatasync",
    "the journal's unlink",
    "the journal's write",
    "the dead letters' opendir",
    "the store's fdatasync",
}
DOUBTED = {"the rename of a rewrite after a failed fdatasync"}


def hanging(what):
    return (sys.executable, "-m", "tests.process.hanging_server", what)


def stop_in_time(collector):
    began = time.monotonic()
    collector.terminate()
    status = collector.wait(30)
    took = time.monotonic() - began
    assert took <= LIMIT, f"gone after {took:.2f} s"
    return status, took


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=() if what in SHORT else pytest.mark.proof) for what in HANGS]
)
def test_a_process_is_gone_in_time_whatever_disk_hangs_c5(collectors, figure, what):
    sent = Sent()
    mode = "fsync" if "fdatasync" in what else "journal"
    env = {"DRAIN_TIMEOUT": f"{DRAIN}s", "DURABILITY": mode, "BATCH_SIZE": "200", "FLUSH_INTERVAL": "500ms"}
    collector = collectors(env, command=hanging(what), name="hanging", measured=False).start()
    send(sent, collector.port, 500)
    (collector.folder / ARMED).touch()
    load = Load(sent, collector.port, rate=500, connections=4).start()
    collector.wait_said("hangs")
    status, took = stop_in_time(collector)
    load.stop(grace=0)
    (stopped,) = collector.said("stopped")
    # After a failed sync nobody knows what the device has of a segment, though its file can still be read.
    assert (status, stopped["lost_events"] > 0) == ((1, True) if what in DOUBTED else (0, False)), collector.tail()
    (collector.folder / ARMED).unlink()
    last = collectors({}, name="last").start()
    last.wait_delivered()
    last.stop()
    found = audit(sent, read_directory(last.folder / "data/objects")).assert_kept()
    figure(f"{what} hangs, gone after {took:.2f} s of {LIMIT}", found)


def test_a_process_is_gone_in_time_when_the_resolver_hangs_c5(collectors, s3_server, proxy, bucket, figure):
    sent = Sent()
    named = proxy.url.replace("127.0.0.1", "localhost")
    env = s3_environment(named, bucket, DRAIN_TIMEOUT=f"{DRAIN}s", BATCH_SIZE="200")
    collector = collectors(env, command=hanging("the resolver"), name="hanging", measured=False)
    collector.folder.mkdir(exist_ok=True)
    (collector.folder / ARMED).touch()
    collector.start()
    send(sent, collector.port, 500)
    collector.wait_said("hangs")
    status, took = stop_in_time(collector)
    assert status == 0, collector.tail()
    (told,) = collector.said("left_on_disk")
    assert told["events"] == 500
    assert told["directories"]
    last = collectors(s3_environment(proxy.url, bucket), name="last").start()
    last.wait_delivered()
    last.stop()
    found = audit(sent, read_bucket(s3_client(s3_server), bucket)).assert_kept()
    assert found.stored == 500
    figure(f"the resolver hangs, gone after {took:.2f} s of {LIMIT}", found)


def spawn(folder, words=("serve",), **how):
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "ingest", *words],
        cwd=folder,
        env=bare_environment({"HTTP_ADDR": "127.0.0.1:0", "DRAIN_TIMEOUT": f"{DRAIN}s"} | how.pop("env", {})),
        stdin=subprocess.DEVNULL,
        **how,
    )


def test_a_process_is_gone_in_time_when_nobody_reads_its_log_d1(tmp_path):
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    process = spawn(tmp_path / "run", stdout=subprocess.DEVNULL, stderr=writing)
    try:
        with open(reading, "rb", buffering=0, closefd=False) as log:
            while b'"listening"' not in log.read(4096):
                assert process.poll() is None
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, b"\n" * 4096)
        os.set_blocking(writing, True)
        began = time.monotonic()
        process.terminate()
        assert process.wait(30) == 0
        assert time.monotonic() - began <= LIMIT
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_drains_d4(collectors, number):
    sent = Sent()
    collector = collectors({}).start()
    send(sent, collector.port, 50)
    os.kill(collector.pid, number)
    assert collector.wait(20) == 0
    assert [line["signal"] for line in collector.said("signal")] == [number.name]
    assert audit(sent, read_directory(collector.folder / "data/objects")).assert_kept().stored == 50


def test_a_hangup_that_the_parent_ignores_stays_ignored_d4(collectors):
    collector = collectors({}, prefix=("nohup",)).start()
    os.kill(collector.pid, signal.SIGHUP)
    assert collector.get("/ready")
    collector.stop()
    assert [line["signal"] for line in collector.said("signal")] == ["SIGTERM"]


def test_the_signals_for_users_change_nothing_d4(collectors):
    collector = collectors({}).start()
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1):
        os.kill(collector.pid, number)
        assert collector.get("/ready")
    collector.stop()
    assert [line["signal"] for line in collector.said("signal")] == ["SIGTERM"]


def test_a_signal_in_the_first_moments_of_a_first_process_is_heeded_d4(tmp_path):
    """In a PID namespace of its own, where the kernel delivers a first process nothing that it does not handle."""
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-m", "ingest", "serve"]
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=bare_environment({"HTTP_ADDR": "127.0.0.1:0"}), stdout=out, stderr=out
        )
    try:
        first = child_of(process)
        if first is None:
            pytest.skip(f"no PID namespace can be made here: {log.read_text()}")
        os.kill(first, signal.SIGTERM)
        assert process.wait(20) == 0, log.read_text()
        assert '"SIGTERM"' in log.read_text()
    finally:
        process.kill()
        process.wait()


def child_of(process):
    """The process that holds its signals, as soon as it does: SIGTERM is in the mask of those blocked."""
    deadline = time.monotonic() + 20
    while process.poll() is None:
        assert time.monotonic() < deadline
        with contextlib.suppress(OSError, IndexError):
            child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
            status = Path(f"/proc/{child}/status").read_text()
            blocked = int(next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16)
            # `unshare` blocks it too, until it becomes Python.
            if "python" in os.readlink(f"/proc/{child}/exe") and blocked >> (signal.SIGTERM - 1) & 1:
                return child
        time.sleep(0.001)
    return None


def test_a_command_that_is_interrupted_says_so_in_one_line_d4(tmp_path):
    """The command waits for a store that takes the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "RAW_BUCKET": "bucket",
            "AWS_REGION": "eu-central-1",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "S3_TIMEOUT": "60s",
            "ADMIN_ADDR": "127.0.0.1:0",
        }
        # Whatever runs the tests may have it ignored, and this process inherits that.
        heeded = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = spawn(tmp_path / "run", ("check", "--store"), env=env, **pipes, **heeded)
        try:
            silent.settimeout(30)
            connection, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=30)
            connection.close()
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 130
    assert error.decode().splitlines() == ["interrupted"]


def test_a_name_with_an_address_that_this_machine_lacks_is_listened_on_where_it_can_be_f7(collectors, tmp_path):
    """`localhost` stands for `::1` too, which a machine without IPv6 does not have."""
    script = tmp_path / "without_ipv6.py"
    script.write_text(
        "import errno, socket, sys\n"
        "from ingest.__main__ import main\n"
        "bind = socket.socket.bind\n"
        "class Socket(socket.socket):\n"
        "    def bind(self, address):\n"
        "        if self.family == socket.AF_INET6:\n"
        "            raise OSError(errno.EADDRNOTAVAIL, 'Cannot assign requested address')\n"
        "        super().bind(address)\n"
        "socket.socket = Socket\n"
        "sys.exit(main(['serve']))\n"
    )
    collector = collectors({"HTTP_ADDR": "localhost:0"}, command=(sys.executable, str(script))).start()
    assert [line["host"] for line in collector.said("listening")] == ["127.0.0.1"]
    assert collector.get("/health")
    collector.stop()


BROKEN_TIMER = """
import errno
from ingest.config import load
from ingest.intake import admission
from ingest.server import serve
import os

def broken(self, reason):
    raise OSError(errno.EIO, "Input/output error")

admission.Intake.seal = broken
serve(load(os.environ))
"""


def test_a_callback_of_ours_that_failed_ends_the_process_also_when_it_raised_an_error_of_the_system(collectors):
    """Else the batch whose timer it was would never be sealed, and nobody would know."""
    sent = Sent()
    broken = collectors(
        {"FLUSH_INTERVAL": "100ms"}, command=(sys.executable, "-c", BROKEN_TIMER), name="broken"
    ).start()
    send(sent, broken.port, 20)
    assert broken.wait(20) == 1
    assert [line["exception"].splitlines()[-1] for line in broken.said("failed")] == [
        "OSError: [Errno 5] Input/output error"
    ]
    last = collectors({}, name="last").start()
    last.wait_delivered(30)
    last.stop()
    kept = audit(sent, read_directory(last.folder / "data/objects")).assert_kept()
    assert kept.stored >= kept.acknowledged > 0  # it may have ended before all were sent


def test_a_drain_that_is_stopped_and_goes_on_after_its_time_is_gone_at_once(collectors):
    """`sigtimedwait` of CPython tells then of a signal that never came."""
    env = {"DRAIN_TIMEOUT": "1s", "DURABILITY": "fsync"}
    collector = collectors(env, command=hanging("the journal's fdatasync"), name="hanging", measured=False).start()
    send(Sent(), collector.port, 10)
    (collector.folder / ARMED).touch()
    load = Load(Sent(), collector.port, rate=100, connections=1).start()
    collector.wait_said("hangs")
    collector.terminate()
    collector.wait_said("drain")
    os.kill(collector.pid, signal.SIGSTOP)
    time.sleep(2.0)  # the limit passes
    os.kill(collector.pid, signal.SIGCONT)
    assert collector.wait(1.0) == 0, collector.tail()
    load.stop(grace=0)
    # Whoever was first ended it: the thread that counts, or the drain, whose steps had no time left.
    assert len(collector.said("stopped")) == 1
    assert "Traceback" not in collector.stderr.read_text()
