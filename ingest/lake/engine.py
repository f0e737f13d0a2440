"""The promises of an engine: what makes rows of lines.

Owns `Engine`, which works on copies, `Cluster`, which works on the store itself, `Written`, and `EngineError`. Never
imports an engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ingest.lake.sources import Fetched


class EngineError(Exception):
    """The engine could not do it; the text is its own."""


class Written(NamedTuple):
    """A Parquet file on the local disk."""

    path: Path
    rows: int
    bytes: int


class Engine(Protocol):
    """Makes rows of lines. It blocks: run it in a thread."""

    def write(self, copies: Fetched, hour: str, into: Path) -> list[Written]:
        """Write the rows of all copies to Parquet files in a folder that is there; `EngineError` if it cannot."""


class Cluster(Protocol):
    """Makes rows of lines where the objects lie. It blocks: run it in a thread."""

    def write(self, keys: Sequence[str], hour: str, folder: str) -> dict[str, int]:
        """Write the rows of these objects to a folder of the store that is new; return the rows of each part, by key.

        `EngineError` if it cannot.
        """
