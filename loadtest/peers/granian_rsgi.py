"""Granian's own interface, RSGI: HTTP in Rust, the handler in Python on uvloop, one worker with one runtime thread.

python loadtest/peers/granian_rsgi.py PORT
"""

import sys

from granian import Granian
from granian.constants import Interfaces, Loops
from record import Batch

batch = Batch()


async def app(scope, protocol):
    body = await protocol()
    header = scope.headers.get
    batch.add(
        header("x-forwarded-for") or "", scope.client, header("user-agent") or "", header("cookie") or "", bytes(body)
    )
    protocol.response_empty(200, [])


if __name__ == "__main__":
    Granian(
        "granian_rsgi:app",
        address="127.0.0.1",
        port=int(sys.argv[1]),
        interface=Interfaces.RSGI,
        loop=Loops.uvloop,
        workers=1,
        runtime_threads=1,
        log_access=False,
        log_level="warning",
        websockets=False,
    ).serve()
