"""The columns of a compacted hour: `dt`, `hr`, and the keys of a line in their order.

Owns `COLUMNS` and `RECIPE_VERSION`. Promises that every key of `format.record` has a column, and that its type is the
same for every hour and engine, because it is never inferred. The version is raised with every change of what stands in
a column: then an hour is written anew when it is compacted the next time. Never knows an engine.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, NamedTuple

from ingest.format.record import KEYS

RECIPE_VERSION: Final = 1


class Kind(Enum):
    """The content of a column."""

    TEXT = auto()
    INTEGER = auto()
    """64 bits."""
    TEXTS = auto()
    """Texts by name."""


class Column(NamedTuple):
    """One column; `required`: it is null in no row."""

    name: str
    kind: Kind
    required: bool = False


_KINDS: Final = {"ts": Kind.INTEGER, "ts_ms": Kind.INTEGER, "headers": Kind.TEXTS}

OF_HOUR: Final = (Column("dt", Kind.TEXT, required=True), Column("hr", Kind.TEXT, required=True))
OF_LINE: Final = tuple(Column(key.name, _KINDS.get(key.name, Kind.TEXT), required=key.name == "ts") for key in KEYS)
COLUMNS: Final = (*OF_HOUR, *OF_LINE)


def of_partition(partition: str) -> tuple[str, str]:
    """Return what `dt` and `hr` of an hour hold: of `dt=2025-12-02/hr=14` the two values."""
    dt, hr = partition.split("/")
    return dt.removeprefix("dt="), hr.removeprefix("hr=")
