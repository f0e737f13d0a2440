"""Spark as the engine: the same rows, made where Spark runs, for what outgrows one machine.

Owns the same expressions as `embedded`, in Spark's words. Spark reads the objects of the frozen list where they lie,
and writes the parts to their folder, so that nothing passes through this process. `base` is the URL under which its
workers reach the store. Promises that the rows it tells of were read back from the parts. A line is taken apart at
`,"body":`, so that no parser ever sees a body that is a JSON value: it is what stood in the line.
Never lists a folder of the store to find out what an hour has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ingest.lake.columns import OF_LINE, Kind, of_partition
from ingest.lake.engine import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_TYPES: Final = {Kind.TEXT: "STRING", Kind.INTEGER: "BIGINT", Kind.TEXTS: "MAP<STRING, STRING>"}
_SETTINGS: Final = {
    "spark.app.name": "estat-ingest compact",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.session.timeZone": "UTC",
    "spark.hadoop.mapreduce.fileoutputcommitter.marksuccessfuljobs": "false",
    # Without this a part in a directory has a hidden file of checksums beside it.
    "spark.hadoop.fs.file.impl": "org.apache.hadoop.fs.RawLocalFileSystem",
}
_BODY: Final = ',"body":'
_AFTER_HEADERS: Final = '},"body'
_FIELDS: Final = [(column.name, _TYPES[column.kind]) for column in OF_LINE if column.name != "body"]
_STRUCTURE: Final = ", ".join(f"`{name}` {kind}" for name, kind in _FIELDS)
_HALVES: Final = (
    f"from_json(concat(left(value, at - 1), '}}'), '{_STRUCTURE}') AS line",
    f"substring(value, at + {len(_BODY)}, length(value) - at - {len(_BODY)}) AS body",
)


class Spark:
    """A `Cluster`. `written` hears of each part's key when Spark has written it."""

    def __init__(
        self, body_format: str, base: str, master: str | None = None, written: Callable[[str], None] | None = None
    ) -> None:
        self._body_format = body_format
        self._base = base.rstrip("/")
        self._master = master
        self._written = written
        self._session: Any = None

    def write(self, keys: Sequence[str], hour: str, folder: str) -> dict[str, int]:
        """Make the parts of an hour in a folder of the store that is new; return their rows by key."""
        if not keys:
            return {}
        try:
            rows = self._write(keys, hour, folder)
        except Exception as error:
            first = str(error).strip().partition("\n")[0]
            raise EngineError(f"Spark: {type(error).__name__}: {first[:500]}") from error
        for key in rows:
            if self._written is not None:
                self._written(key)
        return rows

    def close(self) -> None:
        """Stop Spark."""
        session, self._session = self._session, None
        if session is not None:
            session.stop()

    def _write(self, keys: Sequence[str], hour: str, folder: str) -> dict[str, int]:
        session = self._started()
        lines = session.read.text([f"{self._base}/{key}" for key in keys], lineSep="\n")
        target = f"{self._base}/{folder}"
        # Step by step, so that a line is taken apart once, and not once for each of its columns.
        rows = lines.selectExpr("value", f"{_place()} AS at").selectExpr(*_HALVES)
        rows = rows.selectExpr(*expressions(self._body_format, hour))
        rows.write.option("compression", "zstd").parquet(target)
        found = (
            session.read.parquet(target)
            .selectExpr("_metadata.file_name AS name", "ts")
            .groupBy("name")
            .agg({"*": "count", "ts": "count"})
            .collect()
        )
        if any(row["count(1)"] != row["count(ts)"] for row in found):
            raise EngineError("there are lines without an instant")
        return {f"{folder}/{row['name']}": row["count(1)"] for row in sorted(found, key=lambda row: row["name"])}

    def _started(self) -> Any:  # noqa: ANN401 - Spark's own
        if self._session is None:
            from pyspark.conf import SparkConf
            from pyspark.sql import SparkSession

            conf = SparkConf().setAll(list(_SETTINGS.items()))
            if self._master is not None or not conf.contains("spark.master"):
                conf.setMaster(self._master or "local[*]")
            self._session = SparkSession.builder.config(conf=conf).getOrCreate()
            self._session.sparkContext.setLogLevel("ERROR")
        return self._session


def expressions(body_format: str, hour: str) -> list[str]:
    """Return one expression a column, over the halves of a line: `line` without its body, and the body as it stands."""
    dt, hr = of_partition(hour)
    text = "from_json(concat('{\"body\":', body, '}'), 'body STRING').body"
    is_text = f"WHEN startswith(body, '\"') THEN {text} " if body_format == "text" else ""
    body = f"CASE WHEN body = 'null' THEN NULL {is_text}ELSE body END"
    return [f"'{dt}' AS dt", f"'{hr}' AS hr", *(f"line.`{name}`" for name, _ in _FIELDS), f"{body} AS body"]


def _place() -> str:
    """Return where `,"body":` begins that is no header's: behind the headers, where there are any.

    Headers that come after a first `,"body":` are no member of the line: they stand in a body of JSON.
    """
    headers, first = "locate('\"headers\":{', value)", f"locate('{_BODY}', value)"
    return (
        f"CASE WHEN {headers} = 0 OR {headers} > {first} THEN {first} "
        f"ELSE locate('{_BODY}', value, locate('{_AFTER_HEADERS}', value, {headers})) END"
    )
