"""The views of docs/sdks.md make a row of each event, run on what the SDKs really sent: a line of each is kept.

`python -m tests.sdks --keep tests/data/sdks.jsonl` writes these lines anew.
"""

import base64
import gzip
import json
import re
from collections import Counter

import pytest

from tests.process.collector import REPOSITORY
from tests.sdks import views

KEPT = (REPOSITORY / "tests" / "data" / "sdks.jsonl").read_text().splitlines()


def line(path, body, **more):
    return json.dumps({"ts": 1, "ip": "", "user_agent": "", "cookie": "", "path": path, "body": body} | more)


def in_base64(event):
    return f"e=ue&uid=u&ue_px={base64.urlsafe_b64encode(event).decode()}"


@pytest.fixture
def rows_of(tmp_path):
    def rows(*lines):
        folder = tmp_path / "dt=2026-11-25" / "hr=17"
        folder.mkdir(parents=True)
        (folder / "1_a-0_0.jsonl.gz").write_bytes(gzip.compress("".join(f"{one}\n" for one in lines).encode()))
        return views.rows(tmp_path)

    return rows


def test_each_event_that_an_sdk_sent_is_a_row_with_its_id_name_user_and_properties(rows_of):
    rows = rows_of(*KEPT)
    keys = [json.loads(one)["key"] for one in KEPT]
    sent = {key: set(re.findall(rf"{key}-(\d{{4}})\b", one)) for key, one in zip(keys, KEPT, strict=True)}
    found = {}
    for row in rows:
        key, _, number = json.loads(row["properties"])["probe"].rpartition("-")
        assert key == row["key"]
        assert row["name"] == ("ue" if key.startswith("snowplow") else "bought")
        assert row["user_id"] == "u1"
        assert json.loads(row["properties"])["price"] == 9.5
        assert row["id"] in row["payload"]
        found.setdefault(key, set()).add(number)
    assert found == sent
    assert len({row["id"] for row in rows}) == len(rows) > len(KEPT)


def test_what_was_stored_twice_is_one_row(rows_of):
    again = line("/e/", '{"event":"a"}')
    rows = rows_of(*KEPT, *KEPT, again, again)
    twice = Counter(row["id"] for row in rows)
    assert twice.pop(None) == 2, "an event without an id is never taken for another"
    assert set(twice.values()) == {1}


@pytest.mark.parametrize(
    ("stored", "name", "user", "properties"),
    [
        (
            line("/e/", '[{"event":"$pageview","properties":{"distinct_id":"u"}}]'),
            *("$pageview", "u", {"distinct_id": "u"}),
        ),
        (line("/v1/identify", '{"userId":"u"}'), "identify", "u", None),
        (line("/v1/alias/", '{"userId":"u"}'), "alias", "u", None),
        (line("/api/s/s2s/group", '{"userId":"u"}'), "group", "u", None),
        (line("/v1/t", '{"type":"track","event":"a","anonymousId":"u","properties":{"p":1}}'), "a", "u", {"p": 1}),
        (line("/pixel/v1/track", "event=a+b&anonymousId=%7Bu&anonymousId=2"), "a b", "{u", None),
        (line("/i", in_base64(b'{"data":{"data":{"p":"?>"}}}')), "ue", "u", {"p": "?>"}),
        (line("/i", in_base64(b'{"data":{"data":{}}}').rstrip("=")), "ue", "u", {}),
        (line("/i", "e=pv&duid=u&page"), "pv", "u", None),
    ],
)
def test_a_browsers_event_is_a_row(stored, name, user, properties, rows_of):
    (row,) = rows_of(stored)
    found = row["properties"] and json.loads(row["properties"])
    assert (row["name"], row["user_id"], found) == (name, user, properties)


def test_what_anybody_may_send_takes_no_row_from_others(rows_of):
    """One line that ended the query would hide the whole hour."""
    nonsense = [
        *(line("/e/", body) for body in ("", "no JSON", '{"batch":', "3", "null", "[]", '{"batch":{}}', "\\")),
        *(line("/i", body) for body in ("", "&&=&a", "%ff=%zz&=", "e=ue&ue_pr=garbage", "e=ue&ue_px=%25", "a=1&a=2")),
        line("/com.snowplowanalytics.snowplow/tp2", '{"data":[{"ue_pr":"{"},{"ue_px":"_w"},7]}'),
        json.dumps({"ts": 1, "ip": "", "user_agent": "", "cookie": "", "body": '{"event":"no SDK\'s"}'}),
        line("/e/", "", body_b64="/w=="),
    ]
    rows = rows_of(*nonsense, *KEPT)
    assert len([row for row in rows if row["key"]]) > len(KEPT)
    assert not [row for row in rows if row["name"] == "no SDK's"]


def test_the_views_of_all_engines_have_the_same_columns_and_find_the_name_in_the_path_alike():
    for engine in ("spark", "athena"):
        *_, last = re.findall(r"SELECT (.*)\nFROM numbered", views.sql(engine))
        assert last == views.COLUMNS
    for engine in ("duckdb", "spark", "athena"):
        assert "regexp_extract(path, '([^/]+)/?$', 1)) AS name" in views.sql(engine)
