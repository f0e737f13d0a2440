"""The script for browsers, `estat.js`, as a page.

Owns its source, which lies beside this module, and what is served of it: the lines that are no comments, with the paths
of this process. Promises that its `ETag` changes exactly if its content does. Never asks a browser anything.
"""

from __future__ import annotations

from hashlib import blake2b
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from orjson import dumps

from ingest.config import paths
from ingest.event.pages import FOR_ANY_PAGE, Page

if TYPE_CHECKING:
    from collections.abc import Iterator

_SOURCE: Final = files(__package__).joinpath("estat.js").read_text("utf-8")
_HEADERS: Final = (
    ("Content-Type", "text/javascript; charset=utf-8"),
    ("Cache-Control", "public, max-age=3600"),
    ("Access-Control-Allow-Origin", "*"),
    *FOR_ANY_PAGE,
)
"""A cache has one copy for all origins, because the answer names none."""


def script_page(script: str, collect: str) -> Page:
    """Return the page of the script that is served under one path and sends to the batches of another."""
    text = "".join(_lines(_SOURCE))
    for before, after in ((paths.SCRIPT, script), (paths.batch_of(paths.COLLECT), paths.batch_of(collect))):
        text = text.replace(f'"{before}";', f"{dumps(after).decode()};")
    body = text.encode()
    return Page(200, (*_HEADERS, ("ETag", f'"{blake2b(body, digest_size=8).hexdigest()}"')), body)


def _lines(source: str) -> Iterator[str]:
    """Each comment is a line of its own, and no string goes over lines."""
    for line in map(str.strip, source.splitlines()):
        if line and not line.startswith("//"):
            yield f"{line}\n"
