"""TLS: the same requests and answers, both halves end as without it, and nothing else in its place costs anything."""

import gc
import ssl
import warnings
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.certificates import load_pair
from ingest.telemetry import Handshake, Overdue, Reason
from ingest.wire.connection import Connection
from ingest.wire.crowd import HANDSHAKES, REFUSED_LINGERING
from ingest.wire.flow import LINGER_BYTES, SENT_BYTES, UNSENT_ANSWERS
from ingest.wire.records import STEP_BYTES, STEP_RECORDS
from ingest.wire.secured import RECORDS, SILENT, STEPS, Secured
from tests.stand_ins.tls import Scribe, TlsClient, client_context, issue
from tests.stand_ins.wire import Wire, post, request


class Held:
    """The certificate in use."""

    def __init__(self, pair):
        self.context = pair.context


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    made = issue(tmp_path_factory.mktemp("tls"))
    return load_pair(made.certificate, made.key)


@pytest.fixture
def secure(pair):
    """`secure(settings)` is a wire whose connections speak TLS; nothing the loop would report may happen on it."""
    made = []

    def make(settings=None, **how):
        made.append(wire := Wire(settings or {}, contexts=Held(pair), **how))
        return wire

    yield make
    assert [wire.loop.failures for wire in made] == [[]] * len(made)


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("step", [1 << 20, 1, 7])
@pytest.mark.parametrize("version", VERSIONS)
def test_events_come_whole_however_the_records_are_cut(secure, version, step):
    wire = secure()
    client = TlsClient(wire, client_context(at_most=version), step=step).shake_hands()
    large = "x" * 60_000
    client.send(post(b"1"), post(b"2") + request("GET", "/collect?3"), post(large.encode()))
    assert client.statuses == [200] * 4
    assert wire.events == ["1", "2", "3", large]
    assert client.tls.version() == version.name.replace("TLSv1_", "TLSv1.")
    assert wire.metrics.handshakes[Handshake.DONE] == 1


def test_the_first_request_may_come_with_the_end_of_the_handshake(secure):
    wire = secure()
    client = TlsClient(wire)
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    client.push()
    client.tls.do_handshake()
    client.send(post(b"1"))  # the client's last step is still unsent
    assert client.statuses == [200]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_refusal_arrives_then_the_end_of_our_half_and_no_reset(secure, version):
    wire = secure()
    client = TlsClient(wire, client_context(at_most=version)).shake_hands()
    client.send(request("POST", "/collect", "Content-Length: 99999999") + b"x" * 100)
    assert client.statuses == [413]
    assert client.sees_close_notify
    transport = client.plain.transport
    assert transport.half_closed
    assert not transport.closing, "what still comes is read, or the kernel would send a reset"
    for _ in range(250):
        transport.receive(bytes(SENT_BYTES >> 8))
        wire.loop.settle()
    assert not transport.closing
    client.plain.end()
    assert client.plain.closed
    assert not transport.reset


def test_who_goes_on_sending_after_a_refusal_is_not_read_for_ever(secure):
    wire = secure()
    clients = [TlsClient(wire).shake_hands().send(b"nonsense\r\n\r\n") for _ in range(2)]
    for _ in range(LINGER_BYTES // 10_000 + 2):
        if not clients[0].plain.transport.closing:
            clients[0].plain.transport.receive(b"y" * 10_000)
            wire.loop.settle()
    assert clients[0].plain.closed
    wire.pass_time(3)
    assert clients[1].plain.closed


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_that_ends_its_half_with_the_request_is_answered(secure, version, deferred):
    wire = secure(deferred=deferred)
    client = TlsClient(wire, client_context(at_most=version)).shake_hands()
    client.send(post(b"1") + post(b"2"), end=True)
    if deferred:
        assert client.statuses == []
        # What stands behind close_notify was said by nobody who has the keys.
        client.plain.transport.receive(post(b"forged"))
        wire.loop.settle()
        wire.sync_all()
    assert client.statuses == [200, 200]
    assert wire.events == ["1", "2"]
    assert client.sees_close_notify
    assert client.plain.closed
    assert not client.plain.transport.reset


def test_a_stream_that_is_cut_off_is_answered_for_what_was_whole(secure):
    wire = secure()
    client = TlsClient(wire).shake_hands()
    client.send(post(b"1") + post(b"2222")[:-2])
    client.plain.end()
    assert client.statuses == [200]
    assert wire.events == ["1"]
    assert client.plain.closed


def test_connection_close_ends_with_close_notify(secure):
    client = TlsClient(secure()).shake_hands().send(post(b"1", "Connection: close"))
    assert client.statuses == [200]
    assert client.sees_close_notify
    assert client.plain.closed


@pytest.mark.parametrize(
    "sent", [request("GET", "/"), b"\x16\x03\x01\x02\x00\x01" + bytes(600), b"\0" * 20, b"SSH-2.0-x\r\n"]
)
def test_what_is_no_tls_ends_at_once_and_is_counted(secure, sent):
    wire = secure()
    client = wire.connect()
    client.send(sent)
    assert client.closed
    assert wire.metrics.handshakes[Handshake.FAILED] == 1
    assert wire.metrics.connections == 0


@pytest.mark.parametrize("begins", [b"", b"\x16\x03\x01\x00\xc0\x01\x00"])
def test_a_handshake_has_read_timeout_and_bytes_buy_no_time(secure, begins):
    wire = secure({"READ_TIMEOUT": "8s", "IDLE_TIMEOUT": "65s"})
    client = wire.connect()
    for byte in begins:
        client.send(bytes([byte]))
        wire.pass_time(1)
    wire.pass_time(8.6 - len(begins))
    assert client.closed
    assert wire.metrics.timed_out[Overdue.IDLE] == 1
    assert wire.metrics.handshakes[Handshake.FAILED] == bool(begins)


def test_one_that_is_cut_off_is_forgotten(secure):
    wire = secure()
    for ends in ("end", "vanish"):
        client = wire.connect().send(b"\x16\x03\x01")
        client.end() if ends == "end" else client.transport.vanish()
        wire.loop.settle()
        assert client.closed
    assert wire.metrics.connections == 0


def test_unfinished_handshakes_count_into_max_connections_and_who_is_refused_reads_why(secure):
    wire = secure({"MAX_CONNECTIONS": "3"})
    for _ in range(3):
        wire.connect()
    client = TlsClient(wire).shake_hands()
    assert client.statuses == [503]
    assert client.sees_close_notify
    client.plain.end()
    assert client.plain.closed
    silent = [wire.connect() for _ in range(REFUSED_LINGERING + 5)]
    assert sum(client.closed for client in silent) == 5, "the descriptors in reserve bound how many may linger"
    wire.pass_time(3)
    assert all(client.closed for client in silent)


def test_clients_that_come_back_at_once_hold_up_nobody(secure):
    wire = secure()
    before = TlsClient(wire).shake_hands()
    before.tls.write(request("GET", "/health"))
    asked = before._outgoing.read()
    crowd = [TlsClient(wire) for _ in range(10 * STEPS)]
    for client in crowd:
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.do_handshake()
        client.plain.transport.receive(client._outgoing.read())
    before.plain.transport.receive(asked)
    wire.loop.turn()
    wire.loop.turn()
    assert before.statuses == [200]
    assert sum(bool(client.plain.transport.sent) for client in crowd) == 2 * STEPS
    wire.loop.settle()
    assert all(client.shake_hands().send(post(b"1")).statuses == [200] for client in crowd)


class FailingStep:
    def step(self):
        raise ConnectionResetError


def test_a_step_that_fails_keeps_no_other_handshake_from_its_own(secure):
    wire = secure()
    client = TlsClient(wire)
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    wire.pace.wait(FailingStep())
    client.plain.transport.receive(client._outgoing.read())
    with pytest.raises(ConnectionResetError):
        wire.loop.turn()
    wire.loop.settle()
    assert client.plain.transport.sent, "its step came"
    assert client.shake_hands().send(post(b"1")).statuses == [200]


def test_the_end_of_the_handshake_a_request_and_the_end_may_come_together(secure):
    wire = secure()
    client = TlsClient(wire)
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    client.push()
    client.tls.do_handshake()
    client.tls.write(post(b"1"))
    client.plain.transport.kernel.append(client._outgoing.read())
    client.plain.transport.receive(None)
    wire.loop.settle()
    assert client.statuses == [200]
    assert wire.events == ["1"]


def test_http_1_1_is_agreed_upon_and_old_versions_are_not(secure):
    wire = secure()
    client = TlsClient(wire, client_context(protocols=["h2", "http/1.1"])).shake_hands()
    assert client.tls.selected_alpn_protocol() == "http/1.1"
    old = client_context()
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, AssertionError)):
        TlsClient(wire, old).shake_hands()
    assert wire.metrics.handshakes[Handshake.FAILED] == 1


def test_a_client_that_does_not_read_is_fed_no_further_and_loses_nothing(secure):
    wire = secure()
    client = TlsClient(wire).shake_hands()
    client.plain.transport.stuck = True
    for _ in range(8):
        client.tls.write(request("GET", "/collect") * 200)
    client.push()
    assert client.plain.transport.largest_unsent < 4 * UNSENT_ANSWERS
    assert not client.plain.transport.reading
    client.plain.transport.stuck = False
    while client.plain.transport.unsent:
        client.plain.transport.read_by_client()
        wire.loop.settle()
    assert client.statuses == [200] * 1600


def test_a_record_that_was_tampered_with_ends_the_connection(secure):
    wire = secure()
    client = TlsClient(wire).shake_hands().send(post(b"1"))
    client.tls.write(post(b"2"))
    data = bytearray(client._outgoing.read())
    data[-1] ^= 1
    client.plain.transport.receive(bytes(data))
    wire.loop.settle()
    assert client.plain.transport.reset
    assert wire.events == ["1"]


def test_a_renewed_certificate_is_for_new_handshakes_and_open_connections_go_on(secure, tmp_path):
    wire = secure()
    before = TlsClient(wire).shake_hands()
    made = issue(tmp_path)
    wire.contexts.context = load_pair(made.certificate, made.key).context
    after = TlsClient(wire).shake_hands()
    shown = [client.tls.getpeercert(binary_form=True) for client in (before, after)]
    assert shown[0] != shown[1]
    assert shown[1] == ssl.PEM_cert_to_DER_cert(made.certificate.read_text())
    for client in (before, after):
        assert client.send(post(b"1")).statuses == [200]


def test_a_drain_ends_idle_connections_and_unfinished_handshakes(secure):
    wire = secure()
    client, silent = TlsClient(wire).shake_hands(), wire.connect()
    wire.tick.drain()
    wire.loop.settle()
    client.read()
    assert client.sees_close_notify
    assert client.plain.closed
    assert silent.closed


def test_what_is_over_is_freed_without_the_collector_of_cycles(secure):
    wire = secure()
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            TlsClient(wire).shake_hands().send(post(b"1")).plain.end()
            wire.connect().send(b"no TLS\r\n")
        assert [one for one in gc.get_objects() if isinstance(one, Secured | Connection)] == []
    finally:
        gc.enable()


def test_who_is_gone_before_the_step_of_its_handshake_is_forgotten(secure):
    wire = secure()
    clients = [TlsClient(wire) for _ in range(3 * STEPS)]
    for client in clients:
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.do_handshake()
        client.plain.transport.receive(client._outgoing.read())
        client.plain.transport.vanish()
    wire.loop.settle()
    assert wire.loop.failures == []
    assert wire.metrics.connections == 0
    assert TlsClient(wire).shake_hands().send(post(b"1")).statuses == [200]


def test_of_too_many_handshakes_with_half_a_message_the_oldest_is_dropped_and_honest_ones_are_done(secure):
    wire = secure()
    honest = TlsClient(wire).shake_hands()
    announced = b"\x16\x03\x01\x00\x06\x01\x01\xff\xf0\x03\x03"  # a hello of 128 KiB, of which nothing follows
    waiting = TlsClient(wire)
    with pytest.raises(ssl.SSLWantReadError):
        waiting.tls.do_handshake()
    waiting.push()
    begun = [wire.connect().send(announced) for _ in range(HANDSHAKES + 1)]
    assert [client.closed for client in begun] == [True] + [False] * HANDSHAKES
    assert wire.metrics.handshakes[Handshake.FAILED] == 1
    assert TlsClient(wire).shake_hands().send(post(b"1")).statuses == [200]
    assert honest.send(post(b"1")).statuses == [200]
    assert waiting.shake_hands().send(post(b"1")).statuses == [200], "whose turn it is, is not dropped"
    assert [client.closed for client in begun[:3]] == [True, False, False]
    wire.pass_time(9)
    assert all(client.closed for client in begun)
    assert wire.metrics.handshakes[Handshake.FAILED] == HANDSHAKES + 1
    assert not wire.tick.crowd._handshakes


def half_sent(wire, size):
    """A client of whose record everything but the last byte has come."""
    client = TlsClient(wire).shake_hands()
    client.tls.write(post(b"x" * size))
    client.plain.send(client.take()[:-1])
    return client


def test_five_hundred_half_sent_records_count_as_what_is_unfinished_and_the_largest_are_refused(secure):
    wire = secure({"MAX_BUFFER_BYTES": "16MiB", "BATCH_BYTES": "1MiB"})
    clients = [half_sent(wire, 16_000) for _ in range(500)]
    assert wire.tick.limits.unfinished * 3 // 4 < wire.budget.requests <= wire.tick.limits.unfinished
    refused = [client for client in clients if client.statuses == [503]]
    assert 500 * 16_000 - wire.tick.limits.unfinished < len(refused) * 17_000
    small = half_sent(wire, 100)
    assert small.push_rest().statuses == [200]
    for client in clients:
        if client not in refused:
            client.push_rest()
    assert {tuple(client.statuses) for client in clients} == {(200,), (503,)}
    assert wire.budget.requests == 0


def test_a_half_sent_record_is_no_longer_counted_once_it_is_whole_or_its_client_is_gone(secure):
    wire = secure()
    client, gone = half_sent(wire, 9_000), half_sent(wire, 9_000)
    assert 18_000 < wire.budget.requests < 19_000
    gone.plain.transport.vanish()
    wire.loop.settle()
    assert wire.budget.requests < 9_500
    assert client.push_rest().statuses == [200]
    assert wire.budget.requests == 0


def test_what_stands_behind_a_hello_is_counted_and_read_no_further_until_its_step(secure):
    wire = secure({"MAX_BUFFER_BYTES": "1MiB", "BATCH_BYTES": "256KiB"})
    flood = b"\x16\x03\x01" + b"x" * 60_000
    clients = [wire.connect() for _ in range(40)]
    for client in clients:
        for _ in range(10):
            if not client.closed:
                client.transport.receive(flood)
    assert wire.tick.limits.unfinished - len(flood) < wire.budget.requests <= wire.tick.limits.unfinished
    waiting = sum(len(client.transport.protocol._records) for client in clients)
    assert waiting <= wire.tick.limits.unfinished
    wire.loop.settle()
    assert all(client.closed for client in clients)
    assert wire.budget.requests == 0
    assert TlsClient(wire).shake_hands().send(post(b"1")).statuses == [200]


def test_a_large_request_behind_the_last_word_of_a_handshake_is_answered(secure):
    wire = secure()
    client = TlsClient(wire)
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    client.push()
    client.tls.do_handshake()
    for number in range(4):
        client.tls.write(post(b"%d" % number * 60_000))
    data = client.take()
    for at in range(0, len(data), 50_000):
        client.plain.transport.receive(data[at : at + 50_000])
    assert not client.plain.transport.reading
    wire.loop.settle()
    assert client.statuses == [200] * 4
    assert wire.budget.requests == 0


def test_connections_of_a_peer_count_from_the_start_of_their_handshakes(secure):
    wire = secure({"MAX_CONNECTIONS_PER_IP": "2"})
    wire.connect()
    assert TlsClient(wire).shake_hands().send(post(b"1")).statuses == [200]
    refused = TlsClient(wire).shake_hands()
    assert refused.statuses == [503]
    assert refused.sees_close_notify


@pytest.fixture
def by_hand(tmp_path):
    """`by_hand(wire)` is a client after its handshake, and who writes its records from then on."""

    def make(wire):
        context = client_context()
        log = tmp_path / f"{len(list(tmp_path.iterdir()))}.keys"
        context.keylog_filename = str(log)
        client = TlsClient(wire, context).shake_hands()
        return client, Scribe(log)

    return make


@pytest.mark.parametrize(
    ("nothing", "ended_by_us"),
    [
        (lambda scribe: scribe.key_update(), True),
        (lambda scribe: scribe.key_update(piece=1), True),
        (lambda scribe: scribe.key_update(padding=4000), True),
        (lambda scribe: scribe.record(b""), False),  # OpenSSL bounds these itself
        (lambda scribe: scribe.record(b"", padding=4000), False),
    ],
    ids=["key updates", "key updates in pieces", "padded key updates", "empty records", "padding"],
)
def test_a_read_of_records_that_say_nothing_holds_up_nobody_and_ends_its_connection(
    secure, by_hand, nothing, ended_by_us
):
    wire = secure()
    other = TlsClient(wire).shake_hands()
    other.tls.write(request("GET", "/health"))
    asked = other.take()
    client, scribe = by_hand(wire)
    flood = b"".join(nothing(scribe) for _ in range(1000))
    client.plain.transport.receive(flood)
    if ended_by_us:
        read = len(flood) - wire.budget.requests
        assert read <= min(STEP_BYTES, len(flood) * STEP_RECORDS // 1000), "a step, and the rest counts"
        assert not client.plain.transport.reading
    other.plain.transport.receive(asked)
    wire.loop.turn()
    wire.loop.turn()
    assert other.statuses == [200]
    wire.loop.settle()
    assert client.plain.closed
    assert client.plain.transport.reset
    assert wire.metrics.rejected[Reason.MALFORMED] == ended_by_us
    assert wire.budget.requests == 0


def test_a_hello_in_records_of_one_byte_is_read_in_steps_and_ends_in_a_handshake(secure):
    wire = secure()
    client = TlsClient(wire)
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    hello = client.take()
    parts = [hello[:3] + b"\0\x01" + bytes([byte]) for byte in hello[5:]]
    assert len(parts) > 3 * STEP_RECORDS
    client.plain.transport.receive(b"".join(parts))
    for turns in range(1, 4):
        wire.loop.turn()
        assert wire.budget.requests == 6 * (len(parts) - turns * STEP_RECORDS)
    wire.loop.settle()
    assert client.shake_hands().send(post(b"1")).statuses == [200]


def test_who_changes_its_keys_now_and_then_is_served_and_key_updates_buy_no_time(secure, by_hand):
    wire = secure({"IDLE_TIMEOUT": "10s"})
    client, scribe = by_hand(wire)
    for number in range(1, 6):
        updates = b"".join(scribe.key_update() for _ in range(SILENT))
        client.plain.send(updates, scribe.record(post(b"1")))
        assert client.statuses == [200] * number
    for _ in range(9):
        client.plain.send(scribe.key_update())
        wire.pass_time(1)
    assert not client.plain.closed
    wire.pass_time(2)
    assert client.plain.closed
    assert wire.metrics.timed_out[Overdue.IDLE] == 1
    assert wire.metrics.rejected[Reason.MALFORMED] == 0


def test_all_clients_together_have_no_more_records_read_in_a_turn_than_one_turn_has_time_for(secure, by_hand):
    wire = secure()
    size = len(post(b"1"))
    clients = [by_hand(wire) for _ in range(20)]
    parts = [b"".join(scribe.record(bytes([byte])) for byte in post(b"1")) for _, scribe in clients]
    whole = sum(map(len, parts))
    for (client, _), part in zip(clients, parts, strict=True):
        client.plain.transport.receive(part)
    for turns in range(1, 3):
        waiting = sum(len(client.plain.transport.protocol._records) for client, _ in clients)
        assert 0 < (whole - waiting) * size * 20 / whole <= turns * (RECORDS + STEP_RECORDS)
        wire.loop.turn()
    wire.loop.settle()
    assert [client.statuses for client, _ in clients] == [[200]] * 20
    assert wire.budget.requests == 0


@pytest.mark.parametrize("notified", [True, False])
@pytest.mark.parametrize("deferred", [True, False])
def test_a_read_of_many_records_is_read_to_its_end_which_may_come_with_it(secure, deferred, notified):
    wire = secure(deferred=deferred)
    client = TlsClient(wire).shake_hands()
    for number in range(4):
        client.tls.write(post(b"%d" % number * 60_000))
    if notified:
        with suppress(ssl.SSLWantReadError):
            client.tls.unwrap()
    client.plain.transport.kernel.append(client.take())
    client.plain.transport.receive(None)
    wire.loop.settle()
    while wire.commits:
        wire.sync_all()
    assert client.statuses == [200] * 4
    assert client.sees_close_notify
    assert client.plain.closed
    assert wire.budget.requests == 0


def test_what_stands_behind_the_last_request_is_let_go_while_its_answer_waits(secure):
    wire = secure(deferred=True)
    client = TlsClient(wire).shake_hands()
    client.tls.write(post(b"1", "Connection: close").ljust(200_000, b"x"))
    client.plain.transport.receive(client.take())
    assert len(client.plain.transport.protocol._records) > 100_000
    wire.loop.settle()
    assert len(client.plain.transport.protocol._records) == wire.budget.requests == 0
    wire.sync_all()
    assert client.statuses == [200]
    assert client.sees_close_notify


@given(st.lists(st.binary(min_size=1, max_size=80), max_size=6), st.booleans())
def test_any_bytes_in_place_of_tls_end_or_wait_and_nothing_else(pair, pieces, prefixed):
    wire = Wire({}, contexts=Held(pair))
    client = wire.connect()
    if prefixed:
        client.send(b"\x16\x03\x01")
    for piece in pieces:
        if not client.closed:
            client.send(piece)
    wire.pass_time(10)
    assert client.closed
    assert wire.loop.failures == []
    assert wire.metrics.connections == 0
