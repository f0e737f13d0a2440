"""Connections that bring one event each share turns: the loop accepts several of them in one."""

from __future__ import annotations

import os
import signal
import socket

from tests.stand_ins.wire import post, read_answers

CONNECTIONS = 60


def test_connections_that_wait_to_be_accepted_share_turns_and_so_writes_of_the_journal(collectors):
    collector = collectors({"FLUSH_INTERVAL": "1h", "BATCH_SIZE": "100000"}).start()
    os.kill(collector.pid, signal.SIGSTOP)
    clients = [socket.create_connection(("127.0.0.1", collector.port), timeout=30) for _ in range(CONNECTIONS)]
    for number, client in enumerate(clients):
        client.sendall(post(b"%d" % number, "Connection: close"))
    os.kill(collector.pid, signal.SIGCONT)
    for client in clients:
        with client, client.makefile("rb") as stream:
            (answer,) = read_answers(stream.read())
            assert answer.status == 200
    metrics = collector.metrics()
    assert metrics.value("estat_events_accepted_total") == CONNECTIONS
    assert metrics.value("estat_journal_writes_total") <= CONNECTIONS / 2
