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
    anything else  a failed try

`S3_CONDITIONAL_PUTS=false` is for stores that do not know `If-None-Match`. `create` then reads the first bytes of the
object: our gzip head with as many events as ours, or more, is *already there*. If the head has fewer events the put is
plain, because files of one key are prefixes of one batch and the longer one replaces the shorter. An original that was
quarantined need not begin with our head: its first bytes and its length are compared. S3's own `NoSuchKey` leads to the
put. Between that look and the put another writer can store the same key, and this put would replace it. Two writers of
one key are two processes that recover the same file, which slots prevent, or one put whose answer was lost and that is
still being stored; so the race is narrow, and it is the reason why the setting is not the default.

Never: retries (the SDK's own retries are off, `upload` decides), names a key, or lets an exception out that is no
`StorageError`. The SDK and its chain of credentials raise whatever their sources made of themselves (an endpoint that
errs, a document without keys, a helper that prints no JSON), so all of it is a failed try, and its cause goes with it.
Errors are matched by code and type, never by text. Credentials are found the SDK's way and only there, anew after each
start that failed.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import re
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from isal import isal_zlib

from ingest.disk import StorageError
from ingest.format import codec
from ingest.store.s3_errors import LONGEST_TEXT, NO_CREDENTIALS, status_of, storage_error, verdict_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from concurrent.futures import Executor

    from aiobotocore.config import AioConfig  # type: ignore[import-untyped]  # it ships no types
    from aiobotocore.session import AioSession  # type: ignore[import-untyped]  # it ships no types
    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.type_defs import PutObjectRequestTypeDef

    from ingest.config import Settings
    from ingest.store.object_store import ObjectMetadata


_Result = TypeVar("_Result")

CONTENT_TYPE = "application/gzip"

# The SDK turns `bytes` into a file, asks `Expect: 100-continue`, which costs a round trip, and has a thread read the
# file piece by piece. A `bytearray` it sends as it is. That is right for what a batch weighs; a large body goes in
# pieces, so that encrypting it does not hold the loop.
ONE_WRITE = 1024 * 1024

_STRONG_ETAG = re.compile(r'"[^"]+"')
_SIZE = re.compile(r"bytes \d+-\d+/(\d+)")

_NO_STORE = (
    "the answer is not a store's (200, no content, a quoted ETag): something else took the request; check the endpoint "
    "and proxies"
)
_NOT_OURS = "the store holds something else under this key: check the endpoint and proxies, then the object"
_OK = 200
_PRECONDITION_FAILED = (412, "PreconditionFailed")
_NO_SUCH_KEY = (404, "NoSuchKey")
_NO_SUCH_RANGE = (416, "InvalidRange")


class S3Store:
    """An `ObjectStore` in `RAW_BUCKET`."""

    __slots__ = ("_client", "_executor", "_loaded", "_models", "_put_arguments", "_settings", "_starting")

    def __init__(self, settings: Settings, executor: Executor) -> None:
        self._settings = settings
        self._executor = executor
        self._loaded: tuple[AioSession, AioConfig] | None = None
        self._models = _Models()
        self._client: S3Client | None = None
        self._starting: asyncio.Task[S3Client] | None = None
        self._put_arguments = _put_arguments(settings)

    async def start(self) -> None:
        """Load the SDK, find the credentials, build the client. The loop is held for some milliseconds only."""
        await self._ready("start")

    async def put(self, key: str, body: bytes, metadata: ObjectMetadata) -> None:
        """Store the body under the key."""
        await self._call("put", key, lambda client: self._put_object(client, key, body, metadata))

    async def create(self, key: str, body: bytes, metadata: ObjectMetadata) -> bool:
        """Store the body only if nothing has the key; False if something does."""
        create = self._create if self._settings.s3_conditional_puts else self._look_then_put
        return await self._call("create", key, lambda client: create(client, key, body, metadata))

    async def get(self, key: str) -> bytes:
        """Return the body."""

        async def get(client: S3Client) -> bytes:
            answer = await client.get_object(Bucket=self._put_arguments["Bucket"], Key=key)
            async with answer["Body"] as stream:
                body: bytes = await stream.read()
                return body

        return await self._call("get", key, get)

    async def delete(self, key: str) -> None:
        """Remove the key."""

        async def delete(client: S3Client) -> None:
            await client.delete_object(Bucket=self._put_arguments["Bucket"], Key=key)

        await self._call("delete", key, delete)

    async def close(self) -> None:
        """Close the client and its connections."""
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.cancel()
            await asyncio.wait((starting,))
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
        if not _is_stored(answer):
            told = f"{answer['ContentLength']} bytes of content, ETag {answer.get('ETag')}"[:LONGEST_TEXT]
            cause: dict[str, str | int] = {"error": told, "status": status_of(answer)}
            raise StorageError("put", key, _NO_STORE, transient=True, cause=cause)

    async def _create(self, client: S3Client, key: str, body: bytes, metadata: ObjectMetadata) -> bool:
        try:
            await self._put_object(client, key, body, metadata, only_new=True)
        except client.exceptions.ClientError as error:
            if verdict_of(error.response) == _PRECONDITION_FAILED:
                return False
            raise
        return True

    async def _look_then_put(self, client: S3Client, key: str, body: bytes, metadata: ObjectMetadata) -> bool:
        if await self._is_there(client, key, body):
            return False
        await self._put_object(client, key, body, metadata)
        return True

    async def _is_there(self, client: S3Client, key: str, body: bytes) -> bool:
        """Tell whether the object holds all that the body does; False if it is to be put. See the module's text."""
        try:
            head, size = await self._look(client, key)
        except client.exceptions.ClientError as error:
            verdict = verdict_of(error.response)
            if verdict == _NO_SUCH_KEY:
                return False
            if verdict == _NO_SUCH_RANGE and not body:  # an object of no bytes has no first one
                return True
            raise
        wanted, found = codec.event_count(body[: codec.HEAD_BYTES]), codec.event_count(head)
        if wanted is not None and found is not None:
            return found >= wanted
        if wanted is None and head == body[: codec.HEAD_BYTES]:
            return size >= len(body)
        cause = {"error": f"{size} bytes of content, which begin with {head!r}"}
        raise StorageError("look", key, _NOT_OURS, transient=True, cause=cause)

    async def _look(self, client: S3Client, key: str) -> tuple[bytes, int]:
        """Return the object's first bytes and its length. A store may ignore the range: no more is read than asked."""
        span = f"bytes=0-{codec.HEAD_BYTES - 1}"
        answer = await client.get_object(Bucket=self._put_arguments["Bucket"], Key=key, Range=span)
        size = _SIZE.fullmatch(answer.get("ContentRange", ""))
        head = b""
        async with answer["Body"] as stream:
            while len(head) < codec.HEAD_BYTES and (more := await stream.read(codec.HEAD_BYTES - len(head))):
                head += more
        return head, int(size[1]) if size else answer["ContentLength"]

    async def _call(self, operation: str, key: str, call: Callable[[S3Client], Awaitable[_Result]]) -> _Result:
        client = await self._ready(operation)
        try:
            # The client's own timeouts bound one connect and one pause between two reads, not the whole call.
            async with asyncio.timeout(self._settings.s3_timeout):
                return await call(client)
        except Exception as error:
            raise storage_error(operation, key, error) from error

    # ------------------------------------------------------------------------------------------- the client

    async def _ready(self, operation: str) -> S3Client:
        if self._client is not None:
            return self._client
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._connect())
            self._starting.add_done_callback(_fetch)
        starting = self._starting
        # Many calls may wait for one start; that one of them is cancelled must not take it from the others.
        await asyncio.wait((starting,))
        try:
            return starting.result()
        except Exception as error:
            raise storage_error(operation, self._put_arguments["Bucket"], error) from error

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
            load = partial(_load, self._settings, self._models)
            self._loaded = await loop.run_in_executor(self._executor, load)
        session, config = self._loaded
        # A client made without credentials stays without; a role's endpoint may only answer a little later.
        if await session.get_credentials() is None:
            raise StorageError("start", self._put_arguments["Bucket"], NO_CREDENTIALS, transient=True)
        creating = session.create_client("s3", endpoint_url=self._settings.s3_endpoint_url, config=config)
        client: S3Client = await creating.__aenter__()
        client.meta.events.register("before-call.s3", _follow_no_redirect)
        client.meta.events.register("before-parse.s3.PutObject", _keep_length)
        self._client = client
        return client


def _fetch(starting: asyncio.Task[S3Client]) -> None:
    """Take a start's exception, because every call that waited for it may have been cancelled meanwhile."""
    if not starting.cancelled():
        starting.exception()


def _put_arguments(settings: Settings) -> PutObjectRequestTypeDef:
    # The types name the values that AWS knows; which of them another store knows is for that store to say.
    chosen = {
        "ServerSideEncryption": settings.s3_sse,
        "SSEKMSKeyId": settings.s3_sse_kms_key_id,
        "StorageClass": settings.s3_storage_class,
        "Tagging": settings.s3_tags,
    }
    arguments = {"Bucket": settings.raw_bucket or "", "Key": "", "ContentType": CONTENT_TYPE}
    arguments.update((name, value) for name, value in chosen.items() if value is not None)
    return cast("PutObjectRequestTypeDef", arguments)


class _Models:
    """The SDK's models of services, read once and shared by all sessions that follow each other."""

    __slots__ = ("loader",)

    def __init__(self) -> None:
        self.loader: Any = None


def _load(settings: Settings, models: _Models) -> tuple[AioSession, AioConfig]:
    """Import the SDK and read its models; blocks for some tenths of a second of CPU, so it runs in the executor.

    The garbage collector is paused meanwhile: a full collection of a hundred thousand objects holds the interpreter,
    and with it the event loop, for 40 ms and more, and finds nothing. After the first time all of it is frozen, for the
    same reason: no later collection walks through the SDK's models again. A later session replaces one that failed, and
    what is frozen is never collected.
    """
    if models.loader is not None:
        return _import_and_warm(settings, models)
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _import_and_warm(settings, models)
    finally:
        gc.freeze()
        if collecting:
            gc.enable()


def _import_and_warm(settings: Settings, models: _Models) -> tuple[AioSession, AioConfig]:
    from aiobotocore.config import AioConfig
    from aiobotocore.session import get_session

    session = get_session()
    if models.loader is None:
        models.loader = session.get_component("data_loader")
    else:
        session.register_component("data_loader", models.loader)
    common: dict[str, Any] = {
        "region_name": settings.aws_region,
        "connect_timeout": settings.s3_timeout,
        "read_timeout": settings.s3_timeout,
        "max_pool_connections": settings.upload_concurrency + 1,
        "retries": {"total_max_attempts": 1},
        # The checksum is ours, in a header; the SDK's would be a trailer, which not every store can read.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    addressing = {"addressing_style": "path" if settings.s3_endpoint_url else "auto"}

    async def endpoint() -> str:
        # A client that is never used, in a loop of its own: making it reads all models into the session's cache, and
        # it tells which endpoint the SDK settled on. Given keys keep it from looking for credentials here.
        creating = session.create_client(
            "s3",
            endpoint_url=settings.s3_endpoint_url,
            aws_access_key_id="unused",
            aws_secret_access_key="unused",  # noqa: S106 - says what it is
            config=AioConfig(s3=addressing, **common),
        )
        async with creating as client:
            return str(client.meta.endpoint_url)

    secure = asyncio.run(endpoint()).startswith("https://")
    return session, AioConfig(s3={**addressing, "payload_signing_enabled": not secure}, **common)


def _follow_no_redirect(context: dict[str, Any], **_: object) -> None:
    """Tell the SDK that this request was redirected before: it follows one redirect, so it follows none.

    It asks for the bucket's region with calls that are redirected too, without an end if the answers name no region.
    """
    context.setdefault("s3_redirect", {})["redirected"] = True


def _keep_length(response_dict: Mapping[str, Any], customized_response_dict: dict[str, Any], **_: object) -> None:
    """Have the parsed answer to a put tell how much content came with it."""
    customized_response_dict["ContentLength"] = len(response_dict["body"])


# ---------------------------------------------------------------------------------------------------- answers


def _is_stored(answer: Mapping[str, Any]) -> bool:
    etag = str(answer.get("ETag", ""))
    return status_of(answer) == _OK and answer["ContentLength"] == 0 and _STRONG_ETAG.fullmatch(etag) is not None
