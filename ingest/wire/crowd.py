"""All connections of the process.

Owns who is connected, and how many may be. Promises that a connection is counted until it is gone, and that those over
MAX_CONNECTIONS take no more descriptors than are held in reserve; that a peer that is not trusted has no more than
MAX_CONNECTIONS_PER_IP; and that no more handshakes stand in the middle of a message than may. Never looks at what a
connection does.
"""

from __future__ import annotations

from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Final, Protocol

from ingest.event import network
from ingest.wire.turn import Answerer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ingest.event import Peer
    from ingest.telemetry import Metrics

REFUSED_LINGERING: Final = 32
"""Connections over MAX_CONNECTIONS that may linger at once, out of the descriptors that are held in reserve."""

HANDSHAKES: Final = 128
"""TLS handshakes that may stand in the middle of a message. A client that only announces a long one has OpenSSL set
aside 150 KB for it; an honest one sends it in one piece, or two."""


class Handshake(Protocol):
    """A TLS handshake under way."""

    def abort(self) -> None:
        """Drop the connection."""


class Member(Answerer, Protocol):
    """A connection, as far as turns and sweeps need it."""

    peer: Peer
    deadline: float
    whole: bool
    """The next read may be a whole event."""
    held: int
    """Bytes of its unfinished request, and of reads that wait to be fed."""

    @property
    def unsent(self) -> int:
        """Bytes of answers that the client has not taken."""

    def refuse(self) -> None:
        """Refuse what is unfinished, to hold nothing any more."""

    @property
    def is_over(self) -> bool:
        """All is answered, and no request will be read any more."""

    def feed(self, data: bytes) -> None:
        """Read one read's bytes; complete requests end up in the turn."""

    def unpack(self) -> None:
        """Go on with the request that waits to be unpacked, for a share."""

    def end(self, *, linger: bool) -> None:
        """Answer nothing after this."""

    def finish(self) -> None:
        """End, all answers written."""

    def wait(self) -> None:
        """Read nothing until `go_on`: what was read waits for a turn."""

    def go_on(self) -> None:
        """Read again, if nothing else holds it up."""

    def is_overdue(self, now: float) -> bool:
        """Tell whether the deadline has passed."""

    def expire(self) -> None:
        """Close without a word."""

    def drain(self) -> None:
        """End at once if nothing is under way; else the next answer will be the last."""

    def abort(self) -> None:
        """Drop the connection."""


class Crowd:
    """Connections that were admitted, and a few that were not and linger with their refusal."""

    __slots__ = (
        "_by_network",
        "_handshakes",
        "_max",
        "_max_per_network",
        "_metrics",
        "_network_of",
        "_refused",
        "admitted",
    )

    def __init__(self, metrics: Metrics, max_connections: int, max_per_network: int = 0) -> None:
        self._metrics = metrics
        self._max = max_connections
        self._max_per_network = max_per_network
        """Zero: no limit."""
        self._network_of: dict[Member, bytes] = {}
        self._by_network: dict[bytes, int] = {}
        """Connections that are counted by their peers, and how many each has, while it has any."""
        self.admitted: set[Member] = set()
        self._refused: set[Member] = set()
        self._handshakes: dict[Handshake, None] = {}
        """Those that stand in the middle of a message, the oldest first."""

    def __iter__(self) -> Iterator[Member]:
        yield from self.admitted
        yield from self._refused

    def admit(self, connection: Member, spare: int = 0) -> bool:
        """Take a new connection into account; False when there are MAX_CONNECTIONS, and so many more, already.

        False also when there are enough of its peer's. Connections with a `spare` are not counted by peer.
        """
        limited = self._max_per_network and not spare
        if len(self.admitted) >= self._max + spare or (limited and not self._has_place(connection)):
            self._metrics.connections_refused += 1
            return False
        self.admitted.add(connection)
        self._metrics.connections += 1
        return True

    def admit_told(self, connection: Member) -> bool:
        """Count an admitted connection by the peer that its proxy has told; False when there are enough of that one.

        Then it is admitted no longer.
        """
        if not self._max_per_network or self._has_place(connection):
            return True
        self.dismiss(connection)
        self._metrics.connections_refused += 1
        return False

    def watch(self, connection: Member) -> bool:
        """Let a connection that was not admitted linger, if its descriptor can be spared."""
        if len(self._refused) >= REFUSED_LINGERING:
            return False
        self._refused.add(connection)
        return True

    def dismiss(self, connection: Member) -> None:
        """Forget a connection that is gone."""
        if connection in self.admitted:
            self.admitted.remove(connection)
            self._metrics.connections -= 1
            if self._network_of:
                self._leaves(self._network_of.pop(connection, b""))
        else:
            self._refused.discard(connection)

    def handshake_stands(self, handshake: Handshake) -> None:
        """Take note that a handshake waits for the rest of a message. The oldest is dropped when there are too many."""
        handshakes = self._handshakes
        if handshake not in handshakes and len(handshakes) >= HANDSHAKES:
            oldest = next(iter(handshakes))
            del handshakes[oldest]
            oldest.abort()
        handshakes[handshake] = None

    def handshake_moves(self, handshake: Handshake) -> None:
        """Forget a handshake that stands no longer."""
        self._handshakes.pop(handshake, None)

    def _has_place(self, connection: Member) -> bool:
        """Count one connection more of a peer that is not trusted, if it may have one."""
        peer = connection.peer
        if peer.trusted:
            return True
        there = network(peer.address)
        count = self._by_network.get(there, 0)
        if count >= self._max_per_network:
            return False
        if there:
            self._by_network[there] = count + 1
            self._network_of[connection] = there
        return True

    def _leaves(self, there: bytes) -> None:
        """Count one connection less of a network; none has left one that is empty."""
        if there:
            self._by_network[there] -= 1
            if not self._by_network[there]:
                del self._by_network[there]

    def largest(self) -> list[Member]:
        """Return those that hold something, the largest first."""
        return sorted((one for one in self.admitted if one.held), key=attrgetter("held"), reverse=True)

    def slowest(self) -> list[tuple[int, Member]]:
        """Return those whose answers are unsent, with how many bytes of them, the most first."""
        return sorted(((one.unsent, one) for one in self.admitted if one.unsent), key=itemgetter(0), reverse=True)

    def busy(self) -> bool:
        """Tell whether a connection is still owed an answer, or sends a request."""
        return any(connection.pending or not connection.is_over for connection in self.admitted)
