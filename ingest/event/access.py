"""Who may send events: origins, write keys, and how many.

Owns what is asked of an event at the end of its head, before a body is read, and where a write key may stand. Promises
that secrets are compared in a time that tells nothing of them, and that a key in a query is cut out before the query is
stored. The name of a key is stored, its secret never. Never answers: a refusal is a value of `refusals`.
"""

from __future__ import annotations

import re
from binascii import Error as NotBase64
from binascii import a2b_base64
from enum import Enum
from hashlib import blake2b
from hmac import compare_digest
from itertools import islice
from math import ceil
from secrets import token_bytes
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote_to_bytes

from ingest.event.bodies import is_deep, json_value
from ingest.event.rates import RateLimit
from ingest.event.refusals import BAD_KEY, BAD_ORIGIN, TOO_MANY, ClientError
from ingest.event.values import PROPERTIES, Asked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ingest.config import Settings
    from ingest.event.client import Fields, Peer, Raw

AUTHORIZATION: Final = b"authorization"
X_WRITE_KEY: Final = b"x-write-key"

_IN_QUERY: Final = (b"writeKey", b"k")
IN_BODY: Final = ("writeKey", "api_key", "token")
_TRIED: Final = 8
"""Keys of one query that are compared; more than that are an attempt to make us work."""
_DIGEST_BYTES: Final = 16


class KeyPlace(Enum):
    """Where in a request its write key may stand. They are asked in this order."""

    AUTHORIZATION = "Authorization"
    HEADER = "X-Write-Key"
    QUERY = "query"
    BODY = "body"
    PROPERTIES = "properties"
    """In a body, also in the `properties` of an event, or of the first of an array."""


IN_HEAD: Final = (KeyPlace.AUTHORIZATION, KeyPlace.HEADER, KeyPlace.QUERY)
ANYWHERE: Final = (*IN_HEAD, KeyPlace.BODY)


def key_headers(settings: Settings) -> tuple[bytes, ...]:
    """Return the names of the headers that may hold a key, if keys are asked for."""
    return (AUTHORIZATION, X_WRITE_KEY) if settings.write_keys else ()


class Admitted(NamedTuple):
    """An event that may come."""

    key: str | None
    """The name of its write key; "" where none is asked for; None: the body has to tell."""
    query: bytes
    """The query, without the key."""


class Access:
    """All that is asked of events. `address_of` finds the client's address in a head's fields."""

    __slots__ = ("_address_of", "_keys", "_origins", "rate")

    def __init__(
        self, settings: Settings, address_of: Callable[[Peer, Fields], str], clock: Callable[[], float]
    ) -> None:
        self._address_of = address_of
        self._origins = Origins(settings.cors_origins)
        self._keys = WriteKeys(settings.write_keys) if settings.write_keys else None
        self.rate: RateLimit | None = None
        """The buckets, if there is a limit."""
        if settings.rate_limit is not None:
            burst = settings.rate_burst or 2 * settings.rate_limit.events
            self.rate = RateLimit(settings.rate_limit, burst, clock)

    @property
    def is_open(self) -> bool:
        """Whether nothing is asked of anybody."""
        return self._keys is None and self.rate is None and self._origins.all

    def ask(
        self,
        peer: Peer,
        fields: Fields,
        head: Mapping[bytes, bytes],
        query: bytes,
        places: Sequence[KeyPlace],
        *,
        origin: bytes | None,
    ) -> Admitted | ClientError:
        """Return why an event may not come, or what is known of one that may, which is counted.

        Only a limit looks at the fields.
        """
        if origin is not None and not self._origins.allow(origin):
            return BAD_ORIGIN
        if self.rate is not None:
            address = self._address_of(peer, fields)
            wait = self.rate.wait(address)
            if wait:
                return TOO_MANY._replace(headers=(("Retry-After", str(ceil(wait))),))
            self.rate.spend(address)
        keys = self._keys
        if keys is None:
            return Admitted("", query)
        key, query = keys.in_head(head, query, places)
        if key is None and KeyPlace.BODY not in places:
            return BAD_KEY
        return Admitted(key, query)

    def waves_through(self, peer: Peer, fields: Fields, origin: bytes | None) -> bool:
        """Tell whether `ask` would let an event come whose head has no key to look for; it is not counted."""
        if origin is not None and not self._origins.allow(origin):
            return False
        return self.rate is None or not self.rate.wait(self._address_of(peer, fields))

    def count(self, peer: Peer, fields: Fields, events: int = 1) -> None:
        """Count events that came without `ask`, or beside the one that it counted."""
        if self.rate is not None:
            self.rate.spend(self._address_of(peer, fields), events)

    @property
    def reads_bodies(self) -> bool:
        """Whether a key may stand in a body."""
        return self._keys is not None

    def asked(self, places: Sequence[KeyPlace], *, in_line: bool) -> Asked:
        """Return what has to be asked of a large body that has to tell the key."""
        longest = 0 if self._keys is None else self._keys.longest_in_json
        return Asked(in_line, IN_BODY, KeyPlace.PROPERTIES in places, longest)

    def key_among(self, strings: Sequence[str]) -> str | ClientError:
        """Return the name of the first of these strings that is a key, or why the body is refused that has them."""
        found = None if self._keys is None else self._keys.among(strings)
        return BAD_KEY if found is None else found

    def key_in(self, body: Raw, places: Sequence[KeyPlace]) -> str | ClientError:
        """Return the name of the key that a body holds, or why it is refused."""
        found = None if self._keys is None else self._keys.in_body(body, nested=KeyPlace.PROPERTIES in places)
        return BAD_KEY if found is None else found


# Origins.


class Origins:
    """The origins that pages may send from."""

    __slots__ = ("_listed", "_patterns", "all")

    def __init__(self, origins: Sequence[str]) -> None:
        self.all = "*" in origins
        written = [origin.encode("latin-1") for origin in origins]
        self._listed = frozenset(origin for origin in written if b"*" not in origin)
        self._patterns = [(before, after) for before, star, after in (o.partition(b"*") for o in written) if star]

    def allow(self, origin: bytes) -> bool:
        """Tell whether an origin is on the list; `https://*.example.com` stands for every host below that one."""
        return self.all or origin in self._listed or any(_is_below(origin, *pattern) for pattern in self._patterns)


def _is_below(origin: bytes, before: bytes, after: bytes) -> bool:
    labels = origin.removeprefix(before).removesuffix(after)
    return before + labels + after == origin and bool(labels) and not set(labels) - _HOST_CHARACTERS


_HOST_CHARACTERS: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_.")


# Keys.


class WriteKeys:
    """The keys that are known. A request is let in by the first known one among those that it holds.

    Each secret is kept as a digest under a key of this process. Digests have one length, and each candidate is compared
    with every one of them, so that time tells neither a secret's length nor how much of it is right.
    """

    __slots__ = ("_known", "_longest", "_salt")

    def __init__(self, keys: Sequence[tuple[str, str]]) -> None:
        self._salt = token_bytes(_DIGEST_BYTES)
        self._longest = max(3 * len(secret) for _, secret in keys)
        """Bytes of the longest secret in a query, where `%XX` may stand for each."""
        self._known = [(name, self._digest(secret.encode())) for name, secret in keys]

    def in_head(
        self, head: Mapping[bytes, bytes], query: bytes, places: Sequence[KeyPlace]
    ) -> tuple[str | None, bytes]:
        """Return the name of the key that a head or a query holds, if any, and the query without keys."""
        in_query, query = _cut(query)
        candidates = {
            KeyPlace.AUTHORIZATION: _in_authorization(head.get(AUTHORIZATION, b"")),
            KeyPlace.HEADER: (head.get(X_WRITE_KEY, b""),),
            KeyPlace.QUERY: [_decoded(value) for value in in_query if len(value) <= self._longest],
            KeyPlace.BODY: (),
            KeyPlace.PROPERTIES: (),
        }
        return self._first(secret for place in places for secret in candidates[place]), query

    def in_body(self, body: Raw, *, nested: bool = False) -> str | None:
        """Return the name of the key on the first level of a body that is a JSON object, if any.

        `nested`: the body may be an array too, whose first element counts, and the key may stand in `properties`.
        A body that is nested too deep for readers holds none: a large one is read no deeper.
        """
        found = None if is_deep(body) else json_value(body)
        if nested and isinstance(found, list):
            found = found[0] if found else None
        if not isinstance(found, dict):
            return None
        holders = [found]
        if nested and isinstance(properties := found.get(PROPERTIES), dict):
            holders.append(properties)
        values = (holder.get(member) for holder in holders for member in IN_BODY)
        return self.among([value for value in values if isinstance(value, str)])

    @property
    def longest_in_json(self) -> int:
        """Bytes of the longest secret as a JSON string: two escapes of six bytes may stand for a character."""
        return 4 * self._longest + 2

    def among(self, strings: Sequence[str]) -> str | None:
        """Return the name of the first key among some strings, if any is one."""
        return self._first(string.encode() for string in strings)

    def _first(self, candidates: Iterator[bytes]) -> str | None:
        return next((name for name in map(self._name, candidates) if name is not None), None)

    def _name(self, candidate: bytes) -> str | None:
        if not candidate:
            return None
        digest = self._digest(candidate)
        found = None
        for name, known in self._known:
            if compare_digest(known, digest):
                found = name
        return found

    def _digest(self, secret: bytes) -> bytes:
        return blake2b(secret, digest_size=_DIGEST_BYTES, key=self._salt).digest()


def _in_authorization(value: bytes) -> tuple[bytes, ...]:
    """Return what may be a key in an Authorization: a bearer's token (RFC 6750), or a user's name (RFC 7617).

    The name ends at a colon. Clients that put a key with colons there mean the last of them, others the first.
    """
    scheme, _, credentials = value.partition(b" ")
    credentials = credentials.strip()
    if scheme.lower() == b"bearer":
        return (credentials,)
    if scheme.lower() != b"basic":
        return ()
    try:
        pair = a2b_base64(credentials, strict_mode=True)
    except NotBase64:
        return ()
    return tuple(dict.fromkeys((pair.partition(b":")[0], pair.rpartition(b":")[0] or pair)))


def _cut(query: bytes) -> tuple[list[bytes], bytes]:
    """Return the first values of the parameters that hold keys, and the query without these, else as it came."""
    found = [match[1] or b"" for match in islice(_KEY_IN_QUERY.finditer(query), _TRIED)]
    if not found:
        return found, query
    kept = _KEY_IN_QUERY.sub(b"", query)
    # What is cut out takes the `&` before it along. A key that comes first has none, and leaves the one behind it.
    first = not query.startswith(b"&") and _KEY_IN_QUERY.match(query) is not None
    return found, kept[1:] if first else kept


def _encoded(name: bytes) -> bytes:
    """Return the pattern of a name, each byte of which may be encoded."""
    return b"".join(b"(?:%c|%%%x|%%%X)" % (byte, byte, byte) for byte in name)


_KEY_IN_QUERY: Final = re.compile(rb"(?:\A|&)(?:%b)(?:=([^&]*+))?(?=&|\Z)" % b"|".join(map(_encoded, _IN_QUERY)))


def _decoded(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" ")) if b"%" in text or b"+" in text else text
