"""Objects on S3, or on anything that speaks its protocol.

Owns the one client of the process's life: built beside the listening server, used by every put, closed last.

Promises what `ObjectStore` promises. A CRC-32 of the body travels with every put and the store refuses a body that does
not match it, so what is stored is what was sent. Over TLS the body is left out of the signature (`UNSIGNED-PAYLOAD`):
TLS keeps others from changing it and the CRC finds what breaks, while SHA-256 of every body costs CPU for nothing. Over
plain HTTP the body is signed.

A status alone proves nothing, because a proxy or a login page can stand where the store should be. The evidence:

    stored         status 200, no content, a quoted ETag that is not weak
    already there  `create` sends `If-None-Match: *`; the answer is a 412 with S3's own code `PreconditionFailed` in its
                   body. A 409 means that somebody is storing the key at this moment: another try decides
    read, listed   see `evidence`
    anything else  a failed try

After that 412 the first bytes of the object are read, as below. If its head has fewer events than ours, the put is
plain, because it was put by somebody who held less of the batch. An object without our head, and an empty one, which a
store that failed may leave, is no batch: that is a refusal, and nothing is replaced. An object that may not be read is
*already there*, which `stored_object_not_read` says once. So is whatever has the key of an original.

`S3_CONDITIONAL_PUTS=false` is for stores that do not know `If-None-Match`. `create` then reads the first bytes of the
object: our gzip head with as many events as ours, or more, is *already there*. If the head has fewer events the put is
plain, because files of one key are prefixes of one batch and the longer one replaces the shorter. An original that was
quarantined need not begin with our head: its first bytes and its length are compared. S3's own `NoSuchKey` leads to the
put. Between that look and the put another writer can store the same key, and this put would replace it. Two writers of
one key are two processes that recover the same file, which slots prevent, or one put whose answer was lost and that is
still being stored; so the race is narrow, and it is the reason why the setting is not the default.

A store that ignores `If-None-Match` is noticed. The first create of a run that is stored is sent once more, as the
*canary*: `PreconditionFailed` is right, and asked for only once. Any other answer of the store (it is stored again, it
is a conflict though nobody else stores it, it is refused) has creates look first from then on, and so has a create that
is answered with 501 if a look and a plain put then succeed. `conditional_puts_not_honoured` says so. No answer (a page,
a store that is busy or ill, a broken connection, the end of the try) says nothing of the condition: the next create
sends its canary. The third canary without an answer is the last, and creates look first; where the role may not look,
they go back to the condition.

`replace` sends `If-Match` with the ETag that `find` gave, or `If-None-Match: *` where nothing was found. There it needs
no canary: its caller reads again what it wrote. `S3_CONDITIONAL_PUTS=false` looks first here too, with the same race.

Never: retries (the SDK's own retries are off, `upload` decides), names a key, or lets an exception out that is no
`StorageError`. The SDK and its chain of credentials raise whatever their sources made of themselves (an endpoint that
errs, a document without keys, a helper that prints no JSON), so all of it is a failed try, and its cause goes with it.
Errors are matched by code and type, never by text.
"""

from __future__ import annotations

import asyncio
import base64
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import structlog
from isal import isal_zlib

from ingest.disk import StorageError
from ingest.store import sdk
from ingest.store.credentials import LONGEST_WAIT, Credentials
from ingest.store.evidence import Content, Page, Pages, check_deleted, check_stored, content_of, cut_short, page_of
from ingest.store.object_store import Found
from ingest.store.outcome import Refusal
from ingest.store.s3_errors import KEYS_IN_DOUBT, Sent, is_answer, storage_error, verdict_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from concurrent.futures import Executor

    from aiobotocore.config import AioConfig  # type: ignore[import-untyped]  # it ships no types
    from aiobotocore.session import AioSession  # type: ignore[import-untyped]  # it ships no types
    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.type_defs import PutObjectRequestTypeDef

    from ingest.config import Settings
    from ingest.store.object_store import Head, Listed, ObjectMetadata


_Result = TypeVar("_Result")

# The SDK turns `bytes` into a file and has a thread read it piece by piece. A `bytearray` it sends as it is. That is
# right for what a batch weighs; a large body goes in pieces, so that encrypting it does not hold the loop.
ONE_WRITE = 1024 * 1024

CANARIES: Final = 3
"""So many are sent before no answer counts as an answer."""

_NOT_OURS = "the store holds something else under this key: check the endpoint and proxies, then the object"
_NOT_LOADED = "the SDK cannot be loaded: its files lie on a disk that does not answer"
_PRECONDITION_FAILED = (412, "PreconditionFailed")
_NO_SUCH_KEY = (404, "NoSuchKey")
_NO_SUCH_RANGE = (416, "InvalidRange")
_FORBIDDEN = 403
_NOT_IMPLEMENTED = (501, "NotImplemented")

log = structlog.get_logger()


class _Creates(Enum):
    """How `create` keeps from replacing an object."""

    UNPROVEN = auto()
    """By `If-None-Match`; that the store heeds it was not seen yet in this run."""
    CONDITIONAL = auto()
    """By `If-None-Match`; the store answered 412 once."""
    LOOK_FIRST = auto()
    """By a look: so it is set, or the store was seen not to heed `If-None-Match`."""
    UNANSWERED = auto()
    """By a look, because no canary was answered; by `If-None-Match` again if a look is not allowed."""


class S3Store:
    """An `ObjectStore` in `RAW_BUCKET`."""

    __slots__ = (
        "_canaries",
        "_client",
        "_creates",
        "_credentials",
        "_executor",
        "_head",
        "_loaded",
        "_may_read",
        "_models",
        "_put_arguments",
        "_sent",
        "_settings",
        "_starting",
    )

    def __init__(self, settings: Settings, executor: Executor, head: Head) -> None:
        self._settings = settings
        self._executor = executor
        self._head = head
        self._loaded: tuple[AioSession, AioConfig] | None = None
        self._models = sdk.Models()
        self._credentials = Credentials(self._open_session, self._read_tokens)
        self._client: S3Client | None = None
        self._starting: asyncio.Task[S3Client] | None = None
        self._creates = _Creates.UNPROVEN if settings.s3_conditional_puts else _Creates.LOOK_FIRST
        self._canaries = 0
        self._may_read = True
        """False from an object that exists and may not be read, which is told once, until one may be."""
        chosen = _chosen(settings)
        arguments = {"Bucket": settings.raw_bucket or "", "Key": ""}
        arguments.update((name, value) for name, _, value in chosen)
        # The types name the values that AWS knows; which of them another store knows is for that store to say.
        self._put_arguments = cast("PutObjectRequestTypeDef", arguments)
        self._sent = Sent(tuple(variable for _, variable, _ in chosen))

    @property
    def address(self) -> str:
        """The endpoint, once the SDK has settled on one, and the bucket."""
        return f"{self._sent.address or 's3:/'}/{self._put_arguments['Bucket']}"

    async def start(self) -> None:
        """Load the SDK, find the credentials, build the client. The loop is held for some milliseconds only."""
        await self._ready("start")

    async def prepare(self) -> None:
        """Have a client, and keys that are worth a try. Waits for `LONGEST_WAIT` at most."""
        await self._ready("start")

    async def put(self, key: str, body: bytes, metadata: ObjectMetadata) -> None:
        """Store the body under the key."""
        await self._call("put", key, lambda client: self._put_object(client, key, body, metadata))

    async def create(self, key: str, body: bytes, metadata: ObjectMetadata) -> bool:
        """Store the body only if nothing has the key; False if something does."""
        match self._creates:
            case _Creates.LOOK_FIRST:
                create = self._look_then_put
            case _Creates.UNANSWERED:
                create = self._look_or_create
            case _:
                create = self._create
        return await self._call("create", key, lambda client: create(client, key, body, metadata))

    async def get(self, key: str) -> bytes:
        """Return the body."""
        body, _ = await self._call("get", key, lambda client: self._read(client, key))
        return body

    async def listing(self, prefix: str) -> list[Listed]:
        """Return all objects whose keys begin with `prefix`, by key; each page has a try's time."""
        pages = Pages(prefix)
        after = pages.add(await self._call("list", prefix, partial(self._page, prefix=prefix, after=None)))
        while after is not None:
            after = pages.add(await self._call("list", prefix, partial(self._page, prefix=prefix, after=after)))
        return pages.listed()

    async def first_bytes(self, key: str, size: int) -> bytes:
        """Return the first bytes of the body."""

        async def first(client: S3Client) -> bytes:
            try:
                head, _ = await self._read(client, key, size)
            except client.exceptions.ClientError as error:
                if verdict_of(error.response) == _NO_SUCH_RANGE:  # an object of no bytes has no first one
                    return b""
                raise
            return head

        return await self._call("get", key, first)

    async def find(self, key: str) -> Found | None:
        """Return the body with its ETag; None if there is no such key."""
        return await self._call("get", key, lambda client: self._find(client, key))

    async def replace(self, key: str, body: bytes, version: str | None, content_type: str) -> bool:
        """Store the body if the key still has this ETag."""
        return await self._call("replace", key, lambda client: self._replace(client, key, body, version, content_type))

    async def delete(self, key: str) -> None:
        """Remove the key."""

        async def delete(client: S3Client) -> None:
            try:
                answer = await client.delete_object(Bucket=self._put_arguments["Bucket"], Key=key)
            except client.exceptions.ClientError as error:
                if verdict_of(error.response) == _NO_SUCH_KEY:  # S3 itself says 204
                    return
                raise
            check_deleted(key, cast("Mapping[str, Any]", answer))

        await self._call("delete", key, delete)

    async def close(self) -> None:
        """Close the client and its connections."""
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.cancel()
            await asyncio.wait((starting,))
        await self._credentials.close()
        client, self._client = self._client, None
        if client is not None:
            try:
                await client.close()
            except Exception as error:
                raise storage_error("close", self._put_arguments["Bucket"], error) from error

    # ------------------------------------------------------------------------------------------- the calls

    async def _put_object(
        self, client: S3Client, key: str, body: bytes, metadata: ObjectMetadata, *, only_new: bool = False
    ) -> None:
        arguments: PutObjectRequestTypeDef = {
            **self._put_arguments,
            "Key": key,
            "ContentType": metadata.content_type,
            "Body": bytearray(body) if len(body) <= ONE_WRITE else body,
            "ChecksumCRC32": base64.b64encode(isal_zlib.crc32(body).to_bytes(4, "big")).decode("ascii"),
            "Metadata": {
                "events": str(metadata.events),
                "first-ts": str(metadata.first_ts),
                "last-ts": str(metadata.last_ts),
                "instance": metadata.instance,
            },
        }
        if only_new:
            arguments["IfNoneMatch"] = "*"
        answer = cast("Mapping[str, Any]", await client.put_object(**arguments))
        check_stored(key, answer, arguments["ChecksumCRC32"])

    async def _create(self, client: S3Client, key: str, body: bytes, metadata: ObjectMetadata) -> bool:
        try:
            await self._put_object(client, key, body, metadata, only_new=True)
        except client.exceptions.ClientError as error:
            verdict = verdict_of(error.response)
            if verdict == _PRECONDITION_FAILED:
                self._creates = _Creates.CONDITIONAL
                return await self._replace_less(client, key, body, metadata)
            if verdict != _NOT_IMPLEMENTED:
                raise
            is_new = await self._look_then_put(client, key, body, metadata)
            self._look_first(key, "501 NotImplemented")
            return is_new
        if self._creates is _Creates.UNPROVEN:
            await self._send_canary(client, key, body, metadata)
        return True

    async def _replace_less(self, client: S3Client, key: str, body: bytes, metadata: ObjectMetadata) -> bool:
        """Put the body over an object that exists and has fewer of the batch's events; False if it has not."""
        size = self._head.size
        wanted = self._head.events(body[:size])
        if wanted is None:
            return False
        try:
            head, _ = await self._read(client, key, size)
        except client.exceptions.ClientError as error:
            verdict = verdict_of(error.response)
            if verdict[0] == _FORBIDDEN:
                self._tell_unread(key, storage_error("look", key, error))
                return False
            if verdict != _NO_SUCH_RANGE:  # an object of no bytes has no first one
                raise
            head = b""
        self._may_read = True
        found = self._head.events(head)
        if found is None:
            raise _strange(key, head)
        if found >= wanted:
            return False
        await self._put_object(client, key, body, metadata)
        log.warning("shorter_object_replaced", key=key, had=found, events=wanted)
        return True

    def _tell_unread(self, key: str, failure: StorageError) -> None:
        if self._may_read:
            self._may_read = False
            log.warning(
                "stored_object_not_read",
                key=key,
                error=failure.cause.get("error", ""),
                hint="the role has no s3:GetObject: whether an object that exists has fewer events is not known",
            )

    async def _send_canary(self, client: S3Client, key: str, body: bytes, metadata: ObjectMetadata) -> None:
        """Send what was just created once more. If the try ends here, the next one hears that the object is there."""
        if self._canaries >= CANARIES:  # those that the end of a try cut short included
            self._look_first(key, "none of the canaries was answered", _Creates.UNANSWERED)
            return
        self._canaries += 1
        try:
            await self._put_object(client, key, body, metadata, only_new=True)
        except Exception as error:  # noqa: BLE001 - the object is stored, whatever becomes of its canary
            failure = storage_error("create", key, error)
            if (failure.cause.get("status"), failure.cause.get("code")) == _PRECONDITION_FAILED:
                self._creates = _Creates.CONDITIONAL
            elif is_answer(failure):
                self._look_first(key, failure.cause.get("error", ""))
            elif self._canaries >= CANARIES:
                self._look_first(key, failure.cause.get("error", ""), _Creates.UNANSWERED)
        else:
            self._look_first(key, "it was stored again")

    def _look_first(self, key: str, answer: object, creates: _Creates = _Creates.LOOK_FIRST) -> None:
        self._creates = creates
        log.error(
            "conditional_puts_not_honoured",
            key=key,
            answer=answer,
            hint="the store does not heed If-None-Match: set S3_CONDITIONAL_PUTS=false; a look goes first from now on",
        )

    async def _look_or_create(self, client: S3Client, key: str, body: bytes, metadata: ObjectMetadata) -> bool:
        try:
            return await self._look_then_put(client, key, body, metadata)
        except client.exceptions.ClientError as error:
            if verdict_of(error.response)[0] != _FORBIDDEN:
                raise
        # Nothing has shown that the condition is not heeded, and a role need not have leave to look.
        self._creates, self._canaries = _Creates.UNPROVEN, 0
        return await self._create(client, key, body, metadata)

    async def _look_then_put(self, client: S3Client, key: str, body: bytes, metadata: ObjectMetadata) -> bool:
        if await self._is_there(client, key, body):
            return False
        await self._put_object(client, key, body, metadata)
        return True

    async def _is_there(self, client: S3Client, key: str, body: bytes) -> bool:
        """Tell whether the object holds all that the body does; False if it is to be put. See the module's text."""
        try:
            head, content = await self._read(client, key, self._head.size)
        except client.exceptions.ClientError as error:
            verdict = verdict_of(error.response)
            if verdict == _NO_SUCH_KEY:
                return False
            if verdict == _NO_SUCH_RANGE:  # an object of no bytes has no first one
                if body:
                    raise _strange(key, b"") from error
                return True
            raise
        begins = body[: self._head.size]
        wanted, found = self._head.events(begins), self._head.events(head)
        if wanted is not None and found is not None:
            return found >= wanted
        if wanted is None and head == begins:
            return content.size >= len(body)
        raise _strange(key, head)

    async def _read(self, client: S3Client, key: str, most: int | None = None) -> tuple[bytes, Content]:
        """Return the object's bytes, or its first ones, and what came with them; no more is read than asked for."""
        bucket = self._put_arguments["Bucket"]
        if most is None:
            answer = await client.get_object(Bucket=bucket, Key=key)
        else:
            answer = await client.get_object(Bucket=bucket, Key=key, Range=f"bytes=0-{most - 1}")
        parts: list[bytes] = []
        async with answer["Body"] as stream:
            content = content_of(key, cast("Mapping[str, Any]", answer), most)
            missing = content.length if most is None else min(most, content.length)
            while missing and (part := await stream.read(missing)):
                parts.append(part)
                missing -= len(part)
        if missing:
            raise cut_short(key, content, missing)
        return b"".join(parts), content

    async def _page(self, client: S3Client, *, prefix: str, after: str | None) -> Page:
        """Return the page of a listing to which the token `after` leads; None: the first."""
        bucket = self._put_arguments["Bucket"]
        if after is None:
            answer = await client.list_objects_v2(Bucket=bucket, Prefix=prefix)
        else:
            answer = await client.list_objects_v2(Bucket=bucket, Prefix=prefix, ContinuationToken=after)
        return page_of(prefix, cast("Mapping[str, Any]", answer))

    async def _find(self, client: S3Client, key: str) -> Found | None:
        try:
            body, content = await self._read(client, key)
        except client.exceptions.ClientError as error:
            if verdict_of(error.response) == _NO_SUCH_KEY:
                return None
            raise
        return Found(body, content.version)

    async def _replace(self, client: S3Client, key: str, body: bytes, version: str | None, content_type: str) -> bool:
        if self._settings.s3_conditional_puts:
            condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        else:
            found = await self._find(client, key)
            if (None if found is None else found.version) != version:
                return False
            condition = {}
        arguments = {**self._put_arguments, "Key": key, "Body": body, "ContentType": content_type, **condition}
        arguments["ChecksumCRC32"] = base64.b64encode(isal_zlib.crc32(body).to_bytes(4, "big")).decode("ascii")
        try:
            answer = cast("Mapping[str, Any]", await client.put_object(**cast("PutObjectRequestTypeDef", arguments)))
        except client.exceptions.ClientError as error:
            if verdict_of(error.response) in (_PRECONDITION_FAILED, _NO_SUCH_KEY):
                return False
            raise
        check_stored(key, answer, str(arguments["ChecksumCRC32"]))
        return True

    async def _call(self, operation: str, key: str, call: Callable[[S3Client], Awaitable[_Result]]) -> _Result:
        client = await self._ready(operation)
        try:
            # The client's own timeouts bound one connect and one pause between two reads, not the whole call.
            async with asyncio.timeout(self._settings.s3_timeout):
                return await call(client)
        except Exception as error:
            failure = storage_error(operation, key, error, self._sent)
            if failure.cause.get("code") in KEYS_IN_DOUBT:
                self._credentials.doubt()
            raise failure from error

    # ------------------------------------------------------------------------------------------- the client

    async def _ready(self, operation: str) -> S3Client:
        """Have a client and keys. This is no part of a call's `S3_TIMEOUT`, because a source of keys may be slower."""
        try:
            if self._client is None:
                await self._started()
            await self._credentials.ready()
        except Exception as error:
            raise storage_error(operation, self._put_arguments["Bucket"], error) from error
        assert self._client is not None  # noqa: S101 - started
        return self._client

    async def _started(self) -> None:
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._connect())
            self._starting.add_done_callback(_fetch)
        starting = self._starting
        # Many calls may wait for one start; that one of them is cancelled must not take it from the others.
        await asyncio.wait((starting,), timeout=LONGEST_WAIT)
        if not starting.done():
            raise StorageError("start", self._put_arguments["Bucket"], _NOT_LOADED, transient=True)
        starting.result()

    async def _connect(self) -> S3Client:
        try:
            return await self._open_client()
        except Exception:
            # A session remembers the files that it read, and they may be what was wrong.
            self._loaded = None
            raise

    async def _open_client(self) -> S3Client:
        if self._loaded is None:
            loop = asyncio.get_running_loop()
            load = partial(sdk.load, self._settings, self._models)
            self._loaded = await loop.run_in_executor(self._executor, load)
        session, config = self._loaded
        creating = session.create_client(
            "s3",
            endpoint_url=self._settings.s3_endpoint_url,
            aws_access_key_id="unused",  # each request is signed with what `Credentials` found
            aws_secret_access_key="unused",  # noqa: S106 - says what it is
            config=config,
        )
        client: S3Client = await creating.__aenter__()
        client.meta.events.register("before-sign.s3", self._credentials.sign)
        sdk.hold_back(client)
        self._sent = Sent(self._sent.settings, client.meta.endpoint_url)
        self._client = client
        return client

    async def _open_session(self) -> AioSession:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, sdk.open_session, self._models)

    async def _read_tokens(self, session: AioSession) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._executor, sdk.read_tokens, session)


def _strange(key: str, head: bytes) -> Refusal:
    """Return the error of a key under which there is what we cannot have put. It says nothing of other keys."""
    return Refusal("look", key, _NOT_OURS, transient=False, cause={"error": f"the object begins with {head!r}"})


def _fetch(starting: asyncio.Task[S3Client]) -> None:
    """Take a start's exception, because every call that waited for it may have been cancelled meanwhile."""
    if not starting.cancelled():
        starting.exception()


def _chosen(settings: Settings) -> list[tuple[str, str, str]]:
    """List what the settings put into each request: the SDK's name for it, the variable, the value."""
    possible = (
        ("ServerSideEncryption", "S3_SSE", settings.s3_sse),
        ("SSEKMSKeyId", "S3_SSE_KMS_KEY_ID", settings.s3_sse_kms_key_id),
        ("StorageClass", "S3_STORAGE_CLASS", settings.s3_storage_class),
        ("Tagging", "S3_TAGS", settings.s3_tags),
    )
    return [(name, variable, value) for name, variable, value in possible if value is not None]
