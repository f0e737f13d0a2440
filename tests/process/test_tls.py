"""TLS with the clients that people have: what was sent is stored once, also while the certificate is renewed."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from tests.process.client import Fate, Sent
from tests.process.collector import Metrics, bare_environment
from tests.process.fronts import free_port, program
from tests.process.ledger import audit, read_directory
from tests.stand_ins.tls import Scribe, client_context, issue

EVENTS = 200
RATE = 3000
SECONDS = 10

NODE = """
const https = require("https"), fs = require("fs");
const [port, ca, file] = process.argv.slice(2);
const agent = new https.Agent({ keepAlive: true, maxSockets: 4, ca: fs.readFileSync(ca), servername: "c.example" });
const requests = JSON.parse(fs.readFileSync(file));
let due = requests.length;
for (const { number, method, path, headers, body } of requests) {
  const sent = https.request({ host: "127.0.0.1", port, agent, method, path, headers }, (answer) => {
    answer.resume();
    answer.on("end", () => { console.log(number, answer.statusCode); if (--due === 0) agent.destroy(); });
  });
  sent.on("error", (error) => { console.error(number, error.message); process.exitCode = 1; });
  sent.end(body);
}
"""


def taken_apart(sent, number):
    """A request of the client as method, path, headers and body."""
    head, _, body = sent.request(number).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, path, _ = first.split(" ")
    headers = dict(line.split(": ", 1) for line in lines)
    return method, path, {k: v for k, v in headers.items() if k not in {"Host", "Content-Length"}}, body


def with_python(sent, port, made, folder):
    del folder
    context = ssl.create_default_context(cafile=made.certificate)
    context.check_hostname = False
    kept = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=20)
    for _ in range(EVENTS):
        number = sent.new()
        method, path, headers, body = taken_apart(sent, number)
        kept.request(method, path, body if method == "POST" else None, headers)
        answer = kept.getresponse()
        answer.read()
        sent.settle(number, answer.status)
    kept.close()


def with_curl(sent, port, made, folder):
    """Several URLs on connections kept, each from a file, and a handshake for some."""
    found = program("curl")
    lines = []
    for _ in range(EVENTS):
        number = sent.new()
        method, path, headers, body = taken_apart(sent, number)
        lines += ["next"] if lines else []
        lines += [f'url = "https://c.example:{port}{path}"', f'write-out = "{number} %{{http_code}}\\n"', "silent"]
        lines += [f'cacert = "{made.certificate}"', f'resolve = "c.example:{port}:127.0.0.1"', f'output = "{folder}/o"']
        lines += [f'header = "{name}: {value}"' for name, value in headers.items()]
        if number % 10 == 0:
            lines.append('header = "Connection: close"')
        if method == "POST":
            path = folder / f"{number}.body"
            path.write_bytes(body)
            lines.append(f'data-binary = "@{path}"')
    config = folder / "curl.conf"
    config.write_text("\n".join(lines))
    told = subprocess.run([found, "--noproxy", "*", "-K", config], capture_output=True, timeout=60, check=True).stdout
    for line in told.decode().splitlines():
        number, status = map(int, line.split())
        sent.settle(number, status)


def with_node(sent, port, made, folder):
    found = program("node")
    requests = []
    for _ in range(EVENTS):
        number = sent.new()
        method, path, headers, body = taken_apart(sent, number)
        requests.append(
            {
                "number": number,
                "method": method,
                "path": path,
                "headers": headers,
                "body": body.decode(errors="replace"),
            }
        )
    (folder / "requests.json").write_text(json.dumps(requests))
    (folder / "client.js").write_text(NODE)
    command = [found, "client.js", str(port), str(made.certificate), "requests.json"]
    told = subprocess.run(command, cwd=folder, capture_output=True, timeout=60, check=True).stdout
    for line in told.decode().splitlines():
        number, status = map(int, line.split())
        sent.settle(number, status)


def with_openssl(sent, port, made, folder):
    """A connection an event, which the server ends."""
    del made, folder
    found = program("openssl")
    for _ in range(5):
        number = sent.new()
        request = sent.request(number).replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\nConnection: close\r\n")
        command = [found, "s_client", "-connect", f"127.0.0.1:{port}", "-quiet"]
        told = subprocess.run(command, input=request, capture_output=True, timeout=20, check=False).stdout
        found_status = re.match(rb"HTTP/1.1 (\d+)", told)
        assert found_status, told
        sent.settle(number, int(found_status[1]))


def shake_hands(plain, context):
    """A client of TLS over a socket, after its handshake: the state, what it reads from and what it writes to."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            plain.sendall(outgoing.read())
            incoming.write(plain.recv(1 << 16))
    return tls, incoming, outgoing


def with_half_closes(sent, port, made, folder):
    """A connection an event; close_notify, or only the end of the stream, comes right behind the request."""
    del made, folder
    for notified in (True, False) * 10:
        with socket.create_connection(("127.0.0.1", port), 20) as plain:
            tls, incoming, outgoing = shake_hands(plain, client_context())
            number = sent.new()
            tls.write(sent.request(number))
            if notified:
                with suppress(ssl.SSLError):
                    tls.unwrap()
            plain.sendall(outgoing.read())
            plain.shutdown(socket.SHUT_WR)
            while data := plain.recv(1 << 16):
                incoming.write(data)
        told = b""
        with suppress(ssl.SSLZeroReturnError):
            while data := tls.read(1 << 16):  # an end without close_notify is an SSLWantReadError
                told += data
        sent.settle(number, int(told[9:12]))


@pytest.fixture
def made(tmp_path):
    return issue(tmp_path)


@pytest.fixture
def start(collectors, made):
    def start(**env):
        admin = free_port()
        env = {"ADMIN_ADDR": f"127.0.0.1:{admin}", "TLS_CERT": str(made.certificate), "TLS_KEY": str(made.key), **env}
        collector = collectors(env).start()
        collector.admin = admin
        return collector

    return start


def figures(collector):
    asked = http.client.HTTPConnection("127.0.0.1", collector.admin, timeout=20)
    asked.request("GET", "/metrics")
    text = asked.getresponse().read().decode()
    asked.close()
    return Metrics(text)


@pytest.mark.parametrize("send", [with_python, with_curl, with_node, with_openssl, with_half_closes])
def test_what_a_client_sent_over_tls_is_stored_once(start, made, tmp_path, send):
    collector = start(DURABILITY="fsync" if send is with_half_closes else "journal")
    sent = Sent()
    send(sent, collector.port, made, tmp_path)
    collector.stop()
    found = audit(sent, read_directory(collector.folder / "data/objects")).assert_kept()
    assert found.sent == found.acknowledged == found.stored > 0
    assert collector.said("unhandled") == []


class Sender(asyncio.Protocol):
    """One connection of `load`: it sends an event when it is told to and settles it when the answer is whole."""

    def __init__(self, sent):
        self.sent = sent
        self.number = None
        self.read = b""
        self.free = asyncio.Event()
        self.lost = asyncio.Event()

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, exc):
        del exc
        self.lost.set()

    async def end(self):
        self.transport.close()
        await self.lost.wait()

    def send(self):
        self.free.clear()
        self.number = self.sent.new()
        self.transport.write(self.sent.request(self.number))

    def data_received(self, data):
        self.read += data
        head, end, rest = self.read.partition(b"\r\n\r\n")
        if end and len(rest) >= int(re.search(rb"Content-Length: (\d+)", head)[1]):
            self.sent.settle(self.number, int(head[9:12]))
            self.read = b""
            self.number = None
            self.free.set()


async def load(sent, port, seconds, rate, *, kept, connections=16):
    """Open loop over connections that are kept, or a handshake for each event."""
    loop = asyncio.get_running_loop()
    context = client_context()

    async def one(number):
        sender = None
        due = loop.time() + number / rate
        until = loop.time() + seconds
        while due < until:
            await asyncio.sleep(due - loop.time())
            if sender is None:
                _, sender = await loop.create_connection(
                    lambda: Sender(sent), "127.0.0.1", port, ssl=context, server_hostname="c.example"
                )
            sender.send()
            await sender.free.wait()
            if not kept:
                await sender.end()
                sender = None
            due += connections / rate
        if sender is not None:
            await sender.end()

    await asyncio.gather(*map(one, range(connections)))


def test_a_certificate_is_renewed_under_load_and_nobody_notices(start, made):
    collector = start()
    sent = Sent()

    async def both():
        loads = [load(sent, collector.port, 5, 50, kept=kept, connections=2) for kept in (True, False)]
        await asyncio.gather(*loads)

    thread = threading.Thread(target=lambda: asyncio.run(both()))
    thread.start()
    first = ssl.get_server_certificate(("127.0.0.1", collector.port))
    issue(made.certificate.parent, days=90)
    collector.wait_said("certificate_loaded")
    assert ssl.get_server_certificate(("127.0.0.1", collector.port)) == made.certificate.read_text() != first
    made.key.write_text("nonsense")
    collector.wait_said("certificate_not_loaded")
    assert ssl.get_server_certificate(("127.0.0.1", collector.port)) == made.certificate.read_text()
    thread.join()
    seen = figures(collector)
    assert seen.value("estat_tls_reload_failed") == 1
    assert seen.value("estat_tls_handshakes_total", result="failed") == 0
    collector.stop()
    found = audit(sent, read_directory(collector.folder / "data/objects")).assert_kept()
    assert found.sent == found.acknowledged == found.stored > 100


def test_what_is_no_tls_is_counted_and_is_no_error_of_ours(start):
    collector = start()
    for sent in (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00" + bytes(600), b"\x16"):
        with socket.create_connection(("127.0.0.1", collector.port), 20) as plain:
            plain.sendall(sent)
            plain.shutdown(socket.SHUT_WR)
            while plain.recv(1000):
                pass
    assert figures(collector).value("estat_tls_handshakes_total", result="failed") == 3
    env = {**collector.env, "HTTP_ADDR": f"127.0.0.1:{collector.port}", "ADMIN_ADDR": ""}
    health = [sys.executable, "-m", "ingest", "health"]
    asked = subprocess.run(health, env=bare_environment(env), timeout=20, capture_output=True, text=True, check=False)
    assert (asked.returncode, asked.stderr) == (0, "")
    collector.stop()
    assert [line for line in collector.logs() if "raw" in line or line["level"] in {"error", "critical"}] == []


def test_a_pair_that_cannot_be_used_ends_the_start_in_one_line(collectors, made, tmp_path):
    env = {"TLS_CERT": str(made.certificate), "TLS_KEY": str(issue(tmp_path, "other").key)}
    ended = collectors(env).spawn()
    assert ended.wait(20) == 2
    assert "Traceback" not in ended.stderr.read_text()
    (line,) = [line for line in ended.stderr.read_text().splitlines() if line.startswith("TLS_KEY: accepted ")]
    assert line.endswith("it belongs to another certificate")


def test_who_sends_nothing_but_key_updates_is_dropped_and_others_are_served(start, made, tmp_path):
    collector = start()
    context = client_context()
    context.keylog_filename = str(tmp_path / "keys")
    with socket.create_connection(("127.0.0.1", collector.port), 20) as plain:
        _, _, outgoing = shake_hands(plain, context)
        scribe = Scribe(tmp_path / "keys")
        flood = b"".join(scribe.key_update() for _ in range(10_000))
        with suppress(ConnectionError):  # a reset, if bytes were left unread
            plain.sendall(outgoing.read() + flood)
            while plain.recv(1 << 16):
                pass
    sent = Sent()
    with_python(sent, collector.port, made, tmp_path)
    assert figures(collector).value("estat_requests_rejected_total", reason="malformed") == 1
    collector.stop()
    found = audit(sent, read_directory(collector.folder / "data/objects")).assert_kept()
    assert found.acknowledged == found.stored == EVENTS


@pytest.mark.proof
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "a handshake each"])
def test_at_a_steady_rate_too(start, figure, kept):
    rate = RATE if kept else RATE // 10
    collector = start()
    sent = Sent()
    asyncio.run(load(sent, collector.port, SECONDS, rate, kept=kept))
    collector.stop()
    found = audit(sent, read_directory(collector.folder / "data/objects")).assert_kept()
    used = collector.rusage.ru_utime + collector.rusage.ru_stime
    figure(f"TLS, {'kept' if kept else 'a handshake each'}, {used:.1f} s of CPU", found)
    assert found.sent == found.acknowledged == found.stored
    assert sent.count(Fate.UNKNOWN) == 0
