"""One reading of a lent file: the verdict upon it, and what is to be put.

Owns the choice of how a file is read: gzip or lines. Promises that the memory it takes is that of what is put, whatever
the size of a segment. Never changes a file. All of it blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingest.disk import Reader, read_file
from ingest.format import codec
from ingest.spool.waiting import Contents

if TYPE_CHECKING:
    from ingest.disk import Filesystem
    from ingest.spool.waiting import Letter


def contents_of(fs: Filesystem, letter: Letter) -> Contents:
    """Judge a file; `OSError` is no verdict."""
    with Reader(fs, letter.path) as file:
        found = codec.inspect_lines(file) if letter.is_segment else codec.inspect_gzip(file)
        if found.events and found.body is None:
            file.seek(0)
            return Contents(found, file.read_all())
    return Contents(found, found.body)


def original_of(fs: Filesystem, letter: Letter) -> bytes:
    """Return a file's bytes."""
    return read_file(fs, letter.path)
