"""`DURABILITY=fsync`: answers wait for a group commit, in order, for as long as the disk takes."""

import pytest

from ingest.wire.connection import PENDING_ANSWERS
from tests.stand_ins.wire import LOCAL, SWEEP_SECONDS, Wire, post, request

HUNG = 600.0
"""Seconds for which the disk hangs: longer than any deadline of a connection."""


def test_an_event_is_answered_when_it_is_synced_and_not_before(feed):
    wire = Wire(deferred=True)
    client = wire.connect()
    feed(client, post(b"1"))
    assert client.statuses == []
    assert wire.events == []
    wire.sync()
    assert client.statuses == [200]
    assert wire.events == ["1"]


def test_answers_keep_the_order_of_their_requests(feed):
    wire = Wire(deferred=True)
    client = wire.connect()
    feed(client, post(b"1") + request("GET", "/nowhere") + request("GET", "/collect?2") + b"nonsense\r\n\r\n")
    assert client.statuses == []
    wire.sync_all()
    assert client.statuses == [200, 404, 200, 400]
    assert wire.events == ["1", "2"]
    assert client.transport.half_closed
    assert not client.closed
    client.end()
    assert client.closed


def test_a_failed_sync_refuses_its_events_and_no_others():
    wire = Wire(deferred=True)
    client = wire.connect()
    client.send(post(b"1"), post(b"2") + request("GET", "/health"), post(b"3"))
    wire.sync()
    wire.sync(succeeds=False)
    wire.sync()
    answers = client.answers()
    assert [answer.status for answer in answers] == [200, 503, 200, 200]
    assert answers[1].headers["Retry-After"] == "1"
    assert wire.events == ["1", "3"]
    assert not client.sees_end


def test_health_does_not_wait_behind_a_hung_disk(feed):
    wire = Wire(deferred=True)
    sender, prober = wire.connect(), wire.connect(LOCAL)
    sender.send(post(b"1"))
    feed(prober, request("GET", "/health") + request("GET", "/ready") + request("GET", "/metrics"))
    assert prober.statuses == [200, 200, 200]
    assert sender.statuses == []
    # In the same turn as events of others too.
    sender.transport.receive(post(b"2"))
    prober.transport.receive(request("GET", "/health"))
    sender.transport.receive(post(b"3"))
    wire.loop.settle()
    assert len(prober.statuses) == 4


def test_an_answer_that_is_owed_has_all_the_time_the_disk_takes():
    wire = Wire(deferred=True)
    clients = {
        "idle": wire.connect().send(post(b"a")),
        "closing": wire.connect().send(post(b"b", "Connection: close")),
        "refused behind it": wire.connect().send(post(b"c") + b"nonsense\r\n\r\n"),
        "unfinished behind it": wire.connect().send(post(b"d") + b"POST /collect HTT"),
        "ended": wire.connect().send(post(b"e")).end(),
        "ended, unfinished": wire.connect().send(post(b"f") + b"POST").end(),
        "too many": wire.connect().send(post(b"g") * 400 + b"POST /coll"),
        "sends on": wire.connect().send(post(b"h") + b"nonsense\r\n\r\n", *[b"x" * 5_000] * 20),
    }
    assert not clients["sends on"].transport.reading, "64 KiB of what nobody wants are enough"
    wire.pass_time(HUNG)
    for name, client in clients.items():
        assert not client.closed, name
        assert client.statuses == [], name
    wire.sync_all()
    wire.loop.settle()
    wire.sync_all()
    statuses = {name: client.statuses for name, client in clients.items()}
    assert statuses.pop("too many") == [200] * 400
    assert statuses == {
        "idle": [200],
        "closing": [200],
        "refused behind it": [200, 400],
        "unfinished behind it": [200],
        "ended": [200],
        "ended, unfinished": [200],
        "sends on": [200, 400],
    }
    assert len(wire.events) == 407
    open_still = {name for name, client in clients.items() if not client.closed}
    assert open_still == {"idle", "refused behind it", "too many"}, "who sends 64 KiB more is not read on"
    assert not any(client.transport.reset for client in clients.values())
    wire.pass_time(8 + SWEEP_SECONDS)
    assert clients["too many"].closed, "the rest of its request is due again"
    assert not clients["idle"].closed, "its time to be idle began with the answer"
    wire.pass_time(65)
    assert clients["idle"].closed


def test_what_one_client_may_have_waiting_is_bounded():
    wire = Wire(deferred=True)
    client = wire.connect()
    for _ in range(4):
        client.send(post(b"x") * 1000)
    waiting = sum(len(turn.entries) for turn in wire.commits)
    assert PENDING_ANSWERS <= waiting <= PENDING_ANSWERS + 8192 // len(post(b"x")) + 1
    assert not client.transport.reading
    while wire.commits:
        wire.sync()
        assert sum(len(turn.entries) for turn in wire.commits) <= PENDING_ANSWERS + 8192 // len(post(b"x")) + 1
    assert client.statuses == [200] * 4000
    assert client.transport.reading


def test_the_time_in_which_a_request_could_not_be_read_is_not_its_own():
    wire = Wire({"READ_TIMEOUT": "8s"}, deferred=True)
    client = wire.connect()
    late = post(b"late" * 2000)
    client.send(post(b"x") * 400 + late[:1000])
    assert not client.transport.reading
    client.send(late[1000:])
    wire.pass_time(HUNG)
    while wire.commits:
        wire.commits.popleft().settle(committed=True)
        wire.tick.sweep()  # before the loop has come to read what waits in the kernel
        wire.loop.settle()
    assert client.statuses == [200] * 401


def test_a_client_that_left_leaves_nothing_behind():
    wire = Wire(deferred=True)
    client = wire.connect().send(post(b"1") + post(b"2"))
    client.transport.vanish()
    wire.loop.settle()
    wire.sync_all()
    assert wire.events == ["1", "2"], "written is written: it may be stored though the answer is lost"
    assert wire.tick.crowd.admitted == set()
    assert wire.loop.failures == []


def test_a_stalled_reader_with_answers_owed_is_dropped():
    wire = Wire({"READ_TIMEOUT": "8s"}, deferred=True)
    client = wire.connect()
    client.transport.stuck = True
    for _ in range(10):
        client.send(post(b"x") * 100)
    wire.sync_all()
    assert client.connection.pending == 0
    wire.pass_time(8 + SWEEP_SECONDS)
    assert client.closed


@pytest.mark.parametrize("behind", [b"", b"POST /collect HTT"])
def test_draining_waits_for_the_answers_that_are_owed(behind):
    wire = Wire(deferred=True)
    client = wire.connect().send(post(b"1") + behind)
    wire.tick.drain()
    wire.loop.settle()
    assert wire.tick.busy()
    assert not client.closed
    wire.sync_all()
    assert client.statuses == [200]
    if behind:
        client.send((post(b"2") + post(b"3"))[len(behind) :])
        wire.sync_all()
        assert [answer.headers.get("Connection") for answer in client.answers()] == [None, "close"]
        assert wire.events == ["1", "2"]
    assert client.closed
    assert not wire.tick.busy()


def test_refusals_at_once_linger_too():
    # A journal that is latched refuses in the very call that hands it the events.
    wire = Wire(deferred=True)
    commit = wire.tick._commit
    wire.tick._commit = lambda *args: (commit(*args), wire.sync(succeeds=False))
    client = wire.connect().send(post(b"1") + b"nonsense\r\n\r\n")
    assert client.statuses == [503, 400]
    assert client.transport.half_closed
    assert not client.closed
    wire.tick._commit = commit


def test_what_all_clients_together_may_have_waiting_is_bounded():
    """Pages are larger than their requests, and each waits behind an event of its connection."""
    wire = Wire({"MAX_BUFFER_BYTES": "16MiB", "BATCH_BYTES": "1MiB", "UPLOAD_QUEUE": "1"}, deferred=True)
    wire.page = bytes(60_000)
    clients = [wire.connect(LOCAL).send(post(b"x")) for _ in range(60)]
    for client in clients * 2:
        client.send(*[request("GET", "/metrics")] * 20)
    limit = wire.tick.limits.unfinished
    assert limit < wire.tick.owed < limit + len(clients) * 2 * len(wire.page)
    while wire.commits:
        wire.sync()
    assert wire.tick.owed == 0
    assert all(client.statuses == [200] * 41 and client.transport.reading for client in clients)


def test_a_commit_may_hold_back_what_it_refuses_and_nothing_overtakes_it(feed):
    class Torn(Wire):
        def _commit(self, turn):
            turn.defer()
            self.commits.append(turn)

    wire = Torn()
    client, other = wire.connect(), wire.connect()
    feed(client, post(b"1"))
    feed(client, request("GET", "/health"))
    feed(other, request("GET", "/health"))
    assert (client.statuses, other.statuses) == ([], [200])
    while wire.commits:
        wire.sync(succeeds=False)
    assert client.statuses == [503, 200]
    feed(client, request("GET", "/health"))
    assert client.statuses == [503, 200, 200]
