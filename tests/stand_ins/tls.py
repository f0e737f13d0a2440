"""A client of TLS without a network, and certificates for it."""

from __future__ import annotations

import datetime
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.stand_ins.wire import Answer, Client, Wire, read_answers

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class Issued(NamedTuple):
    """A certificate of its own, and its key."""

    certificate: Path
    key: Path
    not_after: float
    serial: int


def issue(folder: Path, name: str = "server", *, days: float = 30, passphrase: bytes | None = None) -> Issued:
    """Write `name.pem` and `name.key` for `c.example` and loopback."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "c.example")])
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    until = now + datetime.timedelta(days=days)
    names = [x509.DNSName("c.example"), x509.DNSName("localhost")]
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, until) - datetime.timedelta(days=1))
        .not_valid_after(until)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    locked = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
    return Issued(*paths, until.timestamp(), made.serial_number)


def client_context(*, protocols: Iterable[str] = (), at_most: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """Return a context that trusts anybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if at_most is not None:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = at_most
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


class TlsClient:
    """A client that the test drives; what it says goes through `cut`, which splits it into reads."""

    def __init__(self, wire: Wire, context: ssl.SSLContext | None = None, *, step: int = 1 << 20) -> None:
        self.wire = wire
        self.plain: Client = wire.connect()
        self.step = step
        self.received = bytearray()
        self.sees_close_notify = False
        self._taken = 0
        self._said = b""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = (context or client_context()).wrap_bio(self._incoming, self._outgoing, server_hostname="c.example")

    def shake_hands(self) -> TlsClient:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                assert not self.plain.transport.closing, "the server gave up"
                self.push()
            else:
                self.push()
                return self

    def send(self, *pieces: bytes, end: bool = False) -> TlsClient:
        """Send each piece in records, and a turn, of its own; with `end` close_notify goes with the last."""
        for number, piece in enumerate(pieces, 1):
            self.tls.write(piece)
            if end and number == len(pieces):
                with suppress(ssl.SSLError):
                    self.tls.unwrap()
            self.push()
        return self

    def push(self) -> None:
        """Let both sides read what there is."""
        data = self._outgoing.read()
        for at in range(0, len(data), self.step):
            if not self.plain.transport.closing:
                self.plain.transport.receive(data[at : at + self.step])
        self.wire.loop.settle()
        self.read()

    def take(self) -> bytes:
        """What it says, for the test to hand over; `push_rest` sends the last byte."""
        self._said = self._outgoing.read()
        return self._said

    def push_rest(self) -> TlsClient:
        self.plain.send(self._said[-1:])
        return self

    def read(self) -> None:
        sent = self.plain.transport.sent
        self._incoming.write(sent[self._taken :])
        self._taken = len(sent)
        with suppress(ssl.SSLWantReadError):
            try:
                while data := self.tls.read(1 << 16):
                    self.received += data
                self.sees_close_notify = True
            except ssl.SSLZeroReturnError:
                self.sees_close_notify = True

    def answers(self) -> list[Answer]:
        self.read()
        return read_answers(self.received)

    @property
    def statuses(self) -> list[int]:
        return [answer.status for answer in self.answers()]
