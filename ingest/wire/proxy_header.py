"""The PROXY protocol's header, versions 1 and 2: what a proxy says before the first byte of its client.

Owns the form of the header. Promises a verdict for any bytes, the same however they are cut into reads, and none later
than after `LONGEST` bytes. Never decides whose header is believed.

    v1   PROXY TCP4 203.0.113.7 10.0.0.1 51234 8080 CR LF       TCP6 likewise; UNKNOWN, and what follows, tells nothing
    v2   twelve fixed bytes; version and command; family and transport; the length of the rest; addresses; TLVs

An address is told by PROXY over IPv4 and IPv6 only. LOCAL (the proxy's own check), UNKNOWN, UNSPEC and Unix sockets
leave the peer what it is. TLVs are passed over.
"""

from __future__ import annotations

from enum import Enum
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Final, NamedTuple

LONGEST: Final = 536
"""Bytes that one packet of any network carries, which is why senders keep to it."""
_V1: Final = b"PROXY "
_V1_LONGEST: Final = 107
_V2: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_FIXED: Final = 16
_FAMILIES: Final = {b"TCP4": AF_INET, b"TCP6": AF_INET6}
_LOCAL, _PROXY = 0x20, 0x21
_V2_FAMILIES: Final = {1: (AF_INET, 4, 12), 2: (AF_INET6, 16, 36), 3: (None, 0, 216), 0: (None, 0, 0)}
"""The family, the bytes of an address, and those of both ends with their ports."""
_TRANSPORTS: Final = 3


class Verdict(Enum):
    """The bytes so far are no whole header."""

    MORE = "more"
    BROKEN = "broken"


class Header(NamedTuple):
    """A whole header: its bytes, and the client's address if it tells one."""

    size: int
    address: str | None


def read_header(data: bytes) -> Header | Verdict:
    """Return the header that the bytes begin with."""
    if data.startswith(_V1[: len(data)]):
        return _read_v1(data)
    if data.startswith(_V2[: len(data)]):
        return _read_v2(data)
    return Verdict.BROKEN


def _read_v1(data: bytes) -> Header | Verdict:
    end = data.find(b"\r\n", 0, _V1_LONGEST)
    if end < 0:
        return Verdict.MORE if len(data) < _V1_LONGEST else Verdict.BROKEN
    kind, *told = data[len(_V1) : end].split(b" ")
    if kind == b"UNKNOWN":
        return Header(end + 2, None)
    family = _FAMILIES.get(kind)
    if family is None or len(told) != 4 or not all(map(_is_port, told[2:])):
        return Verdict.BROKEN
    try:
        source, _ = (inet_pton(family, address.decode("ascii")) for address in told[:2])
    except (OSError, ValueError):
        return Verdict.BROKEN
    return Header(end + 2, inet_ntop(family, source))


def _is_port(text: bytes) -> bool:
    return text.isdigit() and len(text) <= 5 and int(text) <= 65535


def _read_v2(data: bytes) -> Header | Verdict:
    if len(data) < _V2_FIXED:
        return Verdict.MORE
    command, kind = data[12], data[13]
    size = _V2_FIXED + int.from_bytes(data[14:_V2_FIXED], "big")
    if command not in {_LOCAL, _PROXY} or size > LONGEST:
        return Verdict.BROKEN
    if len(data) < size:
        return Verdict.MORE
    if command == _LOCAL:
        return Header(size, None)
    found = _V2_FAMILIES.get(kind >> 4)
    if found is None or kind & 15 >= _TRANSPORTS or size - _V2_FIXED < found[2]:
        return Verdict.BROKEN
    family, length, _ = found
    return Header(size, None if family is None else inet_ntop(family, data[_V2_FIXED : _V2_FIXED + length]))
