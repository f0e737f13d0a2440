"""A store that speaks enough S3 to be put into, at next to no CPU: what is measured is what the collector spends.

    python loadtest/s3_sink.py PORT [--keep DIR] [--delay SECONDS]

Owns the objects it was given: as files DIR/<bucket>/<key>, or, without --keep, their keys and sizes only. PUT (with
`If-None-Match: *`: 412 for a key it has), GET, HEAD and DELETE of one object; a bucket exists as soon as it is named. A
body that does not match its `x-amz-checksum-crc32` is refused. Credentials are not looked at. What it does not do:
lists, multipart uploads, aws-chunked bodies (501, so that a changed client is noticed), versions. The tests use moto's
server, which does far more and would take a core of a small machine away from the benchmark.
"""

import argparse
import asyncio
import base64
import os
import urllib.parse
import zlib
from pathlib import Path

import uvloop

REASONS = {200: "OK", 204: "No Content", 400: "Bad Request", 404: "Not Found", 412: "Precondition Failed"}
CODES = {400: "BadDigest", 404: "NoSuchKey", 412: "PreconditionFailed", 501: "NotImplemented"}


class Sink:
    def __init__(self, keep, delay):
        self.keep = keep
        self.delay = delay
        self.sizes = {}

    async def converse(self, reader, writer):
        try:
            while await self.one_request(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def one_request(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ", 2)
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        if fields.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(int(fields.get("content-length", 0)))
        if self.delay:
            await asyncio.sleep(self.delay)
        key = urllib.parse.unquote(target.partition("?")[0]).lstrip("/")
        if "transfer-encoding" in fields or "aws-chunked" in fields.get("content-encoding", ""):
            status, answer = 501, b""
        else:
            status, answer = self.answer(method, key, fields, body)
        if status >= 400 and method != "HEAD":
            answer = f"<?xml version='1.0'?><Error><Code>{CODES[status]}</Code><Key>{key}</Key></Error>".encode()
        size = self.sizes.get(key, 0) if method == "HEAD" and status == 200 else len(answer)
        writer.write(
            f"HTTP/1.1 {status} {REASONS.get(status, '')}\r\nContent-Length: {size}\r\n"
            f'Content-Type: application/xml\r\nETag: "{zlib.crc32(body):08x}"\r\n\r\n'.encode()
            + answer
        )
        await writer.drain()
        return True

    def answer(self, method, key, fields, body):
        if method == "PUT":
            checksum = fields.get("x-amz-checksum-crc32")
            if checksum and checksum != base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode():
                return 400, b""
            if fields.get("if-none-match") == "*" and key in self.sizes:
                return 412, b""
            self.sizes[key] = len(body)
            if self.keep:
                self.write(key, body)
            return 200, b""
        if key not in self.sizes:
            return 404, b""
        if method == "DELETE":
            del self.sizes[key]
            if self.keep:
                (self.keep / key).unlink()
            return 204, b""
        return 200, (self.keep / key).read_bytes() if self.keep and method == "GET" else b""

    def write(self, key, body):
        path = self.keep / key
        if ".." in path.parts:
            raise ValueError(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        temporary.write_bytes(body)
        temporary.rename(path)

    def take_up(self):
        """After a restart: what was kept is still there, as it would be on S3."""
        for folder, _, names in os.walk(self.keep):
            for name in names:
                path = Path(folder, name)
                self.sizes[path.relative_to(self.keep).as_posix()] = path.stat().st_size


async def serve(port, keep, delay):
    sink = Sink(keep, delay)
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        sink.take_up()
    server = await asyncio.start_server(sink.converse, "127.0.0.1", port, limit=1 << 20)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A light store that speaks S3's put, get, head and delete.")
    parser.add_argument("port", type=int)
    parser.add_argument("--keep", type=Path, help="keep the objects as files below this folder")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before every answer")
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.port, arguments.keep, arguments.delay))
