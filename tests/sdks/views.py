"""The views of docs/sdks.md: one row an event, of what SDKs sent."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import duckdb

from tests.process.collector import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

PAGE = REPOSITORY / "docs" / "sdks.md"
WHERE = "data/objects/raw/*/*/*.jsonl.gz"
COLUMNS = "dt, hr, ts, ip, user_agent, key, path, id, name, user_id, properties, payload"


def sql(engine: str) -> str:
    """Return what the page says for an engine."""
    (block,) = re.findall(rf"(?s)<!-- {engine}:begin -->\n```sql\n(.*?)```\n<!-- {engine}:end -->", PAGE.read_text())
    return block


def rows(objects: Path) -> list[dict[str, Any]]:
    """Return the rows of the view over the objects below a folder, read by DuckDB."""
    text = sql("duckdb")
    assert WHERE in text
    with duckdb.connect() as connection:
        connection.execute(text.replace(WHERE, f"{objects}/*/*/*.jsonl.gz"))
        found = connection.sql(f"SELECT {COLUMNS} FROM sdk_events")
        return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]
