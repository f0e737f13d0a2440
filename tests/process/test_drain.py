"""SIGTERM under load: exit 0 in time, whatever S3 is doing, and nothing acknowledged is lost with the process."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest

from tests.faults.proxy import HEALTHY, Fault
from tests.process.client import Load, Sent, send
from tests.process.ledger import audit, read_bucket, read_directory
from tests.process.s3 import s3_client, s3_environment

DRAIN = 8.0
LIMIT = DRAIN + 1.0
CONDITIONS = ["healthy", "slow", "dead", "blackhole"]
SOAK_ROUNDS = 50


def fall_into(proxy, condition):
    match condition:
        case "slow":
            proxy.fault = Fault(latency=2.0)
        case "dead":
            proxy.refuse()
        case "blackhole":
            proxy.fault = Fault(blackhole=True)


def heal(proxy):
    proxy.fault = HEALTHY
    proxy.listen()


def drain_under_load(collectors, proxy, bucket, sent, condition):
    env = s3_environment(proxy.url, bucket, DRAIN_TIMEOUT=f"{DRAIN}s", BATCH_SIZE="500", FLUSH_INTERVAL="500ms")
    collector = collectors(env, name=condition).start()
    fall_into(proxy, condition)
    load = Load(sent, collector.port, rate=2000, connections=6, pipeline=2).start()
    enough, deadline = sent.acknowledged + 1000, time.monotonic() + 20
    while sent.acknowledged < enough:
        assert time.monotonic() < deadline, sent.statuses
        time.sleep(0.05)
    took = collector.stop(LIMIT)
    load.stop(grace=0)
    heal(proxy)
    assert collector.said("listening")
    return took


def deliver_the_rest(collectors, proxy, s3_server, bucket, sent):
    last = collectors(s3_environment(proxy.url, bucket), name="last").start()
    last.wait_delivered(60)
    last.stop(15)
    assert last.left_on_disk() == []
    return audit(sent, read_bucket(s3_client(s3_server), bucket)).assert_kept()


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_drain_ends_in_time_and_keeps_every_acknowledged_event(
    collectors, s3_server, proxy, bucket, figure, condition
):
    sent = Sent()
    took = drain_under_load(collectors, proxy, bucket, sent, condition)
    if condition == "healthy":
        # With S3 in health nothing is left to a successor.
        assert audit(sent, read_bucket(s3_client(s3_server), bucket)).assert_kept().lost == 0
    found = deliver_the_rest(collectors, proxy, s3_server, bucket, sent)
    figure(f"drain, {condition}, {took:.2f} s", found)


def test_memory_mode_keeps_every_acknowledged_event_through_a_drain_without_s3(collectors, s3_server, proxy, bucket):
    sent = Sent()
    env = s3_environment(proxy.url, bucket, DURABILITY="memory", DRAIN_TIMEOUT=f"{DRAIN}s", BATCH_SIZE="500")
    collector = collectors(env).start()
    proxy.refuse()
    send(sent, collector.port, 3000, pipeline=4)
    collector.stop(LIMIT)
    assert sent.acknowledged == 3000
    proxy.listen()
    deliver_the_rest(collectors, proxy, s3_server, bucket, sent)


def test_a_second_signal_goes_straight_to_the_disk(collectors, s3_server, proxy, bucket):
    sent = Sent()
    env = s3_environment(proxy.url, bucket, DRAIN_TIMEOUT="25s", S3_TIMEOUT="20s", BATCH_SIZE="500")
    collector = collectors(env).start()
    proxy.fault = Fault(blackhole=True)
    send(sent, collector.port, 2200, pipeline=4)
    collector.terminate()
    collector.wait_said("signal", 1)
    time.sleep(1.1)  # sooner it would be the same signal
    assert collector.alive
    took = collector.stop(5)
    assert took < 3, f"the second signal was not heard: {took:.1f} s"
    heal(proxy)
    assert deliver_the_rest(collectors, proxy, s3_server, bucket, sent).stored == 2200


def test_two_signals_at_once_are_one_d3(collectors, s3_server, proxy, bucket):
    sent = Sent()
    env = s3_environment(proxy.url, bucket, DRAIN_TIMEOUT="25s", S3_TIMEOUT="20s")
    collector = collectors(env).start()
    proxy.fault = Fault(latency=1.0)
    send(sent, collector.port, 500, pipeline=4)
    collector.terminate()
    collector.wait_said("signal", 1)
    collector.terminate()
    collector.wait_said("signal", 2)
    assert collector.wait(25) == 0
    heal(proxy)
    assert audit(sent, read_bucket(s3_client(s3_server), bucket)).assert_kept().stored == 500


def test_ready_says_no_and_requests_are_still_taken_for_the_drain_delay(collectors):
    collector = collectors({"DRAIN_DELAY": "1s"}).start()
    sent = Sent()
    assert collector.get("/ready")
    collector.terminate()
    time.sleep(0.3)
    with suppress(OSError):
        collector.get("/ready")
        raise AssertionError("/ready still says yes")
    send(sent, collector.port, 50)
    assert sent.acknowledged == 50, sent.statuses
    assert collector.wait(10) == 0
    assert audit(sent, read_directory(collector.folder / "data/objects")).assert_kept().stored == 50


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_fifty_drains_keep_every_acknowledged_event(collectors, s3_server, proxy, bucket, figure, condition):
    sent = Sent()
    slowest = max(drain_under_load(collectors, proxy, bucket, sent, condition) for _ in range(SOAK_ROUNDS))
    found = deliver_the_rest(collectors, proxy, s3_server, bucket, sent)
    figure(f"{SOAK_ROUNDS} drains, {condition}, the slowest {slowest:.2f} s of {LIMIT}", found)
