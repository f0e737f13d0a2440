"""Many events in one request, as log shippers send them, against a real server: all of a request is kept, or none."""

from __future__ import annotations

import gzip
import http.client
import itertools
import json
import os
import threading
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.volume import Volume, why_not
from tests.process.ledger import read_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1024 * 1024
PATH = "/collect/batch"
NDJSON = {"Content-Type": "application/x-ndjson"}
JSON = {"Content-Type": "application/json"}
GZIP = {"Content-Encoding": "gzip"}
WITHOUT_VOLUME = why_not()


def lines_of(events: list[dict[str, object]]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def as_vector(events: list[dict[str, object]]) -> tuple[dict[str, str], bytes]:
    return {**NDJSON, **GZIP, "User-Agent": "Vector/0.45.0"}, gzip.compress(lines_of(events))


def as_fluent_bit(events: list[dict[str, object]]) -> tuple[dict[str, str], bytes]:
    return {**JSON, "User-Agent": "Fluent-Bit"}, json.dumps(events, separators=(",", ":")).encode()


def as_fluent_bit_compressed(events: list[dict[str, object]]) -> tuple[dict[str, str], bytes]:
    headers, body = as_fluent_bit(events)
    return {**headers, **GZIP}, gzip.compress(body)


def as_go(events: list[dict[str, object]]) -> tuple[dict[str, str], Iterator[bytes]]:
    """Return a body of unknown length, which a Go client streams in chunks."""
    return {**NDJSON, "User-Agent": "Go-http-client/1.1"}, iter(lines_of([event]) for event in events)


SHIPPERS = (as_vector, as_fluent_bit, as_fluent_bit_compressed, as_go)


class Shipper(threading.Thread):
    """Sends requests of numbered events, one after the other, until it is stopped or the server is gone."""

    numbers = itertools.count()

    def __init__(
        self, port: int, form: Callable[..., tuple[dict[str, str], bytes | Iterator[bytes]]], size: int
    ) -> None:
        super().__init__(daemon=True)
        self.acknowledged: list[range] = []
        self.refused: list[range] = []
        self.unknown: list[range] = []
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        self._form = form
        self._size = size
        self.ended = threading.Event()

    def run(self) -> None:
        try:
            while not self.ended.is_set():
                if not self.ship():
                    return
        finally:
            self.close()

    def close(self) -> None:
        self._connection.close()

    def ship(self) -> bool:
        first = 1000 * next(self.numbers)
        ids = range(first, first + self._size)
        headers, body = self._form([{"id": number, "text": "t" * (number % 300)} for number in ids])
        try:
            self._connection.request("POST", PATH, body, headers, encode_chunked=not isinstance(body, bytes))
            with self._connection.getresponse() as answer:
                told = answer.read()
        except (OSError, http.client.HTTPException):
            self.unknown.append(ids)
            return False
        if answer.status == 200:
            assert json.loads(told) == {"accepted": self._size, "rejected": []}
            self.acknowledged.append(ids)
        else:
            assert answer.status == 503, (answer.status, told)
            self.refused.append(ids)
        return True


def stored(folder: Path) -> Counter[int]:
    found: Counter[int] = Counter()
    for one in read_directory(folder):
        found.update(json.loads(json.loads(line)["body"])["id"] for line in one.lines())
    return found


def audit(shippers: list[Shipper], found: Counter[int]) -> str:
    """Count; nothing acknowledged is lost, nothing is there twice, nothing that was refused is there."""
    acknowledged = {number for shipper in shippers for ids in shipper.acknowledged for number in ids}
    refused = {number for shipper in shippers for ids in shipper.refused for number in ids}
    unknown = {number for shipper in shippers for ids in shipper.unknown for number in ids}
    lost = acknowledged - found.keys()
    doubled = [number for number, times in found.items() if times > 1]
    told = (
        f"acknowledged {len(acknowledged)}, refused {len(refused)}, unknown {len(unknown)}, "
        f"stored {found.total()}, lost {len(lost)}, doubled {len(doubled)}"
    )
    assert not lost, told
    assert not doubled, told
    assert not refused & found.keys(), told
    assert found.keys() <= acknowledged | unknown, told
    return told


def test_kill_9_keeps_every_batch_of_a_log_shipper_that_was_acknowledged(collectors, figure):
    shippers: list[Shipper] = []
    env = {"BATCH_SIZE": "1000", "FLUSH_INTERVAL": "200ms"}
    for number in range(4):
        collector = collectors(env, name=f"round{number}", measured=False).start()
        round_of = [
            Shipper(collector.port, form, size) for form, size in zip(SHIPPERS, (100, 10, 64, 300), strict=True)
        ]
        for shipper in round_of:
            shipper.start()
        shippers += round_of
        deadline = time.monotonic() + 20
        while any(len(shipper.acknowledged) < 5 + number for shipper in round_of):
            assert time.monotonic() < deadline, collector.tail()
            time.sleep(0.005)
        collector.kill()
        for shipper in round_of:
            shipper.join(20)
    last = collectors(env, name="last").start()
    last.wait_delivered(60)
    last.stop(15)
    figure("batches, 4 kills", audit(shippers, stored(last.folder / "data/objects")))


@pytest.mark.skipif(bool(WITHOUT_VOLUME), reason=WITHOUT_VOLUME or "a volume can be had")
def test_a_full_disk_refuses_a_batch_whole(collectors, tmp_path, figure):
    with Volume.tmpfs(tmp_path / "volume", 4 * MIB) as volume:
        env = {"DLQ_DIR": str(volume.path / "dlq"), "STORE_DIR": str(tmp_path / "objects"), "FLUSH_INTERVAL": "1h"}
        env |= {"BATCH_SIZE": "1000000"}
        collector = collectors(env, prefix=volume.prefix, dlq_folder=volume.seen / "dlq").start()
        shipper = Shipper(collector.port, as_vector, 500)
        while not shipper.refused:
            assert shipper.ship()
        shipper.close()
        assert shipper.acknowledged
        collector.stop(20)
    figure("batches, disk full", audit([shipper], stored(tmp_path / "objects")))


def bomb(size: int) -> bytes:
    """A gzip member that inflates to so many bytes; a thousandth of them itself."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join([*(packer.compress(bytes(MIB)) for _ in range(size // MIB)), packer.flush()])


def narrow_blocks(size: int) -> bytes:
    """Deflate whose every block has codes of its own and next to no content: as much work a byte as can be had."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = []
    length = 0
    for number in itertools.count():
        text = b"".join(b"%x" % (number * 7919 + step * step) for step in range(12)) + b"\n"
        parts.append(packer.compress(text) + packer.flush(zlib.Z_FULL_FLUSH))
        length += len(parts[-1])
        if length > size:
            return b"".join([*parts, packer.flush()])
    raise AssertionError


BOMBS = {
    "1 GiB of zeros in 1 MiB": (bomb(1024 * MIB)[: MIB - 8], 413),
    "1 MiB of empty members": (gzip.compress(b"", 9, mtime=0) * (MIB // 20), 400),
    "1 MiB of blocks with codes of their own": (narrow_blocks(MIB - 4096), 413),
    "10,000 bad events": (gzip.compress(b"x\n" * 10_000), 400),
    "an array of one event in 300,000 lists": (gzip.compress(b"[[" + b"[]," * 300_000 + b"[]]]"), 400),
    "a megabyte of line feeds": (gzip.compress(b"\n" * MIB), 400),
}


def test_a_bomb_costs_its_limit_and_no_more(collectors, figure):
    collector = collectors({"BODY_FORMAT": "json"}, measured=False).start()
    before = collector.rss_bytes()
    told = []
    for name, (body, status) in BOMBS.items():
        headers = JSON if "array" in name else NDJSON
        spent = cpu_seconds(collector.pid)
        threads = []
        statuses: list[int] = []

        def send(body: bytes = body, headers: dict[str, str] = headers, statuses: list[int] = statuses) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", collector.port, timeout=30)
            connection.request("POST", PATH, body, {**headers, **GZIP})
            statuses.append(connection.getresponse().status)
            connection.close()

        threads = [threading.Thread(target=send) for _ in range(8)]
        for thread in threads:
            thread.start()
        longest = 0.0
        while any(thread.is_alive() for thread in threads):
            began = time.monotonic()
            assert collector.get("/health") == b"ok\n"
            longest = max(longest, time.monotonic() - began)
        assert statuses == [status] * 8, name
        spent = (cpu_seconds(collector.pid) - spent) / 8
        told.append(f"{name}: {status}, {spent * 1000:.0f} ms of CPU each, /health within {longest * 1000:.0f} ms")
    peak = collector.rss_bytes(peak=True)
    assert peak < before + 64 * MIB, told
    assert collector.metrics().value("estat_events_accepted_total") == 0
    figure("bombs", f"{'; '.join(told)}; RSS {before // MIB} MiB before, {peak // MIB} MiB at most")


def cpu_seconds(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
