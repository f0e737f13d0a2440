"""Threads: every one that a server needs is started before it serves, because later the system may have none to give.

Owns what is said of a thread that cannot be had. Promises that it is a `NoThreadError`, one line fit for an operator.
Never knows what a thread does.
"""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Executor

_RESOLVERS: Final = 4
"""So many does libuv start, unless UV_THREADPOOL_SIZE says otherwise."""
_PROBLEM: Final = (
    "RLIMIT_NPROC: the system starts no more threads; raise the limit on processes (`ulimit -u`, TasksMax of systemd, "
    "pids.max of a container)"
)


class NoThreadError(Exception):
    """The system gives no thread."""

    def __init__(self) -> None:
        super().__init__(_PROBLEM)


def start(thread: threading.Thread) -> None:
    """Start a thread."""
    try:
        thread.start()
    except RuntimeError:
        raise NoThreadError from None


def start_all(executor: Executor, threads: int) -> None:
    """Have an executor start all its threads: it would do so one by one, when there is work."""
    done = threading.Event()
    try:
        for _ in range(threads):
            executor.submit(done.wait)  # none of them comes free before the last is there
    except RuntimeError:
        raise NoThreadError from None
    finally:
        done.set()


def pool(threads: int) -> ThreadPoolExecutor:
    """Return an executor that has all its threads."""
    made = ThreadPoolExecutor(threads)
    start_all(made, threads)
    return made


async def start_resolvers(loop: asyncio.AbstractEventLoop) -> None:
    """Have libuv start the threads in which it looks up names. It ends the process if it cannot, when it has to."""
    pool(_RESOLVERS).shutdown()
    await loop.getaddrinfo(None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
