"""Fixtures of the process tests: whatever they started has ended when the test has, however it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.process.collector import Collector
from tests.process.s3 import S3Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def collectors(tmp_path) -> Iterator[Callable[..., Collector]]:
    """`collectors(env, **how)` makes a collector in the test's folder, not started yet; every call makes one more."""
    made: list[Collector] = []

    def make(env=None, **how) -> Collector:
        collector = Collector(how.pop("folder", tmp_path / "run"), env, **how)
        made.append(collector)
        return collector

    yield make
    for collector in made:
        if collector.started:
            collector.kill()


@pytest.fixture
def s3_process(tmp_path) -> Iterator[S3Process]:
    """An S3 server of the test's own, refusing connections until it is started."""
    server = S3Process(tmp_path)
    yield server
    server.close()
