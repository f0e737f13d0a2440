"""The documentation says what the code does: tables are equal in both directions, and every name and link is real."""

import ast
import importlib
import json
import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

import ingest
from ingest import server
from ingest.__main__ import _parser
from ingest.config.forms import parse_duration, parse_size
from ingest.config.settings import load
from ingest.config.variables import GROUPS, VARIABLES
from ingest.event import ROUTES, refusals
from ingest.event.access import IN_BODY
from ingest.event.sdks import SDKS, routes_of
from ingest.format import codec
from ingest.format.record import KEYS
from ingest.telemetry import DropReason, Metrics, SealReason
from ingest.telemetry.metrics import METRICS
from ingest.wire import states

REPOSITORY = Path(__file__).parent.parent
PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix() for path in (*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md"))
)
SOURCES = sorted((REPOSITORY / "ingest").rglob("*.py"))


def section(file, name=None):
    """The text of a file, or what stands between the markers of `name` in it."""
    text = (REPOSITORY / file).read_text()
    if name is None:
        return text
    (between,) = re.findall(rf"(?s)<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", text)
    return between


def rows(text, first_column):
    """The cells of each row of each table that begins with this column, heads and rules left out."""
    tables = re.findall(rf"(?m)^\| {first_column} +\|.*\n\| -+ .*\n((?:\|.*\n)*)", text)
    return [
        [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split(" | ")]
        for table in tables
        for line in table.splitlines()
    ]


def default(variable):
    """As it stands in a table: code, but where it only describes what holds when the variable is unset."""
    described = variable.optional and not {"/", "<"}.intersection(variable.default)
    return variable.default if described else f"`{variable.default}`"


def code(text):
    """What is set as code, in lines and in blocks."""
    blocks = re.findall(r"(?ms)^```[a-z]*\n(.*?)^```", text)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```", "", text))
    return blocks + spans


# ---------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/configuration.md"])
def test_only_the_configuration_page_has_a_table_of_variables(page):
    assert rows(section(page), "Variable") == []


@pytest.mark.parametrize("part", [r"(?ms)^```sh\n.*?^```", r"(?ms)^```json\n.*?^```", r"\]\(((?!README)[^)]+)\)"])
def test_the_korean_readme_shows_the_commands_and_links_of_the_english_one(part):
    english, korean = (re.findall(part, section(page)) for page in ("README.md", "README.ko.md"))
    assert english
    assert korean == english


@pytest.mark.parametrize("group", GROUPS)
def test_the_configuration_page_has_each_group_with_what_each_variable_accepts(group):
    (text,) = re.findall(rf"(?ms)^## {group}\n(.*?)(?=^## |\Z)", section("docs/configuration.md"))
    expected = [
        [f"`{variable.name}`", default(variable), variable.accepted, variable.meaning] for variable in GROUPS[group]
    ]
    assert rows(text, "Variable") == expected


def test_the_configuration_page_has_no_other_variables():
    assert len(rows(section("docs/configuration.md"), "Variable")) == len(VARIABLES)


@pytest.mark.parametrize("page", PAGES)
def test_a_setting_that_a_page_shows_can_be_set(page):
    shown = re.findall(r"`([A-Z][A-Z0-9_]+)=([^`…\s]+)", section(page))
    shown = {name: value for name, value in shown if name in {variable.name for variable in VARIABLES}}
    load({**shown, "DLQ_DIR": "/tmp/dlq"})


def test_the_tuning_table_does_its_sums_right():
    table = rows(section("docs/tuning.md"), "Peak events/s")
    assert table
    for peak, tasks, size, limit, interval, every, events in table:
        rate = int(peak.replace(",", "")) / int(tasks.split()[0])
        seconds = min(parse_duration(interval.strip("`")), int(size.strip("`")) / rate)
        assert every.startswith(f"{seconds:g} s")
        assert int(events.replace(",", "")) == seconds * rate
        assert seconds * rate * 500 <= parse_size(limit.strip("`")), "a line is said to have 500 bytes"


# ----------------------------------------------------------------------------------------------------- metrics


def test_the_operations_page_lists_every_metric_and_says_what_to_do():
    listed = rows(section("docs/ops.md", "metrics"), "Metric")
    expected = {
        (f"`{metric.name}{{{metric.label}}}`" if metric.label else f"`{metric.name}`", metric.kind, metric.meaning)
        for metric in METRICS
    }
    assert {(name, kind, meaning) for name, kind, meaning, _ in listed} == expected
    assert len(listed) == len(METRICS)
    assert all(advice for *_, advice in listed)


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric.name == "estat_events_dropped_total"])
def test_the_operations_page_explains_every_way_to_lose_an_event(metric):
    (advice,) = [row[3] for row in rows(section("docs/ops.md", "metrics"), "Metric") if metric.name in row[0]]
    assert all(f"`{reason.value}`" in advice for reason in DropReason)


def in_a_scrape():
    """Every name of a sample, and of each label the values there are."""
    names, values = set(), {}
    for metric in METRICS:
        read = metric.read(Metrics())
        if metric.kind == "histogram":
            names |= {f"{metric.name}_{part}" for part in ("bucket", "count", "sum")}
        else:
            names.add(metric.name)
        if metric.label:
            values[metric.name, metric.label] = set(read)
    return names, values


OF_A_TARGET = {"job", "instance"}
"""The labels that Prometheus adds to whatever it scrapes."""


def assert_in_a_scrape(text, names, values):
    for name, selector in re.findall(r"\b(estat_[a-z0-9_]+)(?:\{([^}]*)\})?", text):
        assert name in names, text
        for label, wanted in re.findall(r'(\w+)=~?"([^"]*)"', selector):
            assert label in OF_A_TARGET or set(wanted.split("|")) <= values[name, label], text
    for label in re.findall(r"\w+", " ".join(re.findall(r"\b(?:by|without) \(([^)]*)\)", text))):
        assert label in OF_A_TARGET | {"le"} | {label for _, label in values}, text


@pytest.mark.parametrize("page", PAGES)
def test_a_query_on_a_page_names_metrics_and_labels_that_a_scrape_has(page):
    names, values = in_a_scrape()
    families = {metric.name for metric in METRICS}
    for text in code(section(page)):
        assert_in_a_scrape(text, names | families, values)


def alerts():
    """The rules of deploy/prometheus/alerts.yaml."""
    groups = yaml.safe_load((REPOSITORY / "deploy/prometheus/alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_the_alerts_of_the_operations_page_are_those_of_prometheus():
    listed = rows(section("docs/ops.md"), "Alert")
    assert listed == [
        [
            f"`{rule['alert']}`",
            f"`{rule['expr']}`" + (f" for {rule['for']}" if "for" in rule else ""),
            rule["annotations"]["summary"],
            rule["annotations"]["action"],
        ]
        for rule in alerts()
    ]
    assert len({rule["alert"] for rule in alerts()}) == len(listed) > 10


def dashboard():
    """Each query of the dashboard, as Prometheus is sent it, by where it stands; of a list, its metric."""
    board = json.loads((REPOSITORY / "deploy/grafana/dashboard.json").read_text())
    shown = [
        (f"{panel['title']} {target['refId']}", target["expr"])
        for panel in board["panels"]
        for target in panel.get("targets", ())
    ]
    shown += [(annotation["name"], annotation["expr"]) for annotation in board["annotations"]["list"]]
    lists = [variable["query"]["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    shown += [(query, re.fullmatch(r"label_values\((.*), \w+\)", query)[1]) for query in lists]
    return {where: re.sub(r"\$__(rate_interval|range)\b", "5m", query) for where, query in shown}


def queries():
    """Every query that deploy/ has, by where it stands."""
    return {rule["alert"]: rule["expr"] for rule in alerts()} | dashboard()


@pytest.mark.parametrize(("where", "query"), queries().items(), ids=queries())
def test_a_query_of_deploy_names_metrics_and_labels_that_a_scrape_has(where, query):
    assert_in_a_scrape(query, *in_a_scrape())
    assert "estat_" in query or where in {"EstatGone", "EstatProcessGone"}


def test_the_dashboard_is_whole():
    """Grafana asks no other source than the one that is chosen, and draws nothing over anything else."""
    board = json.loads((REPOSITORY / "deploy/grafana/dashboard.json").read_text())
    taken = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + right, place["y"] + down) for right in range(place["w"]) for down in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(right for right, _ in cells) < 24, panel["title"]
        taken |= cells
        for asks in (panel, *panel.get("targets", ())):
            assert asks.get("datasource", {"uid": "${source}"})["uid"] == "${source}", panel["title"]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids) > 20


def test_each_alert_is_tested_firing_and_not_firing():
    tests = yaml.safe_load((REPOSITORY / "deploy/prometheus/alerts_test.yaml").read_text())["tests"]
    told = {
        test["name"]: {bool(asked["exp_samples"]) for asked in test["promql_expr_test"]}
        for test in tests
        if all(f'alertname="{test["name"]}"' in asked["expr"] for asked in test["promql_expr_test"])
    }
    assert told == {rule["alert"]: {False, True} for rule in alerts()}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_prometheus_understands_every_query_of_the_dashboard(tmp_path):
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(dashboard().values())]
    file = tmp_path / "queries.yaml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    check = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout + check.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize(
    "words", [("check", "rules", "alerts.yaml"), ("test", "rules", "alerts_test.yaml")], ids=" ".join
)
def test_prometheus_takes_the_alerts_and_fires_each_when_it_is_meant_to(words):
    outcome = subprocess.run(
        ["promtool", *words], cwd=REPOSITORY / "deploy/prometheus", capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_the_names_of_the_first_version_are_mapped_to_names_that_exist():
    names, values = in_a_scrape()
    listed = rows(section("docs/ops.md"), "Was")
    assert len(listed) > 40
    for _, cell in listed:
        for name, selector in re.findall(r"(estat_[a-z0-9_]+)(?:\{([^}]*)\})?", cell):
            assert name in names | {metric.name for metric in METRICS}
            for label, value in re.findall(r'(\w+)="([^"]*)"', selector):
                assert value in values[name, label]


def test_the_pipeline_page_explains_every_reason_to_seal():
    listed = [reason for reason, _ in rows(section("docs/pipeline.md"), "Reason")]
    assert listed == [f"`{reason.value}`" for reason in SealReason]


# -------------------------------------------------------------------------------------------- tables of the code


@pytest.mark.parametrize("text", [section("docs/architecture.md"), states.__doc__], ids=["page", "docstring"])
def test_the_table_of_connection_states_is_that_of_the_code(text):
    listed = rows(text, "[Ss]tate")
    assert listed == [
        [state.value, rule.entered, rule.deadline, rule.on_expiry] for state, rule in states.STATES.items()
    ]


@pytest.mark.parametrize(
    "text",
    [section("docs/architecture.md"), section("docs/shutdown.md"), server.__doc__],
    ids=["architecture", "shutdown", "docstring"],
)
def test_the_table_of_the_drain_is_that_of_the_code(text):
    listed = rows(text, "[Ss]tep")
    assert [(step, ends) for step, _, ends in listed] == [(row.step.value, row.ends) for row in server.DRAIN]
    assert listed == rows(server.__doc__, "step"), "what happens is told in the same words"


def test_the_page_on_sending_has_the_routes_of_the_code():
    listed = {
        path.strip("`"): {method.strip("`") for method in methods.split(", ")}
        for path, methods, _ in rows(section("docs/http-api.md"), "Path")
    }
    known = {route.path.decode(): set(route.methods.split(", ")) for route in ROUTES}
    assert listed == known


def spelled_out(pattern):
    """Every path that `/v1/{track,page}` stands for."""
    before, brace, rest = pattern.partition("{")
    words, _, after = rest.partition("}")
    return [before + word + after for word in words.split(",")] if brace else [pattern]


def test_the_page_on_sdks_has_the_rows_of_the_code():
    names = {}
    for name, paths, answers, headers in rows(section("docs/sdks.md"), "`SDK_ROUTES`"):
        sdk = SDKS[name.strip("`")]
        shown = re.findall(r"`(GET|POST) ([^`]*)`", paths)
        names[name.strip("`")] = [(method, path) for method, pattern in shown for path in spelled_out(pattern)]
        assert answers == f"200 `{sdk.post.answer.body.decode()}`" + (", the pixel" if sdk.get else "")
        assert headers == ", ".join(f"`{header}`" for header in sdk.headers)
    known = {
        name: sorted(("GET" if route.get else "POST", route.path.decode()) for route in routes_of(name))
        for name in SDKS
    }
    assert {name: sorted(found) for name, found in names.items()} == known


def test_the_page_on_sdks_tells_the_status_of_what_is_too_large():
    cells = rows(section("docs/sdks.md"), "SDK")
    for name, _, large, _ in cells:
        assert int(re.search(r"\d{3}", large)[0]) == SDKS[name.strip("`")].post.oversize.body.status
    assert len(cells) == len(SDKS)


def test_the_pipeline_page_shows_an_answer_to_every_route_and_method():
    listed = {
        tuple(shown.removesuffix("?…").split(" "))
        for requests, _ in rows(section("docs/pipeline.md"), "Request")
        for shown in re.findall(r"`([A-Z]+ /[^`]*)`", requests)
    }
    known = {(method, route.path.decode()) for route in ROUTES for method in route.methods.split(", ")}
    assert listed == known


def test_the_page_on_the_format_lists_every_key_of_a_line_in_its_order():
    listed = rows(section("docs/data-format.md"), "Key")
    assert listed == [[f"`{key.name}`", key.type, key.there, key.meaning] for key in KEYS]


def test_the_page_on_the_format_says_where_the_number_of_events_stands():
    told = r"its first (\d+)\nbytes tell: bytes (\d+) to (\d+), little endian"
    head, first, last = map(int, re.search(told, section("docs/data-format.md")).groups())
    body = codec.encode(b'{"body":""}\n' * 300, 300)
    assert codec.event_count(body[:head]) == int.from_bytes(body[first : last + 1], "little") == 300


def test_the_pipeline_page_lists_every_refusal():
    errors = {error for error in vars(refusals).values() if isinstance(error, refusals.ClientError)}
    known = {(str(error.status), error.reason, "closed" if error.close else "kept") for error in errors}
    no_method = refusals.method_not_allowed("…")
    known.add((str(no_method.status), no_method.reason, "closed" if no_method.close else "kept"))
    listed = rows(section("docs/pipeline.md"), "Status")
    assert {(status, reason, connection) for status, reason, _, connection in listed} == known
    assert len(listed) == len(known)


# ----------------------------------------------------------------------------------------------------- log events


@cache
def log_events():
    """Every event the code logs, with the levels it is logged at."""
    levels = {"debug", "info", "warning", "error", "critical"}
    found = {}
    for call in (node for path in SOURCES for node in ast.walk(ast.parse(path.read_text()))):
        if not (isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant)):
            continue
        match call.func:
            case ast.Attribute(value=ast.Name(id="log"), attr=level) if level in levels:
                told = {level}
            case ast.Attribute(attr="complain" | "_complain"):
                told = {"error"}
            case ast.Name(id="tell" | "write"):
                told = levels
            case _:
                continue
        found.setdefault(call.args[0].value, set()).update(told)
    return found


def test_the_operations_page_lists_every_log_event_at_its_level():
    known = log_events()
    listed = {event.strip("`"): level.split(", ") for event, level, *_ in rows(section("docs/ops.md"), "Event")}
    assert set(listed) == set(known)
    assert [event for event, levels in listed.items() if not set(levels) <= known[event]] == []


# ------------------------------------------------------------------------------------------------------ names


@cache
def python_names():
    """What the code calls things: modules, functions, classes, attributes, arguments."""
    names = set()
    for path in SOURCES:
        names.add(path.stem)
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    names.add(name)
                case ast.arg(arg=name) | ast.Name(id=name) | ast.Attribute(attr=name):
                    names.add(name)
                case ast.keyword(arg=name) if name:
                    names.add(name)
    return names


VARIABLE_NAMES = {variable.name for variable in VARIABLES}
METRIC_NAMES = {metric.name for metric in METRICS}
NOT_OURS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ACCOUNT_ID"} | {
    name for variable in VARIABLES for name in variable.fallbacks
}
SLIPS = {"BATCH_SZIE", "S3_BUCKET"}
RECORD = {key.name for key in KEYS}
DEFAULTS = {variable.default for variable in VARIABLES}


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_a_variable_that_does_not_exist(page):
    text = section(page)
    named = set(re.findall(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)(?:=[^`]*)?`", text))
    words = {word for variable in VARIABLES for word in re.findall(r"[A-Z_]+", variable.accepted)}
    tables = {"SCAN_LIMIT", "RLIMIT_NOFILE"} | {name for name in python_names() if name.isupper()}
    assert named - VARIABLE_NAMES - NOT_OURS - SLIPS - words - tables == set()


def present(page):
    """A page without its table of names that are gone."""
    return re.sub(r"(?s)<!-- old-names:begin -->.*?<!-- old-names:end -->", "", section(page))


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_a_metric_that_does_not_exist(page):
    named = re.findall(
        r"\b((?:http|s3|dlq|events|batch|journal|upload|backlog|process)_[a-z_]+_(?:total|current|bytes|seconds))\b",
        present(page),
    )
    assert set(named) - METRIC_NAMES == set()
    assert set(re.findall(r"\b(estat_[a-z0-9_]+)", present(page))) - METRIC_NAMES - in_a_scrape()[0] == set()


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_a_log_event_or_a_function_that_does_not_exist(page):
    words = set(re.findall(r"`([a-z0-9]+(?:_[a-z0-9]+)+)`", present(page)))
    labels = set().union(*in_a_scrape()[1].values())
    told = RECORD | DEFAULTS | set(IN_BODY)
    assert words - set(log_events()) - METRIC_NAMES - labels - told - python_names() == set()


def dotted_names():
    modules = {path.relative_to(REPOSITORY / "ingest").with_suffix("").as_posix().split("/")[0] for path in SOURCES}
    for page in PAGES:
        for name in re.findall(r"`([a-z_0-9]+(?:\.[A-Za-z_0-9]+)+)`", section(page)):
            if name.split(".")[0] in modules and not name.endswith((".py", ".md")):
                yield pytest.param(name, id=f"{page}-{name}")


@pytest.mark.parametrize("name", list(dotted_names()))
def test_a_name_that_a_page_points_to_is_in_the_code(name):
    found = ingest
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            found = importlib.import_module(f"{found.__name__}.{part}")


# ------------------------------------------------------------------------------------------- links and commands


def anchors(text):
    """Where a link into a page may point: its headings, as they are turned into anchors."""
    headings = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?ms)^```.*?^```", "", text))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_within_the_repository_leads_somewhere(page):
    text = re.sub(r"(?ms)^```.*?^```", "", section(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text()), target


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_that_a_page_names_exists(page):
    targets = set(re.findall(r"(?m)^([a-z][a-z-]*):", section("Makefile")))
    named = {
        target
        for text in code(section(page))
        for target in re.findall(r"(?m)^(?:\$ |[A-Z_]+=\S+ )*make +([a-z][a-z-]*)", text)
    }
    assert named - targets == set()


NEEDS = {"dlq": ["ls"], "compact": ["--hour", "dt=2026-11-23"]}
"""The options that a command must have, where a page names it alone."""


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_a_page_shows_is_understood(page):
    pattern = r"(?m)^(?:\$ )?(?:estat-ingest|(?:\S*/)?python3? -m ingest)((?: +[a-z./-][\w./-]*)*)"
    for words in (shlex.split(found) for text in code(section(page)) for found in re.findall(pattern, text)):
        _parser(words).parse_args(words + NEEDS.get(" ".join(words), []))


# --------------------------------------------------------------------------------------------------- deployment


def json_blocks(page):
    return [json.loads(block) for block in re.findall(r"(?ms)^```json\n(.*?)^```", section(page))]


def test_the_docker_line_of_the_dockerfile_runs_what_make_build_makes():
    (image,) = re.findall(r"(?m)^#     -e .* (\S+)$", section("Dockerfile"))
    steps = subprocess.run(
        ["make", "-n", "build"], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert f"--tag {image}:latest " in steps


def test_the_image_has_every_module_compiled_once_and_by_unchecked_hash():
    """compileall leaves a fresh `.pyc` alone, so that pip must make none, and nothing may be added behind it."""
    steps = re.findall(r"(?m)^(?:RUN|COPY) (?:.*\\\n)*.*", section("Dockerfile").partition("\nFROM gcr.io")[0])
    (install,) = [step for step in steps if "pip install" in step]
    assert "--no-compile" in install
    assert "compileall" in steps[-1]
    assert "--invalidation-mode unchecked-hash /app" in steps[-1]


def test_the_athena_table_has_the_keys_of_a_line_and_finds_the_hours_where_they_are():
    (table,) = re.findall(r"(?s)CREATE EXTERNAL TABLE.*?;\n", section("docs/reading.md"))
    (columns,) = re.findall(r"events \((.*?)\)", table)
    (line,) = json_blocks("docs/data-format.md")
    assert [column.split() for column in columns.split(", ")] == [
        [key, "bigint" if isinstance(value, int) else "string"] for key, value in line.items()
    ]
    assert "'org.apache.hive.hcatalog.data.JsonSerDe'" in table
    (location,) = re.findall(r"LOCATION '(.*)'", table)
    assert f"'{location}dt=${{dt}}/hr=${{hr}}/'" in table
    assert f"'projection.hr.digits' = '{len('07')}'" in table


# ------------------------------------------------------------------------------------------------------- prose

UNWANTED = re.compile(r"\W*(?:Of|What|Whoever|Were|Nor)\b")


def sentences(text):
    """Sentences of paragraphs and lists; of a table's cell all but the first, which may be a label. No headings."""
    text = re.sub(r"(?ms)^```.*?^```", "", text)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*] |\d+\. |\||#))", text):
        block = block.strip()
        if block.startswith("#"):
            continue
        in_table = block.startswith("|")
        for part in block.strip("|").split(" | ") if in_table else [block]:
            found = re.split(r"(?<=[.!?])[)*`\"]*\s+", " ".join(part.split()))
            yield from found[1:] if in_table else found


def test_sentences_are_told_apart():
    text = "# What it is\n\nOne. What two?\n- **Of** three\n\n| What | Is it. Nor this |\n\n```\nWhat\n```\n"
    assert [found for found in sentences(text) if UNWANTED.match(found)] == ["What two?", "- **Of** three", "Nor this"]


@pytest.mark.parametrize("page", PAGES)
def test_sentences_begin_with_their_subject(page):
    """The thing first: `Of a file that is not sound, the lines …` makes the reader hold what it is about in mind."""
    assert [found for found in sentences(section(page)) if UNWANTED.match(found)] == []


def docstrings(path):
    """Every text that stands by itself: of modules, classes and functions, and those below a field."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_sentences_of_docstrings_begin_with_their_subject(path):
    found = [sentence for text in docstrings(path) for sentence in sentences(text) if UNWANTED.match(sentence)]
    assert found == []


def test_the_changelog_begins_with_this_version():
    versions = re.findall(r"(?m)^## (\S+)", section("CHANGELOG.md"))
    if versions[0] == "Unreleased":
        versions.pop(0)
    assert versions[0] == ingest.__version__
