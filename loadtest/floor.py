"""The floor: what a collector on uvloop cannot go below. Every read is answered with fixed bytes, unparsed, unstored.

It reads from the socket and writes to it, one write per read, and does nothing else; what it spends is the event loop
and the kernel. Budgets are ratios to it, measured in the same run, so that they hold on another machine too.

    python loadtest/floor.py PORT [split | pipelined | closing]

A read is taken for a request, since the generator sends each event in one segment. With `split`, for the load that
sends head and body apart, a read that ends with a head's empty line is not answered; with `pipelined`, a read is four;
with `closing`, for the load of one event a connection, the connection is closed behind the answer.
"""

import asyncio
import sys

import uvloop

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
LAST_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
FOUR_ANSWERS = ANSWER * 4  # as many as the generator pipelines


class Floor(asyncio.Protocol):
    __slots__ = ("write",)

    def connection_made(self, transport):
        self.write = transport.write

    def data_received(self, data):  # noqa: ARG002 - unparsed is the point
        self.write(ANSWER)


class FloorOfSplit(Floor):
    __slots__ = ()

    def data_received(self, data):
        if data[-4:] != b"\r\n\r\n":
            self.write(ANSWER)


class FloorOfPipelined(Floor):
    __slots__ = ()

    def data_received(self, data):  # noqa: ARG002 - unparsed is the point
        self.write(FOUR_ANSWERS)


class FloorThatCloses(asyncio.Protocol):
    __slots__ = ("transport",)

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):  # noqa: ARG002 - unparsed is the point
        self.transport.write(LAST_ANSWER)
        self.transport.close()


KINDS = {"plain": Floor, "split": FloorOfSplit, "pipelined": FloorOfPipelined, "closing": FloorThatCloses}


async def serve(port, protocol):
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), KINDS[sys.argv[2] if sys.argv[2:] else "plain"]))
