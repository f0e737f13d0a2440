"""A bug of ours: it is reported loudly, met by the client alone whose connection it was, and forgotten with it."""

import pytest

from ingest.certificates import load_pair
from ingest.wire.connection import Connection
from ingest.wire.crowd import Crowd
from ingest.wire.door import OFFICE
from ingest.wire.limits import SLICE
from tests.stand_ins.tls import TlsClient, issue
from tests.stand_ins.wire import LOCAL, Wire, post, request

PIXELS = request("GET", "/collect?p", host="") * 400
"""Their answers are more than may be unsent."""


class BugError(Exception):
    """Nobody has thought of it."""


class Pair:
    def __init__(self, folder):
        made = issue(folder)
        self.context = load_pair(made.certificate, made.key).context


class Spoken:
    """A client over plain TCP, behind a proxy, or over TLS."""

    def __init__(self, wire, way):
        self.way = way
        self.tls = TlsClient(wire).shake_hands() if way == "TLS" else None
        self.plain = self.tls.plain if self.tls else wire.connect(LOCAL)
        if way == "proxied":
            self.plain.send(b"PROXY UNKNOWN\r\n")

    def send(self, data):
        (self.tls or self.plain).send(data)

    @property
    def statuses(self):
        return (self.tls or self.plain).statuses


def sends_much(client):
    client.send(post(b"x" * (SLICE + 1)))


def does_not_read(client):
    client.plain.transport.stuck = True
    client.send(PIXELS)


def reads_again(client):
    client.plain.transport.read_by_client()


def ends_its_half(client):
    client.plain.end()


def is_gone(client):
    client.plain.transport.vanish()


CALLBACKS = {
    "data_received": ((), "_finds_room", sends_much),
    "eof_received": ((), "_go_slowly", ends_its_half),
    "pause_writing": ((), "_stall", does_not_read),
    "resume_writing": ((does_not_read,), "_unstall", reads_again),
    "connection_lost": ((), "_let_go", is_gone),
}


@pytest.fixture(params=["plain", "proxied", "TLS"])
def way(request):
    return request.param


@pytest.fixture
def wire(way, tmp_path):
    return Wire(
        {"TRUSTED_PROXIES": "127.0.0.0/8"},
        contexts=Pair(tmp_path) if way == "TLS" else None,
        proxied=way == "proxied",
    )


def fails(*_):
    raise BugError


@pytest.mark.parametrize(("before", "method", "act"), CALLBACKS.values(), ids=CALLBACKS)
def test_a_bug_in_a_callback_of_the_transport_ends_that_client_alone(before, method, act, way, wire, monkeypatch):
    other, client = Spoken(wire, way), Spoken(wire, way)
    for step in before:
        step(client)
    with monkeypatch.context() as patched:
        patched.setattr(Connection, method, fails)
        act(client)
        wire.loop.turn()
    wire.loop.settle()
    assert wire.loop.failures
    assert {type(failure) for failure in wire.loop.failures} == {BugError}
    assert client.plain.closed
    assert wire.tick.crowd.admitted == {other.plain.connection}
    assert wire.metrics.connections == 1
    other.send(post(b"still served"))
    assert other.statuses == [200]


def test_a_bug_while_a_connection_is_made_ends_it_alone(way, wire, monkeypatch):
    other = Spoken(wire, way)
    with monkeypatch.context() as patched:
        patched.setattr(Crowd, "admit", fails)
        client = wire.connect(LOCAL)
    assert [type(failure) for failure in wire.loop.failures] == [BugError]
    assert client.closed
    assert wire.tick.crowd.admitted == {other.plain.connection}
    other.send(post(b"still served"))
    assert other.statuses == [200]


@pytest.mark.parametrize("name", ["", None, b"", b"\0probe", "/run/probe.sock", b"/run/\xff.sock"])
def test_whatever_name_the_other_end_of_a_socket_file_has_it_is_served(name):
    client = Wire(peer=name).connect(door=OFFICE)
    assert client.send(request("GET", "/health")).statuses == [200]
    assert client.wire.loop.failures == []
