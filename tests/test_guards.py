"""The table of guards is about this code: every text is there once, every test exists. `make guards` does the rest."""

from __future__ import annotations

import re

import pytest

from tests.remove_guards import GUARDS, REPOSITORY


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_a_guard_and_its_tests_are_there(guard):
    source = (REPOSITORY / guard.file).read_text()
    for text, replacement in guard.edits:
        assert source.count(text) == 1, f"{guard.file} has it {source.count(text)} times: {text}"
        assert replacement != text
    assert guard.tests
    for test in guard.tests:
        file, name = test.split("::")
        assert re.search(rf"^def {name}\(", (REPOSITORY / file).read_text(), re.MULTILINE), f"there is no {test}"


@pytest.mark.parametrize(
    "named", re.findall(r"\b(test_\w+\.py)(?:::(test_\w+))?", (REPOSITORY / "docs/durability.md").read_text())
)
def test_a_test_that_the_durability_page_names_is_there(named):
    file, name = named
    texts = [found.read_text() for found in (REPOSITORY / "tests").rglob(file)]
    assert texts
    assert not name or any(re.search(rf"^def {name}", text, re.MULTILINE) for text in texts), f"no {name} in {file}"


def test_no_guard_is_listed_twice():
    assert len({guard.name for guard in GUARDS}) == len({guard.edits for guard in GUARDS}) == len(GUARDS)
