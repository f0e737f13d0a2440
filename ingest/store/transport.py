"""The SDK's way to send, held to one answer for one request.

Owns the class of connections that clients and sources of credentials use. The SDK's own reads an answer however long
it is, gives a connection to the next request whatever came on it meanwhile, keeps cookies, and lets a connection that
is given up wait until its peer has read all of the body.

Promises:

    asked     an answer was read after its request. A connection on which something came unasked is closed, because its
              next answer would be taken for that of another request
    bounded   `LONGEST_PAGE` of a page of a listing is read, `LONGEST_ANSWER` of any other answer that is no object
    let go    a connection that is closed is gone at once, with what it had not sent
    strange   no cookie is sent: what stood in the store's place once says nothing to the store

Never tries twice, judges an answer, knows a key.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from ingest.store.s3_errors import EndlessAnswer

if TYPE_CHECKING:
    from aiobotocore.awsrequest import AioAWSResponse  # type: ignore[import-untyped]  # it ships no types
    from aiohttp import ClientRequest, ClientResponse, ClientSession, ClientTimeout
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace
    from botocore.awsrequest import AWSPreparedRequest  # type: ignore[import-untyped]  # it ships no types


LONGEST_PAGE: Final = 16 * 1024**2
"""1,000 of the longest keys are a quarter of it."""
LONGEST_ANSWER: Final = 64 * 1024
"""An error, or a document of credentials, is a few KiB. A tree of XML takes many times its length."""
_ERRORS: Final = 300
_LISTING: Final = "list-type=2"


class _Read:
    """An answer's bytes, in the place of the stream that they came from."""

    __slots__ = ("_body",)

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def read(self) -> bytes:
        return self._body


@cache
def bounded(base: type) -> type:
    """Return this class of connections of the SDK, held back."""
    from aiobotocore.awsrequest import AioAWSResponse
    from aiobotocore.httpsession import _ProxySSLTCPConnector  # type: ignore[import-untyped]  # it ships no types
    from aiohttp import ServerDisconnectedError

    class Connector(_ProxySSLTCPConnector):  # type: ignore[misc]  # it ships no types
        async def connect(self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout) -> Connection:  # noqa: ASYNC109 - aiohttp's
            connection: Connection = await super().connect(req, traces, timeout)
            if connection.protocol is None or connection.protocol.should_close:
                connection.close()
                raise ServerDisconnectedError("bytes came before the request that they would answer")
            return connection

        def _release(self, key: object, protocol: ResponseHandler, *, should_close: bool = False) -> None:
            transport = protocol.transport
            super()._release(key, protocol, should_close=should_close)
            if transport is not None and transport.is_closing():
                transport.abort()

    class Bounded(base):  # type: ignore[misc]  # it ships no types
        async def _create_connector(self, proxy_url: str | None) -> Connector:
            ours, theirs = await asyncio.to_thread(self._build_ssl_contexts, proxy_url)
            limit = self._max_pool_connections
            return Connector(limit=limit, ssl=ours, proxy_ssl_context=theirs, **self._connector_args)

        async def _get_session(self, proxy_url: str | None) -> ClientSession:
            session: ClientSession = await super()._get_session(proxy_url)
            session.cookie_jar.clear()
            return session

        async def send(self, request: AWSPreparedRequest) -> AioAWSResponse:
            is_object, request.stream_output = request.stream_output, True
            answer = await super().send(request)
            is_error = answer.status_code >= _ERRORS
            if is_object and not is_error:
                return answer
            is_page = _LISTING in request.url and not is_error
            body = await _read(answer.raw, LONGEST_PAGE if is_page else LONGEST_ANSWER)
            return AioAWSResponse(answer.url, answer.status_code, answer.headers, _Read(body))

    return Bounded


async def first_of(stream: Any, most: int) -> bytes:  # noqa: ANN401 - aiohttp's stream, or asyncio's
    """Read a stream to its end; `EndlessAnswer` if it has more than so many bytes."""
    body = bytearray()
    while len(body) <= most and (part := await stream.read(most)):
        body += part
    if len(body) > most:
        raise EndlessAnswer(f"{len(body)} bytes and more")
    return bytes(body)


async def _read(answer: ClientResponse, most: int) -> bytes:
    try:
        body = await first_of(answer.content, most)
        await answer.read()  # nothing is left: it lets go of the connection
    except EndlessAnswer as error:
        answer.close()
        raise EndlessAnswer(f"status {answer.status}, {error}", answer.status) from None
    except BaseException:
        answer.close()
        raise
    return body
