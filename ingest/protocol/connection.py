"""One HTTP/1.1 connection: states, limits, deadlines and back-pressure.

Rules: whatever depends on the bytes of the wire lives in this file, and nothing here knows what becomes of an event
after its line is in the tick. A connection is read to the same requests and the same final answers for every split of
its bytes into reads (RFC 9112 says what the requests are; httptools, the parser of Node.js, reads them).

Theory of operation. `data_received` only queues the read for the tick. The tick calls `feed`, which feeds the parser, which
calls `on_message_begin`, `on_url`, `on_header` …, `on_headers_complete`, `on_body` …, `on_message_complete`. The last adds
an event's line and its answer to the tick. A refusal mutes the callbacks; what was complete before it is answered first.

The phase of the byte stream decides the deadline, and what the end of input means:

| state           | entered by                        | deadline                          | end of input            |
| --------------- | --------------------------------- | --------------------------------- | ----------------------- |
| idle            | connect, end of a request         | IDLE_TIMEOUT                      | closed                  |
| headers         | first byte of a request           | READ_TIMEOUT, for head and body   | closed                  |
| body            | end of the head                   | that of headers goes on           | closed                  |
| awaiting-commit | idle, with answers owed (`fsync`) | none: the disk's time             | answered, then closed   |
| closing         | a refusal, `Connection: close`    | 2 s or 64 KiB more, read and left | closed                  |

Limits. The head, and all framing that surrounds a body (chunk sizes and extensions, trailers), is counted in raw bytes:
what was fed less what came out as body. The parser names no offsets, so that a slice which ends inside a later request of
a pipeline is measured again, line by line, by `_Meter`; a slice that begins inside a request is fed line by line.

Memory. A connection holds at most one read of the event loop (256 KiB), MAX_HEADER_BYTES, MAX_BODY_SIZE, and 64 KiB of
unsent answers plus those of one slice; all of it counts into MAX_BUFFER_BYTES.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url
from httptools.parser.errors import HttpParserInvalidURLError

from ingest.event import COOKIE
from ingest.protocol.answers import (
    BAD_FRAMING,
    BAD_HOST,
    BAD_JSON,
    BODY_TOO_LARGE,
    CONTINUE,
    HEAD_TOO_LARGE,
    MALFORMED,
    NOT_FOUND,
    UNAVAILABLE_CLOSE,
    Answers,
    ClientError,
    method_not_allowed,
)
from ingest.protocol.tick import Entry, Tick

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ingest.event import Peer

SLICE: Final = 8192
"""Bytes fed at once: the smallest requests in it cannot cause much more than 64 KiB of answers."""
UNSENT_ANSWERS: Final = 65536
PENDING_ANSWERS: Final = 256
LINGER_SECONDS: Final = 2.0
LINGER_BYTES: Final = 65536
_NEVER: Final = float("inf")


class State(Enum):
    """Where a connection stands between two reads."""

    IDLE = "idle"
    HEADERS = "headers"
    BODY = "body"
    AWAITING_COMMIT = "awaiting-commit"
    CLOSING = "closing"


class Deadline(NamedTuple):
    """What ends the patience with a state, and how."""

    limit: str
    on_expiry: str


STATES: Final[dict[State, Deadline]] = {
    State.IDLE: Deadline("IDLE_TIMEOUT", "close"),
    State.HEADERS: Deadline("READ_TIMEOUT", "close"),
    State.BODY: Deadline("READ_TIMEOUT", "close"),
    State.AWAITING_COMMIT: Deadline("none", "wait"),
    State.CLOSING: Deadline("2 s", "abort"),
}

_IDLE: Final = State.IDLE
_HEADERS: Final = State.HEADERS
_BODY: Final = State.BODY
_CLOSING: Final = State.CLOSING

_HOST: Final = b"host"
_ORIGIN: Final = b"origin"
_EXPECT: Final = b"expect"
_UPGRADE: Final = b"upgrade"
_CONTENT_LENGTH: Final = b"content-length"
_TRANSFER_ENCODING: Final = b"transfer-encoding"
_REQUESTED_HEADERS: Final = b"access-control-request-headers"
_FRAMING_HEADERS: Final = frozenset(
    {_HOST, _ORIGIN, _EXPECT, _UPGRADE, _CONTENT_LENGTH, _TRANSFER_ENCODING, _REQUESTED_HEADERS}
)
_FIRST_LINE_WINS: Final = frozenset({b"user-agent", _ORIGIN, _CONTENT_LENGTH})

_COLLECT: Final = b"/collect"
_METHODS: Final = {
    _COLLECT: "GET, HEAD, POST, OPTIONS",
    b"/health": "GET, HEAD",
    b"/ready": "GET, HEAD",
    b"/metrics": "GET, HEAD",
}
_POST_EVENT: Final = 1
_GET_EVENT: Final = 2
_OTHER: Final = 0
_SPELLINGS_LEARNED: Final = 1024


class HeaderNames(dict[bytes, bytes]):
    """Learns which spellings of header names are wanted, so that one lookup answers for each header of a request.

    Maps a raw name to its lower-case form, or to nothing when nobody reads it. Keeps at most 1,024 spellings.
    """

    __slots__ = ("_wanted",)

    def __init__(self, wanted: frozenset[bytes]) -> None:
        super().__init__()
        self._wanted = wanted | _FRAMING_HEADERS

    def __missing__(self, raw: bytes) -> bytes:
        lower = raw.lower()
        wanted = lower if lower in self._wanted else b""
        if len(self) < _SPELLINGS_LEARNED and len(raw) <= 64:
            self[raw] = wanted
        return wanted


def _discard(_data: bytes) -> None:
    """Take the place of a lost transport's `write`."""


class Connection(asyncio.Protocol):
    """One client's connection; made by the event loop's server for each it accepts."""

    __slots__ = (
        "_answers",
        "_body",
        "_body_limit",
        "_body_size",
        "_declared",
        "_ending",
        "_eof",
        "_expecting",
        "_fields",
        "_framing",
        "_head",
        "_held",
        "_input",
        "_keep_alive",
        "_kind",
        "_linger",
        "_lingered",
        "_method",
        "_muted",
        "_names",
        "_parser",
        "_peer",
        "_phase",
        "_query",
        "_replay",
        "_slice",
        "_slow",
        "_stalled",
        "_stalled_until",
        "_tick",
        "_transport",
        "_url",
        "deadline",
        "pending",
        "write",
    )

    def __init__(self, tick: Tick, names: HeaderNames) -> None:
        # For the connection's life.
        self._tick = tick
        self._names = names
        self._slice = min(SLICE, tick.limits.head)
        self._body_limit = tick.limits.body
        self._parser = HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._peer: Peer
        self.write: Callable[[bytes], None] = _discard

        # Where the byte stream stands.
        self._phase = _IDLE
        self.deadline = _NEVER
        self._stalled = False
        self._stalled_until = _NEVER
        self._slow = False
        self._input = b""
        self._eof = False
        self._ending = False
        self._linger = False
        self._lingered = 0
        self._framing = 0
        self._held = 0
        self.pending = 0

        # The request under way.
        self._muted = False
        self._url = b""
        self._fields: dict[bytes, bytes] = {}
        self._head: dict[bytes, bytes] = {}
        self._body: bytes | bytearray = b""
        self._body_size = 0
        self._declared = 0
        self._kind = _OTHER
        self._method = b""
        self._query = b""
        self._keep_alive = True
        self._expecting: dict[bytes, bytes] | None = None
        self._answers: Answers = tick.book.plain
        self._replay = b""

    # The transport's callbacks, in the order in which they fire.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a TCP server's
        """Arm the first deadline: a connection that stays silent is idle."""
        tick = self._tick
        self._transport = transport
        self.write = transport.write
        transport.set_write_buffer_limits(high=UNSENT_ANSWERS)
        name = transport.get_extra_info("peername")
        self._peer = tick.encoder.peer(name[0] if name else "")
        self.deadline = tick.loop_time() + tick.limits.idle_timeout
        if not tick.admit(self):
            self.write(tick.book.plain.refused_close)
            self._linger = True
            self._end()
            tick.schedule()

    def data_received(self, data: bytes) -> None:
        """Queue a read for the tick."""
        tick = self._tick
        if not tick.reads:
            tick.schedule()
        tick.reads.append((self, data))

    def eof_received(self) -> bool:
        """Keep our half open: what is owed is still answered."""
        self._eof = self._slow = True
        self.data_received(b"")
        return True

    def pause_writing(self) -> None:
        """Stop feeding: the client reads slower than it asks."""
        self._stall(self._tick.read_deadline)

    def resume_writing(self) -> None:
        """Go on with what was read meanwhile."""
        self._unstall()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget everything; events already in the tick are still committed."""
        del exc
        self._transport = None
        self.write = _discard
        self._phase = _CLOSING
        self._ending = self._muted = self._slow = True
        self._input = b""
        self._release()
        self._tick.dismiss(self)

    # The tick's calls.

    def feed(self, data: bytes) -> None:
        """Read one read's bytes; complete requests end up in the tick."""
        if self._slow or len(data) > self._slice:
            self._feed_carefully(data)
        elif self._phase is _IDLE:
            before = len(self._tick.lines)
            offset = self._feed_parser(data)
            if self._phase is not _IDLE or self._ending or offset >= 0:
                self._part_fed(data, before, offset)
            else:
                self.deadline = self._tick.idle_deadline
        else:
            self._feed_by_lines(data)
            self._slice_fed()

    def answered(self) -> None:
        """One answer that waited for a group commit has been written."""
        self.pending -= 1
        if self._ending:
            if not self.pending:
                self.finish()
        elif self._stalled and self._stalled_until is _NEVER and self.pending < PENDING_ANSWERS // 2:
            self._unstall()
        elif not self.pending and self._phase is _IDLE:
            if self._tick.draining:
                self.drain()
            self.deadline = self._tick.loop_time() + self._tick.limits.idle_timeout

    def await_commit(self) -> None:
        """One answer is owed until the group commit is through."""
        self.pending += 1
        if self.pending >= PENDING_ANSWERS and not self._stalled:
            self._stall(_NEVER)

    def finish(self) -> None:
        """End the connection, all answers written.

        After a refusal our half is closed first and what still comes is read and left, for a while: closing with bytes
        unread makes the kernel send a reset, which can overtake the answer (RFC 9112 §9.6).
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._linger and not self._eof:
            self._linger = False
            self.deadline = self._tick.loop_time() + LINGER_SECONDS
            transport.resume_reading()
            transport.write_eof()
        else:
            transport.close()

    @property
    def is_over(self) -> bool:
        """All is answered, and no request will be read any more."""
        return self._ending and not self.pending

    @property
    def state(self) -> State:
        """Where the connection stands between two reads."""
        return State.AWAITING_COMMIT if self._phase is _IDLE and self.pending else self._phase

    def is_overdue(self, now: float) -> bool:
        """Tell whether the deadline of the state, or the patience with a client that does not read, has passed."""
        return now >= self._stalled_until or (now >= self.deadline and self.state is not State.AWAITING_COMMIT)

    def expire(self) -> None:
        """Close without a word; a client that stopped reading would not read one either."""
        metrics = self._tick.metrics
        if self._phase is _CLOSING:
            self.abort()
        elif self._stalled:
            metrics.timed_out_answer += 1
            self.abort()
        elif self._transport is not None:
            if self._phase is _IDLE:
                metrics.timed_out_idle += 1
            else:
                metrics.timed_out_request += 1
            self._transport.close()

    def drain(self) -> None:
        """End at once if nothing is under way; else the next answer will be the last."""
        if self._phase is _IDLE and not self.pending and not self._input and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()

    # The parser's callbacks, in the order in which they fire.

    def on_message_begin(self) -> None:
        """Begin a request: head and body are due within READ_TIMEOUT from here."""
        self._phase = _HEADERS
        self.deadline = self._tick.read_deadline

    def on_url(self, url: bytes) -> None:
        """Take the target; the parser hands it over in pieces where reads split it."""
        self._url = self._url + url if self._url else url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the headers somebody reads. Trailers come here too, into fields that nobody reads any more."""
        name = self._names[name]
        if name:
            fields = self._fields
            if name in fields:
                self._repeated(name, value)
            else:
                fields[name] = value

    def on_headers_complete(self) -> None:
        """Decide what the request is; refuse it now if its head is reason enough."""
        if self._muted:
            return
        head = self._head = self._fields
        self._fields = {}
        self._phase = _BODY
        parser = self._parser
        self._answers = self._answers_for(head) if _ORIGIN in head else self._tick.book.plain
        if _HOST not in head and parser.get_http_version() != "1.0":
            self._reject(BAD_HOST)
            return
        self._keep_alive = parser.should_keep_alive() and not self._tick.draining
        if _CONTENT_LENGTH in head:
            self._declared = int(head[_CONTENT_LENGTH])
            if self._declared > self._body_limit:
                self._reject(BODY_TOO_LARGE)
                return
        else:
            self._declared = 0
        if self._url == _COLLECT and parser.get_method() == b"POST":
            self._kind = _POST_EVENT
            self._url = b""
        else:
            self._route(parser.get_method())
        # One test finds the rare headers absent.
        if len(head) > 1 and not _RARE.isdisjoint(head):
            self._heed_rare_headers(head)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body: of one that declared its length almost always the only one."""
        size = self._body_size
        self._body_size = size + len(body)
        if self._body_size > self._body_limit:
            self._reject(BODY_TOO_LARGE)
        elif self._kind != _POST_EVENT:
            return
        elif not size:
            self._body = body
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body

    def on_message_complete(self) -> None:
        """Add the event, or the page, to the tick."""
        if self._muted:
            return
        self._phase = _IDLE
        if self._fields:
            self._fields = {}  # trailers (RFC 9110 §6.5.1): dropped, or the next request would inherit them
        kind = self._kind
        if kind == _POST_EVENT:
            body = self._body
            self._body = b""
            self._body_size = 0
        else:
            self._body_size = 0
            if kind == _OTHER:
                self._show_page()
                return
            body = self._query
        tick = self._tick
        encoder = tick.encoder
        if encoder.embed_json and kind == _POST_EVENT:
            line = encoder.encode_json(tick.seconds, self._head, self._peer, bytes(body))
            if line is None:
                self._answer(self._answers.refuse(BAD_JSON, close=not self._keep_alive))
                tick.count_rejected(BAD_JSON)
                return
        else:
            line = encoder.encode(tick.seconds, self._head, self._peer, body)
        answers = self._answers
        tick.lines.append(line)
        if self._keep_alive:
            tick.entries.append(
                Entry(self, answers.stored if kind == _POST_EVENT else answers.pixel, answers.refused)
            )
        else:
            answer = answers.stored_close if kind == _POST_EVENT else answers.pixel_close
            tick.entries.append(Entry(self, answer, answers.refused_close))
            self._end()

    # Requests other than a plain POST of an event.

    def _route(self, method: bytes) -> None:
        """Tell events from pages by path and method, for any form of target (RFC 9112 §3.2)."""
        target = self._url
        self._url = b""
        if not target.startswith(b"/") and target != b"*":
            try:
                url = parse_url(target)
            except HttpParserInvalidURLError:
                url = None
            path = (url.path or b"/") if url is not None else target
            query = (url.query or b"") if url is not None else b""
        else:
            path, _, query = target.partition(b"#")[0].partition(b"?")
        self._kind = _OTHER
        self._method = method
        self._query = path
        if path == _COLLECT:
            if method == b"POST":
                self._kind = _POST_EVENT
            elif method == b"GET":
                self._kind = _GET_EVENT
                self._query = query
                if len(query) > self._body_limit:
                    self._reject(BODY_TOO_LARGE)
        if method == b"CONNECT":
            # What follows a CONNECT is no HTTP: the parser would stop here.
            self._reject(method_not_allowed(_METHODS[_COLLECT])._replace(close=True))

    def _show_page(self) -> None:
        method = self._method
        path = self._query
        close = not self._keep_alive
        answers = self._answers
        tick = self._tick
        head_only = method == b"HEAD"
        if path not in _METHODS:
            tick.count_rejected(NOT_FOUND)
            self._answer(answers.refuse(NOT_FOUND, close=close, head_only=head_only))
        elif method.decode("latin-1") not in _METHODS[path].split(", "):
            error = method_not_allowed(_METHODS[path])
            tick.count_rejected(error)
            self._answer(answers.refuse(error, close=close, head_only=head_only))
        elif method == b"OPTIONS":
            head = self._head
            self._answer(
                tick.book.preflight(head.get(_ORIGIN), _METHODS[path], head.get(_REQUESTED_HEADERS), close=close)
            )
        elif path == _COLLECT:
            self._answer(answers.build(200, close=close))
        else:
            status, kind, body = self._page(path)
            headers = [("Content-Type", kind), ("Cache-Control", "no-store")]
            if status == 503:
                headers.append(("Retry-After", "1"))
            self._answer(answers.build(status, headers, body, close=close, head_only=head_only))

    def _page(self, path: bytes) -> tuple[int, str, bytes]:
        if path == b"/metrics":
            kind, text = self._tick.pages.metrics()
            return 200, kind, text
        if path == b"/ready" and not self._tick.pages.ready():
            return 503, "text/plain; charset=utf-8", b"draining\n"
        return 200, "text/plain; charset=utf-8", b"ok\n"

    def _answer(self, answer: bytes) -> None:
        self._tick.answer_in_turn(self, answer)
        if not self._keep_alive:
            self._end()

    def _repeated(self, name: bytes, value: bytes) -> None:
        """Join lines of one name (RFC 9110 §5.2; cookies: RFC 6265 §5.4), or take the first where only one may be."""
        if self._phase is _BODY:
            return
        if name == _HOST:
            self._reject(BAD_HOST)
        elif name not in _FIRST_LINE_WINS:
            self._fields[name] += (b"; " if name == COOKIE else b", ") + value

    def _heed_rare_headers(self, head: dict[bytes, bytes]) -> None:
        parser = self._parser
        if _TRANSFER_ENCODING in head and parser.get_http_version() == "1.0":
            # RFC 9112 §6.1: a server must treat the framing of such a message as faulty.
            self._reject(BAD_FRAMING)
            return
        if head.get(_EXPECT, b"").lower() == b"100-continue" and parser.get_http_version() != "1.0":
            self._expecting = head
            if self._kind == _POST_EVENT and self._tick.over_budget():
                self._reject(UNAVAILABLE_CLOSE)
                return
        if _UPGRADE in head and parser.should_upgrade() and not self._ending:
            # RFC 9110 §7.8: a server may ignore Upgrade. The parser cannot: it reports the end of the message here, and
            # then stops. The request goes on in `_resume_after_upgrade`.
            self._muted = True
            if _TRANSFER_ENCODING in head:
                self._replay = b"Transfer-Encoding: %b\r\n" % head[_TRANSFER_ENCODING]
            elif self._declared:
                self._replay = b"Content-Length: %d\r\n" % self._declared

    def _resume_after_upgrade(self) -> None:
        """Put a fresh parser behind a head that has only the framing headers; the request itself is already known."""
        deadline = self.deadline
        parser = self._parser = HttpRequestParser(self)
        framing = self._replay
        self._replay = b""
        if framing:
            keep = b"" if self._keep_alive else b"Connection: close\r\n"
            parser.feed_data(b"POST / HTTP/1.1\r\nHost: x\r\n%b%b\r\n" % (framing, keep))
            self._url = b""
            self._fields = {}
            self._phase = _BODY
            self.deadline = deadline
            self._muted = False
        else:
            self._muted = False
            self._phase = _BODY
            self.on_message_complete()
            self._framing = 0

    # Refusals and the end.

    def _reject(self, error: ClientError) -> None:
        """Refuse the request under way and read no further; the first reason stands."""
        if self._ending:
            return
        tick = self._tick
        tick.count_rejected(error)
        if self._phase is not _BODY:
            self._answers = self._answers_for(self._fields)
        tick.answer_in_turn(self, self._answers.refuse(error, close=True))
        self._linger = True
        self._end()

    def _answers_for(self, fields: dict[bytes, bytes]) -> Answers:
        book = self._tick.book
        return book.of(fields[_ORIGIN]) if _ORIGIN in fields else book.plain

    def _end(self) -> None:
        """Answer nothing after this."""
        self._ending = self._muted = self._slow = True
        self._phase = _CLOSING
        self._input = b""
        self._body = b""
        self._tick.closing.append(self)

    # Feeding.

    def _feed_parser(self, data: bytes) -> int:
        """Feed the parser; return -1, or how much of the bytes stand before those that an ignored Upgrade held up."""
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            if not self._ending:
                return int(upgrade.args[0])
        except HttpParserCallbackError:
            raise
        except HttpParserError:
            if not self._ending:
                self._reject(MALFORMED)
        if self._ending:
            self._phase = _CLOSING
        return -1

    def _feed_carefully(self, data: bytes) -> None:
        """Feed a slice of what is there; keep the rest for the next turn."""
        if self._phase is _CLOSING:
            self._drop(data)
            return
        if data:
            self._input = self._input + data if self._input else data
        if not self._stalled:
            piece = self._input[: self._slice]
            self._input = self._input[self._slice :]
            if piece:
                if self._phase is _IDLE:
                    before = len(self._tick.lines)
                    offset = self._feed_parser(piece)
                    self._part_fed(piece, before, offset)
                else:
                    self._feed_by_lines(piece)
                    self._slice_fed()
        if self._ending:
            return
        transport = self._transport
        if self._input:
            self._slow = True
            self._hold()
            if transport is not None:
                transport.pause_reading()
            if not self._stalled:
                self.data_received(b"")
        elif self._eof:
            self._end()
        elif not self._stalled:
            self._slow = False
            if transport is not None and not transport.is_reading():
                transport.resume_reading()

    def _part_fed(self, data: bytes, before: int, offset: int) -> None:
        """Measure what a slice that began between requests has left unfinished."""
        if self._ending:
            return
        alone = len(self._tick.lines) == before
        if offset >= 0:
            self._framing = offset if alone else _Meter().measure(data[:offset])
            self._resume_after_upgrade()
            if not self._ending:
                self._feed_by_lines(data[offset:])
        elif self._phase is _IDLE:
            self._framing = 0
        else:
            self._framing = len(data) - self._body_size if alone else _Meter().measure(data)
        self._slice_fed()

    def _slice_fed(self) -> None:
        if self._ending:
            return
        if self._phase is _IDLE:
            self.deadline = self._tick.idle_deadline
            if self._held:
                self._hold()
            return
        self._hold()
        if self._framing >= self._tick.limits.head:
            self._reject(HEAD_TOO_LARGE)
        elif self._expecting is not None and self._phase is _BODY:
            awaited = self._expecting is self._head
            self._expecting = None
            if awaited and not self._body_size:
                self._tick.answer_in_turn(self, CONTINUE)
                self._tick.metrics.requests -= 1

    def _feed_by_lines(self, data: bytes) -> None:
        """Feed so that every byte is known to be framing or body, and the head's limit is met to the byte."""
        limit = self._tick.limits.head - 1
        at, end = 0, len(data)
        while at < end and not self._ending:
            if self._phase is _BODY and self._declared:
                stop = min(end, at + self._declared - self._body_size)
            else:
                line = data.find(b"\n", at) + 1 or end
                stop = min(line, at + max(limit - self._framing, 1))
            piece = data[at:stop]
            body = self._body_size
            offset = self._feed_parser(piece)
            if offset >= 0:
                self._framing += offset
                self._resume_after_upgrade()
                stop = at + offset
            elif self._phase is _IDLE:
                self._framing = 0
            else:
                self._framing += len(piece) - (self._body_size - body)
                if self._framing > limit and not self._ending:
                    self._reject(HEAD_TOO_LARGE)
            at = stop

    # Back-pressure.

    def _stall(self, until: float) -> None:
        self._stalled = self._slow = True
        self._stalled_until = until
        if self._transport is not None:
            self._transport.pause_reading()

    def _unstall(self) -> None:
        self._stalled = False
        self._stalled_until = _NEVER
        if not self._ending:
            self.data_received(b"")

    def _hold(self) -> None:
        """Account for what this connection holds; refuse the request when all connections hold too much."""
        unfinished = self._phase is not _IDLE
        held = len(self._input) + (self._framing + self._body_size if unfinished else 0)
        self._tick.held += held - self._held
        self._held = held
        if unfinished and held and self._tick.over_budget():
            self._reject(UNAVAILABLE_CLOSE)

    def _release(self) -> None:
        self._tick.held -= self._held
        self._held = 0

    def _drop(self, data: bytes) -> None:
        """Read and leave what comes after the end; at most 64 KiB of it."""
        self._lingered += len(data)
        if self._transport is not None and (self._lingered > LINGER_BYTES or self._eof) and not self.pending:
            self._transport.close()


_RARE: Final = frozenset({_TRANSFER_ENCODING, _EXPECT, _UPGRADE})


class _Meter:
    """Reads a slice that begins between requests once more, to tell how many framing bytes its last request has."""

    __slots__ = ("_body_size", "_declared", "_idle", "_in_body", "_length")

    def __init__(self) -> None:
        self._idle = True
        self._in_body = False
        self._declared = 0
        self._body_size = 0
        self._length = 0

    def on_message_begin(self) -> None:
        self._idle = self._in_body = False
        self._length = self._body_size = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body and name.lower() == _CONTENT_LENGTH:
            self._length = int(value)

    def on_headers_complete(self) -> None:
        self._in_body = True
        self._declared = self._length

    def on_body(self, body: bytes) -> None:
        self._body_size += len(body)

    def on_message_complete(self) -> None:
        self._idle = True
        self._in_body = False
        self._body_size = 0

    def measure(self, data: bytes) -> int:
        """Return the bytes of the unfinished request at the end of `data` that are not body; 0 when there is none."""
        parser: Any = HttpRequestParser(self)
        framing = at = 0
        end = len(data)
        while at < end:
            if self._in_body and self._declared:
                stop = min(end, at + self._declared - self._body_size)
            else:
                stop = data.find(b"\n", at) + 1 or end
            body = self._body_size
            try:
                parser.feed_data(data[at:stop])
            except HttpParserUpgrade:
                # Only the last line can be the one: the slice was cut behind it.
                return framing + stop - at
            framing = 0 if self._idle else framing + stop - at - (self._body_size - body)
            at = stop
        return framing
