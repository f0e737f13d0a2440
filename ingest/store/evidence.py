"""The evidence in an answer to a call that is no put.

Owns what a page of a listing has to show before its objects, or that there are none, are believed, and what joins
pages to one listing. A status alone proves nothing: a page of a portal, an empty answer or another bucket's cache come
with 200 as well, and to take them for "no objects" would call an hour complete that nobody looked at.

    a page      status 200, a `ListBucketResult` that names a bucket, repeats the prefix that was asked for, and says
                `true` or `false` to `IsTruncated`; each key begins with the prefix, and has a size and a time
    a listing   its pages, each found by the token of the one before; no token and no key comes twice. A page without
                keys may be followed by others, but not by many such

Promises that whatever lacks it is a `StorageError` that says what came: away, never an answer. Never calls the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote_plus

from ingest.disk import StorageError
from ingest.store.object_store import Listed
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

_NO_PAGE = "the answer is no page of a listing: something else took the request; check the endpoint and proxies"
_GOES_NOT_ON = (
    "the listing does not go on, so that what it leaves out is not known: check the store's ListObjectsV2 (its "
    "continuation-token) and the proxies before it"
)
_OK = 200
_IS_TRUNCATED = {"true": True, "false": False}


class Page(NamedTuple):
    """Objects, and the token of the page that follows; None: it is the last."""

    listed: list[Listed]
    token: str | None


def page_of(prefix: str, answer: Mapping[str, Any]) -> Page:
    """Read an answer to ListObjectsV2; `StorageError` if it is no page of this prefix."""
    told = str(answer.get(TRUNCATED, "")).lower()
    if status_of(answer) != _OK or answer.get(ROOT) != LISTING_ROOT:
        raise _unlike(prefix, answer, f"status {status_of(answer)}, a document {answer.get(ROOT)!r}")
    if told not in _IS_TRUNCATED or not answer.get("Name"):
        raise _unlike(prefix, answer, f"Name {answer.get('Name')!r}, IsTruncated {answer.get(TRUNCATED)!r}")
    # A store may encode it though the SDK decodes only what is said to be encoded.
    if prefix not in (echo := answer.get("Prefix", ""), unquote_plus(echo)):
        raise _unlike(prefix, answer, f"it is of the prefix {echo!r}")
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
        raise _unlike(prefix, answer, f"an object without {error}") from error
    if not listed.key.startswith(prefix) or listed.size < 0:
        raise _unlike(prefix, answer, f"an object {listed.key!r} of {listed.size} bytes")
    return listed


def _unlike(prefix: str, answer: Mapping[str, Any], told: str) -> StorageError:
    cause: dict[str, str | int] = {"error": told[:LONGEST_TEXT], "status": status_of(answer)}
    return StorageError("list", prefix, _NO_PAGE, transient=True, cause=cause)


def _stands(prefix: str, told: str) -> StorageError:
    return StorageError("list", prefix, _GOES_NOT_ON, transient=True, cause={"error": told})
