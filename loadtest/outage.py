"""One outage of the store, run for real and drawn: docs/outage.png.

    .venv-bench/bin/python loadtest/outage.py [--out docs/outage.png] [--rate 1000] [--well 20] [--away 60] [--after 40]

A collector at its defaults, but for batches of a second, takes events over loopback at an even rate; the store that it
puts to is killed and comes back. Every two seconds its own metrics are read, and drawn: events accepted a second, where
events wait, events stored a second. In the end the objects are read: exit code 1 if an acknowledged event is not in
them once.
"""

import argparse
import asyncio
import gzip
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import subjects

mpl.use("Agg")
import matplotlib.pyplot as plt

REPOSITORY = Path(__file__).parent.parent
CONNECTIONS = 16
EVERY = 2
"""Seconds between two readings; the page of metrics is made once a second at most."""
WAITING = {
    "open": ("open batch: memory and journal", "#d9a441"),
    "queue": ("upload queue: memory and journal", "#1f6f78"),
    "backlog": ("backlog: journal alone", "#7a4b8b"),
    "dlq": ("dead-letter queue: disk", "#b0b7bd"),
}
SETTINGS = {
    "RAW_BUCKET": "bench",
    "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "FLUSH_INTERVAL": "1s",
}


class Clients:
    """Send events at an even rate, each with a number of its own, and keep those that were acknowledged."""

    def __init__(self, port, rate):
        self.port = port
        self.pause = CONNECTIONS / rate
        self.numbers = iter(range(1 << 62))
        self.acknowledged = []
        self.refused = 0
        self.stopped = False

    async def run(self):
        await asyncio.gather(*(self._send(at / CONNECTIONS * self.pause) for at in range(CONNECTIONS)))

    async def _send(self, due):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        due += time.monotonic()
        while not self.stopped:
            await asyncio.sleep(max(due - time.monotonic(), 0))
            due += self.pause
            number = next(self.numbers)
            body = json.dumps({"n": number, "event": "view", "page": f"/p/{number % 997}", "pad": "x" * 200}).encode()
            writer.write(b"POST /collect HTTP/1.1\r\nHost: c.example\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"HTTP/1.1 200"):
                self.acknowledged.append(number)
            else:
                self.refused += 1
                await reader.readexactly(int(re.search(rb"(?i)content-length: (\d+)", head)[1]))
        writer.close()


def read_metrics(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        values = dict(re.findall(r"(?m)^(estat_\w+(?:\{[^}]*\})?) (\S+)$", answer.read().decode()))
    waiting = {place: float(values[f'estat_events_pending{{place="{place}"}}']) for place in WAITING}
    return {
        "at": time.monotonic(),
        "accepted": float(values["estat_events_accepted_total"]),
        "stored": float(values["estat_events_stored_total"]),
        "waiting": waiting,
    }


async def watch(port, samples, until):
    """Read the metrics now and again."""
    while time.monotonic() < until:
        await asyncio.sleep(EVERY - time.monotonic() % EVERY)
        samples.append(await asyncio.to_thread(read_metrics, port))


async def play(arguments, port, store, folder):
    """Send, take the store away, bring it back, and wait until all is stored; return samples, edges and clients."""
    clients, samples = Clients(port, arguments.rate), []
    sending = asyncio.create_task(clients.run())
    await asyncio.sleep(3)  # until it runs evenly
    began = time.monotonic()
    await watch(port, samples, began + arguments.well)
    store[0].kill()
    store[0].wait()
    away = time.monotonic()
    await watch(port, samples, began + arguments.well + arguments.away)
    store[0], _ = subjects.start_sink(keep=folder / "objects", port=store[1])
    back = time.monotonic()
    await watch(port, samples, back + arguments.after)
    clients.stopped = True
    await sending
    return samples, (began, away, back), clients


def draw(samples, edges, path):
    """Draw what was read."""
    began, away, back = edges
    at = [sample["at"] - began for sample in samples]

    def per_second(name):
        return [math.nan, *((new[name] - old[name]) / (new["at"] - old["at"]) for old, new in pairwise(samples))]

    figure, axes = plt.subplots(3, 1, figsize=(9, 6.5), sharex=True, height_ratios=[1, 1.5, 1])
    axes[0].plot(at, per_second("accepted"), color="#1f6f78")
    axes[0].set_title("events accepted a second", loc="left", fontsize=10)
    series = [[sample["waiting"][place] for sample in samples] for place in WAITING]
    labels, colours = zip(*WAITING.values(), strict=True)
    axes[1].stackplot(at, series, labels=labels, colors=colours)
    axes[1].set_title("events that wait", loc="left", fontsize=10)
    axes[1].legend(fontsize=8, loc="upper left", frameon=False)
    axes[2].plot(at, per_second("stored"), color="#1f6f78")
    axes[2].set_title("events stored a second", loc="left", fontsize=10)
    axes[2].set_xlabel("seconds")
    for one in axes:
        one.axvspan(away - began, back - began, color="#a33", alpha=0.08, linewidth=0)
        one.set_ylim(0, one.get_ylim()[1] * 1.15)
        one.set_xlim(0, at[-1])
        one.spines[["top", "right"]].set_visible(False)
        one.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes[0].text((away + back) / 2 - began, axes[0].get_ylim()[1] / 4, "the store is away", ha="center", color="#a33")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def stored(folder):
    """Count the numbers in the objects."""
    found = Counter()
    for path in folder.rglob("*.jsonl.gz"):
        for line in gzip.decompress(path.read_bytes()).splitlines():
            found[json.loads(json.loads(line)["body"])["n"]] += 1
    return found


def main():
    parser = argparse.ArgumentParser(description="One outage of the store, run for real and drawn.")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs/outage.png")
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--well", type=float, default=20)
    parser.add_argument("--away", type=float, default=60)
    parser.add_argument("--after", type=float, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = [*subjects.start_sink(keep=folder / "objects")]
        port = subjects.free_port()
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(REPOSITORY),
            "HTTP_ADDR": f"127.0.0.1:{port}",
            "S3_ENDPOINT_URL": f"http://127.0.0.1:{store[1]}",
            **SETTINGS,
        }
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([sys.executable, "-m", "ingest"], cwd=folder, env=environment, stderr=log)
        try:
            while b'"listening"' not in (folder / "log").read_bytes():
                if process.poll() is not None:
                    sys.exit((folder / "log").read_text())
                time.sleep(0.05)
            samples, edges, clients = asyncio.run(play(arguments, port, store, folder))
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
        finally:
            process.kill()
            process.wait()
            store[0].kill()
            store[0].wait()
        found = stored(folder / "objects")
    draw(samples, edges, arguments.out)
    once = sum(found[number] == 1 for number in clients.acknowledged)
    most = max(sum(sample["waiting"].values()) for sample in samples)
    print(
        f"{len(clients.acknowledged):,} acknowledged, {clients.refused:,} refused, {once:,} of them stored once; "
        f"at most {most:,.0f} waited; exit {code}; {arguments.out}"
    )
    return 0 if once == len(clients.acknowledged) and not code else 1


if __name__ == "__main__":
    sys.exit(main())
