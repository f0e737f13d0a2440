"""Fixtures of the tests of stores."""

from __future__ import annotations

import pytest

from ingest.store.sdk import Models

_MODELS = Models()


@pytest.fixture(autouse=True)
def shared_models(monkeypatch):
    """Have each store follow the first one, as a later session does: the SDK's models take 0.1 s and 11 MiB to read."""
    monkeypatch.setattr("ingest.store.sdk.Models", lambda: _MODELS)
