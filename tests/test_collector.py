"""A start says what waits on its disks, once for each place that holds something; an end says what stays there."""

import asyncio
import errno
import shutil

import pytest
from structlog.testing import capture_logs

from ingest.collector import ADOPT_SECONDS, Collector, World
from ingest.config.settings import load
from tests.model import world as model
from tests.stand_ins.letters import body, key, leave


@pytest.mark.parametrize(("letters", "segments"), [(0, 0), (2, 0), (0, 1), (2, 1)])
def test_a_start_says_what_waits_and_nothing_of_what_is_empty(tmp_path, letters, segments):
    settings = load({name: str(tmp_path / name) for name in ("STORE_DIR", "DLQ_DIR", "JOURNAL_DIR")})
    for number in range(letters):
        leave(settings.dlq_dir / "0", key(number), body(3))
    for number in range(10, 10 + segments):
        leave(settings.journal_dir / "0", key(number).removesuffix(".gz"), b'{"ts":1,"body":""}\n' * 4)

    async def main():
        looked, both = [], asyncio.Event()

        async def sleep(seconds):
            """Each place sleeps for so long when it has looked; a scan rests for less."""
            if seconds < ADOPT_SECONDS:
                return
            looked.append(seconds)
            if len(looked) == 2:
                both.set()
            await asyncio.Event().wait()

        collector = Collector(settings, World(asyncio.get_running_loop(), sleep=sleep))
        recovering = asyncio.create_task(collector.recover())
        async with asyncio.timeout(20):
            await both.wait()
        recovering.cancel()
        await collector.close(1.0)

    with capture_logs() as lines:
        asyncio.run(main())
    told = {line["place"]: (line["files"], line["events"]) for line in lines if line["event"] == "found_on_disk"}
    expected = {"dlq": (letters, 3 * letters), "backlog": (segments, 4 * segments)}
    assert told == {place: found for place, found in expected.items() if found[0]}


@pytest.mark.parametrize(("folder_goes", "lost"), [(True, 3), (False, 0)], ids=["its folder is gone", "it is whole"])
@pytest.mark.parametrize("durability", ["journal", "fsync"])
def test_e15_what_no_disk_holds_is_lost_and_is_not_called_safe(tmp_path, durability, folder_goes, lost):
    """The store is away, the volume takes no write any more, and the segment may be gone as well."""
    world = model.World(tmp_path, durability=durability, flush_interval="10s", s3_app_retries=1)
    try:
        process = world.start()
        world.store.down = True
        process.commit(3)
        world.advance(2)
        world.fs.on("open", "write", "rename", "link", "unlink", "mkdir", "rmdir", "fsync_dir").fail(errno.EROFS)
        if folder_goes:
            shutil.rmtree(tmp_path / "dlq/journal/0/raw")
        world.advance(5)
        left = process.collector.left()
        assert (left.segment_events, left.lost_events) == (3 - lost, lost)
        world.kill(process)
        world.heal()
        world.start()
        world.advance(60)
        assert world.stored_numbers().total() == left.on_disk
    finally:
        world.close()
