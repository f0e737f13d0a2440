"""How bytes arrive: every case is fed in each of these ways, and must end the same."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from tests.stand_ins.wire import Client, pieces_of

if TYPE_CHECKING:
    from collections.abc import Callable


EDGE = 1000


def _whole(client: Client, data: bytes) -> None:
    client.send(data)


def _byte_by_byte(client: Client, data: bytes) -> None:
    # Of a long stream the ends, where its limits are met; between them it is the same all along.
    middle = range(EDGE, len(data) - EDGE, 61)
    cuts = [*range(min(EDGE, len(data))), *middle, *range(max(len(data) - EDGE, min(EDGE, len(data))), len(data) + 1)]
    client.send(*(data[at:end] for at, end in pairwise(cuts)))


def _pieces(client: Client, data: bytes) -> None:
    client.send(*pieces_of(data, seed=1))


def _reads_of_one_turn(client: Client, data: bytes) -> None:
    for piece in pieces_of(data, seed=7):
        client.transport.receive(piece)
    client.wire.loop.settle()


FEEDS = {
    "whole": _whole,
    "byte by byte": _byte_by_byte,
    "in pieces": _pieces,
    "many reads in one turn": _reads_of_one_turn,
}


@pytest.fixture(params=FEEDS.values(), ids=FEEDS.keys())
def feed(request: pytest.FixtureRequest) -> Callable[[Client, bytes], None]:
    """Return a way to send bytes."""
    return request.param
