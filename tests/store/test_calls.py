"""Calls in an executor: nobody's call keeps anything, and none is queued behind a disk that does not answer."""

from __future__ import annotations

import asyncio
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from ingest.disk import StorageError
from ingest.store.calls import LEAST_WAIT, Calls

ROOT = Path("/objects")


class Work:
    """A call that carries a body."""

    made = False

    def __call__(self):
        self.made = True
        return "made"


@asynccontextmanager
async def hung(threads=1):
    """Calls of which as many hang as there are threads; `free` lets them go."""
    free, begun = threading.Event(), threading.Semaphore(0)

    def hang():
        begun.release()
        assert free.wait(60)
        raise OSError("late")

    with ThreadPoolExecutor(threads) as executor:
        calls = Calls(executor, ROOT)
        hanging = [asyncio.create_task(calls.make(hang)) for _ in range(threads)]
        for _ in hanging:
            await asyncio.to_thread(begun.acquire)
        try:
            yield calls, free, hanging
        finally:
            free.set()
            await asyncio.gather(*hanging, return_exceptions=True)


async def leave(calls, work):
    try:
        async with asyncio.timeout(2 * LEAST_WAIT):
            await calls.make(work)
    except TimeoutError:  # caught here, because `pytest.raises` would keep the frames and with them the work
        return
    pytest.fail("the call was made")


async def until_made(calls):
    async with asyncio.timeout(60):
        while True:
            with suppress(StorageError):
                return await calls.make(Work())
            await asyncio.sleep(0.001)


def test_a_caller_that_leaves_before_its_call_began_takes_along_what_it_gave():
    async def scenario():
        async with hung() as (calls, _, _):
            work = Work()
            kept = weakref.ref(work)
            await leave(calls, work)
            del work
            await asyncio.sleep(0)  # a step that was cancelled keeps its error, and with it the work, to its end
            assert kept() is None

    asyncio.run(scenario())


@pytest.mark.parametrize("threads", [1, 3])
def test_while_no_thread_comes_free_a_call_fails_at_once_and_afterwards_it_is_made(threads):
    async def scenario():
        async with hung(threads) as (calls, free, _):
            left = Work()
            await leave(calls, left)
            for _ in range(100):
                with pytest.raises(StorageError, match="does not answer") as failed:
                    await calls.make(Work())
                assert failed.value.transient
            free.set()
            assert await until_made(calls) == "made"
            assert not left.made

    asyncio.run(scenario())


def test_a_thread_that_is_free_makes_calls_beside_one_that_hangs():
    async def scenario():
        with ThreadPoolExecutor(2) as executor:
            free = threading.Event()
            calls = Calls(executor, ROOT)
            await leave(calls, free.wait)
            assert await calls.make(Work()) == "made"
            free.set()

    asyncio.run(scenario())


def test_the_error_of_a_call_is_its_callers_and_a_late_one_is_nobodys():
    async def scenario():
        told = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        async with hung(2) as (calls, free, (one, other)):
            one.cancel()
            await asyncio.wait((one,))
            free.set()
            with pytest.raises(OSError, match="late"):
                await other
            assert await until_made(calls) == "made"
        assert told == []

    asyncio.run(scenario())
