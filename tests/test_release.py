"""A release is whole: the source has what the history has, the wheel all of the program, and both one version."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import trove_classifiers
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

import ingest

REPOSITORY = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with what `make dist` makes."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "SOURCE_DATE_EPOCH": "1795612800"}
    for step in (command, [sys.executable, "-W", "error", "deploy/sbom.py", str(folder)]):
        done = subprocess.run(step, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=120)
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


@pytest.fixture(scope="module")
def bill(built):
    """The bill of materials as it is written."""
    (path,) = built.glob("*.cdx.json")
    assert path.name == f"estat_ingest-{ingest.__version__}.cdx.json"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(path.read_text()) is None
    return json.loads(path.read_text())


def test_the_bill_of_materials_lists_exactly_what_is_locked(bill):
    lock = re.findall(r"(?m)^([a-z0-9-]+)==([^ ]+)(.*(?:\n .*)*)", (REPOSITORY / "requirements.lock").read_text())
    listed = {
        (part["name"], part["version"]): {
            found["content"] for place in part["externalReferences"] for found in place["hashes"]
        }
        for part in bill["components"]
    }
    assert listed == {(name, version): set(re.findall(r"sha256:(\w{64})", rest)) for name, version, rest in lock}
    assert len(bill["components"]) == len(lock) > 20
    for name, version, rest in lock:
        (part,) = [part for part in bill["components"] if part["name"] == name]
        assert part["purl"] == f"pkg:pypi/{name}@{version}"
        assert part["scope"] == ("optional" if " ; " in rest.splitlines()[0] else "required")


def test_each_part_of_the_bill_that_is_always_there_states_its_licenses(bill):
    unlicensed = {part["name"] for part in bill["components"] if not part.get("licenses")}
    assert unlicensed <= {part["name"] for part in bill["components"] if part["scope"] == "optional"}
    stated = [row["license"] for part in bill["components"] for row in part.get("licenses", ()) if "license" in row]
    assert sum("id" in each for each in stated) >= len(stated) - 1, "BSD License is no name that SPDX knows"


def test_the_bill_says_what_the_program_asks_for_itself_and_who_asks_for_the_rest(bill):
    ours = bill["metadata"]["component"]
    assert (ours["name"], ours["version"]) == ("estat-ingest", ingest.__version__)
    asked = {entry["ref"]: set(entry.get("dependsOn", ())) for entry in bill["dependencies"]}
    known = {part["bom-ref"] for part in bill["components"]}
    assert {re.split("[/@]", ref)[1] for ref in asked[ours["bom-ref"]]} == {
        re.split("[<>=]", text)[0] for text in PROJECT["dependencies"]
    }
    required = {part["bom-ref"] for part in bill["components"] if part["scope"] == "required"}
    assert required <= set().union(*asked.values()) <= known
    assert bill["metadata"]["timestamp"].startswith("2026-11-25T")
