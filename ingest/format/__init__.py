"""All that is stored, as readers rely on it: names of objects and files, and the gzip of lines."""

from ingest.format import ledger, manifest
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
from ingest.format.record import OPTIONAL as OPTIONAL_KEYS

__all__ = [
    "OBJECT_SUFFIX",
    "OPTIONAL_KEYS",
    "KeyFactory",
    "Partition",
    "dlq_key",
    "dlq_path",
    "ledger",
    "manifest",
    "parse_key",
    "quarantine_key",
    "segment_key",
    "segment_path",
    "unix_of",
]
