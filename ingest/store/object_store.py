"""The promises of every store.

Owns `ObjectStore`, `ObjectMetadata`, `Head`, and what a store answers: `Listed` and `Found`. Never imports a store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


GZIP: Final = "application/gzip"
MOST_BYTES: Final = 2 * 1024**3
"""No object of ours is as large, because a batch has 1 GiB at most before gzip: a larger one is not read whole."""


@dataclass(frozen=True, slots=True)
class ObjectMetadata:
    """The facts that an object carries beside its name. `instance` names the process that took in its events."""

    events: int
    first_ts: int
    last_ts: int
    instance: str
    content_type: str = GZIP


@dataclass(frozen=True, slots=True)
class Head:
    """How the first `size` bytes of an object of ours tell the number of its events; None: it is none of ours."""

    size: int
    events: Callable[[bytes], int | None]


@dataclass(frozen=True, slots=True)
class Listed:
    """One object of a listing. `modified` is when it was stored, unix time, by the store's clock."""

    key: str
    size: int
    modified: float


@dataclass(frozen=True, slots=True)
class Found:
    """An object, and the `version` by which the store knows these very bytes under this key."""

    body: bytes
    version: str


class ObjectStore(Protocol):
    """A flat space of keys. Calls may overlap; `start` comes first, nothing follows `close`."""

    @property
    def address(self) -> str:
        """Where it is, for the log."""

    async def start(self) -> None:
        """Do what is slow once. `StorageError` is no reason to give up: the first call after it starts again."""

    async def prepare(self) -> None:
        """Do before a try what may take longer than a try may. Bounded; `StorageError` is the try's failure."""

    async def put(self, key: str, body: bytes, metadata: ObjectMetadata) -> None:
        """Store the body under the key."""

    async def create(self, key: str, body: bytes, metadata: ObjectMetadata) -> bool:
        """Store the body only if nothing has the key, or less of the same batch; False if something else does."""

    async def get(self, key: str) -> bytes:
        """Return the body. No such key, and one of more than `MOST_BYTES`, is a `StorageError`."""

    async def listing(self, prefix: str) -> list[Listed]:
        """Return all objects whose keys begin with `prefix`, which ends in a slash, by key."""

    async def first_bytes(self, key: str, size: int) -> bytes:
        """Return the first `size` bytes of the body, or all there are. No such key is a `StorageError`."""

    async def find(self, key: str) -> Found | None:
        """Return the body with its version; None if there is no such key."""

    async def replace(self, key: str, body: bytes, version: str | None, content_type: str) -> bool:
        """Store the body if the key still has this version (None: nothing); False, and no change, if it has not.

        After a `StorageError` nothing is known: `find` tells whether it was stored.
        """

    async def delete(self, key: str) -> None:
        """Remove the key. No such key is no error."""

    async def close(self) -> None:
        """Let go of connections; calls still on their way fail."""
