"""Hosts that come, drain and die cost no event: one retry cures every refusal, nothing is lost, nothing is doubled."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from ingest.config.forms import parse_duration
from tests.process.collector import REPOSITORY, bare_environment
from tests.process.fronts import program
from tests.process.lan import apart, refuse_unfit_machines

CONFIG = REPOSITORY / "deploy/haproxy/haproxy.cfg"
TEXT = CONFIG.read_text()


def test_haproxy_takes_the_configuration():
    done = subprocess.run([program("haproxy"), "-c", "-f", CONFIG], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def test_haproxy_has_left_a_collector_that_drains_before_it_stops_listening():
    (every, falls) = re.findall(r"inter (\S+) fall (\d+)", TEXT)[0]
    (patience,) = re.findall(r"timeout check (\S+)", TEXT)
    (delay,) = re.findall(r"DRAIN_DELAY=(\w+)", TEXT)
    assert int(falls) * parse_duration(every) + parse_duration(patience) < parse_duration(delay)
    assert "on-marked-down" not in TEXT, "it would cut off requests that a draining collector answers"


@pytest.mark.proof
@pytest.mark.timeout(400)
def test_one_killed_one_drained_one_added_under_load(tmp_path, figure):
    refuse_unfit_machines()
    program("haproxy")
    done = subprocess.run(
        apart("tests.process.three_nodes", str(tmp_path)),
        cwd=REPOSITORY, env=bare_environment({}, measured=False), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    figure("three nodes behind haproxy", seen)
    assert seen["exits"] == {"drained": 0, "killed": -9, "a": 0, "c": 0}
    assert seen["unaccounted"] == {"a": 0, "c": 0}
    assert seen["acknowledged"] == seen["sent"]
    wrong = ("lost", "doubled", "failed_twice", "refused_and_stored")
    assert {name: seen[name] for name in wrong} == dict.fromkeys(wrong, 0)
    assert seen["cured_by_a_retry"] > 0, "the kill met no request"
    assert seen["longest_wait"] < 12, "somebody waits for a host that is gone"
    assert seen["sent_twice_and_stored_twice"] <= seen["answers_lost"]
