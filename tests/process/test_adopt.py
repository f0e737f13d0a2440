"""A host dies with events on its disk, and another one brings them home, through a kill of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

from tests.faults.proxy import Fault
from tests.process.client import Sent, send
from tests.process.collector import bare_environment
from tests.process.ledger import audit, read_bucket
from tests.process.s3 import s3_client, s3_environment

EVENTS = 4000
BATCH = 200


def test_the_volume_of_a_killed_collector_is_adopted_once_through_a_kill_of_the_one_who_adopts(
    collectors, s3_server, proxy, bucket, tmp_path, figure
):
    """Some of its batches are stored already, with the answer lost; some are dead letters, some only segments."""
    sent = Sent()
    env = s3_environment(
        proxy.url, bucket, BATCH_SIZE=str(BATCH), FLUSH_INTERVAL="60s", S3_TIMEOUT="500ms", DURABILITY="journal"
    )
    collector = collectors(env, measured=False).start()
    proxy.fault = Fault(reset_answer_after=20, method="PUT")
    send(sent, collector.port, EVENTS // 2, rate=8000)
    collector.wait_until(lambda _: any(put.status == 200 for put in proxy.puts("/raw/")), 30, "no put came through")
    proxy.refuse()
    send(sent, collector.port, EVENTS // 2 + BATCH // 2, rate=8000)
    collector.wait_until(
        lambda m: m.value("estat_events_pending", place="open") > 0 and m.value("estat_spool_files", place="dlq") > 5
    )

    def adopt(folder):
        return subprocess.Popen(
            [sys.executable, "-m", "ingest", "dlq", "adopt", str(folder), "--json"],
            env=bare_environment({**env, "DLQ_DIR": str(tmp_path / "ours")}, measured=False),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    living = adopt(collector.dlq_folder)
    assert "is held by a running process" in living.communicate(timeout=60)[1]
    assert living.returncode == 1
    collector.kill()
    dead = tmp_path / "mnt"
    shutil.move(collector.dlq_folder, dead)
    waiting = [path for path in dead.rglob("*.jsonl*") if path.is_file()]
    assert {path.suffix for path in waiting} == {".gz", ".jsonl"}
    before = len(read_bucket(s3_client(s3_server), bucket))
    assert before, "no put was stored with its answer lost"

    proxy.fault = Fault(answer_delay=0.05, method="PUT")
    proxy.listen()
    puts = len(proxy.puts("/raw/"))
    first = adopt(dead)
    try:
        while len(proxy.puts("/raw/")) < puts + 5:
            assert first.poll() is None, first.communicate()
    finally:
        first.kill()
        first.communicate()
    left = [path for path in dead.rglob("*.jsonl*") if path.is_file()]
    assert 0 < len(left) < len(waiting) + 1
    second = adopt(dead)
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    told = json.loads(out)
    assert told["files_stored"] == len(left)
    assert told["files_stored_before"] > 0
    assert [path for path in dead.rglob("*.jsonl*") if path.is_file()] == []
    found = audit(sent, read_bucket(s3_client(s3_server), bucket)).assert_kept()
    assert found.stored == found.acknowledged == sent.acknowledged
    figure(f"adopted {told['events_stored']} events, {told['files_stored_before']} files stored before", found)
