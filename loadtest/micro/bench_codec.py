"""Micro-benchmarks of the codec: a batch of 5,000 events to gzip, and a file of them verified line by line."""

import random

import orjson
import pytest

from ingest.disk import Filesystem, Reader
from ingest.format import codec
from ingest.spool.reading import PIECE_BYTES

EVENTS = 5_000


def batch():
    draw = random.Random(4)
    lines = []
    for number in range(EVENTS):
        note = "".join(draw.choices("etaoin shrdlu cmfwyp", k=230))
        event = {
            "ts": 1_764_721_594,
            "ip": f"{draw.randint(11, 99)}.{draw.randint(0, 255)}.{draw.randint(0, 255)}.7",
            "user_agent": f"Mozilla/5.0 (X11; Linux x86_64) Chrome/{draw.randint(90, 150)}.0.{number}.0 Safari/537.36",
            "cookie": f"_ga=GA1.2.{draw.getrandbits(31)}; session={draw.getrandbits(64):016x}",
            "body": f'{{"id":"{draw.getrandbits(64):016x}","event":"page_view","note":"{note}"}}',
        }
        lines.append(orjson.dumps(event))
    return b"\n".join(lines) + b"\n"


BATCH = batch()


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def bench_encode(benchmark, level):
    body = benchmark(codec.encode, BATCH, EVENTS, level)
    benchmark.extra_info["ratio"] = round(len(BATCH) / len(body), 2)
    benchmark.extra_info["microseconds_an_event"] = round(benchmark.stats.stats.median / EVENTS * 1e6, 3)


def inspect_gzip(path):
    with Reader(Filesystem(), path) as file:
        return codec.inspect_gzip(file)


def inspect_lines(path):
    inspection = codec.LinesInspection()
    with Reader(Filesystem(), path) as file:
        while piece := file.read(PIECE_BYTES):
            inspection.feed(piece)
    return inspection.end()


def bench_inspect_gzip(benchmark, tmp_path):
    path = tmp_path / "batch.jsonl.gz"
    path.write_bytes(codec.encode(BATCH, EVENTS))
    inspection = benchmark(inspect_gzip, path)
    assert inspection.events == EVENTS


def bench_inspect_lines(benchmark, tmp_path):
    path = tmp_path / "segment.jsonl"
    path.write_bytes(BATCH)
    inspection = benchmark(inspect_lines, path)
    assert inspection.events == EVENTS
