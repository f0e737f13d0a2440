"""The short way against the long one, with every setting that reads a head: the same lines, answers and counts."""

from __future__ import annotations

import random

import pytest

from tests.stand_ins.wire import Wire, counted
from tests.wire.corpus import CORPUS, filled

PROXY = ("10.0.0.1", 1)
PRIVATE = {
    "IP_MODE": "mask",
    "COOKIES": "a,session",
    "RESPECT_GPC": "true",
    "EXTRA_HEADERS": "content-type,accept,origin,x-custom",
    "TS_MS": "true",
}
ASKING = {"CORS_ORIGINS": "https://shop.example,https://*.b.example", "RATE_LIMIT": "7/s", "RATE_BURST": "9"}
SETTINGS = (
    {},
    {"BODY_FORMAT": "json"},
    {"IP_MODE": "none", "COOKIES": "none"},
    {"CLIENT_IP_HEADERS": "Forwarded,X-Real-IP,X-Forwarded-For"},
    {"MAX_BODY_SIZE": "400", "MAX_HEADER_BYTES": "1024"},
    PRIVATE,
    ASKING,
    PRIVATE | ASKING | {"BODY_FORMAT": "json"},
    PRIVATE | ASKING | {"TRUSTED_PROXIES": "203.0.113.0/24", "CLIENT_IP_HEADERS": "X-Real-IP"},
    PRIVATE | {"WRITE_KEYS": "web:a-known-secret"},
    PRIVATE | {"EXTRA_HEADERS": "x-*,c*"},
)
LINES = (
    *("Sec-GPC: 1", "Sec-GPC: 0", "SP-Anonymous: *", "X-Custom: a", "X-Custom: \xe9\xff", "X-Real-IP: 198.51.100.7"),
    *("Forwarded: for=198.51.100.8;proto=https", 'Forwarded: for="[2001:db8::1]:4711", for=10.0.0.2'),
    *("Content-Type: text/plain", "Origin: https://x.b.example", "Origin: https://evil.example", "Origin: null"),
    *("X-Write-Key: a-known-secret", "X-Write-Key: another", "Authorization: Bearer a-known-secret"),
    *("Connection: close", "Connection: keep-alive", "Accept: b", "Cookie: session=2; b=3", "X-Empty:", "A: \t b \t"),
)
TEXTS = (
    "a",
    "agent",
    "Mozilla/5.0 (X11)",
    "é",
    "\U0001f600",
    '"q"',
    "a\\b",
    "a\u2028b",
    "x" * 300,
    "a=1; session=2",
    "  a ",
)
ADDRESSES = (
    *("203.0.113.7", "203.0.113.7, 10.0.0.2", "2001:db8::1", "[2001:db8::1]:443", "x, 9.9.9.9", "9.9.9.9, unknown"),
    *("::ffff:10.0.0.9", "fe80::1%eth0", ",,,", "1.2.3.4:80", "1.2.3", "203.0.113.8:99, 203.0.113.9"),
)
CONTENTS = (
    b"",
    b"{}",
    b"[1,2]",
    b'{"a":"\\ud83d"}',
    b'"\xe2\x80\xa8"',
    b"\xff\xfe",
    b"\r\n\r\n",
    b"null",
    b"\0\x01",
    b"}{",
)
BYTES = b"\r\n :;,?#019aA\t\x00\x01\x7f\x80\xff"


def drawn(draw: random.Random, name: str, lines: list[str]) -> bytes:
    content = draw.choice(CONTENTS) * draw.choice((1, 1, 1, 50, 200))
    if draw.random() < 0.3:
        content = draw.randbytes(draw.choice((3, 300, 1500)))
    agent, cookie, address = draw.choice(TEXTS), draw.choice(TEXTS), draw.choice(ADDRESSES)
    data = filled(name, agent=agent, cookie=cookie, address=address, content=content)
    head, end, body = data.partition(b"\r\n\r\n")
    data = b"\r\n".join([head, *(line.encode("latin-1") for line in lines)]) + end + body
    if draw.random() < 0.25:
        at = draw.randrange(len(data) - len(body))
        data = data[:at] + draw.choice((b"", bytes((draw.choice(BYTES),)))) + data[at + draw.randrange(2) :]
    return data


def differ(seed: int, cases: int) -> tuple[int, int, int]:
    """Hold so many pairs against each other; return how many bytes and requests, and how many went the short way."""
    draw = random.Random(seed)
    size = requests = short = 0
    for _ in range(cases):
        settings = draw.choice(SETTINGS)
        pair = [Wire(dict(settings), peer=PROXY, learns=learns) for learns in (True, False)]
        kinds = [(draw.choice(list(CORPUS)), draw.sample(LINES, draw.choice((0, 0, 1, 2)))) for _ in range(3)]
        for number in range(24):
            name, lines = draw.choice(kinds)
            data = filled(name) if number < 4 and not lines else drawn(draw, name, lines)
            short += len(data) <= 8192 and pair[0].layouts.match(data) is not None
            answers = []
            for wire in pair:
                wire.loop.now += 0.1
                answers.append(bytes(wire.connect().send(data).end().transport.sent))
            assert answers[0] == answers[1], (settings, data)
            size += len(data)
            requests += 1
        known, unknown = pair
        assert known.lines == unknown.lines, settings
        assert counted(known) == counted(unknown), settings
        assert known.loop.failures == unknown.loop.failures == []
        assert known.tick.budget.requests == unknown.tick.budget.requests == 0
        assert known.tick.budget.whole == unknown.tick.budget.whole == 0
    return size, requests, short


def test_both_ways_tell_the_same_with_every_setting():
    _, requests, short = differ(1, 40)
    assert short > requests / 4, "enough of them must go the short way for this to say anything"


@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_both_ways_tell_the_same_of_ten_million_bytes(capsys):
    size = requests = short = seed = 0
    while size < 10_000_000:
        seed += 1
        more = differ(seed, 100)
        size, requests, short = size + more[0], requests + more[1], short + more[2]
    with capsys.disabled():
        print(f"\nboth ways: {size} bytes in {requests} requests, {short} by the short way; differences 0")  # noqa: T201
