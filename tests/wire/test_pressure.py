"""Back-pressure and bounds: what one client, or all of them, can make the process hold."""

import gzip
import itertools
from collections import Counter

import pytest

from ingest.telemetry import Overdue
from ingest.wire.flow import UNSENT_ANSWERS
from ingest.wire.limits import SLICE
from tests.stand_ins.wire import LOCAL, SWEEP_SECONDS, Wire, post, request

READ_BYTES = 256_000
"""What the event loop hands over at once, at most."""


@pytest.mark.parametrize(
    "data",
    [
        request("GET", "/x", host=""),
        request("GET", "/collect", host="", version="1.1"),
        post(b""),
        request("GET", "/x", "Origin: https://" + "o" * 200),
    ],
)
def test_unsent_answers_are_bounded_and_none_is_lost(data):
    wire = Wire()
    client = wire.connect()
    transport = client.transport
    transport.stuck = True
    count = 0
    for _ in range(3):
        burst = data * (READ_BYTES // len(data))
        count += READ_BYTES // len(data)
        transport.receive(burst)
        wire.loop.settle()
    assert not transport.reading
    one_slice = SLICE // len(data) * 450
    assert transport.largest_unsent <= UNSENT_ANSWERS + one_slice
    while transport.unsent or transport.kernel:
        transport.read_by_client(10_000)
        wire.loop.settle()
    transport.stuck = False
    transport.read_by_client()
    wire.loop.settle()
    assert len(client.answers()) == count
    assert transport.reading
    assert transport.largest_unsent <= UNSENT_ANSWERS + one_slice
    assert wire.budget.requests == 0


def test_a_client_that_stops_reading_is_dropped():
    wire = Wire({"READ_TIMEOUT": "8s"})
    client = wire.connect()
    client.transport.stuck = True
    client.send(post() * 3000)
    began = wire.loop.now
    while not client.closed:
        wire.pass_time(SWEEP_SECONDS)
        assert wire.loop.now - began < 100
    assert 8 <= wire.loop.now - began <= 8 + 2 * SWEEP_SECONDS
    assert client.transport.reset
    assert wire.metrics.timed_out[Overdue.ANSWER] == 1
    assert wire.budget.requests == 0


def test_a_client_that_reads_slowly_is_served():
    wire = Wire({"READ_TIMEOUT": "8s"})
    client = wire.connect()
    client.transport.stuck = True
    client.send(post(b"x") * 3000)
    for _ in range(300):
        wire.pass_time(1)
        client.transport.read_by_client(20_000)
        wire.loop.settle()
        if not client.transport.unsent:
            break
    assert client.statuses == [200] * 3000
    assert not client.closed


def test_a_client_that_stops_reading_its_last_answer_is_dropped():
    wire = Wire({"READ_TIMEOUT": "8s", "IDLE_TIMEOUT": "65s"})
    client = wire.connect()
    client.transport.stuck = True
    client.send(post(b"x", "Connection: close"))
    wire.pass_time(70)
    assert client.closed


def test_input_is_fed_in_slices_so_that_one_client_does_not_hold_up_the_turn():
    wire = Wire()
    greedy, other = wire.connect(), wire.connect()
    greedy.transport.receive(post(b"x") * 3000)
    other.transport.receive(post(b"y"))
    wire.loop.turn()
    assert "y" in wire.events
    assert len(wire.events) < SLICE // len(post(b"x")) + 2
    assert not greedy.transport.reading
    wire.loop.settle()
    assert wire.events.count("x") == 3000
    assert greedy.transport.reading


def test_a_client_that_stops_and_goes_on_reading_within_each_turn_is_fed_one_slice_a_turn():
    wire = Wire()
    client = wire.connect()
    transport, data = client.transport, request("GET", "/collect", host="")
    transport.stuck = True
    transport.receive(data * (READ_BYTES // len(data)))
    one_slice = (SLICE // len(data) + 1) * 450
    events = 0
    while len(wire.lines) < READ_BYTES // len(data):
        wire.loop.turn()
        assert len(wire.lines) - events <= SLICE // len(data) + 2
        events = len(wire.lines)
        transport.read_by_client(max(0, len(transport.unsent) - UNSENT_ANSWERS // 4))
    assert transport.largest_unsent <= UNSENT_ANSWERS + one_slice


def test_a_fast_sender_is_held_back_after_one_read_of_the_loop():
    # libuv hands over up to 32 reads of one socket in one turn.
    wire = Wire()
    client = wire.connect()
    client.transport.receive(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 7000)
    for _ in range(3):
        client.transport.receive(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 7000)
    assert sum(len(data) for _, data in wire.tick.arrivals.reads) <= READ_BYTES
    wire.loop.settle()
    assert len(client.answers()) == 4 * 7000


def test_nothing_more_is_read_while_slices_wait():
    wire = Wire({"MAX_HEADER_BYTES": "1024"})
    client = wire.connect()
    client.transport.receive(post(b"x") * 60)
    wire.loop.turn()
    assert not client.transport.reading
    wire.loop.settle()
    assert client.transport.reading
    assert client.statuses == [200] * 60


# MAX_CONNECTIONS


def test_a_connection_too_many_is_told_to_come_back():
    wire = Wire({"MAX_CONNECTIONS": "3"})
    clients = [wire.connect() for _ in range(3)]
    refused = wire.connect()
    (answer,) = refused.answers()
    assert (answer.status, answer.headers["Retry-After"], answer.headers["Connection"]) == (503, "1", "close")
    assert refused.sees_end
    assert (wire.metrics.connections, wire.metrics.connections_refused) == (3, 1)
    refused.send(post(b"no")).end()
    assert refused.closed
    assert wire.lines == []
    assert clients[0].send(post()).statuses == [200]
    clients[0].end()
    assert clients[0].closed
    assert wire.metrics.connections == 2
    assert wire.connect().send(post()).statuses == [200]


def test_refused_connections_do_not_pile_up():
    wire = Wire({"MAX_CONNECTIONS": "3"})
    for _ in range(3):
        wire.connect()
    refused = [wire.connect() for _ in range(100)]
    wire.pass_time(2 + SWEEP_SECONDS)
    assert all(client.closed for client in refused)
    assert all(client.statuses == [503] for client in refused)
    assert wire.metrics.connections == 3


# MAX_BUFFER_BYTES, with requests that are not complete yet.

BUFFER = {"MAX_BUFFER_BYTES": "65536", "MAX_BODY_SIZE": "20000", "BATCH_BYTES": "10000"}


def test_unfinished_requests_have_a_quarter_and_beyond_that_the_largest_is_refused_E3():
    wire = Wire(BUFFER)
    clients = []
    for number in range(20):
        client = wire.connect()
        clients.append(client)
        client.send(post(b"x" * (1000 + 100 * number), f"X: {number}")[:-1])
        assert wire.budget.requests <= 65536 // 4
    taken = [client for client in clients if not client.transport.sent]
    refused = [client for client in clients if client.transport.sent]
    assert taken[:5] == clients[:5], "each that comes is larger"
    assert len(refused) >= 5
    for client in refused:
        (answer,) = client.answers()
        assert (answer.status, answer.headers["Retry-After"], answer.headers["Connection"]) == (503, "1", "close")
    for client in taken:
        client.send(b"x")
        assert client.statuses == [200]
    assert wire.budget.requests == 0
    assert len(wire.lines) == len(taken)


def test_slow_clients_take_nothing_from_whole_requests_E3():
    wire = Wire(BUFFER)
    slow = [wire.connect().send(post(b"x" * 10000)[:-1]) for _ in range(30)]
    assert wire.connect().send(post(b"whole" * 2000)).statuses == [200]
    assert any(not client.transport.sent for client in slow)


@pytest.mark.parametrize(("count", "events"), [(20, 800), (200, 40)], ids=["large reads", "small reads"])
def test_bytes_count_when_they_are_read_E3(count, events):
    """All clients are read before the turn begins."""
    wire = Wire({"MAX_BUFFER_BYTES": "1000000"})
    clients = [wire.connect() for _ in range(count)]
    for client in clients:
        client.transport.receive(post(b"x" * 100) * events)
        assert wire.tick.arrivals.unread <= 1_000_000
        assert sum(len(data) for _, data in wire.tick.arrivals.reads) == wire.tick.arrivals.unread
    wire.loop.settle()
    assert wire.tick.arrivals.unread == wire.budget.requests == 0
    for client in clients:
        statuses = client.statuses
        assert statuses[-1] == 503 or statuses == [200] * events
        assert set(statuses[:-1]) <= {200}
    assert len(wire.lines) == sum(client.statuses.count(200) for client in clients)
    assert wire.loop.failures == []


def test_where_batches_have_taken_all_the_room_events_are_refused_one_by_one():
    wire = Wire({"MAX_BUFFER_BYTES": "1000000"})
    wire.budget.batches = 1_000_000
    wire.refuse = True
    client = wire.connect().send(post(b"1"), post(b"2"))
    assert client.statuses == [503, 503]
    assert not client.sees_end


# One turn.


def test_a_turn_commits_every_512_lines_or_1_mib_E1():
    wire = Wire({"MAX_BODY_SIZE": "100000"})
    committed = []
    commit = wire.tick._commit
    wire.tick._commit = lambda turn: (committed.append((turn.events, turn.size)), commit(turn))
    clients = [wire.connect() for _ in range(60)]
    for client in clients:
        client.transport.receive(request("GET", "/collect", host="") * 200)
    wire.loop.settle()
    assert sum(events for events, _ in committed) == 60 * 200
    assert max(events for events, _ in committed) < 512 + 256
    committed.clear()
    for client in clients:
        client.transport.receive(post(b"\x01" * 7000))
    wire.loop.settle()
    assert max(size for _, size in committed) < (1 << 20) + 8000 * 6
    assert all(client.statuses == [200] * 201 for client in clients)


def test_who_sends_little_is_not_behind_all_that_others_have_sent_E1():
    wire = Wire()
    greedy, prober = [wire.connect() for _ in range(100)], wire.connect()
    for client in greedy:
        client.transport.receive(request("GET", "/collect", host="") * 200)
    wire.loop.turn()
    assert len(wire.lines) < 512 * 5
    prober.transport.receive(request("GET", "/health"))
    wire.loop.turn()
    assert prober.statuses == [200]
    assert len(wire.lines) < 512 * 10
    wire.loop.settle()
    assert [client.statuses for client in greedy] == [[200] * 200] * 100


@pytest.mark.parametrize(
    ("sent", "reads_at_least"),
    [
        pytest.param(request("GET", "/collect", host="") * 400, 1, id="events"),
        pytest.param(request("GET", "/nowhere", host="") * 400, 1, id="refusals"),
        pytest.param(request("OPTIONS", "/collect", host="") * 400, 1, id="pages"),
        pytest.param(b"GET /collect HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 2000, 16, id="lines of a head"),
        pytest.param(request("POST", "/collect", "Transfer-Encoding: chunked") + b"1\r\na\r\n" * 1300, 16, id="chunks"),
    ],
)
def test_a_turn_is_bounded_whatever_is_sent_and_who_sends_little_is_served_in_the_next_E1(sent, reads_at_least):
    wire = Wire()
    greedy, prober = [wire.connect() for _ in range(300)], wire.connect()
    for client in greedy:
        client.transport.receive(sent)
    prober.transport.receive(request("GET", "/health"))
    wire.loop.turn()
    assert reads_at_least <= len(greedy) + 1 - len(wire.tick.arrivals.late) <= 64
    assert prober.statuses == []
    wire.loop.turn()
    assert prober.statuses == [200]


CHUNKS = request("POST", "/collect", "Transfer-Encoding: chunked")


@pytest.mark.parametrize(
    ("sent", "rest"),
    [
        pytest.param(CHUNKS + b"1f00\r\n" + b"\n" * 0x1F00, b"\r\n0\r\n\r\n", id="line feeds in a chunk"),
        pytest.param(CHUNKS + b"1\r\na\r\n" * 1300, b"0\r\n\r\n", id="chunks"),
        pytest.param(b"GET /collect HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 2000, b"\r\n", id="lines of a head"),
    ],
)
def test_a_turn_feeds_parsers_no_longer_than_its_time_and_all_are_answered_E1(sent, rest):
    wire = Wire()
    greedy, prober = [wire.connect() for _ in range(60)], wire.connect()
    ticking = itertools.count(step=0.005)
    wire.tick._stopwatch = lambda: next(ticking)
    for client in greedy:
        client.transport.receive(sent)
    prober.transport.receive(request("GET", "/health"))
    wire.loop.turn()
    assert 1 <= len(greedy) + 1 - len(wire.tick.arrivals.late) <= 5
    wire.loop.turn()
    assert prober.statuses == [200]
    for client in greedy:
        client.transport.receive(rest)
    wire.loop.settle()
    assert [client.statuses for client in greedy] == [[200]] * 60


def test_who_was_left_once_is_served_before_others_come_again_E1():
    wire = Wire()
    greedy = [wire.connect() for _ in range(100)]
    for client in greedy:
        client.transport.receive(request("GET", "/collect", host="") * 600)
    for _ in range(80):
        wire.loop.turn()
    assert all(client.statuses for client in greedy)
    assert not all(len(client.statuses) == 600 for client in greedy)
    wire.loop.settle()
    assert [client.statuses for client in greedy] == [[200] * 600] * 100


def test_who_ends_its_half_while_its_reads_are_left_to_a_later_turn_is_answered_E1():
    wire = Wire()
    greedy, client = [wire.connect() for _ in range(100)], wire.connect()
    for other in greedy:
        other.transport.receive(request("GET", "/collect", host="") * 600)
    for byte in post(b"1") + request("GET", "/collect?2"):
        client.transport.receive(bytes([byte]))
    client.connection.eof_received()
    wire.loop.settle()
    assert client.statuses == [200, 200]
    assert client.sees_end
    assert wire.events.count("1") == wire.events.count("2") == 1


def test_a_drain_answers_what_a_turn_has_left_for_the_next():
    wire = Wire()
    clients = [wire.connect() for _ in range(100)]
    for client in clients:
        client.transport.receive(request("GET", "/collect", host="") * 200)
    wire.loop.turn()
    wire.tick.drain()
    wire.loop.settle()
    assert all(client.statuses and set(client.statuses) == {200} and client.closed for client in clients)
    assert len(wire.lines) == sum(len(client.statuses) for client in clients)


def test_a_drain_does_not_stand_still_for_long_bodies_and_answers_them_all_the_same():
    wire = Wire()
    ticking = itertools.count(step=0.005)
    wire.tick._stopwatch = lambda: next(ticking)
    body = gzip.compress(b"1\n" * 9000)
    lines = ("Content-Encoding: gzip", "Content-Type: application/x-ndjson")
    clients = [wire.connect() for _ in range(9)]
    for client in clients:
        client.transport.receive(post(body, *lines, target="/collect/batch"))
    wire.tick.drain()
    told = [client.statuses for client in clients]
    assert [] in told, "a signal waits for no more than a moment"
    wire.loop.settle()
    assert [client.statuses for client in clients] == [[200]] * 9
    assert {client.answers()[0].headers["Connection"] for client in clients} == {"close"}
    assert all(client.closed for client in clients)
    assert len(wire.lines) == 9 * 9000


def test_who_sends_in_small_pieces_is_read_no_faster_than_turns_feed_them():
    wire = Wire()
    head = request("POST", "/collect", "Transfer-Encoding: chunked")
    crowd = [wire.connect().send(head) for _ in range(300)]
    last = wire.connect()
    sent = Counter()
    waiting = []
    for _ in range(20):
        for client in crowd:
            if client.transport.reading:  # else the kernel has it, and hands over all at once later
                client.transport.receive(b"1\r\nx\r\n")
                sent[client.connection] += 1
        wire.loop.turn()
        waiting.append(len(wire.tick.arrivals.reads) + len(wire.tick.arrivals.late))
    assert max(waiting) <= 2 * len(crowd)
    last.transport.receive(post(b"honest"))
    for _ in range(2 * len(crowd) // 64 + 2):
        wire.loop.turn()
    assert last.statuses == [200]
    for client in crowd:
        client.send(b"0\r\n\r\n")
        wire.loop.settle()
    assert [client.statuses for client in crowd] == [[200]] * len(crowd)
    assert wire.events == ["honest"] + ["x" * sent[client.connection] for client in crowd]
    assert all(client.transport.reading for client in crowd)


def test_the_answers_that_one_slice_causes_are_bounded_pages_too_E2():
    wire = Wire()
    wire.page = b"# metrics\n" * 1000
    client = wire.connect(LOCAL)
    client.transport.stuck = True
    client.send(request("GET", "/metrics") * 100)
    assert client.transport.largest_unsent < UNSENT_ANSWERS + 2 * (len(wire.page) + 300)
    client.transport.read_by_client()
    *_, last = client.answers()
    assert last.headers["Connection"] == "close"
    assert client.sees_end


def test_unsent_answers_of_all_clients_are_bounded_E2():
    wire = Wire({"MAX_BUFFER_BYTES": "1000000"})
    clients = [wire.connect() for _ in range(20)]
    for client in clients:
        client.transport.stuck = True
        client.send(request("GET", "/collect?x") * 150)
    wire.pass_time(SWEEP_SECONDS)
    unsent = sum(len(client.transport.unsent) for client in clients)
    assert 0 < unsent <= 250_000
    assert any(client.transport.reset for client in clients)


def test_unsent_answers_never_take_much_more_than_they_may_until_the_next_sweep():
    wire = Wire({"MAX_BUFFER_BYTES": "4000000"})
    wire.page = b"# metrics\n" * 20_000
    clients = [wire.connect(LOCAL) for _ in range(60)]
    for client in clients:
        client.transport.stuck = True
        client.send(request("GET", "/metrics"))
        assert sum(len(client.transport.unsent) for client in clients if not client.transport.reset) < 2_500_000
    assert any(client.transport.reset for client in clients)
    assert wire.metrics.timed_out[Overdue.ANSWER] > 0


def test_what_batches_hold_counts_too():
    wire = Wire(BUFFER)
    wire.budget.batches = 60000
    client = wire.connect()
    client.send(post(b"x" * 10000)[:-1])
    assert client.statuses == [503]
    client = wire.connect()
    client.send(post(b"x" * 3000)[:-1])
    wire.budget.batches = 65536
    client.send(b"x")
    assert client.statuses == [200]


def test_a_refused_request_holds_nothing_while_it_lingers():
    wire = Wire(BUFFER)
    wire.budget.batches = 60000
    for _ in range(10):
        client = wire.connect()
        client.send(post(b"x" * 10000)[:-1])
        assert client.statuses == [503]
    assert wire.budget.requests == 0


def test_input_that_waits_counts():
    wire = Wire()
    client = wire.connect()
    client.transport.stuck = True
    client.send(post(b"x") * 3000)
    waiting = len(post(b"x")) * (3000 - len(wire.lines))
    assert waiting - len(post(b"x")) <= wire.budget.requests < len(post(b"x")) * 3001
    client.transport.vanish()
    wire.loop.settle()
    assert wire.budget.requests == 0


def test_a_request_that_is_split_is_refused_only_when_it_is_whole(feed):
    # A full queue or a full disk refuses events: not pages, and not connections.
    wire = Wire()
    wire.refuse = True
    client = wire.connect()
    feed(client, request("GET", "/health") + post(b"1") + request("GET", "/ready"))
    assert client.statuses == [200, 503, 200]
    assert not client.sees_end
