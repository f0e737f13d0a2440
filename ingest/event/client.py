"""Whose request it is: the client's address behind trusted proxies.

Owns what each header of `CLIENT_IP_HEADERS` means. Promises that no header of an untrusted peer is believed, nor what
stands left of the first thing that no trusted proxy can have written; and that no header costs more than its length.
Addresses are read with `inet_pton` and compared as integers: a fresh address for every event costs well under a
microsecond, so nothing here is cached by client. Never does I/O.

A proxy appends the address it was called from, so that lists are read from the right. Empty elements are skipped (RFC
9110 §5.6.1). Lines of one name have been joined with commas (§5.2), so that the last line is at the right end too.
"""

from __future__ import annotations

from functools import partial
from ipaddress import IPv4Network, IPv6Network
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ingest.config import Settings


Raw: TypeAlias = "bytes | bytearray"
Fields: TypeAlias = "Sequence[Raw]"
"""The parts of an event: the body, or the query, then the raw values of the headers that are read, repeated lines
joined, empty where there is none."""

Pack: TypeAlias = "Callable[[Raw], bytes | None]"

ELEMENTS_READ: Final = 32
"""Elements of a list that are looked at, from the right; more proxies than that stand before nobody."""
_PARAMETERS_READ: Final = 8
_QUOTES_READ: Final = 8 * ELEMENTS_READ
"""Quotes of `Forwarded` that are looked at, from the right: four parameters an element, each in two."""

_FORWARDED: Final = b"forwarded"
LONGEST_IPV4: Final = len("255.255.255.255")
_EMPTY_ELEMENTS: Final = b", \t"
_LOOPBACK: Final = 127
_LOOPBACK_V6: Final = bytes(15) + b"\x01"
_MAPPED: Final = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96, an IPv4 address inside IPv6 (RFC 4291 §2.5.5.2)


class Peer:
    """The other end of a connection: its address as text, and whether its headers are believed.

    `local`: it is a process on this machine, which connected by itself.
    """

    __slots__ = ("address", "local", "trusted")

    def __init__(self, address: str, *, trusted: bool, local: bool = False) -> None:
        self.address = address
        self.trusted = trusted
        self.local = local


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


def headers_read(settings: Settings) -> tuple[bytes, ...]:
    """Return the names of the headers that may tell a client's address, in the order in which they are asked."""
    return tuple(name.lower().encode("ascii") for name in settings.client_ip_headers)


class ClientAddress:
    """Finds the address of an event's client; `headers` are the names of the headers in an event's fields."""

    __slots__ = ("_sources", "_trusted", "bare_at", "bare_size")

    def __init__(self, settings: Settings, headers: Sequence[bytes]) -> None:
        self._trusted = TrustedNetworks(settings.trusted_proxies)
        readers: dict[bytes, Callable[[Raw], str | None]] = {
            b"x-forwarded-for": self._read_forwarded_for,
            _FORWARDED: self._read_forwarded,
            b"cloudfront-viewer-address": partial(_last, pack_viewer_address),
        }
        single = partial(_last, pack_element)
        names = headers_read(settings)
        self._sources = tuple((1 + headers.index(name), readers.get(name, single)) for name in names)
        bare = bool(names) and names[0] != _FORWARDED
        self.bare_at = self._sources[0][0] if bare else 0
        """Where in the fields the header stands that is asked first, if an IPv4 address alone means itself in it."""
        self.bare_size = LONGEST_IPV4 if bare else 0
        """The most bytes that such a value can have; 0 where there is no such header."""

    def peer(self, address: str) -> Peer:
        """Return what the connection's other end is: its address in canonical form, and whether it is believed."""
        packed = pack(address)
        if packed is None:
            return Peer(address, trusted=False)
        local = packed[0] == _LOOPBACK if len(packed) == 4 else packed == _LOOPBACK_V6
        return Peer(text_of(packed), trusted=packed in self._trusted, local=local)

    def of(self, peer: Peer, fields: Fields) -> str:
        """Return the client's address: from the first header that has one, if the peer is believed; else the peer's."""
        if peer.trusted:
            for place, read in self._sources:
                value = fields[place]
                if value:
                    found = read(value)
                    if found is not None:
                        return found
        return peer.address

    def _read_forwarded_for(self, value: Raw) -> str | None:
        return _rightmost_untrusted(self._trusted, pack_element, value)

    def _read_forwarded(self, value: Raw) -> str | None:
        return _rightmost_untrusted(self._trusted, pack_forwarded, _join_quoted(value))


# Lists, from the right.


def _rightmost_untrusted(trusted: TrustedNetworks, pack_one: Pack, value: Raw) -> str | None:
    """Return the rightmost address that is no trusted proxy; if all are trusted the leftmost.

    One that is no address ends the walk: what stands left of it was not written by a proxy we know.
    """
    leftmost = None
    end = len(value)
    unread = ELEMENTS_READ
    while unread and end > 0:
        comma = value.rfind(b",", 0, end)
        packed = pack_one(value[comma + 1 : end])
        if packed is None:
            filled = len(value[:end].rstrip(_EMPTY_ELEMENTS))
            if filled > comma:
                break
            end = filled  # however many empty elements there were, they are behind
            continue
        if packed not in trusted:
            return text_of(packed)
        leftmost = packed
        unread -= 1
        end = comma
    return None if leftmost is None else text_of(leftmost)


def _last(pack_one: Pack, value: Raw) -> str | None:
    """Return the one address a header holds; of a repeated header that of the last line, which the last proxy wrote."""
    filled = value.rstrip(_EMPTY_ELEMENTS)
    packed = pack_one(filled[filled.rfind(b",") + 1 :])
    return None if packed is None else text_of(packed)


def _join_quoted(value: Raw) -> Raw:
    """Take the commas out of what stands in quotes, paired from the right, so that each one left divides elements.

    A NUL takes their place, which stands in no address. Pairing from the right keeps a client's lone quote from
    swallowing what the proxies after it have written.
    """
    if b'"' not in value:
        return value
    pieces: list[Raw] = [*value.rsplit(b'"', _QUOTES_READ)]
    for inside in range(len(pieces) - 2, -1, -2):
        pieces[inside] = pieces[inside].replace(b",", b"\0")
    return b'"'.join(pieces)


# One element: packed to 4 or 16 bytes, or None if it is no address.


def pack_element(element: Raw) -> bytes | None:
    """Pack `1.2.3.4`, `1.2.3.4:80`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:80`, in quotes or not."""
    text = element.strip(b' \t"').decode("latin-1")
    if ":" not in text:
        try:
            return inet_pton(AF_INET, text)
        except (OSError, ValueError):
            return None
    if text.startswith("["):
        text, bracket, port = text[1:].partition("]")
        if not bracket or ":" not in text or (port and not _is_port(port)):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _is_port(":" + port):
            return None
    return pack(text)


def pack_viewer_address(element: Raw) -> bytes | None:
    """Pack the address of `CloudFront-Viewer-Address`: it ends in a port and writes IPv6 without brackets."""
    host, colon, port = element.strip().rpartition(b":")
    if colon and port.isdigit():
        packed = pack_element(host)
        if packed is not None:
            return packed
    return pack_element(element)


def pack_forwarded(element: Raw) -> bytes | None:
    """Pack what `for=` says in one element of `Forwarded` (RFC 7239 §4), which may say it once."""
    found = None
    for parameter in element.split(b";", _PARAMETERS_READ):
        name, equals, node = parameter.partition(b"=")
        if equals and name.strip(b" \t").lower() == b"for":
            if found is not None:
                return None
            found = node
    if found is None:
        return None
    host, _, _ = found.partition(b":_")  # a port may be a made-up name, which begins so
    return pack_element(host)


def _is_port(text: str) -> bool:
    return text[:1] == ":" and text[1:].isascii() and text[1:].isdigit()


def pack(text: str) -> bytes | None:
    """Return 4 or 16 bytes; an IPv4 address mapped into IPv6 is the IPv4 address, a zone is left out."""
    try:
        if ":" not in text:
            return inet_pton(AF_INET, text)
        packed = inet_pton(AF_INET6, text.partition("%")[0])
    except (OSError, ValueError):
        return None
    return packed[12:] if packed.startswith(_MAPPED) else packed


def text_of(packed: bytes) -> str:
    """Return the canonical text of a packed address."""
    return inet_ntop(AF_INET if len(packed) == 4 else AF_INET6, packed)
