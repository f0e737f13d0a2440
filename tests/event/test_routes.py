"""Every request has a handler, whatever the form of its target."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.config.settings import load
from ingest.event.pages import Pages
from ingest.event.refusals import NOT_FOUND, ClientError
from ingest.event.routes import COLLECT, Event, Preflight, Router, Show, Takes, split_target
from ingest.event.routes import ROUTES as PLAIN_ROUTES
from ingest.event.sdks import SDKS, events_of, routers, routes_of
from tests.stand_ins.wire import WELL

SDK_ROUTES = tuple(route for name in SDKS for route in routes_of(name))
ROUTES = (*PLAIN_ROUTES, *SDK_ROUTES)
ROUTER = Router(ROUTES)
PAGES = Pages(ready=lambda: True, metrics=lambda: ("text/plain", b"figures"), status=lambda: WELL)
METHODS = ("GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "PROPFIND", "get", "")


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path.decode())
@pytest.mark.parametrize("method", METHODS)
def test_a_method_of_a_path_is_handled_exactly_if_allow_names_it(route, method):
    handler, query = ROUTER.find(method.encode(), route.path + b"?q=1")
    allowed = method in route.methods.split(", ")
    assert isinstance(handler, ClientError) is not allowed
    assert query == b"q=1"
    if isinstance(handler, ClientError):
        assert handler.status == 405
        assert handler.close is (method == "CONNECT"), "what follows a CONNECT is no HTTP"


def test_no_path_has_two_rows():
    assert len({route.path for route in ROUTES}) == len(ROUTES)


@pytest.mark.parametrize("route", [route for route in ROUTES if route.get], ids=lambda route: route.path.decode())
def test_head_is_never_an_event_and_shows_what_get_shows(route):
    get, _ = ROUTER.find(b"GET", route.path)
    head, _ = ROUTER.find(b"HEAD", route.path)
    assert isinstance(head, Show)
    assert head.page(PAGES) == (get.page(PAGES) if isinstance(get, Show) else get.answer)


def test_events_stand_in_the_body_of_a_post_and_in_the_query_of_a_get():
    post, _ = ROUTER.find(b"POST", b"/collect")
    get, query = ROUTER.find(b"GET", b"/collect?a=1&b=%20?c#f")
    assert isinstance(post, Event)
    assert isinstance(get, Event)
    assert (post.takes, get.takes, query) == (Takes.BODY, Takes.QUERY, b"a=1&b=%20?c")
    assert ROUTER.find(b"OPTIONS", b"/collect")[0] == Preflight(COLLECT.methods)


def test_without_a_setting_there_are_the_plain_routes_and_no_sdks():
    everybody, direct = routers(load({}))
    for route in PLAIN_ROUTES:
        handler, _ = everybody.find(b"GET", route.path)
        assert (handler == NOT_FOUND) is route.operators
        assert direct.find(b"GET", route.path) == Router().find(b"GET", route.path)
    assert [everybody.find(b"POST", route.path)[0] for route in SDK_ROUTES] == [NOT_FOUND] * len(SDK_ROUTES)


def test_an_sdks_event_tells_its_path_and_nobody_elses_does():
    for route in SDK_ROUTES:
        for event in filter(None, (route.get, route.post)):
            assert event.path.encode() == route.path
            assert event.answer.status == 200, "some send again what got a 202 or a 204"
        assert route.preflight
    assert [event.path for route in PLAIN_ROUTES for event in (route.get, route.post) if isinstance(event, Event)] == [
        ""
    ] * 3


def test_each_collect_path_has_both_rows_and_a_404_names_the_first():
    settings = load({"COLLECT_PATHS": "/c,/d"})
    assert [route.path for route in events_of(settings)] == [b"/c", b"/c/batch", b"/d", b"/d/batch"]
    everybody, _ = routers(settings)
    for path in (b"/c", b"/d"):
        assert everybody.find(b"POST", path) == Router().find(b"POST", b"/collect")
        assert everybody.find(b"POST", path + b"/batch") == Router().find(b"POST", b"/collect/batch")
    found, _ = everybody.find(b"POST", b"/collect")
    assert found is everybody.missing
    assert "/c" in everybody.missing.reason


targets = st.one_of(
    st.binary(max_size=30),
    st.builds(
        b"".join,
        st.tuples(
            st.sampled_from([b"", b"http://c.example", b"https://u@c.example:8443", b"HTTP://[::1]"]),
            st.sampled_from([b"", b"/", b"/collect", b"/health", b"/Collect", b"/collect/", b"//collect", b"*"]),
            st.sampled_from([b"", b"?", b"?q=1", b"#f", b"?a#b?c", b"#?"]),
        ),
    ),
)


@given(method=st.sampled_from(METHODS).map(str.encode), target=targets)
@example(method=b"GET", target=b"")
@example(method=b"OPTIONS", target=b"*")
@example(method=b"CONNECT", target=b"c.example:443")
@example(method=b"POST", target=b"/\xff")
def test_any_request_finds_the_handler_of_its_path(method, target):
    handler, query = ROUTER.find(method, target)
    path, found_query = split_target(target)
    assert query == found_query or (query == b"" and target == path)
    rows = [route for route in ROUTES if route.path == path]
    if (method, target) == (b"OPTIONS", b"*"):
        assert isinstance(handler, Preflight)
    elif not rows and method != b"CONNECT":
        assert handler is NOT_FOUND
    elif isinstance(handler, ClientError):
        assert handler.status == 405
        assert rows == [] or method.decode() not in rows[0].methods.split(", ")


def test_absolute_targets_go_where_their_path_goes():
    for form in (b"http://c.example", b"https://c.example:8443", b"HTTP://u@c.example"):
        for route in ROUTES:
            assert ROUTER.find(b"GET", form + route.path + b"?x") == ROUTER.find(b"GET", route.path + b"?x")
    assert split_target(b"http://c.example") == (b"/", b"")
