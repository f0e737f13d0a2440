"""A step up and a step back: 0.1.0 and this version take turns on one disk, killed and drained, with S3 and without.

The code of 0.1.0 is taken out of the history; where there is none (an archive, a shallow clone), that is said. What
every checkout can hold is in `test_files_of_0_1_0`.
"""

from __future__ import annotations

import subprocess
import time
from itertools import cycle, islice

import pytest

from tests.faults.proxy import HEALTHY
from tests.process.client import Load, Sent
from tests.process.collector import REPOSITORY, SERVE
from tests.process.hasty_server import HASTY
from tests.process.ledger import audit, read_bucket
from tests.process.s3 import s3_client, s3_environment

RELEASED = "fc68be66d2ab37cf68167c24a83797ab104164ad"
STEPS = 12
SMALL = {"BATCH_SIZE": "50", "FLUSH_INTERVAL": "100ms", "S3_TIMEOUT": "1s", "S3_APP_RETRIES": "1"}


@pytest.fixture(scope="module")
def old_version(tmp_path_factory):
    """A folder with the package as it was released."""
    folder = tmp_path_factory.mktemp("0.1.0")
    told = subprocess.run(["git", "archive", RELEASED, "ingest"], cwd=REPOSITORY, capture_output=True, check=False)
    if told.returncode:
        pytest.skip(f"the history has no 0.1.0 here: {told.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", folder], input=told.stdout, check=True)
    return folder


@pytest.mark.proof
@pytest.mark.timeout(900)
@pytest.mark.parametrize("last", ["new", "old"])
def test_a_rolling_upgrade_and_a_roll_back_lose_and_double_nothing(
    collectors, old_version, s3_server, proxy, bucket, rng, figure, last
):
    """The successor serves before its predecessor ends. Each version meets both, killed and drained, S3 away or not."""
    sent = Sent()
    env = {**SMALL, **s3_environment(proxy.url, bucket)}

    def start(version):
        code = {"PYTHONPATH": str(old_version)} if version == "old" else {}
        how = SERVE if version == "old" else HASTY
        return collectors({**env, **code}, command=how, name=version, measured=False).start()

    def is_away(step):
        return step // 2 % 2 == 1

    current = start("old")
    kills = drains = 0
    # Killed or drained, with S3 or without: so that each meets each, the four take turns at different paces.
    for step, version in enumerate(islice(cycle(["new", "new", "old", "old"]), STEPS)):
        proxy.fault = HEALTHY
        proxy.refuse() if is_away(step) else proxy.listen()
        load = Load(sent, current.port, rate=2000, connections=4, pipeline=4).start()
        time.sleep(rng.uniform(0.3, 1.0))
        successor = start(version)
        if step % 3:
            current.kill()
            kills += 1
        else:
            current.stop(40)
            drains += 1
        load.stop(grace=0)
        current = successor
    proxy.listen()
    current.kill()
    final = start(last)
    deadline = time.monotonic() + 240
    while final.left_on_disk():
        assert final.alive, final.tail()
        assert time.monotonic() < deadline, f"{final.left_on_disk()}: {final.tail()}"
        time.sleep(0.2)
    final.stop(40)
    assert final.left_on_disk() == []
    found = audit(sent, read_bucket(s3_client(s3_server), bucket)).assert_kept()
    assert found.acknowledged > 100 * STEPS
    figure(f"0.1.0 and this version, {kills + 1} kills, {drains} drains, {last} at the end", found)
