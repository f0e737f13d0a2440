"""The evidence in an answer of S3.

Owns what an answer has to show before it is believed. A status alone proves nothing: the page of a portal, an empty
answer or a cache's answer to another question come with 200 as well. A page that is taken for "no objects" would call
an hour complete that nobody looked at.

    stored      status 200, no content, a quoted ETag that is not weak; where it tells a CRC-32, that of the body
    removed     status 204
    an object   status 200 with a length, or to the question for its first bytes 206 with a Content-Range of just these;
                a quoted ETag that is not weak, no type of a web page, and as many bytes as the length says
    a page      status 200, a `ListBucketResult` that names a bucket, repeats the prefix that was asked for, and says
                `true` or `false` to `IsTruncated`; each key begins with the prefix, and has a size and a time
    a listing   its pages, each found by the token of the one before; no token and no key comes twice. A page without
                keys may be followed by others, but not by many such

Promises that whatever lacks it is a `StorageError` that says what came: away, never an answer. Never calls the store.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote_plus

from ingest.disk import StorageError
from ingest.store.object_store import MOST_BYTES, Listed
from ingest.store.s3_errors import LONGEST_TEXT, status_of

if TYPE_CHECKING:
    from collections.abc import Mapping


LISTING_ROOT: Final = "ListBucketResult"
ROOT: Final = "RootElement"
TRUNCATED: Final = "TruncatedText"
MARKER: Final = "MarkerElement"
"""Keys under which `sdk` keeps what the SDK's parser drops: what the document is, the word for `IsTruncated`, and
whether there is a marker, by which the first version of the call went on."""
EMPTY_PAGES: Final = 100
"""So many pages without a key may follow each other: a store may skip what was deleted, but not for ever."""

_NO_STORE = (
    "the answer is not a store's (200, no content, a quoted ETag): something else took the request; check the endpoint "
    "and proxies"
)
_ANOTHERS = "the answer is to another put: something between mixes up what it answers; check the endpoint and proxies"
_NO_REMOVAL = (
    "the answer is not a store's (204, no content): something else took the request; check the endpoint and proxies"
)
_NO_OBJECT = "the answer is no object of a store's: something else took the request; check the endpoint and proxies"
_CUT_SHORT = "the answer ended before its length: check the network path and proxies"
_TOO_LARGE = "no object of ours is as large: something else wrote it, and it is not read"
_NO_PAGE = "the answer is no page of a listing: something else took the request; check the endpoint and proxies"
_GOES_NOT_ON = (
    "the listing does not go on, so that what it leaves out is not known: check the store's ListObjectsV2 (its "
    "continuation-token) and the proxies before it"
)
_OK, _NO_CONTENT, _PARTIAL = 200, 204, 206
_STRONG_ETAG = re.compile(r'"[^"]+"')
_CRC32 = re.compile(r"[A-Za-z0-9+/]{6}==")
_SPAN = re.compile(r"bytes 0-(\d{1,18})/(\d{1,18})")
_PAGES = ("text/html", "application/xhtml+xml")
_IS_TRUNCATED = {"true": True, "false": False}


def check_stored(key: str, answer: Mapping[str, Any], checksum: str) -> None:
    """Raise `StorageError` where an answer to a put is none of a store's, or is about another body."""
    if status_of(answer) != _OK or answer["ContentLength"] != 0 or not _has_strong_etag(answer):
        raise _unlike("put", key, _NO_STORE, answer, _told(answer))
    told = str(answer.get("ChecksumCRC32", ""))
    if told != checksum and _CRC32.fullmatch(told):
        raise _unlike("put", key, _ANOTHERS, answer, f"CRC-32 {told} in the answer, {checksum} was sent")


def check_deleted(key: str, answer: Mapping[str, Any]) -> None:
    """Raise `StorageError` where an answer to a removal is none of a store's."""
    if status_of(answer) != _NO_CONTENT:
        raise _unlike("delete", key, _NO_REMOVAL, answer, f"status {status_of(answer)}")


class Content(NamedTuple):
    """The content of an answer: so many bytes come, of an object of this size and version."""

    length: int
    size: int
    version: str


def content_of(key: str, answer: Mapping[str, Any], most: int | None) -> Content:
    """Read the head of an answer to GetObject, for all bytes or the first `most`; `StorageError` if it is no object."""
    length, told = answer.get("ContentLength"), _told(answer)
    is_page = str(answer.get("ContentType", "")).partition(";")[0].strip().lower() in _PAGES
    span = _SPAN.fullmatch(str(answer.get("ContentRange", "")))
    if is_page or not _has_strong_etag(answer):
        raise _unlike("get", key, _NO_OBJECT, answer, told)
    if status_of(answer) == _OK and length is not None and length >= 0:  # a store may ignore the range
        size = length
    elif status_of(answer) == _PARTIAL and most is not None and span is not None:
        size = int(span[2])
        fits = int(span[1]) + 1 == min(most, size) and length in (None, min(most, size))
        if size and not fits:  # an object of no bytes has no first one, and stores differ in how to say so
            raise _unlike("get", key, _NO_OBJECT, answer, told)
        length = min(most, size)
    else:
        raise _unlike("get", key, _NO_OBJECT, answer, told)
    if most is None and length > MOST_BYTES:
        raise StorageError("get", key, _TOO_LARGE, transient=False, cause={"error": told})
    return Content(length, size, answer["ETag"])


def cut_short(key: str, content: Content, missing: int) -> StorageError:
    """Return the error of an answer that ended early."""
    told = f"of {content.length} bytes {missing} did not come"
    return StorageError("get", key, _CUT_SHORT, transient=True, cause={"error": told})


class Page(NamedTuple):
    """Objects, and the token of the page that follows; None: it is the last."""

    listed: list[Listed]
    token: str | None


def page_of(prefix: str, answer: Mapping[str, Any]) -> Page:
    """Read an answer to ListObjectsV2; `StorageError` if it is no page of this prefix."""
    told = str(answer.get(TRUNCATED, "")).lower()
    if status_of(answer) != _OK or answer.get(ROOT) != LISTING_ROOT:
        raise _unlike("list", prefix, _NO_PAGE, answer, f"status {status_of(answer)}, a document {answer.get(ROOT)!r}")
    if told not in _IS_TRUNCATED or not answer.get("Name"):
        raise _unlike(
            "list", prefix, _NO_PAGE, answer, f"Name {answer.get('Name')!r}, IsTruncated {answer.get(TRUNCATED)!r}"
        )
    # A store may encode it though the SDK decodes only what is said to be encoded.
    if prefix not in (echo := answer.get("Prefix", ""), unquote_plus(echo)):
        raise _unlike("list", prefix, _NO_PAGE, answer, f"it is of the prefix {echo!r}")
    listed = [_listed(prefix, answer, found) for found in answer.get("Contents", ())]
    if not _IS_TRUNCATED[told]:
        return Page(listed, None)
    if token := answer.get("NextContinuationToken"):
        return Page(listed, token)
    told = f"a page of {len(listed)} that is not the last names no NextContinuationToken"
    raise _stands(prefix, f"{told}: it answers ListObjects, not V2" if MARKER in answer else told)


class Pages:
    """The pages of one listing so far."""

    __slots__ = ("_empty", "_listed", "_prefix", "_tokens")

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._listed: dict[str, Listed] = {}
        self._tokens: set[str] = set()
        self._empty = 0

    def add(self, page: Page) -> str | None:
        """Take in the next page, and return the token of the one that follows it."""
        for listed in page.listed:
            if listed.key in self._listed:
                raise _stands(self._prefix, f"a later page repeats {listed.key!r}"[:LONGEST_TEXT])
            self._listed[listed.key] = listed
        self._empty = 0 if page.listed else self._empty + 1
        if page.token is not None:
            if page.token in self._tokens:
                raise _stands(self._prefix, f"the token {page.token!r} came before"[:LONGEST_TEXT])
            if self._empty > EMPTY_PAGES:
                raise _stands(self._prefix, f"{self._empty} pages without a key follow each other")
            self._tokens.add(page.token)
        return page.token

    def listed(self) -> list[Listed]:
        """Return the objects of all pages, by key."""
        return sorted(self._listed.values(), key=lambda listed: listed.key)


def _listed(prefix: str, answer: Mapping[str, Any], found: Mapping[str, Any]) -> Listed:
    try:
        listed = Listed(found["Key"], found["Size"], found["LastModified"].timestamp())
    except KeyError as error:
        raise _unlike("list", prefix, _NO_PAGE, answer, f"an object without {error}") from error
    if not listed.key.startswith(prefix) or listed.size < 0:
        raise _unlike("list", prefix, _NO_PAGE, answer, f"an object {listed.key!r} of {listed.size} bytes")
    return listed


def _has_strong_etag(answer: Mapping[str, Any]) -> bool:
    return _STRONG_ETAG.fullmatch(str(answer.get("ETag", ""))) is not None


def _told(answer: Mapping[str, Any]) -> str:
    shown = ("ETag", "ContentType", "ContentRange")
    named = ", ".join(f"{name} {answer[name]}" for name in shown if name in answer)
    return f"status {status_of(answer)}, {answer.get('ContentLength')} bytes of content, {named or 'no ETag'}"


def _unlike(operation: str, key: str, hint: str, answer: Mapping[str, Any], told: str) -> StorageError:
    cause: dict[str, str | int] = {"error": told[:LONGEST_TEXT], "status": status_of(answer)}
    return StorageError(operation, key, hint, transient=True, cause=cause)


def _stands(prefix: str, told: str) -> StorageError:
    return StorageError("list", prefix, _GOES_NOT_ON, transient=True, cause={"error": told})
