"""`compact` asks what `reconcile` would say of the hour."""

from __future__ import annotations

import json

from ingest.__main__ import main
from ingest.commands.compact import DIFFERS, OPEN
from ingest.store.directory import DirectoryStore
from tests.lake.hour import rows
from tests.lake.test_reconcile import hour, lake

__all__ = ["lake"]


def compact(capsys, *words):
    capsys.readouterr()
    code = main(["compact", "--hour", hour(0), "--json", *words])
    return code, json.loads(capsys.readouterr().out)["hours"][0]


def test_an_hour_is_compacted_once_everybody_has_closed_it(lake, capsys):
    first, second = lake.world.start(), lake.world.start()
    lake.send(first, second)
    first.stop()
    lake.lose(second)
    lake.pass_hour()
    lake.lay()
    code, told = compact(capsys)
    assert (code, told["result"]) == (OPEN, "open")
    assert second.collector.keys.instance in told["why"]
    assert main(["abandon", second.collector.keys.instance, "--why", "its disk is gone"]) == 0
    assert compact(capsys)[0] == 0
    stored = [key for key in lake.world.store.objects if hour(0) in key]
    assert len(rows(lake.objects, hour=hour(0))) == 3 * len(stored) > 0


def test_an_hour_is_not_compacted_of_fewer_events_than_it_was_judged_by(lake, capsys, monkeypatch):
    process = lake.world.start()
    lake.send(process)
    process.stop()
    lake.lay()
    listing, lists = DirectoryStore.listing, []

    async def ever_shorter(store, prefix):
        found = await listing(store, prefix)
        if prefix == f"raw/{hour(0)}/":
            lists.append(found)
            return found[len(lists) - 1 :]
        return found

    with monkeypatch.context() as here:
        here.setattr(DirectoryStore, "listing", ever_shorter)
        code, told = compact(capsys)
    assert (code, told["result"]) == (DIFFERS, "differs")
    assert "3 events are left of the 6 that were there when the hour was judged" in told["why"]
    assert not (lake.objects / "raw_parquet/_hours").exists()
    assert compact(capsys)[0] == 0
    assert len(rows(lake.objects, hour=hour(0))) == 6


def test_an_hour_that_differs_is_not_compacted_without_force(lake, capsys):
    process = lake.world.start()
    lake.send(process)
    process.stop()
    lake.pass_hour()
    lake.lay()
    missing = next(key for key in lake.world.store.objects if hour(0) in key)
    (lake.objects / missing).unlink()
    code, told = compact(capsys)
    assert (code, told["result"]) == (DIFFERS, "differs")
    assert missing in told["why"]
    assert compact(capsys, "--force")[0] == 0
    assert len(rows(lake.objects, hour=hour(0))) == 3
