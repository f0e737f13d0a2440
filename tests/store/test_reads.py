"""What is read from S3 is believed on evidence only: a listing and its pages, an object and its first bytes."""

from __future__ import annotations

import asyncio

import pytest

from ingest.disk.errors import StorageError
from ingest.store import evidence
from ingest.store.s3 import ONE_WRITE
from ingest.store.transport import LONGEST_PAGE
from tests.store.scripted_server import answered, page, part_of, refused, scripted_server
from tests.store.test_s3 import KEY, METADATA, PAGE, credentials, file_of, s3_store  # noqa: F401 - a fixture

XHTML = b"<?xml version='1.0'?><!DOCTYPE html><html xmlns='http://www.w3.org/1999/xhtml'><title>Sign in</title></html>"


def run(scenario, **environ):
    async def main():
        async with scripted_server() as server, s3_store(server.endpoint, **environ) as store:
            await scenario(store, server)

    asyncio.run(main())


def changed(answer: bytes, old: bytes, new: bytes) -> bytes:
    assert old in answer
    return answered(200, answer.partition(b"\r\n\r\n")[2].replace(old, new))


FULL = page("raw/a")
NO_PAGES = {
    "nothing": answered(200),
    "204": answered(204),
    "a page": answered(200, PAGE, content_type="text/html"),
    "an XHTML page": answered(200, XHTML, content_type="application/xhtml+xml"),
    "an error of the store": answered(200, b"<Error><Code>InternalError</Code></Error>"),
    "a document of another kind": changed(FULL, b"ListBucketResult", b"ListVersionsResult"),
    "no bucket's": changed(FULL, b"<Name>bucket</Name>", b""),
    "silent on whether it is the last": changed(FULL, b"<IsTruncated>false</IsTruncated>", b""),
    "doubtful whether it is the last": page("raw/a", truncated="perhaps"),
    "of another prefix": page(prefix="lake/"),
    "of no prefix": changed(FULL, b"<Prefix>raw/</Prefix>", b""),
    "with a key of another prefix": page("raw/a", "lake/b"),
    "with an object without a size": changed(FULL, b"<Size>7</Size>", b""),
    "half a page": changed(FULL, b"</ListBucketResult>", b""),
}


@pytest.mark.parametrize("answer", NO_PAGES)
def test_what_is_no_page_of_a_listing_is_no_listing(answer):
    async def scenario(store, server):
        for before in ([], [page("raw/0", token="more")]):
            server.answers = [*before, NO_PAGES[answer]]
            with pytest.raises(StorageError) as caught:
                await store.listing("raw/")
            assert (caught.value.operation, caught.value.subject, caught.value.transient) == ("list", "raw/", True)
            assert caught.value.cause["error"]

    run(scenario)


def test_a_listing_in_several_pages_is_whole_in_whatever_words_it_comes():
    async def scenario(store, server):
        server.answers = [
            page("raw/b", "raw/a", token="2", prefix="raw%2F"),  # it encodes, and says nothing of it
            page(token="3"),
            changed(page("raw/c+%C3%A9", truncated="FALSE"), b"<Name>", b"<EncodingType>url</EncodingType><Name>"),
        ]
        assert [listed.key for listed in await store.listing("raw/")] == ["raw/a", "raw/b", "raw/c \xe9"]
        tokens = [request.path.partition("continuation-token=")[2][:1] for request in server.requests]
        assert tokens == ["", "2", "3"]
        server.answers = [page()]
        assert await store.listing("raw/") == []

    run(scenario)


STANDING = {
    "the same token": ([page("raw/a", token="1"), page("raw/b", token="1")], 2),
    "tokens in a circle": ([page("raw/a", token="1"), page(token="2"), page("raw/b", token="1")], 3),
    "the same page": ([page("raw/a", token="1"), page("raw/a", token="2")], 2),
    "a key twice in a page": ([page("raw/a", "raw/a")], 1),
    "no token": ([page("raw/a", truncated="true")], 1),
    "a marker of V1": ([page("raw/a", truncated="true", more="<NextMarker>raw/a</NextMarker>")], 1),
    "new tokens without keys": ([page(token=f"{number}") for number in range(999)], evidence.EMPTY_PAGES + 1),
}


@pytest.mark.parametrize("case", STANDING)
def test_a_listing_that_does_not_go_on_ends(case):
    answers, requests = STANDING[case]

    async def scenario(store, server):
        server.answers = list(answers)
        with pytest.raises(StorageError) as caught:
            await store.listing("raw/")
        assert "does not go on" in caught.value.hint
        assert caught.value.transient
        assert ("not V2" in caught.value.cause["error"]) is (case == "a marker of V1")
        assert len(server.requests) == requests

    run(scenario)


def test_a_listing_that_the_store_refuses_says_why():
    async def scenario(store, server):
        server.answers = [refused(403, "AccessDenied")]
        with pytest.raises(StorageError) as caught:
            await store.listing("raw/")
        assert caught.value.cause["code"] == "AccessDenied"

    run(scenario)


BODY = b"the body of an object"


def whole(body: bytes = BODY, **fields: str) -> bytes:
    return answered(200, body, **{"etag": '"0f343b0931126a20f133d67c2b018a3b"', **fields})


def cut(answer: bytes, size: int) -> bytes:
    """Return an answer whose connection ends early."""
    return answer[:-size]


NO_OBJECTS = {
    "nothing": answered(200),
    "204": answered(204, etag='"e"'),
    "a page": answered(200, PAGE, content_type="text/html"),
    "a page with a weak ETag": answered(200, PAGE, etag='W/"1f-abc"'),
    "a page with a strong ETag, as nginx gives": whole(PAGE, content_type="Text/HTML; charset=utf-8"),
    "an XHTML page": whole(XHTML, content_type="application/xhtml+xml"),
    "an error of the store": answered(200, b"<Error><Code>InternalError</Code></Error>", content_type="text/xml"),
    "an ETag without quotes": whole(etag="0f343b0931126a20f133d67c2b018a3b"),
    "no length": whole().replace(b"content-length: 21\r\n", b"connection: close\r\n"),
    "a part that nobody asked for": answered(206, BODY, etag='"e"', content_range="bytes 20-40/99"),
    "a part without its place": answered(206, BODY, etag='"e"'),
    "a part of another place": answered(206, BODY, etag='"e"', content_range="bytes 1-21/99"),
    "a part larger than the object": answered(206, BODY, etag='"e"', content_range="bytes 0-20/5"),
    "a part of another length": answered(206, BODY[:9], etag='"e"', content_range="bytes 0-19/21"),
    "cut short": cut(whole(), 5),
    "a part that is cut short": cut(part_of(BODY), 5),
    "404 with a page": answered(404, PAGE),
}


@pytest.mark.parametrize("answer", NO_OBJECTS)
def test_what_is_no_object_of_a_store_is_away_and_neither_short_nor_missing(answer):
    async def scenario(store, server):
        calls = [store.get(KEY), store.find(KEY)]
        if answer != "cut short":  # its first bytes are whole
            calls += [store.first_bytes(KEY, 20), store.create(KEY, file_of(7), METADATA)]
        for call in calls:
            server.answers = [NO_OBJECTS[answer], b""]
            with pytest.raises(StorageError) as caught:
                await call
            assert caught.value.transient
            assert caught.value.subject == KEY
        assert {request.method for request in server.requests} == {"GET"}

    async def main():
        async with scripted_server() as server, s3_store(server.endpoint, S3_CONDITIONAL_PUTS="false") as store:
            server.closes = "cut short" in answer or answer == "no length"
            await scenario(store, server)

    asyncio.run(main())


def test_an_object_is_read_whole_and_its_first_bytes_from_stores_that_ignore_the_range_too():
    async def scenario(store, server):
        server.answers = [whole(), whole(b"")]
        assert [await store.get(KEY) for _ in range(2)] == [BODY, b""]
        server.answers = [whole()]
        found = await store.find(KEY)
        assert (found.body, found.version) == (BODY, '"0f343b0931126a20f133d67c2b018a3b"')
        server.answers = [part_of(BODY), whole(), whole(b"short"), part_of(b"short"), refused(416, "InvalidRange")]
        server.answers += [answered(206, b"", etag='"e"', content_range="bytes 0-0/0")]
        first = [await store.first_bytes(KEY, 20) for _ in range(6)]
        assert first == [BODY[:20], BODY[:20], b"short", b"short", b"", b""]

    run(scenario)


@pytest.mark.parametrize("size", [evidence.MOST_BYTES + 1, 10**18])
def test_an_object_larger_than_any_of_ours_is_not_read(size):
    async def scenario(store, server):
        server.answers = [whole(content_length=str(size)), whole(content_length=str(size))]
        with pytest.raises(StorageError) as caught:
            await store.get(KEY)
        assert not caught.value.transient
        assert await store.first_bytes(KEY, 20) == BODY[:20]

    run(scenario)


@pytest.mark.parametrize("answer", [answered(200), answered(200, PAGE), answered(302, location="/login")])
def test_a_page_is_no_removal(answer):
    async def scenario(store, server):
        server.answers = [answered(204), refused(404, "NoSuchKey"), answer]
        for _ in range(2):
            await store.delete(KEY)
        with pytest.raises(StorageError):
            await store.delete(KEY)

    run(scenario)


@pytest.mark.parametrize("status", [200, 404, 500])
def test_an_answer_that_does_not_end_is_not_read_into_memory(status):
    endless = answered(status, bytes(LONGEST_PAGE + ONE_WRITE), content_length=str(10**12))

    async def scenario(store, server):
        calls = [store.listing("raw/"), store.put(KEY, BODY, METADATA), store.delete(KEY)]
        for call in [*calls, store.get(KEY)] if status != 200 else calls:
            server.answers = [endless]
            with pytest.raises(StorageError) as caught:
                await call
            assert caught.value.transient
            assert "longer than any" in caught.value.hint
            assert caught.value.cause["status"] == status

    run(scenario, S3_TIMEOUT="60s")
