"""The rows of other people's SDKs: where they send, what they take for success, and how they bear a refusal.

Owns `SDKS`, which the code, the docs and the tests read, and the rows of a process. Promises that what an SDK sends is
stored whole, decoded, one line a request, with its path; and that stored is exactly 200, because some of them send
again what got another 2xx. Never takes an SDK's body apart, but for the key in it where keys are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ingest.config import paths
from ingest.event.access import ANYWHERE, IN_HEAD, KeyPlace
from ingest.event.pages import PIXEL, Page
from ingest.event.refusals import MANY, NOT_FOUND, TRACKED
from ingest.event.routes import PAGES, Event, Route, Router, Takes, collect, script

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ingest.config import Settings

_JSON: Final = (("Content-Type", "application/json"),)
_TEXT: Final = (("Content-Type", "text/plain; charset=utf-8"),)


class Sdk(NamedTuple):
    """The common part of all rows of an SDK. `headers` are those that it sends from a browser."""

    post: Event
    headers: tuple[str, ...]
    get: Event | None = None


SDKS: Final = {
    "segment": Sdk(
        Event(Takes.BODY, Page(200, _JSON, b'{"success":true}'), ANYWHERE, MANY),
        ("authorization", "content-type", "x-retry-count", "anonymousid"),
        Event(Takes.QUERY, PIXEL, IN_HEAD),
    ),
    "snowplow": Sdk(
        Event(Takes.BODY, Page(200, _TEXT, b"ok"), IN_HEAD, TRACKED),
        ("content-type", "sp-anonymous"),
        Event(Takes.QUERY, PIXEL, IN_HEAD, TRACKED),
    ),
    "posthog": Sdk(
        Event(Takes.BODY, Page(200, _JSON, b'{"status":1}'), (*ANYWHERE, KeyPlace.PROPERTIES), MANY, unlabelled=True),
        ("content-type",),
    ),
}
"""By the words of `SDK_ROUTES`."""


def routes_of(name: str) -> Iterator[Route]:
    """Make the rows of an SDK."""
    sdk = SDKS[name]
    post, get = paths.SDK_PATHS[name]
    for path in post:
        yield Route(path.encode(), post=sdk.post._replace(path=path), preflight=True, headers=sdk.headers)
    for path in get:
        assert sdk.get is not None  # noqa: S101 - whoever lists such a path says what is done there
        yield Route(path.encode(), get=sdk.get._replace(path=path), preflight=True, headers=sdk.headers)


def events_of(settings: Settings) -> tuple[Route, ...]:
    """Return the rows under which these settings take events."""
    collected = (row for path in settings.collect_paths for row in collect(path))
    return (*collected, *(row for name in settings.sdk_routes for row in routes_of(name)))


def routers(settings: Settings) -> tuple[Router, Router]:
    """Return who finds the handlers of requests on `HTTP_ADDR`: for everybody, and with the operators' pages."""
    missing = NOT_FOUND._replace(reason=f"no such path; events go to {settings.collect_paths[0]}")
    events = events_of(settings)
    scripts = () if settings.script_path is None else (script(settings.script_path, settings.collect_paths[0]),)
    everybody = (row for row in PAGES if not row.operators)
    return Router((*events, *scripts, *everybody), missing), Router((*events, *scripts, *PAGES), missing)
