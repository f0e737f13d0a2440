"""Micro-benchmarks of the hot path without a socket: a turn of the loop in which 20 connections send an event each.

What it takes from the reads to the lines, and to the answers handed to transports; the journal, gzip and the kernel
are not in it. `short` is the way of a known layout, `long` that of the parser's callbacks, `split` a head and its body
apart.
"""

import random
import re
import time

import pytest
from traffic import events

from ingest.config.settings import load
from ingest.event.line import EventEncoder
from ingest.event.pages import Pages
from ingest.telemetry import Budget
from ingest.telemetry.metrics import Metrics
from ingest.wire import tick
from ingest.wire.answers import AnswerBook
from ingest.wire.connection import Connection
from ingest.wire.door import house
from ingest.wire.headers import HeaderNames
from ingest.wire.layouts import Layouts
from ingest.wire.limits import ConnectionLimits

tick.FEEDING_SECONDS = float("inf")  # a turn here is all reads, however busy the machine is
CONNECTIONS = 20
TURNS = 100
EVENTS = events(CONNECTIONS * TURNS)


def _unasked():
    raise AssertionError("no request here asks for it")


class Transport:
    """Takes answers and leaves them."""

    def write(self, data):
        pass

    def set_write_buffer_limits(self, high):
        pass

    def get_extra_info(self, _name):
        return "127.0.0.1", 40000


class Loop:
    def call_soon(self, _call):
        pass

    def time(self):
        return time.monotonic()


class Unlearning(Layouts):
    def learn(self, data, now):
        pass


class Turns:
    """Everything between the transport and the batch."""

    def __init__(self, layouts):
        settings = load({})
        encoder = EventEncoder(settings)
        self.lines = 0
        self.tick = tick.Tick(
            Loop(),
            ConnectionLimits.of(settings),
            encoder,
            AnswerBook(settings.cors_origins),
            layouts(encoder.headers),
            Pages(ready=lambda: True, metrics=lambda: ("", b""), status=_unasked),
            Metrics(),
            self.commit,
            lambda: False,
            Budget(settings.max_buffer_bytes),
            max_connections=CONNECTIONS,
        )
        names, door = HeaderNames(encoder.headers), house(settings)
        self.connections = [Connection(self.tick, names, door) for _ in range(CONNECTIONS)]
        for connection in self.connections:
            connection.connection_made(Transport())

    def commit(self, turn):
        self.lines += turn.events
        b"".join(turn.lines)
        turn.settle(committed=True)

    def run(self, reads):
        """Take reads in turns of one for each connection."""
        turns = self.tick
        for at in range(0, len(reads), CONNECTIONS):
            for connection, data in zip(self.connections, reads[at : at + CONNECTIONS], strict=True):
                connection.data_received(data)
            turns.run()


WHOLE = [head + body for head, body in EVENTS]
APART = [
    piece
    for at in range(0, len(EVENTS), CONNECTIONS)
    for half in zip(*EVENTS[at : at + CONNECTIONS], strict=True)
    for piece in half
]


@pytest.mark.parametrize(
    ("layouts", "reads"), [(Layouts, WHOLE), (Unlearning, WHOLE), (Layouts, APART)], ids=["short", "long", "split"]
)
def bench_turns(benchmark, layouts, reads):
    turns = Turns(layouts)
    benchmark(turns.run, reads)
    rounds = len(benchmark.stats.stats.data)
    assert turns.lines >= rounds * len(EVENTS)
    benchmark.extra_info["microseconds_an_event"] = round(benchmark.stats.stats.median / len(EVENTS) * 1e6, 3)


def shuffled(count):
    """Return events in as many layouts, all headers in any order: no traffic is as varied."""
    orders = random.Random(4)
    whole = []
    for head, body in EVENTS[:count]:
        first, *lines = head.split(b"\r\n")[:-2]
        orders.shuffle(lines)
        whole.append(b"\r\n".join([first, *lines, b"", body]))
    return whole


def pupil(whole):
    layouts = Layouts(EventEncoder(load({})).headers)
    for number, data in enumerate(whole):
        layouts.learn(data, number * 1000)
    return layouts


@pytest.mark.parametrize("known", [1, 8, 32])
def bench_match(benchmark, known):
    """Finding the values, with so many layouts known."""
    whole = shuffled(known)
    layouts = pupil(whole)

    def match_all():
        for data in whole:
            match = layouts.match(data)
            match.group(*layouts.found[match.lastindex][-1])

    benchmark(match_all)
    benchmark.extra_info["microseconds_an_event"] = round(benchmark.stats.stats.median / known * 1e6, 3)


@pytest.mark.parametrize("known", [1, 8, 31])
def bench_lesson(benchmark, known):
    """Learning one layout more."""
    *before, one_more = shuffled(known + 1)

    def setup():
        layouts = pupil(before)
        re.purge()
        return (layouts,), {}

    benchmark.pedantic(lambda layouts: layouts.learn(one_more, 1e9), setup=setup, rounds=10)
