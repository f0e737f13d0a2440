"""What an SDK says on its connections and what it is told, byte for byte: a relay that listens in.

Owns one listening socket in front of a collector, in a thread of its own, and the exchanges that came over it. Promises
to change no byte; an exchange is noted when its answer was passed on. While there is no collector, a connection ends.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import threading
import urllib.parse
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from httptools import HttpRequestParser, HttpResponseParser

if TYPE_CHECKING:
    from collections.abc import Callable

PIECE = 65536
FORM = b"data="
"""So begins a body that PostHog's script sends from a page that is left."""


@dataclass
class Exchange:
    """A request and its status; None: it got no answer."""

    method: bytes = b""
    target: bytes = b""
    coding: bytes = b""
    body: bytearray = field(default_factory=bytearray)
    status: int | None = None

    @property
    def is_preflight(self) -> bool:
        """Whether a browser asks what it may send."""
        return self.method == b"OPTIONS"

    @property
    def text(self) -> str:
        """What it says, in plain: its query and its body."""
        body = bytes(self.body)
        if body.startswith(FORM):
            body = base64.b64decode(urllib.parse.unquote_to_bytes(body.removeprefix(FORM)))
        if body.startswith(b"\x1f\x8b"):
            body = gzip.decompress(body)
        return urllib.parse.unquote_plus(self.target.decode()) + body.decode()


class _Requests:
    """The requests of a connection, as its client writes them."""

    def __init__(self, heard: Callable[[Exchange], None]) -> None:
        self._heard = heard
        self._exchange = Exchange()
        self.parser = HttpRequestParser(self)

    def on_message_begin(self) -> None:
        self._exchange = Exchange()

    def on_url(self, url: bytes) -> None:
        self._exchange.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-encoding":
            self._exchange.coding = value

    def on_body(self, body: bytes) -> None:
        self._exchange.body += body

    def on_message_complete(self) -> None:
        self._exchange.method = self.parser.get_method()
        self._heard(self._exchange)


class _Answers:
    """The answers of a connection, in the order of its requests."""

    def __init__(self) -> None:
        self.complete: list[int] = []
        self.parser = HttpResponseParser(self)

    def on_message_complete(self) -> None:
        self.complete.append(self.parser.get_status_code())


class Relay:
    """Listens on `port` from `start` on; `target` is the collector's port, or None."""

    def __init__(self) -> None:
        self.target: int | None = None
        self.port = 0
        self.exchanges: list[Exchange] = []
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._run()), daemon=True)

    def start(self) -> Relay:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _run(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        unanswered: deque[Exchange] = deque()
        far = None
        try:
            if self.target is None:
                return
            far_reader, far = await asyncio.open_connection("127.0.0.1", self.target)
            directions = (
                asyncio.create_task(self._pass_requests(reader, far, unanswered)),
                asyncio.create_task(self._pass_answers(far_reader, writer, unanswered)),
            )
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            for task in directions:
                task.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
        except OSError:
            pass  # the collector is gone: the SDK's connection ends, as it would without a relay
        finally:
            self.exchanges += unanswered
            for one in filter(None, (writer, far)):
                with suppress(OSError):
                    one.close()

    async def _pass_requests(
        self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, unanswered: deque[Exchange]
    ) -> None:
        parser = _Requests(unanswered.append).parser
        while data := await reader.read(PIECE):
            parser.feed_data(data)
            to.write(data)
            await to.drain()

    async def _pass_answers(
        self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, unanswered: deque[Exchange]
    ) -> None:
        answers = _Answers()
        while data := await reader.read(PIECE):
            answers.parser.feed_data(data)
            to.write(data)
            await to.drain()
            for status in answers.complete:
                exchange = unanswered.popleft()
                exchange.status = status
                self.exchanges.append(exchange)
            answers.complete.clear()
