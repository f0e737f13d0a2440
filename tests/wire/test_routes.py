"""What each request is answered, however its bytes arrive."""

import base64
import json
import sys

import pytest

from ingest.event import PIXEL
from ingest.telemetry import Reason
from ingest.wire.answers import AnswerBook
from tests.stand_ins.wire import DATE, LOCAL, WELL, Wire, chunked, post, request

METHODS = {
    "/collect": "GET, HEAD, POST, OPTIONS",
    "/estat.js": "GET, HEAD",
    "/health": "GET, HEAD",
    "/ready": "GET, HEAD",
    "/metrics": "GET, HEAD",
    "/status": "GET, HEAD",
}


def test_post_is_an_event_and_answered_empty(feed):
    wire = Wire()
    client = wire.connect()
    feed(client, post(b'{"a":1}'))
    (answer,) = client.answers()
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers == {"Date": DATE.decode(), "Content-Length": "0"}
    assert wire.events == ['{"a":1}']
    assert not client.sees_end


def test_get_is_an_event_and_answered_with_a_pixel(feed):
    wire = Wire()
    client = wire.connect()
    feed(client, request("GET", "/collect?a=1&b=%20?c"))
    (answer,) = client.answers()
    assert (answer.status, answer.body) == (200, PIXEL.body)
    assert len(PIXEL.body) == 43
    assert answer.headers["Content-Type"] == "image/gif"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "cross-origin", "E16: a page under COEP may show it"
    assert answer.headers["Timing-Allow-Origin"] == "*"
    assert wire.events == ["a=1&b=%20?c"]


def test_an_empty_body_and_an_empty_query_are_events(feed):
    wire = Wire()
    client = wire.connect()
    feed(client, post(b"") + request("GET", "/collect") + request("GET", "/collect?") + request("POST", "/collect?"))
    assert client.statuses == [200] * 4
    assert wire.events == ["", "", "", ""]


def test_the_record_has_the_client_the_agent_and_the_cookie(feed):
    wire = Wire(peer=("10.1.2.3", 1))
    client = wire.connect()
    feed(
        client,
        post(b"b", "X-Forwarded-For: 203.0.113.7", "x-forwarded-for: 10.9.9.9", "USER-AGENT: A/1", "User-Agent: B")
        + post(b"c", "Cookie: a=1", "cookie: b=2"),
    )
    assert wire.lines == [
        b'{"ts":1764721594,"ip":"203.0.113.7","user_agent":"A/1","cookie":"","body":"b"}\n',
        b'{"ts":1764721594,"ip":"10.1.2.3","user_agent":"","cookie":"a=1; b=2","body":"c"}\n',
    ]


def test_the_query_of_a_post_is_kept_and_without_a_body_it_is_the_event_E11(feed):
    wire = Wire()
    client = wire.connect()
    feed(
        client,
        request("POST", "/collect?e=leave")
        + post(b"", target="/collect?e=%ff")
        + post(b"b", target="http://c.example/collect?q=1")
        + request("POST", "/collect?e=chunks", "Transfer-Encoding: chunked")
        + chunked()
        + post(b"plain"),
    )
    assert client.statuses == [200] * 5
    records = [json.loads(line) for line in wire.lines]
    assert [(record.get("query"), record["body"]) for record in records] == [
        (None, "e=leave"),
        (None, "e=%ff"),
        ("q=1", "b"),
        (None, "e=chunks"),
        (None, "plain"),
    ]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_query_above_the_limit_of_a_body_is_refused_E11(method, feed):
    wire = Wire({"MAX_BODY_SIZE": "100"})
    client = wire.connect()
    feed(client, request(method, "/collect?" + "q" * 100) + request(method, "/collect?" + "q" * 101) + post(b""))
    assert client.statuses == [200, 413]
    assert wire.events == ["q" * 100]


def test_a_body_that_is_not_utf_8_is_stored_whole_E10(feed):
    wire = Wire()
    client = wire.connect()
    body = bytes(range(256))
    feed(client, post(body) + request("POST", "/collect", "Transfer-Encoding: chunked") + chunked(body) + post(b"x"))
    assert client.statuses == [200] * 3
    for line in wire.lines[:2]:
        record = json.loads(line)
        assert (base64.b64decode(record["body_b64"]), record["body"]) == (body, "")
    assert wire.events == ["", "", "x"]


def test_head_is_answered_and_no_event(feed):
    wire = Wire()
    client = wire.connect()
    feed(client, request("HEAD", "/collect") + request("HEAD", "/health") + request("HEAD", "/nowhere") + post())
    answers = client.answers(heads=range(3))
    assert [answer.status for answer in answers] == [200, 200, 404, 200]
    assert (answers[0].headers["Content-Length"], answers[0].headers["Content-Type"]) == ("43", "image/gif"), (
        "as to GET"
    )
    assert answers[1].headers["Content-Length"] == "3"
    assert len(wire.events) == 1


def test_pages(feed):
    wire = Wire()
    client = wire.connect(LOCAL)
    pages = ("/health?probe=1", "/ready", "/metrics", "/status")
    feed(client, b"".join(request("GET", page) for page in pages))
    health, ready, metrics, status = client.answers()
    assert (health.status, health.body) == (200, b"ok\n")
    assert (ready.status, ready.body) == (200, b"ok\n")
    assert (metrics.status, metrics.body) == (200, b"# metrics\n")
    assert metrics.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert (status.status, status.headers["Content-Type"]) == (200, "application/json")
    told = json.loads(status.body)
    assert told["sentence"] == WELL.sentence()
    assert (told["phase"], told["since"], told["accepted"]) == ("serving", "2025-12-03T00:26:34Z", 3)
    assert wire.events == []


def test_ready_is_503_while_draining_and_health_is_not(feed):
    wire = Wire()
    wire.ready = False
    client = wire.connect()
    feed(client, request("GET", "/ready") + request("GET", "/health"))
    ready, health = client.answers()
    assert (ready.status, ready.headers["Retry-After"]) == (503, "1")
    assert health.status == 200


@pytest.mark.parametrize("path", ["/", "/collect/", "//collect", "/COLLECT", "/collec%74", "/healthz", "*"])
def test_another_path_is_404_and_the_connection_lives(path, feed):
    wire = Wire()
    client = wire.connect()
    feed(client, request("GET", path) + post())
    assert client.statuses == [404, 200]
    assert len(wire.events) == 1


@pytest.mark.parametrize(
    ("path", "method"),
    [
        (path, method)
        for path, allowed in METHODS.items()
        for method in ("PUT", "DELETE", "PATCH", "TRACE", "PROPFIND", "POST", "OPTIONS")
        if method not in allowed.split(", ")
    ],
)
def test_another_method_is_405_and_names_those_there_are(path, method, feed):
    wire = Wire()
    client = wire.connect(LOCAL)
    feed(client, request(method, path, "Content-Length: 2") + b"{}" + post())
    refused, accepted = client.answers()
    assert (refused.status, refused.headers["Allow"]) == (405, METHODS[path])
    assert accepted.status == 200
    assert len(wire.events) == 1


def test_a_body_of_no_event_is_read_and_left(feed):
    wire = Wire()
    client = wire.connect()
    body = b"GET /collect?smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    feed(
        client,
        request("GET", "/health", f"Content-Length: {len(body)}")
        + body
        + request("GET", "/collect?own", "Transfer-Encoding: chunked")
        + chunked(body)
        + post(b"last"),
    )
    assert client.statuses == [200, 200, 200]
    assert wire.events == ["own", "last"]


@pytest.mark.parametrize(
    ("target", "event"),
    [
        ("http://c.example/collect?q=1", "q=1"),
        ("http://c.example:8080/collect?q=1#f", "q=1"),
        ("https://user@c.example/collect", ""),
        ("HTTP://c.example/collect?x=/collect", "x=/collect"),
        ("/collect?q=1#f", "q=1"),
    ],
)
def test_any_form_of_target(target, event, feed):
    wire = Wire()
    client = wire.connect()
    feed(client, request("GET", target) + post(b"body", target=target))
    assert client.statuses == [200, 200]
    assert wire.events == [event, "body"]


def test_an_absolute_target_without_a_path_is_the_root(feed):
    wire = Wire()
    client = wire.connect()
    feed(client, request("GET", "http://c.example") + request("GET", "*"))
    assert client.statuses == [404, 404]


def test_options_of_the_server_is_answered(feed):
    wire = Wire()
    client = wire.connect()
    feed(client, request("OPTIONS", "*") + request("OPTIONS", "*", "Origin: https://shop.example") + post())
    plain, shop, _ = client.answers()
    assert (plain.status, shop.status) == (204, 204)
    assert plain.headers["Allow"] == METHODS["/collect"]
    assert shop.headers["Access-Control-Allow-Origin"] == "https://shop.example"


# CORS: the origin is echoed, for sendBeacon always sends credentials.


def test_options_answers_a_preflight(feed):
    wire = Wire()
    client = wire.connect()
    feed(
        client,
        request(
            "OPTIONS",
            "/collect",
            "Origin: https://shop.example",
            "Access-Control-Request-Method: POST",
            "Access-Control-Request-Headers: content-type,x-a",
        ),
    )
    (answer,) = client.answers()
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers == {
        "Date": DATE.decode(),
        "Allow": METHODS["/collect"],
        "Vary": "Origin",
        "Access-Control-Allow-Origin": "https://shop.example",
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Allow-Methods": METHODS["/collect"],
        "Access-Control-Allow-Headers": "content-type,x-a",
        "Access-Control-Max-Age": "86400",
        "Timing-Allow-Origin": "*",
    }


TO_PRIVATE = "Access-Control-Request-Private-Network: "
SHOPS = {"CORS_ORIGINS": "https://shop.example"}


@pytest.mark.parametrize(
    ("settings", "headers", "allowed"),
    [
        ({}, ("Origin: https://shop.example", TO_PRIVATE + "true"), "true"),
        (SHOPS, ("Origin: https://shop.example", TO_PRIVATE + "true "), "true"),
        (SHOPS, ("Origin: https://evil.example", TO_PRIVATE + "true"), None),
        ({}, ("Origin: https://shop.example", TO_PRIVATE + "false"), None),
        ({}, ("Origin: https://shop.example",), None),
        ({}, (TO_PRIVATE + "true",), None),
    ],
)
def test_a_page_from_outside_may_send_into_a_private_network_if_its_origin_may_send(settings, headers, allowed, feed):
    client = Wire(settings).connect()
    feed(client, request("OPTIONS", "/collect", *headers))
    (answer,) = client.answers()
    assert answer.status == 204
    assert answer.headers.get("Access-Control-Allow-Private-Network") == allowed


def test_what_a_cache_may_keep_says_that_it_depends_on_the_origin_though_there_was_none(feed):
    wire = Wire()
    wire.refuse = True
    client = wire.connect()
    feed(
        client,
        request("GET", "/nowhere")
        + request("PUT", "/collect")
        + request("GET", "/collect?1")
        + request("OPTIONS", "/collect")
        + request("GET", "/health"),
    )
    answers = client.answers()
    assert [(answer.status, answer.headers.get("Vary")) for answer in answers] == [
        (404, "Origin"),
        (405, "Origin"),
        (503, "Origin"),
        (204, "Origin"),
        (200, None),
    ]
    assert answers[-1].headers["Cache-Control"] == "no-store"


def test_options_without_an_origin_is_no_preflight(feed):
    wire = Wire()
    client = wire.connect()
    feed(client, request("OPTIONS", "/collect") + post())
    options, _ = client.answers()
    assert options.status == 204
    assert not any(name.startswith("Access-Control") for name in options.headers)


def test_the_script_is_one_copy_for_all_origins_and_sent_once(feed):
    client = Wire({"CORS_ORIGINS": "none"}).connect()
    feed(
        client,
        request("GET", "/estat.js") + request("GET", "/estat.js?v=1", "Origin: https://evil.example") + post(b"event"),
    )
    plain, crossed, _ = client.answers()
    assert plain == crossed
    assert plain.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert plain.headers["Cache-Control"] == "public, max-age=3600"
    assert plain.headers["Access-Control-Allow-Origin"] == "*", "a cache may give one page's copy to another"
    assert plain.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
    assert "Vary" not in plain.headers
    again = Wire().connect()
    feed(again, request("GET", "/estat.js", f"If-None-Match: {plain.headers['ETag']}") + post(b"event"))
    unchanged, accepted = again.answers()
    assert (unchanged.status, unchanged.body, accepted.status) == (304, b"", 200)
    assert unchanged.headers["ETag"] == plain.headers["ETag"]
    assert "Content-Length" not in unchanged.headers, "it would be that of the script"


WITH_ORIGIN = "Origin: https://shop.example"
ERRORS = {
    "200": (post(b"{}", WITH_ORIGIN), 200),
    "pixel": (request("GET", "/collect", WITH_ORIGIN), 200),
    "page": (request("GET", "/health", WITH_ORIGIN), 200),
    "404": (request("GET", "/no", WITH_ORIGIN), 404),
    "405": (request("PUT", "/collect", WITH_ORIGIN), 405),
    "400 of a chunk": (request("POST", "/collect", WITH_ORIGIN, "Transfer-Encoding: chunked") + b"zz\r\n", 400),
    "400 of two hosts": (request("POST", "/collect", WITH_ORIGIN, "Host: other"), 400),
    "400 of two hosts, the origin last": (request("POST", "/collect", "Host: other", WITH_ORIGIN), 400),
    "400 of no host": (request("POST", "/collect", WITH_ORIGIN, host=None), 400),
    "413": (request("POST", "/collect", WITH_ORIGIN, "Content-Length: 9999999"), 413),
    "431": (request("POST", "/collect", WITH_ORIGIN, "X: " + "x" * 20000), 431),
    "CONNECT": (request("CONNECT", "c.example:443", WITH_ORIGIN), 405),
}


@pytest.mark.parametrize(("data", "status"), ERRORS.values(), ids=ERRORS.keys())
def test_every_answer_to_an_origin_lets_its_page_read_it(data, status, feed):
    wire = Wire()
    client = wire.connect()
    feed(client, data)
    (answer,) = client.answers()
    assert answer.status == status
    assert answer.headers["Vary"] == "Origin"
    assert answer.headers["Access-Control-Allow-Origin"] == "https://shop.example"
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    assert "*" in answer.headers["Timing-Allow-Origin"]


def test_a_refusal_lets_its_page_read_it(feed):
    wire = Wire()
    wire.refuse = True
    client = wire.connect()
    feed(client, post(b"{}", WITH_ORIGIN) + request("GET", "/collect", WITH_ORIGIN))
    for answer in client.answers():
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert answer.headers["Access-Control-Allow-Origin"] == "https://shop.example"
        assert answer.headers["Access-Control-Expose-Headers"] == "Retry-After", "E16: a script may read it"
    assert len(client.answers()) == 2


def test_what_has_no_retry_after_exposes_nothing_E16(feed):
    wire = Wire({"CORS_ORIGINS": "https://shop.example"})
    wire.ready = False
    client = wire.connect()
    feed(
        client,
        post(b"{}", WITH_ORIGIN)
        + request("GET", "/nowhere", WITH_ORIGIN)
        + request("GET", "/ready", WITH_ORIGIN)
        + request("GET", "/ready", "Origin: https://evil.example")
        + request("GET", "/ready"),
    )
    exposed = [answer.headers.get("Access-Control-Expose-Headers") for answer in client.answers()]
    assert exposed == [None, None, "Retry-After", None, None]


def test_an_origin_that_is_not_allowed_gets_no_permission(feed):
    wire = Wire({"CORS_ORIGINS": "https://shop.example,https://other.example"})
    client = wire.connect()
    feed(
        client,
        post(b"1", "Origin: https://evil.example")
        + post(b"2", "Origin: https://other.example")
        + request("OPTIONS", "/collect", "Origin: https://evil.example")
        + post(b"3"),
    )
    evil, other, preflight, none = client.answers()
    assert evil.status == 403
    assert evil.headers["Vary"] == "Origin"
    assert "Access-Control-Allow-Origin" not in evil.headers
    assert other.headers["Access-Control-Allow-Origin"] == "https://other.example"
    assert not any(name.startswith("Access-Control") for name in preflight.headers)
    assert "Access-Control-Allow-Origin" not in none.headers
    assert wire.events == ["2", "3"]


def test_an_origin_sticks_to_its_own_request(feed):
    wire = Wire()
    client = wire.connect()
    feed(client, post(b"1", "Origin: https://a.example") + post(b"2") + post(b"3", "Origin: https://b.example"))
    allowed = [answer.headers.get("Access-Control-Allow-Origin") for answer in client.answers()]
    assert allowed == ["https://a.example", None, "https://b.example"]


def test_the_date_follows_the_clock_and_answers_of_many_origins_stay_right():
    wire = Wire()
    client = wire.connect()
    for second in range(3):
        wire.clock += second
        for number in range(600):
            client.send(post(b"", f"Origin: https://{number}.example"))
    answers = client.answers()
    assert len({answer.headers["Date"] for answer in answers}) == 3
    assert all(
        answer.headers["Access-Control-Allow-Origin"] == f"https://{number % 600}.example"
        for number, answer in enumerate(answers)
    )


# JSON bodies.


def test_json_bodies_are_embedded_and_others_refused_on_a_connection_that_lives(feed):
    wire = Wire({"BODY_FORMAT": "json"})
    client = wire.connect()
    feed(client, post(b'{"a": [1,\n2]}') + post(b"{nope") + post(b"") + request("GET", "/collect?a=1") + post(b"3"))
    assert client.statuses == [200, 400, 200, 200, 200]
    assert wire.events == [{"a": [1, 2]}, None, None, 3]
    assert json.loads(wire.lines[2])["query"] == "a=1"
    assert wire.metrics.rejected[Reason.NOT_JSON] == 1


def test_an_origin_that_is_new_costs_little_more_than_one_that_is_known():
    """Count calls: whoever sends another Origin with each event makes the answers for it each time."""
    book = AnswerBook(("*",))

    def calls(origin: bytes) -> int:
        counted = 0

        def count(_frame, event, _argument) -> None:
            nonlocal counted
            counted += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            book.of(origin)
        finally:
            sys.setprofile(before)
        return counted

    assert calls(b"https://a.example") <= calls(b"https://a.example") + 16
