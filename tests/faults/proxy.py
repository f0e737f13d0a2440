"""A TCP proxy between the uploader and S3 that breaks things on order.

Owns one listening port and one thread with an event loop. It reads HTTP/1.1 only as far as message framing, so that it
knows when a request is whole and when its answer has arrived; bytes are forwarded as they came, never rewritten.

`proxy.fault = Fault(...)` sets what happens to the requests that begin from then on; `HEALTHY` heals it. Connections
that were swallowed stay swallowed, as on a real network. `refuse` and `listen` close and open the port; while it is
closed its number stays reserved. Hooks run in the proxy's thread at two exact instants of a put:

  on_request(exchange)  the request is whole and has not been forwarded      (put in flight)
  on_answer(exchange)   upstream has answered, nothing is handed back yet    (put stored, answer lost)

A hook that returns False ends the exchange there with a reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

_HEAD_LIMIT = 256 * 1024
_CHUNK = 64 * 1024
_END_OF_HEAD = b"\r\n\r\n"
_RST_ON_CLOSE = struct.pack("ii", 1, 0)
_REASONS = {400: "Bad Request", 403: "Forbidden", 500: "Internal Server Error", 503: "Service Unavailable"}


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to a request. Each field is one fault; they combine."""

    latency: float = 0.0  # seconds before the request goes upstream
    answer_delay: float = 0.0  # seconds that upstream's answer is held back: stored, but late
    blackhole: bool = False  # everything is read, nothing is ever answered
    reset_request_after: int | None = None  # RST once that many bytes of the request have been read
    reset_answer_after: int | None = None  # RST once that many bytes of the answer have been handed back
    bandwidth: int | None = None  # bytes per second of the request
    answer: tuple[int, str] | None = None  # status and S3 error code that the proxy answers itself
    page: bytes | None = None  # a whole answer that the proxy gives itself, as what stands in a store's place does
    method: str | None = None  # only requests of this method suffer
    head: bytes = b""  # only requests whose head has these bytes suffer

    def touches(self, method: str, head: bytes) -> bool:
        return self.method in (None, method) and self.head in head


HEALTHY = Fault()
SLOW_DOWN = Fault(answer=(503, "SlowDown"))
FORBIDDEN = Fault(answer=(403, "AccessDenied"))
INTERNAL_ERROR = Fault(answer=(500, "InternalError"))


@dataclass(slots=True)
class Exchange:
    """One request through the proxy and what became of it."""

    method: str
    target: str
    began: float
    status: int | None = None  # upstream's or the proxy's own
    outcome: str = "open"


class _CutError(Exception):
    """This exchange ends with a reset; its text says why."""


@dataclass(slots=True)
class FaultProxy:
    """`with FaultProxy(("127.0.0.1", port)) as proxy:` and the uploader's endpoint is `proxy.url`."""

    upstream: tuple[str, int]
    fault: Fault = HEALTHY
    on_request: Callable[[Exchange], bool | None] | None = None
    on_answer: Callable[[Exchange], bool | None] | None = None
    exchanges: list[Exchange] = field(default_factory=list)
    port: int = 0
    _guard: socket.socket | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _thread: threading.Thread | None = None
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        # The guard never listens: it keeps the port's number ours while we refuse connections.
        self._guard = reserve_port()
        self.port = self._guard.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        self.listen()
        return self

    def __exit__(self, *_exc: object) -> None:
        assert self._loop is not None
        assert self._thread is not None
        assert self._guard is not None
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._guard.close()

    def listen(self) -> None:
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def refuse(self) -> None:
        """New connections are refused and those that are open are reset."""
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(10)

    def puts(self, prefix: str = "") -> list[Exchange]:
        """PUTs of objects seen so far whose target contains `prefix`; what is told of hours does not count."""
        seen = [e for e in list(self.exchanges) if e.method == "PUT" and "_manifest/" not in e.target]
        return [e for e in seen if prefix in e.target]

    async def _listen(self) -> None:
        if self._server is None:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port))
            self._server = await asyncio.start_server(self._connected, sock=listener, limit=_HEAD_LIMIT)

    async def _shut(self) -> None:
        if self._server is not None:
            loop = asyncio.get_running_loop()
            for listener in self._server.sockets:
                loop.remove_reader(listener)
            # The loop's own task for who was accepted in this instant leaks the connection once the server is closed.
            while accepting := asyncio.all_tasks() - self._tasks - {asyncio.current_task()}:
                await asyncio.wait(accepting)
            self._server.close()
            self._server = None
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        for writer in self._writers:
            _reset(writer)
        self._writers.clear()
        await asyncio.sleep(0)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._loop is not None
        self._writers.add(writer)
        task = self._loop.create_task(self._accept(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
            writer.close()
        except (_CutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            _reset(writer)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; True while the connection may carry another."""
        try:
            head = await reader.readuntil(_END_OF_HEAD)
        except asyncio.IncompleteReadError as end:
            if end.partial:
                raise
            return False
        method, target, _version = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        exchange = Exchange(method, target, time.monotonic())
        self.exchanges.append(exchange)
        fault = self.fault if self.fault.touches(method, head) else HEALTHY
        try:
            return await self._carry(exchange, fault, head, reader, writer)
        except BaseException as error:
            exchange.outcome = str(error) or type(error).__name__
            raise

    async def _carry(
        self,
        exchange: Exchange,
        fault: Fault,
        head: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        if fault.blackhole:
            exchange.outcome = "swallowed"
            while await reader.read(_CHUNK):
                pass
            return False
        if _field(head, b"expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request = await _read_request(fault, head, reader)
        if self.on_request is not None and self.on_request(exchange) is False:
            raise _CutError("hook ended the request")
        if fault.latency:
            await asyncio.sleep(fault.latency)
        if fault.page is not None:
            answer, keep = fault.page, True
        elif fault.answer is not None:
            answer, keep = _own_answer(*fault.answer, head_only=exchange.method == "HEAD"), True
        else:
            answer, keep = await self._ask_upstream(exchange, request)
        exchange.status = int(answer[9:12]) if answer[9:12].isdigit() else None  # a page need not be HTTP
        if self.on_answer is not None and self.on_answer(exchange) is False:
            raise _CutError("hook ended the answer")
        if fault.answer_delay:
            await asyncio.sleep(fault.answer_delay)
        if fault.reset_answer_after is not None:
            writer.write(answer[: fault.reset_answer_after])
            await writer.drain()
            raise _CutError("reset in the answer")
        writer.write(answer)
        await writer.drain()
        exchange.outcome = "answered"
        return keep

    async def _ask_upstream(self, exchange: Exchange, request: bytes) -> tuple[bytes, bool]:
        reader, writer = await asyncio.open_connection(*self.upstream, limit=_HEAD_LIMIT)
        try:
            writer.write(request)
            return await _read_answer(reader, head_only=exchange.method == "HEAD")
        finally:
            writer.close()


def reserve_port() -> socket.socket:
    """A bound socket that never listens: its port refuses connections until someone else listens on it."""
    guard = socket.socket()
    guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    guard.bind(("127.0.0.1", 0))
    return guard


async def _read_request(fault: Fault, head: bytes, reader: asyncio.StreamReader) -> bytes:
    data = bytearray(head)

    async def take(chunk: bytes) -> None:
        data.extend(chunk)
        limit = fault.reset_request_after
        if limit is not None and len(data) >= limit:
            raise _CutError("reset in the request")
        if fault.bandwidth:
            await asyncio.sleep(len(chunk) / fault.bandwidth)

    await take(b"")
    step = max(1, fault.bandwidth // 20) if fault.bandwidth else _CHUNK
    if fault.reset_request_after is not None:
        step = min(step, 1024)
    if _field(head, b"transfer-encoding").lower().endswith(b"chunked"):
        await _read_chunked(reader, take)
    else:
        left = int(_field(head, b"content-length") or 0)
        while left:
            chunk = await reader.read(min(left, step))
            if not chunk:
                raise _CutError("the uploader went away")
            left -= len(chunk)
            await take(chunk)
    return bytes(data)


async def _read_answer(reader: asyncio.StreamReader, *, head_only: bool) -> tuple[bytes, bool]:
    head = await reader.readuntil(_END_OF_HEAD)
    while head[9:10] == b"1":
        head = await reader.readuntil(_END_OF_HEAD)
    data = bytearray(head)
    keep = head.startswith(b"HTTP/1.1") and _field(head, b"connection").lower() != b"close"

    async def take(chunk: bytes) -> None:
        data.extend(chunk)

    if head_only or head[9:12] in (b"204", b"304"):
        pass
    elif _field(head, b"transfer-encoding").lower().endswith(b"chunked"):
        await _read_chunked(reader, take)
    elif length := _field(head, b"content-length"):
        await take(await reader.readexactly(int(length)))
    else:
        keep = False
        await take(await reader.read())
    return bytes(data), keep


async def _read_chunked(reader: asyncio.StreamReader, take: Callable[[bytes], object]) -> None:
    while True:
        line = await reader.readuntil(b"\r\n")
        await take(line)  # type: ignore[misc]
        size = int(line.split(b";")[0], 16)
        if size == 0:
            break
        await take(await reader.readexactly(size + 2))  # type: ignore[misc]
    while True:
        trailer = await reader.readuntil(b"\r\n")
        await take(trailer)  # type: ignore[misc]
        if trailer == b"\r\n":
            return


def _field(head: bytes, name: bytes) -> bytes:
    """The value of a header field, empty when it is absent."""
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return b""


def _own_answer(status: int, code: str, *, head_only: bool) -> bytes:
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
    head = f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}\r\nContent-Type: application/xml\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{'' if head_only else body}".encode()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
    writer.transport.abort()
