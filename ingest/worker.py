"""The possessions of a process that is one of several: its number, its sockets, its part of the shared page.

Owns the words by which a supervisor starts a worker. Promises that a worker learns of its supervisor's end, however
that ends: then nobody listens for it any more. Never binds a socket, and never removes the name of one.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, NamedTuple

from ingest.shared_page import Region, SharedPage

if TYPE_CHECKING:
    from collections.abc import Sequence


class Worker(NamedTuple):
    """One of several."""

    number: int
    page: SharedPage
    region: Region
    lifeline: int
    """The descriptor whose other end the supervisor has: it ends with it."""
    for_events: list[socket.socket]
    for_operators: list[socket.socket]

    @classmethod
    def of(cls, words: Sequence[str]) -> Worker:
        """Take what stands in the words of the command; a `ValueError` or an `OSError` if a supervisor did not."""
        number, region, page, lifeline, for_events, for_operators = words
        shared = SharedPage(int(page))
        return cls(
            int(number),
            shared,
            shared.regions[int(region)],
            int(lifeline),
            _sockets(for_events),
            _sockets(for_operators),
        )


def _sockets(word: str) -> list[socket.socket]:
    inherited = [socket.socket(fileno=int(number)) for number in word.split(",") if number != "-"]
    for one in inherited:
        one.setblocking(False)
        one.set_inheritable(False)
    return inherited
