"""Fixtures of the process tests: whatever they started has ended when the test has, however it ended."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.faults.proxy import FaultProxy
from tests.process.collector import Collector
from tests.process.hasty_server import HASTY
from tests.process.s3 import S3Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def collectors(tmp_path) -> Iterator[Callable[..., Collector]]:
    """`collectors(env, **how)` makes a collector in the test's folder, not started yet; every call makes one more.

    It hurries (see `hasty_server`); `command=SERVE` has the pauses of the product.
    """
    made: list[Collector] = []

    def make(env=None, **how) -> Collector:
        how = {"command": HASTY, **how}
        collector = Collector(how.pop("folder", tmp_path / "run"), env, **how)
        made.append(collector)
        return collector

    yield make
    for collector in made:
        if collector.started:
            collector.kill()


@pytest.fixture
def rng() -> random.Random:
    """Chance, with its seed in the captured output, so that a failure can be run again."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown with a failure
    return random.Random(seed)


@pytest.fixture
def proxy(s3_server) -> Iterator[FaultProxy]:
    """What the collector takes for S3."""
    with FaultProxy(("127.0.0.1", urlsplit(s3_server).port)) as between:
        yield between


@pytest.fixture
def s3_process(tmp_path) -> Iterator[S3Process]:
    """An S3 server of the test's own, refusing connections until it is started."""
    server = S3Process(tmp_path)
    yield server
    server.close()
