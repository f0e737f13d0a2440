"""Somebody removes or moves the journal's folder under a collector that takes events, and then it is killed (C9)."""

from __future__ import annotations

import shutil

import pytest

from tests.process.client import Load, Sent, send
from tests.process.ledger import audit, read_directory


def removed(folder, _elsewhere):
    shutil.rmtree(folder)


def moved_away(folder, elsewhere):
    folder.rename(elsewhere)


def another_in_its_place(folder, elsewhere):
    """Older copies of what it held are there in its stead, as when a volume is restored."""
    copies = elsewhere.with_name("copies")
    shutil.copytree(folder, copies)
    moved_away(folder, elsewhere)
    copies.rename(folder)


@pytest.mark.parametrize(
    ("befalls", "durability"),
    [
        (removed, "journal"),
        (another_in_its_place, "fsync"),
        pytest.param(removed, "fsync", marks=pytest.mark.proof),
        pytest.param(moved_away, "journal", marks=pytest.mark.proof),
        pytest.param(moved_away, "fsync", marks=pytest.mark.proof),
        pytest.param(another_in_its_place, "journal", marks=pytest.mark.proof),
    ],
)
def test_c9_a_journal_that_lost_its_folder_keeps_every_acknowledged_event_through_a_kill(
    collectors, tmp_path, durability, befalls
):
    sent = Sent()
    env = {"DURABILITY": durability, "BATCH_SIZE": "1000000", "FLUSH_INTERVAL": "1h"}
    env |= {"STORE_DIR": str(tmp_path / "objects")}
    collector = collectors(env, name="robbed").start()
    send(sent, collector.port, 500, pipeline=4)
    load = Load(sent, collector.port, rate=1000, connections=4, pipeline=2).start()
    befalls(collector.dlq_folder / "journal", tmp_path / "elsewhere")
    collector.wait_said("journal_refused")
    collector.wait_said("journal_resumed")
    before = sent.acknowledged
    collector.wait_until(lambda seen: seen.value("estat_events_accepted_total") > before, what="it takes none")
    load.stop()
    collector.kill()
    last = collectors(env, name="last").start()
    last.wait_delivered(60)
    last.stop(15)
    assert last.left_on_disk() == []
    assert sent.statuses.keys() <= {200, 503}, sent.statuses
    assert audit(sent, read_directory(tmp_path / "objects")).assert_kept().acknowledged >= 500
