"""The disk of the dead letters hangs for longer than anybody waits, and answers later (C6)."""

from __future__ import annotations

from tests.process.client import Sent, send
from tests.process.faulty_server import ARMED, Fault, faulty
from tests.process.ledger import audit, read_bucket
from tests.process.s3 import s3_client, s3_environment


def test_c6_a_batch_saved_late_and_saved_again_is_stored_once_after_a_kill(collectors, s3_server, proxy, bucket):
    sent = Sent()
    # Without segments nothing but the dead letters can hold a batch, so that it is saved again.
    env = {"DURABILITY": "memory", "S3_TIMEOUT": "1s", "S3_APP_RETRIES": "1", "BATCH_SIZE": "50"}
    env |= s3_environment(proxy.url, bucket)
    hangs = Fault(("rename",), "hang", room="dlq", armed=True)
    collector = collectors(env, command=faulty(hangs), measured=False)
    (collector.folder / ARMED).touch()
    proxy.refuse()
    collector.start()
    send(sent, collector.port, 200)
    collector.wait_said("hangs")
    collector.wait_said("dlq_save_failed", timeout=60)
    assert collector.get("/health") == b"ok\n"
    (collector.folder / ARMED).unlink()
    collector.wait_said("dlq_save_late")
    collector.wait_until(lambda m: m.value("estat_events_pending", place="dlq") == 200, what="not all is saved again")
    collector.kill()
    proxy.listen()
    last = collectors(env, name="last").start()
    last.wait_delivered(60)
    last.stop(20)
    assert sent.refused == 0, sent.statuses
    assert audit(sent, read_bucket(s3_client(s3_server), bucket)).assert_kept().stored == 200
    assert last.left_on_disk() == []
