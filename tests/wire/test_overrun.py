"""A read that finds no room leaves a hole: what was before it is answered, and nothing behind it is read."""

import gzip
import itertools
import random

import pytest

from tests.stand_ins.wire import Client, Wire, chunked, pieces_of, post, request

LIMITS = {"MAX_BUFFER_BYTES": "65536", "MAX_BODY_SIZE": "20000", "MAX_HEADER_BYTES": "2048", "BATCH_BYTES": "10000"}
UNREAD = 65536 // 8
"""More bytes than this are kept in the queue only where batches have left room for them."""
NDJSON = ("Content-Encoding: gzip", "Content-Type: application/x-ndjson")
STREAMS = {
    "of each framing": post(b"first")
    + request("GET", "/collect?pixel")
    + request("POST", "/collect", "Transfer-Encoding: chunked")
    + chunked(b"a" * 700, b"b" * 30, trailers=["T: t"])
    + post(b"x" * 3000)
    + post(gzip.compress(b"1\n2\n" * 20, mtime=0), *NDJSON, target="/collect/batch")
    + post(b"upgraded", "Connection: upgrade", "Upgrade: a")
    + request("GET", "/health")
    + post(b"y" * 4000, "Connection: close"),
    "of more answers than may wait": request("GET", "/collect?p", host="") * 330 + post(b"x" * 500),
}


class Answered:
    """A client's answers, and what was stored, once nothing is under way any more."""

    def __init__(self, client: Client) -> None:
        wire, transport = client.wire, client.transport
        transport.stuck = False
        for _ in range(4):
            transport.read_by_client()
            wire.loop.settle()
            wire.sync_all()
        assert wire.loop.failures == []
        self.answers = [(answer.status, answer.raw) for answer in client.answers()]
        self.events = wire.events


def sent(pieces: list[bytes], seed: int, **how: bool) -> Client:
    """Have a client send pieces, some in a turn of their own and the last ones all in the turn that is to come."""
    wire = Wire(LIMITS, deferred=how["deferred"])
    if seed == 1:
        wire.tick._stopwatch = itertools.count(step=0.03).__next__  # unpacking takes several turns
    client = wire.connect()
    wire.connect()
    client.transport.stuck = how["stuck"]
    turns = random.Random(seed).randrange(len(pieces) + 1)
    client.send(*pieces[:turns])
    for piece in pieces[turns:]:
        client.transport.receive(piece)
    return client


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("stuck", [False, True], ids=["", "stuck"])
@pytest.mark.parametrize("deferred", [False, True], ids=["", "deferred"])
@pytest.mark.parametrize("released", [False, True], ids=["", "released"])
def test_behind_a_read_without_room_nothing_is_read_and_all_before_it_is_answered(stream, stuck, deferred, released):
    """`released`: there is room again before the turn begins, so that only the connection itself knows of the hole."""
    holes = 0
    for seed in range(3):
        pieces = list(pieces_of(stream, seed))
        for hole in random.Random(seed).sample(range(len(pieces)), min(len(pieces), 12)):
            before = Answered(sent(pieces[:hole], seed, stuck=stuck, deferred=deferred))
            client = sent(pieces[:hole], seed, stuck=stuck, deferred=deferred)
            if not client.transport.reading:
                continue  # what is not read finds room in the kernel
            wire = client.wire
            (other,) = wire.tick.crowd.admitted - {client.connection}
            wire.budget.batches = wire.budget.limit
            room = UNREAD - wire.tick.arrivals.unread
            if room > 0:
                other.data_received(b"\r" * room)
            client.transport.receive(pieces[hole])
            for piece in pieces[hole + 1 :]:
                client.transport.receive(piece)
            client.connection.data_received(post(b"a transport that does not stop at once"))
            wire.budget.batches *= not released
            client.connection.go_on()
            assert not client.transport.reading
            after = Answered(client)
            (status, raw) = after.answers.pop()
            assert (status, b"\r\nConnection: close" in raw) == (503, True)
            # Where batches keep what they have, a request that has begun may be refused before the hole is reached.
            assert after.answers == before.answers[: None if released else len(after.answers)]
            assert after.events == before.events[: None if released else len(after.events)]
            holes += 1
            wire.pass_time(3)
            assert client.sees_end
            assert client.closed
            assert wire.budget.requests == 0
    assert holes > 3


def test_bytes_that_come_after_the_end_are_left_and_counted_where_there_is_no_room():
    wire = Wire(LIMITS)
    client = wire.connect().send(b"no request\r\n\r\n")
    assert client.statuses == [400]
    wire.budget.batches = wire.budget.limit
    for _ in range(7):
        client.transport.receive(b"x" * 10000)
        assert wire.tick.arrivals.unread == 0, "they take no room"
        wire.loop.settle()
    assert client.closed
