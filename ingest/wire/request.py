"""From the parser's callbacks to an event in the tick.

Rules: what a request is, and why it is refused, lives in this file; it knows nothing of transports, deadlines and how
bytes are cut into reads (that is `connection`, which inherits from here). RFC 9112 says what a request is; httptools,
the parser of Node.js, reads it.

The callbacks fire in this order: `on_message_begin`, `on_url`, `on_header` …, `on_headers_complete`, `on_body` …,
`on_message_complete`. The last adds an event's line and its answer to the tick. A refusal mutes the callbacks: what was
complete before it is answered first, what follows it is read by nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from ingest.event import (
    BAD_FRAMING,
    BAD_HOST,
    BODY_TOO_LARGE,
    COLLECT,
    COOKIE,
    MALFORMED,
    NOT_FOUND,
    UNAVAILABLE_CLOSE,
    ClientError,
    Event,
    Preflight,
    Router,
    Show,
    Takes,
)
from ingest.wire.layouts import CONTENT_LENGTH, EMPTY, EXPECT, HOST, ORIGIN, TRANSFER_ENCODING, UPGRADE
from ingest.wire.states import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ingest.event import Handler, Line, Peer
    from ingest.wire.answers import Answers
    from ingest.wire.layouts import Layouts
    from ingest.wire.tick import Tick


_IDLE: Final = State.IDLE
_HEADERS: Final = State.HEADERS
_BODY: Final = State.BODY
_CLOSING: Final = State.CLOSING

_REQUESTED_HEADERS: Final = b"access-control-request-headers"
_FRAMING_HEADERS: Final = frozenset(
    {HOST, ORIGIN, EXPECT, UPGRADE, CONTENT_LENGTH, TRANSFER_ENCODING, _REQUESTED_HEADERS}
)
_FIRST_LINE_WINS: Final = frozenset({b"user-agent", ORIGIN, CONTENT_LENGTH})

_ROUTER: Final = Router()
_COLLECT: Final = COLLECT.path
_IN_BODY: Final = Takes.BODY
_SPELLINGS_LEARNED: Final = 1024
_SPELLING_BYTES: Final = 64


class HeaderNames:
    """Learns which spellings of header names are wanted, so that one lookup answers for each header of a request.

    `learned` maps a raw name to its lower-case form, or to nothing when nobody reads it; at most 1,024 spellings. It is
    a plain dict, and callers ask `learn` only for what is not in it: that is the lookup Python does fastest.
    """

    __slots__ = ("_wanted", "learned")

    def __init__(self, wanted: Iterable[bytes]) -> None:
        self._wanted = frozenset({*wanted, *_FRAMING_HEADERS})
        self.learned: dict[bytes, bytes] = {}

    def learn(self, raw: bytes) -> bytes:
        """Return what a spelling maps to, and keep it if there is room."""
        lower = raw.lower()
        wanted = lower if lower in self._wanted else b""
        if len(self.learned) < _SPELLINGS_LEARNED and len(raw) <= _SPELLING_BYTES:
            self.learned[raw] = wanted
        return wanted


def new_parser(callbacks: object) -> HttpRequestParser:
    """Return a parser that leaves it to us when a connection ends.

    `Connection: close` counts in a head only, where `on_headers_complete` asks for it. By itself the parser would heed
    it in a trailer too, and call the next request malformed.
    """
    parser = HttpRequestParser(callbacks)
    parser.set_dangerous_leniencies(lenient_keep_alive=True)
    return parser


class RequestReader:
    """Reads the requests of one connection out of its parser's callbacks."""

    __slots__ = (
        "_answers",
        "_body",
        "_body_limit",
        "_body_limit_digits",
        "_body_size",
        "_check",
        "_ending",
        "_expecting",
        "_fields",
        "_handler",
        "_head",
        "_head_only",
        "_keep_alive",
        "_layouts",
        "_learned",
        "_linger",
        "_muted",
        "_names",
        "_parser",
        "_peer",
        "_phase",
        "_query",
        "_replay",
        "_takes",
        "_tick",
        "_two_hosts",
        "_url",
        "deadline",
        "whole",
    )

    if TYPE_CHECKING:
        # What `Connection` adds, as far as requests need it.
        pending: int
        _slice: int
        _slow: bool
        write: Callable[[bytes], None]

        def await_commit(self) -> None: ...  # noqa: D102
        def answered(self) -> None: ...  # noqa: D102

    def __init__(self, tick: Tick, names: HeaderNames, layouts: Layouts) -> None:
        # For the connection's life.
        self._tick = tick
        self._names = names
        self._learned = names.learned
        self._layouts = layouts
        self._body_limit = tick.limits.body
        self._body_limit_digits = len(str(tick.limits.body))
        self._parser = new_parser(self)
        self._check: Callable[[bytes], None] = self._first_check
        self.whole = True
        """Whether the last event came in one read: who sends head and body apart will do so again."""
        self._peer: Peer

        # Where the byte stream stands.
        self._phase = _IDLE
        self.deadline = float("inf")
        self._ending = False
        self._muted = False
        self._linger = False

        # The request under way.
        self._url = b""
        self._fields: dict[bytes, bytes] = {}
        self._head: dict[bytes, bytes] = {}
        self._body: bytes | bytearray = b""
        self._body_size = 0
        self._handler: Handler = NOT_FOUND
        self._takes: Takes | None = None
        self._head_only = False
        self._query = b""
        self._keep_alive = True
        self._expecting: dict[bytes, bytes] | None = None
        self._answers: Answers = tick.book.plain
        self._replay = b""
        self._two_hosts = False

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
        try:
            name = self._learned[name]
        except KeyError:
            name = self._names.learn(name)
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
        self._answers = self._answers_for(head) if ORIGIN in head else self._tick.book.plain
        if HOST not in head and parser.get_http_version() != "1.0":
            self._reject(BAD_HOST)
            return
        self._keep_alive = parser.should_keep_alive() and not self._tick.draining
        if (
            CONTENT_LENGTH in head
            and len(head[CONTENT_LENGTH]) >= self._body_limit_digits
            and int(head[CONTENT_LENGTH]) > self._body_limit
        ):
            self._reject(BODY_TOO_LARGE)
            return
        if self._url == _COLLECT and parser.get_method() == b"POST":
            self._takes = _IN_BODY
            self._url = self._query = b""
        else:
            self._route(parser.get_method())
        if TRANSFER_ENCODING in head or EXPECT in head or UPGRADE in head:
            self._heed_rare_headers(head)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body: of one that declared its length almost always the only one."""
        before = self._body_size
        size = self._body_size = before + len(body)
        if size > self._body_limit:
            self._reject(BODY_TOO_LARGE)
        elif not before:
            self._body = body
        elif self._takes is _IN_BODY:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body

    def on_message_complete(self) -> None:
        """Add the event, or the page, to the tick."""
        if self._muted:
            return
        tick = self._tick
        self._phase = _IDLE
        self.deadline = tick.idle_deadline
        if self._fields:
            self._fields = {}  # trailers (RFC 9110 §6.5.1): dropped, or the next request would inherit them
        takes = self._takes
        body = self._body
        self._body = b""
        self._body_size = 0
        if takes is None:
            self._answer_no_event()
            return
        encoder = tick.encoder
        answers = self._answers
        line: Line
        if takes is _IN_BODY:
            fields = encoder.fields(body, self._head)
            if self._query:
                line = encoder.encode_both(tick.seconds, self._peer, fields, self._query)
            else:
                line = encoder.encode_body(tick.seconds, self._peer, fields)
            answer = answers.stored if self._keep_alive else answers.stored_close
        else:
            line = encoder.encode_query(tick.seconds, self._peer, encoder.fields(self._query, self._head))
            answer = answers.pixel if self._keep_alive else answers.pixel_close
        if isinstance(line, ClientError):
            self._answer(answers.refuse(line, close=not self._keep_alive))
            tick.count_rejected(line)
            return
        tick.turn.event(self, line, answer, answers.refused if self._keep_alive else answers.refused_close)
        if not self._keep_alive:
            self._end()

    # The short way, for a read that is one whole event.

    def take_whole(self, data: bytes) -> bool:
        """Take a read that is one whole event in a known layout; False leaves it, untouched, to the parser's callbacks.

        The layout tells where the values stand. That the request is sound is seen by a parser of the same kind that has
        no callbacks to spend time on: it stands between two requests before and after, or is given up.
        """
        tick = self._tick
        layouts = self._layouts
        if self._phase is not _IDLE or self._slow or tick.draining or len(data) > self._slice:
            return False
        match = layouts.match(data)
        if match is None:
            return False
        post, origin, where = layouts.found[match.lastindex]
        fields = match.group(*where)
        size = len(fields[0])
        if size > self._body_limit or (post and size != int(fields[-1])):
            return False
        try:
            self._check(data)
        except (HttpParserError, HttpParserUpgrade):
            self._check = self._first_check
            return False
        encoder = tick.encoder
        answers = tick.book.plain if origin == EMPTY else tick.book.of(match[origin])
        if post:
            line = encoder.encode_body(tick.seconds, self._peer, fields)
            if isinstance(line, ClientError):
                return False
            answer = answers.stored
        else:
            line = encoder.encode_query(tick.seconds, self._peer, fields)
            answer = answers.pixel
        tick.turn.event(self, line, answer, answers.refused)
        self.deadline = tick.idle_deadline
        return True

    def _first_check(self, data: bytes) -> None:
        """Make the parser without callbacks when it is first needed, and again after it has met an error."""
        self._check = new_parser(None).feed_data
        self._check(data)

    # Requests other than a plain POST of an event.

    def _route(self, method: bytes) -> None:
        """Have the router say what is done with the request; a refusal that closes is told now."""
        target = self._url
        self._url = b""
        if self._two_hosts:
            self._reject(BAD_HOST)
            return
        handler, query = _ROUTER.find(method, target)
        self._handler = handler
        self._head_only = method == b"HEAD"
        self._takes = handler.takes if isinstance(handler, Event) else None
        self._query = query
        if self._takes is not None and len(query) > self._body_limit:
            self._reject(BODY_TOO_LARGE)
        elif isinstance(handler, ClientError) and handler.close:
            self._reject(handler)

    def _answer_no_event(self) -> None:
        handler = self._handler
        close = not self._keep_alive
        tick = self._tick
        if isinstance(handler, ClientError):
            tick.count_rejected(handler)
            self._answer(self._answers.refuse(handler, close=close, head_only=self._head_only))
        elif isinstance(handler, Preflight):
            head = self._head
            self._answer(
                tick.book.preflight(head.get(ORIGIN), handler.methods, head.get(_REQUESTED_HEADERS), close=close)
            )
        elif isinstance(handler, Show):
            self._answer(self._answers.show(handler.page(tick.pages), close=close, head_only=self._head_only))

    def _answer(self, answer: bytes) -> None:
        self._tick.count_answer(answer)
        self._tick.turn.reply(self, answer)
        if not self._keep_alive:
            self._end()

    def _repeated(self, name: bytes, value: bytes) -> None:
        """Join lines of one name (RFC 9110 §5.2; cookies: RFC 6265 §5.4), or take the first where only one may be."""
        if self._phase is _BODY:
            return
        if name == HOST:
            # Refused at the end of the head, when its Origin is known; without a target it goes the way of `_route`.
            self._two_hosts = True
            self._url = b""
        elif name not in _FIRST_LINE_WINS:
            self._fields[name] += (b"; " if name == COOKIE else b", ") + value

    def _heed_rare_headers(self, head: dict[bytes, bytes]) -> None:
        parser = self._parser
        if TRANSFER_ENCODING in head and parser.get_http_version() == "1.0":
            # RFC 9112 §6.1: a server must treat the framing of such a message as faulty.
            self._reject(BAD_FRAMING)
            return
        if head.get(EXPECT, b"").lower() == b"100-continue" and parser.get_http_version() != "1.0":
            self._expecting = head
            if self._takes is _IN_BODY and self._tick.refuses_events():
                self._reject(UNAVAILABLE_CLOSE)
                return
        if UPGRADE in head and parser.should_upgrade() and not self._ending:
            # RFC 9110 §7.8: a server may ignore Upgrade. The parser cannot: it reports the end of the message here, and
            # then stops. The request goes on in `_resume_after_upgrade`.
            self._muted = True
            if TRANSFER_ENCODING in head:
                self._replay = b"Transfer-Encoding: %b\r\n" % head[TRANSFER_ENCODING]
            elif self._declared():
                self._replay = b"Content-Length: %d\r\n" % self._declared()

    def _resume_after_upgrade(self) -> None:
        """Put a fresh parser behind a head that has only the framing headers; the request itself is already known."""
        deadline = self.deadline
        parser = self._parser = new_parser(self)
        framing = self._replay
        self._replay = b""
        if framing:
            refused = False
            try:
                parser.feed_data(b"POST / HTTP/1.1\r\nHost: x\r\n%b\r\n" % framing)
            except HttpParserError:  # a coding that does not end in chunked: the first parser stopped before it looked
                refused = True
            self._url = b""
            self._fields = {}
            self._phase = _BODY
            self.deadline = deadline
            self._muted = False
            if refused:
                self._reject(MALFORMED)
        else:
            self._muted = False
            self._phase = _BODY
            self.on_message_complete()

    def _declared(self) -> int:
        """Return how long the body under way was said to be; 0 when nothing was said, or it comes in chunks."""
        return int(self._head.get(CONTENT_LENGTH, b"0"))

    # Refusals and the end.

    def _reject(self, error: ClientError) -> None:
        """Refuse the request under way and read no further; the first reason stands.

        If the head cannot be parsed, none of its fields is used. Which fields the parser has reported depends on how
        the bytes were split into reads.
        """
        if self._ending:
            return
        tick = self._tick
        tick.count_rejected(error)
        if self._phase is not _BODY:
            self._answers = tick.book.plain if error is MALFORMED else self._answers_for(self._fields)
        answer = self._answers.refuse(error, close=True)
        tick.count_answer(answer)
        tick.turn.reply(self, answer)
        self._linger = True
        self._end()

    def _answers_for(self, fields: dict[bytes, bytes]) -> Answers:
        book = self._tick.book
        return book.of(fields[ORIGIN]) if ORIGIN in fields else book.plain

    def _end(self) -> None:
        """Answer nothing after this."""
        self._ending = self._muted = True
        self._phase = _CLOSING
        self._body = b""
