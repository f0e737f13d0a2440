"""A real process shows its figures where `ADMIN_ADDR` says, and says so to nobody else."""

import json
import os
import socket
import subprocess
import sys
import urllib.error

import pytest

from tests.process.client import Sent, send
from tests.process.collector import Metrics, bare_environment

NO_HOST = "HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def ask(path, page, name=None):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        if name is not None:
            client.bind(name)
        client.connect(str(path))
        client.sendall(f"GET {page} {NO_HOST}".encode())
        answer = b""
        while data := client.recv(1 << 16):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def test_the_socket_of_operators_has_the_pages_and_goes_with_the_process(collectors, tmp_path):
    path = tmp_path / "admin.sock"
    env = {"ADMIN_ADDR": f"unix:{path}", "BATCH_SIZE": "10"}
    first = collectors(env, name="first").start()
    sent = Sent()
    send(sent, first.port, 50)
    first.wait_said("listening_for_operators")
    for page in ("/metrics", "/status"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            first.get(page)
    assert ask(path, "/collect?e=1")[0] == 404
    status, body = ask(path, "/status")
    assert (status, json.loads(body)["accepted"]) == (200, 50)
    assert Metrics(ask(path, "/metrics")[1].decode()).value("estat_events_accepted_total") == 50

    rival = collectors(env, name="rival", folder=tmp_path / "rival").spawn()
    assert rival.wait(20) == 2
    assert rival.stderr.read_text() == f"ADMIN_ADDR: cannot listen on unix:{path}: Address already in use\n"

    unlucky = collectors({"ADMIN_ADDR": f"unix:{path}2", "HTTP_ADDR": f":{first.port}"}, name="unlucky").spawn()
    assert unlucky.wait(20) == 2
    assert not os.path.lexists(f"{path}2")

    first.kill()
    assert path.exists()
    second = collectors(env, name="second").start()
    second.wait_said("listening_for_operators")
    for name in (None, f"\0probe-{second.port}", str(tmp_path / "probe.sock")):
        assert ask(path, "/ready", name) == (200, b"ok\n")
    health = subprocess.run(
        [sys.executable, "-m", "ingest", "health"], env=bare_environment(env), timeout=20, check=False
    )
    assert health.returncode == 0
    told = subprocess.run(
        [sys.executable, "-m", "ingest", "status", "--json"],
        env=bare_environment(env),
        timeout=20,
        check=True,
        stdout=subprocess.PIPE,
    )
    about = json.loads(told.stdout)["about"]
    assert about["settings"]["ADMIN_ADDR"] == f"unix:{path}"
    assert all(os.path.isdir(slot) for slot in about["slots"].values())
    second.stop()
    assert not os.path.lexists(path)
