"""Which hours are told to be complete: none that is not, in the end each that is; and no event waits for it."""

from __future__ import annotations

import errno
import shutil
import traceback

import orjson
import pytest

from ingest.disk import StorageError
from ingest.format import ledger, manifest
from ingest.format.manifest import Kind, parse_name
from ingest.ledger import closing, files, is_of_ledger, sides
from ingest.store import Refusal
from tests.model.world import World

PREFIX = "raw_manifest"
FIRST, SECOND = "dt=2025-12-03/hr=00", "dt=2025-12-03/hr=01"
HOUR = 3600

pytestmark = pytest.mark.usefixtures("few_looks")


@pytest.fixture
def world(tmp_path):
    made = []

    def make(**variables):
        folder = tmp_path / f"world-{len(made)}"
        folder.mkdir()
        made.append(
            World(folder, **{"flush_interval": "10s", "durability": "journal", "s3_app_retries": 1, **variables})
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


def documents(world):
    names = {parse_name(PREFIX, key): body for key, body in world.documents.items()}
    return {name: manifest.read(name, body) for name, body in names.items()}


def manifests(world, hour=FIRST):
    return [document for name, document in documents(world).items() if name.hour == hour]


def registry(world, kind, process=None):
    return [
        document
        for name, document in documents(world).items()
        if name.kind is kind and (process is None or document["instance"].endswith(process.token))
    ]


def keys(world):
    return sorted(key for key in world.store.objects if key.startswith("raw/"))


def told(world, hour=FIRST):
    return sorted(one["key"] for document in manifests(world, hour) for one in document["objects"])


def send(process, *, batches=1, events=3):
    for _ in range(batches):
        process.commit(events)
        process.seal()


def ledgers(world):
    return [path for path in world.root.rglob("*") if path.is_file() and is_of_ledger(path)]


def ledgers_of(world, hour):
    return [path for path in ledgers(world) if hour.replace("/", "_") in path.name]


def test_an_hour_that_is_over_is_told_with_what_was_accepted_and_stored(world):
    one = world()
    process = one.start()
    send(process, batches=3)
    one.advance(60)
    assert manifests(one) == []
    (opened,) = registry(one, Kind.OPEN)
    assert (opened["through"], opened["open"]) == (FIRST, [])
    one.advance(HOUR)
    (document,) = manifests(one)
    assert [each["key"] for each in document["objects"]] == keys(one)
    assert (document["accepted"], document["stored"], document["dropped"]) == (9, 9, {})
    (opened,) = registry(one, Kind.OPEN)
    assert (opened["through"], opened["open"]) == (SECOND, [])
    assert process.metrics.oldest_open_hour == one.time.wall() // HOUR * HOUR


@pytest.mark.parametrize("before", [0, 2], ids=["nothing yet", "stored before"])
def test_an_hour_that_turns_in_the_midst_of_a_round_is_not_told_as_closed(world, monkeypatch, before):
    one = world(flush_interval="100s")
    process = one.start()
    send(process, batches=before)
    one.advance(60)
    one.time.step(HOUR - one.time.wall() % HOUR - 0.05)
    look, late = sides.Side.look, []

    async def slow_look(side):
        if not late:
            with monkeypatch.context() as here:  # the loop runs already
                here.setattr(process, "_in_loop", lambda call: call())
                late.append(process.commit(1, run=False))
            one.time.step(0.1)
        return await look(side)

    monkeypatch.setattr(sides.Side, "look", slow_look)
    for _ in range(90):
        one.advance(1)
        if not late or len(keys(one)) > before:
            continue
        (opened,) = registry(one, Kind.OPEN)
        assert opened["through"] <= FIRST or FIRST in [each["hour"] for each in opened["open"]]
        assert manifests(one) == []
    assert late
    one.advance(200)
    assert told(one) == keys(one)
    assert len(keys(one)) == before + 1


def test_an_hour_that_is_open_again_is_told_so_at_once(world):
    one = world(flush_interval="100s")
    process = one.start()
    send(process)
    one.advance(HOUR - 60)

    def is_told():
        (opened,) = registry(one, Kind.OPEN)
        return (opened["through"], opened["open"]) == (SECOND, [])

    assert one.wait_for(is_told, seconds=200)
    one.time.step(-HOUR)
    process.commit(1)
    one.time.step(HOUR)
    one.advance(closing.LOOK_SECONDS + 1)
    (opened,) = registry(one, Kind.OPEN)
    assert [each["hour"] for each in opened["open"]] == [FIRST]


def test_a_clock_that_was_ahead_closes_no_hour_that_is_still_to_come(world):
    one = world(flush_interval="100s")
    process = one.start()
    send(process)
    one.time.step(3 * HOUR)
    one.advance(closing.RETELL_SECONDS + closing.LOOK_SECONDS)
    assert registry(one, Kind.OPEN)[0]["through"] == "dt=2025-12-03/hr=03"
    one.time.step(-3 * HOUR)
    one.advance(closing.LOOK_SECONDS + 1)
    (opened,) = registry(one, Kind.OPEN)
    assert opened["through"] == FIRST
    assert [each["hour"] for each in opened["open"]] == [FIRST], "it was told as closed"
    one.advance(HOUR + 60)
    (opened,) = registry(one, Kind.OPEN)
    assert (opened["through"], opened["open"]) == (SECOND, [])


def test_an_hour_without_an_event_costs_no_manifest(world):
    one = world()
    one.start()
    one.advance(3 * HOUR + 60)
    assert [name for name in documents(one) if name.hour] == []
    assert registry(one, Kind.OPEN)[0]["through"] == "dt=2025-12-03/hr=03"


def test_a_drain_tells_its_hours_and_its_end_and_leaves_no_ledger(world):
    one = world()
    process = one.start()
    send(process, batches=2)
    process.commit(4)
    process.stop()
    (document,) = manifests(one)
    assert (document["accepted"], document["stored"]) == (10, 10)
    (ended,) = registry(one, Kind.ENDED)
    assert (ended["places"], ended["open"]) == (["journal", "dlq"], [])
    assert ledgers(one) == []


DENIED = Refusal("put", PREFIX, "not allowed", transient=False, cause={"status": 403})


@pytest.mark.parametrize(
    "failure", [StorageError("put", PREFIX, "as told", transient=True), DENIED], ids=["away", "denied"]
)
def test_a_drain_tells_its_hours_at_once_though_the_last_manifests_were_not_taken(world, failure):
    one = world()
    one.documents_fail = failure
    process = one.start()
    send(process)
    one.advance(600)
    one.documents_fail = None
    process.stop()
    assert [document["stored"] for document in manifests(one)] == [3]
    assert [ended["open"] for ended in registry(one, Kind.ENDED, process)] == [[]]
    assert ledgers(one) == []


@pytest.mark.parametrize("durability", ["journal", "fsync"])
def test_a_successor_tells_the_hours_of_a_process_that_was_killed_and_its_end(world, durability):
    one = world(durability=durability)
    first = one.start()
    send(first, batches=2)
    one.store.fail_next(1)
    send(first)
    first.commit(5)
    one.kill(first)
    second = one.start()
    one.advance(HOUR + 60)
    assert told(one) == keys(one)
    assert {document["accepted"] for document in manifests(one)} == {None}
    assert {tuple(ended["places"]) for ended in registry(one, Kind.ENDED, first)} == {("journal",), ("dlq",)}
    assert all(ended["open"] == [] for ended in registry(one, Kind.ENDED, first))
    assert not [path for path in ledgers(one) if first.token in path.name]
    assert registry(one, Kind.ENDED, second) == []


def test_a_slot_is_kept_until_what_its_process_left_is_told_and_then_let_go(world):
    one = world()
    first, second = one.start(), one.start()
    send(second)
    one.kill(second)
    first.metrics.store.failed("as told")
    one.advance(100)
    assert (first.dlq.adopted, first.backlog.adopted) == (1, 1)
    first.metrics.store.stored()
    one.advance(100)
    assert (first.dlq.adopted, first.backlog.adopted) == (0, 0)
    assert {tuple(ended["places"]) for ended in registry(one, Kind.ENDED, second)} == {("journal",), ("dlq",)}


@pytest.mark.parametrize("place", ["dlq", "memory"])
def test_an_hour_of_which_something_waits_is_open_and_says_so_until_it_is_stored(world, place):
    one = world(**({"dlq_max_size_bytes": 1} if place == "memory" else {}))
    process = one.start()
    send(process)
    one.store.down = one.documents_land = True
    send(process)
    one.advance(HOUR + 700)
    assert manifests(one) == []
    assert FIRST in {each["hour"] for each in registry(one, Kind.OPEN)[0]["open"]}
    one.store.down = False
    one.advance(700)
    (document,) = manifests(one)
    assert (document["accepted"], document["stored"]) == (6, 6)
    assert registry(one, Kind.OPEN)[0]["open"] == []


def test_an_hour_with_a_refused_file_is_open_and_says_so(world):
    one = world()
    process = one.start()
    send(process)
    one.store.fail_next(1)
    process.commit(3)
    process.seal()
    (letter,) = [path for path in one.root.rglob("*.jsonl.gz") if path.is_file()]
    one.refused_keys.add(letter.relative_to(process.dlq_slot.path).as_posix())
    send(process)
    one.advance(HOUR + 120)
    assert manifests(one) == []
    assert registry(one, Kind.OPEN)[0]["open"] == [{"hour": FIRST, "why": "dead letters wait, some refused"}]
    one.refused_keys.clear()
    one.advance(2 * HOUR)
    assert [document["stored"] for document in manifests(one)] == [9]


def test_the_hours_of_a_memory_process_that_did_not_drain_stay_open(world):
    one = world(durability="memory")
    first = one.start()
    send(first)
    one.kill(first)
    one.start()
    one.advance(HOUR)
    ended = registry(one, Kind.ENDED, first)
    assert ended
    assert all(document["places"] == [] and document["why"] for document in ended)
    assert told(one) == keys(one)


def test_files_that_cannot_be_read_leave_their_hours_open(world):
    one = world()
    first = one.start()
    one.store.fail_next(1)
    send(first)
    one.kill(first)
    one.fs.on("readdir", "scandir", when=lambda path: "/raw" in str(path)).fail(errno.EIO)
    second = one.start()
    send(second)
    one.advance(HOUR + 60)
    assert manifests(one) == []
    assert registry(one, Kind.ENDED, first) == []
    one.heal()
    one.advance(600)
    assert told(one) == keys(one)


def test_what_comes_after_all_is_told_with_a_higher_generation(world):
    one = world()
    process = one.start()
    send(process)
    one.advance(HOUR + 60)
    one.time.step(-HOUR)
    send(process)
    one.advance(60)
    assert FIRST in {each["hour"] for each in registry(one, Kind.OPEN)[0]["open"]}
    one.time.step(HOUR)
    one.advance(120)
    (document,) = manifests(one)
    assert (document["generation"], document["accepted"], document["stored"]) == (2, 6, 6)
    assert told(one) == keys(one)


@pytest.mark.parametrize("how", ["recovered", "void"])
def test_a_number_that_a_step_of_the_clock_drew_for_another_hour_is_no_gap(world, how):
    one = world()
    process = one.start()
    one.time.step(HOUR)
    send(process)
    one.time.step(-HOUR)
    send(process)
    if how == "void":
        one.fs.on("write", when=lambda path: path.suffix == ".jsonl").fail(errno.ENOSPC)
        process.commit(2)
        one.heal()
        one.advance(5)
    else:
        one.store.fail_next(1)
        send(process)
        assert one.wait_for(lambda: len(keys(one)) == 3, seconds=100)
    one.time.step(HOUR)
    send(process)
    one.time.step(HOUR)
    one.advance(120)
    assert len(told(one, SECOND)) == 2
    assert [verdict.findings for verdict in one.verdicts()] == [[], []]


def test_an_event_that_vanished_is_not_told_as_stored(world):
    one = world()
    process = one.start()
    one.store.down = True
    send(process)
    (letter,) = [path for path in one.root.rglob("*.jsonl.gz") if path.is_file()]
    letter.unlink()
    one.store.down = False
    one.advance(HOUR + 600)
    (document,) = manifests(one)
    assert (document["accepted"], document["stored"]) == (3, 0)


def test_evicted_events_are_told_by_reason(world):
    one = world(dlq_max_size_bytes=200, dlq_on_full="evict")
    process = one.start()
    one.store.down = True
    send(process, batches=4)
    one.store.down = False
    one.advance(HOUR + 600)
    (document,) = manifests(one)
    assert document["accepted"] == 12 == document["stored"] + sum(document["dropped"].values())
    assert document["dropped"].keys() == {"evicted"}


def test_a_role_without_the_right_is_tried_once_an_hour_and_events_go_on(world):
    one = world()
    one.documents_fail = Refusal("put", PREFIX, "not allowed", transient=False, cause={"status": 403})
    process = one.start()
    for _ in range(8):
        send(process)
        one.advance(HOUR / 2)
    assert 4 <= one.document_tries <= 5
    assert process.metrics.store.up
    assert process.metrics.breaker.value == "closed"
    assert [committed for _, committed in process.answers] == [True] * 24
    assert len(keys(one)) == 8
    one.documents_fail = None
    one.advance(HOUR)
    assert told(one) == [key for key in keys(one) if FIRST in key]


@pytest.mark.parametrize("trouble", ["away", "raises", "hangs"])
def test_no_event_waits_for_a_manifest_and_a_drain_ends_in_time(world, trouble):
    one = world()
    one.documents_fail = {"away": StorageError("put", "", "as told", transient=True), "raises": KeyError("x")}.get(
        trouble
    )
    one.documents_hang = trouble == "hangs"
    process = one.start()
    one.advance(HOUR - 5)
    send(process)
    assert len(keys(one)) == 1
    one.advance(60)
    send(process)
    assert len(keys(one)) == 2
    assert process.metrics.store.up
    began = one.time.monotonic
    process.commit(2)
    process.stop()
    assert one.time.monotonic - began <= 26
    assert len(keys(one)) == 3
    assert manifests(one) == []


def test_an_outage_costs_few_tries_of_a_manifest(world):
    one = world()
    process = one.start()
    send(process)
    tries = one.document_tries
    one.store.down = True
    send(process)
    one.advance(2 * HOUR)
    assert one.document_tries - tries <= 2 * HOUR / 300


def test_manifests_false_tells_nothing(world):
    one = world(manifests="false")
    process = one.start()
    send(process)
    one.advance(2 * HOUR)
    process.stop()
    assert documents(one) == {}
    assert ledgers(one) == []


def test_a_ledger_left_behind_is_passed_over_without_manifests(world):
    one = world()
    first, second = one.start(), one.start(manifests="false")
    send(first)
    one.kill(first)
    one.advance(100)
    assert (second.dlq.adopted, second.backlog.adopted) == (0, 0)
    assert ledgers(one)


def test_lines_that_the_disk_did_not_take_are_told_all_the_same(world):
    one = world()
    process = one.start()
    one.fs.on("write", when=lambda path: ".ledger" in path.parts).fail(errno.ENOSPC)
    send(process, batches=2)
    one.advance(HOUR + 60)
    assert process.metrics.ledger_lines_waiting == 2
    (document,) = manifests(one)
    assert (document["accepted"], document["stored"]) == (6, 6)
    one.heal()
    one.advance(60)
    assert process.metrics.ledger_lines_waiting == 0


def test_an_hour_whose_lines_were_too_many_to_be_kept_stays_open_and_goes_after_a_month(world, monkeypatch):
    monkeypatch.setattr(files, "KEPT_MAX", 1)
    monkeypatch.setattr(closing, "LONGEST_KEPT", 4 * HOUR)
    one = world()
    process = one.start()
    one.fs.on("write", when=lambda path: ".ledger" in path.parts).fail(errno.ENOSPC)
    send(process, batches=2)
    one.heal()
    one.advance(3 * HOUR)
    assert manifests(one) == []
    assert registry(one, Kind.OPEN)[0]["open"] == [{"hour": FIRST, "why": closing.LOST_LINES}]
    send(process)
    one.advance(2 * HOUR)
    assert registry(one, Kind.OPEN)[0]["open"] == []
    assert ledgers_of(one, FIRST) == []
    assert len(manifests(one, "dt=2025-12-03/hr=03")) == 1, "the hours after it are told"


@pytest.mark.parametrize("removed", [True, False], ids=["slot removed", "too many lines"])
def test_an_hour_of_a_dead_process_whose_lines_were_forgotten_stays_open(world, monkeypatch, removed):
    monkeypatch.setattr(files, "KEPT_MAX", 10 if removed else 0)
    one = world()
    first, second = one.start(), one.start()
    send(second)
    second.commit(3)
    its = second.journal_slot.path
    one.kill(second)
    one.fs.on("open", when=lambda path: path.is_relative_to(its / ".ledger")).fail(errno.EACCES)
    assert one.wait_for(lambda: len(keys(one)) == 2, seconds=300)
    if removed:
        assert first.collector.journal_ledger.waiting == 1
        shutil.rmtree(its)
    one.advance(60)
    one.heal()
    one.advance(HOUR + 60)
    assert first.collector.journal_ledger.waiting == 0
    assert first.backlog.adopted == (0 if removed else 1)
    assert manifests(one) == []
    ended = [said for said in registry(one, Kind.ENDED, second) if "journal" in said["places"]]
    assert all([still["hour"] for still in said["open"]] == [FIRST] for said in ended)


@pytest.mark.parametrize(
    "trouble", ["files wait", "a file is refused", "manifests are not taken", "a ledger is not read"]
)
def test_the_ledger_of_a_volume_that_lay_for_long_is_told_once_the_trouble_is_over(world, trouble):
    one = world()
    first = one.start()
    send(first)
    one.store.fail_next(1)
    send(first)
    assert one.wait_for(lambda: len(keys(one)) == 2, seconds=100)
    one.store.fail_next(1)
    send(first)
    one.kill(first)
    one.time.step(2 * closing.LONGEST_KEPT)
    (letter,) = one.root.rglob("*.jsonl.gz")
    if trouble == "files wait":
        one.store.down = one.documents_land = True
    elif trouble == "a file is refused":
        one.refused_keys.add(letter.relative_to(first.dlq_slot.path).as_posix())
    elif trouble == "manifests are not taken":
        one.documents_fail = StorageError("put", PREFIX, "as told", transient=True)
    else:
        one.fs.on("read", when=lambda path: path.parent.name == ".ledger" and "dt=" in path.name).fail(errno.EIO)
    one.start()
    one.advance(300)
    assert len(told(one)) < 2
    one.documents_fail = None
    one.heal()
    one.advance(2 * HOUR)
    assert told(one) == keys(one)
    assert len(keys(one)) == 3


@pytest.mark.parametrize("why", ["it may put no manifest", "it is told"])
def test_an_hour_goes_after_a_month_though_its_manifest_was_never_put(world, monkeypatch, why):
    monkeypatch.setattr(closing, "LONGEST_KEPT", 6 * HOUR)
    one = world()
    if why == "it may put no manifest":
        one.documents_fail = Refusal("put", PREFIX, "not allowed", transient=False, cause={"status": 403})
    process = one.start()
    send(process)
    one.advance(5.5 * HOUR)
    assert bool(ledgers_of(one, FIRST)) == (why == "it may put no manifest")
    one.advance(2 * HOUR)
    assert ledgers_of(one, FIRST) == []


def test_the_ledger_of_an_hour_goes_some_hours_after_it_was_told(world):
    one = world()
    process = one.start()
    send(process)
    one.advance(8 * HOUR)
    assert not [path for path in ledgers(one) if path.name.startswith("dt=")]
    one.time.step(-8 * HOUR)
    send(process)
    one.time.step(8 * HOUR)
    one.advance(120)
    assert told(one) == keys(one)
    assert len(manifests(one)) == 2


@pytest.mark.parametrize(
    "name", ["x.json", "_instances/host.open.json", f"{FIRST}/host.json", "_instances/host-0123456789abcdef.gone.json"]
)
def test_a_name_of_another_kind_is_none_of_ours(name):
    assert parse_name(PREFIX, f"{PREFIX}/{name}") is None
    assert orjson.loads(manifest.abandoned(instance="h-0", at=1, hour=None, why="w"))["why"] == "w"


STRANGE = ("a_b_c", ".nfs0000_00001_2", "dt=2025-99-01_hr=00_h-0123456789abcdef", "dt=2025-12-03_hr=24_x", "started_")


def test_whatever_lies_where_ledgers_are_ends_no_process_and_keeps_no_hour_open(world):
    one = world()
    first, second = one.start(), one.start()
    send(second)
    one.kill(second)
    (line,) = [path for path in ledgers(one) if second.token in path.name and "dt=" in path.name]
    line.write_bytes(b"x void\n" + line.read_bytes() + b"\xff\n")
    for name in STRANGE:
        for folder in {path.parent for path in ledgers(one)}:
            (folder / name).write_bytes(b"x void\n")
    one.advance(60)
    send(first)
    one.advance(HOUR + 60)
    assert told(one) == keys(one)
    assert (first.dlq.adopted, first.backlog.adopted) == (0, 0)
    one.advance(120)
    assert (first.dlq.adopted, first.backlog.adopted) == (0, 0), "what is strange is no reason to hold a slot"
    first.stop()
    assert {path.name for path in ledgers(one)} <= set(STRANGE)


@pytest.mark.parametrize("operation", ["listdir", "stat", "read"])
def test_a_ledger_that_cannot_be_read_keeps_no_other_hour_open_and_is_told_in_the_end(world, operation):
    one = world()
    first, second = one.start(), one.start()
    send(second)
    one.kill(second)
    its = f"/{second.journal_slot.number}/.ledger"
    one.fs.on(operation, when=lambda path: its in str(path)).fail(errno.EIO)
    send(first)
    one.advance(HOUR + 60)
    assert told(one) == [key for key in keys(one) if first.token in key]
    one.heal()
    one.advance(60)
    assert told(one) == keys(one)


def test_the_loop_computes_no_manifest(world, monkeypatch):
    """Over an hour of 36,000 objects it would stand for a second."""
    one, where = world(), []
    for owner, name in ((ledger, "parse"), (manifest, "manifest")):
        work = getattr(owner, name)

        def watched(*args, work=work, name=name, **words):
            called_by = {frame.name for frame in traceback.extract_stack()}
            where.append((name, "run_one" in called_by))
            return work(*args, **words)

        monkeypatch.setattr(owner, name, watched)
    first, second = one.start(), one.start()
    send(second)
    one.kill(second)
    send(first)
    one.advance(HOUR + 60)
    assert told(one) == keys(one)
    assert set(where) == {("parse", True), ("manifest", True)}


def test_a_process_of_which_an_hour_cannot_be_read_is_not_told_to_have_ended(world):
    one = world()
    first, second = one.start(), one.start()
    send(second)
    one.kill(second)
    one.fs.on("read", when=lambda path: second.token in str(path) and path.name.startswith("dt=")).fail(errno.EIO)
    one.advance(HOUR + 60)
    ended = registry(one, Kind.ENDED, second)
    assert [document["places"] for document in ended] == [["dlq"]]
    one.heal()
    one.advance(60)
    assert told(one) == keys(one)
    assert {tuple(document["places"]) for document in registry(one, Kind.ENDED, second)} == {("journal",), ("dlq",)}
    first.stop()
