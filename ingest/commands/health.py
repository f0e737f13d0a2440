"""The health check: whether the server that these settings start answers.

Owns one question, `GET /health`, to where the settings listen. Exit 0 if the answer is 200, else 1 and one line.
Promises an end within `PATIENCE`, also against a server that hangs. Never asks `/ready`: a task that drains is not a
task to be killed. Loads no HTTP client, because an orchestrator runs this every few seconds.
"""

import socket
import sys
from collections.abc import Mapping
from typing import Final

from ingest.config import load

PATIENCE: Final = 4.0
EVERYWHERE: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not to listen: to ask
_QUESTION: Final = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def run(environ: Mapping[str, str]) -> int:
    """Ask, and return the exit code."""
    settings = load(environ)
    host, port = EVERYWHERE.get(settings.http_host, settings.http_host), settings.http_port
    try:
        with socket.create_connection((host, port), PATIENCE) as connection:
            connection.sendall(_QUESTION)
            answer = connection.recv(64)
    except OSError as error:
        answer = (error.strerror or str(error)).encode()
    if answer.startswith(b"HTTP/1.1 200 "):
        return 0
    told = answer.split(b"\r\n")[0].decode("ascii", "backslashreplace") or "closed without an answer"
    sys.stderr.write(f"{host}:{port} is not healthy: {told}\n")
    return 1
