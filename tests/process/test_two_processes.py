"""Two collectors on one volume: each keeps to its own slot, and takes over what a dead one left."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from ingest.format import codec
from tests.faults.proxy import HEALTHY, Fault
from tests.process.client import Load, Sent, send
from tests.process.ledger import audit, read_bucket, read_directory
from tests.process.s3 import s3_environment

SMALL = {"BATCH_SIZE": "100", "FLUSH_INTERVAL": "100ms"}
WHOLE = {"BATCH_SIZE": "100000", "FLUSH_INTERVAL": "1h"}


def test_two_on_one_directory_keep_out_of_each_others_way(collectors):
    sent = Sent()
    first, second = collectors(SMALL, name="first").start(), collectors(SMALL, name="second").start()
    send(sent, first.port, 2000)
    send(sent, second.port, 2000)
    third = collectors(SMALL, name="third").start()
    send(sent, first.port, 500)
    first.kill()
    send(sent, third.port, 2000)
    second.stop(10)
    third.stop(10)
    last = collectors(name="last").start()
    last.wait_delivered()
    last.stop(10)
    assert last.left_on_disk() == []
    found = audit(sent, read_directory(last.folder / "data/objects")).assert_kept()
    assert found.stored == 6500


def test_a_running_process_never_loses_its_open_segment_to_another(collectors):
    sent = Sent()
    first = collectors(WHOLE, name="first").start()
    send(sent, first.port, 1000)
    segments = first.left_on_disk()
    assert len(segments) == 1
    second = collectors(SMALL, name="second").start()
    send(sent, second.port, 100)
    second.wait_until(lambda m: m.value("estat_events_stored_total") == 100, 20, "the second does not work")
    second.wait_until(lambda _: len(first.left_on_disk()) == 1, 20, "the second's own segment stays")
    assert first.left_on_disk() == segments
    second.stop(10)
    assert first.left_on_disk() == segments
    first.stop(10)
    assert audit(sent, read_directory(first.folder / "data/objects")).assert_kept().stored == 1100


def test_a_successor_adopts_what_a_killed_one_left(collectors, s3_process):
    """Segments and DLQ files both: the first dies while S3 is away."""
    sent = Sent()
    env = s3_environment(s3_process.url, "late", S3_TIMEOUT="1s", S3_APP_RETRIES="1")
    first = collectors({**env, **SMALL}, name="first").start()
    send(sent, first.port, 2000)
    first.wait_until(lambda m: m.value("estat_events_pending", place="dlq") > 0, 20, "nothing in the DLQ")
    send(sent, first.port, 130)
    first.kill()
    assert len(first.left_on_disk()) > 1
    s3_process.start("late")
    second = collectors({**env, **SMALL}, name="second").start()
    done = second.wait_delivered(60)
    assert done.value("estat_events_recovered_total") == done.value("estat_events_stored_total")
    second.stop(10)
    assert audit(sent, read_bucket(s3_process.client(), "late")).assert_kept().acknowledged == 2130
    assert second.left_on_disk() == []


def test_a_rolling_deployment_loses_nothing_when_the_old_one_is_killed(collectors):
    """The new one runs already when the old one dies: it adopts the old one's slot by itself."""
    sent = Sent()
    old = collectors(WHOLE, name="old").start()
    new = collectors(SMALL, name="new").start()
    load = Load(sent, old.port, rate=2000).start()
    time.sleep(0.5)
    old.kill()
    load.stop(grace=0)
    send(sent, new.port, 500)
    deadline = time.monotonic() + 60
    while new.left_on_disk():
        assert time.monotonic() < deadline, f"nobody adopted {new.left_on_disk()}: {new.tail()}"
        time.sleep(0.2)
    new.wait_delivered()
    audit(sent, read_directory(new.folder / "data/objects")).assert_kept()
    new.stop(10)


def test_a_thousand_events_under_other_settings_keep_their_key(collectors):
    """What is recovered under a new prefix and time zone goes where it was to go when it was accepted."""
    sent = Sent()
    first = collectors({**WHOLE, "RAW_PREFIX": "raw"}, name="first").start()
    send(sent, first.port, 1000)
    first.kill()
    second = collectors({"RAW_PREFIX": "other", "PARTITION_TZ": "Asia/Seoul"}, name="second").start()
    second.wait_delivered()
    second.stop(10)
    assert audit(sent, read_directory(first.folder / "data/objects")).assert_kept().stored == 1000


def locks(pid):
    """How many locks of slots a process holds."""
    found = 0
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            found += os.readlink(f"/proc/{pid}/fd/{fd}").endswith("/lock")
    return found


def test_c7_many_dead_slots_are_adopted_a_few_at_a_time(collectors, tmp_path):
    """129 dead slots, each with a dead letter and a segment, and 256 descriptors: all of it is stored, nobody ends."""
    dead = 129
    for number in range(dead):
        sequence = f"{number:010}"
        hour = "raw/dt=2025-12-02/hr=14"
        for folder, name, content in (
            ("dlq", f"1764684000_gone-{'a' * 16}_{sequence}.jsonl.gz", codec.encode(b'{"ts":1764684000}\n', 1)),
            ("journal", f"1764684000_gone-{'b' * 16}_{sequence}.jsonl", b'{"ts":1764684001}\n'),
        ):
            path = tmp_path / "run" / "data" / folder / str(number) / hour / name
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
    env = {"JOURNAL_DIR": "data/journal"}
    collector = collectors(env, prefix=["prlimit", "--nofile=256:256", "--"]).start()
    held = []

    def all_stored(metrics):
        held.append(locks(collector.pid))
        return metrics.value("estat_events_stored_total") == 2 * dead

    collector.wait_until(all_stored, 120, "not all was recovered")
    assert max(held) <= 2 * 32 + 2
    collector.stop(10)
    assert collector.left_on_disk() == []


def test_c7_slots_whose_files_are_all_refused_keep_no_others_waiting(collectors, proxy, bucket, tmp_path):
    """36 dead slots hold what the store refuses, and behind them, one more holds what it takes."""
    for number in range(37):
        prefix = "raw/old" if number < 36 else "raw/new"
        path = tmp_path / "run/data/dlq" / f"{number}/{prefix}/dt=2025-12-02/hr=14"
        path.mkdir(parents=True)
        name = f"1764684000_gone-{'a' * 16}_{number:010}.jsonl.gz"
        (path / name).write_bytes(codec.encode(b'{"ts":1764684000}\n', 1))
    proxy.fault = Fault(answer=(403, "AccessDenied"), head=b"/old/")
    sent = Sent()
    env = s3_environment(proxy.url, bucket, RAW_PREFIX="raw/new", FLUSH_INTERVAL="200ms")
    collector = collectors(env, prefix=["prlimit", "--nofile=1024:1024", "--"]).start()
    send(sent, collector.port, 10)
    collector.wait_until(lambda m: m.value("estat_events_stored_total") == 11, 120, "the last slot was not recovered")
    assert collector.metrics().value("estat_refused_files") > 0
    proxy.fault = HEALTHY
    collector.stop(30)
    assert collector.left_on_disk() == []
