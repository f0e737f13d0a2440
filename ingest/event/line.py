"""One request becomes one JSON line.

Owns the encoding of an event's fields in the order of `format.record`. Promises that any bytes give one valid line,
and that a plain event costs one call of the encoder. Never does I/O, never looks into a body beyond what `BODY_FORMAT`
asks.

U+2028 and U+2029 are escaped: JSON allows them as they are, but there are readers to which they end a line.
"""

from __future__ import annotations

import re
from functools import lru_cache
from socket import AF_INET, inet_pton
from typing import TYPE_CHECKING, Final, TypeAlias

from orjson import OPT_APPEND_NEWLINE, Fragment, dumps

from ingest.event.batches import Unpacker
from ingest.event.bodies import FORMS, header_text, query_text, text_body, text_query
from ingest.event.client import ClientAddress, headers_read
from ingest.event.privacy import Privacy, headers_heeded
from ingest.event.refusals import LINES_TOO_LARGE, ClientError
from ingest.format import OPTIONAL_KEYS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ingest.config import Settings
    from ingest.event.batches import Items, Unpacking
    from ingest.event.bodies import Members
    from ingest.event.client import Fields, Peer, Raw

USER_AGENT: Final = b"user-agent"
COOKIE: Final = b"cookie"

PEERS_KEPT: Final = 1024

Line: TypeAlias = "bytes | ClientError"

_SEPARATOR: Final = 0xE2
"""The byte that U+2028 and U+2029 begin with in UTF-8; most lines have none."""
_ENDS: Final = (*OPTIONAL_KEYS, "body")
_NULL: Final = b"null}\n"
_NO_UTF8: Final = re.compile(rb'"body":\0([^}]*)')
_KEPT_WHOLE: Final = rb'"body_b64":"\1","body":""'
_NO_HEADERS: Final = b"{}"


class EventEncoder:
    """Encodes events for every connection of the process."""

    __slots__ = (
        "_absent",
        "_bare_at",
        "_bare_size",
        "_batch_bytes",
        "_form",
        "_privacy",
        "_tells_less",
        "_tells_more",
        "_ts_ms",
        "address_of",
        "also_reads",
        "encode_body",
        "encode_query",
        "fields",
        "headers",
        "in_json",
        "peer",
        "unpack",
        "wall",
    )

    def __init__(self, settings: Settings) -> None:
        self.headers: tuple[bytes, ...] = tuple(
            dict.fromkeys((USER_AGENT, COOKIE, *headers_read(settings), *headers_heeded(settings)))
        )
        self._absent = (b"",) * len(self.headers)
        self._privacy = privacy = Privacy(settings, self.headers)
        self.also_reads: Callable[[bytes], bool] | None = privacy.also_reads
        """Which headers are read beside `headers`; None: no more. Only `fields` finds those."""
        self.fields: Callable[[Raw, Mapping[bytes, bytes]], Fields]
        self.fields = self._fields if self.also_reads is None else self._all_fields
        """Return the fields of a request whose head is a mapping of lower-case header names to values."""
        self._ts_ms = settings.ts_ms
        self.wall = 0.0
        """The wall clock's time in the turn that is under way, as its owner sets it: `ts_ms` is made of it."""
        client = ClientAddress(settings, self.headers)
        self.peer: Callable[[str], Peer] = lru_cache(PEERS_KEPT)(client.peer)
        """Return what a connection's other end is; proxies come again and again, a connection for each event."""
        self.address_of: Callable[[Peer, Fields], str] = client.of
        self._bare_at, self._bare_size = client.bare_at, client.bare_size
        self._form = FORMS[settings.body_format]
        self.in_json = settings.body_format == "json"
        """Whether bodies have to be JSON."""
        self._batch_bytes = settings.batch_bytes
        self.unpack: Callable[[Raw, Raw], Unpacking] = Unpacker(settings.body_format, settings.max_body_size).unpack
        """Find the items of a body of many events, by its media type."""
        self._tells_less = privacy.hides
        """Whether a line may have less of its sender than came."""
        self._tells_more = bool(settings.ts_ms or settings.extra_headers or settings.write_keys)
        """Whether a line may have keys beside the plain five that no body and no query is behind."""
        text = settings.body_format == "text" and not (self._tells_less or self._tells_more)
        self.encode_body: Callable[[int, Peer, Fields], Line] = self._encode_text if text else self._of_body
        """Return the line of an event accepted at `seconds` (UTC epoch), or why its body is refused."""
        self.encode_query: Callable[[int, Peer, Fields], bytes] = self._encode_text_query if text else self._of_query
        """Return the line of an event that is its query, which stands first in its fields."""

    def encode_items(
        self, seconds: int, peer: Peer, fields: Fields, query: Raw, items: Items, key: str | None = ""
    ) -> Line:
        """Return the lines of all good items of one request, in one piece; they differ in their bodies alone.

        Their size is known before they are made.
        """
        members: Members = {"query": query_text(query)} if query else {}
        if key:
            members["key"] = key
        members["body"] = None
        start = self._line(seconds, peer, fields, members).removesuffix(_NULL)
        values = items.values
        if len(values) + items.count * len(start) > self._batch_bytes:
            return LINES_TOO_LARGE
        if _SEPARATOR in values:
            values = _escape_separators(values)
        lines = b"".join((start, values.replace(b"\n", b"}\n" + start), b"}\n"))
        return _NO_UTF8.sub(_KEPT_WHOLE, lines) if b"\0" in values else lines

    def encode_both(self, seconds: int, peer: Peer, fields: Fields, query: Raw, key: str = "") -> Line:
        """Return the line of an event that came with a body, a query, a key; one without a body is its query."""
        body, *headers = fields
        if not body and query:
            fields = [query, *headers]
            members = self._form.query(query)
        else:
            told = self._form.body(body)
            if isinstance(told, ClientError):
                return told
            members = {"query": query_text(query), **told} if query else told
        if key:
            members["key"] = key
        return self._line(seconds, peer, fields, members)

    def encode_told(
        self, seconds: int, peer: Peer, fields: Fields, path: str, query: Raw, key: str, *, is_query: bool
    ) -> Line:
        """Return the line of an event that tells its path; it is its query, or else its body, be that empty."""
        told = self._form.query(query) if is_query else self._form.body(fields[0])
        if isinstance(told, ClientError):
            return told
        members: Members = {"path": path}
        if query and not is_query:
            members["query"] = query_text(query)
        if key:
            members["key"] = key
        return self._line(seconds, peer, fields, members | told)

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
                    ip = self.address_of(peer, fields)
            else:
                ip = self.address_of(peer, fields)
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
        ip = self.address_of(peer, fields)
        if self._tells_less:
            ip, cookie = self._privacy.of_sender(ip, fields)
        else:
            cookie = header_text(fields[2])
        if self._tells_more:
            members = self._in_order(seconds, fields, members)
        head = {"ts": seconds, "ip": ip, "user_agent": header_text(fields[1]), "cookie": cookie}
        return _escape_separators(dumps(head | members, None, OPT_APPEND_NEWLINE))

    def _in_order(self, seconds: int, fields: Fields, members: Members) -> Members:
        """Return these members and what the settings ask for beside them, as `format.record` orders them."""
        there = dict(members)
        if self._ts_ms:
            first = 1000 * seconds
            there["ts_ms"] = min(max(first, int(1000 * self.wall)), first + 999)
        if self.also_reads is None:
            if named := self._privacy.named(fields):
                there["headers"] = named
        elif fields[-1] != _NO_HEADERS:
            there["headers"] = Fragment(bytes(fields[-1]))
        return {name: there[name] for name in _ENDS if name in there}

    def _fields(self, body: Raw, head: Mapping[bytes, bytes]) -> Fields:
        return [body, *map(head.get, self.headers, self._absent)]

    def _all_fields(self, body: Raw, head: Mapping[bytes, bytes]) -> Fields:
        """Return the fields with one more, the last: the member `headers`, of which no position is known before."""
        return [*self._fields(body, head), dumps(self._privacy.begun(head))]


def _escape_separators(line: bytes) -> bytes:
    return line.replace(b"\xe2\x80\xa8", rb"\u2028").replace(b"\xe2\x80\xa9", rb"\u2029")
