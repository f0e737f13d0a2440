"""The imports go one way, and every module says what it owns and has its place in docs/architecture.md."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "ingest"
MODULES = sorted(PACKAGE.rglob("*.py"))


def dotted(path):
    """As docs/architecture.md names it: `wire.tick`; a room by its folder."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def lint_imports(*arguments):
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert command, "import-linter is not installed beside this Python"
    return subprocess.run(
        [command, "--no-logo", "--no-cache", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def test_imports_go_down_only():
    outcome = lint_imports()
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_an_import_that_goes_up_is_found(tmp_path):
    """The contract above must be able to fail."""
    config = (REPOSITORY / "pyproject.toml").read_text()
    layer = '  "telemetry",\n'
    assert layer in config
    turned = tmp_path / "pyproject.toml"
    turned.write_text(config.replace(layer, "").replace('  "__main__",\n', layer + '  "__main__",\n'))
    outcome = lint_imports("--config", str(turned))
    assert outcome.returncode == 1
    assert "ingest.server is not allowed to import ingest.telemetry" in re.sub(r"\s+", " ", outcome.stdout)


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_module_says_what_it_is_for(path):
    doc = ast.get_docstring(ast.parse(path.read_text()))
    assert doc
    assert doc.splitlines()[0].endswith((".", ":"))


def test_the_architecture_page_lists_every_module():
    text = (REPOSITORY / "docs/architecture.md").read_text()
    (table,) = re.findall(r"(?m)^\| Module \|.*\n\| --- .*\n((?:\|.*\n)+)", text)
    listed = re.findall(r"(?m)^\| `([a-z_0-9.]+)` \|", table)
    assert sorted(listed) == sorted(
        dotted(path) for path in MODULES if path.parent != PACKAGE or path.stem != "__init__"
    )


def test_the_architecture_page_lists_modules_from_the_top_layer_down():
    """Whoever reads the table downwards meets importers before what they import."""
    config = (REPOSITORY / "pyproject.toml").read_text()
    layers = re.findall(r"(?ms)^layers = \[\n(.*?)^\]", config)[0]
    rank = {
        module: number for number, layer in enumerate(re.findall(r'"(.*)"', layers)) for module in layer.split(" | ")
    }
    text = (REPOSITORY / "docs/architecture.md").read_text()
    ranks = [rank[name] for name in re.findall(r"(?m)^\| `([a-z_0-9]+)(?:\.[a-z_0-9]+)?` \|", text) if name in rank]
    assert ranks == sorted(ranks)
