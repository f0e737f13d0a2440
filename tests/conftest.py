"""Fixtures that more than one folder of tests needs, and the figures below the outcome."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import hypothesis
import pytest
import structlog

from ingest.intake import journal
from ingest.spool import backlog, spool
from tests.stand_ins.s3_server import bucket, s3_server

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["bucket", "s3_server"]

# Whoever began the tests with `nohup`, or in the background of a script, ignores these, and each process inherits it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# An example takes as long as the machine lets it. The examples are the same each time, so that a commit that passed
# passes again; `make properties` draws them anew, in one round after another.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.register_profile("anew", deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("same")


@pytest.fixture(autouse=True)
def _signals_held():
    """Lets go of signals that a test had held: each process begun later would inherit that, and hear none of them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.fixture(autouse=True)
def _log_as_it_comes():
    """Lets go of the log that a command has configured in a test: half of it, the writer, would meet the next one."""
    yield
    if structlog.is_configured():
        structlog.reset_defaults()


@pytest.fixture
def few_looks(monkeypatch):
    """Let the hours of a test in the model's time cost little: names are not looked at twice a second."""
    for watched in (journal, backlog, spool):
        monkeypatch.setattr(watched, "WATCH_SECONDS", 60.0)


@pytest.fixture
def figure(record_property) -> Callable[[str, object], None]:
    """`figure("journal, 200 kills", audit)` keeps a figure for the summary at the end."""

    def keep(name: str, value: object) -> None:
        record_property("figure", f"{name}: {value}")

    return keep


def pytest_terminal_summary(terminalreporter) -> None:
    """Prints what the tests measured, below their outcome."""
    reports = terminalreporter.stats.get("passed", [])
    lines = [value for report in reports for name, value in report.user_properties if name == "figure"]
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)
