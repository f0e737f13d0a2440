"""A fast keep-alive client that numbers every event and never sends a number twice.

Owns the record of what became of each number: sent (the answer never came: unknown), acknowledged (a whole 2xx was
read) or refused (any other status). The ledger compares it with the store. The body of a number can be computed again
(`Sent.body`), so the store is checked for content as well as for presence.
"""

from __future__ import annotations

import asyncio
import enum
import secrets
import threading
import time
from array import array
from collections import Counter, deque
from typing import TYPE_CHECKING

import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable

_END_OF_HEAD = b"\r\n\r\n"
_TICK = 0.005
_GET_EVERY = 10
_TEXT = 'plain "quoted" back\\slash {"n": [1, 2]} tab\t line\nbreak \u00e9\u4e2d\u6587\U0001f600 \x01\x7f <&> '
_NOISE = (_TEXT * 40).encode()
_AGENTS = [f"Mozilla/5.0 (X11; Linux x86_64; rv:{n}.0) Gecko/20100101" for n in range(97)]


class Fate(enum.IntEnum):
    """What the client knows of a number."""

    UNKNOWN = 1  # sent, and the connection died before a whole answer was read
    ACKNOWLEDGED = 2
    REFUSED = 3


class Sent:
    """Every number ever sent in one test, over all rounds and restarts. Written by one thread at a time."""

    def __init__(self, size: int = 600, *, gets: bool = True) -> None:
        """`size`: the longest body's filling in bytes; `gets`: every tenth event comes as a GET."""
        self.run = secrets.token_hex(4)
        self.size = size
        self.gets = gets
        self.fates = bytearray()
        self.sent_at = array("d")
        self.settled_at = array("d")
        self.statuses: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self.fates)

    def new(self) -> int:
        number = len(self.fates)
        self.fates.append(Fate.UNKNOWN)
        self.sent_at.append(time.time())
        self.settled_at.append(0.0)
        return number

    def settle(self, number: int, status: int) -> None:
        self.fates[number] = Fate.ACKNOWLEDGED if 200 <= status < 300 else Fate.REFUSED
        self.settled_at[number] = time.time()
        self.statuses[status] += 1

    def count(self, fate: Fate) -> int:
        return self.fates.count(fate)

    @property
    def acknowledged(self) -> int:
        return self.count(Fate.ACKNOWLEDGED)

    @property
    def refused(self) -> int:
        return self.count(Fate.REFUSED)

    def numbers(self, fate: Fate) -> list[int]:
        return [n for n, f in enumerate(self.fates) if f == fate]

    def is_get(self, number: int) -> bool:
        return self.gets and number % _GET_EVERY == 3

    def body(self, number: int) -> str:
        """What the event of this number holds, exactly."""
        mark = f"id={number:09d}&run={self.run}&"
        if self.is_get(number):
            return mark + "q=" + "x" * (number % 50)
        pad = _NOISE[: (number * 7919) % self.size]
        return mark + pad.decode(errors="ignore")

    def request(self, number: int) -> bytes:
        agent = _AGENTS[number % len(_AGENTS)]
        head = (
            f"Host: collector.example\r\nUser-Agent: {agent}\r\nCookie: session={number * 2654435761 % 2**32:08x}\r\n"
            f"X-Forwarded-For: 203.0.{number // 250 % 250}.{number % 250}\r\nAccept: */*\r\n"
        )
        body = self.body(number)
        if self.is_get(number):
            return f"GET /collect?{body} HTTP/1.1\r\n{head}\r\n".encode()
        data = body.encode()
        return f"POST /collect HTTP/1.1\r\n{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


class Load:
    """Sends until told to stop, or until `count` numbers are settled, in a thread of its own.

    `rate` is events per second over all connections (None: as fast as answers come); `pipeline` is how many requests a
    connection may have unanswered. A dead connection is made anew, the numbers it carried stay unknown.
    """

    def __init__(
        self,
        sent: Sent,
        port: int,
        *,
        count: int | None = None,
        rate: float | None = None,
        connections: int = 8,
        pipeline: int = 1,
    ) -> None:
        self.sent = sent
        self.port = port
        self.count = count
        self.rate = rate
        self.connections = connections
        self.pipeline = pipeline
        self.began = 0.0
        self._left = count if count is not None else 2**62
        self._allowance = 0.0
        self._open: set[_Connection] = set()
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._done: asyncio.Event | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, name="load", daemon=True)

    def start(self) -> Load:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def stop(self, grace: float = 5.0) -> None:
        """No new numbers; waits at most `grace` for the answers that are due, then drops the connections."""
        assert self._loop is not None
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._finish, grace)
        self.join(grace + 10)

    def join(self, timeout: float = 60.0) -> None:
        """Waits until `count` numbers are settled."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"the client is still at it: {self.sent.statuses}, {self._left} to go"

    def _main(self) -> None:
        uvloop.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._done = asyncio.Event()
        self.began = time.monotonic()
        connecting = {self._loop.create_task(self._keep_connected()) for _ in range(self.connections)}
        pacing = self._loop.create_task(self._pace())
        self._ready.set()
        await self._done.wait()
        for task in (*connecting, pacing):
            task.cancel()
        await asyncio.gather(*connecting, pacing, return_exceptions=True)
        for connection in list(self._open):
            connection.transport.abort()
        await asyncio.sleep(0)

    async def _pace(self) -> None:
        """Hands out the allowance; what a slow collector left unused is kept for a second at most."""
        if self.rate is None:
            self._allowance = float("inf")
            return
        before = time.monotonic()
        while True:
            await asyncio.sleep(_TICK)
            now = time.monotonic()
            self._allowance = min(self.rate, self._allowance + (now - before) * self.rate)
            before = now
            for connection in list(self._open):
                connection.fill()

    async def _keep_connected(self) -> None:
        assert self._loop is not None
        while not self._stopping:
            try:
                _, connection = await self._loop.create_connection(lambda: _Connection(self), "127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            await connection.lost.wait()
            self.check()

    def _finish(self, grace: float) -> None:
        assert self._loop is not None
        assert self._done is not None
        self._stopping = True
        self._left = 0
        self._loop.call_later(grace, self._done.set)
        self.check()

    def check(self) -> None:
        """Ends the run when there is nothing left to send and no answer is due."""
        assert self._done is not None
        if self._left <= 0 and not any(c.due for c in self._open):
            self._stopping = True
            self._done.set()

    def take(self, most: int) -> int:
        """How many numbers a connection may send now."""
        n = int(min(most, self._left, self._allowance))
        self._left -= n
        self._allowance -= n
        return n

    def opened(self, connection: _Connection) -> None:
        self._open.add(connection)

    def closed(self, connection: _Connection) -> None:
        self._open.discard(connection)


class _Connection(asyncio.Protocol):
    __slots__ = ("buffer", "due", "load", "lost", "transport", "writable")

    transport: asyncio.Transport

    def __init__(self, load: Load) -> None:
        self.load = load
        self.due: deque[int] = deque()
        self.buffer = bytearray()
        self.lost = asyncio.Event()
        self.writable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.load.opened(self)
        self.fill()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self.fill()

    def fill(self) -> None:
        if not self.writable or self.transport.is_closing():
            return
        n = self.load.take(self.load.pipeline - len(self.due))
        if n <= 0:
            return
        sent = self.load.sent
        requests = []
        for _ in range(n):
            number = sent.new()
            self.due.append(number)
            requests.append(sent.request(number))
        self.transport.write(b"".join(requests))

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while self.due and self._read_answer():
            pass
        if self.due or not self.buffer:
            self.fill()
        self.load.check()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        # What is still due stays unknown for ever: its number is never sent again.
        self.due.clear()
        self.load.closed(self)
        self.lost.set()

    def _read_answer(self) -> bool:
        head_end = self.buffer.find(_END_OF_HEAD)
        if head_end < 0:
            return False
        head = bytes(self.buffer[:head_end]).lower()
        length = 0
        at = head.find(b"\r\ncontent-length:")
        if at >= 0:
            length = int(head[at + 17 :].split(b"\r\n", 1)[0])
        end = head_end + 4 + length
        if len(self.buffer) < end:
            return False
        del self.buffer[:end]
        status = int(head[9:12])
        if status >= 200:
            self.load.sent.settle(self.due.popleft(), status)
        if b"\r\nconnection: close" in head:
            self.transport.close()
            return False
        return True


def send(sent: Sent, port: int, count: int, *, until: Callable[[], bool] | None = None, **how: object) -> None:
    """Sends `count` events and returns when every answer is read (or `until` says so)."""
    load = Load(sent, port, count=count, **how).start()  # type: ignore[arg-type]
    if until is None:
        load.join()
        return
    while not until():
        time.sleep(0.01)
    load.stop()
