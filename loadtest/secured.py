"""What TLS costs: CPU time of the collector an event, with and without, on connections kept and one event a connection.

    python loadtest/secured.py [--seconds 5] [--rate 2000] [--handshakes 200] [--json FILE]

Owns a client of its own, because the generator speaks no TLS. It is slower than the generator, so the rates are fixed
and the same for both sides of a ratio: what is compared is the CPU time of the collector, not how fast it could be. The
certificate has a P-256 key, the one that costs least; with RSA a handshake costs several times as much.
"""

import argparse
import asyncio
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import subjects
import uvloop
from limits import NoLimitError
from subjects import JOURNAL, Running
from traffic import events

CONNECTIONS = 16
EVENTS = [head + body for head, body in events(2000)]


class Client(asyncio.Protocol):
    """One connection, which sends an event when it is told to."""

    def __init__(self):
        self.answered = asyncio.Event()
        self.lost = asyncio.Event()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        if not data.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"no event was taken: {data[:100]}")
        self.answered.set()

    def connection_lost(self, _error):
        self.lost.set()
        self.answered.set()


async def send(port, seconds, rate, context, *, kept):
    """Send at a fixed rate, and return how many events were answered."""
    loop = asyncio.get_running_loop()
    answered = 0

    async def one(number):
        nonlocal answered
        client, due = None, loop.time() + number / rate
        until = loop.time() + seconds
        while due < until:
            await asyncio.sleep(due - loop.time())
            if client is None:
                _, client = await loop.create_connection(Client, "127.0.0.1", port, ssl=context)
            client.answered.clear()
            client.transport.write(EVENTS[answered % len(EVENTS)])
            await client.answered.wait()
            answered += 1
            if not kept:
                client.transport.close()
                await client.lost.wait()
                client = None
            due += CONNECTIONS / rate
        if client is not None:
            client.transport.close()
            await client.lost.wait()

    await asyncio.gather(*map(one, range(CONNECTIONS)))
    return answered


def measure(folder, arguments):
    """Return CPU time an event in microseconds, by what is sent and whether over TLS."""
    certificate, key = folder / "tls.pem", folder / "tls.key"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
            ),
            *("-subj", "/CN=c.example", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    secured = (*JOURNAL.environment, ("TLS_CERT", str(certificate)), ("TLS_KEY", str(key)))
    sides = {"plain": (JOURNAL, None), "TLS": (replace(JOURNAL, environment=secured, context=trusting), trusting)}
    found = {}
    for title, rate, kept in (("kept", arguments.rate, True), ("one event each", arguments.handshakes, False)):
        found[title] = {"rate": rate}
        for side, (subject, context) in sides.items():
            with Running(subject, folder) as running:
                uvloop.run(send(running.port, 1, rate, context, kept=kept))
                spent = running.limit.cpu_seconds()
                answered = uvloop.run(send(running.port, arguments.seconds, rate, context, kept=kept))
                found[title][side] = (running.limit.cpu_seconds() - spent) / answered * 1e6
    return found


def main():
    parser = argparse.ArgumentParser(description="Measure what TLS costs the collector.")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one reading")
    parser.add_argument("--rate", type=float, default=2000.0, help="events a second on connections kept")
    parser.add_argument(
        "--handshakes", type=float, default=200.0, help="events a second, each on a connection of its own"
    )
    parser.add_argument("--json", type=Path, help="write the readings there")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, subjects.GENERATOR_CORE)
    folder = Path(tempfile.mkdtemp(prefix="secured-"))
    try:
        found = measure(folder, arguments)
    except NoLimitError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for title, reading in found.items():
        ratio = reading["TLS"] / reading["plain"]
        print(
            f"{title:<15} {reading['rate']:6,.0f}/s  plain {reading['plain']:7.1f} µs  TLS {reading['TLS']:7.1f} µs"
            f"  TLS / plain {ratio:.2f}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
