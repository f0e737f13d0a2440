"""A server has every thread that it needs before it serves; one that cannot be had is one line."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ingest.disk import Lane, StorageError
from ingest.telemetry.lines import Lines
from ingest.threads import NoThreadError, start_all


@pytest.fixture
def no_more_threads(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    return monkeypatch


def test_an_executor_has_all_its_threads_at_once():
    with ThreadPoolExecutor(4, "early") as executor:
        start_all(executor, 4)
        assert sum(thread.name.startswith("early") for thread in threading.enumerate()) == 4


@pytest.mark.usefixtures("no_more_threads")
def test_an_executor_without_threads_is_told():
    with pytest.raises(NoThreadError):
        start_all(ThreadPoolExecutor(4), 4)


def test_a_lane_whose_thread_could_not_be_had_fails_its_call_and_serves_the_next(no_more_threads):
    async def main():
        lane = Lane("dlq")
        with pytest.raises(StorageError, match="RLIMIT_NPROC"):
            await lane.run(int)
        no_more_threads.undo()
        async with asyncio.timeout(20):
            assert await lane.run(int) == 0
        lane.abandon()

    asyncio.run(main())


def test_lines_whose_thread_could_not_be_had_are_written_at_once(no_more_threads):
    reader, writer = os.pipe()
    lines = Lines(writer)
    with pytest.raises(NoThreadError):
        lines.start()
    lines.info(b"a line\n")
    assert os.read(reader, 100) == b"a line\n"
    no_more_threads.undo()
