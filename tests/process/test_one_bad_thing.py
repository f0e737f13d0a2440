"""One bad thing stops itself only, in a real process: a denied prefix, no conditional puts, an open breaker."""

from __future__ import annotations

import time

from tests.faults.proxy import FORBIDDEN, HEALTHY, Fault
from tests.process.client import Sent, send
from tests.process.ledger import audit, read_bucket
from tests.process.s3 import s3_client, s3_environment
from tests.store.scripted_server import refused

BATCHES = {"S3_TIMEOUT": "2s", "BATCH_SIZE": "10", "FLUSH_INTERVAL": "200ms"}


def in_dlq(events):
    return lambda m: m.value("estat_events_pending", place="dlq") == events


def stored(events):
    return lambda m: m.value("estat_events_stored_total") == events


def dead_letters(collector, proxy, sent, events):
    """Have so many events wait in the DLQ, and the breaker open."""
    proxy.refuse()
    send(sent, collector.port, events)
    collector.wait_until(in_dlq(events), what="not all in the DLQ")


def test_a4_live_batches_do_not_notice_dead_letters_under_a_prefix_that_is_denied(
    collectors, s3_server, proxy, bucket, figure
):
    sent, more = Sent(), {**BATCHES, "RAW_PREFIX": "raw/old"}
    first = collectors(s3_environment(proxy.url, bucket, **more), name="first").start()
    dead_letters(first, proxy, sent, 150)
    first.kill()
    proxy.fault = Fault(answer=(403, "AccessDenied"), head=b"/old/")
    proxy.listen()
    collector = collectors(s3_environment(proxy.url, bucket, **BATCHES, RAW_PREFIX="raw/new"), name="second").start()
    live = 0
    seen = collector.metrics()
    # Each of the 15 files is tried once before it is known to be refused; live traffic goes on all the while.
    while seen.value("estat_refused_files") < 15:
        send(sent, collector.port, 100)
        live += 100
        assert live < 20_000, collector.tail()
        seen = collector.wait_until(stored(live), what="not all live ones are stored")
        time.sleep(0.2)
    assert seen.value("estat_events_pending", place="dlq") == 150
    assert collector.said("breaker_changed") == []
    assert collector.said("batch_spooled") == []
    proxy.fault = HEALTHY
    took = collector.stop(30)
    assert collector.left_on_disk() == [], "the drain tries each once more"
    found = audit(sent, read_bucket(s3_client(s3_server), bucket)).assert_kept()
    assert found.stored == live + 150
    figure("15 dead letters under a denied prefix", f"{found}; the drain took {took:.1f} s")


def test_a5_a_store_without_conditional_puts_takes_dead_letters_and_batches_alike(
    collectors, s3_server, proxy, bucket, figure
):
    sent = Sent()
    collector = collectors(s3_environment(proxy.url, bucket, **BATCHES)).start()
    dead_letters(collector, proxy, sent, 30)
    proxy.fault = Fault(page=refused(501, "NotImplemented"), head=b"f-None-Match")
    proxy.listen()
    send(sent, collector.port, 230)
    collector.wait_delivered(60)
    (line,) = collector.said("conditional_puts_not_honoured")
    assert "S3_CONDITIONAL_PUTS" in line["hint"]
    found = audit(sent, read_bucket(s3_client(s3_server), bucket)).assert_kept()
    assert found.stored == 260
    collector.stop(10)
    figure("501 to If-None-Match", found)


def test_a7_a_drain_uses_its_time_when_the_store_is_back(collectors, s3_server, proxy, bucket):
    sent = Sent()
    collector = collectors(s3_environment(proxy.url, bucket, **BATCHES)).start()
    dead_letters(collector, proxy, sent, 200)
    collector.wait_until(lambda m: m.value("estat_breaker_state", state="open") == 1, what="the breaker is not open")
    proxy.listen()
    collector.stop(30)
    assert collector.left_on_disk() == []
    assert audit(sent, read_bucket(s3_client(s3_server), bucket)).assert_kept().stored == 200


def test_without_contrast_a_denied_role_is_an_outage_that_ends(collectors, s3_server, proxy, bucket):
    sent = Sent()
    collector = collectors(s3_environment(proxy.url, bucket, **BATCHES)).start()
    proxy.fault = FORBIDDEN
    send(sent, collector.port, 200)
    seen = collector.wait_until(in_dlq(200), what="not all in the DLQ")
    assert seen.value("estat_refused_files") == 0
    assert {line["verdict"] for line in collector.said("put_failed")} == {"away"}
    proxy.fault = HEALTHY
    collector.wait_delivered(60)
    assert audit(sent, read_bucket(s3_client(s3_server), bucket)).assert_kept().stored == 200
    collector.stop(10)
