"""Many events in one request, on a connection: one answer, one commit, and bounds on both."""

from __future__ import annotations

import gzip
import json

import pytest

from ingest.event.batches import MOST_ITEMS
from ingest.wire.limits import ANSWERS_OF_A_SLICE, TURN_BYTES
from tests.stand_ins.wire import Wire, chunked, counted, post, request

NDJSON = "Content-Type: application/x-ndjson"
GZIP = "Content-Encoding: gzip"
PATH = "/collect/batch"


def batch(body: bytes, *headers: str, **more: str) -> bytes:
    return post(body, *headers, target=more.pop("target", PATH), **more)


def test_the_events_of_a_batch_are_stored_with_one_answer_that_counts_them(feed):
    wire = Wire()
    client = wire.connect()
    array = b'[{"a":1}, "two",3]'
    feed(
        client,
        post(b"before")
        + batch(b"1\n\n2\r\n", NDJSON, "Cookie: c=1", "Origin: https://a.example")
        + batch(array, target=PATH + "?q=1")
        + batch(gzip.compress(array), GZIP)
        + request("POST", PATH, "Transfer-Encoding: chunked", "Content-type: application/jsonl")
        + chunked(b"4\n", b"5", b"\n")
        + post(b"behind"),
    )
    answers = client.answers()
    assert [answer.status for answer in answers] == [200] * 6
    assert [json.loads(answer.body) for answer in answers[1:5]] == [
        {"accepted": n, "rejected": []} for n in (2, 3, 3, 2)
    ]
    assert answers[1].headers["Content-Type"] == "application/json"
    assert answers[1].headers["Access-Control-Allow-Origin"] == "https://a.example"
    elements = ['{"a":1}', '"two"', "3"]
    assert wire.events == ["before", "1", "2", *elements, *elements, "4", "5", "behind"]
    assert [record.get("query") for record in wire.records[3:6]] == ["q=1"] * 3
    assert wire.records[1]["cookie"] == "c=1"
    assert counted(wire)["2xx"] == 6


def test_a_bad_item_fails_itself_only_and_a_bad_batch_is_stored_in_no_part(feed):
    wire = Wire({"BODY_FORMAT": "json", "MAX_BODY_SIZE": "50"})
    client = wire.connect()
    feed(
        client,
        batch(b"{}\nno\n" + b"1" * 51, NDJSON)
        + batch(b"no\n", NDJSON)
        + batch(b"[]")
        + batch(b"[1,2")
        + batch(b"{}")
        + batch(gzip.compress(b"[1") + b"x", GZIP)
        + batch(b"0\n" * (MOST_ITEMS + 1), NDJSON)
        + request("GET", PATH)
        + batch(b"[7]", "Content-Encoding: br"),
    )
    answers = client.answers()
    assert [answer.status for answer in answers] == [200, 400, 400, 400, 400, 400, 413, 405, 415]
    assert json.loads(answers[0].body) == {
        "accepted": 1,
        "rejected": [
            {"index": 1, "reason": "the body is not JSON"},
            {"index": 2, "reason": "body larger than MAX_BODY_SIZE"},
        ],
    }
    assert json.loads(answers[1].body)["accepted"] == 0
    assert json.loads(answers[2].body) == {"accepted": 0, "rejected": []}
    assert answers[7].headers["Allow"] == "POST, OPTIONS"
    assert wire.events == [{}]
    assert {name: n for name, n in counted(wire).items() if n} == {
        "2xx": 1,
        "4xx": 8,
        "not_json": 4,
        "body_too_large": 2,
        "malformed": 1,
        "other": 2,
    }


def test_a_batch_has_limits_of_its_own(feed):
    wire = Wire({"MAX_BODY_SIZE": "100", "MAX_BATCH_BODY_SIZE": "1000"})
    client = wire.connect()
    lines = (b"x" * 99 + b"\n") * 10
    feed(
        client,
        batch(lines, NDJSON)
        + batch(gzip.compress(lines), GZIP, NDJSON)
        + batch(gzip.compress(lines * 2), GZIP, NDJSON),
    )
    assert client.statuses == [200, 200, 413]
    assert len(wire.events) == 20
    for request_of_it in (
        batch(lines + b"x", NDJSON),
        request("POST", PATH, "Transfer-Encoding: chunked") + chunked(*[lines[:500]] * 3),
        post(b"x" * 101),
    ):
        client = wire.connect()
        feed(client, request_of_it)
        assert client.statuses == [413]
        assert client.sees_end
    wire = Wire({"MAX_BODY_SIZE": "1000", "MAX_BATCH_BODY_SIZE": "100"})
    client = wire.connect()
    feed(client, post(b"x" * 1000) + batch(b"x" * 101, NDJSON))
    assert client.statuses == [200, 413]


def test_a_refused_batch_is_told_as_any_event_is():
    wire = Wire(deferred=True)
    client = wire.connect().send(batch(b"1\n2\n", NDJSON), batch(b"3\n", NDJSON))
    assert client.statuses == []
    wire.sync(succeeds=False)
    wire.sync()
    refused, taken = client.answers()
    assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
    assert json.loads(taken.body) == {"accepted": 1, "rejected": []}
    assert wire.events == ["3"]
    assert wire.tick.owed == 0


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_http_1_0_may_send_many_events(connection):
    wire = Wire()
    client = wire.connect().send(batch(b"[1]", f"Connection: {connection}", version="1.0"))
    (answer,) = client.answers()
    assert (answer.status, answer.headers["Connection"]) == (200, connection)
    assert client.sees_end is (connection == "close")


def test_a_preflight_and_an_expectation_are_answered():
    wire = Wire()
    client = wire.connect().send(request("OPTIONS", PATH, "Origin: https://a.example"))
    assert client.answers()[0].headers["Access-Control-Allow-Methods"] == "POST, OPTIONS"
    client = wire.connect().send(request("POST", PATH, "Expect: 100-continue", "Content-Length: 3"), b"[1]")
    assert client.statuses == [100, 200]
    wire.refuse = True
    client = wire.connect().send(request("POST", PATH, "Expect: 100-continue", "Content-Length: 3"))
    assert client.statuses == [503]


def test_batches_of_a_slice_commit_between_requests_and_so_do_their_answers():
    """A few bytes may ask for a megabyte of lines, or of answers; each turn makes not much more than one of them."""
    wire = Wire({"BODY_FORMAT": "json", "MAX_BATCH_BODY_SIZE": str(2 << 20), "BATCH_BYTES": str(64 << 20)})
    commits = []
    commit = wire.tick._commit
    wire.tick._commit = lambda turn: (
        commits.append((turn.size, sum(len(entry[1]) for entry in turn.entries))),
        commit(turn),
    )
    lines = gzip.compress((b'"' + b"x" * 60_000 + b'"\n') * 17)
    bad = gzip.compress(b"x\n" * 9_999 + b"1")
    client = wire.connect().send(batch(lines, GZIP, NDJSON) * 5 + batch(bad, GZIP, NDJSON) * 5)
    assert client.statuses == [200] * 10
    assert len(wire.events) == 5 * 18
    assert max(size for size, _ in commits) < TURN_BYTES + (2 << 20)
    largest = max(len(answer.body) for answer in client.answers())
    assert max(answers for _, answers in commits) < ANSWERS_OF_A_SLICE + largest + 1000


def test_a_batch_needs_a_write_key_in_its_head_and_is_counted_event_by_event():
    wire = Wire({"WRITE_KEYS": "web:sesame-sesame-sesame", "RATE_LIMIT": "1/s", "RATE_BURST": "10"})
    key = "X-Write-Key: sesame-sesame-sesame"
    large = b"x\n" * 40_000
    client = wire.connect().send(batch(b"[1]"), batch(large, NDJSON))
    assert client.statuses == [401, 401], "also where a single event would be too large"
    client.send(batch(b"1\n2\n3", NDJSON, key), batch(b"4\n" * 20, NDJSON, key), batch(b"[5]", key))
    assert client.statuses[2:] == [200, 200, 429]
    assert {record["key"] for record in wire.records} == {"web"}
    assert len(wire.events) == 23
