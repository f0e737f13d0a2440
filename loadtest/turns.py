"""The whole collector without a socket, driven turn by turn: what instructions.py counts the instructions of.

    PYTHONPATH=CHECKOUT STORE_DIR=... DLQ_DIR=... python loadtest/turns.py [--events 10000] [--connections 20]
                                                                           [--closing] [--switch LIBRARY]

`python -m ingest serve` runs as it is: connections, tick, journal, gzip, store. Only `create_server` of the loop is
another one: it takes the factory of connections, and hands each connection its bytes and a transport that swallows the
answers. Nothing else is known of the checkout, so that old and new ones are driven alike.

A turn is one event on each connection, handed over within one turn of the loop; the next begins when all are answered.
With --closing each event has a connection of its own. Counting begins after a first batch, when everything is warm and
learned, and ends when the last batch is stored. The events fill the batches exactly, so that gzip has its share and no
batch is left over. It prints one JSON object, and exits as the collector does after SIGTERM.
"""

import argparse
import asyncio
import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import uvloop
from traffic import events

from ingest.__main__ import main as collector
from ingest.wire import tick

tick.FEEDING_SECONDS = float("inf")  # valgrind takes fifty times as long: the same turns as without it
BATCH = 5_000
ANSWER_SECONDS = 60
STORE_SECONDS = 120


class Transport(asyncio.Transport):
    """Takes answers, all connections into one list."""

    def __init__(self, protocol, answers):
        super().__init__()
        self.protocol = protocol
        self.write = answers.append
        self.closed = False

    def get_extra_info(self, name, default=None):
        return ("127.0.0.1", 40_000) if name == "peername" else default

    def set_write_buffer_limits(self, high=None, low=None):
        pass

    def get_write_buffer_size(self):
        return 0

    def is_reading(self):
        return True

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass

    def is_closing(self):
        return self.closed

    def can_write_eof(self):
        return True

    def write_eof(self):
        pass

    def close(self):
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close


class Driver:
    """Feeds connections, which `new` makes."""

    def __init__(self, new, arguments):
        self.new = new
        self.arguments = arguments
        self.answers = []
        self.connections = []
        first = {"Connection": "close"} if arguments.closing else None
        self.reads = [head + body for head, body in events(BATCH, first=first)]
        self.store = Path(os.environ["STORE_DIR"])

    async def run(self):
        """Warm up, count, have the collector stop."""
        count = self.arguments.events
        switch = Switch(self.arguments.switch)
        await self.take(BATCH)
        await self.stored(1)
        switch.on()
        wall, cpu = time.perf_counter(), time.process_time()
        await self.take(count)
        await self.stored(1 + count // BATCH)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        switch.off()
        print(json.dumps({"events": count, "cpu_us": cpu / count * 1e6, "wall_us": wall / count * 1e6}), flush=True)
        for transport in self.connections:
            transport.close()
        os.kill(os.getpid(), signal.SIGTERM)

    async def take(self, count):
        connections, reads, answers = self.arguments.connections, self.reads, self.answers
        for at in range(0, count, connections):
            turn = min(connections, count - at)
            if self.arguments.closing or not self.connections:
                self.connections = [self.connect() for _ in range(connections)]
            for number, transport in enumerate(self.connections[:turn]):
                transport.protocol.data_received(reads[(at + number) % BATCH])
            deadline = time.monotonic() + ANSWER_SECONDS
            answered = 0
            while answered < turn:
                await asyncio.sleep(0)
                if answers:
                    answered += b"".join(answers).count(b"HTTP/1.1 200 ")
                    answers.clear()
                elif time.monotonic() > deadline:
                    raise TimeoutError(f"{answered} of {turn} answered")

    def connect(self):
        protocol = self.new()
        transport = Transport(protocol, self.answers)
        protocol.connection_made(transport)
        return transport

    async def stored(self, objects):
        """Wait until so many batches are stored."""
        deadline = time.monotonic() + STORE_SECONDS
        while (found := sum(1 for _ in self.store.rglob("*.jsonl.gz"))) < objects:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{found} of {objects} batches stored")
            await asyncio.sleep(0.02)


def exit_if_failed(task):
    """End the process with a traceback: the collector would go on serving nobody."""
    if not task.cancelled() and (error := task.exception()) is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        os._exit(1)


class Switch:
    """Turns the counting on and off: two functions of a small library; without one, nothing."""

    def __init__(self, library):
        found = ctypes.CDLL(library) if library else SimpleNamespace(counting_on=tuple, counting_off=tuple)
        self.on = found.counting_on
        self.off = found.counting_off


def main():
    parser = argparse.ArgumentParser(description="Drive the collector without a socket.")
    parser.add_argument("--events", type=int, default=2 * BATCH, help=f"a multiple of {BATCH:,}")
    parser.add_argument("--connections", type=int, default=20, help="that have an event each in a turn")
    parser.add_argument("--closing", action="store_true", help="each event on a connection of its own")
    parser.add_argument("--switch", help="the library that turns the counting on and off")
    arguments = parser.parse_args()
    if arguments.events % BATCH or not arguments.events:
        parser.error(f"--events: a multiple of {BATCH:,}")
    driving = []

    async def create_server(_loop, new, *_args, **_options):
        if not driving:
            driving.append(asyncio.get_running_loop().create_task(Driver(new, arguments).run()))
            driving[0].add_done_callback(exit_if_failed)
        socket = SimpleNamespace(getsockname=lambda: ("127.0.0.1", 0))
        return SimpleNamespace(sockets=(socket,), close=tuple, is_serving=lambda: True)

    uvloop.Loop.create_server = create_server
    return collector(["serve"])


if __name__ == "__main__":
    sys.exit(main())
