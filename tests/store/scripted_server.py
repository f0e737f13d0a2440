"""An HTTP server that keeps every request it gets and answers as it is told: for what a real S3 server does not show.

What arrives on the wire (headers, signature, the number of tries and connections) and every kind of bad answer. Whether
objects are stored is tested against a real S3 server instead.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

STORED = b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 0\r\n\r\n'


def answered(status: int, body: bytes = b"", **fields: str) -> bytes:
    """Return an answer; `content_type` becomes the field `content-type`."""
    told = {"content_length": str(len(body)), **fields}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in told.items())
    return f"HTTP/1.1 {status} Told\r\n{lines}\r\n".encode() + body


def refused(status: int, code: str = "") -> bytes:
    body = f"<Error><Code>{code}</Code><Message>told so</Message></Error>".encode()
    return answered(status, body, content_type="application/xml", x_amz_request_id="the-request")


def part_of(body: bytes, size: int = 20) -> bytes:
    """Return a store's answer to the question for the first bytes of an object."""
    return answered(206, body[:size], content_range=f"bytes 0-{min(size, len(body)) - 1}/{len(body)}", etag='"e"')


def page(*keys: str, prefix: str = "raw/", token: str = "", truncated: str = "", more: str = "") -> bytes:
    """Return a page of a listing; with a token it is not the last, unless it says otherwise."""
    listed = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2026-11-23T00:00:00.000Z</LastModified><Size>7</Size></Contents>"
        for key in keys
    )
    told = truncated or ("true" if token else "false")
    following = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    body = (
        f"<?xml version='1.0'?><ListBucketResult><Name>bucket</Name><Prefix>{prefix}</Prefix>{listed}"
        f"<IsTruncated>{told}</IsTruncated>{following}{more}</ListBucketResult>"
    )
    return answered(200, body.encode(), content_type="application/xml")


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int


@dataclass
class ScriptedServer:
    """Answers in turn what is in `answers`, then `STORED`. An answer of None hangs, b"" closes the connection."""

    endpoint: str = ""
    answers: list[bytes | None] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    requested: asyncio.Event = field(default_factory=asyncio.Event)
    connections: int = 0
    trickle: float = 0.0
    """Seconds between two bytes of an answer."""
    closes: bool = False
    """The connection ends with the answer."""
    unasked: bytes = b""
    """Follows upon the answer, when the client has had that for a while."""
    told: asyncio.Event = field(default_factory=asyncio.Event)
    """What is unasked was sent."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = self.connections
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                    line, *fields = head.split("\r\n")
                    method, path, _ = line.split(" ", 2)
                    headers = {name.lower(): value for name, _, value in (f.partition(": ") for f in fields if f)}
                    if headers.get("expect") == "100-continue":
                        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    body = await reader.readexactly(int(headers.get("content-length", 0)))
                    self.requests.append(Request(method, path, headers, body, connection))
                    self.requested.set()
                    answer = self.answers.pop(0) if self.answers else STORED
                    if answer is None:
                        await reader.read()  # until the client gives up
                        break
                    if not answer:
                        break
                    for part in [answer[i : i + 1] for i in range(len(answer))] if self.trickle else [answer]:
                        writer.write(part)
                        await writer.drain()
                        await asyncio.sleep(self.trickle)
                    if self.unasked:
                        await asyncio.sleep(0.05)
                        writer.write(self.unasked)
                        await writer.drain()
                        self.told.set()
                    if self.closes:
                        break
        finally:
            writer.close()


@asynccontextmanager
async def scripted_server(certificate: Path | None = None) -> AsyncIterator[ScriptedServer]:
    """Serve on a free port of the loopback; with a certificate (see `make_certificate`) over TLS."""
    context = None
    if certificate is not None:
        context = SSLContext(PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    script = ScriptedServer()
    tasks, writers = set(), []

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        tasks.add(asyncio.ensure_future(script.serve(reader, writer)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    script.endpoint = f"http{'s' if context else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield script
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for writer in writers:  # also of a task that had not begun: a transport left open would warn in another test
            writer.transport.abort()
        await asyncio.sleep(0)


def make_certificate(path: Path) -> Path:
    """Write a key and a certificate for 127.0.0.1 that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path
