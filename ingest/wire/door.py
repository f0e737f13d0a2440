"""Who is let in where: what each listening socket serves, and to whom.

Owns the doors. Promises that the pages for operators are shown on a door of their own, or else only to a process on
this machine that came through no proxy. Never reads a request.

| door     | for                          | has                                                                 |
| -------- | ---------------------------- | ------------------------------------------------------------------- |
| `street` | `HTTP_ADDR`, with ADMIN_ADDR | events, `/health`, `/ready`                                         |
| `house`  | `HTTP_ADDR`, without it      | the same, and the operators' pages for who is direct                |
| `OFFICE` | `ADMIN_ADDR`                 | the operators' pages, `/health`, `/ready`; over MAX_CONNECTIONS too |

A client is direct when its address is a loopback one, it speaks HTTP/1.1, and no header says that it came through a
proxy: nginx forwards without any by default, but as HTTP/1.0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ingest.event import NOT_HERE, PAGES, Router, routers
from ingest.wire.headers import names_a_proxy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ingest.config import Settings
    from ingest.event import Peer

SPARE: Final = 16
"""Connections of operators beyond MAX_CONNECTIONS, out of the descriptors that are held in reserve."""


class Door(NamedTuple):
    """The routes of one listening socket."""

    router: Router
    direct: Router | None = None
    """The routes for who is direct, if those are more."""
    events: bytes = b""
    """The path of nearly every request; empty where events are not taken."""
    spare: int = 0
    """So many connections are let in although MAX_CONNECTIONS are open."""


OFFICE: Final = Door(Router(PAGES, NOT_HERE), spare=SPARE)


def street(settings: Settings) -> Door:
    """Return the door of `HTTP_ADDR` where operators have one of their own."""
    everybody, _ = routers(settings)
    return Door(everybody, events=settings.collect_paths[0].encode())


def house(settings: Settings) -> Door:
    """Return the door of `HTTP_ADDR` where there is no other."""
    everybody, direct = routers(settings)
    return Door(everybody, direct, events=settings.collect_paths[0].encode())


def is_direct(peer: Peer, names: Iterable[bytes], *, is_old: bool) -> bool:
    """Tell whether a request, of HTTP/1.0 or with headers of these names, was made on this machine itself."""
    return peer.local and not is_old and not any(map(names_a_proxy, names))
