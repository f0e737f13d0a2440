"""The PROXY protocol: who is believed, what is told, and that nothing else gets through."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.telemetry import Overdue, Reason
from ingest.wire.proxy_header import LONGEST, Header, Verdict, read_header
from tests.stand_ins.wire import LOCAL, Wire, pieces_of, post, request

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
PROXY = ("10.0.0.9", 4711)
ONE = post(b"1")
STRANGER = ("198.51.100.1", 4711)


def v2(command=0x21, kind=0x11, rest=b""):
    return SIGNATURE + bytes([command, kind]) + struct.pack("!H", len(rest)) + rest


def ends(source, destination="192.0.2.1"):
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    destination = "2001:db8::1" if ":" in source else destination
    return socket.inet_pton(family, source) + socket.inet_pton(family, destination) + struct.pack("!HH", 5, 80)


TLVS = b"\x04\0\x03abc" + b"\x20\0\x05\1\0\0\0\0"
SOUND = [
    (b"PROXY TCP4 203.0.113.7 10.0.0.1 51234 80\r\n", "203.0.113.7"),
    (b"PROXY TCP6 2001:DB8::7 2001:db8::1 65535 0\r\n", "2001:db8::7"),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN ffff::ffff ffff::ffff 65535 65535\r\n", None),
    (b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n", None),
    (v2(rest=ends("203.0.113.7")), "203.0.113.7"),
    (v2(rest=ends("203.0.113.7") + TLVS), "203.0.113.7"),
    (v2(kind=0x12, rest=ends("203.0.113.7")), "203.0.113.7"),
    (v2(kind=0x21, rest=ends("2001:db8::7") + bytes(LONGEST - 16 - 36)), "2001:db8::7"),
    (v2(kind=0x31, rest=bytes(216)), None),
    (v2(kind=0x00), None),
    (v2(kind=0x00, rest=TLVS), None),
    (v2(0x20, 0x00), None),
    (v2(0x20, 0x11, ends("203.0.113.7")), None),
    (v2(0x20, 0xFF, b"x"), None),
]
BROKEN = [
    b"GET /collect HTTP/1.1\r\n",
    b"PROXY\r\n",
    b"PROXY  TCP4 203.0.113.7 10.0.0.1 1 2\r\n",
    b"PROXY TCP4 203.0.113.7 10.0.0.1 1\r\n",
    b"PROXY TCP4 203.0.113.7 10.0.0.1 1 2 3\r\n",
    b"PROXY TCP4 203.0.113.7 10.0.0.1 1 65536\r\n",
    b"PROXY TCP4 203.0.113.7 10.0.0.1 -1 2\r\n",
    b"PROXY TCP4 203.0.113.700 10.0.0.1 1 2\r\n",
    b"PROXY TCP4 2001:db8::7 10.0.0.1 1 2\r\n",
    b"PROXY TCP6 203.0.113.7 10.0.0.1 1 2\r\n",
    b"PROXY TCP4 203.0.113.7\0 10.0.0.1 1 2\r\n",
    b"PROXY TCP4 \xff 10.0.0.1 1 2\r\n",
    b"PROXY UDP4 203.0.113.7 10.0.0.1 1 2\r\n",
    b"proxy TCP4 203.0.113.7 10.0.0.1 1 2\r\n",
    b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    v2(0x11),
    v2(0x22, rest=ends("203.0.113.7")),
    v2(kind=0x41, rest=bytes(300)),
    v2(kind=0x13, rest=ends("203.0.113.7")),
    v2(kind=0x11, rest=ends("203.0.113.7")[:-1]),
    v2(kind=0x21, rest=ends("203.0.113.7")),
    v2(kind=0x31, rest=bytes(215)),
    v2(rest=bytes(LONGEST - 15)),
    SIGNATURE[:-1] + b"\r",
]


def behind_proxy():
    wire = Wire({"READ_TIMEOUT": "8s", "IDLE_TIMEOUT": "65s"}, proxied=True)
    return wire, wire.connect(PROXY)


@pytest.mark.parametrize(("header", "address"), SOUND)
def test_a_sound_header_tells_the_address_however_it_is_cut(header, address):
    assert read_header(header) == read_header(header + post(b"1")) == Header(len(header), address)
    data = header + post(b"1") + post(b"2")
    for pieces in ([data], [bytes([byte]) for byte in data], [header, post(b"1") + post(b"2")], pieces_of(data, 7)):
        wire, client = behind_proxy()
        client.send(*pieces)
        assert client.statuses == [200, 200]
        assert {record["ip"] for record in wire.records} == {address or PROXY[0]}
        assert wire.events == ["1", "2"]


@pytest.mark.parametrize("header", BROKEN)
def test_without_a_sound_one_a_trusted_peer_gets_400_however_it_is_cut(header):
    for pieces in ([header], [bytes([byte]) for byte in header]):
        wire, client = behind_proxy()
        client.send(*pieces)
        client.send(post(b"1"))
        assert client.statuses == [400]
        assert client.sees_end
        assert wire.events == []
        assert wire.metrics.rejected[Reason.MALFORMED] == 1
        client.end()
        assert client.closed
        assert wire.metrics.connections == 0


@pytest.mark.parametrize(("header", "_"), SOUND)
def test_an_untrusted_peer_that_sends_one_gets_400(header, _, feed):
    wire = Wire(proxied=True)
    client = wire.connect(STRANGER)
    feed(client, header + post(b"1"))
    assert client.statuses == [400]
    assert wire.events == []


def test_an_untrusted_peer_speaks_plain_http(feed):
    wire = Wire(proxied=True)
    client = wire.connect(STRANGER)
    feed(client, post(b"1", "X-Forwarded-For: 203.0.113.99"))
    assert client.statuses == [200]
    assert wire.records[0]["ip"] == STRANGER[0]


@pytest.mark.parametrize(
    ("told", "stored"),
    [("203.0.113.7", "203.0.113.7"), ("10.1.2.3", "203.0.113.99"), ("::ffff:10.1.2.3", "203.0.113.99")],
)
def test_headers_are_believed_if_the_address_that_was_told_is_trusted(told, stored):
    wire, client = behind_proxy()
    kind = 0x21 if ":" in told else 0x11
    client.send(v2(kind=kind, rest=ends(told)), post(b"1", "X-Forwarded-For: 203.0.113.99"))
    assert wire.records[0]["ip"] == stored


@pytest.mark.parametrize("header", [v2(rest=ends("127.0.0.1")), v2(0x20, 0), b"PROXY UNKNOWN\r\n"])
def test_nobody_behind_a_proxy_is_a_client_on_this_machine(header):
    wire = Wire(proxied=True)
    client = wire.connect(LOCAL)
    client.send(header, request("GET", "/metrics") + request("GET", "/health"))
    assert client.statuses == [404, 200]
    assert wire.tick.encoder.peer(LOCAL[0]).local, "who comes without a proxy still is"


@pytest.mark.parametrize("begun", [b"", b"PROXY TCP4 203", SIGNATURE, v2(rest=ends("203.0.113.7"))[:-1]])
def test_a_header_is_whole_within_read_timeout_and_bytes_buy_no_time(begun):
    wire, client = behind_proxy()
    for byte in begun:
        client.send(bytes([byte]))
        wire.pass_time(7 / len(begun))
    wire.pass_time(8.6 - (7 if begun else 0))
    assert client.closed
    assert client.transport.sent == b""
    assert wire.metrics.timed_out[Overdue.IDLE] == 1


def test_after_it_the_connection_is_idle_as_any_other():
    wire, client = behind_proxy()
    wire.pass_time(7)
    client.send(v2(0x20, 0))
    wire.pass_time(64)
    assert not client.closed
    client.send(post(b"1"))
    assert client.statuses == [200]


def test_one_that_ends_before_it_is_closed_and_forgotten():
    for begun in (b"", b"PROXY TC"):
        wire, client = behind_proxy()
        client.send(begun) if begun else None
        client.end()
        assert client.closed
        assert wire.metrics.connections == 0


def test_over_max_connections_they_are_refused_as_others_are():
    wire = Wire({"MAX_CONNECTIONS": "1"}, proxied=True)
    held = wire.connect(PROXY)
    refused = wire.connect(PROXY)
    assert refused.statuses == [503]
    refused.send(v2(rest=ends("203.0.113.7")) + post(b"1")).end()
    assert refused.closed
    held.send(v2(rest=ends("203.0.113.7")) + post(b"1"))
    assert held.statuses == [200]


def test_connections_are_counted_by_the_address_that_was_told_unless_it_is_trusted():
    wire = Wire({"MAX_CONNECTIONS_PER_IP": "2"}, proxied=True)

    def come(told, then=ONE):
        return wire.connect(PROXY).send((v2(0x20, 0) if told is None else v2(rest=ends(told))) + then)

    first, second, third = (come("203.0.113.7") for _ in range(3))
    assert [client.statuses for client in (first, second, third)] == [[200], [200], [503]]
    assert third.sees_end
    assert third.send(post(b"2")).statuses == [503], "nothing behind it is read"
    assert wire.metrics.connections == 2, "it takes no place from others while it lingers"
    assert wire.metrics.connections_refused == 1
    for told in ("203.0.113.8", "10.1.2.3", "10.1.2.3", "10.1.2.3", None, None, None):
        assert come(told).statuses == [200]
    first.end()
    assert come("203.0.113.7").statuses == [200]
    assert come("203.0.113.7", then=b"").statuses == [503], "also one that has not said anything"
    for client in (second, third):
        client.transport.vanish()
    wire.loop.settle()
    assert come("203.0.113.7").statuses == [200]
    wire.tick.abort()
    wire.loop.settle()
    assert wire.metrics.connections == 0
    assert wire.tick.crowd._by_network == {}


def test_a_drain_ends_a_connection_that_has_not_said_anything():
    wire, client = behind_proxy()
    client.send(b"PROXY ")
    wire.tick.drain()
    wire.loop.settle()
    assert client.closed


headers = st.one_of(
    st.sampled_from([header for header, _ in SOUND] + BROKEN),
    st.binary(max_size=40).map(SIGNATURE.__add__),
    st.binary(max_size=120).map(b"PROXY TCP4 ".__add__),
    st.binary(max_size=LONGEST + 20),
)


@given(headers)
def test_any_bytes_have_one_verdict_that_more_bytes_do_not_change(data):
    final = read_header(data)
    for cut in range(len(data)):
        early = read_header(data[:cut])
        assert early is Verdict.MORE or early == final
    assert final is not Verdict.MORE or len(data) < LONGEST
