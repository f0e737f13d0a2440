"""Clients that mean no good: `python -m tests.process.attackers NAME PORT` attacks for a few seconds, and ends.

Owns `ATTACKS`. Each is many connections that send the same opening, then drip bytes, read their answers or not, and
come again when they are closed. It is a process of its own, so that whoever measures shares no interpreter with it.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import resource
import socket
import sys
import zlib
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MIB = 1 << 20
BATCH = "/collect/batch"
NDJSON = "Content-Type: application/x-ndjson"
GZIP = "Content-Encoding: gzip"
ALL_SETTINGS = {
    "IP_MODE": "mask",
    "COOKIES": "a,session",
    "RESPECT_GPC": "true",
    "EXTRA_HEADERS": "content-type,x-*",
    "TS_MS": "true",
    "WRITE_KEYS": "web:a-known-secret",
    "CORS_ORIGINS": "https://*.shop.example",
}


class Attack(NamedTuple):
    """What each of so many connections does, and the settings of who is attacked."""

    connections: int
    opening: Callable[[], bytes] = bytes
    drip: bytes = b""
    every: float = 1.0
    reads: bool = True
    again: bool = True
    seconds: float = 6.0
    env: Mapping[str, str] = MappingProxyType({})
    tls: bool = False
    peers: int = 200
    overloads: bool = False
    """It sends more events than are taken: others may have to come again."""


def head(method: str, target: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: x", *lines, "", ""]).encode("latin-1")


def post(body: bytes, *lines: str, target: str = "/collect") -> bytes:
    return head("POST", target, f"Content-Length: {len(body)}", *lines) + body


def packed(*parts: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(map(packer.compress, parts)) + packer.flush()


def bombs() -> bytes:
    """Return what 1 MiB may hold: 1 GiB of zeros, empty members, windows, brackets, blank lines, deep items."""
    tiny = zlib.compressobj(9, zlib.DEFLATED, -15)
    blocks = b"".join(tiny.compress(b"%d" % n * 20) + tiny.flush(zlib.Z_FULL_FLUSH) for n in range(20_000))
    deep = b"[" + b",".join([b"[" * 50 + b"]" * 50] * 9900) + b"]"
    return b"".join(
        (
            post(packed(*[bytes(MIB)] * 1000)[: MIB - 8], GZIP, target=BATCH),
            post(gzip.compress(b"") * (MIB // 20 - 1), GZIP, target=BATCH),
            post(gzip.compress(b"") * 17, GZIP),
            post(gzip.compress(b"") * 16, GZIP),
            post(blocks[: MIB - 8], "Content-Encoding: deflate", target=BATCH),
            post(b"\0\0\0\xff\xff" * (MIB // 5), "Content-Encoding: deflate", target=BATCH),
            post(b"[" * MIB, target=BATCH),
            post(b"\n" * MIB, NDJSON, target=BATCH),
            post(b" \n" * (MIB // 2), NDJSON, target=BATCH),
            post(deep, target=BATCH),
            post(b"[" + b"{}," * 9999 + b"{}]", target=BATCH),
        )
    )


def deep_and_small() -> bytes:
    """Return a few kilobytes that decode to a megabyte in which each bracket counts."""
    wide = b"[" + b",".join([b"[" + b"[]," * 21_000 + b"[]]"] * 16) + b"]"
    return post(packed(wide), GZIP, target=BATCH) * 4


def costly_heads() -> bytes:
    long = 15_600
    lines = (
        "Cookie: " + "; a=1" * (long // 5),
        "Cookie: " + ";" * long,
        "Sec-GPC: " + "," * long,
        "X-Forwarded-For: " + "," * long,
        "X-Forwarded-For: " + "10.0.0.1," * (long // 9),
        "Forwarded: " + 'for="' * (long // 5),
        "Authorization: Basic " + "QUFB" * (long // 4),
        "\r\n".join(f"X-{number}: 1" for number in range(long // 9)),
        "\r\n".join(f"Cookie: a={number}" for number in range(1000)),
    )
    queries = (
        "&" * long,
        "k=%61&" * (long // 6),
        "%6b=&" * (long // 5),
        "k=" + "%61" * (long // 3),
        "+&" * (long // 2),
    )
    key = "X-Write-Key: a-known-secret"
    return b"".join([post(b"1", key, line) for line in lines] + [head("GET", f"/collect?{q}") for q in queries])


_number = itertools.count()


def strangers() -> bytes:
    """Return events of 500 addresses that nobody has seen before."""
    numbers = itertools.islice(_number, 500)
    return b"".join(post(b"1", f"X-Forwarded-For: 9.{n >> 16}.{n >> 8 & 255}.{n & 255}") for n in numbers)


HELLO = b"\x16\x03\x01\x00\x06\x01\x01\xff\xf0\x03\x03"
"""The start of a TLS hello of 128 KiB."""

ATTACKS = {
    "9,900 idle connections": Attack(9900, again=False, seconds=10),
    "slow heads": Attack(2000, lambda: head("POST", "/collect")[:-2], b"X: y\r\n", 0.5),
    "slow bodies": Attack(2000, lambda: post(bytes(60_000))[:9000], b"xxxx", 0.5),
    "slow gzip bodies": Attack(
        2000, lambda: post(packed(bytes(range(256)) * 4000), GZIP, target=BATCH)[:9000], b"xxxx", 0.5
    ),
    "slow chunks": Attack(2000, lambda: head("POST", "/collect", "Transfer-Encoding: chunked"), b"1\r\nx\r\n", 0.1),
    "slow PROXY headers": Attack(2000, lambda: b"PROXY TCP4 ", b"1", 0.5, env={"PROXY_PROTOCOL": "true"}),
    "slow handshakes": Attack(1900, lambda: HELLO, b"\x16\x03\x01\x00\x01\x00", 0.5, tls=True),
    "garbage for handshakes": Attack(500, lambda: b"GET / HTTP/1.1\r\n\r\n", tls=True),
    "100 bombs at once": Attack(100, bombs, seconds=12),
    "what is small and decodes to brackets": Attack(50, deep_and_small, seconds=8, overloads=True),
    "answers to 10,000 bad items, unread": Attack(
        400,
        lambda: post(packed(b"x\n" * 10_000), GZIP, NDJSON, target=BATCH) * 20,
        reads=False,
        env={"BODY_FORMAT": "json"},
        seconds=8,
    ),
    "500 x 256 pixels with an empty Host (E1)": Attack(
        500, lambda: b"GET /collect HTTP/1.1\r\nHost:\r\n\r\n" * 256, overloads=True
    ),
    "400 x 256 pages, unread (E2)": Attack(400, lambda: b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 256, reads=False),
    "heads that cost, every setting on": Attack(50, costly_heads, env=ALL_SETTINGS),
    "100,000 addresses": Attack(20, strangers, env={"RATE_LIMIT": "1/m", "RATE_BURST": "1"}, seconds=10),
    "2,000 connections of one peer": Attack(
        2000, lambda: b"", env={"MAX_CONNECTIONS_PER_IP": "20", "TRUSTED_PROXIES": "10.0.0.0/8"}, peers=1
    ),
}


class Attacker(asyncio.Protocol):
    """One connection."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a TCP client's
        self.transport = transport
        attack = self.crowd.attack
        if not attack.reads:
            transport.pause_reading()
        transport.write(self.crowd.opening() if attack.opening is strangers else self.crowd.first)
        if attack.drip:
            self._drip()

    def _drip(self) -> None:
        if not self.transport.is_closing():
            with suppress(RuntimeError):  # it was reset, and is told of it only in the next step
                self.transport.write(self.crowd.attack.drip)
            asyncio.get_running_loop().call_later(self.crowd.attack.every, self._drip)

    def data_received(self, data: bytes) -> None:
        self.crowd.read += len(data)
        if self.crowd.attack.again and not self.crowd.attack.drip and self.transport.get_write_buffer_size() == 0:
            self.crowd.rounds += 1
            self.transport.write(self.crowd.opening() if self.crowd.attack.opening is strangers else self.crowd.first)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.crowd.closed += 1
        if not self.lost.done():
            self.lost.set_result(None)


class Crowd:
    """All connections of one attack."""

    def __init__(self, attack: Attack, port: int) -> None:
        self.attack = attack
        self.port = port
        self.opening = attack.opening
        self.first = attack.opening()
        self.read = self.closed = self.rounds = self.made = 0

    async def run(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self.attack.seconds):
                await asyncio.gather(*map(self._one, range(self.attack.connections)))

    async def _one(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            own = socket.socket()
            own.setblocking(False)
            try:
                own.bind((f"127.0.0.{2 + number % self.attack.peers}", 0))
                await loop.sock_connect(own, ("127.0.0.1", self.port))
                _, one = await loop.create_connection(lambda: Attacker(self), sock=own)
            except OSError:
                own.close()
                await asyncio.sleep(0.05)
                continue
            self.made += 1
            await one.lost
            if not self.attack.again:
                return
            await asyncio.sleep(0.02)


def main() -> None:
    name, port = sys.argv[1:]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    crowd = Crowd(ATTACKS[name], int(port))
    uvloop.run(crowd.run())
    sys.stdout.write(
        f"{crowd.made} connections, {crowd.closed} closed, {crowd.rounds} rounds, {crowd.read} bytes read\n"
    )


if __name__ == "__main__":
    main()
