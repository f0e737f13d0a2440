"""What is read of a store to judge an hour, and what is not."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc

import pytest

from ingest.config.settings import load
from ingest.disk import StorageError
from ingest.format import codec, ledger, manifest
from ingest.format.manifest import Kind
from ingest.lake import looking
from ingest.lake.each import each
from ingest.lake.judging import NOT_OVER
from ingest.lake.looking import Looking
from ingest.store.object_store import Listed
from tests.lake.test_judging import HOUR, NEXT, START, A, B

DAY = 24 * 3600
OTHER = "host-c000000000000000"


class Shelf:
    """A store to be read, with the time at which each document was written."""

    def __init__(self):
        self.objects = {}
        self.asked = []

    def has(self, key, body, modified=START):
        self.objects[key] = (body, modified)

    async def listing(self, prefix):
        return [
            Listed(key, len(body), modified)
            for key, (body, modified) in sorted(self.objects.items())
            if key.startswith(prefix)
        ]

    async def get(self, key):
        self.asked.append(key)
        return self.objects[key][0]

    async def first_bytes(self, key, size):
        return self.objects[key][0][:size]


def opened(instance, at, through=NEXT):
    return manifest.opened(instance=instance, started=at, at=at, durability="journal", through=through, still_open={})


def ended(instance, at, places=manifest.PLACES, still_open=()):
    return manifest.ended(
        instance=instance, by=instance, at=at, places=tuple(places), still_open=dict.fromkeys(still_open, "waits")
    )


def looked(shelf, *, deep=False, hour=HOUR, now=None, **variables):
    said = []
    eyes = Looking(load(variables), shelf, said.append, now=now and (lambda: now))
    return asyncio.run(eyes.verdict(hour, deep=deep)), said


def test_the_words_of_processes_that_ended_long_ago_are_not_read():
    shelf = Shelf()
    for number in range(50):
        instance, at = f"host-{number:016x}", START - 3 * DAY
        shelf.has(manifest.registry_key("raw_manifest", instance, Kind.OPEN), opened(instance, at), at)
        if number % 2:
            shelf.has(manifest.registry_key("raw_manifest", instance, Kind.ENDED), ended(instance, at), at)
            continue
        for place in manifest.PLACES:
            key = manifest.registry_key("raw_manifest", instance, Kind.ENDED, f"{A[5:]}.{place}3")
            shelf.has(key, ended(instance, at, [place]), at)
    shelf.has(manifest.registry_key("raw_manifest", A, Kind.OPEN), opened(A, START))
    verdict, _ = looked(shelf)
    assert verdict.code == 0
    assert len(shelf.asked) == 1


def test_those_of_a_process_that_nobody_saw_end_are_read_however_old_they_are():
    shelf = Shelf()
    long_ago = START - 300 * DAY
    shelf.has(manifest.registry_key("raw_manifest", A, Kind.OPEN), opened(A, long_ago, "dt=2025-01-01/hr=00"), long_ago)
    shelf.has(manifest.registry_key("raw_manifest", B, Kind.OPEN), opened(B, long_ago, "dt=2025-01-01/hr=00"), long_ago)
    key = manifest.registry_key("raw_manifest", B, Kind.ENDED, f"{A[5:]}.dlq0")
    shelf.has(key, ended(B, long_ago, ["dlq"]), long_ago)
    verdict, _ = looked(shelf)
    assert [one.instance for one in verdict.still_open] == [A, B]


@pytest.mark.parametrize(
    ("hour", "tz", "end"),
    [
        (HOUR, "UTC", START + 3600),
        ("dt=2025-12-02/hr=15", "Europe/Berlin", START + 3600),
        ("dt=2025-10-26/hr=02", "Europe/Berlin", 1761444000),
    ],
    ids=["UTC", "a zone", "an hour of two"],
)
def test_an_hour_that_is_not_over_is_open_though_everybody_has_drained(hour, tz, end):
    shelf = Shelf()
    shelf.has(manifest.registry_key("raw_manifest", A, Kind.ENDED), ended(A, START), START)
    before, after = (looked(shelf, hour=hour, now=at, PARTITION_TZ=tz)[0] for at in (end - 1, end))
    assert (before.code, [one.why for one in before.still_open]) == (1, [NOT_OVER])
    assert (after.code, after.still_open) == (0, [])


def put_open(shelf, instance, body):
    shelf.has(manifest.registry_key("raw_manifest", instance, Kind.OPEN), body)


UNREADABLE = [
    b"",
    b"{torn",
    b"<html>502</html>",
    b'{"version":1}',
    opened(A, START),
    opened(B, START).replace(b'"version":1', b'"version":2'),
    opened(B, START).replace(b'"version":1', b'"version":true'),
    opened(B, START, "zz"),
    opened(B, START).replace(b'"started":', b'"started":1e300,"was":'),
    opened(B, START).replace(b'"through":', b'"through":7,"was":'),
]


@pytest.mark.parametrize("body", UNREADABLE, ids=range(len(UNREADABLE)))
def test_a_process_whose_word_cannot_be_read_keeps_the_hour_open_and_is_named(body):
    shelf = Shelf()
    put_open(shelf, A, opened(A, START))
    put_open(shelf, B, body)
    verdict, said = looked(shelf)
    key = manifest.registry_key("raw_manifest", B, Kind.OPEN)
    assert (verdict.code, verdict.still_open) == (1, [(B, f"its word cannot be read: {key}")])
    assert len(said) == 1


def test_a_manifest_that_cannot_be_read_keeps_the_hour_open_though_its_process_closed_it():
    shelf = Shelf()
    put_open(shelf, A, opened(A, START))
    key = manifest.manifest_key("raw_manifest", HOUR, A, A[5:])
    shelf.has(key, b"")
    verdict, _ = looked(shelf)
    assert verdict.still_open == [(A, f"its word cannot be read: {key}")]


def test_a_document_above_the_bound_is_not_fetched(monkeypatch):
    monkeypatch.setattr(looking, "LARGEST_DOCUMENT", 1000)
    shelf = Shelf()
    put_open(shelf, A, opened(A, START) + b" " * 1000)
    verdict, _ = looked(shelf)
    assert (verdict.code, shelf.asked) == (1, [])


def test_documents_of_a_later_version_are_told_and_close_nothing():
    shelf = Shelf()
    put_open(shelf, OTHER, opened(OTHER, START, HOUR))
    later = ended(OTHER, START + 1).replace(b'"version":1', b'"version":2')
    shelf.has(manifest.registry_key("raw_manifest", OTHER, Kind.ENDED), later)
    shelf.has(manifest.registry_key("raw_manifest", A, Kind.ENDED), b"{torn")
    verdict, said = looked(shelf)
    assert [one.instance for one in verdict.still_open] == [A, OTHER]
    assert len(said) == 2


def test_an_empty_document_ends_nothing_however_old_it_is():
    shelf = Shelf()
    long_ago = START - 300 * DAY
    shelf.has(manifest.registry_key("raw_manifest", A, Kind.OPEN), opened(A, long_ago, "dt=2025-01-01/hr=00"), long_ago)
    shelf.has(manifest.registry_key("raw_manifest", A, Kind.ENDED), b"", long_ago)
    assert looked(shelf)[0].code == 1


def test_who_registers_between_two_hours_of_a_range_is_seen_in_the_second():
    shelf = Shelf()
    put_open(shelf, A, opened(A, START, "dt=2025-12-02/hr=16"))

    async def both():
        eyes = Looking(load({}), shelf, [].append)
        first = await eyes.verdict(HOUR)
        put_open(shelf, B, opened(B, START, NEXT))
        return first, await eyes.verdict(NEXT)

    first, second = asyncio.run(both())
    assert (first.code, second.code) == (0, 1)
    assert [one.instance for one in second.still_open] == [B]


def test_a_word_is_read_anew_until_the_clock_of_the_store_must_have_gone_on_and_then_only_when_it_changes():
    """Two documents of one size within one second of the store's clock look the same in a listing."""
    shelf = Shelf()
    put_open(shelf, A, opened(A, START, NEXT))
    now = [0.0]

    async def look():
        eyes = Looking(load({}), shelf, [].append, lambda: now[0])
        codes = [(await eyes.verdict(HOUR)).code]
        put_open(shelf, A, opened(A, START, HOUR))
        codes.append((await eyes.verdict(HOUR)).code)
        for now[0] in (looking.SETTLED, 2 * looking.SETTLED, 9 * looking.SETTLED):
            codes.append((await eyes.verdict(HOUR)).code)
        asked = len(shelf.asked)
        shelf.has(manifest.registry_key("raw_manifest", A, Kind.OPEN), opened(A, START, NEXT), START + 1)
        codes.append((await eyes.verdict(HOUR)).code)
        return codes, asked, len(shelf.asked)

    assert asyncio.run(look()) == ([0, 1, 1, 1, 1, 0], 3, 4)


# ------------------------------------------------------------------------------------------------- objects, read whole

LINES = b"".join(b'{"ts":%d,"body":"b"}\n' % (START + number) for number in range(5))
RAW = f"raw/{HOUR}/{START}_{A}_0000000001.jsonl.gz"


def told(shelf, lines=LINES, events=5):
    body = codec.encode(lines, events)
    entry = ledger.parse(ledger.stored(RAW, events, body)[:-1])
    shelf.has(
        manifest.manifest_key("raw_manifest", HOUR, A, A[5:]),
        manifest.manifest(
            instance=A,
            writer=A[5:],
            hour=HOUR,
            generation=1,
            at=START,
            places=manifest.PLACES,
            fates={RAW: ledger.Fate(entry, {})},
            taken=manifest.Taken(events, START, START),
            elsewhere=[],
        ),
    )
    put_open(shelf, A, opened(A, START))


OURS = codec.encode(LINES, 5)
STORED = [
    (OURS, None),
    (codec.encode(LINES + LINES, 10), None),  # longer, and it begins with what was told
    (codec.encode(LINES, 5, level=3), None),
    (OURS + OURS, "altered"),
    (OURS + gzip.compress(b"{}\n"), "altered"),
    (OURS + b"rubbish behind the end", "altered"),
    (OURS[:-1], "altered"),
    (codec.encode(LINES[:-2] + b"!\n", 5), "altered"),
    (codec.encode(b"{}\n" * 6, 6), "altered"),  # longer, and other lines
    (codec.encode(LINES + b"{}\n", 5), "altered"),
    (codec.encode(LINES, 6), "altered"),
    (codec.encode(LINES + b"0" * (80 << 20), 6), "altered"),
    (codec.encode(LINES[:-1] + b" " * (30 << 20) + b"\n", 5), "altered"),
    (gzip.compress(LINES), "short"),
]


@pytest.mark.parametrize(("body", "kind"), STORED, ids=range(len(STORED)))
def test_deep_calls_altered_whatever_readers_would_find_other_than_was_told(body, kind):
    shelf = Shelf()
    told(shelf)
    shelf.has(RAW, body)
    verdict, _ = looked(shelf, deep=True)
    assert [one.kind.value for one in verdict.findings] == ([kind] if kind else [])


def test_what_inflates_to_a_thousand_times_its_size_takes_no_memory():
    shelf = Shelf()
    told(shelf)
    shelf.has(RAW, codec.encode(b"\n" * (96 << 20), 5))
    tracemalloc.start()
    try:
        verdict, _ = looked(shelf, deep=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [one.kind.value for one in verdict.findings] == ["altered"]
    assert peak < 8 << 20


def test_an_object_larger_than_any_of_ours_is_not_fetched(monkeypatch):
    monkeypatch.setattr(looking, "LARGEST_OBJECT", len(OURS) - 1)
    shelf = Shelf()
    told(shelf)
    shelf.has(RAW, OURS)
    verdict, _ = looked(shelf, deep=True)
    assert [one.kind.value for one in verdict.findings] == ["altered"]
    assert RAW not in shelf.asked


def test_as_many_tasks_as_there_are_objects_are_never_begun_at_once():
    at_once = most = 0

    async def work(number):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1
        return -number

    assert asyncio.run(each(range(1000), 16, work)) == [-number for number in range(1000)]
    assert most == 16


def test_the_first_task_that_fails_ends_the_others_and_none_goes_on():
    ended_early = []

    async def work(number):
        if number == 3:
            raise StorageError("get", "key", "told to fail", transient=False)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended_early.append(number)
            raise

    with pytest.raises(StorageError):
        asyncio.run(each(range(100), 4, work))
    assert ended_early == [0, 1, 2]
