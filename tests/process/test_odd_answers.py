"""Something other than a store answers, and means nothing by it: what was acknowledged stays until a store has it."""

from __future__ import annotations

import time

import pytest

from tests.faults.proxy import HEALTHY, Fault
from tests.process.client import Sent, send
from tests.process.ledger import audit, read_bucket
from tests.process.s3 import s3_client, s3_environment
from tests.store.scripted_server import answered, refused

PAGE = b"<html><title>Sign in to the network</title></html>"
HTML = "text/html"
PAGES = {
    "412": answered(412, PAGE, content_type=HTML),
    "409": answered(409, PAGE, content_type=HTML),
    "409_code": refused(409, "ConditionalRequestConflict"),
    "200": answered(200, PAGE, content_type=HTML),
    "200_weak": answered(200, PAGE, content_type=HTML, etag='W/"68f0-2c"'),
    "200_strong": answered(200, PAGE, content_type=HTML, etag='"68f0-2c"'),
    "200_empty": answered(200),
    "201": answered(201, etag='"68f0-2c"'),
    "204": answered(204, etag='"68f0-2c"'),
    "206": answered(206, PAGE, etag='"68f0-2c"', content_range=f"bytes 0-{len(PAGE) - 1}/{len(PAGE)}"),
    "301": answered(301, b"<Error><Code>PermanentRedirect</Code></Error>", content_type="application/xml"),
    "302": answered(302, location="http://127.0.0.1:1/login"),
    "307": answered(307),
    "400_code": refused(400, "InvalidRequest"),
    "403": answered(403, PAGE, content_type=HTML),
    "403_code": refused(403, "AccessDenied"),
    "404": answered(404, PAGE, content_type=HTML),
    "404_code": refused(404, "NoSuchBucket"),
    "416": answered(416, PAGE, content_type=HTML),
    "501": answered(501, PAGE, content_type=HTML),
    "501_code": refused(501, "NotImplemented"),
    "503_code": refused(503, "SlowDown"),
    "412_code_of_another": refused(412, "PreconditionFailedByPolicy"),
    "412_json": answered(412, b'{"Code": "PreconditionFailed"}', content_type="application/json"),
    "412_chunked": b"HTTP/1.1 412 Told\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n<html\r\n0\r\n\r\n",
    "412_empty": answered(412),
    "412_in_a_page": answered(412, b"<html><Code>PreconditionFailed</Code></html>", content_type=HTML),
    "412_in_200": refused(200, "PreconditionFailed"),
    "200_two_etags": b'HTTP/1.1 200 OK\r\nETag: "a"\r\nETag: W/"b"\r\nContent-Length: 0\r\n\r\n',
    "200_etag_empty": answered(200, etag='""'),
    "200_etag_unquoted": answered(200, etag="68f0-2c"),
    "200_error": refused(200, "InternalError"),
    "206_empty": answered(206, etag='"68f0-2c"'),
    "304": answered(304, etag='"68f0-2c"'),
    "302_itself": answered(302, location="/"),
    "308_itself": answered(308, location="/"),
    "301_region": answered(301, x_amz_bucket_region="eu-west-1"),
    "400_region": answered(400, x_amz_bucket_region="eu-west-1"),
    "405_code": refused(405, "MethodNotAllowed"),
    "403_skew": refused(403, "RequestTimeTooSkewed"),
    "429": answered(429, PAGE, content_type=HTML, retry_after="86400"),
    "503_retry": answered(503, PAGE, content_type=HTML, retry_after="Fri, 31 Dec 9999 23:59:59 GMT"),
    "404_key": refused(404, "NoSuchKey"),
    "416_code": refused(416, "InvalidRange"),
    "999": answered(999, PAGE),
    "100_then_close": b"HTTP/1.1 100 Continue\r\n\r\n",
    "101": answered(101, upgrade="h2c", connection="Upgrade"),
    "xml_bomb": answered(400, b'<!DOCTYPE x [<!ENTITY a "b">]><Error><Code>&a;</Code>', content_type="application/xml"),
    "xml_deep": answered(400, b"<a>" * 20_000, content_type="application/xml"),
    "xml_utf16": answered(403, "<Error><Code>AccessDenied</Code></Error>".encode("utf-16"), content_type="text/xml"),
    "gzip_garbage": answered(200, PAGE, content_encoding="gzip", etag='"e"'),
    "head_endless": b"HTTP/1.1 200 OK\r\n" + b"X-A: " + b"a" * 200_000 + b"\r\n\r\n",
    "no_status": b"HTTP/1.1\r\n\r\n",
    "no_http": b"SSH-2.0-OpenSSH_9.2\r\n",
    "truncated": answered(200, PAGE[:9], content_length="500", etag='"68f0-2c"'),
    "too_long": answered(200, PAGE, content_length="0", etag='"68f0-2c"'),
    "chunked_garbage": b'HTTP/1.1 200 OK\r\nETag: "e"\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nno size\r\n',
    "bad_length": answered(200, content_length="-7", etag='"68f0-2c"'),
    "200_of_another": answered(200, etag='"e"', x_amz_checksum_crc32="AAAAAA=="),
    "503_cookie": answered(503, PAGE, content_type=HTML, set_cookie="session=" + "x" * 4000 + "; Max-Age=86400"),
    "408_twice": answered(408, PAGE, content_type=HTML) * 2,
    "412_then_200": answered(412, PAGE, content_type=HTML) + answered(200, etag='"e"'),
    "400_elements": answered(400, b"<Error>" + b"<a/>" * 300_000 + b"</Error>", content_type="application/xml"),
    "400_long_code": refused(400, "A" * 60_000),
    "503_denied": refused(503, "AccessDenied"),
    "400_kms": refused(400, "KMS.ThrottlingException"),
    "403_signature": refused(403, "SignatureDoesNotMatch"),
    "200_latin_1": b'HTTP/1.1 200 OK\r\nETag: W/"e"\r\nVia: caf\xe9\r\nContent-Length: 0\r\n\r\n',
    "103_then_503": b'HTTP/1.1 103 Early Hints\r\nETag: "e"\r\n\r\n' * 500 + answered(503),
}
FAULTS = {
    **{name: Fault(page=page) for name, page in PAGES.items()},
    "reset": Fault(page=answered(200, etag='"e"'), reset_answer_after=12),
    "silence": Fault(blackhole=True),
}
SHORT = {("true", name) for name in ("412", "200_strong", "301", "chunked_garbage")} | {("false", "200")}
CASES = [
    pytest.param(conditional, name, marks=() if (conditional, name) in SHORT else pytest.mark.proof)
    for conditional in ("true", "false")
    for name in FAULTS
]


@pytest.mark.parametrize(("conditional", "page"), CASES)
def test_a_page_in_the_place_of_the_store_takes_no_event(
    collectors, s3_server, proxy, bucket, figure, conditional, page
):
    """A1, A2, A3 and A10: dead letters, which are created, and batches from memory, which are put."""
    sent = Sent()
    more = {"S3_CONDITIONAL_PUTS": conditional, "S3_TIMEOUT": "2s", "BATCH_SIZE": "100", "FLUSH_INTERVAL": "200ms"}
    collector = collectors(s3_environment(proxy.url, bucket, **more)).start()
    proxy.refuse()
    send(sent, collector.port, 500)
    collector.wait_until(lambda m: m.value("estat_events_pending", place="dlq") == 500, what="not all in the DLQ")
    dead_letters = {path.rsplit("/", 1)[-1] for path in collector.left_on_disk()}
    proxy.fault = FAULTS[page]
    listening = time.monotonic()
    proxy.listen()
    send(sent, collector.port, 500)

    def answered_with_pages(_) -> bool:
        met = [e for e in list(proxy.exchanges) if e.outcome != "open" and e.began > listening]
        names = [e.target.partition("?")[0].rsplit("/", 1)[-1] for e in met]
        return len(names) >= 2 and not dead_letters.isdisjoint(names)

    collector.wait_until(answered_with_pages, 60, "nobody asked what answers with pages")
    seen = collector.wait_until(
        lambda m: m.value("estat_events_pending", place="dlq") == 1000, what="not all in the DLQ"
    )
    assert seen.value("estat_events_stored_total") == 0
    assert all(line["error"] for line in collector.said("put_failed"))
    proxy.fault = HEALTHY
    collector.wait_delivered(60)
    assert sent.refused == 0, sent.statuses
    found = audit(sent, read_bucket(s3_client(s3_server), bucket)).assert_kept()
    assert found.stored == 1000
    collector.stop(10)
    figure(f"{page}, conditional puts {conditional}", found)
