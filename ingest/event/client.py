"""Whose request it is: the client's address behind trusted proxies.

Promises that no header of an untrusted peer is believed. Addresses are read with `inet_pton` and compared as integers:
a fresh address for every event costs well under a microsecond, so nothing here is cached by client. Never does I/O.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


FORWARDED_FOR: Final = b"x-forwarded-for"
VIEWER_ADDRESS: Final = b"cloudfront-viewer-address"

COMMA: Final = ord(",")
COLON: Final = ord(":")
"""Looked for as numbers: `b"," in value` first asks whether `b","` is one, by way of an exception."""
_MAPPED: Final = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96, an IPv4 address inside IPv6 (RFC 4291 §2.5.5.2)


Raw: TypeAlias = "bytes | bytearray"


class Peer:
    """The other end of a connection: its address as text, and whether its headers are believed."""

    __slots__ = ("address", "trusted")

    def __init__(self, address: str, *, trusted: bool) -> None:
        self.address = address
        self.trusted = trusted


class TrustedNetworks:
    """Whether a packed address lies in one of some networks.

    IPv4 networks are sorted under the first octets they cover: most addresses of the internet meet an empty list.
    """

    __slots__ = ("_by_first_octet", "_v6")

    def __init__(self, networks: Sequence[IPv4Network | IPv6Network]) -> None:
        by_first_octet: list[list[tuple[int, int]]] = [[] for _ in range(256)]
        v6: list[tuple[int, int]] = []
        for network in networks:
            rule = (int(network.network_address), int(network.netmask))
            if isinstance(network, IPv6Network):
                v6.append(rule)
            else:
                last = int(network.broadcast_address)
                for octet in range(rule[0] >> 24, (last >> 24) + 1):
                    by_first_octet[octet].append(rule)
        self._by_first_octet = tuple(tuple(rules) for rules in by_first_octet)
        self._v6 = tuple(v6)

    def __contains__(self, packed: bytes) -> bool:
        rules = self._by_first_octet[packed[0]] if len(packed) == 4 else self._v6
        if not rules:
            return False
        number = int.from_bytes(packed, "big")
        for base, mask in rules:  # noqa: SIM110 - a generator per address costs more than the comparison
            if number & mask == base:
                return True
        return False


def single_address(value: Raw) -> str | None:
    """Return the one address a header holds, with or without brackets and port; None for junk."""
    packed = pack_element(value)
    return None if packed is None else text_of(packed)


def _viewer_address(value: Raw) -> str | None:
    """Return the address of `CloudFront-Viewer-Address`: it ends in a port and writes IPv6 without brackets."""
    host, colon, port = value.strip().rpartition(b":")
    if colon and port.isdigit():
        packed = pack_element(host)
        if packed is not None:
            return text_of(packed)
    return single_address(value)


READERS: Final[Mapping[bytes, Callable[[Raw], str | None]]] = {VIEWER_ADDRESS: _viewer_address}


def pack_element(element: Raw) -> bytes | None:
    """Pack `1.2.3.4`, `1.2.3.4:80`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:80`; None for anything else."""
    text = element.strip(b' \t"').decode("latin-1")
    if ":" not in text:
        try:
            return inet_pton(AF_INET, text)
        except (OSError, ValueError):
            return None
    if text.startswith("["):
        text, bracket, port = text[1:].partition("]")
        if not bracket or (port and not _is_port(port)):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _is_port(":" + port):
            return None
    return pack(text)


def _is_port(text: str) -> bool:
    return text[:1] == ":" and text[1:].isascii() and text[1:].isdigit()


def pack(text: str) -> bytes | None:
    """Return 4 or 16 bytes; an IPv4 address mapped into IPv6 is the IPv4 address."""
    try:
        if ":" not in text:
            return inet_pton(AF_INET, text)
        packed = inet_pton(AF_INET6, text)
    except (OSError, ValueError):
        return None
    return packed[12:] if packed.startswith(_MAPPED) else packed


def text_of(packed: bytes) -> str:
    """Return the canonical text of a packed address."""
    return inet_ntop(AF_INET if len(packed) == 4 else AF_INET6, packed)
