"""One request becomes one JSON line.

Owns the encoding of an event's fields in the order of `format.record`. Promises that any bytes give one valid line,
and that a plain event costs one call of the encoder. Never does I/O, never looks into a body beyond what `BODY_FORMAT`
asks.

U+2028 and U+2029 are escaped: JSON allows them as they are, but there are readers to which they end a line.
"""

from __future__ import annotations

from socket import AF_INET, inet_pton
from typing import TYPE_CHECKING, Final, TypeAlias

from orjson import OPT_APPEND_NEWLINE, dumps

from ingest.event.bodies import FORMS, header_text, query_text, text_body, text_query
from ingest.event.client import ClientAddress, headers_read
from ingest.event.refusals import ClientError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ingest.config import Settings
    from ingest.event.bodies import Members
    from ingest.event.client import Fields, Peer, Raw

USER_AGENT: Final = b"user-agent"
COOKIE: Final = b"cookie"

Line: TypeAlias = "bytes | ClientError"

_SEPARATOR: Final = 0xE2
"""The byte that U+2028 and U+2029 begin with in UTF-8; most lines have none."""


class EventEncoder:
    """Encodes events for every connection of the process."""

    __slots__ = (
        "_absent",
        "_address_of",
        "_bare_at",
        "_bare_size",
        "_form",
        "encode_body",
        "encode_query",
        "headers",
        "peer",
    )

    def __init__(self, settings: Settings) -> None:
        self.headers: tuple[bytes, ...] = tuple(dict.fromkeys((USER_AGENT, COOKIE, *headers_read(settings))))
        self._absent = (b"",) * len(self.headers)
        client = ClientAddress(settings, self.headers)
        self.peer: Callable[[str], Peer] = client.peer
        self._address_of: Callable[[Peer, Fields], str] = client.of
        self._bare_at, self._bare_size = client.bare_at, client.bare_size
        self._form = FORMS[settings.body_format]
        text = settings.body_format == "text"
        self.encode_body: Callable[[int, Peer, Fields], Line] = self._encode_text if text else self._of_body
        """Return the line of an event accepted at `seconds` (UTC epoch), or why its body is refused."""
        self.encode_query: Callable[[int, Peer, Fields], bytes] = self._encode_text_query if text else self._of_query
        """Return the line of an event that is its query, which stands first in its fields."""

    def fields(self, body: Raw, head: Mapping[bytes, bytes]) -> Fields:
        """Return the fields of a request whose head is a mapping of lower-case header names to values."""
        return [body, *map(head.get, self.headers, self._absent)]

    def encode_both(self, seconds: int, peer: Peer, fields: Fields, query: Raw) -> Line:
        """Return the line of an event that came with a body and a query; one without a body is its query."""
        body, *headers = fields
        if not body:
            return self.encode_query(seconds, peer, [query, *headers])
        if not query:
            return self.encode_body(seconds, peer, fields)
        members = self._form.body(body)
        if isinstance(members, ClientError):
            return members
        return self._line(seconds, peer, fields, {"query": query_text(query), **members})

    # The plain event: strict first, because bytes that are not UTF-8 are rare, and to expect them costs every event.

    def _encode_text(
        self, seconds: int, peer: Peer, fields: Fields, odd: Callable[[Raw], Members] = text_body
    ) -> bytes:
        ip = peer.address
        if peer.trusted:
            value = fields[self._bare_at]
            if 0 < len(value) <= self._bare_size:
                # An IPv4 address alone, nearly always.
                try:
                    ip = value.decode()
                    inet_pton(AF_INET, ip)
                except (OSError, ValueError):
                    ip = self._address_of(peer, fields)
            else:
                ip = self._address_of(peer, fields)
        try:
            line = dumps(
                {
                    "ts": seconds,
                    "ip": ip,
                    "user_agent": fields[1].decode(),
                    "cookie": fields[2].decode(),
                    "body": fields[0].decode(),
                },
                None,
                OPT_APPEND_NEWLINE,
            )
        except UnicodeDecodeError:
            return self._line(seconds, peer, fields, odd(fields[0]))
        return _escape_separators(line) if _SEPARATOR in line else line

    def _encode_text_query(self, seconds: int, peer: Peer, fields: Fields) -> bytes:
        return self._encode_text(seconds, peer, fields, text_query)

    # Every other.

    def _of_body(self, seconds: int, peer: Peer, fields: Fields) -> Line:
        members = self._form.body(fields[0])
        return members if isinstance(members, ClientError) else self._line(seconds, peer, fields, members)

    def _of_query(self, seconds: int, peer: Peer, fields: Fields) -> bytes:
        return self._line(seconds, peer, fields, self._form.query(fields[0]))

    def _line(self, seconds: int, peer: Peer, fields: Fields, members: Members) -> bytes:
        """Return a line that ends in these members, the last of them `body`."""
        head = {
            "ts": seconds,
            "ip": self._address_of(peer, fields),
            "user_agent": header_text(fields[1]),
            "cookie": header_text(fields[2]),
        }
        return _escape_separators(dumps(head | members, None, OPT_APPEND_NEWLINE))


def _escape_separators(line: bytes) -> bytes:
    return line.replace(b"\xe2\x80\xa8", rb"\u2028").replace(b"\xe2\x80\xa9", rb"\u2029")
