"""Content codings: a body that came compressed becomes the bytes that were meant.

Owns which codings are taken, and `inflate`. Promises that what is read is whole, that its checksums agree, and that
nothing stands behind it; that decoding stops at the limit, so that a bomb costs its limit and no more; and that it can
be left after any step, each of which takes at most 16 KiB in and 64 KiB out. Never decides when to go on.

`deflate` means the zlib format (RFC 9110 §8.4.1.2), but clients have always sent bare deflate too: what is not zlib is
read as that. A gzip body may have up to 16 members (RFC 1952 §2.2), because `cat` and log shippers make such; each
costs the setting up of a decoder, so that a megabyte of empty ones would be a bomb as well.

isal decodes, because it takes a third of the time. It takes some sets of codes that RFC 1951 does not allow; a checksum
finds them out. Bare deflate has none, so that zlib reads it, which is strict.
"""

from __future__ import annotations

import zlib
from binascii import Error as NotBase64
from binascii import a2b_base64
from enum import Enum
from typing import TYPE_CHECKING, Final, TypeAlias

from isal import isal_zlib

from ingest.event.refusals import BODY_TOO_LARGE_DECODED, BROKEN_CODING, ClientError

if TYPE_CHECKING:
    from collections.abc import Generator

    from ingest.event.client import Raw

Inflating: TypeAlias = "Generator[int, None, bytes | ClientError]"
"""Yields how many bytes are decoded, after each step; returns all of them, or why there are none."""

MEMBERS: Final = 16
STEP_IN: Final = 16 * 1024
"""Bytes read in a step. A block of a few bytes may define a code of its own, which costs microseconds."""
STEP_OUT: Final = 64 * 1024

_GZIP: Final = 31
_ZLIB: Final = 15
_RAW: Final = -15
_FORM: Final = b"data="
_ESCAPED: Final = ((b"%2B", b"+"), (b"%2F", b"/"), (b"%3D", b"="))
_GZIP_MAGIC: Final = b"\x1f\x8b"
_GZIP_HEAD: Final = 10
_FLAGS_AT: Final = 3
_KNOWN_FLAGS: Final = 0x1F
_WINDOW_SHIFT: Final = 4
_LARGEST_WINDOW: Final = 7
_BadStream: Final[tuple[type[Exception], ...]] = (zlib.error, isal_zlib.error)  # type: ignore[assignment]  # as in `codec`


class Coding(Enum):
    """A coding that is taken."""

    GZIP = "gzip"
    DEFLATE = "deflate"


_IDENTITY: Final = frozenset({b"", b"identity"})
_BY_NAME: Final = {b"gzip": Coding.GZIP, b"x-gzip": Coding.GZIP, b"deflate": Coding.DEFLATE}


def is_plain(content_encoding: Raw) -> bool:
    """Tell whether a Content-Encoding says that the body is as it is."""
    return content_encoding.lower() in _IDENTITY


def coding_of(content_encoding: Raw) -> Coding | None:
    """Return the one coding that a Content-Encoding names; None for one that is unknown, and for more than one."""
    return _BY_NAME.get(bytes(content_encoding.lower()))


def is_gzip(body: Raw) -> bool:
    """Tell whether a body begins as gzip does (RFC 1952 §2.3.1), and so as no text."""
    return body.startswith(_GZIP_MAGIC)


def unwrapped(body: Raw) -> Raw:
    """Return what a form with the one field `data` holds, if that is base64; any other body as it is.

    Browsers send such a form from a page that is left, because it needs no preflight. Base64 has three characters that
    are escaped in one.
    """
    if not body.startswith(_FORM):
        return body
    text = bytes(body[len(_FORM) :])
    for escaped, character in _ESCAPED:
        text = text.replace(escaped, character)
    try:
        return a2b_base64(text, strict_mode=True) or body
    except NotBase64:
        return body


def inflate(body: Raw, coding: Coding, limit: int) -> Inflating:
    """Decode a body of at most `limit` decoded bytes."""
    if coding is Coding.GZIP:
        return (yield from _gunzip(body, limit))
    if _is_zlib(body):
        found = yield from _inflate_one(body, _ZLIB, limit)
        if found is not BROKEN_CODING:
            return found
        # Bare deflate may begin as zlib does.
    return (yield from _inflate_one(body, _RAW, limit))


def _is_zlib(body: Raw) -> bool:
    """Tell whether a body begins as RFC 1950 §2.2 has it; isal takes windows that are too large."""
    return (
        len(body) > 1
        and body[0] & 0x0F == isal_zlib.DEFLATED
        and body[0] >> _WINDOW_SHIFT <= _LARGEST_WINDOW
        and (body[0] << 8 | body[1]) % 31 == 0
    )


def _inflate_one(body: Raw, wbits: int, limit: int) -> Inflating:
    stream = _Stream(body, limit)
    yield from stream.read(wbits)
    return stream.result()


def _gunzip(body: Raw, limit: int) -> Inflating:
    stream = _Stream(body, limit)
    for _ in range(MEMBERS):
        # isal lets reserved flags pass; RFC 1952 §2.3.1.2 does not.
        if len(body) - stream.at <= _GZIP_HEAD or body[stream.at + _FLAGS_AT] > _KNOWN_FLAGS:
            return BROKEN_CODING
        yield from stream.read(_GZIP)
        if stream.refusal is not None or stream.at == len(body):
            return stream.result()
    return BROKEN_CODING


class _Stream:
    """A body on its way through decoders."""

    __slots__ = ("_body", "_limit", "_parts", "at", "refusal", "size")

    def __init__(self, body: Raw, limit: int) -> None:
        self._body = body
        self._limit = limit
        self._parts: list[bytes] = []
        self.size = 0
        self.at = 0
        """Where in the body the next decoder begins."""
        self.refusal: ClientError | None = None

    def read(self, wbits: int) -> Generator[int, None, None]:
        """Read with one decoder to where its format ends."""
        decoder = zlib.decompressobj(wbits) if wbits == _RAW else isal_zlib.decompressobj(wbits)
        unread = b""
        while not decoder.eof:
            if not unread:
                unread = bytes(self._body[self.at : self.at + STEP_IN])
                self.at += len(unread)
            ends = not unread
            try:
                part = decoder.decompress(unread, min(STEP_OUT, self._limit + 1 - self.size))
            except _BadStream:
                self.refusal = BROKEN_CODING
                return
            unread = decoder.unconsumed_tail
            self._parts.append(part)
            self.size += len(part)
            if self.size > self._limit:
                self.refusal = BODY_TOO_LARGE_DECODED
                return
            # With no input left a decoder may still hold output; only when it gives none is the stream cut off.
            if ends and not part and not decoder.eof:
                self.refusal = BROKEN_CODING
                return
            yield self.size
        self.at -= len(decoder.unused_data)

    def result(self) -> bytes | ClientError:
        """Return all that was decoded; what stands behind it makes it broken."""
        if self.refusal is not None:
            return self.refusal
        return b"".join(self._parts) if self.at == len(self._body) else BROKEN_CODING
