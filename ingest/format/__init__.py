"""The contract with readers, all that is stored: names of objects and files, and the gzip of lines."""

from ingest.format.keys import (
    OBJECT_SUFFIX,
    KeyFactory,
    Partition,
    dlq_key,
    dlq_path,
    parse_key,
    quarantine_key,
    segment_key,
    segment_path,
    unix_of,
)

__all__ = [
    "OBJECT_SUFFIX",
    "KeyFactory",
    "Partition",
    "dlq_key",
    "dlq_path",
    "parse_key",
    "quarantine_key",
    "segment_key",
    "segment_path",
    "unix_of",
]
