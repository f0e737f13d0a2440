"""A start says what waits on its disks, once for each place that holds something."""

import asyncio

import pytest
from structlog.testing import capture_logs

from ingest.collector import ADOPT_SECONDS, Collector, World
from ingest.config.settings import load
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
