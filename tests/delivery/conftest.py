from __future__ import annotations

import pytest

from ingest.delivery import aside, backoff, recovery


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(recovery, "IDLE_PAUSE", 0.05)
    monkeypatch.setattr(recovery, "LONGEST_IDLE_PAUSE", 0.2)
    monkeypatch.setattr(recovery, "LONGEST_AWAY_PAUSE", 0.1)
    monkeypatch.setattr(recovery, "LONGEST_REFUSED_PAUSE", 0.02)
    monkeypatch.setattr(backoff, "KEEP_PAUSE", 0.05)
    monkeypatch.setattr(aside, "FIRST_AWAY", 0.05)
    monkeypatch.setattr(aside, "LONGEST_AWAY", 0.2)
