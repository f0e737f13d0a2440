"""Three collectors on hosts of their own behind `deploy/haproxy`: one is killed, one drained, one added, under load.

Owns all of it, in a network namespace of its own: collectors, HAProxy, an S3 server, the client. Each try of a request
has a number of its own beside the number of the event, so that what a client sent twice, because the first answer was
lost, is told from what was stored twice. Prints one line of JSON: what was seen. The test says what it must be.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import ProxyHandler, build_opener

from tests.process.collector import REPOSITORY, SERVE, Collector, Metrics
from tests.process.fronts import Front, program
from tests.process.lan import FRONT, Lan
from tests.process.ledger import read_bucket
from tests.process.s3 import S3Process, s3_environment

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG = REPOSITORY / "deploy/haproxy/haproxy.cfg"
ADDRESSES = dict(re.findall(r"(?m)^ +server (\w+) ([\d.]+):8080 ", CONFIG.read_text()))
BUCKET = "events"
CONNECTIONS = 16
RATE = 600
STEP = 600
"""Events that are answered between two steps."""
PATIENCE = 60
_direct = build_opener(ProxyHandler({}))


class Client:
    """Sends events with unique numbers, each once more if the first try failed."""

    def __init__(self) -> None:
        self.sent = 0
        self.acknowledged: dict[int, int] = {}
        """The try that was acknowledged, by event."""
        self.lost_answers: set[tuple[int, int]] = set()
        self.refused: dict[tuple[int, int], int] = {}
        self.failed: list[int] = []
        """Events that were not acknowledged, in two tries."""
        self.stopping = False
        self._asked: dict[tuple[int, int], float] = {}
        """When each request that has no answer yet was sent."""

    def longest_wait(self) -> float:
        return time.monotonic() - min(self._asked.values(), default=time.monotonic())

    async def run(self) -> None:
        await asyncio.gather(*(self._connection() for _ in range(CONNECTIONS)))

    async def _connection(self) -> None:
        streams = None
        while not self.stopping:
            due = time.monotonic() + CONNECTIONS / RATE
            number, self.sent = self.sent, self.sent + 1
            for attempt in (1, 2):
                self._asked[number, attempt] = time.monotonic()
                streams, status = await self._try(streams, number, attempt)
                del self._asked[number, attempt]
                if status == 200:
                    self.acknowledged[number] = attempt
                    break
                if status in {502, 504, 0}:  # the proxy does not know either what became of it
                    self.lost_answers.add((number, attempt))
                else:
                    self.refused[number, attempt] = status
            else:
                self.failed.append(number)
            await asyncio.sleep(max(0, due - time.monotonic()))
        if streams:
            streams[1].close()

    async def _try(self, streams, number, attempt):
        """Returns the connection, if it can be used again, and the status; 0 if no answer came."""
        try:
            reader, writer = streams or await asyncio.open_connection(FRONT, 80)
            body = f"{number}/{attempt}".encode()
            head = f"POST /collect HTTP/1.1\r\nHost: events.example\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", answer)
            kept = length and not re.search(rb"(?i)\r\nconnection: *close", answer)
            if kept:
                await reader.readexactly(int(length[1]))
            else:
                writer.close()
            return (reader, writer) if kept else None, int(answer[9:12])
        except (OSError, EOFError):
            return None, 0


async def until(told: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not told():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        await asyncio.sleep(0.02)


class Nodes:
    """The collectors by name, on their hosts; one that is started again has the folder that it had."""

    def __init__(self, folder: Path, s3: S3Process) -> None:
        lan = self.lan = Lan()
        self.folder = folder
        self.there = {name: lan.join(address) for name, address in ADDRESSES.items()}
        self.s3 = s3
        self.running: dict[str, Collector] = {}

    def start(self, name: str) -> Collector:
        env = {
            "HTTP_ADDR": ":8080",
            "ADMIN_ADDR": ":9090",
            "DRAIN_DELAY": "5s",
            "FLUSH_INTERVAL": "1s",
            "DURABILITY": "fsync",
        }
        self.running[name] = Collector(
            self.folder / name,
            s3_environment(self.s3.url, BUCKET, **env),
            command=SERVE,
            prefix=self.there[name],
            name=name,
            measured=False,
        ).spawn()
        return self.running[name]

    def metric(self, name: str, metric: str) -> int:
        """0 while it does not answer."""
        try:
            with _direct.open(f"http://{ADDRESSES[name]}:9090/metrics", timeout=5) as answer:
                return int(Metrics(answer.read().decode()).value(metric))
        except OSError:
            return 0

    def taken(self, name: str) -> int:
        return self.metric(name, "estat_events_accepted_total")


async def scenario(folder: Path) -> dict[str, object]:
    client = Client()
    s3 = S3Process(folder, FRONT)
    nodes = Nodes(folder, s3)
    s3.start(BUCKET)
    exits = {}
    (folder / "front").mkdir()
    with Front(folder / "front", 80, [program("haproxy"), "-db", "-f", str(CONFIG)], host=FRONT):
        for name in ("a", "b"):
            nodes.start(name).wait_said("listening")
        await until(front_has_servers, "the proxy has seen them")
        sending = asyncio.create_task(client.run())

        async def go_on(step: str) -> None:
            before = len(client.acknowledged)
            await until(lambda: sending.done() or len(client.acknowledged) >= before + STEP, f"load goes on: {step}")

        await go_on("two serve")
        nodes.start("c")
        await until(lambda: nodes.taken("c") > STEP / 6, "c has its share")
        await go_on("three serve")
        nodes.running["b"].terminate()
        exits["drained"] = await asyncio.to_thread(nodes.running["b"].wait, 40)
        await go_on("b is gone")
        # It hangs first, so that requests are under way when it dies.
        os.kill(nodes.running["a"].pid, signal.SIGSTOP)
        await until(lambda: client.longest_wait() > 0.2, "requests wait for a")
        nodes.running["a"].send_kill()
        exits["killed"] = nodes.running["a"].wait(10)
        await go_on("a was killed")
        nodes.start("a")
        await until(lambda: nodes.taken("a") > STEP / 6, "a has its share again")
        await go_on("two serve again")
        # A host that is gone says nothing, and resets nothing.
        number = list(ADDRESSES).index("c") + 1
        nodes.lan.cut_off(number)
        waited = 0.0
        before = len(client.acknowledged)
        while len(client.acknowledged) < before + 5 * STEP or client.longest_wait() > 1:
            waited = max(waited, client.longest_wait())
            await asyncio.sleep(0.05)
        nodes.lan.cut_off(number, for_good=False)
        before = nodes.taken("c")
        await until(lambda: nodes.taken("c") > before + STEP / 6, "c has its share again")
        client.stopping = True
        await sending
        balance = {name: nodes.metric(name, "estat_events_unaccounted") for name in ("a", "c")}
        for name in ("a", "c"):
            nodes.running[name].terminate()
        exits |= {name: await asyncio.to_thread(nodes.running[name].wait, 40) for name in ("a", "c")}
    stored = Counter(
        tuple(map(int, json.loads(line)["body"].split("/")))
        for found in read_bucket(s3.client(), BUCKET)
        for line in found.lines()
    )
    s3.close()
    return told(client, stored) | {"exits": exits, "unaccounted": balance, "longest_wait": round(waited, 1)}


def front_has_servers() -> bool:
    """The proxy answers as a collector does, and not for want of one."""
    try:
        with _direct.open(f"http://{FRONT}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def told(client: Client, stored: Counter[tuple[int, ...]]) -> dict[str, object]:
    numbers = {number for number, _ in stored}
    return {
        "sent": client.sent,
        "acknowledged": len(client.acknowledged),
        "cured_by_a_retry": sum(attempt == 2 for attempt in client.acknowledged.values()),
        "failed_twice": len(client.failed),
        "refused": Counter(client.refused.values()),
        "answers_lost": len(client.lost_answers),
        "lost": sum((number, attempt) not in stored for number, attempt in client.acknowledged.items()),
        "doubled": sum(times > 1 for times in stored.values()),
        "refused_and_stored": sum(sent in stored for sent in client.refused),
        "sent_twice_and_stored_twice": sum((number, 1) in stored and (number, 2) in stored for number in numbers),
        "stored_without_an_answer": sum(sent in stored for sent in client.lost_answers),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(scenario(Path(sys.argv[1])))))  # noqa: T201 - this is what it is run for
