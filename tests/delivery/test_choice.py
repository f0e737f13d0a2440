"""Which of two copies is put: a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.delivery.choice import Copy, Why, choose
from ingest.format.codec import Inspection
from ingest.spool.waiting import Contents, Letter
from tests.stand_ins.letters import key


def copy_of(kind, events, *, sound=True):
    path = Path(key(1) if kind == "letter" else key(1).removesuffix(".gz"))
    found = Inspection(sound, events, 0 if sound else 1, torn_tail=False, first_ts=0, last_ts=0, body=None)
    return Copy(Letter(key(1), path, 100, events, None), Contents(found, b"" if events else None))


S, L = "segment", "letter"


@pytest.mark.parametrize(
    ("copies", "best", "why"),
    [
        ([(S, 5, True)], 0, Why.ALONE),
        ([(L, 5, True)], 0, Why.ALONE),
        ([(L, 0, False)], 0, Why.ALONE),
        ([(S, 5, True), (L, 5, True)], 1, Why.VERIFIES),
        ([(L, 5, True), (S, 5, False)], 0, Why.VERIFIES),
        ([(S, 5, True), (L, 9, True)], 1, Why.LONGER),
        ([(S, 9, True), (L, 5, True)], 0, Why.LONGER),
        ([(L, 5, True), (S, 9, False)], 1, Why.LONGER),
        ([(S, 9, True), (L, 5, False)], 0, Why.LONGER),
        ([(L, 5, False), (S, 9, True)], 1, Why.LONGER),
        ([(L, 9, False), (S, 5, True)], 0, Why.LONGER),
        ([(S, 9, False), (L, 5, False)], 0, Why.LONGER),
        ([(S, 5, True), (L, 5, False)], 0, Why.LONGER),
        ([(L, 5, False), (S, 5, True)], 0, Why.LONGER),
        ([(S, 0, False), (L, 0, False)], 0, Why.LONGER),
    ],
)
def test_the_longer_copy_else_the_dead_letter_that_verifies_else_the_first(copies, best, why):
    made = [copy_of(kind, events, sound=sound) for kind, events, sound in copies]
    choice = choose(made)
    assert choice.best is made[best]
    assert choice.why is why
    assert set(map(id, choice.copies)) == set(map(id, made))
