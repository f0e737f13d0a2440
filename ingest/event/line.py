"""One request becomes one JSON line.

Owns the shape of the event record (docs/pipeline.md) and the question whose request it is: the client's address
behind trusted proxies. Promises that any bytes give one valid line, that text survives the round trip, and that no
header of an untrusted peer is believed. Never does I/O, never looks into a body beyond what `BODY_FORMAT` asks.

Addresses are read with `inet_pton` and compared as integers: a fresh address for every event costs well under a
microsecond, so nothing here is cached by client.
"""

from __future__ import annotations

from socket import AF_INET, inet_pton
from typing import TYPE_CHECKING, Final, TypeAlias

import orjson

from ingest.event.client import (
    COLON,
    COMMA,
    FORWARDED_FOR,
    READERS,
    Peer,
    Raw,
    TrustedNetworks,
    pack,
    pack_element,
    single_address,
    text_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ingest.config import Settings

USER_AGENT: Final = b"user-agent"
COOKIE: Final = b"cookie"
_NEWLINES: Final = b"\r\n"

Fields: TypeAlias = "Sequence[Raw]"
"""The parts of an event: the body, or the query, then the raw values of the headers named in `EventEncoder.headers`,
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
                self._forwarded_for if name == FORWARDED_FOR else READERS.get(name, single_address),
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
                if COMMA not in value and COLON not in value:
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
        packed = pack(address.partition("%")[0])
        if packed is None:
            return Peer(address, trusted=False)
        return Peer(text_of(packed), trusted=packed in self._trusted)

    def _forwarded_for(self, value: Raw) -> str | None:
        """Return the rightmost address that is no trusted proxy; if all are trusted the leftmost.

        Every proxy appends the address it was called from, so that only what stands right of the last untrusted
        address was written by proxies we know. Junk is skipped: it proves nothing about its neighbours.
        """
        if COMMA not in value:
            return single_address(value)
        trusted = self._trusted
        leftmost = None
        end = len(value)
        while end >= 0:
            comma = value.rfind(b",", 0, end)
            packed = pack_element(value[comma + 1 : end])
            if packed is not None:
                if packed not in trusted:
                    return text_of(packed)
                leftmost = packed
            end = comma
        return None if leftmost is None else text_of(leftmost)
