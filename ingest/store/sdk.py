"""The AWS SDK: imported once, read once, and kept from doing more than a request.

Owns how a session of the SDK is made, and the handlers that hold it back. Promises that its models are read once and
shared by all sessions that follow each other, off the loop, with the collector of cycles paused; that a session that
failed leaves nothing behind in the next one, and reads its files off the loop; that whatever a session asks, the
sources of credentials included, is sent as `transport` says; that a client follows no redirect and asks for no
`100 Continue`, since a store or a proxy that never says it would get nothing (RFC 9110, 10.1.1). Never finds
credentials, puts or gets.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ingest.store import evidence
from ingest.store.s3_errors import EndlessAnswer
from ingest.store.transport import LONGEST_ANSWER, bounded, first_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiobotocore.config import AioConfig  # type: ignore[import-untyped]  # it ships no types
    from aiobotocore.session import AioSession  # type: ignore[import-untyped]  # it ships no types
    from types_aiobotocore_s3.client import S3Client

    from ingest.config import Settings

_TOKEN_FILES: Final = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
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
            _end(helper)
        self._started.clear()

    async def _start(self, *command: str, stdout: int, stderr: int) -> _Helper:
        helper = await asyncio.create_subprocess_exec(*command, stdout=stdout, stderr=stderr)
        self._started = [started for started in self._started if started.returncode is None]
        self._started.append(helper)
        return _Helper(helper)


class _Helper:
    """A helper as the SDK waits for it: its document is read to a limit, and one that prints more is ended."""

    __slots__ = ("_process",)

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def communicate(self) -> tuple[bytes, bytes]:
        printed = (
            asyncio.ensure_future(first_of(self._process.stdout, LONGEST_ANSWER)),
            asyncio.ensure_future(_begin_of(self._process.stderr)),
        )
        try:
            out, told = await asyncio.gather(*printed)
        except EndlessAnswer:
            _end(self._process)
            await self._process.wait()
            raise
        finally:
            for reading in printed:
                reading.cancel()
        await self._process.wait()
        return out, told


async def _begin_of(stream: asyncio.StreamReader | None) -> bytes:
    """Read a stream to its end, and return how it begins: a helper may tell at length what it does."""
    begin = b""
    while stream is not None and (part := await stream.read(LONGEST_ANSWER)):
        begin += part[: LONGEST_ANSWER - len(begin)]
    return begin


def _end(helper: asyncio.subprocess.Process) -> None:
    """Kill a helper and close its pipes, which may be full, or held by what it has started. One that ended is left."""
    if helper.returncode is None:
        helper._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001 - a process has no close of its own


def open_session(models: Models) -> AioSession:
    """Return a session that has read the models, and the files of credentials. Blocks as long as their disks do."""
    from aiobotocore.config import AioConfig
    from aiobotocore.httpsession import AIOHTTPSession  # type: ignore[import-untyped]  # it ships no types
    from aiobotocore.session import get_session
    from aiobotocore.utils import (  # type: ignore[import-untyped]  # it ships no types
        AioContainerMetadataFetcher,
        AioIMDSFetcher,
        _RefCountedSession,
    )

    for asks in (AioContainerMetadataFetcher, AioIMDSFetcher):
        asks._ref_counted_session_cls = bounded(_RefCountedSession)  # noqa: SLF001 - it takes no class otherwise
    session = get_session()
    session.set_default_client_config(AioConfig(http_session_cls=bounded(AIOHTTPSession)))
    if models.loader is None:
        models.loader = session.get_component("data_loader")
    else:
        session.register_component("data_loader", models.loader)
    _ = session.full_config  # read here, because the sources read it on the loop
    return session


def read_tokens(session: AioSession) -> None:
    """Read the files of tokens to their limit. Blocks as long as their disks do; errors are the source's to tell."""
    profiles = session.full_config.get("profiles", {})
    profile = profiles.get(session.get_config_variable("profile") or "default", {})
    paths = [os.environ.get(name) for name in _TOKEN_FILES]
    for path in (*paths, profile.get("web_identity_token_file")):
        if not path:
            continue
        with suppress(OSError), Path(path).open("rb") as file:
            if len(file.read(LONGEST_ANSWER + 1)) > LONGEST_ANSWER:
                raise EndlessAnswer(f"{path} has more than {LONGEST_ANSWER} bytes")


def _import_and_warm(settings: Settings, models: Models) -> tuple[AioSession, AioConfig]:
    from aiobotocore.config import AioConfig
    from aiobotocore.httpsession import AIOHTTPSession

    session = open_session(models)
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
    return session, AioConfig(s3=signing, http_session_cls=bounded(AIOHTTPSession), **common)


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
