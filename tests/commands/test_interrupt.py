"""A command that gets SIGINT ends soon, whatever it waits for."""

import signal
import subprocess
import sys
import time

import pytest

from ingest.commands import interrupt

STUBBORN = """
import asyncio, contextlib, threading
async def work():
    print("begun", flush=True)
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(60)
    print("lost", flush=True)
    await asyncio.sleep(60)
"""
HUNG_THREAD = """
import asyncio, concurrent.futures, time
async def work():
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        await asyncio.get_running_loop().run_in_executor(executor, hang)
def hang():
    print("begun", flush=True)
    time.sleep(60)
"""
HUNG_LOOP = """
import time
async def work():
    print("begun", flush=True)
    while True:
        time.sleep(60)
"""
BRISK = """
import asyncio
async def work():
    print("begun", flush=True)
    await asyncio.sleep(60)
"""
RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever runs the tests may have it ignored
from ingest.commands import interrupt
try:
    interrupt.run(work())
except KeyboardInterrupt:
    sys.stderr.write("interrupted\\n")
    sys.exit(130)
"""
RUN_AS_IT_IS = """
from ingest.commands import interrupt
interrupt.run(work())
"""


def started(work, run=RUN):
    process = subprocess.Popen(
        [sys.executable, "-c", work + run], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    return process


def ended(process):
    try:
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    return process.returncode, error


@pytest.mark.parametrize("work", [BRISK, STUBBORN, HUNG_THREAD, HUNG_LOOP], ids=["brisk", "stubborn", "thread", "loop"])
def test_one_interrupt_ends_a_command_whatever_it_waits_for_d4(work):
    process = started(work)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "interrupted\n")
    assert time.monotonic() - begun < interrupt.LIMIT_SECONDS + 10


def test_a_second_interrupt_does_not_wait_d4():
    process = started(HUNG_THREAD)
    begun = time.monotonic()
    while process.poll() is None and time.monotonic() - begun < 30:
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert ended(process) == (130, "interrupted\n")
    assert time.monotonic() - begun < interrupt.LIMIT_SECONDS


def test_a_background_job_of_a_shell_is_not_interrupted_d4():
    """It has SIGINT ignored from its start."""
    work = 'import asyncio\nasync def work():\n    print("begun", flush=True)\n    await asyncio.sleep(0.3)\n'
    process = started(f"import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{work}", RUN_AS_IT_IS)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (0, "")


def test_a_command_that_ends_by_itself_gives_its_result_and_the_handler_back_d4():
    before = signal.getsignal(signal.SIGINT)

    async def work():
        return ["a problem"]

    assert interrupt.run(work()) == ["a problem"]
    assert signal.getsignal(signal.SIGINT) is before
