"""Requests that differ from each other, for what is measured in one process: 13 headers and a body of 350 bytes each.

They look as those of generator.c do, which makes its own, being C.
"""

import gzip
import random
import struct

HEADERS = {"X-Forwarded-Proto": "https", "X-Forwarded-Port": "443", "Host": "collect.example.com"}
MORE = {
    "Content-Type": "text/plain",
    "Accept": "*/*",
    "Accept-Encoding": "gzip, br",
    "Accept-Language": "ko-KR,ko;q=0.9",
}


def event(draw, *, first=None):
    """Return head and body; the headers `first` stand before all others."""
    body = f'{{"id":"{draw.getrandbits(64):016x}","event":"page_view","note":"{draw.getrandbits(1150):0288x}"}}'
    headers = {
        **(first or {}),
        "X-Forwarded-For": f"{draw.randint(11, 99)}.{draw.randint(0, 255)}.{draw.randint(0, 255)}.7",
        **HEADERS,
        "X-Amzn-Trace-Id": f"Root=1-67891233-{draw.getrandbits(96):024x}",
        "Content-Length": str(len(body)),
        "User-Agent": f"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/{draw.randint(90, 150)}.0.0.0",
        **MORE,
        "Referer": f"https://shop.example.com/products/{draw.getrandbits(20)}",
        "Cookie": f"_ga=GA1.2.{draw.getrandbits(31)}; session={draw.getrandbits(64):016x}; consent=all",
    }
    head = "POST /collect HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    return head.encode(), body.encode()


def events(count, *, seed=4, first=None):
    """Return so many, the same ones at each call."""
    draw = random.Random(seed)
    return [event(draw, first=first) for _ in range(count)]


DISTINCT = 20_000
"""Events of all requests of a load that sends many in one: none comes twice."""


def batch(draw, form, count):
    """Return a request of so many events: "lines", "array" or "gzip" (lines)."""
    head, _ = event(draw)
    bodies = [event(draw)[1] for _ in range(count)]
    body = b"[" + b",".join(bodies) + b"]" if form == "array" else b"".join(one + b"\n" for one in bodies)
    kind = "application/json" if form == "array" else "application/x-ndjson"
    if form == "gzip":
        body = gzip.compress(body, 6, mtime=0)
        kind += "\r\nContent-Encoding: gzip"
    lines = [line for line in head.decode().split("\r\n") if not line.startswith(("POST ", "Content-"))]
    first = [f"POST /collect/batch HTTP/1.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}"]
    return "\r\n".join(first + lines).encode() + body


def write_batches(path, form, count, *, seed=4):
    """Write the requests of a load as generator.c reads them."""
    draw = random.Random(seed)
    requests = (batch(draw, form, count) for _ in range(DISTINCT // count))
    path.write_bytes(b"".join(struct.pack("<I", len(one)) + one for one in requests))
