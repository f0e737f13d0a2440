"""Fixtures that more than one folder of tests needs; each lives in the file that explains it."""

from tests.stand_ins.s3_server import bucket, s3_server

__all__ = ["bucket", "s3_server"]
