"""A directory store, the settings that name it, and `compact` as an operator calls it."""

from __future__ import annotations

import json

import pytest

from ingest.__main__ import main
from ingest.config.variables import VARIABLES
from tests.lake.hour import AFTER, HOUR


@pytest.fixture
def store_dir(tmp_path, monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    folder = tmp_path / "objects"
    folder.mkdir()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("STORE_DIR", str(folder))
    monkeypatch.setenv("MANIFESTS", "false")  # the clock decides, but where a test sets it
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("ingest.telemetry.log.configure", lambda _: None)
    monkeypatch.setattr("ingest.commands.compact.time.time", lambda: AFTER)
    return folder


@pytest.fixture
def compact(store_dir, capsys):  # noqa: ARG001 - the environment names it
    """`compact("--force")` returns the exit code and the document."""

    def run(*words, hour=HOUR):
        code = main(["compact", "--hour", hour, "--json", *words])
        captured = capsys.readouterr()
        document = json.loads(captured.out) if captured.out.strip() else {}
        document["told"] = captured.err
        return code, document

    return run
