"""Which request gets what: the one table of paths and methods.

Owns `ROUTES`, which the code, the docs and the tests read, and the way from a request's target to its row. Promises one
look-up by path, byte for byte, whatever the form of the target (RFC 9112 §3.2), and a handler for every request: a
refusal is one too. Never reads a header or a body. The rows that `SDK_ROUTES` adds are in `sdks`.

A row for operators is no row to anybody else: its path is a 404. Whom a listening socket takes for one, `wire` says.

A row says what each method does. HEAD goes wherever GET does, and is never an event; OPTIONS wherever `preflight` is
set. A new path is a new row.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from httptools import parse_url
from httptools.parser.errors import HttpParserInvalidURLError

from ingest.config import paths
from ingest.event import pages
from ingest.event.access import ANYWHERE, IN_HEAD
from ingest.event.refusals import MANY, NOT_FOUND, ONE, ClientError, Oversize, method_not_allowed
from ingest.event.script import script_page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ingest.event.access import KeyPlace
    from ingest.event.pages import Page, Pages


class Takes(Enum):
    """Where in a request its event stands."""

    BODY = "body"
    QUERY = "query"
    ITEMS = "items"
    """In the body, with others."""


class Event(NamedTuple):
    """The request is an event; `answer` is what its client reads once the event is durable.

    With `Takes.ITEMS` it is many, and the answer says what became of each.
    """

    takes: Takes
    answer: Page
    keys: tuple[KeyPlace, ...] = ANYWHERE
    """Where its write key may stand, where keys are asked for."""
    oversize: Oversize = ONE
    path: str = ""
    """Its path, if its line tells that: then its body, with as many events as it has, is one line."""
    unlabelled: bool = False
    """Whether a body may come in gzip, or as base64 in a form, without a word about it."""

    def show(self, _: Pages) -> Page:
        """Return the answer as a page, for who asks for its head alone."""
        return self.answer


class Show(NamedTuple):
    """The request is answered with a page and stores nothing.

    `for_scripts`: those of the origins that may send may read it. If not, the page itself says who may.
    """

    page: Callable[[Pages], Page]
    for_scripts: bool = True
    for_eyes: Callable[[Pages], Page] | None = None
    """The page for a client that asks for HTML."""


class Preflight(NamedTuple):
    """The request asks what a browser may send here (Fetch §4.8)."""

    methods: str
    headers: tuple[str, ...] = ()
    """Names that are answered in any case, in lower case; those it asks for come behind them."""


Handler: TypeAlias = Event | Show | Preflight | ClientError
"""The work that a request asks for. A refusal that keeps the connection is told when the body has been read."""


@dataclass(frozen=True, slots=True)
class Route:
    """One path."""

    path: bytes
    get: Event | Show | None = None
    post: Event | None = None
    preflight: bool = False
    headers: tuple[str, ...] = ()
    """Names that the answer to a preflight has in any case."""
    operators: bool = False
    """Only they are answered."""

    @property
    def methods(self) -> str:
        """The methods there are, as `Allow` lists them."""
        there = (("GET", self.get), ("HEAD", self.get), ("POST", self.post), ("OPTIONS", self.preflight))
        return ", ".join(name for name, is_there in there if is_there)

    def handlers(self) -> dict[bytes, Handler]:
        """Return what each method does."""
        found: dict[bytes, Handler] = {}
        if self.get is not None:
            found[b"GET"] = self.get
            found[b"HEAD"] = self.get if isinstance(self.get, Show) else Show(self.get.show)
        if self.post is not None:
            found[b"POST"] = self.post
        if self.preflight:
            found[b"OPTIONS"] = Preflight(self.methods, self.headers)
        return found


def collect(path: str) -> tuple[Route, Route]:
    """Return the rows of a collect path: for one event in a request, and for many."""
    one = Route(
        path.encode(), get=Event(Takes.QUERY, pages.PIXEL, IN_HEAD), post=Event(Takes.BODY, pages.EMPTY), preflight=True
    )
    many = Route(
        paths.batch_of(path).encode(), post=Event(Takes.ITEMS, pages.EMPTY, IN_HEAD, oversize=MANY), preflight=True
    )
    return one, many


@cache
def script(path: str, first: str) -> Route:
    """Return the row of the script for browsers, which sends to the collect path that is the first."""
    page = script_page(path, first)
    return Route(path.encode(), get=Show(lambda _: page, for_scripts=False))


COLLECT, BATCH = collect(paths.COLLECT)
SCRIPT: Final = script(paths.SCRIPT, paths.COLLECT)
PAGES: Final = (
    Route(b"/health", get=Show(pages.health)),
    Route(b"/ready", get=Show(pages.ready)),
    Route(b"/metrics", get=Show(pages.metrics, for_scripts=False), operators=True),
    Route(b"/status", get=Show(pages.status, False, pages.status_for_eyes), operators=True),
)
ROUTES: Final = (COLLECT, BATCH, SCRIPT, *PAGES)
"""The rows there are without any setting."""
_SERVER: Final = Preflight(COLLECT.methods)
"""The answer to `OPTIONS *`, which asks about the server, not a path (RFC 9110 §9.3.7)."""
_NO_TUNNEL: Final = method_not_allowed(COLLECT.methods)._replace(close=True)
"""The answer to CONNECT: no HTTP follows one, so that the connection cannot go on."""


class Router:
    """Finds the handler of a request among some routes; a path that none of them has is `missing`."""

    __slots__ = ("_by_path", "missing")

    def __init__(self, routes: Iterable[Route] = ROUTES, missing: ClientError = NOT_FOUND) -> None:
        self.missing = missing
        self._by_path = {route.path: (route.handlers(), method_not_allowed(route.methods)) for route in routes}

    def find(self, method: bytes, target: bytes) -> tuple[Handler, bytes]:
        """Return what is done with a request, and its query."""
        query = b""
        found = self._by_path.get(target)
        if found is None:
            path, query = split_target(target)
            found = self._by_path.get(path)
        if found is not None:
            handlers, not_allowed = found
            handler = handlers.get(method)
            if handler is not None:
                return handler, query
        if method == b"CONNECT":
            return _NO_TUNNEL, query
        if method == b"OPTIONS" and target == b"*":
            return _SERVER, query
        return (self.missing if found is None else not_allowed), query


def split_target(target: bytes) -> tuple[bytes, bytes]:
    """Return path and query of a target in any form; one that is no URL at all is a path nobody has."""
    if target.startswith(b"/"):
        path, _, query = target.partition(b"#")[0].partition(b"?")
        return path, query
    before, _, query = target.partition(b"#")[0].partition(b"?")
    try:
        url = parse_url(before)
    except HttpParserInvalidURLError:
        return target, b""
    return url.path or b"/", query
