"""The collector over a disk, or with a resolver, that never answers from the moment a test arms it.

`python -m tests.process.hanging_server WHAT` serves with the settings of the environment. `WHAT` is a name of `HANGS`.
While a file `armed` is in the working directory every such call waits, in whatever thread makes it.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any, Final

from ingest.config.settings import load
from ingest.server import serve
from tests.process.faulty_server import ARMED, Fault, disk_with, say
from tests.process.hasty_server import hurry


def _hang(room: str, *calls: str) -> tuple[Fault, ...]:
    return (Fault(calls, "hang", room=room, armed=True),)


# With the store away batches go to the dead letters.
STORE_FAILS: Final = Fault(("open",), "fail", room="store", armed=True)

HANGS: Final[dict[str, tuple[Fault, ...]]] = {
    "the journal's fdatasync": _hang("journal", "fdatasync"),
    "the journal's unlink": _hang("journal", "unlink"),
    "the journal's write": _hang("journal", "write"),
    "the journal's stat": _hang("journal", "stat"),
    "the rename of a rewrite after a failed fdatasync": (
        Fault(("fdatasync",), "fail", room="journal", armed=True, times=1),
        *_hang("journal", "rename"),
    ),
    "the dead letters' open": (*_hang("dlq", "open", "open_read"), STORE_FAILS),
    "the dead letters' statvfs": (*_hang("dlq", "statvfs"), STORE_FAILS),
    "the dead letters' opendir": (*_hang("dlq", "scandir", "listdir"), STORE_FAILS),
    "the store's fdatasync": _hang("store", "fdatasync"),
}


def _never() -> None:
    say(event="hangs")
    threading.Event().wait()


def _resolve_never() -> None:
    from aiohttp.resolver import ThreadedResolver

    resolve = ThreadedResolver.resolve

    async def hanging(self: Any, *how: Any, **more: Any) -> Any:
        if os.path.exists(ARMED):  # noqa: ASYNC240 - a look at one name
            await self._loop.run_in_executor(None, _never)
        return await resolve(self, *how, **more)

    ThreadedResolver.resolve = hanging  # type: ignore[method-assign]


def main() -> None:
    settings = load(os.environ)
    hurry()
    if sys.argv[1] == "the resolver":
        _resolve_never()
        serve(settings)
    serve(settings, fs=disk_with(list(HANGS[sys.argv[1]]), settings))


if __name__ == "__main__":
    main()
