"""The health check: whether the server that these settings start answers.

Owns one question, `GET /health`, put as the settings are. Exit 0 if the answer is 200, else 1 and one line. With
`ADMIN_ADDR` it is asked there, because that door opens also when MAX_CONNECTIONS are open: a full server is not to be
killed. Promises an end within `PATIENCE`, also against a server that hangs. Never asks `/ready`: a task that drains is
not a task to be killed.

An orchestrator runs this every few seconds, so it loads next to nothing: no HTTP client, and the settings only if the
few variables it needs have any but the plainest form.
"""

from __future__ import annotations

import socket
import sys
import time
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from ipaddress import IPv4Network, IPv6Network
    from typing import TypeAlias

    Networks: TypeAlias = tuple[IPv4Network | IPv6Network, ...]

PATIENCE: Final = 4.0
"""Seconds for an answer, all in all."""
EVERYWHERE: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not to listen: to ask
_QUESTION: Final = b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_LEAST_WAIT: Final = 0.01
"""Seconds; a socket takes none for no waiting at all."""
_ANSWER_BYTES: Final = 1 << 20
"""More than that is read of nobody."""
_UNIX: Final = "unix:"
_PROXY_HEADER: Final = b"PROXY UNKNOWN\r\n"
_READ: Final = ("HTTP_ADDR", "ADMIN_ADDR")
_MORE: Final = ("PROXY_PROTOCOL", "TLS_CERT")
"""With one of these set there is more to asking than an address, unless it is asked on `ADMIN_ADDR`."""


class Question(NamedTuple):
    """Where the server is asked, and how."""

    where: str
    networks: Networks | None = None
    """If we come from one of them a PROXY protocol header is expected of us."""
    tls: bool = False


def run(environ: Mapping[str, str]) -> int:
    """Ask, and return the exit code; 2 if the settings are wrong."""
    try:
        question = question_of(environ)
    except ValueError as problems:
        sys.stderr.write(f"{problems}\n")
        return 2
    told = ask(question)
    if told is None:
        return 0
    sys.stderr.write(f"{question.where} is not healthy: {told}\n")
    return 1


def question_of(environ: Mapping[str, str]) -> Question:
    """Return where and how to ask; a `ValueError` names each problem."""
    plain = plain_address(environ)
    return _question(environ) if plain is None else Question(plain)


def plain_address(environ: Mapping[str, str]) -> str | None:
    """Return where to ask, if it is said as nearly everybody says it; None if the settings have to be read."""
    http, admin = (environ.get(name, "").strip() for name in _READ)
    where = admin or http or ":8080"
    if where.startswith(_UNIX) or (not admin and any(environ.get(name, "").strip() for name in _MORE)):
        return None
    host, colon, port = where.rpartition(":")
    plain = host.replace(".", "").replace("-", "")
    if not (colon and port.isascii() and port.isdigit() and 0 < int(port) <= 65535 and (not host or plain.isalnum())):
        return None
    return f"{EVERYWHERE.get(host, host)}:{port}" if host.isascii() else None


def _question(environ: Mapping[str, str]) -> Question:
    """Return what the settings say to that."""
    from ingest.config import ConfigErrors, load

    try:
        settings = load(environ)
    except ConfigErrors as problems:
        raise ValueError(str(problems)) from None
    admin = settings.admin_addr
    if admin is not None:
        return Question(_shown(admin) if isinstance(admin, tuple) else f"{_UNIX}{admin}")
    networks = settings.trusted_proxies if settings.proxy_protocol else None
    return Question(_shown(settings.http_addr), networks, tls=settings.tls_cert is not None)


def _shown(address: tuple[str, int]) -> str:
    return f"{EVERYWHERE.get(address[0], address[0])}:{address[1]}"


def ask(question: Question) -> str | None:
    """Ask, and return why the server is not healthy, if it is not."""
    try:
        answer = exchange(question, b"/health", until=b"\r\n")
    except OSError as error:
        return error.strerror or str(error)
    return None if is_good(answer) else first_line(answer)


def is_good(answer: bytes) -> bool:
    """Tell whether its status is 200."""
    return answer.startswith(b"HTTP/1.1 200 ")


def first_line(answer: bytes) -> str:
    """Return what it says first, fit for a terminal."""
    return answer.split(b"\r\n")[0].decode("ascii", "backslashreplace") or "closed without an answer"


def exchange(question: Question, path: bytes, *, until: bytes = b"") -> bytes:
    """Ask for a path, and return what came till these bytes were in it, or to the end; an `OSError` if nothing can."""
    end = time.monotonic() + PATIENCE
    asked = _QUESTION % path
    answer = b""
    with _connect(question, end) as connection:
        connection.sendall(_PROXY_HEADER + asked if _is_in(connection, question.networks) else asked)
        while not (until and until in answer) and len(answer) < _ANSWER_BYTES and (left := end - time.monotonic()) > 0:
            connection.settimeout(left)
            data = connection.recv(1 << 14)
            if not data:
                break
            answer += data
    return answer


def _is_in(connection: socket.socket, networks: Networks | None) -> bool:
    """Tell whether the server sees us come from one of these networks."""
    if networks is None:
        return False
    from ipaddress import ip_address

    ours = ip_address(connection.getsockname()[0])
    return any(ours in network for network in networks)


def _connect(question: Question, end: float) -> socket.socket:
    where = question.where
    if not where.startswith(_UNIX):
        host, _, port = where.rpartition(":")
        connection = _connect_to_one(_addresses(host, end), int(port), end)
        connection.settimeout(_left(end))
        return _secure(connection) if question.tls else connection
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(PATIENCE)
        connection.connect(where.removeprefix(_UNIX))
    except OSError:
        connection.close()
        raise
    return connection


def _connect_to_one(addresses: Sequence[str], port: int, end: float) -> socket.socket:
    """Connect to the first address that takes it; raise what the last one said."""
    refused = OSError("the name has no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), _left(end))
        except OSError as error:
            refused = error
    raise refused


def _addresses(host: str, end: float) -> Sequence[str]:
    """Return the addresses of a name; an `OSError` if nobody can tell them in time, which no call of its own bounds."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return (host,)
    from concurrent.futures import Future
    from threading import Thread

    found: Future[list[str]] = Future()

    def resolve() -> None:
        try:
            found.set_result([str(row[4][0]) for row in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)])
        except (OSError, UnicodeError) as error:
            found.set_exception(error if isinstance(error, OSError) else OSError(str(error)))

    Thread(target=resolve, daemon=True).start()
    try:
        return found.result(_left(end))
    except TimeoutError:
        raise OSError(f"the name {host} was not resolved in time") from None


def _left(end: float) -> float:
    return max(end - time.monotonic(), _LEAST_WAIT)


def _secure(connection: socket.socket) -> socket.socket:
    """Speak TLS; whose certificate it is does not matter to who asks whether the process is well."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        return context.wrap_socket(connection)
    except OSError:
        connection.close()
        raise
