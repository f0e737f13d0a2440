"""Folders that are missing, in the way, or not ours to write: said in one line at the start, or made by themselves."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.faults.volume import Volume, why_not
from tests.process.client import Sent, send
from tests.process.ledger import audit, read_directory

WITHOUT_VOLUME = why_not()
needs_volume = pytest.mark.skipif(
    bool(WITHOUT_VOLUME) and os.geteuid() == 0, reason=WITHOUT_VOLUME or "a volume can be had"
)


def refused_start(collector):
    """Exit 2, and one line that a reader at three in the morning understands."""
    collector.env["ADMIN_ADDR"] = "127.0.0.1:0"  # without it a warning is said too
    assert collector.spawn().wait(20) == 2, collector.tail()
    text = collector.stderr.read_text()
    assert "Traceback" not in text, text
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) == 1, text
    return lines[0]


def test_missing_folders_are_made(collectors, tmp_path):
    sent = Sent()
    env = {name: str(tmp_path / "not" / "yet" / name.lower()) for name in ("DLQ_DIR", "JOURNAL_DIR", "STORE_DIR")}
    collector = collectors(env).start()
    send(sent, collector.port, 500)
    collector.stop(10)
    assert audit(sent, read_directory(tmp_path / "not/yet/store_dir")).assert_kept().stored == 500


@pytest.mark.parametrize("name", ["DLQ_DIR", "JOURNAL_DIR"])
def test_a_file_where_a_folder_should_be_is_named(collectors, tmp_path, name):
    (tmp_path / "file").write_text("")
    line = refused_start(collectors({name: str(tmp_path / "file" / "below")}))
    assert line.startswith(f"{name}: ")
    assert str(tmp_path / "file") in line


@pytest.mark.parametrize("name", ["DLQ_DIR", "JOURNAL_DIR"])
@pytest.mark.parametrize("kind", ["a name too long", "a loop of links", "a loop of links above"])
def test_c4_a_folder_the_disk_will_not_look_at_is_named(collectors, tmp_path, name, kind):
    """`stat` fails, and not because nothing is there."""
    (tmp_path / "loop").symlink_to("loop")
    folder = {"a name too long": "x" * 300, "a loop of links": "loop", "a loop of links above": "loop/below"}[kind]
    line = refused_start(collectors({name: str(tmp_path / folder)}))
    assert line.startswith(f"{name}: ")
    assert str(tmp_path / folder.partition("/")[0]) in line


@needs_volume
@pytest.mark.parametrize("name", ["DLQ_DIR", "JOURNAL_DIR"])
def test_a_folder_that_cannot_be_written_is_named(collectors, tmp_path, name):
    folder = tmp_path / "closed"
    if os.geteuid() != 0:
        folder.mkdir(mode=0o500)
        line = refused_start(collectors({name: str(folder / "below")}))
    else:
        with Volume.read_only(folder) as volume:
            env = {
                "DLQ_DIR": str(tmp_path / "dlq"),
                "STORE_DIR": str(tmp_path / "objects"),
                name: str(folder / "below"),
            }
            line = refused_start(collectors(env, prefix=volume.prefix))
    assert str(folder) in line


def test_a_store_that_cannot_be_written_is_an_outage_and_no_more(collectors, tmp_path):
    """As with S3: events are taken, wait in the DLQ, and are delivered once the operator has mended it."""
    sent = Sent()
    in_the_way = tmp_path / "objects"
    in_the_way.write_text("")
    collector = collectors({"STORE_DIR": str(in_the_way), "FLUSH_INTERVAL": "200ms"}).start()
    send(sent, collector.port, 1000)
    collector.wait_until(lambda m: m.value("estat_events_pending", place="dlq") == 1000, 20, "not all in the DLQ")
    assert sent.acknowledged == 1000
    assert any(str(in_the_way) in line["error"] for line in collector.said("store_not_started"))
    in_the_way.unlink()
    collector.wait_delivered(60)
    collector.stop(10)
    assert audit(sent, read_directory(in_the_way)).assert_kept().stored == 1000


def test_a_store_that_is_emptied_by_its_owner_goes_on(collectors):
    """`rm -rf data/objects` under a running collector: what was there is gone, what comes after is kept."""
    before, after = Sent(), Sent()
    collector = collectors({"FLUSH_INTERVAL": "100ms"}).start()
    send(before, collector.port, 200)
    collector.wait_delivered()
    shutil.rmtree(collector.folder / "data/objects")
    send(after, collector.port, 200)
    collector.wait_delivered()
    collector.stop(10)
    assert audit(after, read_directory(collector.folder / "data/objects")).assert_kept().stored == 200


def test_every_problem_of_the_environment_is_a_line(collectors):
    collector = collectors({"BATCH_SIZE": "many", "FLUSH_INTERVAL": "soon", "RAW_BUCKET": "events"})
    collector.env["ADMIN_ADDR"] = "127.0.0.1:0"  # without it a warning is said too
    assert collector.spawn().wait(20) == 2
    text = collector.stderr.read_text()
    for name in ("BATCH_SIZE", "FLUSH_INTERVAL", "AWS_REGION"):
        assert sum(name in line for line in text.splitlines()) == 1, text


def test_a_port_that_is_taken_is_named(collectors):
    first = collectors({}, name="first").start()
    second = collectors({"HTTP_ADDR": f"127.0.0.1:{first.port}"}, name="second").spawn()
    assert second.wait(20) not in (0, -9)
    text = second.stderr.read_text()
    assert "Traceback" not in text, text
    assert str(first.port) in text, text
