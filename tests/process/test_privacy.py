"""What the switches leave out reaches no disk: not the journal, the dead-letter queue, an object, nor the log."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
from base64 import b64encode
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ADDRESSES = ("203.0.113.77", "2001:db8:77:88::99")
SECRET, WRONG = "SecretOfWeb:77", "SecretOfNobody77"
COOKIE = "ValueOfAPerson77"
BASIC = b64encode(f"{SECRET}:".encode()).decode()
NEVER = (*ADDRESSES, SECRET, SECRET.replace(":", "%3A"), WRONG, COOKIE, BASIC)

SWITCHES = {
    "IP_MODE": "mask",
    "COOKIES": "kept",
    "RESPECT_GPC": "true",
    "EXTRA_HEADERS": "content-type,x-*,a*,c*",
    "TS_MS": "true",
    "WRITE_KEYS": f"web:{SECRET}",
    "RATE_LIMIT": "1/m",
    "RATE_BURST": "30",
    "MAX_CONNECTIONS_PER_IP": "100",
    "CORS_ORIGINS": "https://shop.example",
    "MAX_BODY_SIZE": "1KiB",
    "LOG_LEVEL": "debug",
}


def send(port: int, target: str = "/collect", body: str = "", **headers: str) -> int:
    """Send one event and return the status of its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    fields.setdefault("Cookie", f"other={COOKIE}; kept=1; x={COOKIE}")
    fields.setdefault("X-Forwarded-For", ADDRESSES[0])
    connection.request("POST" if body else "GET", target, body or None, fields)
    status = connection.getresponse().status
    connection.close()
    return status


def send_every_way(port: int) -> int:
    """Send events with keys, cookies and addresses wherever these may stand; return how many were taken."""
    quoted = SECRET.replace(":", "%3A")
    taken = [
        send(port, "/collect", "1", X_Write_Key=SECRET),
        send(port, "/collect", "2", Authorization=f"Bearer {SECRET}", X_Forwarded_For=ADDRESSES[1]),
        send(port, "/collect", "3", Authorization=f"Basic {BASIC}", Sec_GPC="1"),
        send(port, f"/collect?k={quoted}&e=4"),
        send(port, f"/collect?e=5&write%4Bey={quoted}", "5", CloudFront_Viewer_Address=f"{ADDRESSES[0]}:443"),
        send(port, f"/collect?k={WRONG}", "6", X_Write_Key=SECRET, Origin="https://shop.example"),
    ]
    refused = [
        send(port, f"/collect?k={WRONG}", "7"),
        send(port, "/collect", "8", X_Write_Key=WRONG),
        send(port, f"/collect?k={quoted}", "9", Origin="https://evil.example"),
        send(port, f"/nowhere?k={quoted}", "10"),
        send(port, f"/collect?k={quoted}", "x" * 2000),
    ]
    assert taken == [200] * len(taken)
    assert refused == [401, 401, 403, 404, 413]
    with socket.create_connection(("127.0.0.1", port), timeout=10) as broken:
        broken.sendall(f"POST /collect?k={quoted} HTTP/1.1\r\nHost: a b\r\nCookie: {COOKIE}\r\n\r\n".encode())
        assert broken.recv(100).startswith(b"HTTP/1.1 400")
    return len(taken)


def found_in(folder: Path) -> Iterator[tuple[str, str]]:
    """What must not be there, and where it is, in any file, gzip or not, whole or torn."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        text = path.read_bytes()
        if text.startswith(b"\x1f\x8b"):
            text = gzip.decompress(text)
        yield from ((value, str(path)) for value in NEVER if value.encode() in text)


def lines_in(folder: Path) -> list[dict]:
    text = b"".join(gzip.decompress(path.read_bytes()) for path in folder.rglob("*.jsonl.gz"))
    return [json.loads(line) for line in text.splitlines()]


def test_with_every_switch_on_no_raw_value_reaches_a_disk_or_the_log(collectors):
    """Killed with events in the journal and in the dead-letter queue, recovered into objects; looked at each time."""
    nobody = socket.socket()
    nobody.bind(("127.0.0.1", 0))  # and never listens
    away = {
        "RAW_BUCKET": "events",
        "AWS_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "S3_ENDPOINT_URL": f"http://127.0.0.1:{nobody.getsockname()[1]}",
        "S3_APP_RETRIES": "1",
    }
    killed = collectors({**SWITCHES, **away, "FLUSH_INTERVAL": "100ms"}, measured=False).start()
    sent = send_every_way(killed.port)
    killed.wait_until(lambda metrics: metrics.value("estat_events_pending", place="dlq") == sent)
    killed.kill()
    spooled = killed.left_on_disk()
    assert any(name.endswith(".jsonl.gz") for name in spooled)

    killed = collectors({**SWITCHES, **away, "FLUSH_INTERVAL": "1h"}, measured=False).start()
    sent += send_every_way(killed.port)
    killed.kill()
    assert any(name.startswith("journal") and name.endswith(".jsonl") for name in killed.left_on_disk())
    assert list(found_in(killed.folder)) == []

    nobody.close()

    last = collectors({**SWITCHES, "RATE_BURST": "1", "FLUSH_INTERVAL": "100ms"}).start()
    flood = [send(last.port, "/collect", "n", X_Write_Key=SECRET) for _ in range(2)]
    assert flood == [200, 429]
    last.wait_delivered()
    last.stop()
    assert last.left_on_disk() == []
    stored = lines_in(last.folder / "data" / "objects")
    assert len(stored) == sent + 1
    assert {line["ip"] for line in stored} == {"203.0.113.0", "2001:db8:77::", ""}
    assert {line["cookie"] for line in stored} == {"kept=1", ""}
    assert {line["key"] for line in stored} == {"web"}
    assert list(found_in(last.folder)) == []
