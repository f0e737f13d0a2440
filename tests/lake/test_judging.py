"""The verdict upon an hour, from tables of what lies there and what was told; no news is not completeness."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest

from ingest.format.codec import Extent
from ingest.format.keys import partition_of
from ingest.format.manifest import Kind as Word
from ingest.format.manifest import Name
from ingest.lake.judging import UNREADABLE, Said, Seen, judge

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


def torn(documents):
    """The same names, over bytes that cannot be read."""
    return dict.fromkeys(documents)


def said(documents):
    return {
        name: found if isinstance(found, Said) else Said(f"{name.instance} {name.writer}", found)
        for name, found in (documents or {}).items()
    }


def stored(at, documents):
    """The documents, with the time at which the store took them."""
    return {name: Said(name.instance, document, at) for name, document in documents.items()}


def verdict(there, manifests=None, registry=None):
    return judge(HOUR, there, said(manifests), said(registry))


def kinds(found):
    return [(one.kind.value, one.key) for one in found.findings]


COPY, MOVED = f"raw/{HOUR}/{key(1)}", f"raw/{HOUR}/old/{NEXT}/{START}_{A}_0000000002.jsonl.gz"
TAKES = opened(through=HOUR)
JOURNAL = {"writer": f"{B[5:]}.journal0", "places": ("journal",)}
DLQ = {"writer": f"{B[5:]}.dlq0", "places": ("dlq",)}
BOTH_ENDED = ended(**JOURNAL) | ended(**DLQ)
BOTH_TOLD = {
    name: {**document, "at": START + 9000}
    for name, document in (told(1, accepted=None, **JOURNAL) | told(accepted=None, **DLQ)).items()
}


@pytest.mark.parametrize(
    ("there", "manifests", "registry"),
    [
        (objects(1, 2), told(1, 2), opened()),
        ({}, {}, opened()),
        ({}, {}, opened(started=START + 3600, through=NEXT)),
        ({}, {}, torn(TAKES) | ended()),
        ({}, {}, torn(TAKES) | ended(**JOURNAL) | ended(**DLQ)),
        ({}, {}, opened() | torn(ended())),
        (objects(1), told(1), torn(TAKES)),
        ({}, {}, opened(still_open=[HOUR]) | ended()),
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
        ({}, {}, stored(9, opened(through=HOUR, at=START + 8900)) | stored(5, BOTH_ENDED)),
        ({}, {}, stored(5, opened(through=HOUR, at=START + 9100)) | stored(5, BOTH_ENDED)),
        (objects(1), stored(9, BOTH_TOLD), stored(5, opened(through=HOUR, at=START + 9100))),
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
        (objects(1), told(1), opened() | torn(opened(instance=B)), UNREADABLE + B),
        (objects(1), told(1), opened() | torn(ended(instance=B)), UNREADABLE + B),
        (objects(1), told(1), opened() | torn(abandoned(instance=B)), UNREADABLE + B),
        ({}, {}, TAKES | torn(ended()), UNREADABLE + A),
        ({}, {}, torn(TAKES) | ended(**JOURNAL), UNREADABLE + A),
        ({}, {}, TAKES | ended(**JOURNAL) | torn(ended(**DLQ)), UNREADABLE + A),
        ({}, torn(told(1)), opened(), UNREADABLE + A),
        (objects(1), told(1) | torn(told(1, **JOURNAL)), opened(), UNREADABLE + A),
        (objects(1), {}, opened() | torn(abandoned()) | torn(TAKES), UNREADABLE + A),
        ({}, {}, opened(still_open=[HOUR], started=START + 3600), "w"),
        ({}, {}, opened(still_open=[HOUR], started=START + 9 * 3600), "w"),
        ({}, {}, opened() | ended(still_open=[HOUR], at=START - 1), "waits"),
        ({}, {}, ended(still_open=[HOUR], at=START - 9 * 3600), "waits"),
        (objects(1), told(1), opened() | ended(still_open=[HOUR]), "waits"),
        ({}, {}, stored(5, TAKES) | stored(4, abandoned(at=START + 3 * 3600)), "it takes events"),
        ({}, {}, stored(3, TAKES) | stored(5, torn(opened())) | stored(4, abandoned()), UNREADABLE + A),
        ({}, {}, stored(3, TAKES) | stored(5, ended(still_open=[HOUR])) | stored(4, abandoned(at=2**40)), "waits"),
        ({}, {}, stored(9, opened(still_open=[HOUR], at=START + 9100)) | stored(5, BOTH_ENDED), "w"),
        ({}, {}, stored(9, opened(through=HOUR, at=START + 9100)) | stored(5, BOTH_ENDED), "it takes events"),
        (objects(1), stored(5, BOTH_TOLD), stored(9, opened(through=HOUR, at=START + 9100)), "it takes events"),
        ({}, {}, opened(through=HOUR, still_open=[HOUR]), "w"),
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
        ({key(1): Seen(50, 3, Extent(3, 90, 254, is_whole=True))}, told(1), opened(), "altered", key(1)),
        ({key(1): Seen(50, 3, Extent(3, 91, 255, is_whole=True))}, told(1), opened(), "altered", key(1)),
        ({key(1): Seen(50, 3, Extent(4, 90, 255, is_whole=True))}, told(1), opened(), "altered", key(1)),
        ({key(1): Seen(50, 3, Extent(3, 90, 255, is_whole=False))}, told(1), opened(), "altered", key(1)),
        ({key(1): Seen(50, 5, Extent(5, 99, 254, is_whole=True))}, told(1), opened(), "altered", key(1)),
        ({key(1): Seen(50, 5, Extent(5, 89, 255, is_whole=True))}, told(1), opened(), "altered", key(1)),
        ({key(1): Seen(50, 3, Extent(2, 60, 255, is_whole=True))}, {}, TAKES, "altered", key(1)),
        (objects(1, 2), told(1), opened(), "unexpected", key(2)),
        (
            objects(1) | {f"raw/{HOUR}/part-0.json": Seen(9, None)},
            told(1),
            opened(),
            "unexpected",
            f"raw/{HOUR}/part-0.json",
        ),
        (objects(1) | {COPY: Seen(50, 3)}, told(1), opened(), "unexpected", COPY),
        (objects(1) | {MOVED: Seen(50, 3)}, told(1), opened(), "unexpected", MOVED),
        (objects(1, 3), told(1, 3), opened(), "gap", f"{A} number 2"),
        (objects(1, 3), told(1, 3, accepted=None, **JOURNAL), TAKES | ended(**DLQ), "gap", f"{A} number 2"),
        (objects(1, 10**11), told(1, 10**11), opened(), "gap", f"{A} numbers 2 to 99999999999"),
        (objects(1, 10**11), told(1), opened(), "unexpected", key(10**11)),
        (objects(1), told(1, accepted=5), opened(), "gap", A),
        (objects(1), told(1, accepted=2), opened(), "doubled", A),
        ({key(1): Seen(0, None)}, {}, TAKES, "short", key(1)),
        ({key(1): Seen(0, None)}, {}, TAKES | abandoned(), "short", key(1)),
        (objects(1) | {key(2): Seen(9, None)}, told(1, none=[(2, "evicted", 3)]), opened(), "short", key(2)),
    ],
)
def test_it_differs_when_what_is_there_is_not_what_was_told(there, manifests, registry, kind, what):
    found = verdict(there, manifests, registry)
    assert kinds(found) == [(kind, what)]
    assert found.code == 3


@pytest.mark.parametrize(
    ("manifests", "dropped"),
    [
        (told(1, none=[(2, "evicted", 3)]) | told(1, none=[(2, "evicted", 3)], accepted=None, **DLQ), {"evicted": 3}),
        (
            told(1, none=[(1, "corrupt", 2)], accepted=None, **JOURNAL)
            | told(1, none=[(1, "corrupt", 2)], accepted=None, **DLQ),
            {"corrupt": 2},
        ),
        (
            told(none=[(1, "discarded", 0)], accepted=None, **JOURNAL)
            | told(none=[(1, "discarded", 0)], accepted=None, **DLQ),
            {"discarded": 0},
        ),
        (told(1, accepted=None, **JOURNAL) | told(none=[(1, "evicted", 3)], accepted=None, **DLQ), {}),
        (
            told(1, none=[(2, "evicted", 3)], accepted=None, **JOURNAL)
            | told(none=[(2, "discarded", 2)], accepted=None, **DLQ),
            {"evicted": 3},
        ),
        (told(1, none=[(2, "evicted", 3), (3, "evicted", 3), (4, "void", 0)]), {"evicted": 6}),
    ],
)
def test_events_that_were_given_up_count_once_however_many_tell_of_them(manifests, dropped):
    found = verdict(objects(1), manifests, TAKES | ended(**JOURNAL) | ended(**DLQ))
    assert (found.dropped, found.findings) == (dropped, [])


def test_an_accepted_event_is_missed_though_another_was_told_of_as_stored_and_given_up():
    manifests = told(1, accepted=6) | told(none=[(1, "evicted", 3)], accepted=None, **DLQ)
    assert kinds(verdict(objects(1), manifests, opened())) == [("gap", A)]


def test_two_objects_of_one_number_are_doubled():
    twin = key(1).replace(f"{START + 1}_", f"{START + 2}_")
    found = verdict(objects(1) | {twin: Seen(50, 3)}, told(1), TAKES)
    assert ("doubled", twin) in kinds(found)


@pytest.mark.parametrize("found", [Seen(50, 3, Extent(3, 90, 255, True)), Seen(50, 5, Extent(5, 150, 255, True))])
def test_deep_finds_lines_that_are_or_begin_with_those_that_were_told(found):
    assert verdict({key(1): found}, told(1), opened()).code == 0


def test_a_run_of_missing_numbers_is_one_finding_and_what_lies_there_untold_divides_it():
    found = verdict(objects(1, 50, 100), told(1, 100), TAKES | abandoned() | ended())
    gaps = [one.key for one in found.findings if one.kind.value == "gap"]
    assert gaps == [f"{A} numbers 2 to 49", f"{A} numbers 51 to 99"]


def test_a_process_is_abandoned_until_the_store_hears_of_it_again_whatever_the_clocks_say():
    for clock in (START + 3 * 3600, START - 3 * 3600):
        codes = [verdict({}, {}, stored(4, TAKES) | stored(at, abandoned(at=clock))).code for at in (5, 3)]
        assert codes == [0, 1]


IN_MEMORY = ended(places=(), writer=f"{B[5:]}.dlq0", why="in memory", at=START - 7200)
RECOVERED = ended(**DLQ, at=START - 7200)


@pytest.mark.parametrize("gone", [IN_MEMORY, RECOVERED], ids=["its memory is lost", "a slot of it is lost"])
@pytest.mark.parametrize(
    ("there", "told", "registry", "start", "code"),
    [
        ({}, {}, {}, START, 0),
        ({}, {}, {}, START - 1, 1),
        ({}, {}, {}, 0.0, 1),
        ({}, {}, ended(still_open=[HOUR], at=START - 7300), START, 1),
        ({}, {}, ended(still_open=[HOUR], **JOURNAL), START, 1),
        ({}, {}, torn(ended(**JOURNAL)), START, 1),
        (objects(1), {}, {}, START, 1),
        ({}, torn(told(1)), {}, START, 1),
    ],
)
def test_who_was_found_gone_long_before_an_hour_keeps_it_open_only_if_something_tells_of_it(
    gone, there, told, registry, start, code
):
    before = opened(through="dt=2025-12-02/hr=11", at=START - 9000)
    found = judge(HOUR, there, said(told), said(before | gone | registry), start)
    assert (found.code, len(found.still_open)) == (code, code)


def test_who_spoke_after_it_was_called_gone_lives_however_long_ago_that_was():
    lives = stored(START - 3600, opened(through=HOUR, at=START - 3600)) | stored(START - 7200, RECOVERED)
    assert judge(HOUR, {}, {}, lives, START).code == 1


def test_what_an_open_process_has_not_told_of_yet_is_no_finding():
    assert verdict(objects(1, 2, 5), told(1, accepted=None, **JOURNAL), TAKES).findings == []
