"""DuckDB as the engine: in this process, over files on the local disk.

Owns the SQL by which lines become rows. Every line is taken as it is, and `body` is cut out of it as text where it is
no string, because a JSON reader renders numbers, blanks and escapes anew. Promises that the rows it counts have an
instant, so that a line which is no event is an error and not a row of nulls. Memory: `memory_limit` for DuckDB, which
spills to the folder it writes to; a group of rows is written once it has `ROW_GROUP_BYTES`. Where that does not suffice
for all threads, one does the work alone.
Never reads what it is not given, infers a type, or goes to the network: extensions are neither installed nor loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ingest.lake.columns import OF_LINE, Kind, of_partition
from ingest.lake.engine import EngineError, Written

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ingest.lake.sources import Fetched

MEMORY: Final = 256 * 1024 * 1024
ROW_GROUP_BYTES: Final = 16 * 1024 * 1024
PART_BYTES: Final = 96 * 1024 * 1024
"""A part is put from memory."""
_LEAST_LINE: Final = 64 * 1024
"""DuckDB reads in steps of twice the longest line it is told of."""

_TYPES: Final = {Kind.TEXT: "VARCHAR", Kind.INTEGER: "BIGINT", Kind.TEXTS: "MAP(VARCHAR, VARCHAR)"}
# A header may be called `body`: so `headers`, where there are any, are passed over whole. The leftmost match counts.
_BODY: Final = r'(?:"headers":\{(?:"(?:[^"\\]|\\.)*"[:,]?)*\})?(?:,"body_b64":"[^"]*")?,"body":(.*)\}$'


class DuckDB:
    """An `Engine`. `memory`: what DuckDB may take, in bytes."""

    def __init__(self, body_format: str, memory: int = MEMORY, threads: int | None = None) -> None:
        self._body_format = body_format
        self._memory = memory
        self._threads = threads

    def write(self, copies: Fetched, hour: str, into: Path) -> list[Written]:
        """Write the rows of all copies to Parquet files in a folder that is there."""
        import duckdb

        query = statement(self._body_format, hour, copies.files, max(copies.longest + 1, _LEAST_LINE), into)
        try:
            try:
                rows = self._run(query, into, self._threads)
            except duckdb.OutOfMemoryException:
                # Each thread holds 2,048 lines several times over; with long ones there is room for one thread alone.
                rows = self._run(query, into, 1)
        except duckdb.OutOfMemoryException as error:
            longest = f"the longest line has {copies.longest:,} bytes"
            raise EngineError(f"DuckDB: {self._memory >> 20} MiB do not suffice, {longest}: --memory") from error
        except duckdb.Error as error:
            raise EngineError(f"DuckDB: {' '.join(str(error).split())[:500]}") from error
        files = [_written(*row[:5]) for row in rows]
        return [file for file in files if file.rows]

    def _run(self, query: str, into: Path, threads: int | None) -> list[tuple[Any, ...]]:
        import duckdb

        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": f"{self._memory}B",
            "temp_directory": str(into),
            "preserve_insertion_order": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        if threads is not None:
            settings["threads"] = threads
        with duckdb.connect(config=settings) as connection:
            rows: list[tuple[Any, ...]] = connection.execute(query).fetchall()
            return rows


def statement(body_format: str, hour: str, files: Sequence[Path], longest: int, into: Path) -> str:
    """Return the one statement of a compaction."""
    dt, hr = of_partition(hour)
    fields = [column for column in OF_LINE if column.name != "body"]
    # The body is read as text only where it may be a string: as JSON it would be rendered for nothing.
    parsed = [*fields, *(column for column in OF_LINE if column.name == "body" and body_format == "text")]
    structure = ", ".join(f'"{column.name}":"{_TYPES[column.kind]}"' for column in parsed)
    verbatim = f"regexp_extract(json, {_quoted(_BODY)}, 1, 's')"
    kind = "coalesce(json_type(json, '$.body'), 'NULL')"
    text = "WHEN 'VARCHAR' THEN line.body " if body_format == "text" else ""
    body = f"CASE {kind} {text}WHEN 'NULL' THEN NULL ELSE {verbatim} END"
    columns = ", ".join(f'line."{column.name}"' for column in fields)
    return f"""
        COPY (
            SELECT {_quoted(dt)} AS dt, {_quoted(hr)} AS hr, {columns}, {body} AS body
            FROM (
                SELECT json, from_json(json, {_quoted("{" + structure + "}")}) AS line
                FROM read_ndjson_objects(
                    [{", ".join(_quoted(str(path)) for path in files)}],
                    compression = 'gzip', maximum_object_size = {longest})
            )
        ) TO {_quoted(str(into))} (
            FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE_BYTES {ROW_GROUP_BYTES}, FILE_SIZE_BYTES {PART_BYTES},
            FILENAME_PATTERN 'part-{{i}}', OVERWRITE_OR_IGNORE, RETURN_STATS
        )"""  # noqa: S608 - every value is quoted


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _written(name: str, rows: int, size: int, _: int, statistics: dict[str, dict[str, str]]) -> Written:
    from pathlib import Path

    if rows and int(statistics['"ts"']["null_count"]):
        raise EngineError("DuckDB: there are lines without an instant")
    return Written(Path(name), rows, size)
