"""`compact --table iceberg`: one commit an hour to a table in a catalog of SQLite."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lake.hour import AFTER, BEGIN, HOUR, all_bytes, numbered, put, text_line
from tests.process.collector import bare_environment

pytestmark = [
    pytest.mark.lake,
    pytest.mark.filterwarnings("default"),  # PyIceberg warns its users of what it will do some day
]
KILLS = 5
OTHER = "dt=2025-12-02/hr=13"


def catalog_of(folder):
    return {
        "PYICEBERG_CATALOG__DEFAULT__URI": f"sqlite:///{folder}/catalog.db",
        "PYICEBERG_CATALOG__DEFAULT__WAREHOUSE": (folder / "warehouse").as_uri(),
    }


@pytest.fixture
def table(store_dir, tmp_path, monkeypatch):  # noqa: ARG001 - it clears the environment
    """Return what loads the table anew."""
    pytest.importorskip("pyiceberg")
    (tmp_path / "warehouse").mkdir()
    for name, value in catalog_of(tmp_path).items():
        monkeypatch.setenv(name, value)
    from pyiceberg.catalog import load_catalog
    from pyiceberg.utils.config import Config

    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())

    return lambda: load_catalog("default").load_table("estat.events")


@pytest.fixture(params=range(3))
def round_(request):
    return request.param


def bodies(table):
    return Counter(table().scan(selected_fields=("body",)).to_arrow()["body"].to_pylist())


def numbers(table):
    return sorted(json.loads(body)["n"] for body in bodies(table).elements())


def test_an_hour_is_one_commit_and_the_same_objects_are_committed_once(store_dir, compact, table):
    put(store_dir, 1, numbered(0, 10))
    put(store_dir, 1, numbered(100, 5), OTHER)
    assert compact("--table", "iceberg")[1]["hours"][0]["generation"] == 1
    assert compact("--table", "iceberg", hour=OTHER)[0] == 0
    assert numbers(table) == [*range(10), *range(100, 105)]
    versions = len(table().metadata.metadata_log)
    code, document = compact("--table", "iceberg")
    assert (code, document["hours"][0]["result"]) == (0, "nothing to do")
    put(store_dir, 2, numbered(10, 5))
    assert compact("--table", "iceberg")[1]["hours"][0]["generation"] == 2
    assert len(table().metadata.metadata_log) == versions + 1
    assert numbers(table) == [*range(15), *range(100, 105)]


def test_every_column_comes_out_as_it_went_in(store_dir, compact, table):
    more = b'"ts_ms":%d123,"headers":{"ce-id":"1","x":"\xc3\xa9"},"body_b64":"%s"' % (BEGIN, all_bytes().encode())
    put(store_dir, 1, [text_line("", 0, more), text_line("[" * 400 + "\x00\U0001f600", 1)])
    assert compact("--table", "iceberg")[0] == 0
    full, plain = sorted(table().scan().to_arrow().to_pylist(), key=lambda row: row["ts"])
    assert (full["dt"], full["hr"], full["ts"], full["ts_ms"]) == ("2025-12-02", "14", BEGIN, BEGIN * 1000 + 123)
    assert dict(full["headers"]) == {"ce-id": "1", "x": "é"}
    assert (full["body_b64"], full["body"]) == (all_bytes(), "")
    assert (plain["headers"], plain["body"]) == (None, "[" * 400 + "\x00\U0001f600")


def test_an_hour_whose_snapshot_is_expired_is_not_emptied_by_raw_that_was_removed(store_dir, compact, table):
    raw = store_dir / put(store_dir, 1, numbered(0, 10))
    put(store_dir, 1, numbered(100, 5), OTHER)
    for hour in (HOUR, OTHER):
        assert compact("--table", "iceberg", hour=hour)[0] == 0
    first = table().metadata.snapshots[0].snapshot_id
    table().maintenance.expire_snapshots().by_id(first).commit()
    kept = raw.rename(store_dir / "kept")
    code, document = compact("--table", "iceberg")
    assert (code, numbers(table)) == (3, [*range(10), *range(100, 105)])
    assert "0 events are left of the 10 that the table has" in document["told"]
    kept.rename(raw)
    assert compact("--table", "iceberg")[1]["hours"][0]["result"] == "published"
    assert numbers(table) == [*range(10), *range(100, 105)]


def test_an_hour_without_objects_is_committed_as_empty(compact, table):
    assert compact("--table", "iceberg")[0] == 0
    assert bodies(table) == Counter()
    assert compact("--table", "iceberg")[1]["hours"][0]["result"] == "nothing to do"


@pytest.mark.parametrize("name", ["with blanks", "é", "100%20"])
def test_a_store_may_lie_in_a_folder_of_any_name(tmp_path, monkeypatch, compact, table, name):
    (tmp_path / name).mkdir()
    monkeypatch.setenv("STORE_DIR", str(tmp_path / name))
    put(tmp_path / name, 1, numbered(0, 10))
    assert compact("--table", "iceberg")[0] == 0
    assert numbers(table) == list(range(10))


@pytest.mark.usefixtures("round_")
def test_of_many_at_once_nothing_is_doubled_and_nothing_is_lost(store_dir, compact, table):
    """PyIceberg alone would try again, and put the files of one run beside those of another."""
    from ingest.config.settings import load
    from ingest.disk import Filesystem
    from ingest.format import codec
    from ingest.lake import Compactor, Contended, Patient, Recipe
    from ingest.lake import compact as compact_hour
    from ingest.lake.embedded import DuckDB
    from ingest.lake.iceberg import Table
    from ingest.store import Head, create_store

    hours = [HOUR, HOUR, OTHER, OTHER]
    assert compact("--table", "iceberg", hour="dt=2025-12-02/hr=12")[0] == 0
    put(store_dir, 1, numbered(0, 10))
    put(store_dir, 1, numbered(100, 5), OTHER)

    def one(hour):
        async def main():
            with ThreadPoolExecutor(2) as executor:
                head = Head(codec.HEAD_BYTES, codec.event_count)
                store = Patient(
                    create_store(load({"STORE_DIR": str(store_dir)}), head, fs=Filesystem(), executor=executor)
                )
                shelf = Table("default", "estat.events", store_dir.as_uri())
                engine = DuckDB("text", threads=1)
                by = Compactor(
                    store, Filesystem(), "raw", "raw_parquet", Recipe.of("text"), engine, shelf, store_dir.parent
                )
                return await compact_hour(by, hour)

        try:
            return asyncio.run(main())
        except Contended:
            return None

    with ThreadPoolExecutor(len(hours)) as threads:
        list(threads.map(one, hours))
    for hour in (HOUR, OTHER):
        assert compact("--table", "iceberg", hour=hour)[0] == 0
    assert numbers(table) == [*range(10), *range(100, 105)]


def run(folder, *words):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *words, "--hour", HOUR, "--table", "iceberg"],
        cwd=folder,
        env=bare_environment(
            {"STORE_DIR": str(folder / "objects"), "MANIFESTS": "false", "TMPDIR": str(folder / "scratch")}
        )
        | catalog_of(folder)
        | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("point", ["part_put", "commit_begins", "committed"])
def test_a_kill_leaves_the_old_hour_or_the_new_one_and_the_next_run_ends_it(store_dir, tmp_path, table, point):
    put(store_dir, 0, numbered(0, 10))
    ended = run(tmp_path, "ingest", "compact")
    assert ended.returncode == 0, ended.stderr
    allowed = [list(range(10))]
    for kill in range(1, KILLS + 1):
        put(store_dir, kill, numbered(kill * 10, 10))
        allowed.append(list(range((kill + 1) * 10)))
        died = run(tmp_path, "tests.lake.dying", point, "1", "compact")
        assert died.returncode == -signal.SIGKILL, died.stderr
        assert numbers(table) in allowed
    assert run(tmp_path, "ingest", "compact").returncode == 0
    assert numbers(table) == allowed[-1]


def age(store_dir, but=()):
    """Make all parts of tables 49 hours older than now, but for some."""
    for path in (store_dir / "raw_parquet/_table").rglob("*.parquet"):
        when = AFTER if path in but else AFTER - 49 * 3600
        os.utime(path, (when, when))


def test_parts_of_no_snapshot_go_after_48_hours(store_dir, compact, table):
    put(store_dir, 1, numbered(0, 10))
    compact("--table", "iceberg")
    folder = store_dir / f"raw_parquet/_table/{table().metadata.table_uuid}"
    orphans = [folder / f"{number:016d}/2025-12-02-14/part-00000.parquet" for number in range(2)]
    former = store_dir / f"raw_parquet/_table/{0:016d}/2025-12-02-14/part-00000.parquet"
    for orphan in (*orphans, former):
        orphan.parent.mkdir(parents=True)
        orphan.write_bytes(b"of a run that was killed")
    age(store_dir, orphans[1:])
    assert compact("--table", "iceberg")[1]["parts_removed"] == 1
    assert [path.exists() for path in (*orphans, former)] == [False, True, True]
    assert numbers(table) == list(range(10))


@pytest.mark.parametrize("how", ["another table", "another catalog", "another mount", "dropped and made again"])
def test_no_table_loses_a_part_to_another_or_to_itself_by_another_name(
    store_dir, compact, table, tmp_path, monkeypatch, how
):
    put(store_dir, 1, numbered(0, 10))
    put(store_dir, 1, numbered(100, 5), OTHER)
    assert compact("--table", "iceberg")[0] == 0
    before = table()
    parts = list((store_dir / "raw_parquet/_table").rglob("*.parquet"))
    age(store_dir)
    words = ["--table", "iceberg"]
    if how == "another table":
        words += ["--name", "estat.test"]
    elif how == "another catalog":
        (tmp_path / "second").mkdir()
        monkeypatch.setenv("PYICEBERG_CATALOG__DEFAULT__URI", f"sqlite:///{tmp_path}/second/catalog.db")
        from pyiceberg.utils.config import Config

        monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())
    elif how == "another mount":
        (tmp_path / "mount").symlink_to(store_dir)
        monkeypatch.setenv("STORE_DIR", str(tmp_path / "mount"))
    else:
        before.catalog.drop_table("estat.events")
    code, document = compact(*words, hour=OTHER)
    assert (code, document["parts_removed"]) == (0, 0)
    assert all(path.exists() for path in parts)
    assert Counter(before.scan().to_arrow()["body"].to_pylist()).total() == 10
