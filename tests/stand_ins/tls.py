"""A client of TLS without a network, and certificates for it."""

from __future__ import annotations

import datetime
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

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


APPLICATION, HANDSHAKE = 23, 22
KEY_UPDATE = b"\x18\x00\x00\x01\x00"


class Scribe:
    """Writes a client's records by hand, after a handshake of TLS 1.3: also those that no library sends.

    `log` is the file that the client's context has written its secrets to (`keylog_filename`).
    """

    def __init__(self, log: Path) -> None:
        (secret,) = (line.split()[2] for line in log.read_text().splitlines() if line.startswith("CLIENT_TRAFFIC_"))
        self._use(bytes.fromhex(secret))

    def record(self, said: bytes, kind: int = APPLICATION, *, padding: int = 0) -> bytes:
        """One record (RFC 8446 §5.2)."""
        inner = said + bytes([kind]) + bytes(padding)
        head = bytes([APPLICATION, 3, 3]) + (len(inner) + 16).to_bytes(2, "big")
        nonce = int.from_bytes(self._iv, "big") ^ self._sent
        self._sent += 1
        return head + self._key.encrypt(nonce.to_bytes(12, "big"), inner, head)

    def key_update(self, *, piece: int = 5, padding: int = 0) -> bytes:
        """One key update, in pieces of so many bytes (RFC 8446 §4.6.3); what follows has the next keys."""
        pieces = [KEY_UPDATE[at : at + piece] for at in range(0, len(KEY_UPDATE), piece)]
        written = b"".join(self.record(one, HANDSHAKE, padding=padding) for one in pieces)
        self._use(_expand(self._secret, b"traffic upd", 48))
        return written

    def _use(self, secret: bytes) -> None:
        self._secret = secret
        self._key = AESGCM(_expand(secret, b"key", 32))
        self._iv = _expand(secret, b"iv", 12)
        self._sent = 0


def _expand(secret: bytes, label: bytes, size: int) -> bytes:
    """Expand a secret of TLS_AES_256_GCM_SHA384, on which both sides agree by default (RFC 8446 §7.1)."""
    name = b"tls13 " + label
    told = size.to_bytes(2, "big") + bytes([len(name)]) + name + b"\0"
    return HKDFExpand(hashes.SHA384(), size, told).derive(secret)
