"""Each request is counted once by the class of its answer, and events by how long theirs took."""

import pytest

from ingest.telemetry import Answer, Reason
from tests.stand_ins.wire import Wire, post, request


def answered(wire):
    return {answer: count for answer, count in wire.metrics.requests if count}


def test_a_turn_is_counted_once_for_all_its_requests():
    wire = Wire()
    client = wire.connect()
    client.send(post(b"1") + request("GET", "/health") + request("GET", "/nowhere") + post(b"2"))
    assert client.statuses == [200, 200, 404, 200]
    assert answered(wire) == {Answer.OK: 3, Answer.REFUSED: 1}
    assert sum(wire.metrics.request_seconds.counts) == 2, "events only: pages say nothing of the disk"


def test_the_time_that_a_commit_takes_is_in_the_answers():
    wire = Wire(deferred=True)
    clients = [wire.connect().send(post(b"x")) for _ in range(3)]
    assert answered(wire) == {}, "nothing is answered yet, and no counter may fall"
    wire.stopwatch = 0.2
    wire.sync_all()
    assert [client.statuses for client in clients] == [[200]] * 3
    assert answered(wire) == {Answer.OK: 3}
    histogram = wire.metrics.request_seconds
    assert histogram.total == pytest.approx(0.6)
    assert dict(zip(histogram.bounds, histogram.counts, strict=False))[0.25] == 3


def test_events_that_are_refused_are_answers_of_the_fifth_class():
    wire = Wire()
    wire.refuse = True
    client = wire.connect()
    client.send(post(b"x") * 3)
    assert client.statuses == [503] * 3
    assert answered(wire) == {Answer.UNAVAILABLE: 3}


def test_an_interim_answer_is_no_answer():
    wire = Wire()
    client = wire.connect()
    client.send(b"POST /collect HTTP/1.1\r\nHost: c.example\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n")
    assert answered(wire) == {}
    client.send(b"x")
    assert answered(wire) == {Answer.OK: 1}


def test_a_refusal_is_counted_by_class_and_by_reason():
    wire = Wire()
    client = wire.connect().send(b"nonsense\r\n\r\n")
    assert client.statuses == [400]
    assert answered(wire) == {Answer.REFUSED: 1}
    assert wire.metrics.rejected[Reason.MALFORMED] == 1
