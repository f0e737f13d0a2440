"""What clients know of their events, and how an event looks in a line."""

from __future__ import annotations

import gzip
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


class Ledger:
    """What the clients know, as sets of event numbers. An event is in one of the first four; `safe` is beside them."""

    def __init__(self) -> None:
        self.flying: dict[int, set[int]] = {}
        """Sent to a process, by its number, and not answered yet."""
        self.owed: set[int] = set()
        """Acknowledged, and covered by the mode: to be stored exactly once."""
        self.maybe: set[int] = set()
        """The answer was lost, or what happened is beyond the mode: stored once, or not at all."""
        self.refused: set[int] = set()
        """Answered 503: never to be stored."""
        self.dropped: set[int] = set()
        """Evicted or expired, which is counted."""
        self.safe: set[int] = set()
        """In a published dead-letter file, which every mode's power cut leaves alone."""
        self.owner: dict[int, int] = {}
        self.second: dict[int, int] = {}

    def send(self, process: int, number: int, second: int) -> None:
        self.flying.setdefault(process, set()).add(number)
        self.owner[number] = process
        self.second[number] = second

    def answer(self, process: int, number: int, *, committed: bool) -> None:
        self.flying[process].remove(number)
        (self.owed if committed else self.refused).add(number)

    def lose_answers(self, process: int) -> None:
        self.maybe |= self.flying.pop(process, set())

    def demote(self, numbers: set[int]) -> None:
        """Ask no more of these events than that none is stored twice."""
        self.owed -= numbers
        self.refused -= numbers
        self.maybe |= numbers

    def drop(self, numbers: set[int]) -> None:
        self.dropped |= numbers & self.owed
        self.demote(numbers & self.owed)


def line(second: int, number: int, padding: int = 0) -> bytes:
    padded = b'"pad":"%b",' % (b"x" * padding) if padding else b""
    return b'{"ts":%d,%b"body":%d}\n' % (second, padded, number)


def numbers_in(body: bytes) -> list[int]:
    return [event["body"] for event in events_in(body)]


def events_in(body: bytes) -> list[dict[str, Any]]:
    return parsed(gzip.decompress(body))


def numbers_on_disk(path: Path) -> set[int]:
    """The events in a dead-letter file or a segment, as far as they are sound."""
    found = set()
    for text in (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).splitlines():
        with suppress(ValueError):
            found.add(json.loads(text)["body"])
    return found


def parsed(lines: bytes) -> list[dict[str, Any]]:
    return [json.loads(text) for text in lines.splitlines()]
