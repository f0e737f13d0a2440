"""The verdict upon an hour, from tables of what lies there and what was told; no news is not completeness."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest

from ingest.format.keys import partition_of
from ingest.format.manifest import Kind as Word
from ingest.format.manifest import Name
from ingest.lake.judging import Seen, judge

UTC = ZoneInfo("UTC")
HOUR, NEXT = "dt=2025-12-02/hr=14", "dt=2025-12-02/hr=15"
START = 1764684000
A, B = "host-a000000000000000", "host-b000000000000000"
assert partition_of(START, UTC).path == HOUR


def key(number, instance=A):
    return f"raw/{HOUR}/{START + number}_{instance}_{number:010d}.jsonl.gz"


def objects(*numbers, instance=A, events=3):
    return {key(number, instance): Seen(50, events) for number in numbers}


def told(*numbers, instance=A, writer=None, accepted="all", places=("journal", "dlq"), none=(), elsewhere=(), events=3):
    listed = [{"key": key(number, instance), "events": events, "size": 90, "crc32": "000000ff"} for number in numbers]
    dropped = {}
    for _, reason, lost in none:
        if lost:
            dropped[reason] = dropped.get(reason, 0) + lost
    total = len(numbers) * events + sum(dropped.values())
    document = {
        "accepted": total if accepted == "all" else accepted,
        "dropped": dropped,
        "places": list(places),
        "objects": listed,
        "none": [{"key": key(number, instance), "reason": reason, "events": lost} for number, reason, lost in none],
        "elsewhere": list(elsewhere),
    }
    return {Name(instance, writer or instance[5:], hour=HOUR): document}


def opened(through=NEXT, still_open=(), instance=A, started=START, at=START + 7000):
    said = {"started": started, "at": at, "through": through, "open": [{"hour": h, "why": "w"} for h in still_open]}
    return {Name(instance, "", kind=Word.OPEN): said}


def ended(places=("journal", "dlq"), still_open=(), instance=A, writer="", at=START + 9000, why=""):
    said = {"at": at, "places": list(places), "open": [{"hour": h, "why": "waits"} for h in still_open], "why": why}
    return {Name(instance, writer, kind=Word.ENDED): said}


def abandoned(instance=A, hour=None, at=START + 9000):
    return {Name(instance, "", hour=hour or "", kind=Word.ABANDONED): {"hour": hour, "at": at}}


def verdict(there, manifests=None, registry=None):
    return judge(HOUR, there, manifests or {}, registry or {}, tz=UTC)


def kinds(found):
    return [(one.kind.value, one.key) for one in found.findings]


TAKES = opened(through=HOUR)
JOURNAL = {"writer": f"{B[5:]}.journal0", "places": ("journal",)}
DLQ = {"writer": f"{B[5:]}.dlq0", "places": ("dlq",)}


@pytest.mark.parametrize(
    ("there", "manifests", "registry"),
    [
        (objects(1, 2), told(1, 2), opened()),
        ({}, {}, opened()),
        ({}, {}, opened(started=START + 3600, through=NEXT)),
        ({}, {}, ended(at=START - 1) | opened(at=START - 2, started=START - 9000)),
        (objects(1, 2), told(1, 2), TAKES | ended()),
        (objects(1, 2), told(1, accepted=None, **JOURNAL) | told(2, accepted=None, **DLQ), TAKES),
        (objects(1), told(1, accepted=None, **JOURNAL), TAKES | ended(**DLQ)),
        ({}, {}, TAKES | ended(**JOURNAL) | ended(**DLQ)),
        ({}, {}, TAKES | ended(still_open=[HOUR]) | ended(**JOURNAL) | ended(**DLQ)),
        (objects(1, 3), told(1, 3, none=[(2, "void", 0)]), opened()),
        (objects(1), told(1, none=[(2, "evicted", 3)]), opened()),
        (objects(1, 3), told(1, 3, elsewhere=[2]), opened()),
        (objects(1, events=5), told(1), opened()),
        (objects(1), {}, TAKES | abandoned()),
        (objects(1), abandoned(hour=HOUR), TAKES),
        (objects(1) | objects(1, instance=B), told(1) | told(1, instance=B), opened() | opened(instance=B)),
    ],
)
def test_complete_is_what_everybody_has_closed_and_is_as_it_was_told(there, manifests, registry):
    found = verdict(there, manifests, registry)
    assert (found.code, found.still_open, found.findings) == (0, [], [])


@pytest.mark.parametrize(
    ("there", "manifests", "registry", "why"),
    [
        ({}, {}, {}, "no process has told anything"),
        (objects(1), {}, {}, "not registered"),
        ({}, {}, TAKES, "it takes events"),
        (objects(1), told(1), opened(still_open=[HOUR]), "w"),
        ({}, {}, TAKES | ended(**JOURNAL), "it takes events"),
        ({}, {}, TAKES | ended(**JOURNAL) | ended(still_open=[HOUR], **DLQ), "waits"),
        ({}, {}, TAKES | ended(still_open=[HOUR]), "waits"),
        ({}, {}, TAKES | ended(places=(), writer=f"{B[5:]}.dlq0", why="in memory"), "in memory"),
        (objects(1), told(1, accepted=None, **JOURNAL), {}, "not registered"),
        ({}, {}, TAKES | abandoned(hour=NEXT), "it takes events"),
        ({}, {}, TAKES | abandoned(at=START), "it takes events"),
        (objects(1), told(1), opened() | opened(through=HOUR, instance=B), "it takes events"),
    ],
)
def test_open_is_what_somebody_may_still_add_to_and_the_verdict_names_who_and_why(there, manifests, registry, why):
    found = verdict(there, manifests, registry)
    assert (found.code, found.findings) == (1, [])
    assert [why in one.why for one in found.still_open] == [True]


@pytest.mark.parametrize(
    ("there", "manifests", "registry", "kind", "what"),
    [
        (objects(1), told(1, 2), opened(), "missing", key(2)),
        (objects(1), told(1, 2), TAKES | {}, "missing", key(2)),
        (objects(1, events=2), told(1), opened(), "short", key(1)),
        (objects(1, events=None), told(1), opened(), "short", key(1)),
        ({key(1): Seen(50, 3, 90, 254)}, told(1), opened(), "altered", key(1)),
        (objects(1, 2), told(1), opened(), "unexpected", key(2)),
        (
            objects(1) | {f"raw/{HOUR}/part-0.json": Seen(9, None)},
            told(1),
            opened(),
            "unexpected",
            f"raw/{HOUR}/part-0.json",
        ),
        (objects(1, 3), told(1, 3), opened(), "gap", f"{A} number 2"),
        (objects(1, 3), told(1, 3, accepted=None, **JOURNAL), TAKES | ended(**DLQ), "gap", f"{A} number 2"),
        (objects(1), told(1, accepted=5), opened(), "gap", A),
        (objects(1), told(1, accepted=2), opened(), "doubled", A),
    ],
)
def test_it_differs_when_what_is_there_is_not_what_was_told(there, manifests, registry, kind, what):
    found = verdict(there, manifests, registry)
    assert kinds(found) == [(kind, what)]
    assert found.code == 3


def test_two_objects_of_one_number_are_doubled():
    twin = key(1).replace(f"{START + 1}_", f"{START + 2}_")
    found = verdict(objects(1) | {twin: Seen(50, 3)}, told(1), TAKES)
    assert ("doubled", twin) in kinds(found)


def test_deep_finds_lines_as_they_were_told():
    assert verdict({key(1): Seen(50, 3, 90, 255)}, told(1), opened()).code == 0


def test_what_an_open_process_has_not_told_of_yet_is_no_finding():
    assert verdict(objects(1, 2, 5), told(1, accepted=None, **JOURNAL), TAKES).findings == []
