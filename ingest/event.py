"""One request becomes one JSON line.

Owns the shape of the event record (docs/pipeline.md) and the question whose request it is: the client's address
behind trusted proxies. Promises that any bytes give one valid line, that text survives the round trip, and that no
header of an untrusted peer is believed. Never does I/O, never looks into a body beyond what `BODY_FORMAT` asks.

Addresses are read with `inet_pton` and compared as integers: a fresh address for every event costs well under a
microsecond, so nothing here is cached by client.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import TYPE_CHECKING, Final, TypeAlias

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ingest.config import Settings

FORWARDED_FOR: Final = b"x-forwarded-for"
VIEWER_ADDRESS: Final = b"cloudfront-viewer-address"
USER_AGENT: Final = b"user-agent"
COOKIE: Final = b"cookie"

_COMMA: Final = ord(",")
_COLON: Final = ord(":")
"""Looked for as numbers: `b"," in value` first asks whether `b","` is one, by way of an exception."""
_NEWLINES: Final = b"\r\n"
_MAPPED: Final = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96, an IPv4 address inside IPv6 (RFC 4291 §2.5.5.2)


Raw: TypeAlias = "bytes | bytearray"

Fields: TypeAlias = "Sequence[Raw]"
"""What an event is made of: the body, or the query, then the raw values of the headers named in `EventEncoder.headers`,
repeated lines joined, empty where there is none."""


class EventEncoder:
    """Encodes events for every connection of the process."""

    __slots__ = ("_absent", "_address_readers", "_trusted", "encode_body", "headers")

    def __init__(self, settings: Settings) -> None:
        names = tuple(name.lower().encode("ascii") for name in settings.client_ip_headers)
        self._trusted = TrustedNetworks(settings.trusted_proxies)
        self.encode_body: Callable[[int, Peer, Fields], bytes | None] = (
            self._encode_json if settings.body_format == "json" else self.encode
        )
        """Return the line of an event with a body, as BODY_FORMAT wants it; None when the body is not what it wants."""
        self.headers: tuple[bytes, ...] = tuple(dict.fromkeys((USER_AGENT, COOKIE, *names)))
        self._absent = (b"",) * len(self.headers)
        self._address_readers: tuple[tuple[int, Callable[[Raw], str | None]], ...] = tuple(
            (
                1 + self.headers.index(name),
                self._forwarded_for if name == FORWARDED_FOR else _READERS.get(name, _single_address),
            )
            for name in names
        )

    def fields(self, body: Raw, head: Mapping[bytes, bytes]) -> Fields:
        """Return the fields of a request whose head is a mapping of lower-case header names to values."""
        return [body, *map(head.get, self.headers, self._absent)]

    def encode(self, seconds: int, peer: Peer, fields: Fields) -> bytes:
        """Return the line of an event accepted at `seconds` (UTC epoch); the body, or query, becomes text."""
        # Plain decode first: bytes that are not UTF-8 are rare, and "replace" from the start costs on every request.
        try:
            body = fields[0].decode()
            agent = fields[1].decode()
            cookie = fields[2].decode()
        except UnicodeDecodeError:
            body = fields[0].decode("utf-8", "replace")
            agent = fields[1].decode("utf-8", "replace")
            cookie = fields[2].decode("utf-8", "replace")
        ip = peer.address
        if peer.trusted:
            for index, read in self._address_readers:
                value = fields[index]
                if not value:
                    continue
                if _COMMA not in value and _COLON not in value:
                    # An IPv4 address alone, nearly always: to every reader it means itself.
                    try:
                        text = value.decode()
                        inet_pton(AF_INET, text)
                    except (OSError, ValueError):
                        pass
                    else:
                        ip = text
                        break
                found = read(value)
                if found is not None:
                    ip = found
                    break
        return orjson.dumps(
            {"ts": seconds, "ip": ip, "user_agent": agent, "cookie": cookie, "body": body},
            None,
            orjson.OPT_APPEND_NEWLINE,
        )

    def _encode_json(self, seconds: int, peer: Peer, fields: Fields) -> bytes | None:
        """Return the line with the body embedded verbatim as a JSON value; None when the body is not JSON.

        RFC 8259 allows line breaks only between tokens, never inside a string, so that removing every one of them keeps
        the value. An empty body stays the empty string.
        """
        body = fields[0]
        if not body:
            return self.encode(seconds, peer, fields)
        # In brackets it is nested as deeply as in the record, which has to be readable again: orjson stops at 1,024.
        # Only a body that is one value makes a list of one.
        try:
            if len(orjson.loads(b"".join((b"[", body, b"]")))) != 1:
                return None
        except orjson.JSONDecodeError:
            return None
        # The record is encoded with an empty body, whose quotes and brace then give way to the value.
        record = self.encode(seconds, peer, (b"", *fields[1:]))
        return b"".join((record[: -len(b'""}\n')], body.translate(None, _NEWLINES), b"}\n"))

    def peer(self, address: str) -> Peer:
        """Return what the connection's other end is: its address in canonical form, and whether it is believed."""
        packed = _pack(address.partition("%")[0])
        if packed is None:
            return Peer(address, trusted=False)
        return Peer(_text(packed), trusted=packed in self._trusted)

    def _forwarded_for(self, value: Raw) -> str | None:
        """Return the rightmost address that is no trusted proxy; if all are trusted the leftmost.

        Every proxy appends the address it was called from, so that only what stands right of the last untrusted
        address was written by proxies we know. Junk is skipped: it proves nothing about its neighbours.
        """
        if _COMMA not in value:
            return _single_address(value)
        trusted = self._trusted
        leftmost = None
        end = len(value)
        while end >= 0:
            comma = value.rfind(b",", 0, end)
            packed = _pack_element(value[comma + 1 : end])
            if packed is not None:
                if packed not in trusted:
                    return _text(packed)
                leftmost = packed
            end = comma
        return None if leftmost is None else _text(leftmost)


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


def _single_address(value: Raw) -> str | None:
    """Return the one address a header holds, with or without brackets and port; None for junk."""
    packed = _pack_element(value)
    return None if packed is None else _text(packed)


def _viewer_address(value: Raw) -> str | None:
    """Return the address of `CloudFront-Viewer-Address`: it ends in a port and writes IPv6 without brackets."""
    host, colon, port = value.strip().rpartition(b":")
    if colon and port.isdigit():
        packed = _pack_element(host)
        if packed is not None:
            return _text(packed)
    return _single_address(value)


_READERS: Final[Mapping[bytes, Callable[[Raw], str | None]]] = {VIEWER_ADDRESS: _viewer_address}


def _pack_element(element: Raw) -> bytes | None:
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
    return _pack(text)


def _is_port(text: str) -> bool:
    return text[:1] == ":" and text[1:].isascii() and text[1:].isdigit()


def _pack(text: str) -> bytes | None:
    """Return 4 or 16 bytes; an IPv4 address mapped into IPv6 is the IPv4 address."""
    try:
        if ":" not in text:
            return inet_pton(AF_INET, text)
        packed = inet_pton(AF_INET6, text)
    except (OSError, ValueError):
        return None
    return packed[12:] if packed.startswith(_MAPPED) else packed


def _text(packed: bytes) -> str:
    return inet_ntop(AF_INET if len(packed) == 4 else AF_INET6, packed)
