"""What browsers get under SCRIPT_PATH: small, sound, and made for the paths of its process."""

import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path

import duckdb
import pytest

from ingest.config.settings import load
from ingest.event import NOT_FOUND, Page, unless_known
from ingest.event.routes import Show
from ingest.event.script import script_page
from ingest.event.sdks import routers

PAGE = script_page("/estat.js", "/collect")
NODE = shutil.which("node")


def tag(page):
    return dict(page.headers)["ETag"]


def test_the_script_is_less_than_3_kib_and_has_no_comment():
    assert len(gzip.compress(PAGE.body, mtime=0)) < 3 * 1024
    assert not [line for line in PAGE.body.splitlines() if not line or line.startswith((b"//", b" "))]


@pytest.mark.skipif(NODE is None, reason="no node that could read it")
def test_what_is_left_without_comments_is_a_script(tmp_path):
    path = tmp_path / "estat.js"
    path.write_bytes(PAGE.body)
    subprocess.run([NODE, "--check", path], check=True, timeout=60)


def test_it_has_the_paths_of_the_process_and_no_others():
    own = script_page("/o.js", "/orders")
    assert [line for line in own.body.splitlines() if line not in PAGE.body.splitlines()] == [
        b'const SCRIPT = "/o.js";',
        b'const BATCH = "/orders/batch";',
    ]
    assert len(own.body.splitlines()) == len(PAGE.body.splitlines())


def test_its_tag_changes_with_its_content_and_only_then():
    assert tag(PAGE) == tag(script_page("/estat.js", "/collect"))
    assert len({tag(PAGE), tag(script_page("/e.js", "/collect")), tag(script_page("/estat.js", "/c"))}) == 3


@pytest.mark.parametrize(
    ("known", "status"),
    [
        ("{}", 304),
        ("W/{}", 304),
        ('"a", W/{} ,"b"', 304),
        ("*", 304),
        ('"a"', 200),
        ("", 200),
        ("{}x", 200),
    ],
)
def test_who_has_it_gets_304(known, status):
    page = unless_known(PAGE, known.format(tag(PAGE)).encode())
    assert page.status == status
    if status == 304:
        assert page.body == b""
        assert dict(PAGE.headers).keys() - dict(page.headers).keys() == {"Content-Type"}


def test_a_page_without_a_tag_is_shown_whatever_is_known():
    page = Page(200, (("Cache-Control", "no-store"),), b"ok\n")
    assert unless_known(page, b"*") is page


def test_it_is_where_the_setting_says_and_nowhere_with_none():
    everybody, direct = routers(load({"SCRIPT_PATH": "/o.js", "COLLECT_PATHS": "/orders"}))
    for router in (everybody, direct):
        handler, _ = router.find(b"GET", b"/o.js")
        assert isinstance(handler, Show)
        assert handler.page(None) == script_page("/o.js", "/orders")
        assert router.find(b"GET", b"/estat.js")[0] is router.missing
    nowhere, _ = routers(load({"SCRIPT_PATH": "none"}))
    assert nowhere.find(b"GET", b"/estat.js")[0] == NOT_FOUND


def test_the_view_of_the_page_on_browsers_drops_doubles_and_what_is_none_of_the_scripts(tmp_path):
    page = (Path(__file__).parents[2] / "docs/browsers.md").read_text()
    (view,) = re.findall(r"(?ms)^```sql\n(.*?)^```", page)
    folder = tmp_path / "dt=2026-11-23" / "hr=13"
    folder.mkdir(parents=True)
    bodies = [f'{{"id":"{number}","event":"e{number}"}}' for number in (1, 2, 1, 1)]
    lines = [
        {"ts": 9 - at, "ip": "", "user_agent": "", "cookie": "", "body": body}
        for at, body in enumerate([*bodies, "e=pixel", "{}", "{torn", ""])
    ]
    with gzip.open(folder / "1_h-0_0000000001.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    database = duckdb.connect()
    database.sql(view.replace("data/objects/raw", str(tmp_path)))
    assert database.sql("SELECT ts, event FROM browser_events ORDER BY event").fetchall() == [(6, "e1"), (8, "e2")]
