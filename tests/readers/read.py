"""One reader, in a process of its own: its rows in JSON on standard output.

    python -m tests.readers.read NAME PAGE FOLDER events|lines [DT HR]

Owns how each reader is asked for rows. The recipes themselves are taken from the page below docs/: `events` is the
recipe, `lines` the second one, which cuts the body out. The answer has `rows`, or the `error` that the reader raised.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

REPOSITORY = Path(__file__).resolve().parents[2]
COMPACTED = "compact.md"


def recipe(page: str, name: str) -> str:
    """Return the block that stands below the mark `name`."""
    text = (REPOSITORY / "docs" / page).read_text()
    (block,) = re.findall(rf"(?s)<!-- reader: {re.escape(name)} -->\n```[a-z]+\n(.*?)```", text)
    return str(block)


def _parts(page: str) -> dict[str, Any]:
    """Return what a recipe finds there: on the page of Parquet the list of the parts."""
    given: dict[str, Any] = {}
    if page == COMPACTED:
        exec(recipe(page, "parts"), given)
    return given


def duckdb(page: str, what: str, hour: tuple[str, str] | None) -> Iterable[Mapping[str, Any]]:
    import duckdb as engine

    connection = engine.connect()
    connection.execute(recipe(page, "duckdb" if what == "events" else f"duckdb {what}"))
    found = connection.execute(f"SELECT * FROM {what}{_where(hour)}")
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def chdb(page: str, what: str, hour: tuple[str, str] | None) -> Iterable[Mapping[str, Any]]:
    import pyarrow as pa
    from chdb.session import Session

    session = Session()
    session.query("CREATE DATABASE here ENGINE = Atomic; USE here")
    text = recipe(page, "chdb" if what == "events" else f"chdb {what}")
    table = what
    if page == COMPACTED:
        given = _parts(page)
        exec(text, given)
        table = given["events"]
    else:
        session.query(text)
    answer = session.query(
        f"SELECT * FROM {table}{_where(hour)} SETTINGS output_format_arrow_string_as_string = 0", "Arrow"
    )
    rows = pa.ipc.open_file(pa.BufferReader(answer.bytes())).read_all().to_pylist()
    return [{name: _text(value) for name, value in row.items()} for row in rows]


def spark(page: str, what: str, hour: tuple[str, str] | None) -> Iterable[Mapping[str, Any]]:
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master("local[1]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("OFF")
    given = {**_parts(page), "spark": session}
    exec(recipe(page, "spark" if what == "events" else f"spark {what}"), given)
    frame: Any = given[what]
    return [row.asDict() for row in (frame.where(_condition(hour)) if hour else frame).collect()]


def athena(page: str, what: str, hour: tuple[str, str] | None) -> Iterable[Mapping[str, Any]]:
    """Stand in for Athena, which is a service: Spark parses its tables, and DuckDB reads what its lists name."""
    import duckdb as engine
    from pyspark.sql import SparkSession

    assert (page, what, hour) == (COMPACTED, "events", None)
    session = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
    raw = re.findall(r"(?s)CREATE EXTERNAL TABLE.*?(?=;\n)", (REPOSITORY / "docs/reading.md").read_text())
    assert raw
    for table in (recipe(page, "athena table"), *raw):
        session._jsparkSession.sessionState().sqlParser().parsePlan(table)
    given = _parts(page)
    exec(recipe(page, "athena"), given)
    lists = sorted(given["store"].glob("raw_symlinks/dt=*/hr=*/parts.txt"))
    named = [line.replace(given["where"], str(given["store"])) for path in lists for line in path.read_text().split()]
    found = engine.execute("SELECT * FROM read_parquet($named)", {"named": named})
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def polars(page: str, what: str, hour: tuple[str, str] | None) -> Iterable[Mapping[str, Any]]:
    given = _parts(page)
    exec(recipe(page, "polars"), given)
    if page == COMPACTED:
        return given[what].collect().to_dicts()  # type: ignore[no-any-return]
    if what != "events":
        exec(recipe(page, f"polars {what}"), given)
    return given[what](*(hour or ())).collect().to_dicts()  # type: ignore[no-any-return]


def pyarrow(page: str, what: str, hour: tuple[str, str] | None) -> Iterable[Mapping[str, Any]]:
    import pyarrow.dataset as ds

    given = _parts(page)
    exec(recipe(page, "pyarrow"), given)
    chosen = (ds.field("dt") == hour[0]) & (ds.field("hr") == hour[1]) if hour else None
    return given[what].to_table(filter=chosen).to_pylist()  # type: ignore[no-any-return]


READERS: dict[str, tuple[str, Callable[[str, str, tuple[str, str] | None], Iterable[Mapping[str, Any]]]]] = {
    "duckdb": ("DuckDB", duckdb),
    "chdb": ("ClickHouse (chdb)", chdb),
    "spark": ("Spark", spark),
    "polars": ("Polars", polars),
    "pyarrow": ("PyArrow", pyarrow),
}
STAND_INS = {"athena": athena}
"""They read Parquet only."""
WITHOUT_LINES = {"pyarrow"}
"""They have no way to take a line as text."""


def _condition(hour: tuple[str, str]) -> str:
    return f"dt = '{hour[0]}' AND hr = '{hour[1]}'"


def _where(hour: tuple[str, str] | None) -> str:
    return f" WHERE {_condition(hour)}" if hour else ""


def _text(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):  # a map
        return {_text(name): _text(one) for name, one in value}
    return value


def _plain(value: object) -> object:
    """Make of a value what JSON can carry; headers as a map, whichever way the reader has them."""
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, list):
        value = dict(value)
    if isinstance(value, dict):
        return {name: one for name, one in value.items() if one is not None}
    return value


def main() -> int:
    name, page, folder, what, *hour = sys.argv[1:]
    os.chdir(folder)
    out = os.dup(1)
    os.dup2(2, 1)  # what a reader prints is no answer
    try:
        read = STAND_INS[name] if name in STAND_INS else READERS[name][1]
        found = read(page, what, (hour[0], hour[1]) if hour else None)
        answer: dict[str, Any] = {"rows": [{k: _plain(v) for k, v in row.items()} for row in found]}
    except Exception as error:  # noqa: BLE001 - what it raised is the answer
        answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    with os.fdopen(out, "w") as file:
        json.dump(answer, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
