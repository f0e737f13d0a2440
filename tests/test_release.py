"""A release is whole: the source has what the history has, the wheel all of the program, and both one version."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import trove_classifiers

import ingest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with what `make dist` makes."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


def tracked():
    """What the history has, and what is about to be in it; outside of one, as from the source of a release, a skip."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    told = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    if told.returncode:
        pytest.skip(f"there is no history here: {told.stderr.strip()}")
    return {name for name in told.stdout.splitlines() if (REPOSITORY / name).exists()}


def test_the_source_has_every_file_of_the_history_and_no_other(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        files = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert files == tracked() | {"PKG-INFO"}


def test_the_wheel_has_the_program_and_nothing_else(built):
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert files == {name for name in tracked() if name.startswith("ingest/")}


def test_there_is_one_version_and_the_words_of_the_index_are_known(built):
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        metadata = message_from_bytes(archive.read(name))
    assert metadata["Version"] == ingest.__version__
    assert set(metadata.get_all("Classifier")) <= trove_classifiers.classifiers
    for page in ("deploy/ecs/task-definition.json", "deploy/kubernetes/estat-ingest.yaml", "docs/deploy.md"):
        text = (REPOSITORY / page).read_text()
        tags = re.findall(r"(?:/estat-ingest:|make push TAG=)([\d.]+\d)", text)
        assert set(tags) == {ingest.__version__}, page
