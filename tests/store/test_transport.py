"""How the SDK sends: one answer for one request, little of what is no object, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
import tracemalloc
from contextlib import asynccontextmanager, suppress

import pytest

from ingest.disk.errors import StorageError
from ingest.store import credentials as credentials_room
from tests.stand_ins.s3_server import CREDENTIALS
from tests.store.scripted_server import STORED, answered, refused, scripted_server
from tests.store.test_s3 import BODY, KEY, METADATA, helper_of, only_credentials_of, run, s3_store

UNASKED = {
    "the answer once more": STORED,
    "another answer": answered(200, etag='"f"', x_amz_request_id="another"),
    "a refusal": answered(408, b"<html>too slow</html>", content_type="text/html"),
    "leave to send": b"HTTP/1.1 100 Continue\r\n\r\n",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")


@asynccontextmanager
async def serving(serve, **how):
    """Have `serve(reader, writer)` serve each connection, and yield the endpoint."""
    tasks = set()

    async def connected(reader, writer):
        tasks.add(asyncio.current_task())
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, **how)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("unasked", UNASKED)
@pytest.mark.parametrize("word", ["put", "create"])
def test_what_came_unasked_is_no_answer_to_the_next_put(word, unasked):
    """A proxy that answers twice would have each put judged by the answer to the one before it."""

    async def scenario(store, server):
        server.answers = [STORED, refused(412, "PreconditionFailed")]
        await store.create(f"{KEY}0", BODY, METADATA)
        server.unasked = UNASKED[unasked]
        await store.put(f"{KEY}1", BODY, METADATA)
        await server.told.wait()
        server.unasked = b""
        await asyncio.sleep(0.05)  # what was told is on its way through the loopback
        server.answers = [refused(503, "SlowDown")]
        with pytest.raises(StorageError) as caught:
            await getattr(store, word)(f"{KEY}2", BODY, METADATA)
        assert caught.value.cause["status"] == 503
        await store.put(f"{KEY}3", BODY, METADATA)
        assert len({request.connection for request in server.requests}) == 2

    run(scenario)


@pytest.mark.parametrize(
    ("told", "is_stored"), [("AAAAAA==", False), ("", True), ("deadbeef", True), ("its own", True)], ids=repr
)
def test_an_answer_that_tells_of_another_body_is_no_evidence(told, is_stored):
    async def scenario(store, server):
        await store.put(KEY, BODY, METADATA)
        sent = server.requests[0].headers["x-amz-checksum-crc32"]
        server.answers = [answered(200, etag='"e"', x_amz_checksum_crc32=sent if told == "its own" else told)]
        if is_stored:
            await store.put(KEY, BODY, METADATA)
            return
        with pytest.raises(StorageError) as caught:
            await store.put(KEY, BODY, METADATA)
        assert (caught.value.transient, sent in caught.value.cause["error"]) == (True, True)

    run(scenario)


def test_no_cookie_of_what_stood_in_the_stores_place_goes_to_the_store():
    async def main():
        async with scripted_server() as server, s3_store(server.endpoint.replace("127.0.0.1", "localhost")) as store:
            for cookie in ("session=" + "x" * 3000 + "; Path=/; Max-Age=86400", "other=" + "y" * 3000 + "; Path=/"):
                server.answers = [answered(503, b"<html>", content_type="text/html", set_cookie=cookie)]
                with pytest.raises(StorageError):
                    await store.put(KEY, BODY, METADATA)
            await store.put(KEY, BODY, METADATA)
            assert [request.headers.get("cookie") for request in server.requests] == [None] * 3

    asyncio.run(main())


def test_a_put_to_a_peer_that_never_reads_leaves_no_connection_behind():
    def connections():
        return len(os.listdir("/proc/self/fd"))

    async def main():
        with socket.socket() as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            endpoint = f"http://127.0.0.1:{listening.getsockname()[1]}"
            async with s3_store(endpoint, S3_TIMEOUT="300ms") as store:
                await store.start()
                before = connections()
                for _ in range(4):
                    with pytest.raises(StorageError) as caught:
                        await store.put(KEY, bytes(16 * 1024**2), METADATA)
                    assert "S3_TIMEOUT" in caught.value.hint
                async with asyncio.timeout(20):
                    while connections() != before:  # noqa: ASYNC110 - the kernel sets no event
                        await asyncio.sleep(0.01)

    asyncio.run(main())


BOMBS = {
    "elements": b"<Error>" + b"<a/>" * 3_000_000 + b"</Error>",
    "a code": b"<Error><Code>" + b"A" * 12_000_000 + b"</Code></Error>",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_large_error_takes_no_memory(bomb):
    async def scenario(store, server):
        server.answers = [answered(400, BOMBS[bomb], content_type="application/xml")]
        await store.start()
        tracemalloc.start()
        try:
            with pytest.raises(StorageError) as caught:
                await store.put(KEY, BODY, METADATA)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # The server of the test has its answer in memory, and the kernel's part of it.
        assert most < 4 * len(BOMBS[bomb]), most
        assert "longer than any" in caught.value.hint
        assert caught.value.cause["status"] == 400

    run(scenario, S3_TIMEOUT="60s")


def test_a_word_of_a_store_is_cut_before_the_log_has_it():
    async def scenario(store, server):
        server.answers = [
            answered(400, b"<Error><Code>" + b"A" * 50_000 + b"</Code></Error>", x_amz_request_id="r" * 8000)
        ]
        with pytest.raises(StorageError) as caught:
            await store.put(KEY, BODY, METADATA)
        assert len(str(caught.value)) < 1000
        assert sum(len(str(value)) for value in caught.value.cause.values()) < 1000

    run(scenario)


# ----------------------------------------------------------------------------------------- sources of credentials


@pytest.mark.parametrize("status", [200, 500])
def test_a_source_of_credentials_that_never_ends_is_not_read_into_memory(monkeypatch, status):
    only_credentials_of(monkeypatch)
    sent = 0

    async def endless(reader, writer):
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d Told\r\nContent-Type: application/json\r\n\r\n" % status)
        while sent < 64 * 1024**2:
            writer.write(bytes(65_536))
            await writer.drain()
            sent += 65_536

    async def main():
        async with serving(endless) as source, s3_store("http://127.0.0.1:1") as store:
            monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", source)
            with pytest.raises(StorageError) as caught:
                await store.put(KEY, BODY, METADATA)
            assert "source of credentials" in caught.value.hint
            assert sent < 32 * 1024**2

    asyncio.run(main())


def test_a_helper_that_tells_at_length_what_it_does_is_heard(monkeypatch, tmp_path):
    keys = '{"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "b"}'
    only_credentials_of(monkeypatch, helper_of(tmp_path, f"yes | head -c 1000000 1>&2\necho '{keys}'\n"))

    async def scenario(store, server):
        await store.put(KEY, BODY, METADATA)
        assert len(server.requests) == 1

    run(scenario)


def test_a_helper_that_never_stops_printing_is_ended(monkeypatch, tmp_path):
    only_credentials_of(monkeypatch, helper_of(tmp_path, "exec yes\n"))

    async def scenario(store, server):
        with pytest.raises(StorageError) as caught:
            await asyncio.wait_for(store.put(KEY, BODY, METADATA), 30)
        assert "source of credentials" in caught.value.hint
        assert server.requests == []

    run(scenario)


@pytest.mark.parametrize("which", ["AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"])
def test_a_file_of_credentials_on_a_disk_that_hangs_does_not_hold_the_loop(monkeypatch, tmp_path, which):
    only_credentials_of(monkeypatch)
    file = tmp_path / "keys"
    file.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv(which, str(file))
    answers, is_file = threading.Event(), os.path.isfile
    answers.set()
    monkeypatch.setattr("os.path.isfile", lambda path: (path != str(file) or answers.wait(10)) and is_file(path))

    async def scenario(store, server):
        server.answers = [refused(400, "ExpiredToken")]
        with pytest.raises(StorageError):
            await store.put(KEY, BODY, METADATA)
        answers.clear()
        try:
            with monkeypatch.context() as patched:
                patched.setattr(credentials_room, "LONGEST_WAIT", 0.3)
                began = time.monotonic()
                with pytest.raises(StorageError) as caught:
                    await store.put(KEY, BODY, METADATA)
            assert time.monotonic() - began < 8
            assert "source of credentials" in caught.value.hint
        finally:
            answers.set()
        await store.put(KEY, BODY, METADATA)

    run(scenario)


TOKENS = {
    "AWS_WEB_IDENTITY_TOKEN_FILE": {"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/collector"},
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:1/"},
}


@pytest.mark.parametrize("which", TOKENS)
@pytest.mark.parametrize("what", ["hangs", "never ends"])
def test_a_file_of_a_token_that_hangs_or_never_ends_is_an_outage(monkeypatch, tmp_path, which, what):
    """Sources read it on the loop: one that hangs there would hold up every event."""
    only_credentials_of(monkeypatch)
    pipe = tmp_path / "token"
    os.mkfifo(pipe)
    for name, value in {**TOKENS[which], which: str(pipe) if what == "hangs" else "/dev/zero"}.items():
        monkeypatch.setenv(name, value)

    async def scenario(store, server):
        with monkeypatch.context() as patched:
            patched.setattr(credentials_room, "LONGEST_WAIT", 1.0)
            try:
                with pytest.raises(StorageError) as caught:
                    await store.put(KEY, BODY, METADATA)
            finally:
                os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))  # whoever waits for a writer goes on
        assert "source of credentials" in caught.value.hint
        assert server.requests == []

    run(scenario)


@pytest.mark.parametrize(
    "code", ["SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken", "TokenRefreshRequired"]
)
def test_b6_keys_that_the_store_does_not_know_are_read_again(monkeypatch, tmp_path, code):
    """A file may be read while it is written: the new key with the old secret."""
    config = tmp_path / "config"
    config.write_text("[default]\naws_access_key_id = new\naws_secret_access_key = old\n")
    only_credentials_of(monkeypatch, config)

    async def scenario(store, server):
        server.answers = [refused(403, code)]
        with pytest.raises(StorageError):
            await store.put(KEY, BODY, METADATA)
        config.write_text("[default]\naws_access_key_id = renewed\naws_secret_access_key = new\n")
        await store.put(KEY, BODY, METADATA)
        assert "renewed/" in server.requests[-1].headers["authorization"]

    run(scenario)
