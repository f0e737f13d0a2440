"""The documents that tell which hours are complete: manifests of hours, and the registry of processes.

Owns their names below `MANIFEST_PREFIX`, and their form, one JSON object each:

    dt=…/hr=…/<host>-<token>.<writer>.json    what became of one process's events of one hour. The writer is the process
                                              itself, or `<token>.<place><slot>` of who recovered that slot
    _instances/<host>-<token>.open.json       a process that takes events, and how far its hours are closed
    _instances/<host>-<token>.ended.json      it drained; with `.<writer>` before that, its successor says so of a slot
    _instances/<host>-<token>.abandoned.json  an operator says that no more comes; in an hour's folder: of that hour

Promises that `parse_name` takes apart exactly what is put together here; that `read` takes only what is: each member
has its very type and lies within its bounds, what the body says of its name is the name, and sums are those of their
parts. A document that was torn, copied under another name, or made by a later version is none. Never raises upon a
document, and never decides what is complete.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from ingest.format.keys import parse_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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


def read(name: Name, body: bytes) -> dict[str, Any] | None:
    """Read the document that lies under a name; None unless it is one that is made here for this very name.

    Members that are not known here may stand beside those that are.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    fields, agrees = _FORMS[name.kind]
    return document if _has(document, fields) and agrees(name, document) else None


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


# What `read` takes. A bool is no number: the type is compared, not asked for.

_HOUR_FORM: Final = re.compile(_HOUR)
_FATE: Final = re.compile(r"[a-z_]+")
_CRC32: Final = re.compile(r"[0-9a-f]{8}")
_MOST: Final = 2**53
"""The first number that some readers of JSON do not know from its neighbour."""


def _has(found: object, fields: Mapping[str, Callable[[Any], bool]]) -> bool:
    return type(found) is dict and all(name in found and is_such(found[name]) for name, is_such in fields.items())


def _is_version(found: object) -> bool:
    return type(found) is int and found == VERSION


def _is_count(found: object) -> bool:
    return type(found) is int and 0 <= found < _MOST


def _is_count_or_null(found: object) -> bool:
    return found is None or _is_count(found)


def _is_text(found: object) -> bool:
    return type(found) is str


def _is_reason(found: object) -> bool:
    return type(found) is str and found != ""


def _is_fate(found: object) -> bool:
    return type(found) is str and _FATE.fullmatch(found) is not None


def _is_crc32(found: object) -> bool:
    return type(found) is str and _CRC32.fullmatch(found) is not None


def _is_hour(found: object) -> bool:
    if type(found) is not str or _HOUR_FORM.fullmatch(found) is None:
        return False
    try:
        datetime.fromisoformat(f"{found[3:13]}T{found[17:]}:00")
    except ValueError:
        return False
    return True


def _is_hour_or_null(found: object) -> bool:
    return found is None or _is_hour(found)


def _is_drops(found: object) -> bool:
    return type(found) is dict and all(map(_is_fate, found)) and all(map(_is_count, found.values()))


def _are_counts(found: object) -> bool:
    return type(found) is list and all(map(_is_count, found))


def _are_places(found: object) -> bool:
    return type(found) is list and all(type(place) is str for place in found)


def _are_open(found: object) -> bool:
    return type(found) is list and all(_has(one, {"hour": _is_hour, "why": _is_reason}) for one in found)


def _are_objects(found: object) -> bool:
    return type(found) is list and all(_has(one, _OBJECT) for one in found)


def _are_none(found: object) -> bool:
    return type(found) is list and all(_has(one, _NO_OBJECT) for one in found)


_OBJECT: Final = {"key": _is_text, "events": _is_count, "size": _is_count, "crc32": _is_crc32}
_NO_OBJECT: Final = {"key": _is_text, "reason": _is_fate, "events": _is_count}
_ANY: Final = {"version": _is_version, "instance": _is_text, "at": _is_count}
_MANIFEST_FIELDS: Final = {
    **_ANY,
    "writer": _is_text,
    "hour": _is_hour,
    "generation": _is_count,
    "places": _are_places,
    "accepted": _is_count_or_null,
    "stored": _is_count,
    "dropped": _is_drops,
    "first_ts": _is_count_or_null,
    "last_ts": _is_count_or_null,
    "objects": _are_objects,
    "none": _are_none,
    "elsewhere": _are_counts,
}
_OPEN_FIELDS: Final = {
    **_ANY,
    "started": _is_count,
    "durability": _is_text,
    "through": _is_hour,
    "open": _are_open,
}
_ENDED_FIELDS: Final = {**_ANY, "by": _is_text, "places": _are_places, "open": _are_open}
_ABANDONED_FIELDS: Final = {**_ANY, "hour": _is_hour_or_null, "why": _is_text}


def _is_manifest_of(name: Name, said: dict[str, Any]) -> bool:
    """Hold a manifest against its name, and its sums against their parts."""
    token, _, by = name.writer.partition(".")
    place = by.rstrip("0123456789")
    is_own = place == ""
    dropped: dict[str, int] = {}
    for one in said["none"]:
        if one["events"]:
            dropped[one["reason"]] = dropped.get(one["reason"], 0) + one["events"]
    keys = [one["key"] for one in said["objects"]]
    return (
        (said["instance"], said["writer"], said["hour"]) == (name.instance, name.writer, name.hour)
        and (not is_own or token == name.instance.rpartition("-")[2])
        and _are_places_of(said["places"], place)
        and is_own == (said["accepted"] is not None)
        and said["stored"] == sum(one["events"] for one in said["objects"])
        and {reason: lost for reason, lost in said["dropped"].items() if lost} == dropped
        and len(set(keys)) == len(keys)
        and all(_is_key_of(name, key) for key in keys)
        and all(_is_key_of(name, one["key"]) for one in said["none"])
    )


def _is_opened_by(name: Name, said: dict[str, Any]) -> bool:
    return bool(said["instance"] == name.instance and not name.writer)


def _is_ended_by(name: Name, said: dict[str, Any]) -> bool:
    """Hold a word of an end against its name: a process that drains speaks of both places, its successor of one."""
    if said["instance"] != name.instance or not _is_text(said.get("why", "")):
        return False
    if not name.writer:
        return said["by"] == name.instance and _are_places_of(said["places"], "")
    token, _, slot = name.writer.partition(".")
    speaks = said["places"] == [] or _are_places_of(said["places"], slot.rstrip("0123456789") or "?")
    return bool(speaks and said["by"].rpartition("-")[2] == token)


def _is_abandoned_as(name: Name, said: dict[str, Any]) -> bool:
    return bool(said["instance"] == name.instance and (said["hour"] or "") == name.hour and not name.writer)


def _are_places_of(found: list[str], place: str) -> bool:
    """Tell whether these are the places that a process speaks of itself, or the one of a successor's slot."""
    return found == list(PLACES) if not place else found == [place] and place in PLACES


def _is_key_of(name: Name, key: str) -> bool:
    try:
        parsed = parse_key(key)
    except ValueError:
        return False
    return parsed.instance == name.instance and parsed.partition == name.hour


_FORMS: Final[
    Mapping[Kind | None, tuple[Mapping[str, Callable[[Any], bool]], Callable[[Name, dict[str, Any]], bool]]]
] = {
    None: (_MANIFEST_FIELDS, _is_manifest_of),
    Kind.OPEN: (_OPEN_FIELDS, _is_opened_by),
    Kind.ENDED: (_ENDED_FIELDS, _is_ended_by),
    Kind.ABANDONED: (_ABANDONED_FIELDS, _is_abandoned_as),
}
