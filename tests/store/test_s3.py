"""The S3 store on the wire: what a put carries, how often it is sent, and what every bad answer means."""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ingest.config.settings import load
from ingest.disk.errors import StorageError
from ingest.format import codec
from ingest.store.object_store import Head, ObjectMetadata
from ingest.store.outcome import Refusal
from ingest.store.s3 import CANARIES, ONE_WRITE, S3Store
from ingest.store.s3_errors import LONGEST_TEXT
from ingest.store.sdk import Models
from tests.stand_ins.s3_server import CREDENTIALS
from tests.store.scripted_server import STORED, answered, make_certificate, part_of, refused, scripted_server

HEAD = Head(codec.HEAD_BYTES, codec.event_count)
KEY = "raw/dt=2025-12-02/hr=14/name.jsonl.gz"
BODY = b"body" * 1000
METADATA = ObjectMetadata(events=7, first_ts=11, last_ts=13, instance="host-token")
LINES = b'{"ts":1,"body":"x"}\n'
PAGE = b"<html><title>Sign in to the network</title></html>"


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def first_start(monkeypatch):
    """The store is the first one of its process: it reads the models of the SDK, and has them frozen."""
    monkeypatch.setattr("ingest.store.sdk.Models", Models)
    yield
    gc.unfreeze()


@asynccontextmanager
async def s3_store(endpoint: str, **environ: str):
    environ = {
        "RAW_BUCKET": "bucket",
        "AWS_REGION": "eu-west-1",
        "S3_ENDPOINT_URL": endpoint,
        "S3_TIMEOUT": "5s",
        **environ,
    }
    with ThreadPoolExecutor(2) as executor:
        store = S3Store(load(environ), executor, HEAD)
        try:
            yield store
        finally:
            await store.close()


def run(scenario, *, certificate=None, **environ):
    """Run `scenario(store, server)` against a server that answers what the scenario tells it to."""

    async def main():
        async with scripted_server(certificate) as server, s3_store(server.endpoint, **environ) as store:
            await scenario(store, server)

    asyncio.run(main())


# --------------------------------------------------------------------------------------------- what a put carries


def test_a_put_carries_checksum_metadata_and_type_and_nothing_encoded():
    async def scenario(store, server):
        await store.put(KEY, BODY, METADATA)
        (request,) = server.requests
        assert (request.method, request.path, request.body) == ("PUT", f"/bucket/{KEY.replace('=', '%3D')}", BODY)
        crc = base64.b64encode(zlib.crc32(BODY).to_bytes(4, "big")).decode()
        expected = {
            "x-amz-checksum-crc32": crc,
            "x-amz-meta-events": "7",
            "x-amz-meta-first-ts": "11",
            "x-amz-meta-last-ts": "13",
            "x-amz-meta-instance": "host-token",
            "content-type": "application/gzip",
            "content-length": str(len(BODY)),
        }
        assert {name: request.headers.get(name) for name in expected} == expected
        unwanted = {"content-encoding", "transfer-encoding", "expect", "x-amz-trailer", "if-none-match"}
        unwanted |= {"x-amz-storage-class", "x-amz-tagging", "x-amz-server-side-encryption"}
        assert unwanted.isdisjoint(request.headers)

    run(scenario)


@pytest.mark.parametrize("size", [ONE_WRITE, ONE_WRITE + 1], ids=["a batch", "large"])
def test_a6_no_body_waits_for_leave_to_be_sent(size):
    """A store or a proxy that never says `100 Continue` would get nothing."""
    body = bytes(range(256)) * (ONE_WRITE // 256) + b"x" * (size - ONE_WRITE)

    async def scenario(store, server):
        await store.put(KEY, body, METADATA)
        await store.create(KEY, body, METADATA)
        for request in server.requests:
            assert request.body == body
            assert "expect" not in request.headers

    run(scenario)


def test_over_http_the_body_is_signed():
    async def scenario(store, server):
        await store.put(KEY, BODY, METADATA)
        headers = server.requests[0].headers
        assert headers["x-amz-content-sha256"] == hashlib.sha256(BODY).hexdigest()
        assert "x-amz-checksum-crc32" in headers["authorization"]

    run(scenario)


def test_over_tls_the_checksum_is_signed_and_the_body_is_not(tmp_path, monkeypatch):
    certificate = make_certificate(tmp_path / "certificate.pem")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))

    async def scenario(store, server):
        await store.put(KEY, BODY, METADATA)
        (request,) = server.requests
        assert request.body == BODY
        assert request.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
        assert "x-amz-checksum-crc32" in request.headers["authorization"]
        assert "transfer-encoding" not in request.headers

    run(scenario, certificate=certificate)


def test_an_endpoint_that_only_the_sdk_knows_of_counts_as_much_for_the_signature(monkeypatch):
    async def main():
        async with scripted_server() as server:
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
            with ThreadPoolExecutor(1) as executor:
                settings = load({"RAW_BUCKET": "bucket", "AWS_REGION": "eu-west-1"})
                store = S3Store(settings, executor, HEAD)
                await store.put(KEY, BODY, METADATA)
                await store.close()
            assert server.requests[0].headers["x-amz-content-sha256"] == hashlib.sha256(BODY).hexdigest()

    asyncio.run(main())


def test_at_an_endpoint_of_its_own_the_bucket_is_in_the_path(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.setenv("no_proxy", "localhost")

    async def main():
        async with (
            scripted_server() as server,
            s3_store(server.endpoint.replace("127.0.0.1", "localhost")) as store,
        ):
            await store.put(KEY, BODY, METADATA)
            (request,) = server.requests
            assert request.headers["host"].startswith("localhost:")
            assert request.path.startswith("/bucket/raw/")

    asyncio.run(main())


def test_a_certificate_nobody_trusts_is_refused(tmp_path):
    async def scenario(store, server):
        with pytest.raises(StorageError) as caught:
            await store.put(KEY, BODY, METADATA)
        assert (caught.value.transient, server.requests) == (False, [])
        assert "certificates" in caught.value.hint

    run(scenario, certificate=make_certificate(tmp_path / "certificate.pem"))


def test_encryption_class_and_tags_go_with_every_put():
    async def scenario(store, server):
        await store.put(KEY, BODY, METADATA)
        await store.create(KEY, BODY, METADATA)
        for request in server.requests:
            assert request.headers["x-amz-server-side-encryption"] == "aws:kms"
            assert request.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/events"
            assert request.headers["x-amz-storage-class"] == "INTELLIGENT_TIERING"
            assert request.headers["x-amz-tagging"] == "team=data&stage=raw"

    run(
        scenario,
        S3_SSE="aws:kms",
        S3_SSE_KMS_KEY_ID="alias/events",
        S3_STORAGE_CLASS="INTELLIGENT_TIERING",
        S3_TAGS="team=data&stage=raw",
    )


# --------------------------------------------------------------------------------------------- create-only


def test_create_asks_the_store_to_refuse_a_key_that_exists():
    async def scenario(store, server):
        server.answers = [STORED, EXISTS]
        assert await store.create(KEY, BODY, METADATA) is True
        assert [request.headers.get("if-none-match") for request in server.requests] == ["*", "*"]

    run(scenario)


def test_412_means_that_the_key_is_stored_already():
    async def scenario(store, server):
        server.answers = [refused(412, "PreconditionFailed")]
        assert await store.create(KEY, BODY, METADATA) is False

    run(scenario)


def test_e8_after_a_412_the_longer_file_replaces_less_and_less_replaces_nothing():
    async def scenario(store, server):
        server.answers = [EXISTS, part_of(file_of(6)), STORED, EXISTS, part_of(file_of(7))]
        assert await store.create(KEY, file_of(7), METADATA) is True
        assert await store.create(KEY, file_of(7), METADATA) is False
        calls = [(request.method, request.headers.get("if-none-match")) for request in server.requests]
        assert calls == [("PUT", "*"), ("GET", None), ("PUT", None), ("PUT", "*"), ("GET", None)]
        assert server.requests[2].body == file_of(7)

    run(scenario)


def test_e8_a_role_that_may_not_read_keeps_what_exists_and_is_told_once():
    async def scenario(store, server):
        server.answers = [EXISTS, refused(403, "AccessDenied")] * 2
        with capture_logs() as logs:
            for _ in range(2):
                assert await store.create(KEY, file_of(7), METADATA) is False
        assert [line["event"] for line in logs].count("stored_object_not_read") == 1

    run(scenario)


@pytest.mark.parametrize("answer", ["error", "busy", "a page", "moved"])
def test_e8_no_answer_about_what_exists_is_a_failed_try(answer):
    async def scenario(store, server):
        server.answers = [EXISTS, NO_EVIDENCE[answer]]
        with pytest.raises(StorageError):
            await store.create(KEY, file_of(7), METADATA)
        assert [request.method for request in server.requests] == ["PUT", "GET"]

    run(scenario)


def test_409_means_try_again():
    async def scenario(store, server):
        server.answers = [refused(409, "ConditionalRequestConflict")]
        with pytest.raises(StorageError) as caught:
            await store.create(KEY, BODY, METADATA)
        assert caught.value.transient

    run(scenario)


@pytest.mark.parametrize("page", [PAGE, b"", b"<Error><Code></Code></Error>"], ids=["a page", "nothing", "no code"])
def test_a1_a_412_without_the_stores_own_code_is_a_failed_try(page):
    async def scenario(store, server):
        server.answers = [answered(412, page, content_type="text/html")]
        with pytest.raises(StorageError) as caught:
            await store.create(KEY, BODY, METADATA)
        assert caught.value.subject == KEY

    run(scenario)


EXISTS = refused(412, "PreconditionFailed")


def test_a5_the_first_create_that_is_stored_is_sent_once_more_and_only_that_one():
    async def scenario(store, server):
        server.answers = [STORED, EXISTS]
        for _ in range(3):
            assert await store.create(KEY, BODY, METADATA) is True
        assert [request.headers.get("if-none-match") for request in server.requests] == ["*"] * 4

    run(scenario)


def test_a5_a_store_that_refused_a_key_once_needs_no_canary():
    async def scenario(store, server):
        server.answers = [EXISTS]
        assert await store.create(KEY, BODY, METADATA) is False
        assert await store.create(KEY, BODY, METADATA) is True
        assert len(server.requests) == 2

    run(scenario)


def test_a5_a_store_that_ignores_the_condition_is_asked_what_it_holds_from_then_on():
    async def scenario(store, server):
        with capture_logs() as logs:
            assert await store.create(KEY, file_of(7), METADATA) is True  # and stored again
            server.answers = [part_of(file_of(7)), refused(404, "NoSuchKey")]
            assert await store.create(KEY, file_of(7), METADATA) is False
            assert await store.create(KEY, file_of(7), METADATA) is True
        assert [request.method for request in server.requests] == ["PUT", "PUT", "GET", "GET", "PUT"]
        (line,) = [line for line in logs if line["event"] == "conditional_puts_not_honoured"]
        assert "S3_CONDITIONAL_PUTS" in line["hint"]

    run(scenario)


def test_a5_a_store_without_conditional_puts_is_asked_what_it_holds_from_then_on():
    async def scenario(store, server):
        server.answers = [refused(501, "NotImplemented"), refused(404, "NoSuchKey"), STORED, part_of(file_of(7))]
        assert await store.create(KEY, file_of(7), METADATA) is True
        assert await store.create(KEY, file_of(7), METADATA) is False
        assert [request.method for request in server.requests] == ["PUT", "GET", "PUT", "GET"]

    run(scenario)


def test_a5_a_feature_that_is_lacking_otherwise_changes_nothing():
    async def scenario(store, server):
        lacking = refused(501, "NotImplemented")
        for _ in range(2):
            server.answers = [lacking, refused(404, "NoSuchKey"), lacking]
            with pytest.raises(Refusal):
                await store.create(KEY, file_of(7), METADATA)
        assert [request.method for request in server.requests] == ["PUT", "GET", "PUT"] * 2

    run(scenario)


def test_a5_a_page_with_501_is_no_word_of_the_store():
    async def scenario(store, server):
        server.answers = [answered(501, PAGE)]
        with pytest.raises(StorageError) as caught:
            await store.create(KEY, BODY, METADATA)
        assert not isinstance(caught.value, Refusal)
        assert len(server.requests) == 1

    run(scenario)


def test_a5_canaries_without_an_answer_are_not_sent_for_ever():
    async def scenario(store, server):
        for _ in range(CANARIES):
            server.answers = [STORED, answered(200, PAGE)]
            assert await store.create(KEY, file_of(7), METADATA) is True
        server.answers = [part_of(file_of(7))]
        assert await store.create(KEY, file_of(7), METADATA) is False
        assert [request.method for request in server.requests] == ["PUT"] * 2 * CANARIES + ["GET"]

    run(scenario)


@pytest.mark.parametrize(
    "answer",
    [
        refused(409, "ConditionalRequestConflict"),
        refused(403, "AccessDenied"),
        refused(412, "SomethingElse"),
        refused(501, "NotImplemented"),
    ],
)
def test_a5_any_answer_to_the_canary_but_that_it_exists_has_creates_look_first(answer):
    async def scenario(store, server):
        server.answers = [STORED, answer]
        with capture_logs() as logs:
            assert await store.create(KEY, file_of(7), METADATA) is True
        server.answers = [part_of(file_of(7))]
        assert await store.create(KEY, file_of(7), METADATA) is False
        assert [request.method for request in server.requests] == ["PUT", "PUT", "GET"]
        assert [line["event"] for line in logs] == ["conditional_puts_not_honoured"]

    run(scenario)


@pytest.mark.parametrize(
    "answer",
    [
        refused(503, "SlowDown"),
        refused(500, "InternalError"),
        refused(400, "ExpiredToken"),
        answered(412, PAGE, content_type="text/html"),
    ],
)
def test_a5_no_answer_to_the_canary_is_no_evidence_and_the_next_create_sends_another(answer):
    async def scenario(store, server):
        server.answers = [STORED, answer, STORED, EXISTS]
        with capture_logs() as logs:
            for _ in range(3):
                assert await store.create(KEY, file_of(7), METADATA) is True
        assert [request.headers.get("if-none-match") for request in server.requests] == ["*"] * 5
        assert logs == []

    run(scenario)


def test_a5_where_no_canary_was_answered_a_role_that_may_not_look_goes_back_to_the_condition():
    """A store was busy at the wrong moments: that is no reason for what waits on disk to wait until a restart."""

    async def scenario(store, server):
        for _ in range(CANARIES):
            server.answers = [STORED, refused(503, "SlowDown")]
            assert await store.create(KEY, file_of(7), METADATA) is True
        server.answers = [refused(403, "AccessDenied"), STORED, EXISTS]
        assert await store.create(KEY, file_of(7), METADATA) is True
        assert await store.create(KEY, file_of(7), METADATA) is True
        calls = [(request.method, request.headers.get("if-none-match")) for request in server.requests]
        assert calls[2 * CANARIES :] == [("GET", None), ("PUT", "*"), ("PUT", "*"), ("PUT", "*")]

    run(scenario)


def test_a5_a_put_that_takes_half_its_time_is_not_held_up_by_its_canary_for_ever():
    async def scenario(store, server):
        await store.start()
        for _ in range(CANARIES):
            server.answers = [STORED, None]
            with pytest.raises(StorageError):
                await store.create(KEY, file_of(7), METADATA)
        server.answers = [STORED, None]
        assert await store.create(KEY, file_of(7), METADATA) is True

    run(scenario, S3_TIMEOUT="600ms")


def file_of(events: int) -> bytes:
    return codec.encode(LINES * events, events)


def test_a2_a_store_without_conditional_puts_is_asked_for_the_first_bytes():
    async def scenario(store, server):
        server.answers = [refused(404, "NoSuchKey")]
        assert await store.create(KEY, file_of(7), METADATA) is True
        look, put = server.requests
        assert (look.method, look.headers["range"], put.method) == ("GET", "bytes=0-19", "PUT")
        assert "if-none-match" not in put.headers

    run(scenario, S3_CONDITIONAL_PUTS="false")


@pytest.mark.parametrize("there", [7, 8], ids=["as many", "more"])
def test_a2_an_object_with_as_many_events_is_already_there(there):
    async def scenario(store, server):
        server.answers = [part_of(file_of(there)), answered(200, file_of(there) * 5000, etag='"e"')]
        assert await store.create(KEY, file_of(7), METADATA) is False
        assert await store.create(KEY, file_of(7), METADATA) is False  # a store that ignores the range
        assert [request.method for request in server.requests] == ["GET", "GET"]
        server.answers = [part_of(file_of(there))]
        assert await store.create(KEY, file_of(7), METADATA) is False

    run(scenario, S3_CONDITIONAL_PUTS="false")


def test_a2_an_object_with_fewer_events_gives_way_to_the_whole_file():
    async def scenario(store, server):
        server.answers = [part_of(file_of(6))]
        assert await store.create(KEY, file_of(7), METADATA) is True
        assert server.requests[-1].body == file_of(7)

    run(scenario, S3_CONDITIONAL_PUTS="false")


NO_EVIDENCE = {
    "a page": answered(200, PAGE, content_type="text/html", etag='"e"'),
    "a page in part": part_of(PAGE),
    "nothing": answered(200),
    "half a head": part_of(file_of(7)[:19]),
    "another's gzip": part_of(b"\x1f\x8b\x08\x00" + file_of(7)[4:]),
    "404 with a page": answered(404, PAGE),
    "404 without content": answered(404),
    "no bucket": refused(404, "NoSuchBucket"),
    "no such range": refused(416, "InvalidRange"),
    "denied": refused(403, "AccessDenied"),
    "403 with a page": answered(403, PAGE),
    "error": refused(500, "InternalError"),
    "busy": refused(503, "SlowDown"),
    "moved": answered(302, location="http://127.0.0.1:1/login"),
}


@pytest.mark.parametrize("answer", NO_EVIDENCE)
def test_a2_what_is_no_object_of_ours_is_no_evidence(answer):
    async def scenario(store, server):
        server.answers = [NO_EVIDENCE[answer]]
        with pytest.raises(StorageError) as caught:
            await store.create(KEY, file_of(7), METADATA)
        assert caught.value.subject == KEY
        assert [request.method for request in server.requests] == ["GET"]

    run(scenario, S3_CONDITIONAL_PUTS="false")


@pytest.mark.parametrize(("status", "code", "transient"), [(403, "AccessDenied", False), (503, "SlowDown", True)])
def test_a_question_without_an_answer_says_whether_to_try_again(status, code, transient):
    async def scenario(store, server):
        server.answers = [refused(status, code)]
        with pytest.raises(StorageError) as caught:
            await store.create(KEY, BODY, METADATA)
        assert caught.value.transient is transient

    run(scenario, S3_CONDITIONAL_PUTS="false")


@pytest.mark.parametrize(
    ("original", "answer", "is_new"),
    [
        (b"{torn", part_of(b"{torn"), False),
        (b"not gzip at all, and longer than a head", part_of(b"not gzip at all, and longer than a head"), False),
        (b"not gzip at all, and longer than a head", part_of(b"not gzip at all, and cut"), True),
        (b"", refused(416, "InvalidRange"), False),
        (file_of(7)[:-3], part_of(file_of(7)[:-3]), False),
        (b"not gzip at all, and longer than a head", refused(404, "NoSuchKey"), True),
    ],
    ids=["short", "the same", "a shorter copy", "empty", "with our head", "new"],
)
def test_a2_an_original_is_known_by_its_first_bytes_and_its_length(original, answer, is_new):
    async def scenario(store, server):
        server.answers = [answer]
        assert await store.create(KEY, original, METADATA) is is_new
        assert len(server.requests) == 1 + is_new

    run(scenario, S3_CONDITIONAL_PUTS="false")


def test_a2_a_page_in_the_place_of_an_original_is_no_evidence():
    async def scenario(store, server):
        for page in (answered(200, PAGE), answered(200), part_of(file_of(7)), answered(416, PAGE)):
            server.answers = [page]
            with pytest.raises(StorageError):
                await store.create(KEY, b"not gzip at all, and longer than a head", METADATA)
        assert {request.method for request in server.requests} == {"GET"}

    run(scenario, S3_CONDITIONAL_PUTS="false")


# --------------------------------------------------------------------------------------------- what errors mean


@pytest.mark.parametrize(
    ("status", "code", "transient", "hint"),
    [
        (403, "AccessDenied", False, "s3:PutObject"),
        (403, "InvalidAccessKeyId", True, "access key"),
        (403, "SignatureDoesNotMatch", False, "secret"),
        (403, "RequestTimeTooSkewed", False, "clock"),
        (400, "ExpiredToken", True, "expired"),
        (400, "InvalidToken", True, "token"),
        (404, "NoSuchBucket", False, "RAW_BUCKET"),
        (301, "PermanentRedirect", False, "AWS_REGION"),
        (400, "AuthorizationHeaderMalformed", False, "AWS_REGION"),
        (400, "BadDigest", True, "on its way"),
        (400, "RequestTimeout", True, "S3_TIMEOUT"),
        (500, "InternalError", True, "500 InternalError"),
        (503, "SlowDown", True, "UPLOAD_CONCURRENCY"),
        (429, "TooManyRequests", True, "429"),
        (501, "NotImplemented", False, "S3_CONDITIONAL_PUTS"),
        (400, "InvalidStorageClass", False, "S3_STORAGE_CLASS"),
        (400, "SomethingNew", False, "400 SomethingNew"),
        (599, "", True, "599"),
    ],
)
def test_a_refusal_says_what_to_do_and_whether_to_try_again(status, code, transient, hint):
    async def scenario(store, server):
        server.answers = [refused(status, code)]
        with pytest.raises(StorageError) as caught:
            await store.put(KEY, BODY, METADATA)
        assert (caught.value.operation, caught.value.subject) == ("put", KEY)
        assert caught.value.transient is transient
        assert hint in caught.value.hint

    run(scenario)


SENT = {
    "S3_SSE": "AES256",
    "S3_STORAGE_CLASS": "EXPRESS_ONEZONE",
    "S3_TAGS": "team=data",
}


@pytest.mark.parametrize("variable", SENT)
@pytest.mark.parametrize(
    ("status", "code"), [(400, "InvalidRequest"), (400, "InvalidArgument"), (501, "NotImplemented")]
)
def test_a9_the_hint_names_the_setting_that_was_sent(variable, status, code):
    async def scenario(store, server):
        server.answers = [refused(status, code)]
        with pytest.raises(Refusal) as caught:
            await store.put(KEY, BODY, METADATA)
        assert [name for name in SENT if name in caught.value.hint] == [variable]
        assert ("https" in caught.value.hint) is (variable == "S3_SSE")

    run(scenario, **{variable: SENT[variable]})


@pytest.mark.parametrize(("environ", "passes"), [({}, True), ({"S3_SSE": "AES256"}, False)], ids=["plain", "encrypted"])
def test_a9_an_internal_error_to_each_encrypted_put_does_not_pass(environ, passes):
    async def scenario(store, server):
        server.answers = [refused(500, "InternalError")]
        with pytest.raises(StorageError) as caught:
            await store.put(KEY, BODY, METADATA)
        assert (caught.value.transient, "S3_SSE" in caught.value.hint) == (passes, not passes)

    run(scenario, **environ)


@pytest.mark.parametrize(
    ("status", "code", "about_one_object"),
    [
        (403, "AccessDenied", True),
        (400, "KMS.NotFoundException", True),
        (400, "InvalidStorageClass", True),
        (400, "KeyTooLongError", True),
        (501, "NotImplemented", True),
        (403, "", False),
        (403, "InvalidAccessKeyId", False),
        (400, "KMS.DisabledException", True),
        (400, "KMS.ThrottlingException", False),
        (429, "KMS.SomethingNew", False),
        (500, "KMS.KMSInternalException", False),
        (500, "NotImplemented", False),
        (503, "AccessDenied", False),
        (503, "KMS.DependencyTimeoutException", False),
        (403, "SignatureDoesNotMatch", False),
        (404, "NoSuchBucket", False),
        (400, "BadDigest", False),
        (409, "ConditionalRequestConflict", False),
        (500, "InternalError", False),
        (503, "SlowDown", False),
    ],
)
def test_only_a_word_about_one_object_is_a_refusal(status, code, about_one_object):
    async def scenario(store, server):
        server.answers = [refused(status, code)]
        with pytest.raises(StorageError) as caught:
            await store.put(KEY, BODY, METADATA)
        assert isinstance(caught.value, Refusal) is about_one_object

    run(scenario)


NO_STORES = {
    "empty": answered(200),
    "a page": answered(200, PAGE, content_type="text/html"),
    "a page with a weak ETag": answered(200, PAGE, etag='W/"1f-abc"'),
    "a page with a strong ETag": answered(200, PAGE, etag='"1f-abc"'),
    "a weak ETag": answered(200, etag='W/"1f-abc"'),
    "an ETag without quotes": answered(200, etag="1f-abc"),
    "an empty ETag": answered(200, etag='""'),
    "204": answered(204, etag='"1f-abc"'),
    "201": answered(201, etag='"1f-abc"'),
    "206": answered(206, etag='"1f-abc"'),
}


@pytest.mark.parametrize("answer", NO_STORES)
def test_a10_a_200_that_is_no_stores_is_not_taken_for_stored(answer):
    async def scenario(store, server):
        for call in (store.put, store.create):
            server.answers = [NO_STORES[answer]]
            with pytest.raises(StorageError) as caught:
                await call(KEY, BODY, METADATA)
            assert "ETag" in caught.value.hint
            assert caught.value.transient

    run(scenario)


REDIRECTS = {
    "301 without a region": refused(301, "PermanentRedirect"),
    "301 with one": answered(301, b"<Error><Code>PermanentRedirect</Code></Error>", x_amz_bucket_region="eu-central-1"),
    "307 without content": answered(307),
    "307 elsewhere": answered(307, location="http://127.0.0.1:1/"),
}


@pytest.mark.parametrize("conditional", ["true", "false"])
@pytest.mark.parametrize("answer", REDIRECTS)
def test_a3_a_redirect_is_a_failed_try_of_one_request(answer, conditional):
    async def scenario(store, server):
        for number, call in enumerate((store.put, store.create), 1):
            server.answers = [REDIRECTS[answer]] * 5
            with pytest.raises(StorageError) as caught:
                await call(KEY, BODY, METADATA)
            assert caught.value.subject == KEY
            assert len(server.requests) == number

    run(scenario, S3_CONDITIONAL_PUTS=conditional)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200", b"nonsense\r\n\r\n"], ids=["none", "half", "nonsense"])
def test_a_connection_that_breaks_is_worth_another_try(answer):
    async def scenario(store, server):
        server.answers = [answer, answer]  # aiohttp itself sends once more when a connection closes without a word
        with pytest.raises(StorageError) as caught:
            await store.put(KEY, BODY, METADATA)
        assert caught.value.transient
        assert len(server.requests) <= 2

    run(scenario, S3_TIMEOUT="1s")


def test_nobody_at_home_is_worth_another_try():
    async def main():
        async with s3_store("http://127.0.0.1:1") as store:
            with pytest.raises(StorageError) as caught:
                await store.put(KEY, BODY, METADATA)
            assert caught.value.transient
            assert "endpoint" in caught.value.hint

    asyncio.run(main())


@pytest.mark.parametrize("how", ["silent", "trickling"])
def test_a_put_ends_at_the_timeout(how):
    async def scenario(store, server):
        await store.start()
        if how == "silent":
            server.answers = [None]
        else:
            # Each byte comes long before a read would time out; the whole answer would take a minute.
            server.trickle = 0.1
            server.answers = [refused(500, "x" * 500)]
        before = time.monotonic()
        with pytest.raises(StorageError) as caught:
            await store.put(KEY, BODY, METADATA)
        assert 0.4 < time.monotonic() - before < 5
        assert caught.value.transient
        assert "S3_TIMEOUT" in caught.value.hint

    run(scenario, S3_TIMEOUT="500ms")


def test_a_cancelled_put_is_cancelled_and_not_failed():
    async def scenario(store, server):
        await store.start()
        server.answers = [None]
        task = asyncio.create_task(store.put(KEY, BODY, METADATA))
        await server.requested.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await store.put(KEY, BODY, METADATA)

    run(scenario)


def test_an_error_that_nobody_foresaw_is_a_failed_try_and_says_what_and_where_it_was():
    async def scenario(store, _server):
        with pytest.raises(StorageError) as caught:
            await store.put(KEY, "no bytes", METADATA)
        cause = caught.value.cause
        assert caught.value.transient
        assert cause["error"].startswith("TypeError: ")
        assert cause["at"].startswith("s3.py:")
        assert cause["error"] in str(caught.value)

    run(scenario)


def test_a_refusal_keeps_what_the_store_said():
    async def scenario(store, server):
        server.answers = [refused(403, "AccessDenied")]
        with pytest.raises(StorageError) as caught:
            await store.put(KEY, BODY, METADATA)
        cause = caught.value.cause
        assert (cause["code"], cause["status"], cause["request_id"]) == ("AccessDenied", 403, "the-request")
        assert cause["address"] == server.endpoint
        assert "AccessDenied" in cause["error"]
        assert cause["error"].endswith("told so")

    run(scenario)


def test_a_cause_is_short_however_long_the_error_is():
    async def scenario(store, server):
        server.answers = [refused(500, "x" * 5000), answered(200, etag="y" * 5000)]
        for _ in range(2):
            with pytest.raises(StorageError) as caught:
                await store.put(KEY, BODY, METADATA)
            assert 100 < len(caught.value.cause["error"]) <= LONGEST_TEXT

    run(scenario)


# --------------------------------------------------------------------------------------------- the client


@pytest.mark.parametrize("status", [500, 503])
def test_the_sdk_does_not_try_again_by_itself(status):
    async def scenario(store, server):
        server.answers = [refused(status, "SlowDown")] * 5
        with pytest.raises(StorageError):
            await store.put(KEY, BODY, METADATA)
        assert len(server.requests) == 1

    run(scenario)


def test_one_client_keeps_its_connections():
    async def scenario(store, server):
        for _ in range(5):
            await store.put(KEY, BODY, METADATA)
        assert server.connections == 1
        await asyncio.gather(*(store.put(KEY, BODY, METADATA) for _ in range(20)))
        assert server.connections <= 3 + 1

    run(scenario, UPLOAD_CONCURRENCY="3")


@pytest.mark.usefixtures("first_start")
def test_the_loop_goes_on_while_the_sdk_is_loaded():
    async def scenario(store, _server):
        task = asyncio.create_task(store.start())
        turns = 0
        while not task.done():
            await asyncio.sleep(0.001)
            turns += 1
        await task
        assert turns > 20  # loaded on the loop, it would be two or three

    run(scenario)


@pytest.mark.usefixtures("first_start")
def test_the_collector_runs_again_after_the_start():
    async def scenario(store, _server):
        await store.start()
        assert gc.isenabled()

    run(scenario)


@pytest.mark.usefixtures("first_start")
def test_a_collector_that_was_off_stays_off():
    async def scenario(store, _server):
        gc.disable()
        try:
            await store.start()
            assert not gc.isenabled()
        finally:
            gc.enable()

    run(scenario)


def test_calls_wait_for_one_start_and_survive_that_one_of_them_is_cancelled():
    async def scenario(store, server):
        puts = [asyncio.create_task(store.put(f"{KEY}{n}", BODY, METADATA)) for n in range(4)]
        await asyncio.sleep(0.01)
        puts[0].cancel()
        outcomes = await asyncio.gather(*puts, return_exceptions=True)
        assert isinstance(outcomes[0], asyncio.CancelledError)
        assert outcomes[1:] == [None] * 3
        assert len(server.requests) == 3

    run(scenario)


def only_credentials_of(monkeypatch, config="/dev/null"):
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")


def helper_of(folder, script):
    """Make a helper that runs a script, and return the file of settings that names it."""
    helper, config = folder / "helper", folder / "config"
    helper.write_text(f"#!/bin/sh\n{script}")
    helper.chmod(0o755)
    config.write_text(f"[default]\ncredential_process = {helper}\n")
    return config


CONFIGS = {
    "a helper that prints no JSON": "[default]\ncredential_process = /bin/echo no JSON\n",
    "a helper that prints no keys": "[default]\ncredential_process = /bin/echo '{\"Version\": 1}'\n",
    "a helper that fails": "[default]\ncredential_process = /bin/false\n",
    "a helper that is not there": "[default]\ncredential_process = /no/such/helper\n",
    "a date that is none": "[default]\ncredential_process = /bin/echo "
    '\'{"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "b", "Expiration": "tomorrow"}\'\n',
    "a date in the past": "[default]\ncredential_process = /bin/echo "
    '\'{"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "b", "Expiration": "2001-01-01T00:00:00Z"}\'\n',
    "a word for a section": "[default]\ns3 = foo\naws_access_key_id = a\naws_secret_access_key = b\n",
    "no file of its kind": "credential_process\n",
}


@pytest.mark.parametrize("config", CONFIGS)
def test_b_whatever_ails_the_credentials_is_a_failed_try_until_they_are_well(monkeypatch, tmp_path, config):
    file = tmp_path / "config"
    file.write_text(CONFIGS[config])
    only_credentials_of(monkeypatch, file)

    async def scenario(store, server):
        for call in (store.put, store.create):
            with pytest.raises(StorageError) as caught:
                await call(KEY, BODY, METADATA)
            assert caught.value.cause["error"]
        assert server.requests == []
        file.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
        await store.put(KEY, BODY, METADATA)
        assert len(server.requests) == 1

    run(scenario)


def test_b2_a_start_that_fails_when_nobody_waits_for_it_any_more_is_no_error_of_the_loop(monkeypatch, tmp_path):
    waits = f"touch {tmp_path}/asked\nuntil [ -e {tmp_path}/go ]; do sleep 0.01; done\nexit 1\n"
    only_credentials_of(monkeypatch, helper_of(tmp_path, waits))
    unhandled = []

    async def scenario(store, _server):
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: unhandled.append(context))
        put = asyncio.create_task(store.put(KEY, BODY, METADATA))
        while not (tmp_path / "asked").exists():  # noqa: ASYNC110 - a file is what the helper has to tell with
            await asyncio.sleep(0.01)
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        (starting,) = [task for task in asyncio.all_tasks() if "Credentials._look" in repr(task)]
        (tmp_path / "go").touch()
        await asyncio.wait((starting,))
        del put, starting
        with pytest.raises(StorageError):
            await store.put(KEY, BODY, METADATA)
        gc.collect()

    run(scenario)
    assert unhandled == []


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # gone before it was opened, or before it was read
        return False


def test_b5_a_helper_that_hangs_is_ended_and_the_next_look_starts_another(monkeypatch, tmp_path):
    monkeypatch.setattr("ingest.store.credentials.LONGEST_WAIT", 1.0)
    only_credentials_of(monkeypatch, helper_of(tmp_path, f"echo $$ >> {tmp_path}/pids\nexec sleep 600\n"))

    async def scenario(store, _server):
        for times in (1, 2):
            with pytest.raises(StorageError) as caught:
                await store.put(KEY, BODY, METADATA)
            assert "source of credentials" in caught.value.hint
            pids = (tmp_path / "pids").read_text().split()
            assert len(pids) == times
            end = time.monotonic() + 10
            while any(is_running(pid) for pid in pids):
                assert time.monotonic() < end
                await asyncio.sleep(0.01)

    run(scenario)


@pytest.mark.usefixtures("first_start")
def test_starts_that_fail_hold_no_memory_for_good(monkeypatch):
    only_credentials_of(monkeypatch)

    async def scenario(store, _server):
        with pytest.raises(StorageError):
            await store.start()
        frozen = gc.get_freeze_count()
        for _ in range(3):
            with pytest.raises(StorageError):
                await store.start()
        assert gc.get_freeze_count() <= frozen

    run(scenario)


def test_credentials_that_come_later_are_found_later(monkeypatch):
    only_credentials_of(monkeypatch)

    async def scenario(store, server):
        for call in (store.start(), store.put(KEY, BODY, METADATA)):
            with pytest.raises(StorageError) as caught:
                await call
            assert caught.value.transient
            assert "AWS_ACCESS_KEY_ID" in caught.value.hint
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        await store.put(KEY, BODY, METADATA)
        assert len(server.requests) == 1

    run(scenario)


def test_a_store_that_never_started_can_be_closed_and_so_can_one_that_is_starting():
    async def scenario(store, server):
        await store.close()
        starting = asyncio.create_task(store.start())
        await asyncio.sleep(0.01)
        await store.close()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert server.requests == []

    run(scenario)


def test_without_a_bucket_the_sdk_is_never_imported():
    code = """
import sys
from concurrent.futures import ThreadPoolExecutor
from ingest.config import load
from ingest.disk.filesystem import Filesystem
from ingest.store import Head, create_store
import ingest.store.s3
head = Head(20, len)
create_store(load({}), head, fs=Filesystem(), executor=ThreadPoolExecutor(1))
create_store(load({"RAW_BUCKET": "bucket", "AWS_REGION": "x"}), head, fs=Filesystem(), executor=ThreadPoolExecutor(1))
print(sorted({name.partition(".")[0] for name in sys.modules} & {"aiobotocore", "botocore", "aiohttp", "boto3"}))
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
