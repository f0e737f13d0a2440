"""The answers with a content of their own: the pages beside events, and the pixel.

Owns what each page says, as values that know nothing of bytes on a wire. Promises that a page is made anew for each
request, from what the process says then. Never touches a connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from orjson import OPT_APPEND_NEWLINE, dumps

from ingest.event.refusals import RETRY_AFTER

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.telemetry import Status

Headers: TypeAlias = "tuple[tuple[str, str], ...]"

_NO_STORE: Final = ("Cache-Control", "no-store")
_TEXT: Final = ("Content-Type", "text/plain; charset=utf-8")


class Page(NamedTuple):
    """An answer, but for the headers that every answer has."""

    status: int
    headers: Headers = ()
    body: bytes = b""


class Pages(NamedTuple):
    """The questions that pages put to the process."""

    ready: Callable[[], bool]
    metrics: Callable[[], tuple[str, bytes]]
    status: Callable[[], Status]


EMPTY: Final = Page(200)

FOR_ANY_PAGE: Final = (("Cross-Origin-Resource-Policy", "cross-origin"), ("Timing-Allow-Origin", "*"))
"""A page loads images and scripts without an `Origin`, so they say themselves that it may. A page that isolates itself
(Cross-Origin-Embedder-Policy) loads nothing that does not."""

# The smallest transparent GIF89a that every browser shows: one pixel, two colours, the first of them see-through.
PIXEL: Final = Page(
    200,
    (("Content-Type", "image/gif"), _NO_STORE, *FOR_ANY_PAGE),
    b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00"
    b",\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;",
)


def unless_known(page: Page, known: bytes) -> Page:
    """Return the page, or a 304 to who has it already.

    `known` is the value of an If-None-Match (RFC 9110 §13.1.2).
    """
    tag = next((value for name, value in page.headers if name == "ETag"), None)
    if tag is None:
        return page
    tags = [given.strip(b" \t").removeprefix(b"W/") for given in known.split(b",")]
    if known != b"*" and tag.encode() not in tags:
        return page
    return Page(304, tuple(header for header in page.headers if header[0] != "Content-Type"))


def health(_: Pages) -> Page:
    """Say that the process lives."""
    return Page(200, (_TEXT, _NO_STORE), b"ok\n")


def ready(pages: Pages) -> Page:
    """Say whether the process wants traffic: not while it drains."""
    if pages.ready():
        return Page(200, (_TEXT, _NO_STORE), b"ok\n")
    return Page(503, (_TEXT, _NO_STORE, RETRY_AFTER), b"draining\n")


def metrics(pages: Pages) -> Page:
    """Show the figures."""
    kind, text = pages.metrics()
    return Page(200, (("Content-Type", kind), _NO_STORE), text)


def status(pages: Pages) -> Page:
    """Say how the process is: one sentence, and the figures in it."""
    told = pages.status()
    body = dumps({"sentence": told.sentence()} | told.figures(), option=OPT_APPEND_NEWLINE)
    return Page(200, (("Content-Type", "application/json"), _NO_STORE), body)
