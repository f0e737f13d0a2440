"""The keys that sign: found the SDK's way, and refreshed beside the puts, never inside one.

Owns the source of credentials that the SDK settled on, and the keys that sign until the next look.

Promises:

    beside     what a source reads on the loop was read off it a moment before (`sdk.read_tokens`): a disk that hangs
               holds up the look alone
    apart      finding or refreshing keys is no part of a put's time. A helper that takes 4 s works with S3_TIMEOUT=3s
    bounded    whoever waits is told after `LONGEST_WAIT` that the source did not answer; the look ends too, and a
               helper that was started for it, so that the next one begins afresh
    once       puts that wait at the same time wait for one look
    early      keys are refreshed `ADVISORY` before they expire, beside the puts, which go on with the old ones; from
               `MANDATORY` before it on a put waits
    usable     what cannot sign (no text, a line end in a key) is no keys: it is asked for again, also where keys never
               expire
    anew       after `doubt`, or after a look that failed, a session of its own reads every file and asks every source
               again

Never: has credentials of its own, writes them down, judges an answer of the store.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, Protocol

from ingest.disk import StorageError
from ingest.store.outcome import CLOCK, IN_DOUBT
from ingest.store.s3_errors import EXPIRED_KEYS, NO_ANSWER_FROM_SOURCE, NO_CREDENTIALS, UNUSABLE_KEYS, EndlessAnswer
from ingest.store.sdk import Helpers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiobotocore.session import AioSession  # type: ignore[import-untyped]  # it ships no types
    from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]  # it ships no types


LONGEST_WAIT: Final = 60.0
MANDATORY: Final = 600
"""Seconds before their end from which on keys are not used unrefreshed. The SDK waits from then on, too."""
LOOK_PAUSE: Final = 5.0
"""Seconds between two refreshes beside the puts, because one that fails would else be begun by each put."""


class Keys(Protocol):
    """Keys that the SDK read at one moment."""

    access_key: str
    secret_key: str
    token: str | None


class Source(Protocol):
    """The source that the SDK's chain settled on. Those whose keys expire have `refresh_needed` too."""

    async def get_frozen_credentials(self) -> Keys:
        """Return the keys, refreshed if they must be."""


class Credentials:
    """See the module's text. `open_session` makes a session that has asked no source yet."""

    __slots__ = (
        "_doubted",
        "_helpers",
        "_looked",
        "_looking",
        "_open_session",
        "_read_tokens",
        "_session",
        "_signing",
        "_source",
    )

    def __init__(
        self,
        open_session: Callable[[], Awaitable[AioSession]],
        read_tokens: Callable[[AioSession], Awaitable[None]],
    ) -> None:
        self._open_session = open_session
        self._read_tokens = read_tokens
        self._session: AioSession | None = None
        """The session of `_source`."""
        self._helpers = Helpers()
        self._source: Source | None = None
        self._signing: object = None
        self._doubted = False
        """From a refusal of the keys, or a look that failed, until a look succeeds."""
        self._looking: asyncio.Task[None] | None = None
        self._looked = 0.0

    async def ready(self) -> None:
        """Have keys that are worth a try; whatever the source fails with is raised."""
        source = self._source
        if source is not None and not self._doubted:
            if not _expires_within(source, None):
                return
            if not _expires_within(source, MANDATORY):
                if time.monotonic() - self._looked > LOOK_PAUSE:
                    self._look_once()
                return
        looking = self._look_once()
        # Many puts may wait for one look; that one of them is cancelled must not take it from the others.
        await asyncio.wait((looking,))
        looking.result()

    def doubt(self) -> None:
        """Take the store's word that it does not know these keys any more."""
        self._doubted = True

    def sign(self, request: AWSRequest, **_: object) -> None:
        """Have the SDK sign this request with the keys that were found; a handler of its event `before-sign`."""
        request.context.setdefault("signing", {})["request_credentials"] = self._signing

    async def close(self) -> None:
        """End the look that is under way."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait((self._looking,))
        self._helpers.end()

    def _look_once(self) -> asyncio.Task[None]:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
            self._looking.add_done_callback(_fetch)
        return self._looking

    async def _look(self) -> None:
        self._looked = time.monotonic()
        source = None if self._doubted else self._source
        try:
            async with asyncio.timeout(LONGEST_WAIT):
                if source is None:
                    source = await self._find()
                elif self._session is not None:
                    await self._read_tokens(self._session)
                keys = await source.get_frozen_credentials()
            _refuse_unusable(keys)
        except TimeoutError as error:
            self._doubted = True
            self._helpers.end()
            cause: dict[str, str | int] = {"error": f"TimeoutError: no answer within {LONGEST_WAIT:.0f} s"}
            raise StorageError("start", "credentials", NO_ANSWER_FROM_SOURCE, transient=True, cause=cause) from error
        except EndlessAnswer as error:
            self._doubted = True
            cause = {"error": f"EndlessAnswer: {error}"}
            raise StorageError("start", "credentials", UNUSABLE_KEYS, transient=True, cause=cause) from error
        except RuntimeError as error:
            self._doubted = True
            if source is None or not _expires_within(source, 0):
                raise
            # The SDK says that what it was given just now is over.
            cause = {"error": f"RuntimeError: {error}", CLOCK: IN_DOUBT}
            raise StorageError("start", "credentials", EXPIRED_KEYS, transient=True, cause=cause) from error
        except Exception:
            self._doubted = True
            raise
        from aiobotocore.credentials import AioCredentials  # type: ignore[import-untyped]  # it ships no types

        self._source = source
        self._signing = AioCredentials(keys.access_key, keys.secret_key, keys.token)
        self._doubted = False

    async def _find(self) -> Source:
        self._session = session = await self._open_session()
        await self._read_tokens(session)
        self._helpers.adopt(session)
        source: Source | None = await session.get_credentials()
        if source is None:
            raise StorageError("start", "credentials", NO_CREDENTIALS, transient=True)
        return source


def _expires_within(source: Source, seconds: int | None) -> bool:
    """Tell whether the keys end within so many seconds; None: within what the SDK finds early enough."""
    refresh_needed = getattr(source, "refresh_needed", None)  # keys that never expire have no such method
    return refresh_needed is not None and bool(refresh_needed(seconds))


def _refuse_unusable(keys: Keys) -> None:
    """Raise unless the keys can go into a request: the SDK takes them as the source gives them."""
    if not _is_plain(keys.access_key):
        bad = "the access key is no plain text"
    elif not _is_text(keys.secret_key):
        bad = "the secret key is no text"
    elif keys.token and not _is_plain(keys.token):
        bad = "the session token is no plain text"
    else:
        return
    raise StorageError("start", "credentials", UNUSABLE_KEYS, transient=True, cause={"error": bad})


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != "" and value.encode(errors="replace").decode() == value


def _is_plain(value: object) -> bool:
    """Tell whether a header can carry it."""
    return isinstance(value, str) and value.isascii() and value.isprintable() and value != "" and " " not in value


def _fetch(looking: asyncio.Task[None]) -> None:
    """Take a look's exception, because every put that waited for it may have been cancelled meanwhile."""
    if not looking.cancelled():
        looking.exception()
