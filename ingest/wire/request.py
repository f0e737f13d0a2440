"""From the parser's callbacks to an event in the turn.

Rules: what a request is, and why it is refused, lives in this file; it knows nothing of transports, and of how bytes
are cut into reads. RFC 9112 says what a request is; `parser` reads it.

The callbacks fire in this order: `on_message_begin`, `on_url`, `on_header` …, `on_headers_complete`, `on_body` …,
`on_message_complete`. The last adds an event's line and its answer to the turn. A refusal is the last thing a reader
hears (`over`): what was complete before it is answered first, what follows it is read by nobody.

A body that came in a coding, or holds many events, is unpacked at its end, in steps. When the turn has no time left for
them, or others wait for theirs, the request is held (`unpacking`): the parser may go on to the end of its slice, but is
not heard, and `framing` gives back what stands behind the request. The connection goes on with it when it has a share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from ingest.event import (
    AT_ONCE,
    BAD_FRAMING,
    BAD_HOST,
    BAD_KEY,
    BAD_VERSION,
    BODY_TOO_LARGE_DECODED,
    COLLECT,
    COOKIE,
    HEAD_TOO_LARGE,
    MALFORMED,
    NOT_FOUND,
    ONE,
    TARGET_TOO_LONG,
    UNAVAILABLE_CLOSE,
    UNKNOWN_CODING,
    UNKNOWN_TRANSFER_CODING,
    Asked,
    ClientError,
    Coding,
    Event,
    Items,
    Preflight,
    Show,
    Takes,
    coding_of,
    inflate,
    is_gzip,
    is_plain,
    look,
    unless_known,
    unwrapped,
    wants_html,
)
from ingest.telemetry import Reason
from ingest.wire.answers import said_kept
from ingest.wire.door import is_direct
from ingest.wire.headers import (
    ACCEPT,
    CONNECTION,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    DIGITS,
    EXPECT,
    HOST,
    IF_NONE_MATCH,
    ORIGIN,
    PROXY_CONNECTION,
    REQUESTED_HEADERS,
    REQUESTED_NETWORK,
    TRACE_ID,
    TRANSFER_ENCODING,
    UPGRADE,
    X_REQUEST_ID,
    HeaderNames,
    is_host,
    keeps_alive,
)
from ingest.wire.limits import ANSWERS_OF_A_SLICE
from ingest.wire.states import State
from ingest.wire.turn import Answerer

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from httptools import HttpRequestParser

    from ingest.event import Access, Handler, Line, Peer
    from ingest.event.access import KeyPlace
    from ingest.event.batches import Unpacking
    from ingest.event.client import Fields
    from ingest.wire.answers import Answers
    from ingest.wire.door import Door
    from ingest.wire.tick import Tick


_IDLE: Final = State.IDLE
_HEADERS: Final = State.HEADERS
_BODY: Final = State.BODY
_UNPACKING: Final = State.UNPACKING

_FIRST_LINE_WINS: Final = frozenset({b"user-agent", ORIGIN, CONTENT_LENGTH})

_PLAIN_KEYS: Final = () if COLLECT.post is None else COLLECT.post.keys
"""Where a POST to `/collect` may have its key: its row is not looked up."""
_IN_BODY: Final = Takes.BODY
_ITEMS: Final = Takes.ITEMS
_VERSIONS: Final = frozenset({"1.0", "1.1"})
_NO_FIELDS: Final[dict[bytes, bytes]] = {}
_TOLD: Final = frozenset({ORIGIN, X_REQUEST_ID, TRACE_ID})
"""Fields that the answer to a refusal, and its line in the log, are made of."""


class Owner(Answerer, Protocol):
    """The connection, as far as its requests need it."""

    peer: Peer

    def entered(self, state: State) -> None:
        """Take note that the byte stream has entered a state."""

    def end(self, *, linger: bool, sends_on: bool = False) -> None:
        """Answer nothing after this."""


class Request:
    """The request under way; a new one has what its class says."""

    answers: Answers
    """From the end of the head on: the answers for its origin."""
    url: bytes | bytearray = b""
    """As much of its target as a request line may have."""
    head = _NO_FIELDS
    """From its end on."""
    method = b"POST"
    """From the end of the head on."""
    handler: Handler = NOT_FOUND
    takes: Takes | None = None
    """Where its event stands; None when it is no event."""
    query = b""
    head_only = False
    keep_alive = True
    is_old = False
    """It came with HTTP/1.0."""
    expects = False
    """From the end of a head with `Expect: 100-continue` until the client has been told to go on."""
    fault: ClientError | None = None
    """The reason to refuse it at the end of its head, when its Origin is known."""
    key: str | None = ""
    """The name of its write key; None: its body has to tell."""
    body: bytes | bytearray = b""
    size = 0
    """Bytes of the body so far."""
    row: Event | None = None
    """Its path's row, if it has many items or is an SDK's; also when it is refused. None for a plain event."""
    coding: Coding | None = None
    packed = False
    """From the end of its head until its body is unpacked; of most requests never."""
    items: Items | None = None
    """From then on, of a request with many items."""
    unpacked = 0
    """Bytes that unpacking has made of the body so far."""

    @property
    def declared(self) -> int:
        """How long the body was said to be; 0 when nothing was said, or it comes in chunks."""
        return int(self.head.get(CONTENT_LENGTH, b"0"))

    @property
    def awaited(self) -> int:
        """How much of its declared body has not come; 0 in chunks, and while its head is not complete."""
        return max(self.declared - self.size, 0)


class _OriginAlone(dict[bytes, bytes]):
    """The fields of a head that is too large, as far as its refusal needs them."""

    __slots__ = ()

    def __setitem__(self, name: bytes, value: bytes) -> None:
        if name in _TOLD:
            super().__setitem__(name, value)


NO_REQUEST: Final = Request()
"""Between two requests."""


def _more(steps: Unpacking, size: int) -> Unpacking:
    """Yield and return what the steps do, with so many bytes more at each."""
    while True:
        try:
            held = next(steps)
        except StopIteration as end:
            found: Items | ClientError = end.value
            return found
        yield size + held


class RequestReader:
    """Reads the requests of one connection out of its parser's callbacks."""

    __slots__ = (
        "_door",
        "_events",
        "_fields",
        "_learned",
        "_least_limit",
        "_least_limit_digits",
        "_limits",
        "_looks",
        "_names",
        "_owner",
        "_steps",
        "_tick",
        "held_up",
        "over",
        "parser",
        "request",
        "said",
        "state",
        "unpacking",
    )

    def __init__(self, owner: Owner, tick: Tick, names: HeaderNames, door: Door) -> None:
        # For the connection's life.
        self._owner = owner
        self._tick = tick
        self._names = names
        self._learned = names.learned
        self._door = door
        self._events = door.events
        self._limits = tick.limits
        self._looks = tick.encoder.in_json or (tick.access is not None and tick.access.reads_bodies)
        """Whether bodies may have to be looked into."""
        self._least_limit = min(tick.limits.least, AT_ONCE) if self._looks else tick.limits.least
        self._least_limit_digits = len(str(self._least_limit))
        """Bodies that are smaller are within the limit of any request, and are looked into at once."""
        self.parser: HttpRequestParser
        """The one whose callbacks these are."""

        # Where the byte stream stands.
        self.state = _IDLE
        """Idle, headers or body."""
        self.over = False
        """From a refusal, or the last request, on: nothing is heard any more."""
        self.held_up = False
        """Nothing is heard for now: from the end of a head with an Upgrade until `go_on`, for the parser reports an end
        that is none; and from when a request is held to be unpacked until `keep`."""
        self.unpacking: Request | None = None
        """The request that is held, for its unpacking took the turn's time."""
        self._steps: Iterator[int] | None = None
        """From the first step of its unpacking to the last."""
        self.said = 0
        """Bytes of pages, and of answers to requests with many events, that the slice under way has caused."""
        self.request = NO_REQUEST
        self._fields: dict[bytes, bytes] = {}
        """The head's until its end; then the trailers', which nobody reads."""

    # The parser's callbacks, in the order in which they fire.

    def on_message_begin(self) -> None:
        """Begin a request: head and body are due within READ_TIMEOUT from here."""
        if self.over or self.held_up:
            return
        self.request = Request()
        self.state = _HEADERS
        self._owner.entered(_HEADERS)

    def on_url(self, url: bytes) -> None:
        """Take the target; the parser hands it over in pieces where reads split it."""
        if self.held_up:
            return
        request = self.request
        if not request.url:
            request.url = url
        elif len(request.url) < self._limits.line:
            if isinstance(request.url, bytes):
                request.url = bytearray(request.url)
            request.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the headers somebody reads. Trailers come here too, into fields that nobody reads any more.

        So does what is reported while a request is held up, because to ask would cost each header.
        """
        try:
            name = self._learned[name]
        except KeyError:
            name = self._names.learn(name)
        if name:
            value = value.rstrip(b" \t")  # RFC 9110 §5.5; the parser leaves out what stands before a value only
            fields = self._fields
            if name in fields:
                self._repeated(name, value)
            else:
                fields[name] = value

    def on_headers_complete(self) -> None:
        """Decide what the request is; refuse it now if its head is reason enough."""
        if self.over or self.held_up:
            return
        request = self.request
        head = request.head = self._fields
        self._fields = {}
        self.state = _BODY
        parser = self.parser
        book = self._tick.book
        request.answers = book.of(head[ORIGIN]) if ORIGIN in head else book.plain
        method = parser.get_method()
        if method != b"POST":
            request.method = method
            request.head_only = method == b"HEAD"
        keep_alive = parser.should_keep_alive()
        # Else it is HTTP/1.1, and kept: no other header is heeded by the parser. To ask it costs more than all of this.
        if not keep_alive or CONNECTION in head or PROXY_CONNECTION in head:
            version = parser.get_http_version()
            request.is_old = version == "1.0"
            if version not in _VERSIONS:
                self.refuse(BAD_VERSION)
                return
            keep_alive = keeps_alive(head.get(CONNECTION, b""), is_old=request.is_old)
        if request.fault is not None or not (is_host(head[HOST]) if HOST in head else request.is_old):
            self.refuse(request.fault or BAD_HOST)
            return
        request.keep_alive = keep_alive and not self._tick.parting
        if request.url == self._events and method == b"POST":
            request.takes = _IN_BODY
        else:
            self._route(method)
        if CONTENT_LENGTH in head and len(head[CONTENT_LENGTH]) >= self._least_limit_digits:
            if len(head[CONTENT_LENGTH]) > DIGITS:
                self.refuse(MALFORMED)
                return
            if int(head[CONTENT_LENGTH]) > self._least_limit and self._is_too_large(int(head[CONTENT_LENGTH])):
                return
        asks = self._tick.access is not None
        if asks or TRANSFER_ENCODING in head or EXPECT in head or UPGRADE in head or CONTENT_ENCODING in head:
            self._heed_rare_headers(head)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body: of one that declared its length almost always the only one."""
        request = self.request
        before = request.size
        size = request.size = before + len(body)
        if size > self._least_limit and self._is_too_large(size):
            return
        if not before:
            request.body = body
        elif request.takes is _IN_BODY or request.takes is _ITEMS:
            if isinstance(request.body, bytes):
                request.body = bytearray(request.body)
            request.body += body

    def on_message_complete(self) -> None:
        """Add the event, or the page, to the turn."""
        if self.over or self.held_up:
            return
        request = self.request
        if request.packed and not self._unpack(request):
            return
        self.request = NO_REQUEST
        self.state = _IDLE
        owner = self._owner
        owner.entered(_IDLE)
        if self._fields:
            self._fields = {}  # trailers (RFC 9110 §6.5.1): dropped, or the next request would inherit them
        takes = request.takes
        if takes is None:
            self._answer_no_event(request)
            return
        if request.row is not None:
            self._add_by_row(request, request.row)
            return
        tick = self._tick
        encoder, seconds = tick.encoder, tick.clocks.seconds
        answers = request.answers
        keep_alive = request.keep_alive
        line: Line
        if takes is _IN_BODY:
            fields = encoder.fields(request.body, request.head)
            if request.query or request.key != "":
                line = self._encode_more(request, fields)
            else:
                line = encoder.encode_body(seconds, owner.peer, fields)
            answer = answers.stored if keep_alive else answers.stored_close
        else:
            if request.key:
                line = self._encode_more(request, encoder.fields(b"", request.head))
            else:
                line = encoder.encode_query(seconds, owner.peer, encoder.fields(request.query, request.head))
            answer = answers.pixel if keep_alive else answers.pixel_close
        if isinstance(line, ClientError):
            self._refuse_event(request, line)
            return
        refusal = answers.refused if keep_alive else answers.refused_close
        if request.is_old and keep_alive:
            answer, refusal = said_kept(answer), said_kept(refusal)
        tick.turn.event(owner, line, answer, refusal)
        if not keep_alive:
            owner.end(linger=False)

    # What the connection asks for.

    def refuse(self, error: ClientError) -> None:
        """Refuse the request under way and read no further; the first reason stands.

        If the head cannot be parsed, none of its fields is used. Which fields the parser has reported depends on how
        the bytes were split into reads.
        """
        if self.over:
            return
        tick = self._tick
        request = self.request
        head_only = request.head_only
        if self.state is _BODY:
            self._reject(error, request)
            answers = request.answers
        elif error is MALFORMED:
            self._reject(error)
            answers = tick.book.plain
        else:
            if self.state is _HEADERS:
                request.method, request.head = self.parser.get_method(), self._fields
            self._reject(error, request)
            answers = tick.book.of(self._fields[ORIGIN]) if ORIGIN in self._fields else tick.book.plain
            head_only = request.method == b"HEAD"
        answer = answers.refuse(error, close=True, head_only=head_only)
        tick.count_answer(answer)
        tick.turn.reply(self._owner, answer)
        self._owner.end(linger=True, sends_on=error.counted is not Reason.MALFORMED)

    def outgrow(self, *, in_line: bool, again: bool) -> bool:
        """Refuse a request whose first line, or all the rest of its framing, has met its limit.

        True when its head is read on first, of which its Origin alone is kept, because a script may read no answer that
        does not name it; not `again`. A preflight asks about a path, so that a long query does it no harm.
        """
        request = self.request
        if self.state is _BODY:
            self.refuse((ONE if request.row is None else request.row.oversize).head)
            return False
        handler, _ = self._door.router.find(self.parser.get_method(), bytes(request.url))
        if isinstance(handler, Event):
            error = handler.oversize.query if in_line else handler.oversize.head
        else:
            error = TARGET_TOO_LONG if in_line else HEAD_TOO_LARGE
        fields = self._fields
        preflight = in_line and isinstance(handler, Preflight)
        if again or ORIGIN in fields or not (preflight or isinstance(handler, Event)):
            self.refuse(request.fault or error)
            return False
        if not preflight:
            request.fault = request.fault or error
            self._fields = _OriginAlone((name, fields[name]) for name in _TOLD if name in fields)
        return True

    def stop(self) -> None:
        """Hear nothing any more, and keep nothing."""
        self.over = True
        self.request = Request()
        self.unpacking = self._steps = None
        self._fields = {}

    def leave(self) -> None:
        """Let go of the connection and the parser, which hold this: else all of them wait for the cycles' collector."""
        del self._owner, self.parser

    def begin_anew(self) -> None:
        """Forget the request under way, of which the parser has reported no more than its start."""
        self.state = _IDLE
        self.request = NO_REQUEST
        self._fields = {}

    def make_last(self) -> None:
        """Have the answer to the request whose body is under way say that it is the last."""
        self.request.keep_alive = False

    def go_on(self) -> None:
        """Go on with the request that an Upgrade held up, its head read."""
        self.held_up = False
        self._fields = {}

    def keep(self) -> None:
        """Take back the request that is held: the parser has nothing more to report."""
        assert self.unpacking is not None  # noqa: S101 - asked for by who has seen it
        self.request = self.unpacking
        self.held_up = False
        self._fields = {}

    def unpack(self) -> None:
        """Go on with the request that is held."""
        self.unpacking = None
        self.on_message_complete()
        if self.unpacking is not None:
            self.keep()

    # Requests other than a plain POST of an event.

    def _is_too_large(self, size: int) -> bool:
        """Tell whether a body exceeds the limit of its request, which is refused then.

        One that does not, but is large, is looked into in steps.
        """
        request = self.request
        row = request.row
        if size <= self._limit_of(row):
            if request.takes is _IN_BODY and self._looks_into(request):
                request.packed = True
            return False
        if not self.held_up:
            self.refuse((ONE if row is None else row.oversize).body)
        return True

    def _limit_of(self, row: Event | None) -> int:
        if row is None or row.takes is Takes.QUERY:
            return self._limits.body
        return self._tick.limits.batch if row.takes is _ITEMS else self._tick.limits.whole

    def _unpacking(self, request: Request) -> Iterator[int]:
        """Make of a request's body what was meant, or of the request a refusal; yield how many bytes there are."""
        row = request.row
        refusal = None
        beside = 0
        coding = request.coding
        if coding is None and row is not None and row.unlabelled and is_gzip(request.body):
            coding = Coding.GZIP
        if coding is not None:
            decoded = yield from inflate(request.body, coding, self._limit_of(row))
            if isinstance(decoded, ClientError):
                too_large = decoded is BODY_TOO_LARGE_DECODED
                refusal = row.oversize.decoded if row is not None and too_large else decoded
            else:
                request.body = decoded
                beside = len(decoded)
        if row is not None and row.unlabelled and refusal is None:
            request.body = unwrapped(request.body)
        if request.takes is _ITEMS and refusal is None:
            unpacking = self._tick.encoder.unpack(request.body, request.head.get(CONTENT_TYPE, b""))
            items = yield from _more(unpacking, beside)
            if isinstance(items, ClientError):
                refusal = items
            else:
                request.items = items
        elif (
            request.takes is _IN_BODY and refusal is None and len(request.body) > AT_ONCE and self._looks_into(request)
        ):
            refusal = yield from self._look(request)
        request.packed = False
        if refusal is not None:
            request.takes = None
            request.handler = refusal

    def _looks_into(self, request: Request) -> bool:
        return request.key is None or self._tick.encoder.in_json

    def _look(self, request: Request) -> Generator[int, None, ClientError | None]:
        """Find the key of a large body, and how it stands in a line, as far as these are asked; return a refusal."""
        tick = self._tick
        in_json = tick.encoder.in_json
        access = tick.access if request.key is None else None
        asked = Asked(in_json) if access is None else access.asked(_places_of(request), in_line=in_json)
        looked = yield from look(bytes(request.body), asked)
        if access is not None:
            key = BAD_KEY if isinstance(looked, ClientError) else access.key_among(looked.strings)
            if isinstance(key, ClientError):
                return key
            request.key = key
        if isinstance(looked, ClientError):
            return looked
        if isinstance(looked.line, ClientError):
            return looked.line
        if looked.line is not None:
            request.body = looked.line
        return None

    def _add_by_row(self, request: Request, row: Event) -> None:
        if row.takes is _ITEMS:
            self._add_items(request)
        else:
            self._add_told(request, row)

    def _add_items(self, request: Request) -> None:
        """Add the events of one request to the turn, with one answer; or answer that there are none."""
        items = request.items
        assert items is not None  # noqa: S101 - it is unpacked
        tick, owner = self._tick, self._owner
        for _, error in items.rejected:
            self._reject(error, request)
        answers = request.answers
        close = not request.keep_alive
        answer = answers.show(items.told(), close=close)
        if not items.count:
            self._reply(request, answer)
            return
        fields = tick.encoder.fields(b"", request.head)
        if tick.access is not None and items.count > 1:
            tick.access.count(owner.peer, fields, items.count - 1)
        lines = tick.encoder.encode_items(tick.clocks.seconds, owner.peer, fields, request.query, items, request.key)
        if isinstance(lines, ClientError):
            self._refuse_event(request, lines)
            return
        self.said += len(answer)
        self._add(request, lines, answer, items.count)

    def _add_told(self, request: Request, row: Event) -> None:
        """Add the event of a request whose line tells its path; or answer why there is none."""
        tick = self._tick
        key = self._key_of(request, row.keys)
        line: Line
        if isinstance(key, ClientError):
            line = key
        else:
            line = tick.encoder.encode_told(
                tick.clocks.seconds,
                self._owner.peer,
                tick.encoder.fields(request.body, request.head),
                row.path,
                request.query,
                key,
                is_query=row.takes is Takes.QUERY,
            )
        if isinstance(line, ClientError):
            self._refuse_event(request, line)
            return
        self._add(request, line, request.answers.event(row.answer, close=not request.keep_alive))

    def _add(self, request: Request, lines: bytes, answer: bytes, events: int = 1) -> None:
        """Add the lines of a request with a row to the turn."""
        owner = self._owner
        answers = request.answers
        keep_alive = request.keep_alive
        refusal = answers.refused if keep_alive else answers.refused_close
        if request.is_old and keep_alive:
            answer, refusal = said_kept(answer), said_kept(refusal)
        self._tick.turn.event(owner, lines, answer, refusal, events)
        if not keep_alive:
            owner.end(linger=False)

    def _refuse_event(self, request: Request, refusal: ClientError) -> None:
        self._reject(refusal, request)
        self._reply(request, request.answers.refuse(refusal, close=not request.keep_alive))

    def _unpack(self, request: Request) -> bool:
        """Unpack a body while the turn has time for it; False when the request is held, or refused.

        Bytes that are unpacked count beside all that is held, as they come.
        """
        tick = self._tick
        begins = self._steps is None
        steps = self._steps = self._steps or self._unpacking(request)
        waits = begins and (bool(tick.waiting) or self.said >= ANSWERS_OF_A_SLICE or tick.is_spent())
        counted = request.unpacked
        while not waits:
            size = next(steps, None)
            if size is None:
                self._steps = None
                return True
            request.unpacked = size
            if tick.budget.lacks(size - counted):
                self.refuse(UNAVAILABLE_CLOSE)
                return False
            waits = tick.is_spent()
        if begins:
            self._owner.entered(_UNPACKING)
        request.expects = False
        self.unpacking = request
        self.request = Request()
        self.held_up = True
        return False

    def _route(self, method: bytes) -> None:
        """Have the router say what is done with the request; a refusal that closes is told now."""
        request = self.request
        door = self._door
        target = bytes(request.url)
        handler, query = door.router.find(method, target)
        if (
            handler is door.router.missing
            and door.direct is not None
            and is_direct(self._owner.peer, request.head, is_old=request.is_old)
        ):
            handler, query = door.direct.find(method, target)
        request.handler = handler
        request.query = query
        if isinstance(handler, Event):
            request.takes = handler.takes
            if handler.takes is _ITEMS or handler.path:
                request.row = handler
                request.packed = handler.takes is _ITEMS or handler.unlabelled
            if len(query) > self._limits.query:
                self.refuse(handler.oversize.query)
        elif isinstance(handler, ClientError) and handler.close:
            self.refuse(handler)

    def _ask(self, access: Access, request: Request) -> None:
        """Ask whether the event may come. The answer to one that may not waits for its body, which nobody keeps."""
        places = _places_of(request)
        head = request.head
        peer = self._owner.peer
        fields = () if access.rate is None else self._tick.encoder.fields(b"", head)
        asked = access.ask(peer, fields, head, request.query, places, origin=head.get(ORIGIN))
        if isinstance(asked, ClientError):
            request.takes = None
            request.packed = False
            request.handler = asked
        else:
            request.key, request.query = asked

    def _encode_more(self, request: Request, fields: Fields) -> Line:
        """Return the line of an event that has a query or a key beside what it is made of."""
        tick = self._tick
        key = self._key_of(request, _PLAIN_KEYS)
        if isinstance(key, ClientError):
            return key
        return tick.encoder.encode_both(tick.clocks.seconds, self._owner.peer, fields, request.query, key)

    def _key_of(self, request: Request, places: Sequence[KeyPlace]) -> str | ClientError:
        """Return the name of the request's key, which its body may have to tell, or why there is none."""
        if request.key is not None:
            return request.key
        access = self._tick.access
        assert access is not None  # noqa: S101 - only `_ask` leaves it open
        return access.key_in(request.body, places)

    def _answer_no_event(self, request: Request) -> None:
        handler = request.handler
        answers = request.answers
        if self.said >= ANSWERS_OF_A_SLICE:
            request.keep_alive = False
        close = not request.keep_alive
        tick = self._tick
        if isinstance(handler, ClientError):
            self._reject(handler, request)
            self._reply(request, answers.refuse(handler, close=close, head_only=request.head_only))
        elif isinstance(handler, Preflight):
            head = request.head
            self._reply(
                request,
                tick.book.preflight(
                    head.get(ORIGIN),
                    handler,
                    head.get(REQUESTED_HEADERS),
                    to_private=head.get(REQUESTED_NETWORK) == b"true",
                    close=close,
                ),
            )
        elif isinstance(handler, Show):
            if not handler.for_scripts:
                answers = tick.book.plain
            show = handler.page
            if handler.for_eyes is not None and wants_html(request.head.get(ACCEPT, b"")):
                show = handler.for_eyes
            page = show(tick.pages)
            if IF_NONE_MATCH in request.head:
                page = unless_known(page, request.head[IF_NONE_MATCH])
            self._reply(request, answers.show(page, close=close, head_only=request.head_only))

    def _reject(self, error: ClientError, request: Request = NO_REQUEST) -> None:
        """Count a refusal, and take note of it for the log."""
        tick = self._tick
        tick.count_rejected(error)
        tick.refused.add(
            error, tick.clocks.now, request.method, bytes(request.url), request.head, trusted=self._owner.peer.trusted
        )

    def _reply(self, request: Request, answer: bytes) -> None:
        if request.is_old and request.keep_alive:
            answer = said_kept(answer)
        self.said += len(answer)
        self._tick.count_answer(answer)
        self._tick.turn.reply(self._owner, answer)
        if not request.keep_alive:
            self._owner.end(linger=False)

    def _repeated(self, name: bytes, value: bytes) -> None:
        """Join lines of one name (RFC 9110 §5.2; cookies: RFC 6265 §5.4), or take the first where only one may be."""
        if self.state is _BODY:
            return
        if name == HOST:
            self.request.fault = self.request.fault or BAD_HOST
        elif name not in _FIRST_LINE_WINS:
            self._fields[name] += (b"; " if name == COOKIE else b", ") + value

    def _heed_rare_headers(self, head: dict[bytes, bytes]) -> None:
        request = self.request
        if TRANSFER_ENCODING in head:
            if request.is_old:
                # RFC 9112 §6.1: a server must treat the framing of such a message as faulty.
                self.refuse(BAD_FRAMING)
                return
            if head[TRANSFER_ENCODING].lower() != b"chunked":
                self.refuse(UNKNOWN_TRANSFER_CODING)
                return
        if self._tick.access is not None and request.takes is not None and not self.over:
            self._ask(self._tick.access, request)
        in_body = request.takes is _IN_BODY or request.takes is _ITEMS
        if CONTENT_ENCODING in head and in_body and not is_plain(head[CONTENT_ENCODING]):
            request.coding = coding_of(head[CONTENT_ENCODING])
            request.packed = request.coding is not None
            if not request.packed:
                request.takes = None
                request.handler = UNKNOWN_CODING
        if head.get(EXPECT, b"").lower() == b"100-continue" and not request.is_old:
            request.expects = True
            if request.takes is None and isinstance(request.handler, ClientError):
                self.refuse(request.handler)
                return
            if in_body and self._tick.refuses_events():
                self.refuse(UNAVAILABLE_CLOSE)
                return
        if UPGRADE in head and self.parser.should_upgrade():
            # RFC 9110 §7.8: a server may ignore Upgrade. The parser cannot: it reports the end of the message here, and
            # then stops. The request goes on in `framing`.
            self.held_up = True


def _places_of(request: Request) -> Sequence[KeyPlace]:
    """Return where the key of a request may stand."""
    return request.handler.keys if isinstance(request.handler, Event) else _PLAIN_KEYS
