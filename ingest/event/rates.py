"""How many events an address may send: a bucket of tokens for each.

Owns the table of addresses and the arithmetic of `RATE_LIMIT` and `RATE_BURST`. Promises that an address sends no more
than the limit in the long run, that the table has at most 65,536 entries, and that who finds no place in it is let
through. Time is monotonic: a wall clock that is set refills nothing. Never stores an address anywhere else.

An entry is one number: the instant at which the bucket is full again. Every event moves it by one interval; an event is
refused while it is further away than a burst. From that instant on the entry says what no entry says, and `sweep` takes
it out: that ends its life, and nothing else does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ingest.event.client import pack

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.config import Rate

ADDRESSES_KEPT: Final = 65_536
_IPV6_BYTES: Final = 8
"""The network part of an IPv6 address: whoever has one address has a /64 of them."""


def network(address: str) -> bytes:
    """Return what is counted under one number: an IPv4 address, an IPv6 /64; nothing for what is no address."""
    packed = pack(address)
    if packed is None:
        return b""
    return packed if len(packed) == 4 else packed[:_IPV6_BYTES]


class RateLimit:
    """The buckets of all addresses."""

    __slots__ = ("_clock", "_full_at", "_interval", "_slack")

    def __init__(self, rate: Rate, burst: int, clock: Callable[[], float]) -> None:
        self._interval = rate.seconds / rate.events
        self._slack = (burst - 1) * self._interval
        self._clock = clock
        self._full_at: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self._full_at)

    def wait(self, address: str) -> float:
        """Return how long until the address may send an event; 0 when it may now."""
        full_at = self._full_at.get(network(address))
        return 0.0 if full_at is None else max(full_at - self._clock() - self._slack, 0.0)

    def spend(self, address: str, events: int = 1) -> None:
        """Count events that were let through. More than there are tokens for leave a debt, which time pays."""
        bucket = network(address)
        full_at = self._full_at.get(bucket)
        if full_at is None and (not bucket or len(self._full_at) >= ADDRESSES_KEPT):
            return
        now = self._clock()
        self._full_at[bucket] = (now if full_at is None else max(full_at, now)) + events * self._interval

    def sweep(self) -> None:
        """Forget the addresses whose buckets are full again."""
        now = self._clock()
        if self._full_at:
            self._full_at = {bucket: full_at for bucket, full_at in self._full_at.items() if full_at > now}
