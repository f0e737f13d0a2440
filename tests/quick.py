"""What `make quick` runs: ruff, mypy, and the tests nearest to what changed since `main`, or on it since HEAD.

Owns the choice of tests. The nearest tests of a module are those named after it (`ingest/store/s3.py`:
`tests/store/test_s3*.py` or `tests/test_s3*.py`), else those that import it; those of a page are `tests/test_docs.py`.
It never starts what takes long (`tests/process`, `tests/model`): those are named, and left to
`make test`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
LONG = ("tests/process", "tests/model")


def main() -> int:
    changed = changed_files()
    if not changed:
        say("nothing has changed")
        return 0
    python = [name for name in changed if name.endswith(".py")]
    tests, left_out = nearest_tests(changed)
    steps = [[sys.executable, "-m", "mypy"]]
    if python:
        ruff = str(Path(sys.executable).with_name("ruff"))
        steps = [[ruff, "check", *python], [ruff, "format", "--check", *python], *steps]
    if tests:
        chosen = ["-q", "-x", "-n", "2", "--dist", "worksteal", "-m", "not soak and not proof", *tests]
        steps.append([sys.executable, "-m", "pytest", *chosen])
    say(f"{len(changed)} files changed; tests: {' '.join(tests) or 'none'}")
    ended = next((code for step in steps if (code := subprocess.call(step, cwd=REPOSITORY))), 0)
    if left_out:
        say(f"left to `make test`: {' '.join(left_out)}")
    return ended


def changed_files() -> list[str]:
    """Paths that differ from where this branch left `main`, those that git does not know yet included."""
    base = git("merge-base", "HEAD", "main") or ["HEAD"]
    return sorted({*git("diff", "--name-only", "--diff-filter=d", *base), *git("ls-files", "-o", "--exclude-standard")})


def git(*words: str) -> list[str]:
    """The lines that git prints; none if it fails, as it does where there is no `main`."""
    return subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )[:-1]


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - this is what it is run for


def nearest_tests(changed: list[str]) -> tuple[list[str], list[str]]:
    """Tests to run, and those that would take long."""
    found: set[str] = set()
    for name in changed:
        path = Path(name)
        if path.parts[0] == "tests" and path.name.startswith("test_") and path.suffix == ".py":
            found.add(name)
        elif path.suffix == ".md" or name in ("Makefile", "Dockerfile"):
            found.add("tests/test_docs.py")
        elif path.parts[0] == "ingest" and path.suffix == ".py":
            found |= tests_of(path)
    long = {name for name in found if name.startswith(LONG)}
    return sorted(found - long), sorted(long)


def tests_of(module: Path) -> set[str]:
    """Tests named after a module; if there are none, those that import it."""
    every = {path.relative_to(REPOSITORY).as_posix(): path for path in (REPOSITORY / "tests").rglob("test_*.py")}
    stem = module.parent.name if module.stem == "__init__" else module.stem
    rooms = ("/".join(("tests", *module.parts[1:-1])), "tests")
    named = re.compile(rf"(?:{'|'.join(rooms)})/test_{stem}(?:_\w+)?\.py")
    if found := {name for name in every if named.fullmatch(name)}:
        return found
    dotted = ".".join(module.with_suffix("").parts).removesuffix(".__init__")
    package, _, last = dotted.rpartition(".")
    imports = re.compile(rf"(?m)^ *(?:from {dotted} import|import {dotted}\b|from {package} import .*\b{last}\b)")
    return {name for name, path in every.items() if imports.search(path.read_text())}


if __name__ == "__main__":
    sys.exit(main())
