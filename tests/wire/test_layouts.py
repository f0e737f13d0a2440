"""The short way says what the parser says: whatever comes whole in a known layout ends as it would without one."""

from __future__ import annotations

import itertools
from itertools import permutations

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ingest.wire.connection import Connection
from ingest.wire.layouts import HEAD_KEPT, LAYOUTS_KEPT, LINES_KEPT, LINES_KNOWN, Layouts
from tests.stand_ins.wire import Client, Wire, chunked, counted, post, request
from tests.wire.corpus import CORPUS, filled

HEADERS = (b"user-agent", b"cookie", b"x-forwarded-for", b"cloudfront-viewer-address")
LIMITS = {"MAX_HEADER_BYTES": "1024", "MAX_BODY_SIZE": "300"}
JSON = {"BODY_FORMAT": "json"}
AGENT = "User-Agent: agent"
PROXY = ("10.0.0.1", 1)
PRIVATE = {
    "IP_MODE": "mask",
    "COOKIES": "a",
    "RESPECT_GPC": "true",
    "EXTRA_HEADERS": "content-type,accept,origin",
    "TS_MS": "true",
}


def pixel(*headers: str, query: str = "a=b") -> bytes:
    return request("GET", f"/collect?{query}", *headers)


def layout(number: int) -> bytes:
    """Return an event in a layout of its own."""
    return post(b"1", *("A: a" if digit == "1" else "B: b" for digit in f"{number:b}"))


def knows(layouts: Layouts, data: bytes) -> bool:
    return layouts.match(data) is not None


def taught(*lessons: bytes, **settings: str) -> Wire:
    """Return a wire that has met these requests, each in a second of its own."""
    wire = Wire(settings, peer=PROXY)
    wire.layouts._clock = lambda: 0.0  # or a busy machine makes a lesson so dear that the next one has to wait
    for lesson in lessons:
        wire.loop.now += 1
        wire.connect().send(lesson)
    wire.lines.clear()
    return wire


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return the reads that went the long way."""
    reads: list[bytes] = []
    feed = Connection.feed

    def record(self: Connection, data: bytes) -> None:
        reads.append(data)
        feed(self, data)

    monkeypatch.setattr(Connection, "feed", record)
    return reads


def test_every_collect_path_takes_the_short_way(fed):
    wire = taught(post(b"1"), post(b"1", target="/c.v1"), pixel(), COLLECT_PATHS="/collect,/c.v1")
    fed.clear()
    client = wire.connect()
    client.send(post(b"2"), post(b"3", target="/c.v1"), pixel(query="4"))
    assert (client.statuses, wire.events, fed) == ([200] * 3, ["2", "3", "4"], [])
    client.send(post(b"5", target="/c-v1"))
    assert client.statuses[-1] == 404


def test_a_path_that_is_no_collect_path_is_not_learned():
    wire = taught(post(b"1"), post(b"1", target="/v1/t"), COLLECT_PATHS="/c", SDK_ROUTES="segment")
    assert not knows(wire.layouts, post(b"1"))
    assert not knows(wire.layouts, post(b"1", target="/v1/t"))


# What is taken, and what becomes of it.


@pytest.mark.parametrize(
    ("lesson", "data", "record"),
    [
        (post(b"1"), post(b"22"), {"body": "22", "user_agent": "", "cookie": "", "ip": "10.0.0.1"}),
        (post(b"1"), post(b""), {"body": ""}),
        (post(b"1", AGENT), post("가".encode(), "User-Agent: other"), {"body": "가", "user_agent": "other"}),
        (post(b"1", "cookie: a=1", AGENT), post(b"2", "cookie: b=2; c", AGENT), {"cookie": "b=2; c"}),
        (post(b"1", "X-Forwarded-For: 1.1.1.1"), post(b"", "X-Forwarded-For: 2.2.2.2, 10.1.1.1"), {"ip": "2.2.2.2"}),
        (post(b"1", "X-Forwarded-For: 1.1.1.1"), post(b"", "X-Forwarded-For: 2001:db8::1"), {"ip": "2001:db8::1"}),
        (post(b"1", "Accept: a", "Accept: b"), post(b"2", "Accept:", "Accept: \t c"), {"body": "2"}),
        (post(b"1", "Accept: a", AGENT), post(b"2", "Age: 3", AGENT), {"body": "2", "user_agent": "agent"}),
        (post(b"1", "Content-Type: a"), post(b"2", "Content-Type: b"), {"body": "2"}),
        (post(b"1", "connection: Keep-Alive"), post(b"2", "connection: Keep-Alive"), {"body": "2"}),
        (post(b"1", "Origin: https://a"), post(b"2", "Origin: https://b"), {"body": "2"}),
        (pixel(AGENT), pixel(AGENT, query="q=%20?&/"), {"body": "q=%20?&/", "user_agent": "agent"}),
        (pixel(), pixel(query=""), {"body": ""}),
    ],
)
def test_a_whole_event_in_a_known_layout_goes_the_short_way(fed, lesson, data, record):
    wire = taught(lesson)
    fed.clear()
    client = wire.connect().send(data, data)
    assert fed == []
    assert client.statuses == [200, 200]
    assert len(wire.records) == 2
    assert record.items() <= wire.records[1].items()
    assert wire.records[0] == wire.records[1]
    assert wire.metrics.requests.total() == 3


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize(
    "data",
    [
        post(b"2", "Connection: close"),
        post(b"2", "connection: Close", "Origin: https://a"),
        post(b"2", version="1.0"),
        post(b"2", "Connection: close", version="1.0"),
        pixel("Connection: close"),
        pixel().replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
)
def test_who_brings_one_event_and_ends_goes_the_short_way(fed, data, deferred):
    wire = taught(data)
    wire.tick.deferred = wire.deferred = deferred
    fed.clear()
    client = wire.connect()
    client.transport.receive(data)
    client.transport.receive(data)
    wire.loop.settle()
    wire.sync_all()
    assert fed == [data], "the read behind the last request, which nobody answers"
    (answer,) = client.answers()
    assert answer.status == 200
    assert answer.headers["Connection"] == "close"
    assert client.closed
    assert len(wire.records) == 1
    assert (wire.budget.requests, wire.tick.arrivals.unread, len(wire.tick.crowd.admitted)) == (0, 0, 0)


def test_the_answer_is_the_one_of_its_kind_and_origin(fed):
    wire = taught(post(b"1", "Origin: https://a"), pixel())
    fed.clear()
    posted, shown = wire.connect().send(post(b"1", "Origin: https://b"), pixel()).answers()
    assert fed == []
    assert posted.headers["Access-Control-Allow-Origin"] == "https://b"
    assert posted.body == b""
    assert shown.headers["Content-Type"] == "image/gif"
    assert "Access-Control-Allow-Origin" not in shown.headers


def test_an_event_taken_the_short_way_moves_the_idle_deadline():
    wire = taught(post(b"1"))
    client = wire.connect()
    wire.pass_time(60)
    client.send(post(b"2"))
    wire.pass_time(60)
    assert not client.closed
    wire.pass_time(6)
    assert client.closed


@pytest.mark.parametrize(
    ("lesson", "data", "variables", "statuses"),
    [
        (post(b"1"), post(b"x" * 301), LIMITS, [413]),
        (pixel(), pixel(query="x" * 301), LIMITS, [413]),
        (post(b"1", "A: 1"), post(b"2", "A: " + "x" * 1200), LIMITS, [431]),
        (post(b"1", "A: 1"), post(b"2", "A: \x01"), {}, [400]),
        (post(b"1", "A: 1"), post(b"2", "A: b\rc"), {}, [400]),
        (post(b"1", "A: 1"), post(b"2", "A: b\nc"), {}, [400]),
        (post(b"1", "A: 1"), post(b"2", "A: b\r\n c"), {}, [400]),
        (post(b"1"), post(b"2").replace(b"Length: 1", b"Length: 1_0") + b"x" * 9, {}, [400]),
        (post(b"1"), post(b"2").replace(b"Length: 1", b"Length: " + b"9" * 5000), {}, [400]),
        (post(b"1"), post(b"2") + b"GARBAGE\r\n\r\n", {}, [200, 400]),
        (post(b"1"), post(b"2") + post(b"3"), {}, [200, 200]),
        (pixel(), pixel() + pixel(), {}, [200, 200]),
        (pixel(), b"GET /collect?a\r\nHost: x HTTP/1.1\r\n\r\n", {}, [400]),
        (post(b"1"), post(b"2").replace(b"c.example", b"a b"), {}, [400]),
        (post(b"1", AGENT), post(b"2", AGENT + " "), {}, [200]),
        (post(b"1"), post(b"{"), JSON, [400]),
        (post(b"1"), post(b"2") + b"\r\n", {}, [200]),
        (post(b"1", "Trail: a"), post(b"2", "Transfer-Encoding: chunked"), {}, [400]),
        (post(b"1", "Accept: a", "C: d"), post(b"2", "Accept: a", "Connection: close"), {}, [200]),
    ],
)
def test_what_only_looks_like_a_whole_event_is_left_to_the_parser(lesson, data, variables, statuses):
    wire = taught(lesson, **variables)
    assert wire.connect().send(data).statuses == statuses
    assert wire.loop.failures == []
    assert wire.connect().send(lesson).statuses == [200]


def test_the_last_answer_of_a_drain_says_so_in_a_known_layout_too():
    wire = taught(post(b"1"))
    client = wire.connect()
    client.transport.receive(post(b"2")[:10])
    wire.loop.settle()
    wire.tick.drain()
    client.send(post(b"2")[10:])
    (answer,) = client.answers()
    assert answer.headers["Connection"] == "close"
    late = wire.connect()
    (answer,) = late.send(post(b"3")).answers()
    assert answer.headers["Connection"] == "close"


def test_a_read_that_begins_inside_a_request_is_never_taken_for_another():
    wire = taught(post(b"1"))
    inner = post(b"smuggled")
    client = wire.connect().send(request("POST", "/collect", f"Content-Length: {len(inner)}"), inner, post(b"2"))
    assert client.statuses == [200, 200]
    assert wire.events == [inner.decode(), "2"]


def test_who_sends_head_and_body_apart_is_not_asked_for_a_whole_event_until_one_came(fed):
    wire = taught(post(b"1"))
    data = post(b"2")
    head, body = data[:-1], data[-1:]
    client = wire.connect().send(head, body, head, body, data, data)
    assert fed[1:] == [head, body, head, body, data]
    assert wire.events == ["2"] * 4
    assert client.statuses == [200] * 4


def test_answers_keep_their_order_when_ways_alternate():
    wire = taught(post(b"1"), pixel())
    split = request("POST", "/collect", "Transfer-Encoding: chunked")
    client = wire.connect()
    for piece in (pixel(), split, chunked(b"2"), post(b"3"), request("GET", "/health"), pixel()):
        client.transport.receive(piece)
    wire.loop.settle()
    bodies = [answer.body[:3] for answer in client.answers()]
    assert bodies == [b"GIF", b"", b"", b"ok\n", b"GIF"]
    assert wire.events == ["a=b", "2", "3", "a=b"]


# What is learned.


@pytest.mark.parametrize(
    "data",
    [
        post(b"1", "Transfer-Encoding: identity"),
        post(b"1", "Expect: 100-continue"),
        post(b"1", "Upgrade: h2c"),
        post(b"1", "Connection: close, te"),
        post(b"1", "Connection: close "),
        post(b"1", "Connection: keep-alive, Upgrade"),
        post(b"1", "Proxy-Connection: close"),
        post(b"1", "Proxy-Connection: keep-alive"),
        post(b"1", AGENT, "user-agent: other"),
        post(b"1", "Cookie: a=1", "Cookie: b=2"),
        post(b"1", "X-Forwarded-For: 1.1.1.1", "x-forwarded-for: 2.2.2.2"),
        post(b"1", "Origin: https://a", "Origin: https://b"),
        post(b"1", "User-Agent:agent"),
        post(b"1", "User-Agent:  agent"),
        post(b"1", "User-Agent: "),
        post(b"1", "User-Agent: a "),
        post(b"1", "Connection: keep-alive "),
        post(b"1", "Connection:  keep-alive"),
        post(b"1", "Content-Encoding: identity"),
        post(b"1").replace(b"c.example", b"[::1]"),
        post(b"1", "Connection: keep-alive", version="1.0"),
        post(b"1", "Connection: close", "Connection: keep-alive", version="1.0"),
        post(b"1", version="1.2"),
        post(b"1").replace(b"HTTP/1.1", b"HTTP/2.0"),
        request("POST", "/collect", "Content-Length: 1", host=None, version="1.0") + b"1",
        post(b"1", target="/collect?a"),
        post(b"1", target="http://c.example/collect"),
        post(b"1", *(f"A{number}: b" for number in range(LINES_KEPT))),
        post(b"1", "A: " + "b" * HEAD_KEPT),
        pixel("Content-Length: 0"),
        request("POST", "/collect"),
        request("GET", "/collect"),
        request("GET", "/health"),
        b"\r\n" + post(b"1"),
    ],
)
def test_a_request_that_leaves_the_plain_path_is_not_learned(data):
    wire = taught(data)
    assert not knows(wire.layouts, data)
    assert wire.layouts.found == {}


def test_each_of_many_layouts_is_found():
    lines = ["User-Agent: aa", "Cookie: bb", "X-Forwarded-For: 9.9.9.9", "Accept: c"]
    orders = [post(b"1", *order) for order in permutations(lines)] + [pixel(*order) for order in permutations(lines, 2)]
    layouts = Layouts(HEADERS)
    for number, data in enumerate(orders[:LAYOUTS_KEPT]):
        layouts.learn(data, number * 1000)
    assert len(layouts.found) == LAYOUTS_KEPT
    for data in orders[:LAYOUTS_KEPT]:
        match = layouts.match(data)
        assert match is not None
        *_, where = layouts.found[match.lastindex]
        values = dict(zip((b"body", *HEADERS, b"length"), match.group(*where), strict=True))
        expected = {b"body": b"1" if b"POST" in data else b"a=b"}
        for line in lines:
            name, value = line.encode().split(b": ")
            if name.lower() in HEADERS:
                expected[name.lower()] = value if line.encode() in data else b""
        assert expected.items() <= values.items()


def test_no_more_than_so_many_layouts_are_kept_and_the_least_used_goes_E5():
    layouts = Layouts(HEADERS)
    for number in range(LAYOUTS_KEPT + 1):
        layouts.learn(layout(number), number * 1000)
        assert len(layouts.found) <= LAYOUTS_KEPT
    assert not knows(layouts, layout(LAYOUTS_KEPT - 1)), "all are unused: the newest of them goes"
    assert all(knows(layouts, layout(number)) for number in [*range(LAYOUTS_KEPT - 1), LAYOUTS_KEPT])


def test_the_cost_of_a_lesson_sets_the_pause_after_it_E5():
    """The clock of lessons moves by what compiling costs; a second of a flood has a hundredth of a second of them."""
    spent = itertools.count(0.0, 0.0005)
    layouts = Layouts(HEADERS, clock=lambda: next(spent))
    compiled = set()
    for number in range(10_000):
        layouts.learn(layout(number), number / 10_000)
        compiled.add(layouts.match)
    assert 15 <= len(compiled) <= 21


def test_a_flood_of_new_layouts_does_not_push_out_what_is_in_use_E5():
    layouts = Layouts(HEADERS)
    used = [layout(1000 + number) for number in range(4)]
    for number, data in enumerate(used):
        layouts.learn(data, number * 1000)
    for number in range(500):
        for data in used:
            match = layouts.match(data)
            assert match is not None
            layouts.met[match.lastindex] += 1
        layouts.learn(layout(number), 1e6 + number * 1000)
        assert len(layouts.found) <= LAYOUTS_KEPT
    assert all(knows(layouts, data) for data in used)
    assert knows(layouts, layout(499)), "what is new has its chance"


def test_what_fell_out_of_use_gives_way_E5():
    layouts = Layouts(HEADERS)
    old, new = [layout(number) for number in range(LAYOUTS_KEPT)], [layout(100 + n) for n in range(LAYOUTS_KEPT)]
    for number, data in enumerate(old + new):
        layouts.learn(data, number * 1000)
        for _ in range(50):
            for known in (old + new)[max(0, number + 1 - LAYOUTS_KEPT) : number + 1]:
                match = layouts.match(known)
                layouts.met[match and match.lastindex] += 1
    assert all(knows(layouts, data) for data in new[1:])


def test_the_size_of_all_layouts_together_is_bounded_E5():
    layouts = Layouts(HEADERS)
    for number in range(40):
        lines = ("A: a" if digit == "1" else "B: b" for digit in f"{number:040b}")
        layouts.learn(post(b"1", *lines), number * 1000)
        assert sum(map(len, layouts._known)) <= LINES_KNOWN
    assert layouts.found


def test_a_layout_seen_again_is_no_lesson_and_forgets_nothing():
    layouts = Layouts(HEADERS)
    for number in range(LAYOUTS_KEPT):
        layouts.learn(layout(number), number * 1000)
    known = layouts.match
    layouts.learn(layout(3), 1e9)
    assert layouts.match is known
    assert len(layouts.found) == LAYOUTS_KEPT


def test_a_flood_of_what_cannot_be_learned_is_not_looked_at_one_by_one(monkeypatch):
    looked_at = []
    look = Layouts._lines_of

    def record(self: Layouts, data: bytes) -> object:
        looked_at.append(data)
        return look(self, data)

    monkeypatch.setattr(Layouts, "_lines_of", record)
    layouts = Layouts(HEADERS)
    for number in range(10_000):
        layouts.learn(post(b"1", "User-Agent: "), number / 10_000)
    assert 1 < len(looked_at) <= 51


@pytest.mark.parametrize("name", ["Host", "Connection", "Origin", "Content-Length", "User-Agent"])
def test_a_header_that_means_something_else_may_name_the_client_too(name):
    headers = ("Connection: keep-alive", "Origin: https://a", AGENT)
    reads = [post(b"1", *headers).replace(b"c.example", b"9.9.9.9")] * 2
    wire = taught(*reads, **LIMITS | {"CLIENT_IP_HEADERS": f"{name},X-Forwarded-For"})
    wire.connect().send(*reads)
    assert wire.records[0]["ip"] == ("9.9.9.9" if name == "Host" else "10.0.0.1")
    assert wire.records[0] == wire.records[1]


def test_a_value_of_one_byte_has_a_layout_of_its_own(fed):
    wire = taught(post(b"1", "Sec-GPC: 1"), post(b"1", "Sec-GPC: 11"), RESPECT_GPC="true")
    fed.clear()
    wire.connect().send(post(b"2", "Sec-GPC: 1"), post(b"3", "Sec-GPC: 0"), post(b"4", "Sec-GPC: 10"))
    assert fed == []
    assert [record["ip"] for record in wire.records] == ["", "10.0.0.1", "10.0.0.1"]
    wire.connect().send(post(b"5", "Sec-GPC:  "), post(b"6", "Sec-GPC: \t"))
    assert len(fed) == 2
    assert [record["ip"] for record in wire.records[3:]] == ["10.0.0.1", "10.0.0.1"]


def test_where_a_name_only_begins_so_nothing_is_learned_and_all_is_told(fed):
    data = post(b"1", "Ce-Id: 1", "Ce-Type: a", "Accept: b")
    wire = taught(data, EXTRA_HEADERS="ce-*")
    fed.clear()
    wire.connect().send(data)
    assert fed == [data]
    assert wire.records[0]["headers"] == {"ce-id": "1", "ce-type": "a"}


# Against the parser alone.

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=30).map(str.strip)
ADDRESSES = st.sampled_from(["203.0.113.7", "203.0.113.7, 10.0.0.2", "2001:db8::1", "[2001:db8::1]:443", "x, 9.9.9.9"])
CONTENTS = st.one_of(st.binary(max_size=80), st.sampled_from([b"{}", b'{"a": [1, "\\u20ac"]}', b'"\xe2\x80\xa8"']))


@pytest.mark.parametrize("name", CORPUS)
@settings(max_examples=25)
@given(
    agent=TEXTS.filter(lambda text: len(text) > 1),
    cookie=TEXTS.filter(lambda text: len(text) > 1),
    address=ADDRESSES,
    content=CONTENTS,
    body_format=st.sampled_from(["text", "json"]),
    switches=st.sampled_from([{}, PRIVATE]),
)
def test_the_short_way_and_the_long_way_store_the_same_line(
    name, agent, cookie, address, content, body_format, switches
):
    variables = {"BODY_FORMAT": body_format, **switches}
    data = filled(name, agent=agent, cookie=cookie, address=address, content=content)
    short = taught(filled(name), **variables)
    long = Wire(variables, peer=PROXY, learns=False)
    long.loop.now = short.loop.now
    assert knows(short.layouts, data), "the corpus is of requests that are learned"
    sent = [bytes(wire.connect().send(data).transport.sent) for wire in (short, long)]
    assert short.lines == long.lines
    assert sent[0] == sent[1]
    assert short.loop.failures == long.loop.failures == []


lines = st.lists(
    st.sampled_from(
        [
            AGENT,
            "user-agent: other",
            "Cookie: a=1",
            "Origin: https://a.example",
            "X-Forwarded-For: 203.0.113.7",
            "CloudFront-Viewer-Address: 203.0.113.8:99",
            "Accept: */*",
            "Connection: keep-alive",
            "Connection: close",
            "Expect: 100-continue",
            "Transfer-Encoding: chunked",
            "Upgrade: h2c",
            "X-Empty:",
            "Content-Type: text/plain",
            "Sec-GPC: 1",
            "SP-Anonymous: *",
            "X-Write-Key: s3cret",
        ]
    ),
    max_size=5,
)
bodies = st.sampled_from([b"", b"1", b'{"a":1}', b"\xff\r\n\r\n", b"x" * 300])
events = st.one_of(
    st.builds(
        lambda body, head, version: post(body, *head, version=version), bodies, lines, st.sampled_from(["1.1", "1.0"])
    ),
    st.builds(
        lambda body, head: request("POST", "/collect", f"Content-Length: {len(body)}", *head) + body, bodies, lines
    ),
    st.builds(lambda head: pixel(*head), lines),
)


@st.composite
def lesson_and_variation(draw: st.DrawFn) -> tuple[bytes, bytes]:
    lesson = draw(events)
    data = bytearray(lesson)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data) - 1))
        kind = draw(st.sampled_from(["replace", "insert", "delete"]))
        byte = draw(st.sampled_from(b"\r\n :;,?#019aA\t\x00\x01\x7f\x80\xff"))
        if kind == "replace":
            data[at] = byte
        elif kind == "insert":
            data.insert(at, byte)
        elif len(data) > 1:
            del data[at]
    return lesson, bytes(data)


def outcome(wire: Wire, reads: list[bytes]) -> tuple[object, ...]:
    before = counted(wire)
    held = wire.budget.requests
    client: Client = wire.connect()
    for data in reads:
        client.transport.receive(data)
        wire.loop.settle()
    assert wire.loop.failures == []
    state, deadline = client.connection.state, client.connection.deadline - wire.loop.now
    client.end()
    metrics = {name: count - before[name] for name, count in counted(wire).items()}
    return (
        wire.records,
        bytes(client.transport.sent),
        state,
        deadline,
        metrics,
        wire.budget.requests - held,
        client.closed,
    )


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(
    pairs=st.lists(lesson_and_variation(), min_size=1, max_size=4),
    variables=st.sampled_from(
        [
            {},
            LIMITS,
            JSON,
            {"CORS_ORIGINS": "https://b.example"},
            {"RATE_LIMIT": "1/s", "RATE_BURST": "3"},
            PRIVATE,
            PRIVATE | {"EXTRA_HEADERS": "c*", "WRITE_KEYS": "web:s3cret"},
        ]
    ),
)
@example(pairs=[(post(b"1", "A: 1"), post(b"1", "A:\x00"))], variables={})
@example(pairs=[(pixel(), b"GET /collect?a\r\nHost: x HTTP/1.1\r\n\r\n")], variables={})
def test_a_known_layout_changes_nothing_but_the_cost(pairs, variables):
    known = taught(*(lesson for lesson, _ in pairs), **variables)
    known.loop.now += 10  # the events of the lessons count no longer
    unknown = Wire(variables, peer=PROXY, learns=False)
    unknown.loop.now = known.loop.now
    reads = [data for _, data in pairs]
    assert outcome(known, reads) == outcome(unknown, reads)
