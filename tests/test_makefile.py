"""The commands of the Makefile heal what is broken, and choose what they say they choose."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import ingest
from tests import quick

REPOSITORY = Path(__file__).parent.parent
STAMPS = (".venv/.runtime", ".venv/.installed")


@pytest.fixture
def checkout(tmp_path):
    """The Makefile and the lock files, with a virtual environment that is whole as far as make can see."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "requirements-dev.lock"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    environment(tmp_path, python="exit 0")
    return tmp_path


def environment(checkout, *, python, made_in=None):
    folder = checkout / ".venv/bin"
    folder.mkdir(parents=True, exist_ok=True)
    program(folder / "python", f"#!/bin/sh\n{python}\n")
    program(folder / "pip", f"#!{made_in or checkout}/.venv/bin/python\n")
    for stamp in STAMPS:
        (checkout / stamp).touch()


def program(path, text):
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def steps(checkout, target):
    """What make would do."""
    env = {"PATH": os.environ["PATH"], "HOME": str(checkout)}
    done = subprocess.run(
        ["make", "-n", target], cwd=checkout, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_sound_environment_is_left_alone(checkout):
    assert "pip" not in steps(checkout, "run-local")
    assert all((checkout / stamp).exists() for stamp in STAMPS)


@pytest.mark.parametrize("target", ["run-local", "install", "try", "quick", "lint"])
def test_f9_an_environment_without_its_python_is_made_anew_by_the_command_that_needs_it(checkout, target):
    (checkout / ".venv/bin/python").unlink()
    (checkout / ".venv/bin/python").symlink_to(checkout / "gone/python3.11")
    done = steps(checkout, target)
    assert "venv --clear .venv" in done
    assert "install -qq" in done


def test_an_environment_of_another_python_or_another_folder_is_made_anew(checkout):
    environment(checkout, python="echo ModuleNotFoundError; exit 1")
    assert "venv --clear .venv" in steps(checkout, "run-local")
    environment(checkout, python="exit 0", made_in="/srv/elsewhere")
    assert "venv --clear .venv" in steps(checkout, "run-local")


def test_f9_the_command_that_the_pages_name_is_there_after_run_local(checkout):
    """The recipe's own lines, run with a Python that shows what it was given."""
    (checkout / ".venv/.runtime").unlink()
    lines = [line for line in steps(checkout, "run-local").splitlines() if "bin/estat-ingest" in line]
    assert len(lines) == 2
    program(checkout / ".venv/bin/python", '#!/bin/sh\necho "$PYTHONPATH $*"\n')
    subprocess.run(["bash", "-euc", "\n".join(lines)], cwd=checkout, check=True, timeout=60)
    env = {"PATH": os.environ["PATH"]}
    command = [checkout / ".venv/bin/estat-ingest", "dlq", "ls"]
    done = subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"{checkout} -m ingest dlq ls\n"


@pytest.mark.parametrize(
    ("changed", "chosen"),
    [
        ("README.md", {"tests/test_docs.py"}),
        ("tests/test_makefile.py", {"tests/test_makefile.py"}),
        ("ingest/store/directory.py", {"tests/store/test_directory.py"}),
    ],
)
def test_quick_chooses_the_nearest_tests(changed, chosen):
    assert quick.nearest_tests([changed]) == (sorted(chosen), [])


def test_quick_names_what_takes_long_and_does_not_start_it():
    assert quick.nearest_tests(["tests/process/test_kill.py"]) == ([], ["tests/process/test_kill.py"])


def test_quick_takes_the_tests_that_import_a_module_without_tests_of_its_name():
    tests, _ = quick.nearest_tests(["ingest/store/__init__.py"])
    assert "tests/store/test_conformance.py" in tests


def test_the_image_of_a_tagged_release_has_the_tag_that_is_its_version(checkout):
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.com"]
    for words in (["init", "-q"], ["add", "Makefile"], ["commit", "-qm", "a"], ["tag", "-am", "b", ingest.__version__]):
        subprocess.run(["git", *who, *words], cwd=checkout, check=True, timeout=60)
    assert f"--tag estat-ingest:{ingest.__version__} --tag estat-ingest:latest" in steps(checkout, "push")
