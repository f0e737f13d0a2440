"""The latch, and what ends it; its edges are proven with the journal."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from ingest.disk import StorageError
from ingest.intake.latch import Latch
from ingest.telemetry import Metrics


@pytest.mark.parametrize("broken", ["mend", "probe"])
def test_a_bug_in_the_repair_is_told_for_nothing_else_would_end_the_refusals(broken):
    told = []

    async def works():
        pass

    async def fails():
        raise ValueError("ours")

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context))
        parts = {"mend": works, "probe": works, broken: fails}
        latch = Latch(SimpleNamespace(path=Path("0")), Metrics(), is_whole=lambda: True, **parts)
        latch.trip(StorageError("write", "0/segment", "the volume is full", transient=True))
        async with asyncio.timeout(5):
            while not told:  # noqa: ASYNC110 - the loop tells it, in one of its next turns
                await asyncio.sleep(0)
        assert latch.on
        await latch.close()

    asyncio.run(main())
    assert [type(context["exception"]) for context in told] == [ValueError]
    assert "connection" not in told[0], "the server takes it for a bug that ends the process"
