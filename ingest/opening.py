"""The opening: all that has to be right before workers can be started, and the sockets that they accept on.

Owns what a supervisor is told. It runs in a process of its own, which ends when it is done, so that the supervisor
loads nothing of it. Promises that wrong settings and addresses that cannot be had end in one line each and exit 2,
before there is a worker; that each worker has a queue of its own at each address; and that an address which another
program listens on is not shared with it. Never accepts a connection.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ingest import granted, supervisor
from ingest.config import ConfigErrors, load, shown_value
from ingest.disk import Filesystem, SocketFile
from ingest.listeners import LISTEN_BACKLOG, bind_alone

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ingest.config import Settings


def open_for_workers(to: socket.socket, environ: Mapping[str, str] = os.environ) -> None:
    """Send the supervisor its plan and the sockets; exit with 2 if there can be none."""
    try:
        settings = load(environ)
    except ConfigErrors as problems:
        _refuse(str(problems))
    workers = settings.workers or granted.processors()
    for_operators: list[socket.socket] = []
    for_events: list[socket.socket] = []
    admin_file = None
    if workers > 1:
        variable = "ADMIN_ADDR"
        try:
            if isinstance(settings.admin_addr, Path):
                found = SocketFile(Filesystem(), settings.admin_addr, LISTEN_BACKLOG)
                for_operators, admin_file = [found.socket], (str(found.path), *found.identity)
            elif settings.admin_addr is not None:
                for_operators = _listening(*settings.admin_addr, 1)
            variable = "HTTP_ADDR"
            for_events = _listening(settings.http_host, settings.http_port, workers)
        except OSError as error:
            if admin_file is not None:
                found.remove()
            _refuse(f"{variable}: cannot listen on {shown_value(variable, settings)}: {error.strerror or error}")
    plan = _plan(settings, workers, admin_file, len(for_operators), len(for_events) // workers)
    supervisor.send(to, plan, [one.fileno() for one in (*for_operators, *for_events)])


def _plan(
    settings: Settings, workers: int, admin_file: tuple[str, int, int] | None, for_operators: int, for_events: int
) -> supervisor.Plan:
    return supervisor.Plan(
        workers,
        settings.drain_delay,
        settings.drain_timeout,
        settings.service_name,
        settings.log_level,
        settings.log_pretty,
        admin_file,
        for_operators,
        for_events,
    )


def _listening(host: str, port: int, queues: int) -> list[socket.socket]:
    """Return sockets that listen at each address of the host, the first `queues`-th part of them the first queue's.

    A queue that shares its address can be had beside those of any other program of our user that shares it too, so
    that it is tried first without.
    """
    listening: list[socket.socket] = []
    for alone in bind_alone(host or None, port):
        address = alone.getsockname()
        alone.close()
        for _ in range(queues):
            one = socket.socket(alone.family, alone.type, alone.proto)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if queues > 1:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if alone.family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
            one.listen(LISTEN_BACKLOG)
            listening.append(one)
    addresses = len(listening) // queues
    return [listening[address * queues + number] for number in range(queues) for address in range(addresses)]


def _refuse(problem: str) -> NoReturn:
    with suppress(OSError):
        sys.stderr.write(f"{problem}\n")
    sys.exit(2)
