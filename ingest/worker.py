"""The place of a process: alone, or one of several workers with what it has from its supervisor.

Owns the words by which a supervisor starts a worker, its sockets and its part of the shared page. Promises that a
worker learns of its supervisor's end, however that ends: then nobody listens for it any more. Never binds a socket, and
never removes the name of one.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

from ingest.shared_page import LEAVING, SERVING, SharedPage
from ingest.telemetry import Books, SharedBooks, Together

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from ingest.telemetry import Metrics, Status


class Alone:
    """A process without a supervisor: it has nothing from anybody, and tells nobody how far it is."""

    __slots__ = ()

    number: Final = None
    for_events: Final[Sequence[socket.socket]] = ()
    for_operators: Final[Sequence[socket.socket]] = ()
    has_successor: Final = False

    def books(self) -> Books:
        """Return the books to be kept."""
        return Books()

    def shown(self, metrics: Metrics, status: Callable[[], Status]) -> tuple[Metrics, Callable[[], Status]]:
        """Return whose figures and status are to be shown: our own."""
        return metrics, status

    def on_orphaned(self, loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> None:
        """Never act: there is no supervisor."""

    def serves(self) -> None:
        """Tell nobody."""

    def tell(self) -> None:
        """Tell nobody."""

    def leaves(self) -> None:
        """Tell nobody."""


class Worker:
    """One of several."""

    __slots__ = ("_lifeline", "_page", "_region", "_together", "for_events", "for_operators", "number")

    has_successor: Final = True
    """At SIGHUP somebody else serves already."""

    def __init__(self, words: Sequence[str]) -> None:
        """Take what the words of the command say; a `ValueError` or an `OSError` if they are no supervisor's."""
        number, region, page, lifeline, for_events, for_operators = words
        self.number = int(number)
        self._page = SharedPage(int(page))
        self._region = self._page.regions[int(region)]
        self._lifeline = int(lifeline)
        """The descriptor whose other end the supervisor has: it ends with it."""
        for descriptor in (int(page), self._lifeline):
            os.set_inheritable(descriptor, False)  # a helper for credentials has no use for it
        self.for_events = _sockets(for_events)
        self.for_operators = _sockets(for_operators)
        self._together: Together | None = None
        """None until there is something to show."""

    def __repr__(self) -> str:
        return f"<Worker {self.number}: {self._region!r}>"

    def books(self) -> Books:
        """Return the books to be kept: those that are on the page."""
        return SharedBooks()

    def shown(self, metrics: Metrics, status: Callable[[], Status]) -> tuple[Together, Callable[[], Status]]:
        """Return whose figures and status are to be shown: those of all workers."""
        self._together = together = Together(metrics, self._page, self._region, self.number, status)
        return together, together.status

    def on_orphaned(self, loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> None:
        """Act once the supervisor is gone."""

        def gone() -> None:
            loop.remove_reader(self._lifeline)
            act()

        loop.add_reader(self._lifeline, gone)

    def serves(self) -> None:
        """Tell the supervisor that we accept."""
        self._region.enter(SERVING)

    def tell(self) -> None:
        """Show that our loop comes by, and all our figures."""
        self._region.beat()
        if self._together is not None:
            self._together.write()

    def leaves(self) -> None:
        """Tell the supervisor that we accept no more."""
        self._region.enter(LEAVING)


def _sockets(word: str) -> list[socket.socket]:
    inherited = [socket.socket(fileno=int(number)) for number in word.split(",") if number != "-"]
    for one in inherited:
        one.setblocking(False)
        one.set_inheritable(False)
    return inherited
