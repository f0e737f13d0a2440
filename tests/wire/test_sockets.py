"""The same over real sockets and uvloop: what a fake transport can only claim."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest
import uvloop

from ingest.config.settings import load
from ingest.event.line import EventEncoder
from ingest.event.pages import Pages
from ingest.telemetry import Budget, Reason
from ingest.telemetry.metrics import CONTENT_TYPE, Metrics
from ingest.wire.answers import AnswerBook
from ingest.wire.connection import Connection
from ingest.wire.door import house
from ingest.wire.flow import UNSENT_ANSWERS
from ingest.wire.headers import HeaderNames
from ingest.wire.layouts import Layouts
from ingest.wire.limits import SLICE, ConnectionLimits
from ingest.wire.tick import Tick
from tests.stand_ins.wire import WELL, post, read_answers, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

LOOPS = {"uvloop": uvloop.run, "asyncio": asyncio.run}
READ_BYTES = 1 << 18


class WatchedTick(Tick):
    """Notes the most bytes that waited for one turn, and the most that one client left unsent."""

    most_read = most_unsent = 0

    def run(self) -> None:
        self.most_read = max(self.most_read, sum(len(data) for _, data in self.arrivals.reads))
        super().run()
        for connection in self.crowd:
            transport = connection._flow._transport
            if transport is not None:
                self.most_unsent = max(self.most_unsent, transport.get_write_buffer_size())


@contextlib.asynccontextmanager
async def listening(kernel_buffer: int) -> AsyncIterator[tuple[WatchedTick, tuple[str, int]]]:
    loop = asyncio.get_running_loop()
    settings = load({})
    encoder = EventEncoder(settings)
    tick = WatchedTick(
        loop,
        ConnectionLimits.of(settings),
        encoder,
        AnswerBook(settings.cors_origins),
        Layouts(encoder.headers),
        Pages(ready=lambda: True, metrics=lambda: (CONTENT_TYPE, b""), status=lambda: WELL),
        Metrics(),
        lambda turn: turn.settle(committed=True),
        lambda: False,
        Budget(settings.max_buffer_bytes),
        max_connections=100,
    )
    failures: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _loop, context: failures.append(context))
    listener = socket.create_server(("127.0.0.1", 0))
    for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        listener.setsockopt(socket.SOL_SOCKET, buffer, kernel_buffer)
    address = listener.getsockname()
    connection = partial(Connection, tick, HeaderNames(encoder.headers), house(settings))
    server = await loop.create_server(connection, sock=listener)
    try:
        yield tick, address
    finally:
        server.close()
        tick.abort()
        await asyncio.sleep(0)
    assert failures == []


@pytest.fixture(params=LOOPS.values(), ids=LOOPS.keys())
def converse(request: pytest.FixtureRequest) -> Callable[..., WatchedTick]:
    """Return a way to serve a client that runs in a thread of its own, with plain blocking calls."""

    def run(client: Callable[[socket.socket], None], *, kernel_buffer: int = 1 << 20) -> WatchedTick:
        async def main() -> WatchedTick:
            with ThreadPoolExecutor(1) as thread:
                async with listening(kernel_buffer) as (tick, address):
                    with socket.create_connection(address, timeout=20) as sock:
                        await asyncio.get_running_loop().run_in_executor(thread, client, sock)
                    return tick

        return request.param(main())

    return run


def read_to_end(sock: socket.socket) -> bytes:
    received = bytearray()
    while data := sock.recv(1 << 16):
        received += data
    return bytes(received)


REFUSED = {
    "an event": (request("POST", "/collect", "Content-Length: 300000"), 300_000, 413),
    "many events": (request("POST", "/collect/batch", "Content-Length: 6000000"), 6_000_000, 413),
    "chunks": (request("POST", "/collect", "Transfer-Encoding: chunked") + b"400000\r\n", 1 << 22, 413),
    "a body behind a head": (request("POST", "/collect", "X: " + "x" * 20_000, "Content-Length: 9"), 2_000_000, 431),
}


def test_a_refusal_reaches_a_client_that_reads_nothing_before_it_has_sent_all(converse):
    def client(sock: socket.socket) -> None:
        address = sock.getpeername()
        for head, size, status in REFUSED.values():
            with socket.create_connection(address, timeout=20) as other:
                other.sendall(head + bytes(size))  # in the midst of which a reset would be met
                assert [answer.status for answer in read_answers(read_to_end(other))] == [status]

    tick = converse(client, kernel_buffer=1 << 16)
    assert tick.metrics.rejected[Reason.BODY_TOO_LARGE] == 3


def test_a_client_that_ends_its_half_with_the_request_is_answered(converse):
    requests = [post(b"1", "Connection: close"), post(b"1", version="1.0"), post(b"1"), b"nonsense\r\n\r\n"]

    def client(sock: socket.socket) -> None:
        address = sock.getpeername()
        for data in requests * 10:
            with socket.create_connection(address, timeout=20) as other:
                other.sendall(data)
                other.shutdown(socket.SHUT_WR)
                (answer,) = read_answers(read_to_end(other))
                assert answer.status == (400 if data.startswith(b"nonsense") else 200)

    converse(client)


def test_a_client_that_does_not_read_is_fed_no_further_and_loses_nothing(converse):
    count = 30_000

    def client(sock: socket.socket) -> None:
        data = request("GET", "/collect", host="") * count
        sent = 0
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        sock.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            while sent < len(data):
                sent += sock.send(data[sent : sent + 65536])
        assert sent < len(data), "the server reads on though nobody takes its answers"
        sock.settimeout(20)
        received = bytearray()
        while sent < len(data):
            readable, writable, _ = select.select([sock], [sock], [], 20)
            if writable:
                sent += sock.send(data[sent : sent + 65536])
            if readable:
                received += sock.recv(1 << 20)
        sock.shutdown(socket.SHUT_WR)
        received += read_to_end(sock)
        assert len(read_answers(received)) == count
        answer_size.append(len(received) // count + 1)

    answer_size: list[int] = []
    tick = converse(client, kernel_buffer=65536)
    a_slice = SLICE // len(request("GET", "/collect", host="")) + 1
    assert UNSENT_ANSWERS < tick.most_unsent <= UNSENT_ANSWERS + 2 * a_slice * answer_size[0]


def test_a_fast_sender_is_read_once_a_turn(converse):
    def client(sock: socket.socket) -> None:
        sock.sendall(post(b"x" * 16000) * 256)
        sock.shutdown(socket.SHUT_WR)
        assert len(read_answers(read_to_end(sock))) == 256

    tick = converse(client)
    assert tick.most_read <= READ_BYTES
