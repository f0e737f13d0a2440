"""Many tasks, so many at a time.

Owns `each`. Promises that no more than `at_once` tasks have begun and not ended, however many there are, because a
folder may hold ten million objects; and that nothing goes on once it has returned or raised.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


async def each(tasks: Sequence[_Task], at_once: int, work: Callable[[_Task], Awaitable[_Result]]) -> list[_Result]:
    """Do all tasks; the first that fails ends the others."""
    results: dict[int, _Result] = {}
    left = iter(enumerate(tasks))

    async def worker() -> None:
        for number, task in left:
            results[number] = await work(task)

    workers = [asyncio.ensure_future(worker()) for _ in range(min(at_once, len(tasks)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for one in workers:
            one.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [results[number] for number in range(len(tasks))]
