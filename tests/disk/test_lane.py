"""The lane: one call at a time, and a disk that hangs holds up its own callers only, no longer than they will."""

import asyncio
import subprocess
import sys
import threading

import pytest
from structlog.testing import capture_logs

from ingest.disk import Lane, StorageError


class Hanging:
    """Work that begins, and ends when it is released."""

    def __init__(self, result="result", error=None):
        self.began, self.released = threading.Event(), threading.Event()
        self.result, self.error = result, error

    def __call__(self):
        self.began.set()
        assert self.released.wait(10)
        if self.error:
            raise self.error
        return self.result


async def left_running(lane, work, **how):
    """Leaves a call at its bound, once it runs: one that had not begun by then is never made, and asked for again."""
    within = 0.01
    while not work.began.is_set():
        with pytest.raises(StorageError) as caught:
            await lane.run(work, within=within, **how)
        within *= 2
    return caught.value


async def begun(work):
    await asyncio.get_running_loop().run_in_executor(None, work.began.wait, 10)


async def until(holds):
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - a thread decides
            await asyncio.sleep(0.001)


def test_results_and_errors_come_back():
    async def main():
        lane = Lane("disk")
        assert await lane.run(divmod, 7, 3) == (2, 1)
        with pytest.raises(ZeroDivisionError):
            await lane.run(divmod, 7, 0)
        # An error of the work is never taken for the end of the wait.
        hanging = Hanging(error=TimeoutError("the disk's own"))
        hanging.released.set()
        with pytest.raises(TimeoutError, match="own"):
            await lane.run(hanging, within=10)
        lane.abandon()

    asyncio.run(main())


def test_calls_are_made_one_after_the_other_in_one_thread_in_their_order():
    async def main():
        lane = Lane("disk")
        seen, running = [], []

        def work(number):
            running.append(number)
            assert running == [number]
            seen.append((number, threading.get_ident()))
            running.remove(number)

        await asyncio.gather(*(lane.run(work, number) for number in range(100)))
        assert [number for number, _ in seen] == list(range(100))
        (thread,) = {thread for _, thread in seen}
        assert thread != threading.get_ident()
        lane.abandon()

    asyncio.run(main())


def test_a_wait_ends_at_its_bound_while_the_disk_hangs_and_the_late_result_is_handed_over():
    async def main():
        lane = Lane("disk")
        hanging, late = Hanging(), []
        error = await left_running(lane, hanging, late=late.append)
        assert (error.operation, error.subject, error.transient) == ("wait", "disk", True)
        assert lane.busy_since is not None
        assert late == []
        hanging.released.set()
        await until(lambda: late)
        assert late == ["result"]
        assert await lane.run(divmod, 7, 3) == (2, 1)
        lane.abandon()

    asyncio.run(main())


def test_a_call_whose_caller_left_before_it_began_is_never_made():
    async def main():
        lane = Lane("disk")
        hanging, made = Hanging(), []
        first = asyncio.create_task(lane.run(hanging))
        await begun(hanging)
        with pytest.raises(StorageError):
            await lane.run(made.append, "by the bound", within=0.01, late=made.append)
        cancelled = asyncio.create_task(lane.run(made.append, "cancelled", late=made.append))
        await until(lambda: lane.waiting == 1)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert cancelled.cancelled()
        assert lane.waiting == 0
        hanging.released.set()
        assert await first == "result"
        await lane.run(made.append, "last")
        assert made == ["last"]
        lane.abandon()

    asyncio.run(main())


def test_the_result_of_a_cancelled_wait_is_handed_over_also_when_it_came_in_the_same_step():
    async def main():
        lane = Lane("disk")
        hanging, late = Hanging(), []
        task = asyncio.create_task(lane.run(hanging, late=late.append))
        await begun(hanging)
        task.cancel()
        hanging.released.set()
        await asyncio.wait([task])
        await until(lambda: late)
        assert late == ["result"]

        hanging = Hanging()
        task = asyncio.create_task(lane.run(hanging, late=late.append))
        await begun(hanging)
        # The answer is posted while the loop is held, so that answer and cancellation meet in one step.
        hanging.released.set()
        while lane.busy_since is not None:
            pass
        asyncio.get_running_loop().call_soon(task.cancel)
        await asyncio.wait([task])
        if task.cancelled():
            await until(lambda: len(late) == 2)
        else:
            assert task.result() == "result"
        lane.abandon()

    asyncio.run(main())


def test_a_failure_nobody_waits_for_is_told_and_a_bug_of_ours_is_loud():
    async def main():
        lane, unhandled = Lane("disk"), []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context["exception"]))
        for error in (OSError("of the disk"), StorageError("save", "key", "hint", transient=True), KeyError("of ours")):
            hanging = Hanging(error=error)
            await left_running(lane, hanging)
            hanging.released.set()
            await lane.run(divmod, 7, 3)
        assert [type(error) for error in unhandled] == [KeyError]
        lane.abandon()

    asyncio.run(main())


def test_an_abandoned_lane_makes_no_more_calls_and_leaves_nobody_waiting():
    async def main():
        lane = Lane("disk")
        hanging, made = Hanging(), []
        running = asyncio.create_task(lane.run(hanging))
        await begun(hanging)
        waiting = asyncio.create_task(lane.run(made.append, 1))
        await until(lambda: lane.waiting == 1)
        lane.abandon()
        for call in (waiting, asyncio.create_task(lane.run(made.append, 2))):
            with pytest.raises(StorageError) as caught:
                await call
            assert caught.value.operation == "wait"
        hanging.released.set()
        assert await running == "result"
        assert made == []

    asyncio.run(main())


def test_a_call_that_was_never_made_is_no_call_that_failed():
    """Its caller may leave in the very step in which the lane is abandoned."""

    async def main():
        lane = Lane("disk")
        hanging = Hanging()
        running = asyncio.create_task(lane.run(hanging))
        await begun(hanging)
        waiting = asyncio.create_task(lane.run(divmod, 7, 3))
        await until(lambda: lane.waiting == 1)
        with capture_logs() as logs:
            lane.abandon()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        hanging.released.set()
        assert await running == "result"
        assert logs == []

    asyncio.run(main())


def test_a_lane_says_how_it_stands():
    async def main():
        now = 100.0
        lane = Lane("dlq", clock=lambda: now)
        assert repr(lane) == "<Lane dlq idle, 0 waiting>"
        hanging = Hanging()
        running = asyncio.create_task(lane.run(hanging))
        await begun(hanging)
        waiting = asyncio.create_task(lane.run(divmod, 7, 3))
        await until(lambda: lane.waiting == 1)
        now = 102.5
        assert repr(lane) == "<Lane dlq busy 2.5s, 1 waiting>"
        assert lane.busy_since == 100.0
        hanging.released.set()
        await asyncio.gather(running, waiting)
        await until(lambda: lane.busy_since is None)
        lane.abandon()
        assert repr(lane) == "<Lane dlq abandoned, 0 waiting>"

    asyncio.run(main())


HANGS = """
import asyncio, threading
from ingest.disk import Lane, StorageError

async def main():
    try:
        await Lane("disk").run(threading.Event().wait, within=0.05)
    except StorageError as error:
        print(error.operation, flush=True)

asyncio.run(main())
"""


def test_c5_a_call_that_never_returns_does_not_keep_the_process_alive():
    ended = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=30, check=True)
    assert ended.stdout == "wait\n"
