"""An S3-speaking server as a real process on a port that the test chose, so that it can be away, come up and go again.

A port is reserved first (`S3Process(...)` refuses connections until `start`), as the collector's endpoint is fixed at
its own start. What it stored is gone when it stops.
"""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import boto3
from botocore.config import Config

from tests.faults.proxy import reserve_port
from tests.process.collector import bare_environment
from tests.stand_ins.s3_server import CREDENTIALS, MOTO_SERVER

if TYPE_CHECKING:
    from pathlib import Path

REGION = "ap-northeast-2"
_direct = build_opener(ProxyHandler({}))


class S3Process:
    """Refuses connections until `start`, and again after `stop`."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.folder = folder
        self.host = host
        self._guard = reserve_port()
        self.port: int = self._guard.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self, *buckets: str) -> S3Process:
        with (self.folder / "s3.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*MOTO_SERVER, "-H", self.host, "-p", str(self.port)],
                env=bare_environment({}, measured=False), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + 30
        while True:
            try:
                _direct.open(self.url + "/moto-api/", timeout=5).close()
                break
            except (URLError, OSError):
                assert self._process.poll() is None, (self.folder / "s3.log").read_text()
                assert time.monotonic() < deadline, "the S3 server did not come up"
                time.sleep(0.05)
        for bucket in buckets:
            self.make_bucket(bucket)
        return self

    def make_bucket(self, name: str) -> None:
        self.client().create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.stop()
        self._guard.close()

    def client(self) -> Any:
        return s3_client(self.url)


def s3_client(url: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 2}, max_pool_connections=8),
    )


def s3_environment(url: str, bucket: str, **more: str) -> dict[str, str]:
    """What the collector needs to use `bucket` behind `url`."""
    return {"AWS_REGION": REGION, "RAW_BUCKET": bucket, "AWS_ENDPOINT_URL": url, **CREDENTIALS, **more}
