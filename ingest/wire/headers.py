"""Header names: those that the wire itself reads, and which spellings of a name anybody wants.

Owns the names that frame a message, `HeaderNames`, and the form of a Host. Never decides what follows from one.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

HOST: Final = b"host"
ACCEPT: Final = b"accept"
ORIGIN: Final = b"origin"
EXPECT: Final = b"expect"
UPGRADE: Final = b"upgrade"
CONNECTION: Final = b"connection"
PROXY_CONNECTION: Final = b"proxy-connection"
"""No standard header, and ignored. The parser heeds it as a Connection, so that it is known where one stands."""
CONTENT_ENCODING: Final = b"content-encoding"
CONTENT_TYPE: Final = b"content-type"
CONTENT_LENGTH: Final = b"content-length"
TRANSFER_ENCODING: Final = b"transfer-encoding"
REQUESTED_HEADERS: Final = b"access-control-request-headers"
IF_NONE_MATCH: Final = b"if-none-match"
X_REQUEST_ID: Final = b"x-request-id"
TRACE_ID: Final = b"x-amzn-trace-id"
REQUESTED_NETWORK: Final = b"access-control-request-private-network"

_READ_BY_THE_WIRE: Final = frozenset(
    {
        HOST,
        ACCEPT,
        ORIGIN,
        EXPECT,
        UPGRADE,
        CONNECTION,
        PROXY_CONNECTION,
        CONTENT_ENCODING,
        CONTENT_LENGTH,
        CONTENT_TYPE,
        TRANSFER_ENCODING,
        REQUESTED_HEADERS,
        REQUESTED_NETWORK,
        IF_NONE_MATCH,
        X_REQUEST_ID,
        TRACE_ID,
    }
)
_WRITTEN_BY_PROXIES: Final = frozenset(
    {b"forwarded", b"via", b"x-real-ip", b"cf-connecting-ip", b"cloudfront-viewer-address", b"true-client-ip"}
)
_SPELLINGS_LEARNED: Final = 1024
_SPELLING_BYTES: Final = 64

PLAIN_HOST: Final = rb"[-.0-9A-Z_a-z~!$&'()*+,;=]*+(?::[0-9]*+)?"
"""A name or an IPv4 address, with or without a port, and no `%XX` in it: nearly every Host there is."""
_SOUND_HOST: Final = re.compile(
    rb"(?:\[(?:[0-9A-Fa-f:.]+(?:%25[-.0-9A-Z_a-z~]+)?|v[0-9A-Fa-f]+\.[-.0-9A-Z_a-z~!$&'()*+,;=:]+)\]"
    rb"|(?:[-.0-9A-Z_a-z~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*+)(?::[0-9]*+)?"
)
_HOSTS_KEPT: Final = 1024
_HOST_BYTES: Final = 256
DIGITS: Final = 18
"""The most digits that are read as a number; more bytes than that can say are sent by nobody."""


def is_host(value: bytes) -> bool:
    """Tell whether a Host has the form that RFC 9110 §7.2 and RFC 3986 §3.2.2 give it; an empty one has."""
    if len(value) <= _HOST_BYTES:
        return _is_short_host(value)
    return _SOUND_HOST.fullmatch(value) is not None


@lru_cache(_HOSTS_KEPT)
def _is_short_host(value: bytes) -> bool:
    return _SOUND_HOST.fullmatch(value) is not None


def keeps_alive(connection: bytes, *, is_old: bool) -> bool:
    """Tell from the options of a Connection whether it is kept: `close` wins, HTTP/1.0 must ask (RFC 9112 §9.3)."""
    if connection == b"keep-alive":
        return True  # nearly every Connection there is
    options = [option.strip(b" \t") for option in connection.lower().split(b",")]
    return b"close" not in options and (not is_old or b"keep-alive" in options)


def names_a_proxy(name: bytes) -> bool:
    """Tell whether a header of this name, in lower case, is one that proxies write."""
    return name in _WRITTEN_BY_PROXIES or name.startswith(b"x-forwarded-")


class HeaderNames:
    """Learns which spellings of header names are wanted, so that one lookup answers for each header of a request.

    `learned` maps a raw name to its lower-case form, or to nothing when nobody reads it; at most 1,024 spellings. It is
    a plain dict, and callers ask `learn` only for what is not in it: that is the lookup Python does fastest.
    """

    __slots__ = ("_also", "_wanted", "learned")

    def __init__(self, wanted: Iterable[bytes], also: Callable[[bytes], bool] | None = None) -> None:
        self._wanted = frozenset({*wanted, *_READ_BY_THE_WIRE})
        self._also = also
        """Tells of a name in lower case whether it is wanted though it is not among these."""
        self.learned: dict[bytes, bytes] = {}

    def learn(self, raw: bytes) -> bytes:
        """Return what a spelling maps to, and keep it if there is room."""
        lower = raw.lower()
        also = self._also
        is_wanted = lower in self._wanted or names_a_proxy(lower) or (also is not None and also(lower))
        wanted = lower if is_wanted else b""
        if len(self.learned) < _SPELLINGS_LEARNED and len(raw) <= _SPELLING_BYTES:
            self.learned[raw] = wanted
        return wanted
