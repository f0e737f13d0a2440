"""The page of the stores has what `make stores` asks, of each server that it knows."""

from __future__ import annotations

import re

import pytest

from tests.stores.__main__ import FIRST, PAGE, SECOND
from tests.stores.probes import COLUMNS
from tests.stores.servers import SERVERS


@pytest.mark.parametrize(("table", "columns"), [("first", FIRST), ("second", SECOND)])
def test_each_server_has_a_line_and_each_question_a_column(table, columns):
    (text,) = re.findall(rf"(?s)<!-- stores-{table}:begin -->\n(.*?)<!-- stores-{table}:end -->", PAGE.read_text())
    head, _, *lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines()]
    assert all(title in head for _, title in columns)
    assert all(len(line) == len(head) for line in lines)
    assert len(lines) == len(SERVERS)
    assert all(line[0].startswith(server.name) for line, server in zip(lines, SERVERS, strict=True))


def test_every_question_is_in_one_of_the_tables():
    assert {name for name, _ in (*FIRST, *SECOND)} == set(COLUMNS)


def test_the_page_says_what_each_server_is_good_for():
    (text,) = re.findall(r"(?s)## What each is good for\n(.*)", PAGE.read_text())
    assert [server.name for server in SERVERS if f"**{server.name}**" not in text] == []
