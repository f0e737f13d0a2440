"""The listening sockets: which addresses of this machine a setting means, and how they are bound.

Owns binding. Promises that a host name is bound at each of its addresses that this machine has. Never accepts a
connection.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

LISTEN_BACKLOG: Final = 4096
ABSENT: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)
"""A host name stands for an address that this machine does not have: `::1` without IPv6."""


async def bind(loop: asyncio.AbstractEventLoop, host: str | None, port: int) -> list[socket.socket]:
    """Bind to each address of `host` that this machine has; an `OSError` when it has none, or one is taken."""
    return _bind_each(await loop.getaddrinfo(_name(host), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE))


def bind_alone(host: str | None, port: int) -> list[socket.socket]:
    """Do the same in a process that does nothing else: it waits for the resolver, and needs no thread for that."""
    return _bind_each(socket.getaddrinfo(_name(host), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE))


def _name(host: str | None) -> bytes | None:
    """As bytes, because of a text `socket` makes what is no name of a host a UnicodeError."""
    return None if host is None else host.encode()


def _bind_each(found: Iterable[tuple[int, int, int, str, Any]]) -> list[socket.socket]:
    bound: list[socket.socket] = []
    absent: OSError | None = None
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            listener = socket.socket(family, kind, protocol)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
        except OSError as error:
            if error.errno not in ABSENT:
                raise
            absent = error
            continue
        listener.setblocking(False)
        bound.append(listener)
    if not bound and absent is not None:
        raise absent
    return bound
