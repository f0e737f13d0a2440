"""Where objects end up: one protocol, two stores.

Owns `ObjectStore`, what every store promises, and the choice between them: S3 when a bucket is set, else a directory.

Promises, the same for both, and tested by one suite:

    put       when it returns, the whole body is stored durably under the key, whatever was there before
    create    True as `put`; False: the key holds a whole object already, and it was not touched. Never a mixture,
              also when two writers race. An object of the same batch with fewer events is replaced, if it can be read;
              what is no batch is a `Refusal`
    replace   True: the whole body is stored, and until then the key had the version that was named. False: it had
              another one, and was not touched. One wins where many replace one version
    listing   every object whose put returned before the call, and that nobody removed
    failure   `StorageError`, whose `transient` says whether another try makes sense. Nothing is known then about
              whether the body was stored: the answer may have been lost
    cancel    `CancelledError` passes, and means what a failure means

Never: retries, queues, or knows what is in a body; that is `upload`. Nothing here imports the AWS SDK before an S3
store starts: it costs 40 MiB and most of a second of CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingest.store.object_store import Found, Head, Listed, ObjectMetadata, ObjectStore
from ingest.store.outcome import ALREADY_THERE, STORED, UNTRIED, Outcome, Refusal, Verdict, doubts_clock

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from ingest.config import Settings
    from ingest.disk import Filesystem


__all__ = [
    "ALREADY_THERE",
    "STORED",
    "UNTRIED",
    "Found",
    "Head",
    "Listed",
    "ObjectMetadata",
    "ObjectStore",
    "Outcome",
    "Refusal",
    "Verdict",
    "create_store",
    "doubts_clock",
]


def create_store(settings: Settings, head: Head, *, fs: Filesystem, executor: Executor) -> ObjectStore:
    """Return the store that the settings name, not yet started; `head` is how an object of ours begins."""
    if settings.raw_bucket is None:
        from ingest.store.directory import DirectoryStore

        return DirectoryStore(settings, head, fs, executor)
    from ingest.store.s3 import S3Store

    return S3Store(settings, executor, head)
