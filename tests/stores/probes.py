"""The questions that are asked of each store, one function each, over the SDK as the collector sets it up.

Owns what an answer is called in the table. Promises that an answer is seen, not believed: after a put the object is
read back. Never raises on what a store answers: an error of the store is an answer.
"""

from __future__ import annotations

import base64
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from ingest.format import codec
from tests.stores.servers import BUCKET, REGION

if TYPE_CHECKING:
    from collections.abc import Callable

HOUR = "asked/dt=2026-11-23/hr=13"
HEAD = codec.HEAD_BYTES
METADATA = {"events": "3", "first-ts": "1795000000", "last-ts": "1795000009", "instance": "here-0123456789abcdef"}
RIVALS = 8
ROUNDS = 12
LISTED = 25

BODY: Final = codec.encode(b'{"ts":1}\n' * 3, 3)
OTHER: Final = codec.encode(b'{"ts":2}\n' * 5, 5)


class Store:
    """A bucket, through a client that sends what the collector's sends."""

    def __init__(self, url: str, access_key: str, secret_key: str, bucket: str = BUCKET) -> None:
        self.bucket = bucket
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=url,
            region_name=REGION,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=Config(
                s3={"addressing_style": "path"},
                connect_timeout=10,
                read_timeout=20,
                retries={"total_max_attempts": 1},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                max_pool_connections=RIVALS,
            ),
        )

    def make_bucket(self) -> str:
        """Make the bucket; return "" once it is there, or the last refusal."""
        return self.tried(lambda: self.client.create_bucket(Bucket=self.bucket))[0]

    def put(self, key: str, body: bytes = BODY, **more: Any) -> str:
        """Put; return "" if it is stored, or the code and status of the refusal."""
        arguments = {"Bucket": self.bucket, "Key": key, "Body": body, "ChecksumCRC32": crc(body), **more}
        return self.tried(lambda: self.client.put_object(**arguments))[0]

    def get(self, key: str, **more: Any) -> bytes | None:
        _, answer = self.tried(lambda: self.client.get_object(Bucket=self.bucket, Key=key, **more))
        return None if answer is None else bytes(answer["Body"].read())

    def head(self, key: str) -> dict[str, Any]:
        _, answer = self.tried(lambda: self.client.head_object(Bucket=self.bucket, Key=key))
        return answer or {}

    def tried(self, call: Callable[[], Any]) -> tuple[str, Any]:
        try:
            return "", call()
        except ClientError as error:
            status, code = error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]
            # The SDK puts the status in place of a code that it misses.
            return f"{status} without a code" if code in {"", str(status)} else f"{status} {code}", None
        except (BotoCoreError, ValueError) as error:  # an answer that the SDK cannot read
            return type(error).__name__, None


def crc(body: bytes) -> str:
    return base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()


def create_only(store: Store) -> str:
    """`If-None-Match: *` on a key that is taken."""
    key = f"{HOUR}/create"
    if first := store.put(key, IfNoneMatch="*"):
        return f"refused ({first})"
    again = store.put(key, OTHER, IfNoneMatch="*")
    kept = store.get(key) == BODY
    if again == "412 PreconditionFailed" and kept:
        return "honoured"
    if again == "":
        return "**ignored**"
    return f"refused ({again})" if kept else f"**replaces, answers {again}**"


def rivals(store: Store) -> str:
    """Several creates of one new key in the same moment, again and again: how many hear that theirs was stored."""
    winners = []
    for number in range(ROUNDS):
        together = threading.Barrier(RIVALS)
        key = f"{HOUR}/rivals-{number}"

        def create(rival: int, key: str = key, together: threading.Barrier = together) -> bool:
            body = codec.encode(b'{"ts":1}\n' * (rival + 1), rival + 1)
            together.wait(20)
            return store.put(key, body, IfNoneMatch="*") == ""

        with ThreadPoolExecutor(RIVALS) as pool:
            winners.append(sum(pool.map(create, range(RIVALS))))
    if set(winners) == {1}:
        return "one wins"
    return f"**up to {max(winners)} of {RIVALS} win**" if min(winners) else f"{min(winners)} to {max(winners)} win"


def damaged(store: Store) -> str:
    """A body that is not the one its sum is of."""
    key = f"{HOUR}/damaged"
    # A server that fails (500) has refused nothing.
    by_crc = store.put(key, ChecksumCRC32=crc(OTHER)).startswith("4") and store.get(key) != BODY

    def break_it(request: Any, **_: object) -> None:
        body = bytearray(request.body.read() if hasattr(request.body, "read") else request.body)
        body[-1] ^= 1
        request.body = bytes(body)

    store.client.meta.events.register("before-send.s3.PutObject", break_it)
    by_any = store.put(f"{key}-on-its-way") and store.get(f"{key}-on-its-way") is None
    store.client.meta.events.unregister("before-send.s3.PutObject", break_it)
    if by_crc:
        return "refused"
    return "refused by its signature, **not by its CRC**" if by_any else "**stored**"


def storage_class(store: Store) -> str:
    return _heeded(store, "class", "StorageClass", "STANDARD_IA")


def encryption(store: Store) -> str:
    return _heeded(store, "sse", "ServerSideEncryption", "AES256")


def tags(store: Store) -> str:
    key = f"{HOUR}/tags"
    if refused := store.put(key, Tagging="team=data"):
        return f"refused ({refused})"
    _, answer = store.tried(lambda: store.client.get_object_tagging(Bucket=store.bucket, Key=key))
    kept = answer is not None and answer.get("TagSet") == [{"Key": "team", "Value": "data"}]
    return "kept" if kept else "lost"


def _heeded(store: Store, name: str, argument: str, value: str) -> str:
    key = f"{HOUR}/{name}"
    if refused := store.put(key, **{argument: value}):
        return f"refused ({refused})"
    return "kept" if store.head(key).get(argument) == value else "ignored"


def metadata(store: Store) -> str:
    key = f"{HOUR}/metadata"
    if refused := store.put(key, Metadata=METADATA):
        return f"refused ({refused})"
    found = store.head(key).get("Metadata", {})
    if found == METADATA:
        return "kept"
    return "renamed" if sorted(found.values()) == sorted(METADATA.values()) else "lost"


def listing(store: Store) -> str:
    """Keys with `=`, in pages of ten, each once and in order."""
    wanted = [f"listing/dt=2026-11-23/hr={hour:02}/{hour}_a-b_0000000000.jsonl.gz" for hour in range(LISTED)]
    for key in wanted:
        store.put(key)
    pages = store.client.get_paginator("list_objects_v2").paginate(
        Bucket=store.bucket, Prefix="listing/", PaginationConfig={"PageSize": 10}
    )
    refused, found = store.tried(lambda: [entry["Key"] for page in pages for entry in page.get("Contents", ())])
    if found is None:
        return f"refused ({refused})"
    if found == wanted:
        return "right"
    return f"**{len(set(found))} of {LISTED}**" if len(set(found)) != LISTED else f"**{len(found)} for {LISTED}**"


def first_bytes(store: Store) -> str:
    key = f"{HOUR}/range"
    store.put(key)
    found = store.get(key, Range=f"bytes=0-{HEAD - 1}")
    if found == BODY[:HEAD] and store.head(key).get("ContentLength") == len(BODY):
        return "right"
    return "the whole object" if found == BODY else "**wrong**"


def missing(store: Store) -> str:
    """A key that there is not has to be told by S3's own code: from it a look draws that the key is free."""
    return store.tried(lambda: store.client.get_object(Bucket=store.bucket, Key=f"{HOUR}/nothing"))[0] or "**found**"


def replace(store: Store) -> str:
    """`If-Match` with the ETag of the object, and with one that it had before."""
    key = f"{HOUR}/replace"
    store.put(key)
    old = store.head(key).get("ETag", '"none"')
    if refused := store.put(key, OTHER, IfMatch=old):
        return f"refused ({refused})"
    again = store.put(key, IfMatch=old)
    if again == "412 PreconditionFailed" and store.get(key) == OTHER:
        return "honoured"
    return "**ignored**" if again == "" else again


COLUMNS: Final[dict[str, Callable[[Store], str]]] = {
    "create": create_only,
    "rivals": rivals,
    "damaged": damaged,
    "replace": replace,
    "range": first_bytes,
    "missing": missing,
    "listing": listing,
    "metadata": metadata,
    "class": storage_class,
    "encryption": encryption,
    "tags": tags,
}
