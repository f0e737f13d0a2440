"""Which paths somebody has taken: the pages', the collect paths', and those of each SDK that `SDK_ROUTES` may name.

Owns the paths as text, and the finding of one that two would have. Promises that nothing is served under a path that is
not listed here. Never says what a path does: `event` does.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Final, NamedTuple

SCRIPT: Final = "/estat.js"
PAGES: Final = ("/health", "/ready", "/metrics", "/status")
COLLECT: Final = "/collect"


class SdkPaths(NamedTuple):
    """Where the SDKs of one kind send, by method."""

    post: tuple[str, ...]
    get: tuple[str, ...] = ()


_CALLS: Final = ("track", "identify", "page", "screen", "group", "alias", "batch", "import")
_LETTERS: Final = ("t", "i", "p", "s", "g", "a", "b")
_ENDS: Final = ("", "/")
"""Some SDKs end a path with a slash, others do not."""
_POSTHOG: Final = ("e", "i/v0/e", "batch", "capture")

SDK_PATHS: Final[Mapping[str, SdkPaths]] = {
    "segment": SdkPaths(
        post=(
            *(f"/v1/{call}{end}" for call in (*_CALLS, *_LETTERS) for end in _ENDS),
            *(f"/api/s/{server}{call}" for server in ("", "s2s/") for call in _CALLS[:-1]),
            "/beacon/v1/batch",
        ),
        get=("/pixel/v1/track", "/pixel/v1/page"),
    ),
    "snowplow": SdkPaths(post=("/com.snowplowanalytics.snowplow/tp2",), get=("/i",)),
    "posthog": SdkPaths(post=tuple(f"/{path}{end}" for path in _POSTHOG for end in _ENDS)),
}
"""By the words of `SDK_ROUTES`."""


def batch_of(collect: str) -> str:
    """Return the path for many events that goes with a collect path."""
    return f"{collect}/batch"


def doubled(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Find paths that are taken among the values that could be read: the variable, the path, and what has it."""
    taken = dict.fromkeys(PAGES, "a page")
    for name in values.get("sdk_routes") or ():
        taken |= dict.fromkeys(chain.from_iterable(SDK_PATHS[name]), f"SDK_ROUTES={name}")
    for path in values.get("collect_paths") or ():
        for used in (path, batch_of(path)):
            if used in taken:
                yield "COLLECT_PATHS", used, taken[used]
            taken[used] = "another of COLLECT_PATHS"
    script = values.get("script_path")
    if script in taken:
        yield "SCRIPT_PATH", script, taken[script].removeprefix("another of ")
