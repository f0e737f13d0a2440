"""What measures: the generator sends what it says, each budget is judged, and the docs get the figures of one run."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import budgets
import compiled
import instructions
import load as loads
import pair
import publish
import pytest
from load import LOADS, PLAIN, Load

from ingest.telemetry.metrics import METRICS

REPOSITORY = Path(__file__).parent.parent.parent
LOADTEST = REPOSITORY / "loadtest"


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    return loads.build_generator(tmp_path_factory.mktemp("built"))


class Recorder:
    """Answers each request with 200 and keeps it, with the connection it came on."""

    def __init__(self, *, closes=False, answers=True):
        self.closes = closes
        self.answers = answers
        self.connections = []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.accept)

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.converse, args=(connection,), daemon=True).start()

    def converse(self, connection):
        requests = []
        self.connections.append(requests)
        with connection, connection.makefile("rb") as incoming, suppress(OSError):
            while head := head_of(incoming):
                length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
                requests.append((head, incoming.read(length)))
                if self.answers:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                if self.closes:
                    break

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()

    @property
    def requests(self):
        return [request for connection in self.connections for request in connection]


def head_of(incoming):
    """Read a whole head; what comes before the end of the connection is none."""
    lines = []
    while (line := incoming.readline()) not in (b"\r\n", b""):
        lines.append(line)
    return b"".join(lines) if line else b""


def generate(generator, recorder, load, events=200):
    command = [str(generator), "--port", str(recorder.port), *load.words(50), "--events", str(events)]
    return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_one_event_a_connection_means_a_new_connection_for_each(generator, version):
    with Recorder(closes=True) as server:
        reading = generate(generator, server, LOADS[f"closes-{version}"])
    assert reading["ok"] == reading["sent"] == len(server.connections) >= 200
    assert reading["broken_connections"] == reading["unanswered"] == 0
    for ((head, body),) in server.connections:
        assert head.startswith(f"POST /collect HTTP/{version}\r\n".encode())
        assert b"\r\nConnection: close\r\n" in head
        assert len(body) == 350


def test_a_connection_that_ends_without_an_answer_is_an_error(generator):
    with Recorder(closes=True, answers=False) as server:
        reading = generate(generator, server, LOADS["closes-1.0"])
    assert reading["ok"] == 0
    assert reading["broken_connections"] == reading["sent"] >= 200


@pytest.mark.parametrize("connections", [1, 4, 8])
def test_so_many_connections_are_kept_and_wait_for_each_answer(generator, connections):
    with Recorder() as server:
        reading = generate(generator, server, LOADS[f"waits-{connections}"])
    assert len(server.connections) == connections
    assert reading["ok"] == reading["sent"] == len(server.requests) >= 200


def test_every_request_differs_from_the_last_thousand(generator):
    with Recorder() as server:
        generate(generator, server, Load("one after the other", connections=1), events=1000)
    (requests,) = server.connections
    bodies = [body for _, body in requests]
    cookies, addresses = (
        [re.search(name + rb": (.*?)\r\n", head)[1] for head, _ in requests]
        for name in (rb"Cookie", rb"X-Forwarded-For")
    )
    assert [len(set(seen)) for seen in (bodies, cookies, addresses)] == [1000, 1000, 1000]


def test_a_fresh_address_is_never_seen_again(generator):
    fresh = Load("fresh", connections=1, variant="fresh-ip")
    with Recorder() as server:
        generate(generator, server, fresh, events=2500)
    addresses = [re.search(rb"X-Forwarded-For: (.*?)\r\n", head)[1] for head, _ in server.requests]
    assert len(set(addresses)) == len(addresses) == 2500


def test_the_floor_closes_where_the_load_does():
    assert {name: load.floor for name, load in LOADS.items() if load.floor != "plain"} == {
        "closes-1.0": "closing",
        "closes-1.1": "closing",
        "split": "split",
        "pipelined": "pipelined",
    }
    assert PLAIN.at(2000.0).words(1)[:4] == ["--connections", "32", "--rate", "2000.0"]


def subject(cpu, *, ratio=1.0, p50=500.0):
    """A subject's figures under one load, of three rounds."""
    return {"cpu_us": cpu, "cpu_us_all": [cpu] * 3, "ratio": ratio, "ratio_all": [ratio] * 3, "p50_us": p50}


def a_run():
    """The results of a run that met every budget; no two figures of a section are alike."""
    held = {"rate": 14_384, "p99": 97_000}
    half = {"rate": 31_934, "p99": 22_000}
    few, many = {"step_us": 200.0, "files": 1000}, {"step_us": 220.0, "files": 100_000}
    fronts = {
        "waits-1": (0.51, 1.91),
        "waits-4": (0.54, 1.94),
        "waits-4-beside": (0.56, 1.96),
        "waits-8": (0.58, 1.98),
        "closes-1.0": (0.70, 1.40),
        "closes-1.1": (0.71, 1.41),
    }
    return {
        "plan": "standard",
        "noise": {"foreign_cpu_median": 0.01},
        "variants": {},
        "batches": {"lines-100": {"ratio": 0.2, "cpu_us": 2.1}},
        "workers": {"journal-2": {"rate_ratio": 1.9, "rate": 20_000}},
        "cpu_per_event": {
            "saturation": {
                "floor": subject(7.0),
                "memory": subject(10.0, ratio=1.5),
                "journal": subject(10.5, ratio=1.6),
                "starlette": subject(50.0, ratio=6.0),
            },
            "2,000/s": {"floor": subject(30.0), "journal": subject(28.0, ratio=0.93, p50=1100.0)},
            "10,000/s": {"floor": subject(25.0), "journal": subject(19.0, ratio=0.76, p50=900.0)},
        },
        "fronts": {
            name: {"subjects": {"journal": {"rate": 1e4, "rate_ratio": rate, "cpu_us": 9.0, "ratio": cpu}}}
            for name, (rate, cpu) in fronts.items()
        },
        "held": {
            "0.25": {"floor": {"held": {"rate": 28_768}}, "journal": {"held": held}},
            "0.5": {"floor": {"held": {"rate": 52_000}}, "journal": {"held": half}},
        },
        "memory": {
            "journal": {"idle": 32 << 20, "full": 48 << 20},
            "journal-s3": {"idle": 68 << 20, "full": 88 << 20},
        },
        "start_up": {"journal": {"whole core": 0.2}, "journal-s3": {"whole core": 0.3}},
        "recovery": {1000: few, 100_000: many | {"after_99_percent_drained": few | {"step_us": 230.0}}},
        "lake": [an_hour(30, duckdb=1.0, spark=10.0), an_hour(240, duckdb=7.2, spark=32.0)],
    }


def an_hour(objects, **cpu_seconds):
    rows = objects * 5000
    return {"objects": objects} | {name: {"cpu_seconds": cpu, "rows": rows} for name, cpu in cpu_seconds.items()}


def test_each_budget_finds_its_own_figure_in_a_whole_run():
    rows = budgets.rows(a_run())
    assert [row["what"] for row in rows] == [budget.what for budget in budgets.BUDGETS]
    assert all(row["met"] for row in rows)
    assert {row["what"]: round(row["value"], 3) for row in rows} == {
        "CPU per event, x floor": 1.6,
        "CPU per event, x Starlette": 0.21,
        "held at 0.25 vCPU, x floor": 0.5,
        "its p99, ms": 97.0,
        "1 connection that waits, events/s x floor": 0.51,
        "4 connections that wait, events/s x floor": 0.54,
        "4 beside 20 with 100/s, events/s x floor": 0.56,
        "8 connections that wait, events/s x floor": 0.58,
        "one event a connection, HTTP/1.0, events/s x floor": 0.7,
        "one event a connection, HTTP/1.0, CPU x floor": 1.4,
        "one event a connection, HTTP/1.1, events/s x floor": 0.71,
        "one event a connection, HTTP/1.1, CPU x floor": 1.41,
        "2,000/s offered, CPU x floor": 0.93,
        "2,000/s offered, p50 ms": 1.1,
        "10,000/s offered, CPU x floor": 0.76,
        "10,000/s offered, p50 ms": 0.9,
        "a batch of 100, NDJSON, CPU x one event": 0.2,
        "2 workers with 0.5 vCPU, events/s x 1 with 0.25": 1.9,
        "journal, x memory": 1.05,
        "RSS idle, MiB": 32,
        "RSS at full load, MiB": 48,
        "RSS idle, S3, MiB": 68,
        "RSS at full load, S3, MiB": 88,
        "start to first 200, a whole core, s": 0.2,
        "start to first 200, S3, a whole core, s": 0.3,
        "recovery step, x 1,000 files": 1.1,
        "recovery step after 99 % drained, x 1,000 files": 1.15,
        "an hour to Parquet, DuckDB, CPU an event x a small hour": 0.9,
        "an hour to Parquet, Spark, CPU an event x a small hour": 0.4,
    }


@pytest.mark.parametrize("section", sorted(publish.SECTIONS - {"variants"}))
def test_what_was_not_measured_has_no_row_and_no_other_is_left_out(section):
    whole = {row["what"] for row in budgets.rows(a_run())}
    without = {row["what"] for row in budgets.rows({name: one for name, one in a_run().items() if name != section})}
    alone = {row["what"] for row in budgets.rows({section: a_run()[section]})}
    assert alone
    assert without | alone == whole
    assert not without & alone


def test_a_rate_that_was_not_held_is_missed():
    run = a_run()
    run["held"]["0.25"]["journal"]["held"] = None
    missed = {row["what"] for row in budgets.rows(run) if not row["met"]}
    assert missed == {"held at 0.25 vCPU, x floor", "its p99, ms"}


def test_a_limit_is_met_at_its_very_figure():
    most = budgets.Budget("at most", 2.0, lambda _: None)
    least = budgets.Budget("at least", 2.0, lambda _: None, at_least=True)
    assert [most.row(budgets.Figure(value))["met"] for value in (1.9, 2.0, 2.1)] == [True, True, False]
    assert [least.row(budgets.Figure(value))["met"] for value in (1.9, 2.0, 2.1)] == [False, True, True]


def test_a_ratio_of_two_trees_is_formed_within_each_pair():
    ratio = pair.Ratio.of([2.0, 30.0, 4.0, 50.0, 6.0], [1.0, 15.0, 2.0, 20.0, 3.0])
    assert ratio == pair.Ratio(2.0, 2.0, 2.0)


def test_each_instruction_is_counted_once_and_for_the_library_that_executed_it():
    lines = """
events: Ir
ob=(1) /usr/bin/python3.11
fn=(1) one
16 100
+3 20
cob=(2) /lib/orjson.cpython-311-x86_64-linux-gnu.so
cfn=(2) dumps
calls=7 0
* 4000
-2 3
ob=(2)
fn=(2)
0 4000
ob=(1)
fn=(3) two
0x1f 7
totals: 4130
""".splitlines()
    assert instructions.by_library(lines) == {"python3.11": 130, "orjson": 4000}


@pytest.mark.parametrize("closing", [False, True])
def test_this_checkout_can_be_driven_without_sockets(tmp_path, closing):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAW_"))}
    environment |= {
        "PYTHONPATH": str(REPOSITORY),
        "STORE_DIR": str(tmp_path / "objects"),
        "DLQ_DIR": str(tmp_path / "dlq"),
        "HTTP_ADDR": "127.0.0.1:0",
        "FLUSH_INTERVAL": "1h",
    }
    command = [sys.executable, str(LOADTEST / "turns.py"), "--events", "5000", *(["--closing"] if closing else [])]
    finished = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    reading = json.loads(finished.stdout.splitlines()[0])
    assert reading["events"] == 5000
    assert reading["cpu_us"] > 0
    assert len(list((tmp_path / "objects").rglob("*.jsonl.gz"))) == 2


def run_here(words, folder):
    """Run a script of loadtest on this checkout."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, LOADTEST, LOADTEST / "micro")))},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_step_of_recovery_can_be_measured_in_this_checkout(tmp_path):
    finished = run_here([LOADTEST / "recovery.py", 200, tmp_path, "--rounds", 1], tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["step_us"] > 0


@pytest.mark.parametrize("name", sorted(path.stem for path in (LOADTEST / "micro").glob("bench_*.py")))
def test_the_micro_benchmarks_name_what_this_checkout_has(name, tmp_path):
    finished = run_here(["-c", f"import {name}"], tmp_path)
    assert finished.returncode == 0, finished.stderr


def test_the_turns_of_the_micro_benchmark_take_every_event(tmp_path):
    turns = (
        "import bench_tick as b; turns = b.Turns(b.Layouts); turns.run(b.WHOLE); turns.run(b.APART); print(turns.lines)"
    )
    finished = run_here(["-c", turns], tmp_path)
    assert finished.stdout == "4000\n", finished.stderr


def test_the_scenarios_watch_metrics_that_there_are():
    watched = re.search(r"(?s)^WATCHED = \{(.*?)^\}", (LOADTEST / "scenario.py").read_text(), re.MULTILINE)[1]
    names = re.findall(r"""[:] ["'](\w+)""", watched)
    assert names
    documented = (REPOSITORY / "docs" / "ops.md").read_text()
    assert [name for name in names if not re.search(rf"`{name}[`{{]", documented)] == []


def test_the_outage_draws_metrics_that_there_are():
    names = set(re.findall(r"\bestat_\w+", (LOADTEST / "outage.py").read_text())) - {"estat_"}
    assert len(names) == 3
    assert names <= {metric.name for metric in METRICS}


def test_a_peer_whose_runtime_is_not_there_is_left_out_with_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found, left_out = compiled.peers(tmp_path / "built")
    assert not {"go", "node", "bun"} & {peer.name for peer in found}
    for title in ("Go net/http", "Node http", "Bun"):
        (line,) = (line for line in left_out if line.startswith(title))
        assert re.fullmatch(rf"{title} is left out: no \w+ here \(Debian: apt-get install [\w-]+\)", line)


def test_a_build_that_fails_leaves_the_peer_out_and_says_what_it_said(tmp_path, monkeypatch):
    broken = tmp_path / "go"
    broken.write_text("#!/bin/sh\necho something; echo 'no space left' >&2; exit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    _, left_out = compiled.peers(tmp_path / "built")
    (line,) = (line for line in left_out if line.startswith("Go"))
    assert line == f"Go net/http is left out: {broken}: no space left"


@pytest.fixture
def docs(tmp_path):
    """The pages that quote figures, to be written on."""
    for name in {"docs/benchmarks.md", *(name for name, _ in publish.SENTENCES)}:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    return tmp_path


def test_a_run_reaches_every_page_that_quotes_it_and_nothing_else_changes(docs):
    pages = sorted(path for path in docs.rglob("*.md"))
    before = {page: page.read_text() for page in pages}
    run = a_run()
    run["held"]["0.25"]["journal"]["held"] = {"rate": 99_123, "p99": 41_000}
    run["held"]["0.5"]["journal"]["held"] = {"rate": 199_456, "p99": 1}
    publish.publish("### Budgets\n\n| all met |", publish.quoted(run), docs)
    for name, sentence in publish.SENTENCES:
        assert publish.pattern(sentence).search((docs / name).read_text()).groupdict().items() <= {
            ("held_quarter", "99,123"),
            ("p99_quarter", "41"),
            ("held_half", "199,456"),
        }
    assert "| all met |" in (docs / "docs" / "benchmarks.md").read_text()
    for page in pages:
        if page.name != "benchmarks.md":
            was, now = before[page].splitlines(), page.read_text().splitlines()
            assert 1 <= sum(a != b for a, b in zip(was, now, strict=True)) <= 2
    once = {page: page.read_text() for page in pages}
    publish.publish("### Budgets\n\n| all met |", publish.quoted(run), docs)
    assert {page: page.read_text() for page in pages} == once


def test_the_figures_that_other_pages_quote_are_those_of_the_run_in_the_docs():
    tables = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    quoted = {}
    for name, share in publish.SHARES.items():
        rows = re.search(rf"### Highest rate held, {share} vCPU\n\n((?:\|.*\n)+)", tables)[1].splitlines()
        ours = next(row for row in rows if row.startswith("| journal "))
        heads, ours = ([cell.strip() for cell in row.split("|")] for row in (rows[0], ours))
        row = dict(zip(heads, ours, strict=True))
        quoted |= {f"held_{name}": row["events/s"], f"p99_{name}": f"{float(row['p99 ms']):.0f}"}
    for name, sentence in publish.SENTENCES:
        found = publish.pattern(sentence).search((REPOSITORY / name).read_text())
        assert found.groupdict().items() <= quoted.items()


def test_a_run_of_hours_to_parquet_reaches_its_page_and_no_other(tmp_path):
    run = {name: a_run()[name] for name in ("plan", "noise", "lake")}
    publish.refuse_unfit(run)
    assert publish.is_of_lake(run)
    assert not publish.is_of_lake(a_run())
    (tmp_path / "docs").mkdir()
    page = Path(shutil.copy(REPOSITORY / "docs/compact.md", tmp_path / "docs"))
    for what in ("once", "again"):
        publish.publish_lake(f"### Budgets\n\n| {what} |", tmp_path)
        assert page.read_text().count("### Budgets") == 1
        assert f"| {what} |" in page.read_text()
    run["noise"] = {"foreign_cpu_median": 0.4}
    with pytest.raises(publish.NotPublishedError, match="not quiet"):
        publish.refuse_unfit(run)


def test_a_page_that_lost_its_sentence_gets_no_part_of_a_run(docs):
    readme = docs / "README.md"
    readme.write_text(readme.read_text().replace("for 30 s, p99", "p99"))
    before = {page: page.read_text() for page in docs.rglob("*.md")}
    with pytest.raises(publish.NotPublishedError, match="no such sentence"):
        publish.publish("", publish.quoted(a_run()), docs)
    assert {page: page.read_text() for page in docs.rglob("*.md")} == before


def unfit_runs():
    quick = a_run() | {"plan": "quick"}
    busy = a_run() | {"noise": {"foreign_cpu_median": 0.3}}
    broken = a_run()
    broken["held"]["0.5"]["journal"] = {"held": None}
    part = a_run()
    del part["fronts"]
    return [(quick, "quick"), (busy, "not quiet"), (broken, "no rate"), (part, "without fronts")]


@pytest.mark.parametrize(("run", "reason"), unfit_runs())
def test_a_run_that_nobody_should_quote_is_refused(run, reason):
    with pytest.raises(publish.NotPublishedError, match=reason):
        publish.refuse_unfit(run)


def test_a_whole_and_quiet_run_is_fit_to_be_quoted():
    publish.refuse_unfit(a_run())
