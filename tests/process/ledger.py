"""Compares what the client was told with what the store holds.

`read_directory` and `read_bucket` read back every object under the RAW prefix; `audit` counts, per unique number:

  lost            acknowledged and not stored
  doubled         stored more than once, whatever the client was told
  refused_stored  answered with an error and stored all the same
  wrong_hour      lies in a partition that is not that of its `ts`
  wrong_time      `ts` is not between sending and answering
  altered         the body is not the one that was sent
  foreign         an event that this client never sent

An event that got no answer may be stored or not; it may not be doubled.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self
from zoneinfo import ZoneInfo

from tests.process.client import Fate, Sent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_KEY = re.compile(r"dt=(\d{4}-\d\d-\d\d)/hr=(\d\d)/(\d+)_([A-Za-z0-9-]+)-([0-9a-f]{16})_(\d{10,})\.jsonl\.gz$")


@dataclass(slots=True)
class StoredObject:
    """One object as it lies in the store."""

    key: str
    data: bytes
    metadata: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[bytes]:
        return gzip.decompress(self.data).splitlines(keepends=True)


@dataclass(slots=True)
class Audit:
    """The counts. `assert_kept` is how a test ends."""

    sent: int = 0
    acknowledged: int = 0
    refused: int = 0
    unknown: int = 0
    objects: int = 0
    stored: int = 0
    lost: int = 0
    doubled: int = 0
    refused_stored: int = 0
    wrong_hour: int = 0
    wrong_time: int = 0
    altered: int = 0
    foreign: int = 0
    broken: list[str] = field(default_factory=list)
    examples: dict[str, list[Any]] = field(default_factory=dict)
    stored_numbers: Counter[int] = field(default_factory=Counter)

    def note(self, what: str, example: object) -> None:
        setattr(self, what, getattr(self, what) + 1)
        some = self.examples.setdefault(what, [])
        if len(some) < 5:
            some.append(example)

    def assert_kept(self) -> Self:
        """Nothing lost, doubled, refused and stored, misplaced, altered or invented; every object whole."""
        bad = (
            self.lost,
            self.doubled,
            self.refused_stored,
            self.wrong_hour,
            self.wrong_time,
            self.altered,
            self.foreign,
        )
        assert not any(bad), self
        assert not self.broken, self
        return self

    def __str__(self) -> str:
        hidden = ("examples", "stored_numbers")
        shown = ", ".join(f"{f.name} {getattr(self, f.name)}" for f in fields(self) if f.name not in hidden)
        return f"{shown}; examples: {self.examples}"


def read_directory(root: Path, prefix: str = "raw") -> Iterator[StoredObject]:
    """Objects of the directory store; a name with a dot in front is a temporary, not an object."""
    for path in sorted((root / prefix).rglob("*")):
        if path.is_file() and not path.name.startswith(".") and "_manifest" not in str(path.relative_to(root)):
            yield StoredObject(path.relative_to(root).as_posix(), path.read_bytes())


def read_bucket(client: Any, bucket: str, prefix: str = "raw") -> list[StoredObject]:
    """Objects of a bucket, through a boto3 client."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix + "/")
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", ()) if "_manifest/" not in entry["Key"]]

    def fetch(key: str) -> StoredObject:
        answer = client.get_object(Bucket=bucket, Key=key)
        return StoredObject(key, answer["Body"].read(), answer["Metadata"])

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(fetch, keys))


def audit(sent: Sent, objects: Iterable[StoredObject], tz: str = "UTC", *, same_clock: bool = True) -> Audit:
    """Counts everything; `same_clock=False` when the collector's clock was not the client's."""
    found = Audit(
        sent=len(sent),
        acknowledged=sent.acknowledged,
        refused=sent.refused,
        unknown=sent.count(Fate.UNKNOWN),
    )
    zone = ZoneInfo(tz)
    for stored in objects:
        found.objects += 1
        _read_object(found, sent, stored, zone)
    if not same_clock:
        found.wrong_time = 0
    for number, fate in enumerate(sent.fates):
        copies = found.stored_numbers[number]
        if copies > 1:
            found.note("doubled", number)
        if fate == Fate.ACKNOWLEDGED and copies == 0:
            found.note("lost", number)
        if fate == Fate.REFUSED and copies:
            found.note("refused_stored", number)
    found.stored = len(found.stored_numbers)
    return found


def _read_object(found: Audit, sent: Sent, stored: StoredObject, zone: ZoneInfo) -> None:
    try:
        lines = stored.lines()
        events = [json.loads(line) for line in lines]
    except (OSError, EOFError, zlib.error, ValueError) as error:
        found.broken.append(f"{stored.key}: {error}")
        return
    match = _KEY.search(stored.key)
    if match is None or not lines or not lines[-1].endswith(b"\n"):
        found.broken.append(f"{stored.key}: not a name or a content of ours")
        return
    if stored.metadata and not _metadata_agrees(stored.metadata, events):
        found.broken.append(f"{stored.key}: metadata {stored.metadata} for {len(events)} events")
    partition = (match[1], match[2])
    mark = f"&run={sent.run}&"
    for event in events:
        body = event["body"]
        if not (body.startswith("id=") and body[12:].startswith(mark) and int(body[3:12]) < len(sent)):
            found.note("foreign", body[:60])
            continue
        number = int(body[3:12])
        found.stored_numbers[number] += 1
        if body != sent.body(number):
            found.note("altered", number)
        hour = datetime.fromtimestamp(event["ts"], UTC).astimezone(zone)
        if partition != (hour.strftime("%Y-%m-%d"), hour.strftime("%H")):
            found.note("wrong_hour", (number, event["ts"], stored.key))
        settled = sent.settled_at[number]
        if event["ts"] < int(sent.sent_at[number]) or (settled and event["ts"] > settled):
            found.note("wrong_time", (number, event["ts"], sent.sent_at[number], settled))


def _metadata_agrees(metadata: dict[str, str], events: list[dict[str, Any]]) -> bool:
    stamps = [event["ts"] for event in events]
    told = (int(metadata["events"]), int(metadata["first-ts"]), int(metadata["last-ts"]))
    return told == (len(events), min(stamps), max(stamps))
