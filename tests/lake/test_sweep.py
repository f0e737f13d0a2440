"""The sweep: a part goes only on evidence that nobody needs it, whoever else has parts beside it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from ingest.lake.iceberg import Table
from ingest.store import Listed

UUID = "0f7d8e2c-1111-4222-8333-944455556666"
OTHER = "0f7d8e2c-9999-4222-8333-944455556666"
RUN = "0123456789abcdef"
LATER = "fedcba9876543210"


def part(run, uuid=UUID):
    return f"raw_parquet/_table/{uuid}/{run}/2025-12-02-14/part-00000.parquet"


def table_that_names(*paths):
    """A table whose snapshots name these files."""
    table = Table("default", "estat.events", "s3://bucket")
    column = SimpleNamespace(to_pylist=lambda: list(paths))
    table._find = lambda: SimpleNamespace(inspect=SimpleNamespace(all_files=lambda: {"file_path": column}))
    return table


def unneeded(table, *keys):
    listed = [Listed(key, 1, 0.0) for key in keys]
    return asyncio.run(table.unneeded({"dt=2025-12-02/hr=14": listed}, 1.0, ()))


@pytest.mark.parametrize(
    "base",
    ["s3://bucket", "s3a://bucket", "s3://alias", "file:///data/objects", "/mnt/nfs/objects", "file:/data/one%20two"],
)
def test_a_part_of_a_table_is_known_however_the_table_spells_its_place(base):
    told = unneeded(table_that_names(f"{base}/{part(LATER)}"), part(RUN), part(LATER))
    assert (told.keys, told.doubts) == ([part(RUN)], [])


@pytest.mark.parametrize(
    "named",
    [
        [],
        [f"s3://bucket/{part(RUN, OTHER)}"],
        ["s3://bucket/raw_parquet/_table/0123456789abcdef/2025-12-02-14/part-00000.parquet"],
        ["s3://warehouse/estat/events/data/00000-0.parquet"],
    ],
    ids=["nothing", "another table's", "the former layout's", "rewritten ones"],
)
def test_a_table_that_names_nothing_in_its_folder_is_not_believed(named):
    told = unneeded(table_that_names(*named), part(RUN), part(LATER))
    assert told.keys == []
    assert "names none of the 2 parts" in told.doubts[0]
