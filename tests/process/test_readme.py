"""The commands of the README, run as they stand there, show what the README says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent.parent / "README.md").read_text()


def block_with(word):
    """The shell lines that contain a word."""
    (found,) = [block for block in re.findall(r"(?ms)^```sh\n(.*?)^```", README) if word in block]
    return found


def bash(script, folder):
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_two_requests_are_answered_as_told_and_the_query_finds_both(collectors):
    collector = collectors({}).start()
    answers = bash(block_with("curl").replace("127.0.0.1:8080", f"127.0.0.1:{collector.port}"), collector.folder)
    assert answers.count(" 200 OK") == 2
    assert "content-type: image/gif" in answers.lower()
    collector.stop(10)
    query = block_with("duckdb")
    assert ".venv/bin/python " in query
    shown = bash(query.replace(".venv/bin/python", sys.executable), collector.folder)
    assert "signup" in shown
    assert "event=view&page=%2Fpricing" in shown


def test_figures_are_those_of_the_benchmarks_page():
    page = (Path(__file__).parent.parent.parent / "docs/benchmarks.md").read_text()
    figures = re.findall(r"\d+,\d{3}", README)
    assert [figure for figure in figures if figure not in page and figure != "1,000"] == []
