"""Micro-benchmarks of one request becoming one JSON line; time per 1,000 different events."""

import random

import pytest

from ingest.config.settings import load
from ingest.event.line import EventEncoder

EVENTS = 1_000


def requests(text):
    draw = random.Random(4)
    for number in range(EVENTS):
        head = {
            b"user-agent": f"Mozilla/5.0 (X11; Linux x86_64) Chrome/{draw.randint(90, 150)}.0.{number}.0".encode(),
            b"cookie": f"_ga=GA1.2.{draw.getrandbits(31)}; session={draw.getrandbits(64):016x}".encode(),
            b"x-forwarded-for": f"{draw.randint(11, 99)}.{draw.randint(0, 255)}.{draw.randint(0, 255)}.7".encode(),
        }
        body = f'{{"id":"{draw.getrandbits(64):016x}","event":"page_view","note":"{text * 40}"}}'.encode()[:350]
        yield head, body


LOADS = {
    "ascii": list(requests("etaoin ")),
    "quotes": list(requests('a\\"b\\" ')),
    "korean": [(head, body.decode(errors="ignore").encode()) for head, body in requests("가을")],
    "not utf-8": [(head, body + b"\xff") for head, body in requests("etaoin ")],
    "proxy chain": [
        (head | {b"x-forwarded-for": b"203.0.113.9, " + head[b"x-forwarded-for"] + b", 10.0.3.7"}, body)
        for head, body in requests("etaoin ")
    ],
}


@pytest.mark.parametrize("name", LOADS)
def bench_encode(benchmark, name):
    encoder = EventEncoder(load({}))
    peer = encoder.peer("127.0.0.1")
    load_of_events = [encoder.fields(body, head) for head, body in LOADS[name]]

    def encode_all():
        encode = encoder.encode_body
        for fields in load_of_events:
            encode(1_764_721_594, peer, fields)

    benchmark(encode_all)


def bench_encode_json(benchmark):
    encoder = EventEncoder(load({"BODY_FORMAT": "json"}))
    peer = encoder.peer("127.0.0.1")
    body = b'{"id":"0123456789abcdef","event":"page_view","n":1}'
    load_of_events = [encoder.fields(body, head) for head, _ in LOADS["ascii"]]

    def encode_all():
        for fields in load_of_events:
            encoder.encode_body(1_764_721_594, peer, fields)

    benchmark(encode_all)
