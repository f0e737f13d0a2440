"""What is read of a store to judge an hour, and what is not."""

from __future__ import annotations

import asyncio

from ingest.config.settings import load
from ingest.format import manifest
from ingest.format.manifest import Kind
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


def opened(instance, at, through=NEXT):
    return manifest.opened(instance=instance, started=at, at=at, durability="journal", through=through, still_open={})


def ended(instance, at, places=manifest.PLACES, still_open=()):
    return manifest.ended(
        instance=instance, by=instance, at=at, places=tuple(places), still_open=dict.fromkeys(still_open, "waits")
    )


def looked(shelf):
    said = []
    verdict = asyncio.run(Looking(load({}), shelf, said.append).verdict(HOUR))
    return verdict, said


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


def test_a_document_of_a_later_version_is_told_and_closes_nothing():
    shelf = Shelf()
    shelf.has(manifest.registry_key("raw_manifest", OTHER, Kind.OPEN), opened(OTHER, START, HOUR))
    later = ended(OTHER, START + 1).replace(b'"version":1', b'"version":2')
    shelf.has(manifest.registry_key("raw_manifest", OTHER, Kind.ENDED), later)
    shelf.has(manifest.registry_key("raw_manifest", A, Kind.ENDED), b"{torn")
    verdict, said = looked(shelf)
    assert [one.instance for one in verdict.still_open] == [OTHER]
    assert len(said) == 2
