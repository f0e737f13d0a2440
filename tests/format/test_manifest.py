"""The strict reader: what is made here is read, and whatever else lies under a name is none, and raises nothing."""

from __future__ import annotations

import copy

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.format import ledger, manifest
from ingest.format.ledger import Entry, Fate
from ingest.format.manifest import PLACES, Kind, Name, Taken
from ingest.lake.judging import Said, Seen, judge

HOUR = "dt=2025-12-02/hr=14"
START = 1764684000
A, B, C = "edge-1-a000000000000000", "edge-1-b000000000000000", "edge-1-c000000000000000"
OWN, THEIRS = A[-16:], f"{B[-16:]}.dlq3"


def key(number, instance=A, hour=HOUR):
    return f"raw/{hour}/{START}_{instance}_{number:010d}.jsonl.gz"


def told(writer, places, taken):
    fates = {
        key(1): Fate(Entry(key(1), 5, 90, 255, stored=True), {}),
        key(2): Fate(None, {}),
        key(4): Fate(None, {"evicted": 3}),
        key(6): Fate(None, {"discarded": 0}),  # nobody knows how many
        key(5): Fate(Entry(key(5), 2, 40, 7, stored=True), {ledger.CORRUPT: 1}),
    }
    return manifest.manifest(
        instance=A,
        writer=writer,
        hour=HOUR,
        generation=1,
        at=START + 4000.5,
        places=places,
        fates=fates,
        taken=taken,
        elsewhere=[3],
    )


OPENED = manifest.opened(
    instance=A, started=START, at=START + 60.5, durability="journal", through=HOUR, still_open={HOUR: "it is not over"}
)
MADE = {
    Name(A, OWN, hour=HOUR): told(OWN, PLACES, Taken(11, START, START + 9)),
    Name(A, f"{OWN}.2", hour=HOUR): told(f"{OWN}.2", PLACES, Taken(0, 0, 0)),
    Name(A, THEIRS, hour=HOUR): told(THEIRS, ("dlq",), None),
    Name(A, "", kind=Kind.OPEN): OPENED,
    Name(A, "", kind=Kind.ENDED): manifest.ended(instance=A, by=A, at=START, places=PLACES, still_open={}),
    Name(A, THEIRS, kind=Kind.ENDED): manifest.ended(
        instance=A, by=B, at=START, places=("dlq",), still_open={HOUR: "dead letters wait"}
    ),
    Name(A, f"{C[-16:]}.journal0", kind=Kind.ENDED): manifest.ended(
        instance=A, by=C, at=START, places=(), still_open={}, why="in memory"
    ),
    Name(A, "", kind=Kind.ABANDONED): manifest.abandoned(instance=A, at=START, hour=None, why=""),
    Name(A, "", hour=HOUR, kind=Kind.ABANDONED): manifest.abandoned(instance=A, at=START, hour=HOUR, why="gone"),
}


def places_in(found, at=()):
    """Yield the way to each value of a document."""
    yield at
    if isinstance(found, dict | list):
        for step, value in found.items() if isinstance(found, dict) else enumerate(found):
            yield from places_in(value, (*at, step))


def changed(name, at, value):
    document = {"": orjson.loads(MADE[name])}
    *way, last = ("", *at)
    around = document
    for step in way:
        around = around[step]
    around[last] = copy.deepcopy(value)
    return orjson.dumps(document[""])


@pytest.mark.parametrize("name", MADE)
def test_what_is_made_is_read_under_its_own_name_and_under_no_other(name):
    assert manifest.read(name, MADE[name]) == orjson.loads(MADE[name])
    later = orjson.dumps({**orjson.loads(MADE[name]), "one_more": [1]})
    assert manifest.read(name, later) is not None
    others = [*MADE, name._replace(instance=B), *([name._replace(hour="dt=2025-12-02/hr=15")] if name.hour else [])]
    assert [other for other in others if other != name and manifest.read(other, MADE[name]) is not None] == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"null", b"[]", b"1", b'""', b"{}", b'{"version":1}', b"<html>", b"\xff\0"]
)
def test_bytes_that_are_no_document_are_none(body):
    assert [manifest.read(name, body) for name in MADE] == [None] * len(MADE)


WRONG = [
    ("version", [True, 2, "1", 1.0, None]),
    ("instance", [B, 1, None, ""]),
    ("at", [True, -1, 1e300, "1", None, 2**53, 2**64]),
    ("started", [True, -1, 1e300, "1", None, 2**53, 10**30]),
    (
        "through",
        ["zz", 7, None, True, "dt=2025-12-02/hr=24", "dt=2025-02-30/hr=00", "dt=9999-99-99/hr=99", f"{HOUR}\n"],
    ),
    ("open", [None, {}, [1], [{"hour": HOUR}], [{"hour": HOUR, "why": ""}], [{"hour": "zz", "why": "w"}], "open"]),
    ("by", [B, 1, None, ""]),
    ("places", [None, "journal", [True], ["journal"], ["dlq", "journal"], ["nowhere"], [*PLACES, "dlq"]]),
    ("writer", [B[-16:], None, 1]),
    ("hour", ["dt=2025-12-02/hr=15", 1, True]),
    ("accepted", [None, True, -1, 0.5, 2**53]),
    ("stored", [6, None, True]),
    (
        "dropped",
        [
            None,
            [],
            {"evicted": "3"},
            {"evicted": 4, "corrupt": 1},
            {"evicted": 3, "corrupt": 1, "a\n": 0},
            {"evicted": 3},
        ],
    ),
    ("objects", [None, {}, [1], []]),
    ("none", [None, {}, [1], []]),
    ("elsewhere", [None, [True], ["3"], [3.0], [-1], {}]),
]


@pytest.mark.parametrize(("member", "values"), WRONG, ids=[member for member, _ in WRONG])
def test_a_member_of_another_type_or_out_of_its_bounds_makes_a_document_none(member, values):
    for name in (Name(A, OWN, hour=HOUR), Name(A, "", kind=Kind.OPEN), Name(A, "", kind=Kind.ENDED)):
        if member in orjson.loads(MADE[name]):
            assert [value for value in values if manifest.read(name, _with(name, member, value)) is not None] == []
            document = orjson.loads(MADE[name])
            del document[member]
            assert manifest.read(name, orjson.dumps(document)) is None


def _with(name, member, value):
    try:
        return changed(name, (member,), value)
    except TypeError:  # a number that JSON has and orjson does not make
        return MADE[name].replace(b'"%s":' % member.encode(), b'"%s":%d,"was":' % (member.encode(), value))


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (("objects", 0, "key"), key(1, B)),
        (("objects", 0, "key"), key(1, hour="dt=2025-12-02/hr=15")),
        (("objects", 0, "key"), f"raw/{HOUR}/part-0.json"),
        (("objects", 0, "key"), key(5)),
        (("objects", 0, "crc32"), "0xff"),
        (("objects", 0, "crc32"), "000000FF"),
        (("objects", 0, "events"), True),
        (("objects", 0, "size"), "90"),
        (("none", 0, "key"), key(2, B)),
        (("none", 0, "events"), 1),
    ],
)
def test_an_object_of_another_process_or_hour_or_sums_that_disagree_make_a_manifest_none(at, value):
    name = Name(A, OWN, hour=HOUR)
    assert manifest.read(name, changed(name, at, value)) is None


leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5)
hours = st.sampled_from([HOUR, "dt=2025-12-02/hr=15", "zz", key(1), key(2, B), OWN, A, B, "dlq"])
values = st.recursive(leaves | hours, lambda deeper: st.lists(deeper) | st.dictionaries(st.text(max_size=5), deeper))


@given(st.data())
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_any_value_in_any_place_of_a_document_ends_in_a_verdict(data):
    name = data.draw(st.sampled_from(list(MADE)))
    at = data.draw(st.sampled_from(list(places_in(orjson.loads(MADE[name])))))
    try:
        body = changed(name, at, data.draw(values))
    except orjson.JSONEncodeError:  # half of a surrogate pair
        body = b'{"version":1}'
    documents = {**MADE, name: body}
    said = {other: Said(str(other), manifest.read(other, found)) for other, found in documents.items()}
    hour = {other: found for other, found in said.items() if other.hour}
    registry = {other: found for other, found in said.items() if not other.hour}
    objects = {key(1): Seen(50, 5), key(5): Seen(40, 2)}
    for told in (hour, {name: found for name, found in hour.items() if name.kind is None}):
        assert judge(HOUR, objects, told, registry).code in (0, 1, 3)
