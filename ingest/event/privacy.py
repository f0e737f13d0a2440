"""The part of a request that a line may tell: which address, which cookies, which headers.

Owns what `IP_MODE`, `COOKIES`, `RESPECT_GPC` and `EXTRA_HEADERS` leave of a request. Promises that what they leave out
is in no line: a line is made after this, and only lines reach a disk. Never finds a client's address (that is
`client`), and never looks into a body or a query: what a page puts there itself is stored.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from ingest.config import ALL, is_private
from ingest.event.bodies import header_text
from ingest.event.client import headers_read, pack, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ingest.config import Settings
    from ingest.event.client import Fields, Raw

SEC_GPC: Final = b"sec-gpc"
SP_ANONYMOUS: Final = b"sp-anonymous"

_BEGINS: Final = "*"
_6TO4: Final = b"\x20\x02"
_BLANKS: Final = b" \t"
_NONE: Final = rb"(?!)"
"""Matches nothing."""


def headers_heeded(settings: Settings) -> tuple[bytes, ...]:
    """Return the names of the headers that these settings read."""
    asked = (SEC_GPC, SP_ANONYMOUS) if settings.respect_gpc else ()
    return (*asked, *_named(settings))


def _named(settings: Settings) -> tuple[bytes, ...]:
    return tuple(name.encode() for name in settings.extra_headers if not name.endswith(_BEGINS))


class Privacy:
    """Decides what is left of a request; `headers` are the names of the headers in an event's fields."""

    __slots__ = ("_beginnings", "_gpc_at", "_ip_mode", "_named", "_pick", "_sources", "hides")

    def __init__(self, settings: Settings, headers: Sequence[bytes]) -> None:
        self._ip_mode = settings.ip_mode
        self._pick = None if settings.cookies == (ALL,) else _pairs(settings.cookies)
        self._gpc_at = 1 + headers.index(SEC_GPC) if settings.respect_gpc else 0
        self._named = tuple(
            (name.decode(), 1 + headers.index(name)) for name in sorted(_named(settings), key=_after_body)
        )
        self._beginnings = tuple(name[:-1].encode() for name in settings.extra_headers if name.endswith(_BEGINS))
        self._sources = frozenset(headers_read(settings))
        self.hides = self._ip_mode != "full" or self._pick is not None or bool(self._gpc_at)
        """Whether `of_sender` may return less than there is."""

    @property
    def also_reads(self) -> Callable[[bytes], bool] | None:
        """Which headers are read beside those in the fields, by their names in lower case; None: no more."""
        return self._is_begun if self._beginnings else None

    def of_sender(self, address: str, fields: Fields) -> tuple[str, str]:
        """Return the address and the cookie that are stored."""
        at = self._gpc_at
        if at and (_lists(fields[at], b"1") or _lists(fields[at + 1], b"*")):
            return "", ""
        return self._address(address), self._cookie(fields[2])

    def named(self, fields: Fields) -> dict[str, str]:
        """Return those headers to be stored that have a name of their own."""
        return {name: header_text(fields[at]) for name, at in self._named if fields[at]}

    def begun(self, head: Mapping[bytes, bytes]) -> dict[str, str]:
        """Return all headers to be stored out of a head; needed where names only begin so."""
        named = {name for name, _ in self._named}
        return {
            name.decode(): header_text(value)
            for name, value in sorted(head.items(), key=lambda one: _after_body(one[0]))
            if value and (name.decode() in named or self._is_begun(name))
        }

    def _is_begun(self, name: bytes) -> bool:
        return (
            name.startswith(self._beginnings)
            and name.isascii()
            and name not in self._sources
            and not is_private(name.decode())
        )

    def _address(self, address: str) -> str:
        if self._ip_mode == "full":
            return address
        return mask(address) if self._ip_mode == "mask" else ""

    def _cookie(self, value: Raw) -> str:
        if self._pick is None or not value:
            return header_text(value)
        return header_text(b"; ".join(pair.rstrip(_BLANKS) for pair in self._pick(value)))


def _after_body(name: bytes) -> bool:
    """Sort a header `body` first: behind another one it would stand where readers look for the body of the event."""
    return name != b"body"


def mask(address: str) -> str:
    """Return the network of an address: /24, IPv6 /48; nothing for what is no address.

    A 6to4 address has an IPv4 address in the bits that a /48 would keep (RFC 3056), so it is cut where that is.
    """
    packed = pack(address)
    if packed is None:
        return ""
    if len(packed) == 4 and ":" not in address:
        return address[: address.rindex(".")] + ".0"
    kept = 3 if len(packed) == 4 else 5 if packed.startswith(_6TO4) else 6
    return text_of(packed[:kept].ljust(len(packed), b"\0"))


def _pairs(names: Sequence[str]) -> Callable[[Raw], list[bytes]]:
    """Return what finds the pairs of a Cookie header that have one of these names, in their order, each as it came.

    Pairs are told apart as RFC 6265 §5.4 writes them: by semicolons, in quotes too. One without `=` has no name.
    """
    any_of_them = b"|".join(re.escape(name.encode()) for name in names) or _NONE
    return re.compile(rb"(?:\A|;)[ \t]*+((?:%b)[ \t]*+=[^;]*+)" % any_of_them).findall


def _lists(value: Raw, wanted: bytes) -> bool:
    return bool(value) and wanted in (element.strip(_BLANKS) for element in value.split(b","))
