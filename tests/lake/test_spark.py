"""`compact --engine spark`: the same rows as DuckDB's, byte for byte, by a Spark of two threads."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from ingest.commands.compact import DIFFERS
from ingest.format import codec
from tests.lake.hour import BEGIN, HOUR, all_bytes, key, line, numbered, numbers, pointer, put, rows, text_line
from tests.lake.test_compact import TEXTS, VALUES

pytestmark = [pytest.mark.lake, pytest.mark.filterwarnings("default")]
SPARK = ("--engine", "spark", "--master", "local[2]")
MORE = (
    b'"ts_ms":%d123,"query":"a=b","key":"web","headers":{"x":"},\\"body\\":","body":"}{,\\"body\\":"},"body_b64":"%s"'
    % (
        BEGIN,
        all_bytes().encode(),
    )
)


@pytest.fixture(autouse=True)
def spark(store_dir, monkeypatch):  # noqa: ARG001 - it clears the environment
    pytest.importorskip("pyspark")
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")


@pytest.mark.parametrize("body_format", ["text", "json"])
def test_the_rows_are_those_of_duckdb(store_dir, compact, monkeypatch, body_format):
    monkeypatch.setenv("BODY_FORMAT", body_format)
    put(store_dir, 1, [line(value, number, MORE if number % 2 else b"") for number, value in enumerate(VALUES)])
    put(store_dir, 2, [line(b"null"), text_line("", 1, MORE)])
    put(store_dir, 3, [text_line(text, number) for number, text in enumerate(TEXTS)])
    assert compact(*SPARK)[0] == 0
    by_spark = Counter(map(repr, rows(store_dir, "*")))
    (store_dir / "raw_parquet/_hours" / f"{HOUR}.json").unlink()
    assert compact()[0] == 0
    assert by_spark == Counter(map(repr, rows(store_dir, "*")))
    assert by_spark.total() == len(VALUES) + 2 + len(TEXTS)


def test_a_store_may_lie_in_a_folder_of_any_name(tmp_path, monkeypatch, compact):
    store = tmp_path / "with blanks, é and 100%20"
    store.mkdir()
    monkeypatch.setenv("STORE_DIR", str(store))
    put(store, 1, numbered(0, 10))
    assert compact(*SPARK)[0] == 0
    assert numbers(store) == list(range(10))


def test_generations_follow_each_other_whatever_made_them(store_dir, compact):
    put(store_dir, 1, numbered(0, 10))
    assert compact()[1]["hours"][0]["generation"] == 1
    put(store_dir, 2, numbered(10, 10))
    code, document = compact(*SPARK)
    assert (code, document["hours"][0]["generation"]) == (0, 2)
    assert compact()[1]["hours"][0]["result"] == "nothing to do"
    assert numbers(store_dir) == list(range(20))
    assert sum(part["bytes"] for part in pointer(store_dir)["parts"]) == sum(
        (store_dir / part["key"]).stat().st_size for part in pointer(store_dir)["parts"]
    )


@pytest.mark.parametrize(
    "body", [codec.encode(text_line("a"), 1)[:-3], codec.encode(text_line("a"), 2), codec.encode(b'{"ts":"now"}\n', 1)]
)
def test_an_object_that_is_not_what_its_head_says_is_named_and_nothing_is_published(store_dir, compact, body):
    put(store_dir, 1, numbered(0, 10))
    (store_dir / key(2)).write_bytes(body)
    code, document = compact(*SPARK)
    assert code == DIFFERS
    assert key(2) in document["told"]
    assert pointer(store_dir) is None


def test_what_spark_makes_is_committed_to_iceberg(store_dir, compact, monkeypatch, tmp_path):
    pytest.importorskip("pyiceberg")
    from pyiceberg.catalog import load_catalog
    from pyiceberg.utils.config import Config

    from tests.lake.test_iceberg import catalog_of

    (tmp_path / "warehouse").mkdir()
    for name, value in catalog_of(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())
    put(store_dir, 1, numbered(0, 10))
    assert compact(*SPARK, "--table", "iceberg")[0] == 0
    found = load_catalog("default").load_table("estat.events").scan().to_arrow()
    assert sorted(json.loads(body)["n"] for body in found["body"].to_pylist()) == list(range(10))
