"""The store of the settings, for a command that judges or remakes hours or brings files home, and what becomes of it.

Owns the opening and the end of it, and the exit code when the store or a disk failed. Promises that a directory which
is not there is an error, never a store without objects: a volume may not be mounted; and that whatever fails outside is
one line. Never reads or writes an object.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ingest.commands import interrupt
from ingest.commands.hours import FAILED
from ingest.disk import Filesystem, StorageError, is_folder
from ingest.format import codec
from ingest.store import Head, create_store
from ingest.threads import pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from typing import Any

    from ingest.commands.report import Report
    from ingest.config import Settings
    from ingest.store import ObjectStore


LONG_TRY: Final = 300.0
"""Seconds for one try where whole objects go over the wire, several at once: nobody waits for an answer."""


@asynccontextmanager
async def opened(settings: Settings, *, long_tries: bool = False) -> AsyncIterator[ObjectStore]:
    """Open the store of the settings; a StorageError if its directory is not there."""
    fs = Filesystem()
    if long_tries:
        settings = replace(settings, s3_timeout=max(settings.s3_timeout, LONG_TRY))
    require_store(fs, settings)
    executor = pool(4)
    store = create_store(settings, Head(codec.HEAD_BYTES, codec.event_count), fs=fs, executor=executor)
    try:
        await store.prepare()
        yield store
    finally:
        await store.close()
        executor.shutdown(wait=False)


def require_store(fs: Filesystem, settings: Settings) -> None:
    """Raise a StorageError if objects go to a directory that is not there."""
    if settings.raw_bucket is None and not is_folder(fs, settings.store_dir):
        where = settings.store_dir.absolute()
        hint = "it is not there: name the store with RAW_BUCKET or STORE_DIR, or mount it"
        raise StorageError("open", where, hint, transient=True)


def to_the_end(work: Coroutine[Any, Any, int], report: Report) -> int:
    """Run a command and return its exit code; FAILED, and one line, if the store or a disk failed."""
    try:
        return interrupt.run(work)
    except StorageError as error:
        failure: StorageError | None = error
    except ExceptionGroup as group:
        failure = StorageError.first_of(group)
        if failure is None:
            raise
    report.say(str(failure))
    return FAILED
