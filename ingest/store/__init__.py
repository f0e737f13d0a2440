"""Where objects end up: one protocol, two stores.

Owns `ObjectStore`, what every store promises, and the choice between them: S3 when a bucket is set, else a directory.

Promises, the same for both, and tested by one suite:

    put       when it returns, the whole body is stored durably under the key, whatever was there before
    create    True as `put`; False: the key holds a whole object already, and it was not touched. Never a mixture,
              also when two writers race
    failure   `StorageError`, whose `transient` says whether another try makes sense. Nothing is known then about
              whether the body was stored: the answer may have been lost
    cancel    `CancelledError` passes, and means what a failure means

Never: retries, queues, or knows what is in a body; that is `upload`. Nothing here imports the AWS SDK before an S3
store starts: it costs 40 MiB and most of a second of CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from ingest.config import Settings
    from ingest.durable import Filesystem


@dataclass(frozen=True, slots=True)
class ObjectMetadata:
    """What is told about an object beside its name. `instance` names the process that took in its events."""

    events: int
    first_ts: int
    last_ts: int
    instance: str


class ObjectStore(Protocol):
    """A flat space of keys. Calls may overlap; `start` comes first, nothing follows `close`."""

    async def start(self) -> None:
        """Do what is slow once. `StorageError` is no reason to give up: the first call after it starts again."""

    async def put(self, key: str, body: bytes, metadata: ObjectMetadata) -> None:
        """Store the body under the key."""

    async def create(self, key: str, body: bytes, metadata: ObjectMetadata) -> bool:
        """Store the body only if nothing has the key; False if something does."""

    async def get(self, key: str) -> bytes:
        """Return the body. No such key is a `StorageError`."""

    async def delete(self, key: str) -> None:
        """Remove the key. No such key is no error."""

    async def close(self) -> None:
        """Let go of connections; calls still on their way fail."""


def create_store(settings: Settings, *, fs: Filesystem, executor: Executor) -> ObjectStore:
    """Return the store that the settings name, not yet started."""
    if settings.raw_bucket is None:
        from ingest.store.directory import DirectoryStore

        return DirectoryStore(settings, fs, executor)
    from ingest.store.s3 import S3Store

    return S3Store(settings, executor)
