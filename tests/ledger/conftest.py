"""What the tests of ledgers and manifests share."""

import pytest

from ingest.intake import journal


@pytest.fixture(autouse=True)
def few_looks(monkeypatch):
    """Let the hours of a test cost little: names are not looked at twice a second."""
    monkeypatch.setattr(journal, "WATCH_SECONDS", 60.0)
