"""What the pages show as commands is run by `make pages-check`, or its page says why not."""

from __future__ import annotations

import pytest

from tests.check_pages import STATES, WrongPageError, all_blocks, blocks

FOUND = all_blocks()


@pytest.mark.parametrize("block", FOUND, ids=lambda block: block.where)
def test_each_command_is_run_or_a_comment_has_the_reason(block):
    steps = dict(map(reversed, block.steps()))
    assert len(steps) == len(set(block.commands())) > 0
    assert all(steps.values())
    assert set(block.states) <= STATES.keys()


def test_what_a_reader_tries_first_is_run():
    run = {block.page for block in FOUND for step, _ in block.steps() if step in {"run", "serves"}}
    assert run >= {"README.md", "README.ko.md", "CONTRIBUTING.md"}
    assert run >= {f"docs/{page}.md" for page in ("deploy", "dlq", "http-api", "ops", "reading", "sdks")}


def read(text):
    (found,) = blocks("page.md", text)
    return list(found.steps())


def test_lines_that_go_on_are_one_command():
    text = "```sh\na |\n  b\nc \\\n  d\npython - <<'END'\nx\n\nEND\ne\n```\n"
    assert [command for _, command in read(text)] == ["a |\n  b", "c \\\n  d", "python - <<'END'\nx\n\nEND", "e"]


def test_of_a_console_what_stands_behind_the_prompt_is_run():
    assert read("```console\n$ a b\nanswer\n```\n") == [("run", "a b")]


def test_comments_name_lines_of_their_block():
    text = "<!-- serves: a -->\n<!-- not run: b: it is big -->\n```sh\na 1\nb 2\nc\n```\n"
    assert read(text) == [("serves", "a 1"), ("it is big", "b 2"), ("run", "c")]
    assert read("<!-- not run: all: because -->\n```sh\na\nb\n```\n") == [("because", "a"), ("because", "b")]


@pytest.mark.parametrize(
    "text",
    [
        "<!-- not run: d: it is big -->\n```sh\na\n```\n",
        "<!-- not run: without a reason -->\n```sh\na\n```\n",
        "<!-- serves: b -->\n```sh\na\n```\n",
        "```\n$ a\n```\n",
    ],
)
def test_a_comment_that_says_nothing_of_its_block_and_a_prompt_that_nobody_reads_are_errors(text):
    with pytest.raises(WrongPageError):
        read(text)
