"""The documents that tell which hours are complete: manifests of hours, and the registry of processes.

Owns their names below `MANIFEST_PREFIX`, and their form, one JSON object each:

    dt=…/hr=…/<host>-<token>.<writer>.json    what became of one process's events of one hour. The writer is the process
                                              itself, or `<token>.<place><slot>` of who recovered that slot
    _instances/<host>-<token>.open.json       a process that takes events, and how far its hours are closed
    _instances/<host>-<token>.ended.json      it drained; with `.<writer>` before that, its successor says so of a slot
    _instances/<host>-<token>.abandoned.json  an operator says that no more comes; in an hour's folder: of that hour

Promises that `parse_name` takes apart exactly what is put together here. Never decides what is complete.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from ingest.format.keys import parse_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ingest.format.ledger import Fate

VERSION: Final = 1
INSTANCES: Final = "_instances"
CONTENT_TYPE: Final = "application/json"
PLACES: Final = ("journal", "dlq")
"""Where a process leaves what it has not stored: a slot of each is its own."""


class Kind(Enum):
    """The documents of the registry."""

    OPEN = "open"
    ENDED = "ended"
    ABANDONED = "abandoned"


class Name(NamedTuple):
    """A document's name, taken apart. A manifest has an hour and no kind."""

    instance: str
    writer: str
    hour: str = ""
    kind: Kind | None = None


def manifest_key(prefix: str, hour: str, instance: str, writer: str) -> str:
    """Return where the manifest goes that `writer` makes of an hour of `instance`."""
    return f"{prefix}/{hour}/{instance}.{writer}.json"


def registry_key(prefix: str, instance: str, kind: Kind, writer: str = "") -> str:
    """Return where a document of the registry goes; `writer` where that is not the process itself."""
    by = f".{writer}" if writer else ""
    return f"{prefix}/{INSTANCES}/{instance}{by}.{kind.value}.json"


def abandoned_key(prefix: str, instance: str, hour: str | None) -> str:
    """Return where it is said that nothing more of a process will come, of one hour or of all."""
    return f"{prefix}/{hour or INSTANCES}/{instance}.{Kind.ABANDONED.value}.json"


def parse_name(prefix: str, key: str) -> Name | None:
    """Take a name apart; None if it is none of these."""
    if not key.startswith(f"{prefix}/"):
        return None
    name = key[len(prefix) + 1 :]
    if found := _MANIFEST.fullmatch(name):
        kind = Kind.ABANDONED if found["writer"] is None else None
        return Name(found["instance"], found["writer"] or "", hour=found["hour"], kind=kind)
    if found := _REGISTRY.fullmatch(name):
        return Name(found["instance"], found["writer"] or "", kind=Kind(found["kind"]))
    return None


@dataclass(frozen=True, slots=True)
class Taken:
    """An hour as a process itself knows it, beside its ledger."""

    accepted: int
    first_ts: int
    last_ts: int


def manifest(
    *,
    instance: str,
    writer: str,
    hour: str,
    generation: int,
    at: float,
    places: tuple[str, ...],
    fates: Mapping[str, Fate],
    taken: Taken | None,
    elsewhere: list[int],
) -> bytes:
    """Make the manifest of one hour. `taken` is None from a successor, `elsewhere` has numbers of other hours."""
    objects: list[dict[str, Any]] = []
    none: list[dict[str, Any]] = []
    dropped: dict[str, int] = {}
    for key, fate in sorted(fates.items(), key=lambda item: parse_key(item[0]).sequence):
        if fate.stored is not None:
            one = fate.stored
            objects.append({"key": key, "events": one.events, "size": one.size, "crc32": f"{one.crc32:08x}"})
        elif not fate.dropped:
            none.append({"key": key, "reason": "void", "events": 0})
        for reason, events in fate.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + events
            none.append({"key": key, "reason": reason, "events": events})
    firsts = [parse_key(one["key"]).unix for one in objects]
    return _encoded(
        {
            "version": VERSION,
            "instance": instance,
            "writer": writer,
            "hour": hour,
            "generation": generation,
            "at": int(at),
            "places": list(places),
            "accepted": None if taken is None else taken.accepted,
            "stored": sum(one["events"] for one in objects),
            "dropped": dropped,
            "first_ts": taken.first_ts if taken is not None else min(firsts, default=None),
            "last_ts": None if taken is None else taken.last_ts,
            "objects": objects,
            "none": none,
            "elsewhere": elsewhere,
        }
    )


def opened(
    *, instance: str, started: float, at: float, durability: str, through: str, still_open: Mapping[str, str]
) -> bytes:
    """Say that a process takes events: hours before `through` hold nothing more of it but those `still_open`."""
    return _encoded(
        {
            "version": VERSION,
            "instance": instance,
            "started": int(started),
            "at": int(at),
            "durability": durability,
            "through": through,
            "open": _hours(still_open),
        }
    )


def ended(
    *, instance: str, by: str, at: float, places: tuple[str, ...], still_open: Mapping[str, str], why: str = ""
) -> bytes:
    """Say that a process has ended, and that these places hold nothing more of it but of hours `still_open`.

    Without a place nothing is closed, and `why` says why it never will be.
    """
    said = {"version": VERSION, "instance": instance, "by": by, "at": int(at), "places": list(places)}
    return _encoded({**said, "open": _hours(still_open), **({"why": why} if why else {})})


def abandoned(*, instance: str, at: float, hour: str | None, why: str) -> bytes:
    """Say that nothing more of a process will come, of one hour or of all."""
    return _encoded({"version": VERSION, "instance": instance, "at": int(at), "hour": hour, "why": why})


def parse(body: bytes) -> dict[str, Any] | None:
    """Read a document; None if it is none of ours, or of a version that is not known here."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(document, dict) or document.get("version") != VERSION:
        return None
    return document


def _hours(still_open: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"hour": hour, "why": why} for hour, why in sorted(still_open.items())]


def _encoded(document: Mapping[str, object]) -> bytes:
    return orjson.dumps(document) + b"\n"


_HOUR: Final = r"dt=[0-9]{4}-[0-9]{2}-[0-9]{2}/hr=[0-9]{2}"
_WRITER: Final = r"[0-9a-f]{16}(?:\.[a-z]*[0-9]+)?"
_INSTANCE: Final = r"(?P<instance>[A-Za-z0-9-]+-[0-9a-f]{16})"
_MANIFEST: Final = re.compile(rf"(?P<hour>{_HOUR})/{_INSTANCE}\.(?:(?P<writer>{_WRITER})|abandoned)\.json")
_REGISTRY: Final = re.compile(
    rf"{INSTANCES}/{_INSTANCE}(?:\.(?P<writer>{_WRITER}))?\.(?P<kind>{'|'.join(kind.value for kind in Kind)})\.json"
)
