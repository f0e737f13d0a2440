"""From the bytes of a body, a query or a header to what a line says of them, or to a refusal.

Owns the rules of `BODY_FORMAT=json` and of text that is no UTF-8. Promises that nothing is lost on the way: a body that
is not UTF-8 is kept whole, byte by byte, and such a byte in a query is written `%XX`; a header's value alone may hold
U+FFFD. Promises that a JSON value which is taken can be read by the tools that read whole hours. Never builds a line.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import orjson

from ingest.event.refusals import BAD_JSON, JSON_TOO_DEEP, NUMBER_TOO_LONG, ClientError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Raw: TypeAlias = "bytes | bytearray"
Members: TypeAlias = "dict[str, object]"
"""The last members of a line, which tell of a body or a query, in the order of `format.record`."""

JSON_DEPTH: Final = 64
"""DuckDB reads 128 levels, jq 256."""
NUMBER_DIGITS: Final = 100
"""Spark reads 1,000 digits."""

_PERCENT: Final = {0xDC00 + byte: f"%{byte:02X}" for byte in range(0x80, 0x100)}
"""By the lone surrogates in whose place Python's `surrogateescape` keeps bytes that are not UTF-8."""


def query_text(query: Raw) -> str:
    """Return a query string as text; a byte that is not UTF-8 becomes `%XX`, which means the same in a URL."""
    try:
        return query.decode()
    except UnicodeDecodeError:
        return query.decode("utf-8", "surrogateescape").translate(_PERCENT)


def header_text(value: Raw) -> str:
    """Return a header's value as text; bytes that are not UTF-8 become U+FFFD."""
    return value.decode("utf-8", "replace")


def text_body(body: Raw) -> Members:
    """Return what is said of a body as text; one that is not UTF-8 is kept whole, in base64."""
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_b64": b2a_base64(body, newline=False).decode(), "body": ""}


def text_item(item: Raw) -> bytes:
    """Return the value of an item in a line, as text; of one that is not UTF-8 a NUL, and then its base64."""
    try:
        return orjson.dumps(item.decode())
    except UnicodeDecodeError:
        return b"\0" + b2a_base64(item, newline=False)


def text_query(query: Raw) -> Members:
    """Return what is said of a query that is the event, as text."""
    return {"body": query_text(query)}


# JSON.

# No pattern here repeats a group: the matcher would keep every repetition, many times the size of the body.
_STRING: Final = re.compile(rb'"[^"]*"')
_HEX: Final = rb"[0-9a-fA-F]{2}"
_HIGH: Final = rb"\\u[dD][89abAB]" + _HEX
_LOW: Final = rb"\\u[dD][c-fC-F]" + _HEX
_LONE_SURROGATE: Final = re.compile(rb"%b(?!%b)|(?<!%b)%b" % (_HIGH, _LOW, _HIGH, _LOW))
_SURROGATES: Final = re.compile(rb"%b%b|%b|%b" % (_HIGH, _LOW, _HIGH, _LOW))
"""Both halves as one, or one without the other."""
_REPLACEMENT: Final = rb"\ufffd"
MENDED_AT_ONCE: Final = 4096
_ESCAPED_BACKSLASH: Final = rb"\\"
_MASK: Final = b"\0\0"
"""Stands for an escaped backslash, so that every backslash left begins an escape; no JSON has a NUL."""
LINE_BREAKS: Final = b"\r\n"
_OPEN_OR_CLOSE: Final = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_DIGITS: Final = bytes.maketrans(b"123456789", b"000000000")
_WITHIN_NUMBERS: Final = b".eE+-"
_TOO_MANY_DIGITS: Final = b"0" * (NUMBER_DIGITS + 1)


class Sound(bytes):
    """A JSON value in one line, at which no reader fails."""

    __slots__ = ()


def json_body(body: Raw) -> Members | ClientError:
    """Return what is said of a body that has to be JSON: the value, verbatim; an empty body is `null`.

    RFC 8259 allows line breaks only between tokens, never inside a string, so that removing every one of them keeps
    the value.
    """
    if not body:
        return {"body": None}
    if isinstance(body, Sound):
        return {"body": orjson.Fragment(bytes(body))}
    value = json_item(body)
    return value if isinstance(value, ClientError) else {"body": orjson.Fragment(value)}


def json_item(item: Raw) -> bytes | ClientError:
    """Return the value of an item in a line, which has to be JSON."""
    sound = sound_json(item)
    return BAD_JSON if sound is None else _one_line(sound)


def json_element(element: Raw) -> bytes | ClientError:
    """Return the value of an element of an array in a line: JSON, but that its surrogates may have to be mended."""
    return json_item(element) if rb"\u" in element else _one_line(element)


def sound_json(body: Raw) -> Raw | None:
    """Return a JSON value with its surrogates mended; None if it is no JSON value."""
    if _is_json(body):
        return body
    if rb"\u" not in body:
        return None
    mended = mend_surrogates(body)
    return mended if _is_json(mended) else None


def _one_line(value: Raw) -> bytes | ClientError:
    """Return a JSON value without line breaks, or why readers would fail at it."""
    if len(value) > NUMBER_DIGITS:
        refusal = _unreadable(value)
        if refusal is not None:
            return refusal
    return bytes(value.translate(None, LINE_BREAKS))


def json_query(query: Raw) -> Members:
    """Return what is said of a query that is the event, beside lines whose bodies are JSON values."""
    return {"query": query_text(query), "body": None} if query else {"body": None}


def json_value(body: Raw) -> object:
    """Return the value of a body that is JSON, and None for any other."""
    for text in (body, mend_surrogates(body)):
        try:
            value: object = orjson.loads(text)
        except orjson.JSONDecodeError:
            continue
        return value
    return None


def _is_json(body: Raw) -> bool:
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return True


def mend_surrogates(body: Raw) -> Raw:
    """Write the escape of U+FFFD for a surrogate without its other half, which browsers do send and no reader takes."""
    if b"\0" in body:
        return body
    masked = body.replace(_ESCAPED_BACKSLASH, _MASK)
    return _LONE_SURROGATE.sub(rb"\%b" % _REPLACEMENT, masked).replace(_MASK, _ESCAPED_BACKSLASH)


def mended_in_steps(body: bytes) -> Iterator[bytes]:
    """Mend surrogates as `mend_surrogates` does, a few thousand in a step; the pieces make up all of it."""
    masked = body.replace(_ESCAPED_BACKSLASH, _MASK)
    piece = bytearray()
    at = 0
    for number, match in enumerate(_SURROGATES.finditer(masked), 1):
        start, end = match.span()
        piece += masked[at:start]
        piece += _REPLACEMENT if end - start == len(_REPLACEMENT) else masked[start:end]
        at = end
        if not number % MENDED_AT_ONCE:
            yield bytes(piece).replace(_MASK, _ESCAPED_BACKSLASH)
            piece.clear()
    piece += masked[at:]
    yield bytes(piece).replace(_MASK, _ESCAPED_BACKSLASH)


def _unreadable(body: Raw) -> ClientError | None:
    """Return why readers would fail at a sound JSON value, if they would.

    The first count takes in strings too, where brackets and digits mean nothing; only then are the strings taken out.
    """
    if is_deep(body):
        return JSON_TOO_DEEP
    return NUMBER_TOO_LONG if has_long_number(body) else None


def is_deep(body: Raw) -> bool:
    """Tell whether a sound JSON value is nested deeper than readers of whole hours read."""
    return body.count(b"[") + body.count(b"{") > JSON_DEPTH and _nests(_outside_strings(body))


def has_long_number(body: Raw) -> bool:
    """Tell whether sound JSON, or a piece of it that cuts no token, has a number that such readers do not read."""
    return _may_have_long_number(body) and _may_have_long_number(_outside_strings(body))


def _outside_strings(body: Raw) -> Raw:
    return _STRING.sub(b"", body.replace(_ESCAPED_BACKSLASH, b"").replace(rb"\"", b""))


def _may_have_long_number(body: Raw) -> bool:
    return body.translate(_DIGITS, _WITHIN_NUMBERS).find(_TOO_MANY_DIGITS) >= 0


def _nests(body: Raw) -> bool:
    """Take out the innermost pairs of brackets, so many times as there may be levels; see whether any is left."""
    brackets = body.translate(_OPEN_OR_CLOSE, _NO_BRACKETS)
    for _ in range(JSON_DEPTH):
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


class Form(NamedTuple):
    """How bodies, and queries that are events, are told in a line."""

    body: Callable[[Raw], Members | ClientError]
    query: Callable[[Raw], Members]
    item: Callable[[Raw], bytes | ClientError]
    """The value of a line of a batch."""
    element: Callable[[Raw], bytes | ClientError]
    """The value of an element of a batch that is an array."""


FORMS: Final[Mapping[str, Form]] = {
    "text": Form(text_body, text_query, text_item, text_item),
    "json": Form(json_body, json_query, json_item, json_element),
}
"""By the values of BODY_FORMAT."""
