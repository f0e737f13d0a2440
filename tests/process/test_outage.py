"""S3 goes away and comes back. Nobody who sends events notices, and what was sent is there afterwards, once."""

from __future__ import annotations

import time

import pytest

from tests.faults.proxy import FORBIDDEN, HEALTHY, INTERNAL_ERROR, SLOW_DOWN, Fault
from tests.process.client import Load, Sent, send
from tests.process.ledger import audit, read_bucket
from tests.process.s3 import s3_client, s3_environment

MIB = 1024 * 1024
OUTAGES = {
    "refuses": None,
    "blackhole": Fault(blackhole=True),
    "slow_down": SLOW_DOWN,
    "forbidden": FORBIDDEN,
    "internal_error": INTERNAL_ERROR,
    "resets_the_request": Fault(reset_request_after=3000, method="PUT"),
    "resets_the_answer": Fault(reset_answer_after=20, method="PUT"),
    "crawls": Fault(bandwidth=2000, method="PUT"),
}
SHORT = {"refuses", "blackhole", "internal_error", "resets_the_answer"}


def test_what_came_while_s3_was_stopped_is_there_once_when_it_starts(collectors, s3_process, figure):
    events = 20_000
    sent = Sent()
    env = s3_environment(s3_process.url, "late", BATCH_SIZE="1000", FLUSH_INTERVAL="1s", S3_TIMEOUT="1s")
    collector = collectors(env).start()
    send(sent, collector.port, events, rate=8000, pipeline=4)
    assert sent.acknowledged == events, sent.statuses
    down = collector.wait_until(
        lambda m: m.value("estat_events_pending", place="dlq") == events, 30, "not all in the DLQ"
    )
    assert down.value("estat_events_accepted_total") == events
    assert down.value("estat_events_stored_total") == 0
    assert down.value("estat_put_errors_total") > 0
    assert down.value("estat_spool_events_saved_total") == events
    assert down.value("estat_spool_files", place="dlq") >= events / 1000
    assert down.value("estat_spool_bytes") > 0
    assert down.value("estat_breaker_state", state="closed") == 0 == down.value("estat_store_up")
    assert collector.said("breaker_changed")[0]["state"] == "open"
    (away,) = collector.wait_said("store_away")
    assert away["error"]
    s3_process.start("late")
    up = collector.wait_delivered(60)
    (back,) = collector.wait_said("store_back")
    assert 0 < back["waiting"] <= events
    (recovered,) = collector.wait_said("recovered")
    assert (recovered["events"], recovered["files"]) == (events, up.value("estat_spool_files_stored_total"))
    assert up.value("estat_events_stored_total") == events
    assert up.value("estat_spool_events_stored_total") == events
    assert up.value("estat_spool_files", place="dlq") == up.value("estat_spool_bytes") == 0
    assert up.value("estat_breaker_state", state="closed") == 1 == up.value("estat_store_up")
    found = audit(sent, read_bucket(s3_process.client(), "late")).assert_kept()
    assert found.stored == events
    assert read_bucket(s3_process.client(), "late", "raw_dlq") == []
    collector.stop(10)
    assert collector.left_on_disk() == []
    figure("S3 stopped, then started", found)


@pytest.mark.parametrize(
    "outage", [pytest.param(name, marks=() if name in SHORT else pytest.mark.proof) for name in OUTAGES]
)
def test_an_outage_refuses_nobody_and_loses_nothing(collectors, s3_server, proxy, bucket, figure, outage):
    sent = Sent()
    env = s3_environment(proxy.url, bucket, BATCH_SIZE="500", FLUSH_INTERVAL="500ms", S3_TIMEOUT="500ms")
    collector = collectors(env).start()
    load = Load(sent, collector.port, rate=2000, connections=6).start()
    time.sleep(0.6)
    break_s3(proxy, OUTAGES[outage])
    time.sleep(2.0)
    collector.wait_until(lambda m: m.value("estat_put_errors_total") > 0, 10, "no put failed")
    collector.wait_until(lambda m: m.value("estat_spool_events_saved_total") > 0, 20, "nothing was saved")
    proxy.fault = HEALTHY
    proxy.listen()
    time.sleep(0.3)
    load.stop()
    assert sent.refused == 0, sent.statuses
    assert sent.acknowledged == len(sent)
    collector.wait_delivered(60)
    found = audit(sent, read_bucket(s3_client(s3_server), bucket)).assert_kept()
    assert found.stored == len(sent)
    collector.stop(10)
    assert collector.left_on_disk() == []
    figure(f"S3 {outage}", found)


def test_what_is_stored_but_answered_too_late_is_not_stored_twice(collectors, s3_server, proxy, bucket, figure):
    sent = Sent()
    env = s3_environment(proxy.url, bucket, BATCH_SIZE="500", FLUSH_INTERVAL="500ms", S3_TIMEOUT="300ms")
    collector = collectors(env).start()
    proxy.fault = Fault(answer_delay=0.6, method="PUT")
    send(sent, collector.port, 6000, rate=3000)
    collector.wait_until(lambda m: m.value("estat_put_errors_total") >= 3, 20, "no put was too late")
    late = [e for e in proxy.puts("/raw/") if e.status == 200]
    assert late, "nothing was stored late"
    proxy.fault = HEALTHY
    collector.wait_delivered(60)
    assert sent.refused == 0
    found = audit(sent, read_bucket(s3_client(s3_server), bucket)).assert_kept()
    assert found.stored == 6000
    collector.stop(10)
    figure(f"stored but late, {len(late)} puts", found)


def test_a_create_that_is_answered_too_late_is_not_stored_twice_either(collectors, s3_server, proxy, bucket):
    """The same for what is read back from disk: its second try meets its first (412)."""
    sent = Sent()
    env = s3_environment(proxy.url, bucket, BATCH_SIZE="500", FLUSH_INTERVAL="200ms", S3_TIMEOUT="300ms")
    collector = collectors(env).start()
    proxy.refuse()
    send(sent, collector.port, 2000, rate=4000)
    collector.wait_until(lambda m: m.value("estat_events_pending", place="dlq") == 2000, 20, "not all in the DLQ")
    proxy.fault = Fault(answer_delay=0.6, method="PUT")
    proxy.listen()
    collector.wait_until(lambda _: any(e.status == 200 for e in proxy.puts("/raw/")), 30, "no create came through")
    proxy.fault = HEALTHY
    collector.wait_delivered(60)
    assert any(e.status == 412 for e in proxy.puts("/raw/")), "the second try never met the first"
    assert audit(sent, read_bucket(s3_client(s3_server), bucket)).assert_kept().stored == 2000
    collector.stop(10)


def break_s3(proxy, fault):
    if fault is None:
        proxy.refuse()
    else:
        proxy.fault = fault


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["blackhole", "stored_but_late"])
def test_a_minute_without_s3_at_five_thousand_events_a_second(collectors, s3_server, proxy, bucket, figure, how):
    """At defaults: no refusal, no loss, bounded memory, and in sync again when it is back."""
    sent = Sent()
    collector = collectors(s3_environment(proxy.url, bucket)).start()
    load = Load(sent, collector.port, rate=5000, connections=32).start()
    time.sleep(5)
    proxy.fault = Fault(blackhole=True) if how == "blackhole" else Fault(answer_delay=4.0, method="PUT")
    time.sleep(60)
    proxy.fault = HEALTHY
    time.sleep(5)
    load.stop()
    assert sent.refused == 0, sent.statuses
    assert len(sent) > 300_000, f"the client did not keep its rate: {len(sent)}"
    peak = collector.rss_bytes(peak=True)
    collector.terminate()
    assert collector.wait(26) == 0
    last = collectors(s3_environment(proxy.url, bucket), name="last").start()
    last.wait_delivered(120)
    last.stop(10)
    found = audit(sent, read_bucket(s3_client(s3_server), bucket)).assert_kept()
    figure(f"60 s of {how}, RSS at most {peak / MIB:.0f} MiB", found)
    assert peak <= 128 * MIB
