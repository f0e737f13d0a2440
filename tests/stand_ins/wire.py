"""A connection without a network: a loop, a transport and a commit that stand still until a test moves them.

`FakeLoop` keeps time and what was scheduled; `turn` is one turn of the event loop. `FakeTransport` is strict where the
real ones are lenient: an answer written after `close` is a failure, not a warning. `Wire` is a `Tick` with everything
around it; `Wire.events` are the bodies that were committed, in order. Nothing here sleeps.
"""

from __future__ import annotations

import json
import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ingest.config.settings import load
from ingest.event.access import Access, key_headers
from ingest.event.line import EventEncoder
from ingest.event.pages import Pages
from ingest.telemetry import Budget
from ingest.telemetry.metrics import CONTENT_TYPE, Metrics
from ingest.telemetry.status import Phase, Status
from ingest.wire.answers import AnswerBook
from ingest.wire.connection import Connection
from ingest.wire.door import Door, house
from ingest.wire.headers import HeaderNames
from ingest.wire.layouts import Layouts
from ingest.wire.limits import ConnectionLimits
from ingest.wire.proxied import Proxied
from ingest.wire.secured import Contexts, Pace, Secured
from ingest.wire.tick import Tick

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ingest.wire.turn import Turn

    Made = Connection | Proxied | Secured

NOW = 1_764_721_594
DATE = b"Wed, 03 Dec 2025 00:26:34 GMT"
SWEEP_SECONDS = 0.5
LOCAL = ("127.0.0.1", 40000)
WELL = Status(Phase.SERVING, NOW, 3, 2, 0, 0, 1, 0, 1 << 30, None)


class FakeTimer:
    """What `call_later` gives back."""

    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeLoop:
    """Time and scheduled calls; none of them moves by itself."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.ready: deque[Callable[[], None]] = deque()
        self.timers: list[FakeTimer] = []
        self.failures: list[BaseException] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, call: Callable[..., None], *args: Any) -> None:
        self.ready.append(lambda: call(*args))

    def call_later(self, delay: float, call: Callable[..., None], *args: Any) -> FakeTimer:
        timer = FakeTimer(self.now + delay, lambda: call(*args))
        self.timers.append(timer)
        return timer

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.failures.append(context["exception"])

    def turn(self) -> None:
        """Run what is scheduled now, and not what that schedules."""
        for _ in range(len(self.ready)):
            self.ready.popleft()()

    def settle(self) -> None:
        """Turn until nothing is left to do."""
        for _ in range(100_000):
            if not self.ready:
                return
            self.turn()
        raise AssertionError("the loop never comes to rest")

    def advance(self, seconds: float) -> None:
        """Let time pass, and fire what is due on the way."""
        until = self.now + seconds
        while True:
            due = [timer for timer in self.timers if not timer.cancelled and timer.when <= until]
            if not due:
                break
            timer = min(due, key=lambda one: one.when)
            self.timers.remove(timer)
            self.now = max(self.now, timer.when)
            timer.call()
            self.settle()
        self.now = until


class FakeTransport:
    """One side of a connection whose other side is the test.

    The client reads at once, unless `stuck`; then what is sent piles up in `unsent`, with the protocol's callbacks at
    the watermarks. What the client sends while reading is paused waits in `kernel`.
    """

    def __init__(self, loop: FakeLoop, protocol: Made, peer: tuple[str, int] = ("203.0.113.9", 40000)) -> None:
        self.loop = loop
        self.protocol = protocol
        self.peer = peer
        self.sent = bytearray()
        self.unsent = bytearray()
        self.largest_unsent = 0
        self.kernel: deque[bytes | None] = deque()
        self.stuck = False
        self.reading = True
        self.closing = False
        self.gone = False
        self.half_closed = False
        self.ended = False
        """The client has ended its half, and the protocol knows."""
        self.end_seen_at: float | None = None
        self.reset = False
        self._high = 65536
        self._paused = False

    # What the protocol calls.

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.peer if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        del low
        self._high = 65536 if high is None else high

    def set_protocol(self, protocol: Made) -> None:
        self.protocol = protocol

    def write(self, data: bytes) -> None:
        if self.half_closed:
            raise RuntimeError("Cannot call write() after write_eof()")
        assert not self.closing, f"an answer was written after close: {data[:40]!r}"
        self.unsent += data
        self.largest_unsent = max(self.largest_unsent, len(self.unsent))
        if not self.stuck:
            self.read_by_client()
        elif len(self.unsent) > self._high and not self._paused:
            self._paused = True
            assert not isinstance(self.protocol, Proxied), "no answer is due before the header"
            self.protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return len(self.unsent)

    def write_eof(self) -> None:
        assert not self.half_closed, "half-closed twice"
        self.half_closed = True
        self._sent_all()

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self.reading = False
            self._sent_all()

    def abort(self) -> None:
        if not self.gone:
            self.reset = True
            self.closing = True
            self.unsent.clear()
            self._lose()

    def is_closing(self) -> bool:
        return self.closing

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        if not self.closing:
            self.reading = False

    def resume_reading(self) -> None:
        if not self.closing and not self.reading:
            self.reading = True
            if self.ended:  # as uvloop has it
                self.kernel.append(None)
            self.loop.call_soon(self._deliver)

    # What the client does.

    def receive(self, data: bytes | None) -> None:
        """Have the client send bytes, or (None) end its half."""
        self.kernel.append(data)
        self._deliver()

    def read_by_client(self, most: int | None = None) -> None:
        """Have the client take what was sent."""
        taken = self.unsent[:most]
        del self.unsent[: len(taken)]
        self.sent += taken
        if self._paused and len(self.unsent) <= self._high // 4:
            self._paused = False
            assert not isinstance(self.protocol, Proxied)
            self.protocol.resume_writing()
        self._sent_all()

    def vanish(self) -> None:
        """Have the client reset the connection."""
        self.closing = True
        self._lose(ConnectionResetError())

    def _deliver(self) -> None:
        while self.kernel and self.reading and not self.gone:
            data = self.kernel.popleft()
            if data is None:
                assert not self.ended, "its end is heard twice"
                self.ended = True
                self.reading = False
                if not self.protocol.eof_received():
                    self.close()
                return
            self.protocol.data_received(data)

    def _sent_all(self) -> None:
        if not self.unsent and (self.closing or self.half_closed) and self.end_seen_at is None:
            self.end_seen_at = self.loop.now
        if not self.unsent and self.closing:
            self._lose()

    def _lose(self, error: Exception | None = None) -> None:
        if not self.gone:
            self.gone = True
            self.loop.call_soon(self.protocol.connection_lost, error)


@dataclass
class Answer:
    """An answer as a client reads it."""

    status: int
    headers: dict[str, str]
    body: bytes
    raw: bytes = b""


def read_answers(sent: bytes | bytearray, heads: Iterable[int] = ()) -> list[Answer]:
    """Take answers apart as a client does; those with the numbers `heads` answer a HEAD. Fails on anything else."""
    answers = []
    without_body = set(heads)
    data = bytes(sent)
    at = final = 0
    while at < len(data):
        end = data.find(b"\r\n\r\n", at)
        assert end > 0, f"a torn answer: {data[at:]!r}"
        head = data[at:end]
        at = end + 4
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status, phrase = first.split(" ", 2)
        assert version == "HTTP/1.1"
        assert phrase
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(": ")
            assert colon, f"a torn header: {line!r}"
            assert name not in headers, f"a doubled header: {line!r}"
            headers[name] = value
        length = int(headers.get("Content-Length", "0"))
        if final in without_body:
            length = 0
        body = data[at : at + length]
        at += length
        assert len(body) == length, "an answer without its end"
        answers.append(Answer(int(status), headers, body, head))
        final += status != "100"
    return answers


@dataclass
class Client:
    """A connection and what a test may do with it."""

    wire: Wire
    transport: FakeTransport
    connection: Connection

    def send(self, *pieces: bytes) -> Client:
        """Send each piece in a turn of its own."""
        for piece in pieces:
            self.transport.receive(piece)
            self.wire.loop.settle()
        return self

    def end(self) -> Client:
        """End the client's half, as `shutdown(SHUT_WR)` does."""
        self.transport.receive(None)
        self.wire.loop.settle()
        return self

    def answers(self, heads: Iterable[int] = ()) -> list[Answer]:
        """All answers, 100 Continue left out."""
        return [answer for answer in read_answers(self.transport.sent, heads) if answer.status != 100]

    @property
    def statuses(self) -> list[int]:
        """The status of each answer, 100 Continue included; not for answers to HEAD."""
        return [answer.status for answer in read_answers(self.transport.sent)]

    @property
    def sees_end(self) -> bool:
        """Whether the client reads the end after the last answer."""
        return self.transport.end_seen_at is not None

    @property
    def closed(self) -> bool:
        return self.transport.gone


class Unlearning(Layouts):
    """Knows no layout, and never will."""

    def learn(self, data: bytes, now: float) -> None:
        pass


@dataclass
class Wire:
    """A tick with everything around it. `settings` are environment variables."""

    settings: dict[str, str] = field(default_factory=dict)
    deferred: bool = False
    """Whether answers wait for `sync`."""
    peer: tuple[str, int] = ("203.0.113.9", 40000)
    contexts: Contexts | None = None
    """Whoever has the certificate, with TLS."""
    proxied: bool = False
    """Whether trusted peers begin with a PROXY protocol header."""
    learns: bool = True
    """Whether layouts are learned; without them everything goes through the parser's callbacks."""

    def __post_init__(self) -> None:
        settings = load(self.settings)
        self.loop = FakeLoop()
        self.pace = Pace(self.loop)  # type: ignore[arg-type]
        self.metrics = Metrics()
        self.lines: list[bytes] = []
        self.refuse = False
        """Whether commits are refused."""
        self.budget = Budget(settings.max_buffer_bytes)
        self.ready = True
        self.page = b"# metrics\n"
        self.status: Status | None = None
        self.clock = float(NOW)
        self.stopwatch = 0.0
        self.commits: deque[Turn] = deque()
        self.most_held = 0
        self.rests: list[float] = []
        """How long turns waited for company."""
        encoder = EventEncoder(settings)
        keys = key_headers(settings)
        learns = encoder.also_reads is None and not keys
        self.layouts = (Layouts if self.learns else Unlearning)(encoder.headers, settings.collect_paths, learns=learns)
        self.tick = Tick(
            self.loop,  # type: ignore[arg-type]
            ConnectionLimits.of(settings),
            encoder,
            AnswerBook(settings.cors_origins),
            self.layouts,
            Pages(
                ready=lambda: self.ready, metrics=lambda: (CONTENT_TYPE, self.page), status=lambda: self.status or WELL
            ),
            self.metrics,
            self._commit,
            self._refusing,
            self.budget,
            max_connections=settings.max_connections,
            deferred=self.deferred,
            access=Access(settings, encoder.address_of, self.loop.time),
            hidden=[secret.encode() for _, secret in settings.write_keys or ()],
            wall_clock=lambda: self.clock,
            stopwatch=lambda: self.stopwatch,
            sleep=self.rests.append,
        )
        self.names = HeaderNames((*encoder.headers, *keys), encoder.also_reads)
        self.house = house(settings)
        self._sweep_at = self.loop.now + SWEEP_SECONDS

    def connect(self, peer: tuple[str, int] | None = None, door: Door | None = None) -> Client:
        """Accept a client."""
        made: Made
        door = door or self.house
        if self.contexts is not None:
            made = Secured(self.contexts, self.pace, self.tick, self.names, door)
        else:
            made = (Proxied if self.proxied else Connection)(self.tick, self.names, door)
        transport = FakeTransport(self.loop, made, peer or self.peer)
        made.connection_made(transport)  # type: ignore[arg-type]
        connection = made if isinstance(made, Connection) else made._connection
        self.loop.settle()
        return Client(self, transport, connection)

    @property
    def events(self) -> list[Any]:
        """The bodies of the events that were committed."""
        return [json.loads(line)["body"] for line in self.lines]

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    def sync(self, *, succeeds: bool = True) -> None:
        """Settle the oldest commit that waits."""
        turn = self.commits.popleft()
        if succeeds:
            self.lines += b"".join(turn.lines).splitlines(keepends=True)
        turn.settle(committed=succeeds)
        self.loop.settle()

    def sync_all(self) -> None:
        while self.commits:
            self.sync()

    def pass_time(self, seconds: float) -> None:
        """Let time pass with the sweep that the server does twice a second."""
        until = self.loop.now + seconds
        while self._sweep_at <= until:
            self.clock += self._sweep_at - self.loop.now
            self.loop.now = self._sweep_at
            self._sweep_at += SWEEP_SECONDS
            self.tick.sweep()
            self.loop.settle()
        self.clock += until - self.loop.now
        self.loop.now = until

    def _commit(self, turn: Turn) -> None:
        assert sum(line.count(b"\n") for line in turn.lines) == turn.events
        assert len(turn.lines) == sum(bool(events) for *_, events in turn.entries)
        assert turn.size == sum(map(len, turn.lines))
        assert turn.seconds == int(self.clock)
        if self.deferred:
            self.commits.append(turn)
            return
        if not self.refuse:
            self.lines += b"".join(turn.lines).splitlines(keepends=True)
        turn.settle(committed=not self.refuse)

    def _refusing(self) -> bool:
        self.most_held = max(self.most_held, self.budget.requests)
        return self.refuse or self.budget.lacks()


def counted(wire: Wire) -> dict[str, int]:
    """The requests answered, and those refused by reason."""
    return {answer.value: count for answer, count in wire.metrics.requests} | {
        reason.value: count for reason, count in wire.metrics.rejected
    }


def pieces_of(data: bytes, seed: int) -> Iterator[bytes]:
    """Cut bytes at random places, small pieces and large ones."""
    draw = random.Random(seed)
    at = 0
    while at < len(data):
        size = draw.choice((1, 2, 3, 7, 40, 200, 9000)) + draw.randrange(3)
        yield data[at : at + size]
        at += size


def post(body: bytes = b"{}", *headers: str, target: str = "/collect", version: str = "1.1") -> bytes:
    """Return a whole POST with the length declared."""
    return request("POST", target, *headers, f"Content-Length: {len(body)}", version=version) + body


def request(method: str, target: str, *headers: str, version: str = "1.1", host: str | None = "c.example") -> bytes:
    """Return the head of a request."""
    lines = [f"{method} {target} HTTP/{version}"]
    if host is not None:
        lines.append(f"Host: {host}")
    return ("\r\n".join([*lines, *headers]) + "\r\n\r\n").encode("latin-1")


def chunked(*chunks: bytes, trailers: Sequence[str] = (), extension: str = "") -> bytes:
    """Return chunks, the last one, and trailers."""
    body = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension.encode(), chunk) for chunk in chunks)
    return body + b"0\r\n" + b"".join(line.encode() + b"\r\n" for line in trailers) + b"\r\n"
