"""A connection behind a proxy that speaks the PROXY protocol: its header is read here, the rest is `Connection`'s.

Owns the bytes before the first request. Promises that a trusted peer is heard only after a sound header, whole within
READ_TIMEOUT; that the address it tells is from then on the connection's peer, so that `TRUSTED_PROXIES` is asked about
that address and no longer about the proxy's; and that nothing stands between the transport and `Connection` after the
header. Never reads a header of an untrusted peer: to the parser it is no HTTP, which gets its 400.

The connection is made, counted and given its deadline before the header comes, so that silent peers are bounded as all
others are.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ingest.event import BAD_PROXY_HEADER, Peer
from ingest.wire.connection import Connection, ends_one
from ingest.wire.proxy_header import Verdict, read_header

if TYPE_CHECKING:
    from ingest.wire.door import Door
    from ingest.wire.headers import HeaderNames
    from ingest.wire.tick import Tick


class Proxied(asyncio.Protocol):
    """Takes a connection's place with the transport until the header is there."""

    __slots__ = ("_connection", "_read", "_tick", "_transport")

    def __init__(self, tick: Tick, names: HeaderNames, door: Door) -> None:
        self._tick = tick
        self._connection = Connection(tick, names, door)
        self._transport: asyncio.Transport
        self._read = b""

    @ends_one
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a TCP server's
        """Have the connection made, and step aside at once if no header is read."""
        connection, tick = self._connection, self._tick
        self._transport = transport
        connection.connection_made(transport)
        if connection.peer.trusted and not connection.is_over:
            connection.deadline = tick.clocks.loop_time() + tick.limits.read_timeout
        else:
            transport.set_protocol(connection)

    @ends_one
    def data_received(self, data: bytes) -> None:
        """Read on, up to the end of the header."""
        connection = self._connection
        if connection.is_over:
            self._transport.set_protocol(connection)
            connection.data_received(data)
            return
        data = self._read = self._read + data
        header = read_header(data)
        if header is Verdict.MORE:
            return
        self._transport.set_protocol(connection)
        if isinstance(header, Verdict):
            connection.turn_away(BAD_PROXY_HEADER)
            return
        peer = connection.peer
        told = self._tick.encoder.peer(peer.address if header.address is None else header.address)
        # It is not local, also if it is said to be: the proxy need not be on this machine.
        connection.peer = Peer(told.address, trusted=told.trusted)
        if not self._tick.crowd.admit_told(connection):
            connection.leave_with(self._tick.book.plain.refused_close, linger=self._tick.crowd.watch(connection))
            return
        connection.deadline = self._tick.clocks.loop_time() + self._tick.limits.idle_timeout
        if len(data) > header.size:
            connection.data_received(data[header.size :])

    def eof_received(self) -> bool:
        """Close: nothing was asked."""
        return False

    @ends_one
    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the connection, which nobody else told."""
        self._connection.connection_lost(exc)

    def abort(self) -> None:
        """Drop the connection."""
        self._transport.abort()
