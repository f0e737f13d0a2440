"""Attacks on a real process, with honest clients beside them: these lose nothing, and memory stays within its bound."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest

from tests.process.attackers import ATTACKS, MIB
from tests.process.collector import REPOSITORY, bare_environment
from tests.stand_ins.tls import client_context, issue

BOUND = 64 * MIB + 96 * MIB
"""MAX_BUFFER_BYTES, and what stands around it."""
PATIENCE = 30.0
SHORT = {"slow PROXY headers"}


class Honest(threading.Thread):
    """Sends one event after the other, each on a connection of its own, and asks for `/health`; keeps the latencies."""

    def __init__(self, port: int, *, tls: bool, preface: bytes) -> None:
        super().__init__(daemon=True)
        self.port, self.preface = port, preface
        self.context = client_context() if tls else None
        self.ends = threading.Event()
        self.acknowledged: list[str] = []
        self.others: list[bytes] = []
        self.took: dict[str, list[float]] = {"event": [], "health": []}

    def run(self) -> None:
        number = 0
        while not self.ends.is_set():
            number += 1
            body = f'"honest-{number}"'
            lines = (
                "POST /collect HTTP/1.1",
                "Host: x",
                "X-Write-Key: a-known-secret",
                f"X-Forwarded-For: 8.8.{number >> 8}.{number & 255}",
                "Connection: close",
                f"Content-Length: {len(body)}",
            )
            head = "\r\n".join((*lines, "", body))
            if self._ask("event", head.encode()):
                self.acknowledged.append(body)
            self._ask("health", b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            time.sleep(0.02)

    def _ask(self, what: str, request: bytes) -> bool:
        began = time.monotonic()
        answer = b""
        try:
            with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as plain:
                plain.sendall(self.preface)
                one = plain if self.context is None else self.context.wrap_socket(plain, server_hostname="c.example")
                with one:
                    one.sendall(request)
                    while piece := one.recv(4096):
                        answer += piece
        except (OSError, ssl.SSLError) as error:
            answer = repr(error).encode()
        self.took[what].append(time.monotonic() - began)
        done = answer.startswith(b"HTTP/1.1 200")
        if not done:
            self.others.append(answer[:80])
        return done


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SHORT else pytest.mark.proof) for name in ATTACKS]
)
def test_honest_clients_lose_nothing_beside_an_attack_and_memory_has_its_bound(name, collectors, figure, tmp_path):
    attack = ATTACKS[name]
    env = {"DEBUG_CHECKS": "false", **attack.env}
    if attack.tls:
        made = issue(tmp_path)
        env |= {"TLS_CERT": str(made.certificate), "TLS_KEY": str(made.key)}
    collector = collectors(env).start()
    preface = b"PROXY TCP4 203.0.113.7 10.0.0.1 51234 80\r\n" if "PROXY_PROTOCOL" in env else b""
    honest = Honest(collector.port, tls=attack.tls, preface=preface)
    honest.start()
    time.sleep(0.5)
    before = collector.rss_bytes()
    attackers = subprocess.run(
        [sys.executable, "-m", "tests.process.attackers", name, str(collector.port)],
        cwd=REPOSITORY,
        env=bare_environment({}),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert attackers.stderr == ""
    assert int(attackers.stdout.split()[0]) >= attack.connections / 2
    honest.ends.set()
    honest.join(60)
    assert not honest.is_alive()
    peak = collector.rss_bytes(peak=True)
    usage = collector.stop(60)
    stored = [
        body if body.startswith('"') else f'"{body}"'
        for path in (collector.folder / "data/objects").rglob("*.jsonl.gz")
        for line in gzip.decompress(path.read_bytes()).splitlines()
        if b"honest-" in line
        for body in [json.loads(line)["body"]]
    ]
    assert collector.rusage is not None
    took = {what: sorted(times) for what, times in honest.took.items()}
    figure(
        name,
        f"{attackers.stdout.strip()}; RSS {before // MIB} MiB before, {peak // MIB} MiB at most; honest events "
        f"{len(honest.acknowledged)} acknowledged, {len(stored)} stored, {len(honest.others)} not answered 200; "
        + "; ".join(f"{what} p50 {t[len(t) // 2] * 1e3:.0f} ms, worst {t[-1] * 1e3:.0f} ms" for what, t in took.items())
        + f"; CPU {collector.rusage.ru_utime + collector.rusage.ru_stime:.1f} s; drained in {usage:.1f} s",
    )
    assert sorted(stored) == sorted(honest.acknowledged)
    assert len(honest.acknowledged) > 3
    assert [other for other in honest.others if not (attack.overloads and other.startswith(b"HTTP/1.1 503"))] == []
    assert peak <= BOUND
    assert not [line for line in collector.logs() if line.get("level") in {"error", "critical"} or "raw" in line]
