"""Real objects of a real collector, with the events that are hardest to read, and what was sent in each.

Owns two stores. In `text` three hours lie side by side, each from a collector of its own on another clock
(`PARTITION_TZ`): plain events in several objects, events with every optional key, and an hour whose only object has one
line. In `json` (`BODY_FORMAT=json`) there is one hour. Every event has a cookie of its own, by which it is found again.
Promises that what lies there was read without any reader and is what was sent, before a reader is asked.
"""

from __future__ import annotations

import base64
import gzip
import http.client
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tests.process.collector import Collector

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS: Final = (
    "dt", "hr", "ts", "ip", "user_agent", "cookie", "ts_ms", "path", "query", "key", "headers", "body_b64", "body"
)  # fmt: skip
KIB_64 = 64 * 1024

_TEXT: Final[tuple[str, ...]] = (
    "", " ", "null", "NULL", "\\N", "0", "1", "true", "NaN", "1e400", "1" * 100, "{}", "[]", '""', '"', "\\", '\\"',
    '"}', ',"body":"', "}",
    '{"a":1}', '{"a" : 1e5 ,\n "b":[ ]}', '{"t":"\\ud83d"}', "[" * 64 + "]" * 64,
    "\x00", "a\x00b", "\n", "\r\n", "\r", "\t", "\x1b[0m", "\x1f\x7f",
    "\x85", "\u2028", "a\u2028b\u2029c", "\ufeff", "\ufffd",
    "\ufffe\uffff", "\U0001f600", "e\u0301", "\u202e", "dt=1/hr=2", "%00%ff", "'); --",
    "x" * KIB_64, '"' * KIB_64, "\x01" * KIB_64, "\u2028" * (KIB_64 // 3), "\U0001f600" * (KIB_64 // 4),
    "same", "same", "same",
)  # fmt: skip
_BYTES: Final[tuple[bytes, ...]] = (b"\xff\xfe\x00", b"\xed\xa0\x80", b"caf\xe9", bytes(range(256)), b"\x80" * KIB_64)
_JSON: Final[tuple[str, ...]] = (
    "null", "true", "0", "-0", "-0.0", "1.0", "1e5", "1E+2", "1e300", "1" * 100, "0." + "3" * 99,
    "9007199254740993", '""', '"a"', '" "', "{}", "[]",
    '{"a" : 1e5 ,  "b":[ ]}', '{"a":1,"a":2}', '{"":{"":""}}', '{"body":"}"}',
    '{"a":"\\u0000\\u2028\\"\\\\ \\/"}', '{"a":"\u2028\u2029"}', '{"a":"\\ud83d\\ude00"}',
    '{"a":' * 63 + "[]" + "}" * 63, "[" * 64 + "]" * 64, '"' + "x" * (KIB_64 - 2) + '"', "[" + "1," * 30000 + "1]",
    '{"same":1}', '{"same":1}',
)  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """Where the objects are, and each row as it has to be read: a value for each of `COLUMNS`."""

    folder: Path
    rows: list[dict[str, Any]]

    @property
    def hours(self) -> list[tuple[str, str]]:
        return sorted({(row["dt"], row["hr"]) for row in self.rows})

    def of(self, hour: tuple[str, str]) -> list[dict[str, Any]]:
        return [row for row in self.rows if (row["dt"], row["hr"]) == hour]

    def objects(self, hour: tuple[str, str]) -> list[Path]:
        return sorted((self.folder / f"data/objects/raw/dt={hour[0]}/hr={hour[1]}").glob("*.jsonl.gz"))


def text(folder: Path) -> Stored:
    """Make the three hours of text."""
    sent: dict[str, Any] = {}
    with Collector(folder, {"BATCH_SIZE": "20"}, measured=False) as collector:
        client = _Client(collector.port, sent)
        for body in _TEXT:
            client.post(body)
        for raw in _BYTES:
            client.post(raw)
        client.post("no agent", agent=None)
        client.post("an agent", agent='A "quoted" \\ agent/1.0 é')
        client.post("with a query", query="a=1&b=%00&c=%22")
        client.get("e=leave&n=%F0%9F%98%80")
        collector.stop()
    every = {
        "PARTITION_TZ": "Pacific/Kiritimati", "TS_MS": "true", "EXTRA_HEADERS": "x-*,content-type",
        "SDK_ROUTES": "segment", "WRITE_KEYS": "web:secret",
    }  # fmt: skip
    with Collector(folder, every, measured=False) as collector:
        client = _Client(collector.port, sent)
        key = {"X-Write-Key": "secret"}
        for body in ("", "{}", "\u2028\x00"):
            client.post(body, **key)
            client.post(body, **key, **{"X-Quote": '"\\ é', "X-Empty": "", "Content-Type": "text/plain"})
            client.post(body, path="/v1/track", query="a=1", **key)
        client.post(b"\xff", **key)
        collector.stop()
    with Collector(folder, {"PARTITION_TZ": "Asia/Kolkata"}, measured=False) as collector:
        _Client(collector.port, sent).post("alone")
        collector.stop()
    return _read(folder, sent)


def bodies_of_json(folder: Path) -> Stored:
    """Make the hour of JSON bodies."""
    sent: dict[str, Any] = {}
    with Collector(folder, {"BODY_FORMAT": "json", "BATCH_SIZE": "12"}, measured=False) as collector:
        client = _Client(collector.port, sent)
        for body in _JSON:
            client.post(body)
        client.post("", expected="null")
        client.get("e=leave", expected="null")
        collector.stop()
    return _read(folder, sent, json_body=True)


class _Client:
    """Sends each event with a cookie of its own, and keeps what must be stored for it."""

    def __init__(self, port: int, sent: dict[str, Any]) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._sent = sent

    def post(
        self, body: str | bytes, *, agent: str | None = "reader", path: str = "/collect", query: str = "",
        expected: str | None = None, **headers: str,
    ) -> None:  # fmt: skip
        raw = body.encode() if isinstance(body, str) else body
        self._send("POST", f"{path}?{query}" if query else path, raw, agent, headers)
        self._keep(body if expected is None else expected)

    def get(self, query: str, expected: str | None = None) -> None:
        self._send("GET", f"/collect?{query}", None, "reader", {})
        self._keep(query if expected is None else expected)

    def _send(self, method: str, target: str, body: bytes | None, agent: str | None, headers: dict[str, str]) -> None:
        given = {"Cookie": f"n={len(self._sent):04}", **({"User-Agent": agent} if agent else {}), **headers}
        self._connection.putrequest(method, target, skip_accept_encoding=True)
        for name, value in given.items():
            self._connection.putheader(name, value.encode())
        if body is not None:
            self._connection.putheader("Content-Length", str(len(body)))
        self._connection.endheaders(body)
        answer = self._connection.getresponse()
        answer.read()
        assert answer.status == 200, (answer.status, target, body)

    def _keep(self, body: str | bytes) -> None:
        self._sent[f"n={len(self._sent):04}"] = body


def _read(folder: Path, sent: dict[str, Any], *, json_body: bool = False) -> Stored:
    """Read the lines by hand, and hold each body against what was sent."""
    rows = []
    for path in sorted((folder / "data/objects/raw").rglob("*.jsonl.gz")):
        dt, hr = (part.partition("=")[2] for part in path.parent.parts[-2:])
        for line in gzip.decompress(path.read_bytes()).splitlines():
            row = dict.fromkeys(COLUMNS) | json.loads(line) | {"dt": dt, "hr": hr}
            if json_body:
                row["body"] = line[line.index(b',"body":') + 8 : -1].decode()
            rows.append(row)
            told = sent[row["cookie"]]
            if isinstance(told, bytes):
                assert (row["body"], base64.b64decode(row["body_b64"], validate=True)) == ("", told)
            else:
                assert row["body"] == told.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029") or (
                    not json_body and row["body"] == told
                ), (row, told)
    assert sorted(row["cookie"] for row in rows) == sorted(sent), "not each event is stored once"
    return Stored(folder, rows)
