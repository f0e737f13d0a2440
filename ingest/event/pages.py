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
_BY_ACCEPT: Final = ("Vary", "Accept")
_HTML: Final = (
    ("Content-Type", "text/html; charset=utf-8"),
    _NO_STORE,
    _BY_ACCEPT,
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)
"""The page has text in it that comes from outside, a store's errors. It is escaped; and a browser would run nothing."""


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
    body = dumps(_sound({"sentence": told.sentence()} | told.figures()), option=OPT_APPEND_NEWLINE)
    return Page(200, (("Content-Type", "application/json"), _NO_STORE, _BY_ACCEPT), body)


def _sound(value: object) -> object:
    """Return the same with text that JSON can hold: the name of a directory may be no UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return {_sound(key): _sound(of) for key, of in value.items()} if isinstance(value, dict) else value


def status_for_eyes(pages: Pages) -> Page:
    """Show the same as a page."""
    from ingest.event.glance import glance

    return Page(200, _HTML, glance(pages.status()))


def wants_html(accept: bytes) -> bool:
    """Tell whether an Accept (RFC 9110 §12.5.1) names HTML, and not JSON before it.

    A range such as `*/*` names neither: who says that, as `curl` does, reads JSON.
    """
    weights = {}
    for given in accept.lower().split(b","):
        kind, *parameters = (part.strip(b" \t") for part in given.split(b";"))
        weights[kind] = next((_weight(value[2:]) for value in parameters if value.startswith(b"q=")), 1.0)
    html = weights.get(b"text/html", 0.0)
    return html > 0.0 and html >= weights.get(b"application/json", 0.0)


def _weight(text: bytes) -> float:
    """Return a q-value (RFC 9110 §12.4.2); one that is none wants nothing."""
    whole, _, part = text.partition(b".")
    return float(text) if whole in {b"0", b"1"} and (not part or part.isdigit()) and len(part) <= 3 else 0.0
