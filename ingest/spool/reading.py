"""One reading of a lent file: the verdict upon it, and what is to be put.

Owns the choice of how a file is read: gzip or lines. Promises that the memory it takes is that of what is put, whatever
the size of a segment. Never changes a file. All of it blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingest.format import codec
from ingest.spool.waiting import Contents

if TYPE_CHECKING:
    from ingest.spool.waiting import Letter


def contents_of(letter: Letter) -> Contents:
    """Judge a file; `OSError` is no verdict."""
    found = codec.inspect_lines(letter.path) if letter.is_segment else codec.inspect_gzip(letter.path)
    if found.events and found.body is None:
        return Contents(found, letter.path.read_bytes())
    return Contents(found, found.body)


def original_of(letter: Letter) -> bytes:
    """Return a file's bytes."""
    return letter.path.read_bytes()
