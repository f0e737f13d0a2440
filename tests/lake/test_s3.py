"""`compact` over S3: the same hour, published by `If-Match`."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from ingest.config.settings import load
from ingest.disk import Filesystem
from ingest.format import codec
from ingest.lake import decode, pointer_key
from ingest.store import Head, ObjectMetadata, create_store
from tests.lake.hour import BEGIN, HOUR, key, numbered
from tests.stand_ins.s3_server import REGION

METADATA = ObjectMetadata(10, BEGIN, BEGIN, "host-0123456789abcdef")


@pytest.fixture(params=["true", "false"])
def settings(request, store_dir, bucket, s3_server, monkeypatch):  # noqa: ARG001 - it clears the environment
    environ = {
        "RAW_BUCKET": bucket,
        "AWS_REGION": REGION,
        "S3_ENDPOINT_URL": s3_server,
        "S3_CONDITIONAL_PUTS": request.param,
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return load(environ)


def test_each_generation_is_what_the_bucket_holds(settings, compact, tmp_path):
    import duckdb

    async def with_store(work):
        with ThreadPoolExecutor(2) as executor:
            head = Head(codec.HEAD_BYTES, codec.event_count)
            store = create_store(settings, head, fs=Filesystem(), executor=executor)
            try:
                return await work(store)
            finally:
                await store.close()

    async def generation(store):
        pointer = decode((await store.find(pointer_key("raw_parquet", HOUR))).body, HOUR, "raw_parquet/_parts")
        (part,) = pointer.parts
        (tmp_path / "part.parquet").write_bytes(await store.get(part.key))
        return pointer

    for number, rows in ((1, 10), (2, 20)):
        body = codec.encode(b"".join(numbered(rows - 10, 10)), 10)
        asyncio.run(with_store(lambda store, n=number, body=body: store.put(key(n), body, METADATA)))
        assert compact()[0] == 0
        assert compact()[1]["hours"][0]["result"] == "nothing to do"
        pointer = asyncio.run(with_store(generation))
        assert (pointer.generation, pointer.rows) == (number, rows)
        with duckdb.connect() as connection:
            found = connection.sql(f"SELECT body FROM '{tmp_path}/part.parquet' ORDER BY ts").fetchall()
        assert found == [(f'{{"n": {number}}}',) for number in range(rows)]
