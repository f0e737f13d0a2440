"""The script for browsers in a page that is made up: nothing that was tracked is lost by what others answer."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ingest.event.script import script_page

SIMULATE = Path(__file__).parents[1] / "browser" / "simulate.mjs"
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="no node to run it")

FOUR = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def came(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of each case, by its name."""
    path = tmp_path_factory.mktemp("script") / "estat.js"
    path.write_bytes(script_page("/estat.js", "/collect").body)
    done = subprocess.run([str(NODE), SIMULATE, path], check=True, capture_output=True, timeout=60)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "answer",
    ["400 in words", "413 in words", "400 as a page", "403 as JSON", "404 in words", "502", "not there"],
)
def test_a_refusal_of_somebody_else_loses_nothing_and_is_not_asked_for_without_end(came, answer):
    case = came[f"others: {answer}"]
    assert case["kept"] == 4
    assert case["soon"] <= 3, "halved, and then it backs off"
    assert case["meanwhile"] <= 12
    assert case["left"] == []
    assert case["taken"] == FOUR


@pytest.mark.parametrize(
    ("case", "left", "taken"),
    [
        ("bad alone", ["bad"], []),
        ("bad first", [], ["a", "b", "c"]),
        ("bad twice", [], ["a", "b", "c"]),
        ("bad last", ["bad"], ["a", "b", "c"]),
    ],
)
def test_an_event_is_dropped_only_when_others_are_taken_after_it_was_refused(came, case, left, taken):
    assert came[case] == {"left": left, "taken": taken}


def test_an_event_that_was_refused_holds_no_other_back(came):
    case = came["bad alone, and another later"]
    assert case == {"before": ["bad"], "left": [], "last": [["a"], ["bad"]]}


@pytest.mark.parametrize("told", ["a request has failed", "an answer was cut off"])
def test_a_page_that_is_left_sends_nothing_again_that_is_under_way(came, told):
    assert came[f"left: {told}"] == {"requests": 1, "sent": [["a", "b"], ["a", "b"]], "left": []}


@pytest.mark.parametrize("clock", ["set back a day", "set back forty days", "set forward a day"])
def test_a_clock_that_is_set_keeps_nothing_waiting_and_has_nothing_asked_without_end(came, clock):
    case = came[f"clock: {clock}"]
    assert case["meanwhile"] <= 30
    assert (case["left"], case["last"]) == ([], [["a"], ["bad"]])


@pytest.mark.parametrize(
    ("lock", "early", "warned"),
    [
        ("given", ["a", "b"], 0),
        ("a frozen tab has it", [], 1),
        ("a frozen tab had it", [], 1),
        ("refused", ["a", "b"], 1),
        ("throws", ["a", "b"], 1),
    ],
)
def test_a_lock_that_does_not_come_holds_events_back_once_and_is_told_once(came, lock, early, warned):
    assert came[f"lock: {lock}"] == {"early": early, "sent": [["a", "b"], ["c"]], "left": [], "warned": warned}


@pytest.mark.parametrize(
    ("case", "target"),
    [
        ("its own address", "https://c.example/collect/batch"),
        ("behind a prefix", "https://c.example/c/collect/batch"),
        ("a copy by another name", "https://cdn.example/collect/batch"),
        ("within the page", "https://shop.example/collect/batch"),
        ("within the page, told where", "https://c.example/collect/batch"),
        ("with a key", "https://c.example/collect/batch?k=K%261"),
        ("told where, with a query and a key", "https://c.example/collect/batch?src=shop&k=K"),
        ("told where on its own site", "https://shop.example/orders/batch?k=K"),
    ],
)
def test_it_sends_where_its_tag_says_wherever_it_stands(came, case, target):
    assert came[f"at: {case}"] == target


def test_a_tag_without_sense_is_told_and_throws_nothing_into_the_page(came):
    assert came["at: told nonsense"] == {"threw": None, "warned": 1}


def test_the_collectors_own_verdict_needs_no_second_request(came):
    assert came["the collector's own verdict"] == {"left": [], "requests": 1}
