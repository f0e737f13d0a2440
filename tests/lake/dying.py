"""`compact` that is killed at a named instant: `python -m tests.lake.dying POINT NTH WORDS…`.

The process sends itself SIGKILL at the `NTH` occurrence of `POINT`, after a line on standard error. Nothing of this is
in the product: store and engine are wrapped from outside.
"""

from __future__ import annotations

import os
import signal
import sys
from itertools import count
from typing import Final

from ingest import __main__
from ingest.lake import embedded, iceberg
from ingest.store.directory import DirectoryStore
from ingest.store.s3 import S3Store

POINTS: Final = {
    "listed": ("listing", "raw/", "after"),
    "head_read": ("first_bytes", "raw/", "after"),
    "fetched": ("get", "raw/", "after"),
    "rows_begin": ("write", "", "before"),
    "rows_written": ("write", "", "after"),
    "part_put_begins": ("replace", ("raw_parquet/_parts/", "raw_parquet/_table/"), "before"),
    "part_put": ("replace", ("raw_parquet/_parts/", "raw_parquet/_table/"), "after"),
    "publish_begins": ("replace", "raw_parquet/_hours/", "before"),
    "published": ("replace", "raw_parquet/_hours/", "after"),
    "sweep_begins": ("listing", "raw_parquet/_parts/", "before"),
    "commit_begins": ("_publish", "", "before"),
    "committed": ("_publish", "", "after"),
    "swept_one": ("delete", "raw_parquet/_parts/", "after"),
}


def main() -> int:
    point, nth = sys.argv[1], int(sys.argv[2])
    call, prefix, when = POINTS[point]
    occurrences = count(1)

    def die(key: object) -> None:
        if str(key).startswith(prefix) and next(occurrences) == nth:
            os.write(2, f"died at {point}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    if call in ("write", "_publish"):
        owner = embedded.DuckDB if call == "write" else iceberg.Table
        plain = getattr(owner, call)

        def wrapped(self, *arguments):
            if when == "before":
                die("")
            result = plain(self, *arguments)
            if when == "after":
                die("")
            return result

        setattr(owner, call, wrapped)
    else:
        for store in (DirectoryStore, S3Store):
            _wrap(store, call, when, die)
    return __main__.main(sys.argv[3:])


def _wrap(store, call, when, die) -> None:
    plain = getattr(store, call)

    async def wrapped(self, key, *arguments):
        if when == "before":
            die(key)
        result = await plain(self, key, *arguments)
        if when == "after":
            die(key)
        return result

    setattr(store, call, wrapped)


if __name__ == "__main__":
    sys.exit(main())
