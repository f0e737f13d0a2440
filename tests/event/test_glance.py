"""The status as a page: for who asks for HTML, whole in itself, and with nothing in it that a browser would run."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from ingest.event.glance import glance
from ingest.event.pages import wants_html
from ingest.telemetry.status import About, Disk, LastError, LastMinute, Phase
from tests.stand_ins.wire import LOCAL, WELL, Wire, request

FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
EVIL = "<script src=//x.example></script>\"'&\ud800"
FULL = replace(
    WELL,
    phase=Phase.STORE_AWAY,
    error=EVIL,
    next_try=12.0,
    room_left=7200 * 1024,
    last_minute=LastMinute(1234.5, 1.0, 0.005, float("inf"), 1024.0),
    pending={"open": 3, "dlq": 1_000_000},
    oldest_pending=WELL.since,
    disk=Disk(1 << 30, 18 << 30, 5 << 30),
    last_error=LastError(EVIL, EVIL, WELL.since),
    about=About(slots={EVIL: EVIL}, settings={"CORS_ORIGINS": EVIL}, store=EVIL),
)


class Seen(HTMLParser):
    """What a browser makes of a page: its elements with their attributes, and the rows it shows."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.rows, self._text = [], {}, ""
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._text = ""

    def handle_data(self, data):
        self._text += data

    def handle_endtag(self, tag):
        if tag == "dt":
            self._name = self._text
        elif tag == "dd":
            self.rows[self._name] = self._text


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (FIREFOX, True),
        ("TEXT/HTML", True),
        ("application/json;q=0.5, text/html ; level=1 ; q=0.9", True),
        ("*/*", False),
        ("", False),
        ("text/*", False),
        ("application/json, text/html;q=0.9", False),
        ("text/html;q=0", False),
        ("text/html;q=0.000", False),
        ("text/html;q=nan", False),
        ("text/html;q=-1", False),
        ("text/htmlx", False),
        (",;,=;q", False),
    ],
)
def test_only_who_names_html_before_json_gets_the_page(accept, html):
    assert wants_html(accept.encode()) is html


def test_one_path_has_both_and_a_cache_is_told():
    wire = Wire()
    wire.status = FULL
    client = wire.connect(LOCAL)
    client.send(
        request("GET", "/status", f"Accept: {FIREFOX}")
        + request("GET", "/status", "Accept: application/json", "accept: text/html;q=0.1")
        + request("HEAD", "/status", "accept: text/html")
        + request("GET", "/metrics", "Accept: text/html"),
    )
    page, figures, head, metrics = client.answers(heads=[2])
    assert (page.headers["Content-Type"], figures.headers["Content-Type"]) == (
        "text/html; charset=utf-8",
        "application/json",
    )
    assert page.headers["Vary"] == figures.headers["Vary"] == "Accept"
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert head.headers["Content-Length"].isdigit()
    assert metrics.headers["Content-Type"].startswith("text/plain")
    told = json.loads(figures.body)
    assert (told["is_well"], told["seconds_to_full"], told["pending"]) == (False, 7200.0, {"open": 3, "dlq": 1_000_000})
    assert told["last_minute"] | {"p50": 0.005, "p99": None} == told["last_minute"]
    assert told["last_error"]["at"] == told["since"]


def test_the_page_is_whole_in_itself_and_all_that_comes_from_outside_is_text():
    page = glance(FULL)
    seen = Seen(page)
    assert {tag for tag, _ in seen.elements} & {"script", "link", "img", "iframe", "object", "form", "a"} == set()
    assert {name for _, attributes in seen.elements for name in attributes} == {
        *("lang", "charset", "http-equiv", "content", "name", "class")
    }
    assert b"url(" not in page
    assert b"@import" not in page
    assert seen.rows["last error"].startswith("<script src=//x.example></script>\"'&?")
    assert seen.rows["CORS_ORIGINS"] == seen.rows["store"] == EVIL.replace("\ud800", "?")


def test_the_page_tells_what_an_operator_asks():
    rows = Seen(glance(FULL)).rows
    expected = {
        "accepted": "3",
        "half answered within": "5 ms",
        "99 % answered within": "longer than any bucket",
        "dead-letter queue": "1,000,000",
        "the oldest came": "2025-12-03T00:26:34Z",
        "taken by what waits": "1.0 GiB",
        "full at this pace in": "2.0 h",
        "next try in": "12 s",
    }
    assert {name: rows[name] for name in expected} == expected
    assert "workers" not in rows
    several = replace(FULL, about=replace(FULL.about, workers=3))
    assert Seen(glance(several)).rows["workers"] == "3"
    quiet = Seen(glance(WELL)).rows
    assert (quiet["half answered within"], quiet["full at this pace in"], quiet["last error"]) == (
        "no event came",
        "it does not grow",
        "none",
    )
