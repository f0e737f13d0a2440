"""`reconcile` and `abandon` over what real pipelines have left: the verdicts are what was done to them."""

from __future__ import annotations

import json
import os
import random
import shutil
from contextlib import suppress

import pytest

from ingest.__main__ import main
from ingest.commands import opened, replay
from ingest.disk import StorageError
from ingest.format import codec, parse_key
from ingest.lake.patience import Patient
from ingest.store.directory import DirectoryStore
from tests.model.time import START
from tests.model.world import World
from tests.process.s3 import s3_client, s3_environment

HOUR = 3600

pytestmark = pytest.mark.usefixtures("few_looks")


def hour(number):
    return f"dt=2025-12-03/hr={number:02d}"


@pytest.fixture
def lake(tmp_path, monkeypatch):
    """A world, and commands over what it has put."""
    made = Lake(tmp_path, monkeypatch)
    yield made
    made.world.close()


class Lake:
    def __init__(self, tmp_path, monkeypatch):
        (tmp_path / "world").mkdir()
        how = {"flush_interval": "10s", "durability": "journal", "s3_app_retries": 1}
        self.world = World(tmp_path / "world", wall=START + 120, **how)
        self.objects = tmp_path / "objects"
        monkeypatch.setenv("STORE_DIR", str(self.objects))
        monkeypatch.setenv("DLQ_DIR", str(tmp_path / "none"))

    def lay(self):
        """Put everything into the directory store."""
        for key, body in {**self.world.store.objects, **self.world.documents}.items():
            path = self.objects / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
        return self

    def pass_hour(self):
        """Let the clock on the wall go on by an hour, and everybody look around once more before and after."""
        self.world.advance(60)
        self.world.time.step(HOUR - 240)
        self.world.advance(180)

    def lose(self, process):
        """A process dies, and its disk with it."""
        self.world.kill(process)
        for slot in (process.journal_slot, process.dlq_slot):
            shutil.rmtree(slot.path)
        self.world.fs.settle()

    def send(self, *processes, batches=2):
        for process in processes:
            for _ in range(batches):
                process.commit(3)
                process.seal()


def reconcile(capsys, *words, json_too=True):
    capsys.readouterr()
    with suppress(SystemExit):
        code = main(["reconcile", *words, *(["--json"] if json_too else [])])
        told = capsys.readouterr()
        return code, json.loads(told.out)["hours"] if json_too else told.out
    raise AssertionError(capsys.readouterr().err)


def a_day(lake, *, hours, instances, batches, rng):
    """Let processes live through hours; return what was done to each that did not live on."""
    world = lake.world
    done = {}
    for number in range(hours):
        while len(world.processes) < instances:
            world.start()
        for process in list(world.processes):
            lake.send(process, batches=batches)
        if number == hours - 1:
            break
        victim = rng.choice(world.processes[1:])
        what = ("drained", "killed", "lost")[number % 3] if number < 3 else ("drained", "killed")[number % 2]
        instance = victim.collector.keys.instance
        if what == "drained":
            victim.stop()
        elif what == "killed":
            victim.commit(2)
            world.kill(victim)
        else:
            lake.lose(victim)
        done[instance] = (what, number)
        lake.pass_hour()
    lake.pass_hour()
    return done


def judged(lake, capsys, done, *, hours):
    """Hold the verdict of each hour against the list of what was done."""
    lost = {instance: number for instance, (what, number) in done.items() if what == "lost"}
    _, verdicts = reconcile(capsys, "--hour", f"{hour(0)}..{hour(hours - 1)}", "--deep")
    assert [one["hour"] for one in verdicts] == [hour(number) for number in range(hours)]
    for number, one in enumerate(verdicts):
        still = {instance for instance, at in lost.items() if at <= number}
        assert {told["instance"] for told in one["open"]} == still, one
        assert one["findings"] == []
        assert one["exit"] == (1 if still else 0)
        there = [codec.event_count(body) for key, body in lake.world.store.objects.items() if hour(number) in key]
        assert (one["objects"], one["events"]) == (len(there), sum(there))
    return lost


def test_the_verdict_is_what_was_done_killed_drained_or_its_disk_lost(lake, capsys):
    rng = random.Random(1)
    done = a_day(lake, hours=4, instances=3, batches=2, rng=rng)
    lake.lay()
    lost = judged(lake, capsys, done, hours=4)
    assert sorted(what for what, _ in done.values()) == ["drained", "killed", "lost"]
    for instance in lost:
        assert main(["abandon", instance, "--why", "its disk is gone"]) == 0
    code, verdicts = reconcile(capsys, "--hour", f"{hour(0)}..{hour(3)}")
    assert code == 0
    assert {instance for one in verdicts for instance in one["abandoned"]} == set(lost)


@pytest.mark.proof
@pytest.mark.timeout(1200)
def test_proof_of_a_day_the_verdicts_are_what_was_done_and_what_was_done_to_its_objects(lake, capsys, figure):
    rng = random.Random(20)
    done = a_day(lake, hours=24, instances=20, batches=50, rng=rng)
    lake.lay()
    judged(lake, capsys, done, hours=24)
    wanted = {}
    for number in range(24):
        here = sorted(path for path in (lake.objects / "raw" / hour(number)).iterdir())
        path = rng.choice(here)
        kind = ("missing", "short", "altered", "unexpected", None)[number % 5]
        key = path.relative_to(lake.objects).as_posix()
        if kind == "missing":
            path.unlink()
        elif kind == "short":
            path.write_bytes(codec.encode(b"{}\n", 1))
        elif kind == "altered":
            path.write_bytes(
                codec.encode(b"{}\n" * 3, 3) if codec.event_count(path.read_bytes()) == 3 else path.read_bytes()
            )
            kind = "altered" if codec.event_count(path.read_bytes()) == 3 else None
        elif kind == "unexpected":
            path = path.with_name("part-0.json")
            path.write_bytes(b"x")
            key = path.relative_to(lake.objects).as_posix()
        wanted[hour(number)] = [(kind, key)] if kind else []
    code, verdicts = reconcile(capsys, "--hour", f"{hour(0)}..{hour(23)}", "--deep")
    assert code == 3
    assert {one["hour"]: [(found["kind"], found["key"]) for found in one["findings"]] for one in verdicts} == wanted
    objects = sum(one["objects"] for one in verdicts)
    figure("a day reconciled", f"{objects} objects of {len(done) + 20} processes in 24 hours, {done}; verdicts as done")


def test_an_hour_that_is_not_over_is_open(lake, capsys):
    process = lake.world.start()
    lake.send(process)
    lake.world.advance(60)
    lake.lay()
    code, (one,) = reconcile(capsys, "--hour", hour(0))
    assert (code, [told["instance"] for told in one["open"]]) == (1, [process.collector.keys.instance])


def test_text_names_the_hour_its_verdict_and_what_differs(lake, capsys):
    process = lake.world.start()
    lake.send(process, batches=3)
    process.stop()
    lake.lay()
    code, text = reconcile(capsys, "--hour", hour(0), json_too=False)
    assert (code, text) == (0, f"{hour(0)}: complete, 3 objects, 9 events\n")
    first = sorted(key for key in lake.world.store.objects)[0]
    (lake.objects / first).unlink()
    code, text = reconcile(capsys, "--hour", hour(0), json_too=False)
    assert (code, text) == (3, f"{hour(0)}: differs, 2 objects, 6 events\n  missing: {first}: 3 events\n")


def test_reconcile_changes_nothing(lake, capsys):
    process = lake.world.start()
    lake.send(process)
    process.stop()
    lake.lay()
    before = {path: path.read_bytes() for path in lake.objects.rglob("*") if path.is_file()}
    reconcile(capsys, "--hour", f"{hour(0)}..{hour(2)}", "--deep")
    assert {path: path.read_bytes() for path in lake.objects.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--hour", "yesterday"],
        ["--hour", "dt=2025-13-01/hr=00"],
        ["--hour", "dt=9999-12-31"],
        ["--hour", "dt=0001-01-01/hr=00"],
        ["--hour", "dt=9999-12-31/hr=23..dt=9999-12-31/hr=23"],
        ["--hour", "dt=2015-01-01..dt=2026-01-01"],
        ["--hour", f"{hour(2)}..{hour(1)}"],
        ["--wrong"],
        ["--hour"],
    ],
)
def test_wrong_words_are_64(capsys, words):
    try:
        code = main(["reconcile", *words])
    except SystemExit as ended:
        code = ended.code
    assert code == 64
    assert capsys.readouterr().err


def test_an_hour_that_the_clocks_skip_is_no_hour(monkeypatch, capsys):
    monkeypatch.setenv("PARTITION_TZ", "Europe/Berlin")
    assert main(["reconcile", "--hour", "dt=2026-03-29/hr=02"]) == 64
    assert "skip" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["reconcile", "--hour", hour(0)], ["abandon", f"host-{0:016x}"]])
def test_a_directory_that_is_not_there_is_no_verdict(tmp_path, monkeypatch, capsys, command):
    monkeypatch.setenv("STORE_DIR", str(tmp_path / "gone"))
    assert main(command) == 69
    assert f"{tmp_path}/gone: it is not there" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["reconcile", "--hour", hour(0)], ["abandon", f"host-{0:016x}"]])
def test_a_document_that_the_store_does_not_give_is_no_verdict(lake, monkeypatch, capsys, command):
    lake.send(lake.world.start())
    lake.world.advance(60)
    lake.lay()

    async def refuse(*_):
        raise StorageError("get", "a document", "let the role read it", transient=False)

    monkeypatch.setattr(DirectoryStore, "get", refuse)
    assert main(command) == 69
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "get a document: let the role read it"


def test_a_name_from_outside_writes_no_line_of_the_verdict(lake, capsys):
    process = lake.world.start()
    lake.send(process)
    process.stop()
    lake.lay()
    (lake.objects / "raw" / hour(0) / f"x\n{hour(1)}: complete\x1b[2J".replace("/", "_")).write_bytes(b"x")
    code, text = reconcile(capsys, "--hour", hour(0), json_too=False)
    assert (code, len(text.splitlines()), "\x1b" in text) == (3, 2, False)
    assert main(["compact", "--hour", hour(0)]) == 3
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(("words", "seconds"), [([], 3.0), (["--deep"], 300.0)])
def test_where_whole_objects_are_read_a_try_has_time_for_them(lake, capsys, monkeypatch, words, seconds):
    given = []
    create = opened.create_store
    monkeypatch.setattr(opened, "create_store", lambda how, *_, **more: given.append(how) or create(how, *_, **more))
    lake.lay().objects.mkdir()
    reconcile(capsys, "--hour", hour(0), *words)
    assert [how.s3_timeout for how in given] == [seconds]


def test_nobody_is_abandoned_by_a_slip(lake, capsys):
    process = lake.world.start()
    lake.send(process)
    lake.world.advance(60)
    lake.lay()
    assert main(["abandon", f"host-{0:016x}"]) == 1
    assert not list(lake.objects.rglob("*.abandoned.json"))
    assert main(["abandon", process.collector.keys.instance, "--hour", hour(0)]) == 0
    code, (one,) = reconcile(capsys, "--hour", hour(0))
    assert (code, one["abandoned"]) == (0, [process.collector.keys.instance])


@pytest.mark.parametrize("what", ["manifest", "object"])
def test_whoever_reconcile_names_can_be_given_up(lake, capsys, what):
    """Its word of the registry is gone, or was never put."""
    process = lake.world.start()
    lake.send(process)
    process.stop()
    lake.lay()
    stranger = f"host-{7:016x}"
    name = f"{stranger}.{7:016x}.json" if what == "manifest" else f"{START}_{stranger}_0000000001.jsonl.gz"
    below = "raw_manifest" if what == "manifest" else "raw"
    (lake.objects / below / hour(0) / name).write_bytes(b"" if what == "manifest" else codec.encode(b"{}\n", 1))
    code, (one,) = reconcile(capsys, "--hour", hour(0))
    assert (code, [told["instance"] for told in one["open"]]) == (1, [stranger])
    assert main(["abandon", stranger, "--hour", hour(1)]) == 1
    assert main(["abandon", stranger, "--hour", hour(0)]) == 0
    code, (one,) = reconcile(capsys, "--hour", hour(0))
    assert (code, one["abandoned"]) == (0, [stranger])


def test_a_store_that_does_not_answer_is_no_verdict(monkeypatch, capsys):
    monkeypatch.setenv("RAW_BUCKET", "events")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setattr(Patient.__init__, "__defaults__", ((),))
    assert main(["reconcile", "--hour", hour(0)]) == 69
    assert "127.0.0.1:9" in capsys.readouterr().err


def test_s3_has_the_same_verdict(lake, capsys, monkeypatch, s3_server, bucket):
    process = lake.world.start()
    lake.send(process, batches=3)
    process.stop()
    client = s3_client(s3_server)
    for key, body in {**lake.world.store.objects, **lake.world.documents}.items():
        client.put_object(Bucket=bucket, Key=key, Body=body)
    for name, value in s3_environment(s3_server, bucket).items():
        monkeypatch.setenv(name, value)
    assert reconcile(capsys, "--hour", hour(0), "--deep", json_too=False) == (
        0,
        f"{hour(0)}: complete, 3 objects, 9 events\n",
    )
    gone = min(lake.world.store.objects, key=lambda key: parse_key(key).sequence)
    client.delete_object(Bucket=bucket, Key=gone)
    code, text = reconcile(capsys, "--hour", hour(0), json_too=False)
    assert (code, f"missing: {gone}" in text) == (3, True)


def test_replay_tells_the_hours_that_a_dead_process_left(lake, capsys, monkeypatch):
    """Its volume came home by hand: nobody will ever recover its slots, and its hours are complete all the same."""
    world = lake.world
    process = world.start()
    lake.send(process, batches=3)
    world.store.fail_next(1)
    lake.send(process, batches=1)
    process.commit(2)
    world.kill(process)
    lake.lay()
    code, (one,) = reconcile(capsys, "--hour", hour(0))
    assert (code, [told["instance"] for told in one["open"]]) == (1, [process.collector.keys.instance])
    monkeypatch.setenv("DLQ_DIR", str(world.root / "dlq"))
    assert main(["dlq", "replay"]) == 0
    assert not [path for path in world.root.rglob("*") if path.is_file() and path.name != "lock"]
    code, (one,) = reconcile(capsys, "--hour", hour(0), "--deep")
    assert (code, one["objects"], one["events"], one["findings"]) == (0, 5, 14, [])


@pytest.mark.parametrize("tries", [1, 2])
def test_a_replay_tries_to_tell_hours_more_than_once(lake, capsys, monkeypatch, tries):
    world = lake.world
    process = world.start()
    lake.send(process)
    process.commit(2)
    world.kill(process)
    lake.lay()
    monkeypatch.setenv("DLQ_DIR", str(world.root / "dlq"))
    monkeypatch.setattr(replay, "TELL_AGAIN", (0.0, 0.0))
    put, left = DirectoryStore.put, [tries]

    async def busy(store, key, *arguments):
        if key.startswith("raw_manifest/") and left[0]:
            left[0] -= 1
            raise StorageError("put", key, "slow down", transient=True)
        await put(store, key, *arguments)

    monkeypatch.setattr(DirectoryStore, "put", busy)
    assert main(["dlq", "replay"]) == 0
    assert reconcile(capsys, "--hour", hour(0))[0] == 0


def test_a_replay_whose_manifests_were_not_taken_is_told_by_the_next_one(lake, capsys, monkeypatch):
    world = lake.world
    process = world.start()
    lake.send(process, batches=3)
    process.commit(2)
    world.kill(process)
    lake.lay()
    monkeypatch.setenv("DLQ_DIR", str(world.root / "dlq"))
    put = DirectoryStore.put

    async def refused(store, key, *arguments):
        if key.startswith("raw_manifest/"):
            raise StorageError("put", key, "the role may not", transient=False)
        await put(store, key, *arguments)

    with monkeypatch.context() as here:
        here.setattr(DirectoryStore, "put", refused)
        capsys.readouterr()
        assert main(["dlq", "replay", "--json"]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["untold"] == [process.collector.keys.instance]
    assert f"{process.collector.keys.instance}: not told of" in told.err
    assert reconcile(capsys, "--hour", hour(0))[0] == 1
    assert main(["dlq", "replay"]) == 0
    code, (one,) = reconcile(capsys, "--hour", hour(0), "--deep")
    assert (code, one["objects"], one["events"], one["findings"]) == (0, 4, 11, [])


def test_replay_misses_no_number_that_the_other_place_tells_of(lake, capsys, monkeypatch):
    """The clock was set back for a while, and the dead letter of then was recovered."""
    world = lake.world
    world.time.step(HOUR)
    process = world.start()
    lake.send(process, batches=1)
    world.time.step(-HOUR)
    world.store.fail_next(1)
    lake.send(process, batches=1)
    assert world.wait_for(lambda: len(world.store.objects) == 2, seconds=100)
    world.time.step(HOUR)
    lake.send(process, batches=1)
    world.kill(process)
    lake.lay()
    monkeypatch.setenv("DLQ_DIR", str(world.root / "dlq"))
    assert main(["dlq", "replay"]) == 0
    _, verdicts = reconcile(capsys, "--hour", f"{hour(0)}..{hour(1)}")
    assert [(one["objects"], one["findings"]) for one in verdicts] == [(1, []), (2, [])]


def test_a_memory_process_that_was_killed_keeps_its_own_hours_open_and_no_later_ones(lake, capsys):
    world = lake.world
    first = world.start(durability="memory")
    lake.send(first)
    world.kill(first)
    second = world.start()
    for _ in range(4):
        lake.pass_hour()
    lake.send(second)
    second.stop()
    lake.lay()
    for word in (lake.objects / "raw_manifest/_instances").iterdir():
        at = json.loads(word.read_bytes())["at"]
        os.utime(word, (at, at))
    codes = [reconcile(capsys, "--hour", hour(number))[0] for number in (0, 3, 4)]
    assert codes == [1, 0, 0]


def test_a_batch_that_was_discarded_with_nobody_knowing_how_many_is_told_all_the_same(lake, capsys, monkeypatch):
    world = lake.world
    process = world.start()
    lake.send(process, batches=1)
    world.store.fail_next(1)
    lake.send(process, batches=1)
    world.run()
    world.kill(process)
    lake.lay()
    (letter,) = (world.root / "dlq").rglob("*.jsonl.gz")
    letter.write_bytes(bytes(4) + letter.read_bytes()[4:])
    monkeypatch.setenv("DLQ_DIR", str(world.root / "dlq"))
    assert main(["dlq", "discard", letter.relative_to(world.root / "dlq" / "0").as_posix()]) == 0
    assert main(["dlq", "replay"]) == 0
    code, (one,) = reconcile(capsys, "--hour", hour(0))
    assert (code, one["dropped"], one["events"]) == (0, {"discarded": 0}, 3)
    _, text = reconcile(capsys, "--hour", hour(0), json_too=False)
    assert text.splitlines()[0].endswith("3 events, an unknown number discarded")
