"""A store that is asked again.

Owns `Patient`, the calls of an `ObjectStore` that a compaction makes, each tried up to `TRIES` times while the store
says that another try makes sense. Promises the same answers; of `replace`, whose answer may have been lost, that what
is found afterwards decides. Never waits longer than the pauses of `PAUSES` together, beside the tries themselves.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

from ingest.disk import StorageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ingest.store import Found, Listed, ObjectStore

_Result = TypeVar("_Result")

PAUSES: Final = (0.2, 1.0, 4.0)
"""Seconds before the second try and those after it."""


class Patient:
    """See the module's text."""

    __slots__ = ("_pauses", "_store")

    def __init__(self, store: ObjectStore, pauses: tuple[float, ...] = PAUSES) -> None:
        self._store = store
        self._pauses = pauses

    async def listing(self, prefix: str) -> list[Listed]:
        """As the store's."""
        return await self._ask(lambda: self._store.listing(prefix))

    async def first_bytes(self, key: str, size: int) -> bytes:
        """As the store's."""
        return await self._ask(lambda: self._store.first_bytes(key, size))

    async def get(self, key: str) -> bytes:
        """As the store's."""
        return await self._ask(lambda: self._store.get(key))

    async def find(self, key: str) -> Found | None:
        """As the store's."""
        return await self._ask(lambda: self._store.find(key))

    async def delete(self, key: str) -> None:
        """As the store's."""
        await self._ask(lambda: self._store.delete(key))

    async def replace(self, key: str, body: bytes, version: str | None, content_type: str) -> bool:
        """As the store's; a try whose answer was lost is known by the body that is found."""
        doubtful = False

        async def replace() -> bool:
            nonlocal doubtful
            try:
                replaced = await self._store.replace(key, body, version, content_type)
            except StorageError:
                doubtful = True
                raise
            if replaced or not doubtful:
                return replaced
            found = await self._store.find(key)
            return found is not None and found.body == body

        return await self._ask(replace)

    async def _ask(self, call: Callable[[], Awaitable[_Result]]) -> _Result:
        for pause in self._pauses:
            try:
                return await call()
            except StorageError as error:
                if not error.transient:
                    raise
            await asyncio.sleep(pause)
        return await call()
