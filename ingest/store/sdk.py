"""The AWS SDK: imported once, read once, and kept from doing more than a request.

Owns how a session of the SDK is made, and the handlers that hold it back. Promises that its models are read once and
shared by all sessions that follow each other, off the loop, with the collector of cycles paused; that a session that
failed leaves nothing behind in the next one; that of an answer that is no object at most `LONGEST_ANSWER` is read; that
a client follows no redirect and asks for no `100 Continue`, since a store or a proxy that never says it would get
nothing (RFC 9110, 10.1.1). Never finds credentials, puts or gets.
"""

from __future__ import annotations

import asyncio
import gc
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from ingest.store import evidence
from ingest.store.s3_errors import EndlessAnswer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiobotocore.config import AioConfig  # type: ignore[import-untyped]  # it ships no types
    from aiobotocore.session import AioSession  # type: ignore[import-untyped]  # it ships no types
    from aiohttp import ClientResponse
    from botocore.awsrequest import AWSPreparedRequest  # type: ignore[import-untyped]  # it ships no types
    from types_aiobotocore_s3.client import S3Client

    from ingest.config import Settings

LONGEST_ANSWER: Final = 16 * 1024**2
"""Bytes of an error or of a page of a listing; 1,000 of the longest keys are a quarter of it."""
_ERRORS = 300
# A prolog and a document type begin with no letter.
_FIRST_ELEMENT = re.compile(rb"<(?:[\w.-]+:)?([A-Za-z][\w.-]*)")
_IS_TRUNCATED = re.compile(rb"<(?:[\w.-]+:)?IsTruncated>\s*(\w*)\s*</")
_MARKER = re.compile(rb"<(?:[\w.-]+:)?(?:Next)?(Marker)\b")
_DROPPED = {evidence.ROOT: _FIRST_ELEMENT, evidence.TRUNCATED: _IS_TRUNCATED, evidence.MARKER: _MARKER}


class Models:
    """The SDK's models of services, read once and shared by all sessions that follow each other."""

    __slots__ = ("loader",)

    def __init__(self) -> None:
        self.loader: Any = None


def load(settings: Settings, models: Models) -> tuple[AioSession, AioConfig]:
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


class Helpers:
    """The processes that a session starts for credentials (`credential_process`), so that one that hangs can be ended.

    The SDK leaves a helper alone when nobody waits for it any more; with one more a minute they would fill the machine.
    """

    __slots__ = ("_started",)

    def __init__(self) -> None:
        self._started: list[asyncio.subprocess.Process] = []

    def adopt(self, session: AioSession) -> None:
        """Have the session start its helper by us."""
        from aiobotocore.credentials import AioProcessProvider  # type: ignore[import-untyped]  # it ships no types

        sources = session.get_component("credential_provider")
        ours = AioProcessProvider(
            profile_name=session.get_config_variable("profile") or "default",
            load_config=lambda: session.full_config,
            popen=self._start,
        )
        sources.insert_after(ours.METHOD, ours)
        sources.remove(ours.METHOD)  # the first of that name, which is the SDK's own

    def end(self) -> None:
        """Kill those that still run."""
        for helper in self._started:
            if helper.returncode is None:
                with suppress(ProcessLookupError):
                    helper.kill()
        self._started.clear()

    async def _start(self, *command: str, stdout: int, stderr: int) -> asyncio.subprocess.Process:
        helper = await asyncio.create_subprocess_exec(*command, stdout=stdout, stderr=stderr)
        self._started = [started for started in self._started if started.returncode is None]
        self._started.append(helper)
        return helper


def open_session(models: Models) -> AioSession:
    """Return a session that has read nothing but the models yet. Blocks for a moment."""
    from aiobotocore.session import get_session

    session = get_session()
    if models.loader is None:
        models.loader = session.get_component("data_loader")
    else:
        session.register_component("data_loader", models.loader)
    return session


def _import_and_warm(settings: Settings, models: Models) -> tuple[AioSession, AioConfig]:
    from aiobotocore.config import AioConfig

    session = open_session(models)
    bounded = _bounded_session()
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
    signing = {**addressing, "payload_signing_enabled": not secure}
    return session, AioConfig(s3=signing, http_session_cls=bounded, **common)


class _Read:
    """An answer's bytes, in the place of the stream that they came from."""

    __slots__ = ("_body",)

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def read(self) -> bytes:
        return self._body


def _bounded_session() -> type:
    """Return the SDK's own way to send, but for how much it reads of an answer that is no object."""
    from aiobotocore.awsrequest import AioAWSResponse  # type: ignore[import-untyped]  # it ships no types
    from aiobotocore.httpsession import AIOHTTPSession  # type: ignore[import-untyped]  # it ships no types

    class BoundedSession(AIOHTTPSession):  # type: ignore[misc]  # it ships no types
        async def send(self, request: AWSPreparedRequest) -> AioAWSResponse:
            is_object, request.stream_output = request.stream_output, True
            answer = await super().send(request)
            if is_object and answer.status_code < _ERRORS:
                return answer
            body = await _read(answer.raw)
            return AioAWSResponse(answer.url, answer.status_code, answer.headers, _Read(body))

    return BoundedSession


async def _read(answer: ClientResponse) -> bytes:
    body = bytearray()
    try:
        while len(body) <= LONGEST_ANSWER and (part := await answer.content.readany()):
            body += part
        if len(body) <= LONGEST_ANSWER:
            await answer.read()  # nothing is left: it lets go of the connection
            return bytes(body)
    except BaseException:
        answer.close()
        raise
    answer.close()
    raise EndlessAnswer(f"{len(body)} bytes and more")


def hold_back(client: S3Client) -> None:
    """Register what keeps a client to one plain request a call."""
    client.meta.events.register("before-call.s3", _follow_no_redirect)
    client.meta.events.register("before-call.s3", _expect_nothing)
    client.meta.events.register("before-parse.s3.PutObject", _keep_length)
    client.meta.events.register("before-parse.s3.ListObjectsV2", _keep_words)


def _expect_nothing(params: dict[str, Any], **_: object) -> None:
    params["headers"].pop("Expect", None)


def _follow_no_redirect(context: dict[str, Any], **_: object) -> None:
    """Tell the SDK that this request was redirected before: it follows one redirect, so it follows none.

    It asks for the bucket's region with calls that are redirected too, without an end if the answers name no region.
    """
    context.setdefault("s3_redirect", {})["redirected"] = True


def _keep_length(response_dict: Mapping[str, Any], customized_response_dict: dict[str, Any], **_: object) -> None:
    """Have the parsed answer to a put tell how much content came with it."""
    customized_response_dict["ContentLength"] = len(response_dict["body"])


def _keep_words(response_dict: Mapping[str, Any], customized_response_dict: dict[str, Any], **_: object) -> None:
    """Have the parsed page of a listing tell what the parser drops: it takes any document, and any word for `false`."""
    for name, pattern in _DROPPED.items():
        if found := pattern.search(response_dict["body"]):
            customized_response_dict[name] = found[1].decode("ascii", "replace")
