"""What each SDK is answered, and what becomes of what it sends: the table of `SDKS`, path by path."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from urllib.parse import quote

import pytest

from ingest.event import PIXEL
from ingest.event.sdks import SDKS, routes_of
from tests.stand_ins.wire import NOW, Wire, counted, post, request

ANSWERS = {
    "segment": ("application/json", b'{"success":true}'),
    "snowplow": ("text/plain; charset=utf-8", b"ok"),
    "posthog": ("application/json", b'{"status":1}'),
}
EVERY = ",".join(SDKS)
ROWS = [(name, route) for name in SDKS for route in routes_of(name)]
POSTS = [(name, route.path.decode()) for name, route in ROWS if route.post]
GETS = [route.path.decode() for _, route in ROWS if route.get]
ONE_OF_EACH = {"segment": "/v1/batch", "snowplow": "/com.snowplowanalytics.snowplow/tp2", "posthog": "/batch/"}
ORIGIN = "Origin: https://a.example"
BODY = '{"batch":[{"event":"a"},{"event":"b"}],\n"sentAt":1}'
SECRET = "s3cret"
KEY = {"WRITE_KEYS": f"web:{SECRET}"}


def wire_with(**settings: str) -> Wire:
    return Wire({"SDK_ROUTES": EVERY, **settings})


def basic(user: str) -> str:
    return "Authorization: Basic " + base64.b64encode(f"{user}:".encode()).decode()


@pytest.mark.parametrize(("name", "path"), POSTS)
def test_a_post_is_stored_whole_with_its_path_and_answered_as_the_sdk_expects(name, path):
    wire = wire_with()
    client = wire.connect()
    client.send(post(BODY.encode(), ORIGIN, target=path) + post(b"", target=f"{path}?_=1"))
    kind, body = ANSWERS[name]
    for answer in client.answers():
        assert (answer.status, answer.headers["Content-Type"], answer.body) == (200, kind, body)
    assert client.answers()[0].headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert client.answers()[0].headers["Access-Control-Allow-Credentials"] == "true"
    plain = {"ts": NOW, "ip": "203.0.113.9", "user_agent": "", "cookie": ""}
    assert [list(record.items()) for record in wire.records] == [
        [*plain.items(), ("path", path), ("body", BODY)],
        [*plain.items(), ("path", path), ("query", "_=1"), ("body", "")],
    ], "one line a request, its keys in the order of every line; a query is never taken for the events"


@pytest.mark.parametrize("path", GETS)
def test_a_get_is_stored_with_its_path_and_answered_with_the_pixel(path):
    wire = wire_with()
    client = wire.connect()
    client.send(request("GET", f"{path}?e=pv&aid=shop") + request("HEAD", path))
    stored, shown = client.answers(heads=[1])
    assert (stored.status, stored.body) == (200, PIXEL.body)
    assert shown.status == 200
    assert [(record["path"], record["body"]) for record in wire.records] == [(path, "e=pv&aid=shop")]


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/batch", "/v1/import", "/v1/import/"),  # Segment: servers; Java with the slash
        "/v1/b",  # Segment: phones
        *("/v1/batch", "/v1/track", "/beacon/v1/batch"),  # RudderStack: servers and phones, pages
        *("/api/s/track", "/api/s/s2s/track", "/api/s/s2s/page", "/api/s/s2s/identify"),  # Jitsu: pages, servers
        "/com.snowplowanalytics.snowplow/tp2",
        *("/batch", "/batch/", "/capture/", "/e/", "/i/v0/e/"),  # PostHog
    ],
)
def test_where_the_sdks_that_are_named_send_is_a_route(path):
    assert path in {posted for _, posted in POSTS}


def test_with_json_bodies_are_values_and_a_query_is_no_body():
    wire = wire_with(BODY_FORMAT="json", TS_MS="true")
    client = wire.connect()
    client.send(post(BODY.encode(), target="/v1/batch") + request("GET", "/i?e=pv") + post(b"data=e30", target="/e/"))
    assert client.statuses == [200, 200, 400]
    assert [list(record)[4:] for record in wire.records] == [
        ["ts_ms", "path", "body"],
        ["ts_ms", "path", "query", "body"],
    ]
    assert wire.events == [json.loads(BODY), None]


def test_without_the_setting_no_sdk_has_a_path():
    client = Wire().connect()
    client.send(b"".join(post(b"{}", target=path) for _, path in POSTS))
    assert client.statuses == [404] * len(POSTS)


@pytest.mark.parametrize("coding", ["identity", "gzip", "deflate"])
@pytest.mark.parametrize("path", ONE_OF_EACH.values())
def test_a_body_in_a_coding_is_stored_decoded(path, coding, feed):
    packed = {"identity": bytes, "gzip": gzip.compress, "deflate": zlib.compress}[coding]
    wire = wire_with()
    client = wire.connect()
    headers = (f"Content-Encoding: {coding}", "Content-Type: application/x-www-form-urlencoded")
    feed(client, post(packed(BODY.encode()), *headers, target=path))
    assert (client.statuses, wire.events) == ([200], [BODY])


def test_gzip_without_a_word_is_decoded_where_posthogs_browser_half_sends_it(feed):
    wire = wire_with()
    client = wire.connect()
    packed = gzip.compress(BODY.encode())
    feed(
        client,
        post(packed, "Content-Type: text/plain", target="/e/?compression=gzip-js")
        + post(BODY.encode(), target="/e/")
        + post(b"", target="/e/")
        + post(packed[:-1], target="/e/")
        + post(packed, target="/v1/t"),
    )
    assert client.statuses == [200, 200, 200, 400, 200]
    assert wire.events == [BODY, BODY, "", ""]
    assert base64.b64decode(wire.records[-1]["body_b64"]) == packed, "elsewhere it is what it is"


def test_what_posthogs_browser_half_sends_from_a_page_that_is_left_is_decoded(feed):
    """`sendBeacon` without gzip: base64 in a form."""
    text = '{"event":"$pageleave","properties":{"token":"s3cret","q":"\u00ff\u00ff?>~"}}'
    form = b"data=" + quote(base64.b64encode(text.encode()).decode(), safe="").encode()
    assert b"%" in form
    others = [b"data=", b"data=e30", b"data=e30=&k=1", b"data=%7B%7D", b"datum=e30%3D"]
    wire = wire_with(**KEY)
    client = wire.connect()
    feed(client, post(form, target="/e/?compression=base64"))
    assert (client.statuses, wire.events, wire.records[0]["key"]) == ([200], [text], "web")
    wire = wire_with()
    client = wire.connect()
    feed(client, b"".join(post(other, target="/e/") for other in others) + post(form, target="/v1/t"))
    assert wire.events == [other.decode() for other in [*others, form]], "any other body is stored as it came"


@pytest.mark.parametrize(("name", "status"), [("segment", 413), ("snowplow", 422), ("posthog", 413)])
def test_too_large_is_told_so_that_the_sdk_gives_up(name, status, feed):
    """A Snowplow tracker sends what got a 413 again for ever, before all that came later."""
    path = ONE_OF_EACH[name]
    bomb = gzip.compress(b"x" * 301)
    for wrong in (
        post(b"x" * 301, target=path),
        post(bomb, "Content-Encoding: gzip", target=path),
        request("POST", path, "Transfer-Encoding: chunked") + b"12d\r\n" + b"x" * 301 + b"\r\n0\r\n\r\n",
        post(b"", target=f"{path}?{'q' * 101}"),
    ):
        wire = wire_with(MAX_BATCH_BODY_SIZE="300", MAX_BODY_SIZE="100")
        client = wire.connect()
        feed(client, post(b"x" * 300, target=path) + wrong)
        assert client.statuses == [200, status]
        assert counted(wire)["body_too_large"] == 1
    client = wire_with(MAX_BODY_SIZE="100").connect()
    client.send(request("GET", f"/i?{'q' * 101}"))
    assert client.statuses == [422]


def test_one_line_is_never_so_long_that_a_reader_takes_it_for_damage():
    wire = wire_with(MAX_BATCH_BODY_SIZE="16MiB")
    assert wire.tick.limits.whole * 6 < 64 << 20
    client = wire.connect()
    client.send(request("POST", "/v1/batch", f"Content-Length: {(8 << 20) + 1}"))
    assert client.statuses == [413]


@pytest.mark.parametrize(("name", "route"), ROWS, ids=[route.path.decode() for _, route in ROWS])
def test_a_preflight_names_what_the_sdk_sends_and_what_was_asked_for(name, route):
    client = wire_with().connect()
    asked = "Access-Control-Request-Headers: X-Custom,Content-Type"
    path = route.path.decode()
    client.send(request("OPTIONS", path, ORIGIN, asked) + request("OPTIONS", path, ORIGIN))
    for answer, more in zip(client.answers(), (["X-Custom"], []), strict=True):
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Methods"] == route.methods
        assert answer.headers["Access-Control-Allow-Headers"].split(", ") == [*SDKS[name].headers, *more]


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (post(BODY.encode(), basic(SECRET), target="/v1/batch"), BODY),
        (post(b"{}", f"X-Write-Key: {SECRET}", target="/api/s/track"), "{}"),
        (post(b"{}", f"X-Write-Key: {SECRET}", target="/api/s/s2s/track"), "{}"),
        (post(b"{}", basic(SECRET), target="/v1/import/"), "{}"),
        (post(b'{"writeKey":"s3cret"}', target="/v1/t"), '{"writeKey":"s3cret"}'),
        (post(b"{}", target=f"/beacon/v1/batch?writeKey={SECRET}"), "{}"),
        (request("GET", f"/pixel/v1/track?writeKey={SECRET}&event=a"), "event=a"),
        (post(gzip.compress(b'{"api_key":"s3cret"}'), target="/batch/"), '{"api_key":"s3cret"}'),
        (post(b'[{"properties":{"token":"s3cret"}}]', target="/e/"), '[{"properties":{"token":"s3cret"}}]'),
        (post(b"{}", f"X-Write-Key: {SECRET}", target=ONE_OF_EACH["snowplow"]), "{}"),
    ],
)
def test_a_key_is_found_where_the_sdk_puts_it(data, body):
    wire = wire_with(**KEY)
    wire.connect().send(data)
    assert [(record["key"], record["body"]) for record in wire.records] == [("web", body)]
    assert all("query" not in record for record in wire.records), "a key in a query is not stored"
    wrong = wire_with(WRITE_KEYS="web:other")
    client = wrong.connect()
    client.send(data)
    assert (client.statuses, wrong.lines) == ([401], [])


@pytest.mark.parametrize("path", ONE_OF_EACH.values())
def test_what_is_refused_is_refused_as_any_event_is(path, feed):
    wire = wire_with()
    wire.refuse = True
    client = wire.connect()
    feed(client, post(b"{}", target=path) + post(b"{}", "Connection: close", target=path))
    assert [(answer.status, answer.headers["Retry-After"]) for answer in client.answers()] == [(503, "1")] * 2
    assert client.sees_end
    assert wire.lines == []


def test_answers_to_one_origin_are_one_object_for_a_second():
    wire = Wire({"SDK_ROUTES": EVERY}, deferred=True)
    client = wire.connect()
    client.send(post(b"1", target="/v1/t") + post(b"2", target="/v1/t"))
    first, second = (entry[1] for entry in wire.commits[0].entries)
    assert first is second, "an answer that waits for the disk is counted as one that is shared"
    wire.sync_all()
    assert client.statuses == [200, 200]


def test_http_1_0_and_pipelines_are_answered_in_order(feed):
    client = wire_with().connect()
    kept = post(b"1", "Connection: keep-alive", target="/v1/t", version="1.0")
    feed(client, post(b"0") + kept + post(b"2", target="/e/") + post(b"3", "Connection: close", target="/v1/t"))
    assert [answer.body for answer in client.answers()] == [
        b"",
        b'{"success":true}',
        b'{"status":1}',
        b'{"success":true}',
    ]
    assert [answer.headers.get("Connection") for answer in client.answers()] == [None, "keep-alive", None, "close"]
    assert client.sees_end
