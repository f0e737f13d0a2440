"""The documentation says what the code does: the tables of variables and metrics are equal, in both directions."""

import re
from pathlib import Path

import pytest

from ingest.metrics import METRICS
from ingest.variables import GROUPS, VARIABLES

REPOSITORY = Path(__file__).parent.parent


def section(file, name=None):
    """The text of a file, or what stands between the markers of `name` in it."""
    text = (REPOSITORY / file).read_text()
    if name is None:
        return text
    (between,) = re.findall(rf"(?s)<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", text)
    return between


def rows(text, first_column):
    """The cells of each row of each table that begins with this column, heads and rules left out."""
    tables = re.findall(rf"(?m)^\| {first_column} \|.*\n\| --- .*\n((?:\|.*\n)*)", text)
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for table in tables for line in table.splitlines()]


def default(variable):
    """As it stands in a table: code, but where it only describes what holds when the variable is unset."""
    described = variable.optional and "/" not in variable.default
    return variable.default if described else f"`{variable.default}`"


def test_the_readme_lists_every_variable_with_its_default_and_meaning():
    expected = [[f"`{variable.name}`", default(variable), variable.meaning] for variable in VARIABLES]
    assert rows(section("README.md", "env"), "Variable") == expected


@pytest.mark.parametrize("group", GROUPS)
def test_the_configuration_page_has_each_group_with_what_each_variable_accepts(group):
    (text,) = re.findall(rf"(?ms)^## {group}\n(.*?)(?=^## |\Z)", section("docs/configuration.md"))
    expected = [
        [f"`{variable.name}`", default(variable), variable.accepted, variable.meaning] for variable in GROUPS[group]
    ]
    assert rows(text, "Variable") == expected


def test_the_configuration_page_has_no_other_variables():
    assert len(rows(section("docs/configuration.md"), "Variable")) == len(VARIABLES)


def test_the_operations_page_lists_every_metric_and_says_what_to_do():
    listed = rows(section("docs/ops.md", "metrics"), "Metric")
    expected = {
        (f"`{metric.name}{{{metric.label}}}`" if metric.label else f"`{metric.name}`", metric.kind, metric.meaning)
        for metric in METRICS
    }
    assert {(name, kind, meaning) for name, kind, meaning, _ in listed} == expected
    assert len(listed) == len(METRICS)
    assert all(advice for *_, advice in listed)


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric.name == "dlq_events_dropped_total"])
def test_the_operations_page_explains_every_way_to_lose_an_event(metric):
    (advice,) = [row[3] for row in rows(section("docs/ops.md", "metrics"), "Metric") if metric.name in row[0]]
    assert all(f"`{value}`" in advice for value, _ in metric.series)


WORDS = {variable.name for variable in VARIABLES} | {metric.name for metric in METRICS}
NOT_OURS = {"AWS_ENDPOINT_URL"}


@pytest.mark.parametrize("page", ["README.md", "docs/configuration.md", "docs/ops.md"])
def test_no_page_names_a_variable_or_a_metric_that_does_not_exist(page):
    text = section(page)
    variables = set(re.findall(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)(?:=[^`]*)?`", text))
    metrics = set(
        re.findall(
            r"\b((?:http|s3|dlq|events|batch|journal|upload|backlog|process)_[a-z_]+_(?:total|current|bytes|seconds))\b",
            text,
        )
    )
    storage_classes = {
        word
        for variable in VARIABLES
        if variable.name == "S3_STORAGE_CLASS"
        for word in re.findall(r"\w+", variable.accepted)
    }
    assert variables - WORDS - NOT_OURS - storage_classes == set()
    assert metrics - WORDS == set()
