"""Two copies of a key, in backlog and DLQ: what is sound is stored, once."""

from __future__ import annotations

import asyncio

from ingest.format import codec
from ingest.telemetry import DropReason, Place
from tests.delivery.rig import rig_of
from tests.stand_ins.letters import bodies, body, files, key, leave, lines


def rivals(tmp_path, segment, letter):
    rig = rig_of(tmp_path)
    rig.metrics.books.recovered(len(segment.splitlines()), Place.BACKLOG)
    rig.journal.keep(key(1), segment, len(segment.splitlines()))
    leave(rig.root, key(1), letter)

    async def main():
        async with rig.running():
            await rig.done()
            assert files(rig.root) == []
            return bodies(rig.store_.objects[key(1)])

    return asyncio.run(main()), rig


def test_the_dlq_file_is_put_if_it_verifies(tmp_path):
    stored, rig = rivals(tmp_path, lines(5), body(5))
    assert stored == ["0", "1", "2", "3", "4"]
    assert rig.store_.objects[key(1)] == body(5)
    assert len(rig.store_.tries) == 1
    assert rig.metrics.books.events_dropped[DropReason.CORRUPT] == 0


def test_the_longer_segment_is_put_though_the_dlq_file_verifies(tmp_path):
    """The file was salvaged from half of one: it is sound, and less than the batch."""
    stored, rig = rivals(tmp_path, lines(9), body(5))
    assert len(stored) == 9
    assert rig.metrics.books.events_dropped[DropReason.CORRUPT] == 0


def test_the_longer_segment_is_put_if_the_dlq_file_is_corrupt(tmp_path):
    whole = body(500)
    stored, rig = rivals(tmp_path, lines(500), whole[: len(whole) // 2])
    assert len(stored) == 500
    assert rig.store_.objects[key(1, prefix="raw_dlq")] == whole[: len(whole) // 2]
    assert rig.metrics.books.events_dropped[DropReason.CORRUPT] == 0


def test_the_longer_dlq_file_is_put_even_if_it_is_corrupt(tmp_path):
    data = codec.encode(lines(30) + b"bad\n", 31)
    stored, _ = rivals(tmp_path, lines(5), data)
    assert len(stored) == 30


def test_the_segment_is_found_also_when_the_corrupt_dlq_file_comes_first(tmp_path):
    whole = body(500)
    rig = rig_of(tmp_path)
    rig.metrics.books.recovered(500, Place.BACKLOG)
    rig.journal.keep(key(1), lines(500), 500)
    leave(rig.root, key(1), whole[: len(whole) // 2])

    async def main():
        async with rig.running() as uploader:
            uploader.recovery.carrier._turns = [rig.dlq, rig.journal]
            await rig.done()
            assert len(bodies(rig.store_.objects[key(1)])) == 500

    asyncio.run(main())


def test_a_segment_waits_while_the_dlq_file_of_its_key_is_not_counted(tmp_path):
    rig = rig_of(tmp_path)
    rig.metrics.books.recovered(5, Place.BACKLOG)
    rig.journal.keep(key(1), lines(5), 5)
    leave(rig.root, key(1), body(9))

    async def main():
        async with rig.running(scan=False):
            await asyncio.sleep(0.05)
            assert rig.store_.tries == []
            await rig.dlq.scan()
            await rig.done()
            assert len(bodies(rig.store_.objects[key(1)])) == 9

    asyncio.run(main())
