"""The Dockerfile is one that `make image-check` can carry out, and what it sends is what Docker would."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.roots.dockerfile import BASES, Build, read

REPOSITORY = Path(__file__).parent.parent.parent
INSTRUCTIONS = list(read((REPOSITORY / "Dockerfile").read_text()))


def test_every_instruction_of_ours_is_known():
    assert {name for name, _ in INSTRUCTIONS if not hasattr(Build, f"do_{name.lower()}")} == set()
    assert {rest.split(" AS ")[0] for name, rest in INSTRUCTIONS if name == "FROM"} == set(BASES)


def test_comments_between_continued_lines_are_left_out_and_a_line_that_goes_on_is_one():
    text = "# a\nFROM x AS y\nRUN a \\\n# why\n && b\n\nENV A=1 \\\n    B=2\n"
    assert [(name, " ".join(rest.split())) for name, rest in read(text)] == [
        ("FROM", "x AS y"), ("RUN", "a && b"), ("ENV", "A=1 B=2")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "passes"),
    [
        ("requirements.lock", True),
        ("ingest/server.py", True),
        ("ingest/wire/__pycache__", False),
        ("ingest/wire/__pycache__/turn.pyc", False),
        ("README.md", False),
        ("tests/ingest/x.py", False),
    ],
)
def test_the_context_is_what_dockerignore_lets_pass(tmp_path, path, passes):
    assert Build(REPOSITORY, tmp_path, print).sent(REPOSITORY / path) is passes
