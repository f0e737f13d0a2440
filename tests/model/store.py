"""A process's way to the store, and what may meet it there.

A put that is given up may land whenever the world likes. A key that is refused for good stays refused until the world
is well again, whoever puts it.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import TYPE_CHECKING, Any

from ingest.disk.errors import StorageError
from ingest.format.keys import parse_key
from ingest.store.outcome import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.store.object_store import ObjectMetadata
    from tests.model.process import Process
    from tests.model.world import World

SLOW_SECONDS = 2.5
"""Less than S3_TIMEOUT."""


class PutFate(Enum):
    """What the next put meets, beside what `MemoryStore` knows: fail, and store but lose the answer."""

    REFUSED_FOR_GOOD = "is refused for good"
    SLOW = "takes its time"
    UNLISTED = "raises what nobody listed"


class Link:
    """A process's way to the store; what it puts from memory bears its own token, and what from disk is created."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process
        self._calls = 0
        self.under_way: dict[int, Callable[[], None]] = {}

    async def start(self) -> None:
        """Nothing to do."""

    address = "memory"

    async def prepare(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def put(self, key: str, body: bytes, metadata: ObjectMetadata) -> None:
        if key.startswith("raw_manifest/"):
            await self._put_document(key, body)
            return
        assert parse_key(key).token == self._process.token, "a plain put of what came from a disk"
        await self._send("put", key, body, metadata)

    async def first_bytes(self, key: str, size: int) -> bytes:
        """Look at an object; no fate that is meant for a put befalls it."""
        store = self._world.store
        if store.down or key not in store.objects:
            raise StorageError("get", key, "the store is down, or has no such object", transient=True)
        return store.objects[key][:size]

    async def create(self, key: str, body: bytes, metadata: ObjectMetadata) -> bool:
        return await self._send("create", key, body, metadata)

    async def _put_document(self, key: str, body: bytes) -> None:
        """Take what no event waits for; its fate is its own, so that those of events stay theirs."""
        world = self._world
        world.document_tries += 1
        if world.documents_hang:
            await asyncio.Event().wait()
        if world.documents_fail is not None:
            raise world.documents_fail
        if world.store.down and not world.documents_land:
            raise StorageError("put", key, "the store is down", transient=True)
        world.documents[key] = body

    async def _send(self, operation: str, key: str, body: bytes, metadata: ObjectMetadata) -> Any:
        store = self._world.store

        def land() -> None:
            if operation == "put" or key not in store.objects:
                store._store(key, body, metadata)

        self._calls += 1
        call = self._calls
        self.under_way[call] = land
        try:
            await self._meet(operation, key)
            if self._world.late_puts:
                self._world.late_puts -= 1
                try:
                    await asyncio.Event().wait()
                finally:
                    if not self._process.disk.dead:
                        self._world.landing.append(land)
            return await getattr(store, operation)(key, body, metadata)
        finally:
            if not self._process.disk.dead:
                del self.under_way[call]

    async def _meet(self, operation: str, key: str) -> None:
        world = self._world
        fate = world.put_fates.popleft() if world.put_fates else None
        if fate is PutFate.REFUSED_FOR_GOOD:
            world.refused_keys.add(key)
        if key in world.refused_keys:
            raise Refusal(operation, key, "told to refuse it for good", transient=False, cause={"status": 403})
        if fate is PutFate.SLOW:
            await asyncio.sleep(SLOW_SECONDS)
        elif fate is PutFate.UNLISTED:
            raise KeyError("Expiration")
