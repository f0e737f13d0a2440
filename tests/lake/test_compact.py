"""`compact`: an hour's lines become rows, once, whatever came before and whoever else is at it."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import tracemalloc
from collections import Counter

import pytest

from ingest.__main__ import main
from ingest.commands.compact import DIFFERS, FAILED, OPEN
from ingest.disk import Filesystem, StorageError
from ingest.format import codec
from ingest.format.record import KEYS
from ingest.lake import Compactor, Contended, Differs, Patient, Pointers, Recipe, Result, sweep
from ingest.lake import compact as compact_hour
from ingest.lake.embedded import DuckDB
from ingest.lake.generation import Inputs, Source
from ingest.lake.sources import freeze
from ingest.store import Listed
from tests.lake.hour import BEGIN, END, HOUR, all_bytes, key, line, numbered, numbers, pointer, put, rows, text_line
from tests.stand_ins.fakes import MemoryStore

TEXTS = [
    "",
    "plain",
    '{"a" :  1.50,"b":[1,\t2 ], "a":2,"body":{"x":1},"body":"y"}',
    'quotes " and \\ and ,"body":"x"}',
    "line\nbreaks\r\nand\ttabs, a NUL \x00, DEL \x7f, \u2028, é, 漢, \U0001f600",
    "null",
    "[" * 400 + "]" * 400,
    "x" * 300_000,
]


def test_text_comes_out_byte_for_byte(store_dir, compact):
    put(store_dir, 1, [text_line(text, number) for number, text in enumerate(TEXTS)])
    code, document = compact()
    assert (code, document["hours"][0]["rows"]) == (0, len(TEXTS))
    assert Counter(rows(store_dir)) == Counter((text,) for text in TEXTS)


VALUES = [
    b'{"headers":{"a":"1"},"body":"}{"}',
    b'{"headers":{},"body":{"headers":{"b":{}},"body":1}}',
    b'{"a" :  1.50,"b":[1,\t2 ], "a":2,"body":{"x":1},"body":"y"}',
    b'{"s":"\\u00e9\\ud83d\\ude00 \xc3\xa9 \\/"}',
    b"1e5",
    b"-0",
    b"123456789012345678901234567890",
    b"[" * 64 + b"]" * 64,
    b"true",
    b'"a string \\u0041"',
]


@pytest.mark.parametrize("body_format", ["json", "text"])
def test_a_json_value_is_the_text_that_stood_in_the_line(store_dir, compact, monkeypatch, body_format):
    """A JSON reader would write 100000.0 for 1e5, and leave blanks out."""
    monkeypatch.setenv("BODY_FORMAT", body_format)
    more = b'"headers":{"x":"1","body":"}{,\\"body\\":"}'
    put(store_dir, 1, [line(value, number, more if number % 2 else b"") for number, value in enumerate(VALUES)])
    put(store_dir, 2, [line(b"null")])
    assert compact()[0] == 0
    expected = [value.decode() for value in VALUES]
    if body_format == "text":
        expected[-1] = json.loads(expected[-1])
    assert Counter(rows(store_dir)) == Counter([*((value,) for value in expected), (None,)])


def test_a_row_has_the_hour_and_every_key_of_the_line(store_dir, compact):
    more = (
        b'"ts_ms":%d123,"path":"/v1/track","query":"a=b","key":"web","headers":{"ce-id":"1","x":"\xc3\xa9"},"body_b64":"%s"'
        % (BEGIN, all_bytes().encode())
    )
    put(store_dir, 1, [text_line("", 0, more), text_line("plain", 1)])
    assert compact()[0] == 0
    names = ["dt", "hr", *(column.name for column in KEYS)]
    full, plain = sorted(rows(store_dir, "*"), key=lambda row: row[2])
    agent = 'a "b" é ,"body":1'
    assert full == (
        *("2025-12-02", "14", BEGIN, "203.0.113.7", agent, "", BEGIN * 1000 + 123, "/v1/track", "a=b", "web"),
        *({"ce-id": "1", "x": "é"}, all_bytes(), ""),
    )
    assert plain == ("2025-12-02", "14", BEGIN + 1, "203.0.113.7", agent, "", *[None] * 6, "plain")
    assert pointer(store_dir)["recipe"]["columns"] == names


def test_the_same_objects_are_compacted_once(store_dir, compact):
    put(store_dir, 1, numbered(0, 10))
    assert compact()[1]["hours"][0]["result"] == "published"
    before = pointer(store_dir)
    code, document = compact()
    assert (code, document["hours"][0]["result"]) == (0, "nothing to do")
    assert pointer(store_dir) == before
    assert len(list((store_dir / "raw_parquet/_parts").rglob("*.parquet"))) == 1


@pytest.mark.parametrize("harm", ["removed", "cut short"])
def test_an_hour_whose_parts_are_gone_is_made_anew(store_dir, compact, harm):
    put(store_dir, 1, numbered(0, 10))
    compact()
    part = store_dir / pointer(store_dir)["parts"][0]["key"]
    if harm == "removed":
        part.unlink()
    else:
        os.truncate(part, 100)
    assert compact()[1]["hours"][0]["generation"] == 2
    assert numbers(store_dir) == list(range(10))
    assert compact()[1]["hours"][0]["result"] == "nothing to do"


def test_a_late_object_makes_a_new_generation_and_raw_stays(store_dir, compact):
    put(store_dir, 1, numbered(0, 10))
    compact()
    first = pointer(store_dir)
    put(store_dir, 2, numbered(10, 5))
    raw = {path: path.read_bytes() for path in (store_dir / "raw").rglob("*.gz")}
    assert compact()[0] == 0
    second = pointer(store_dir)
    assert (first["generation"], second["generation"], second["rows"]) == (1, 2, 15)
    assert not {part["key"] for part in first["parts"]} & {part["key"] for part in second["parts"]}
    assert numbers(store_dir) == list(range(15))
    assert all((store_dir / part["key"]).exists() for part in first["parts"]), "a reader may be at it"
    assert raw == {path: path.read_bytes() for path in (store_dir / "raw").rglob("*.gz")}


def test_another_recipe_makes_the_hour_anew(store_dir, compact, monkeypatch):
    put(store_dir, 1, [line(b'{"n":1}')])
    compact()
    monkeypatch.setenv("BODY_FORMAT", "json")
    assert compact()[1]["hours"][0]["generation"] == 2


def test_an_hour_without_objects_is_published_as_empty(store_dir, compact):
    code, document = compact()
    assert (code, document["hours"][0]["rows"], pointer(store_dir)["parts"]) == (0, 0, [])
    assert compact()[1]["hours"][0]["result"] == "nothing to do"


def test_an_hour_larger_than_the_local_batch_is_whole(store_dir, compact, monkeypatch):
    monkeypatch.setattr("ingest.lake.sources.batches.__defaults__", (1,))
    for number in range(5):
        put(store_dir, number, numbered(number * 10, 10))
    assert compact()[0] == 0
    assert len(pointer(store_dir)["parts"]) == 5
    assert numbers(store_dir) == list(range(50))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "not whole gzip"),
        (codec.encode(text_line("a"), 1)[:-3], "not whole gzip"),
        (codec.encode(text_line("a"), 2), "has 1 lines, and its head declares 2"),
        (codec.encode(b"[1]\n", 1), "a line is no event"),
        (codec.encode(b"\n", 1), "a line is no event"),
        (codec.encode(b'{"ts":1,"body":"a"}\n{"ts":2,\n', 2), "a line is no event"),
        (codec.encode(b'{"ts":"now","body":"a"}\n', 1), "a line is no event"),
    ],
    ids=["empty", "torn", "short", "no object", "blank", "cut", "no instant"],
)
def test_an_object_that_is_not_what_its_head_says_is_named_and_nothing_is_published(store_dir, compact, body, told):
    put(store_dir, 1, numbered(0, 10))
    compact()
    before = pointer(store_dir)
    (store_dir / key(2)).write_bytes(body)
    code, document = compact()
    assert code == DIFFERS
    assert key(2) in document["told"]
    assert told in document["told"]
    assert pointer(store_dir) == before


def test_an_object_that_somebody_compressed_anew_counts_by_its_lines(store_dir, compact):
    put(store_dir, 1, numbered(0, 3))
    (store_dir / key(2)).write_bytes(gzip.compress(b"".join(numbered(3, 4))))
    assert compact()[0] == 0
    assert numbers(store_dir) == list(range(7))


def test_a_key_that_no_collector_makes_is_left_out_and_told(store_dir, compact):
    put(store_dir, 1, numbered(0, 3))
    (store_dir / "raw" / HOUR / "_SUCCESS").touch()
    code, document = compact()
    assert (code, document["hours"][0]["left_out"]) == (0, [f"raw/{HOUR}/_SUCCESS"])
    assert "_SUCCESS" in document["told"]


@pytest.mark.parametrize("words", [(), ("--force",)])
@pytest.mark.parametrize(
    "strange",
    [
        f"raw/{HOUR}/{HOUR}/{key(1).rpartition('/')[2]}",
        f"raw/{HOUR}/dt=2025-12-02/hr=13/{key(1).rpartition('/')[2]}",
        f"raw/{HOUR}/raw/{HOUR}/{key(1).rpartition('/')[2]}",
        f"raw/{HOUR}/old/{key(1).rpartition('/')[2]}",
    ],
    ids=["itself", "another hour", "the whole tree", "a folder"],
)
def test_copies_in_a_folder_inside_the_hour_are_left_out_and_told(store_dir, compact, strange, words):
    put(store_dir, 1, numbered(0, 5))
    (store_dir / strange).parent.mkdir(parents=True)
    (store_dir / strange).write_bytes((store_dir / key(1)).read_bytes())
    code, document = compact(*words)
    assert (code, document["hours"][0]["left_out"]) == (0, [strange])
    assert (numbers(store_dir), pointer(store_dir)["inputs"]["objects"]) == (list(range(5)), 1)


def test_raw_that_was_removed_does_not_empty_the_hour(store_dir, compact):
    put(store_dir, 1, numbered(0, 3))
    put(store_dir, 2, numbered(3, 3))
    compact()
    (store_dir / key(2)).unlink()
    code, document = compact()
    assert (code, numbers(store_dir)) == (DIFFERS, list(range(6)))
    assert "3 events are left of the 6" in document["told"]
    assert compact("--force")[0] == 0
    assert numbers(store_dir) == list(range(3))


@pytest.mark.parametrize(("seconds", "code"), [(-1, OPEN), (60 + 119, OPEN), (60 + 120, 0)])
def test_an_open_hour_is_refused_without_force(store_dir, compact, monkeypatch, seconds, code):
    monkeypatch.setattr("ingest.commands.compact.time.time", lambda: END + seconds)
    put(store_dir, 1, numbered(0, 3))
    assert compact()[0] == code
    assert (pointer(store_dir) is None) == (code == OPEN)
    assert compact("--force")[0] == 0
    assert numbers(store_dir) == list(range(3))


def test_one_bad_hour_keeps_no_other_from_being_done(store_dir, compact):
    put(store_dir, 1, numbered(0, 3))
    bad = "dt=2025-12-02/hr=13"
    (store_dir / put(store_dir, 1, numbered(0, 3), bad)).write_bytes(b"")
    code, document = compact(hour="dt=2025-12-02/hr=12..dt=2025-12-02/hr=14")
    assert code == DIFFERS
    assert [row["result"] for row in document["hours"]] == ["published", "differs", "published"]
    assert numbers(store_dir) == list(range(3))


def test_a_doubtful_pointer_is_exit_code_3_for_its_hour_and_the_sweep_says_why_it_left_all(store_dir, compact):
    bad = "dt=2025-12-02/hr=13"
    for hour in (HOUR, bad):
        put(store_dir, 1, numbered(0, 3), hour)
        assert compact(hour=hour)[0] == 0
    pointed = store_dir / f"raw_parquet/_hours/{bad}.json"
    pointed.write_bytes(pointed.read_bytes().replace(b'"generation": 1', b'"generation": "1"'))
    for part in (store_dir / "raw_parquet/_parts").rglob(f"*{bad[3:13]}-13/*"):
        os.utime(part, (BEGIN - 49 * 3600, BEGIN - 49 * 3600))
    put(store_dir, 2, numbered(3, 3))
    code, document = compact(hour=f"{bad}..{HOUR}")
    assert (code, [row["result"] for row in document["hours"]]) == (DIFFERS, ["differs", "published"])
    assert "generation is '1'" in document["hours"][0]["why"]
    assert document["not_swept"] == [document["hours"][0]["why"]]


@pytest.mark.usefixtures("store_dir")
@pytest.mark.parametrize("words", [["--hour", "yesterday"], ["--hour", "dt=2025-12-02/hr=25"], [], ["--engine", "x"]])
def test_wrong_words_are_64(words):
    try:
        code = main(["compact", *words])
    except SystemExit as ended:
        code = ended.code
    assert code == os.EX_USAGE


def test_without_a_store_nothing_is_made(store_dir, compact):
    store_dir.rmdir()
    code, document = compact()
    assert code == FAILED
    assert "is not there" in document["told"]
    assert not store_dir.exists()


def test_lines_too_long_for_all_threads_are_done_by_one(store_dir, compact, monkeypatch):
    """Each thread of DuckDB holds 2,048 lines at a time."""
    import duckdb

    put(store_dir, 1, numbered(0, 10))
    plain, asked = DuckDB._run, []

    def run(self, query, into, threads):
        asked.append(threads)
        if threads != 1:
            raise duckdb.OutOfMemoryException("told to fail")
        return plain(self, query, into, threads)

    monkeypatch.setattr(DuckDB, "_run", run)
    assert compact()[0] == 0
    assert asked == [None, 1]
    assert numbers(store_dir) == list(range(10))


def test_memory_that_does_not_suffice_is_told_and_nothing_is_published(store_dir, compact, monkeypatch):
    monkeypatch.setattr("ingest.lake.embedded.MEMORY", 4 << 20)
    put(store_dir, 1, [text_line("x" * 60_000, number) for number in range(200)])
    code, document = compact()
    assert (code, pointer(store_dir)) == (FAILED, None)
    assert "the longest line has 60," in document["told"]
    assert "--memory" in document["told"]


@pytest.mark.parametrize("declared", [True, False], ids=["ours", "compressed anew"])
@pytest.mark.parametrize(
    ("line", "code"),
    [(line(b'"x"', 1, b'"query":"%s"' % (b"x" * 4000)), 0), (b"x" * 4000 + b"\n", DIFFERS)],
    ids=["events", "no events"],
)
def test_an_object_that_inflates_to_far_more_takes_no_memory_for_it(store_dir, compact, line, code, declared):
    """64 MiB of lines are counted, and where an engine failed judged, one after the other."""
    count = (64 << 20) // len(line)
    body = codec.encode(line * count, count) if declared else gzip.compress(line * count, 1)
    (store_dir / key(1)).parent.mkdir(parents=True)
    (store_dir / key(1)).write_bytes(body)
    tracemalloc.start()
    try:
        assert compact()[0] == code
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


def test_objects_without_a_head_of_ours_are_held_four_at_a_time():
    held = [0]

    class Foreign(MemoryStore):
        async def first_bytes(self, key, size):
            return self.objects[key][:size]

        async def get(self, key):
            held.append(held[-1] + 1)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            held.append(held[-1] - 1)
            return self.objects[key]

    store = Foreign()
    store.objects = {key(number): gzip.compress(b"".join(numbered(number, 1))) for number in range(40)}
    frozen = asyncio.run(freeze(Patient(store), "raw", HOUR))
    assert [source.events for source in frozen.sources] == [1] * 40
    assert max(held) == 4


# ------------------------------------------------------------------------------------------- rivals, and the store


YOUNG = f"lake/_parts/{'c' * 16}/2025-12-02-16/part-00000.parquet"


class Dated(MemoryStore):
    """A store that tells of each key when it was put; of one that was never put, when it was first seen."""

    def __init__(self) -> None:
        super().__init__()
        self.modified: dict[str, float] = {}

    async def replace(self, key, *arguments):
        replaced = await super().replace(key, *arguments)
        if replaced:
            self.modified[key] = self.clock()
        return replaced

    async def listing(self, prefix):
        return [
            Listed(one.key, one.size, self.modified.setdefault(one.key, one.modified))
            for one in await super().listing(prefix)
        ]


class Race:
    """A lake over one store in memory, and as many rivals as are wanted. `off`: what their own clocks are ahead."""

    def __init__(self, tmp_path) -> None:
        self.store = Dated()
        self.now = END + 3600.0
        self.off = 0.0
        self.store.clock = lambda: self.now
        self.local = tmp_path

    def lake(self, store=None, engine=None, **more) -> Compactor:
        patient = Patient(store or self.store, (0.0, 0.0))
        return Compactor(
            patient,
            Filesystem(),
            "raw",
            "lake",
            Recipe.of("text"),
            engine or DuckDB("text", threads=1),
            Pointers(patient, "lake"),
            self.local,
            clock=lambda: self.now + self.off,
            **more,
        )

    def put(self, number, lines) -> None:
        self.store.objects[key(number)] = codec.encode(b"".join(lines), len(lines))

    def later(self, seconds) -> None:
        """Let time pass. The store shows it by a part of another hour."""
        self.now += seconds
        self.store.objects[YOUNG], self.store.modified[YOUNG] = b"of a run under way", self.now

    @property
    def pointer(self):
        return json.loads(self.store.objects[f"lake/_hours/{HOUR}.json"])

    @property
    def parts(self):
        return {name for name in self.store.objects if name.startswith("lake/_parts/")} - {YOUNG}


@pytest.fixture
def race(tmp_path):
    return Race(tmp_path)


class Meanwhile:
    """An engine during whose work something else happens."""

    def __init__(self, act) -> None:
        self.act = act
        self.engine = DuckDB("text", threads=1)

    def write(self, *arguments):
        self.act()
        return self.engine.write(*arguments)


def test_who_comes_second_with_the_same_objects_finds_it_done(race):
    race.put(1, numbered(0, 3))
    rival = []

    def act():
        if not rival:
            rival.append(asyncio.run(compact_hour(race.lake(), HOUR)))

    done = asyncio.run(compact_hour(race.lake(engine=Meanwhile(act)), HOUR))
    assert (rival[0].result, done.result) == (Result.PUBLISHED, Result.NOTHING_TO_DO)
    assert race.pointer["generation"] == 1


def test_who_comes_second_with_more_objects_decides_anew(race):
    race.put(1, numbered(0, 3))
    acts = iter([lambda: asyncio.run(compact_hour(race.lake(), HOUR)), lambda: None])

    def act():
        next(acts)()
        race.put(2, numbered(3, 3))

    done = asyncio.run(compact_hour(race.lake(engine=Meanwhile(act)), HOUR))
    assert (done.result, done.generation.generation, done.generation.rows) == (Result.PUBLISHED, 2, 6)


def test_who_is_always_second_gives_up(race):
    race.put(1, numbered(0, 3))
    left = iter(range(2, 100))

    def act():
        asyncio.run(compact_hour(race.lake(), HOUR))
        number = next(left)
        race.put(number, numbered(number * 3, 3))

    with pytest.raises(Contended):
        asyncio.run(compact_hour(race.lake(engine=Meanwhile(act)), HOUR))
    assert race.pointer["rows"] == 3 * 8


def test_a_publication_whose_answer_was_lost_is_one(race):
    race.put(1, numbered(0, 3))

    class Losing(MemoryStore):
        async def replace(self, key, *arguments):
            if key not in self.objects:
                self.lose_next_answers()
            return await super().replace(key, *arguments)

    store = Losing()
    store.objects = race.store.objects
    done = asyncio.run(compact_hour(race.lake(store), HOUR))
    assert done.result is Result.PUBLISHED
    assert (race.pointer["generation"], len(race.parts)) == (1, 1)


@pytest.mark.parametrize("calls", range(9))
def test_a_store_that_fails_once_at_any_call_is_asked_again(race, calls):
    race.put(1, numbered(0, 3))
    race.store.succeed_next(calls)
    race.store.fail_next()
    done = asyncio.run(compact_hour(race.lake(), HOUR))
    assert (done.result, race.pointer["rows"]) == (Result.PUBLISHED, 3)


def test_a_store_that_stays_away_is_a_failure_and_nothing_is_published(race):
    race.put(1, numbered(0, 3))
    race.store.down = True
    with pytest.raises(StorageError):
        asyncio.run(compact_hour(race.lake(), HOUR))
    assert set(race.store.objects) == {key(1)}


def test_keys_of_other_hours_are_left_out_though_the_store_lists_them(race):
    race.put(1, numbered(0, 3))
    others = [key(2, "dt=2025-12-02/hr=15"), key(2, prefix="raw2"), key(2, prefix="raw/raw")]
    plain = race.store.listing

    async def listing(prefix):
        return [*await plain(prefix), *(Listed(other, 100, race.now) for other in others)]

    race.store.listing = listing
    done = asyncio.run(compact_hour(race.lake(), HOUR))
    assert (done.generation.rows, done.strange) == (3, tuple(others))


def forgetful(race, *, hours, lost):
    """Leave objects out of so many lists of the hour, and out of none of the day's."""
    plain, left = race.store.listing, iter(range(hours))

    async def listing(prefix):
        found = await plain(prefix)
        if prefix == f"raw/{HOUR}/" and next(left, None) is not None:
            return [one for one in found if one.key not in lost]
        return found

    race.store.listing = listing


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("lost", [{key(1), key(2)}, {key(2)}], ids=["all", "one"])
def test_a_list_that_lacks_objects_by_mistake_takes_no_event_out_of_force(race, lost, force):
    race.put(1, numbered(0, 3))
    race.put(2, numbered(3, 3))
    asyncio.run(compact_hour(race.lake(), HOUR))
    forgetful(race, hours=8, lost=lost)
    with pytest.raises(Differs, match=r"events are left of the 6"):
        asyncio.run(compact_hour(race.lake(), HOUR, force=force))
    assert (race.pointer["generation"], race.pointer["rows"]) == (1, 6)


def test_fewer_events_are_published_if_it_is_wished_and_both_lists_agree(race):
    race.put(1, numbered(0, 3))
    asyncio.run(compact_hour(race.lake(), HOUR))
    race.store.objects.pop(key(1))
    with pytest.raises(Differs, match=r"0 events are left of the 3"):
        asyncio.run(compact_hour(race.lake(), HOUR))
    asyncio.run(compact_hour(race.lake(), HOUR, force=True))
    assert (race.pointer["generation"], race.pointer["rows"]) == (2, 0)


@pytest.mark.parametrize("asleep", [False, True])
def test_a_run_that_took_longer_than_a_day_publishes_nothing(race, asleep):
    """By then its parts may be swept. A machine that slept knows it by its clock alone."""
    race.put(1, numbered(0, 3))
    passed = iter([0.0, 0.0 if asleep else 24 * 3600.0 + 1])

    def act():
        race.now += 24 * 3600 + 1 if asleep else 0

    with pytest.raises(Contended):
        asyncio.run(compact_hour(race.lake(engine=Meanwhile(act), monotonic=lambda: next(passed)), HOUR))
    assert f"lake/_hours/{HOUR}.json" not in race.store.objects


# ---------------------------------------------------------------------------------------------------------- sweep

ORPHAN = f"lake/_parts/{'0' * 16}/2025-12-02-14/part-00000.parquet"


def swept(race):
    return asyncio.run(sweep(race.lake(), [HOUR]))


def test_parts_that_no_pointer_names_go_after_48_hours_of_its_generation(race):
    race.store.objects[ORPHAN] = b"of a run that was killed"
    race.store.objects["lake/_parts/notes.txt"] = b"not ours"
    alone = f"lake/_parts/{'1' * 16}/2025-12-02-15/part-00000.parquet"
    race.store.objects[alone] = b"of an hour without a pointer"
    kept = {alone, "lake/_parts/notes.txt"}

    race.put(1, numbered(0, 3))
    asyncio.run(compact_hour(race.lake(), HOUR))
    first = race.parts - kept - {ORPHAN}
    assert swept(race).removed == 0
    race.later(48 * 3600 - 1)
    assert swept(race).removed == 0
    race.later(2)
    assert swept(race).removed == 1
    assert race.parts == first | kept
    race.put(2, numbered(3, 3))
    asyncio.run(compact_hour(race.lake(), HOUR))
    second = race.parts - first - kept
    assert swept(race).removed == 0, "the first generation is old, but it was in force until now"
    race.later(48 * 3600 + 1)
    assert swept(race).removed == 1
    assert race.parts == second | kept


def test_what_a_killed_engine_left_in_its_folder_goes_with_old_parts(race):
    run = f"lake/_parts/{'0' * 16}"
    rests = {f"{run}/2025-12-02-14/_temporary/0/task_1/part-00000.parquet", f"{run}/2025-12-02-14/_temporary/0/"}
    others = {f"{run}/notes.txt", "lake/_parts/a/2025-12-02-14/x", f"other/{run}/2025-12-02-14/x"}
    for name in rests | others:
        race.store.objects[name] = b"x"
    race.put(1, numbered(0, 3))
    asyncio.run(compact_hour(race.lake(), HOUR))
    assert swept(race).removed == 0
    race.later(48 * 3600 + 1)
    race.store.objects[ORPHAN.replace("-14/", "-15/")], kept = b"x", race.pointer
    pointed = f"lake/_hours/{HOUR}.json"
    race.store.objects[pointed] = b"{}"
    assert (swept(race).removed, rests <= race.store.objects.keys()) == (0, True), "nothing goes on a doubt"
    race.store.objects[pointed] = json.dumps(kept).encode()
    assert swept(race).removed == len(rests)
    assert race.store.objects.keys() & (rests | others) == others


def test_what_a_pointer_names_is_never_swept_however_old(race):
    race.put(1, numbered(0, 3))
    asyncio.run(compact_hour(race.lake(), HOUR))
    race.later(3650 * 86400)
    assert swept(race) == (0, ())


@pytest.mark.parametrize("sweeper", [0, 72 * 3600])
@pytest.mark.parametrize("publisher", [0, 72 * 3600, -72 * 3600])
def test_the_clock_of_a_machine_shortens_nobody_s_48_hours(race, publisher, sweeper):
    """A publisher's clock dates its generation, and a sweeper's may believe that two days have passed."""
    race.store.objects[ORPHAN] = b"of a run under way"
    asyncio.run(race.store.listing("lake/"))
    race.now += 3600
    race.off = publisher
    race.put(1, numbered(0, 3))
    asyncio.run(compact_hour(race.lake(), HOUR))
    race.later(24 * 3600)
    race.off = sweeper
    assert swept(race).removed == 0
    race.later(20 * 3600)
    race.off = publisher
    race.put(2, numbered(3, 3))
    asyncio.run(compact_hour(race.lake(), HOUR))
    race.later(5 * 3600)
    race.off = sweeper
    assert swept(race).removed == 0, "all but the last generation is older than 48 hours, but that one is not"
    race.later(44 * 3600)
    assert swept(race).removed == 2


def test_a_part_that_bears_a_time_to_come_makes_no_other_old(race):
    race.store.objects[ORPHAN] = b"of a run under way"
    race.put(1, numbered(0, 3))
    asyncio.run(compact_hour(race.lake(), HOUR))
    race.later(96 * 3600)
    race.now -= 95 * 3600
    assert swept(race).removed == 0


def document(**changes):
    part = f"lake/_parts/{'a' * 16}/2025-12-02-14/part-00000.parquet"
    return {
        "generation": 1,
        "hour": HOUR,
        "recipe": {"version": 1, "body": "text", "columns": ["dt"]},
        "inputs": {"objects": 1, "events": 3, "sha256": "0" * 64},
        "parts": [{"key": part, "rows": 3, "bytes": 9}],
        "rows": 3,
        "published": BEGIN,
    } | changes


def with_part(**changes):
    return document(parts=[document()["parts"][0] | changes])


def with_inputs(**changes):
    return document(inputs=document()["inputs"] | changes)


DOUBTFUL = {
    "a page": b"<!DOCTYPE html><title>Sign in</title>",
    "nothing": b"",
    "cut off": json.dumps(document()).encode()[:-9],
    "nested": b"[" * 100_000,
    "a list": [],
    "a text": "x",
    "nothing told": {},
    "a member less": {name: value for name, value in document().items() if name != "rows"},
    "a member more": document(form=2),
    "generation null": document(generation=None),
    "generation true": document(generation=True),
    "generation text": document(generation="1"),
    "generation 0": document(generation=0),
    "events text": with_inputs(events="x"),
    "events true": with_inputs(events=True),
    "events below 0": with_inputs(events=-3),
    "events a fraction": with_inputs(events=3.0),
    "events beyond 64 bits": with_inputs(events=1 << 70),
    "no digest": with_inputs(sha256="…"),
    "inputs a list": document(inputs=[1, 3, "0"]),
    "recipe null": document(recipe=None),
    "columns a text": document(recipe=document()["recipe"] | {"columns": "dt"}),
    "columns numbers": document(recipe=document()["recipe"] | {"columns": [1]}),
    "published text": document(published="x"),
    "another hour": document(hour="dt=2025-12-02/hr=13"),
    "no hour": document(hour=None),
    "parts null": document(parts=None),
    "parts by name": document(parts={"key": 1}),
    "a part null": document(parts=[None]),
    "a part's rows": with_part(rows="3"),
    "rows that do not sum up": document(rows=4),
    "fewer events": with_inputs(events=2),
    "a part twice": document(parts=document()["parts"] * 2, rows=6, inputs=document()["inputs"] | {"events": 6}),
    "a part of raw": with_part(key=key(1)),
    "a part elsewhere": with_part(key=f"other/_parts/{'a' * 16}/2025-12-02-14/part-00000.parquet"),
    "a part above": with_part(key=f"lake/_parts/../_parts/{'a' * 16}/2025-12-02-14/part-00000.parquet"),
    "a part of a table": with_part(key=f"lake/_table/{'a' * 16}/2025-12-02-14/part-00000.parquet"),
    "a part of another hour": with_part(key=f"lake/_parts/{'a' * 16}/2025-12-02-13/part-00000.parquet"),
}


@pytest.mark.parametrize("told", DOUBTFUL.values(), ids=DOUBTFUL.keys())
def test_a_pointer_that_is_not_one_to_the_letter_is_named_and_nothing_is_changed(race, told):
    """Neither its hour is published anew, nor does the sweep go on, which was asked for another hour."""
    name = f"lake/_hours/{HOUR}.json"
    race.put(1, numbered(0, 3))
    race.store.objects |= {part["key"]: b"" for part in document()["parts"]}
    race.store.objects[ORPHAN] = b"of a run that was killed"
    race.store.objects[name] = json.dumps(document()).encode()
    asyncio.run(race.store.listing("lake/"))
    race.later(49 * 3600)
    before = race.store.objects | {name: told if type(told) is bytes else json.dumps(told).encode()}
    race.store.objects = dict(before)
    with pytest.raises(Differs, match=name):
        asyncio.run(compact_hour(race.lake(), HOUR, force=True))
    result = asyncio.run(sweep(race.lake(), ["dt=2025-12-02/hr=13"]))
    assert result.removed == 0
    assert name in result.doubts[0]
    assert race.store.objects == before
    race.store.objects[name] = json.dumps(document()).encode()
    assert swept(race) == (1, ()), "the same, but for the pointer, is swept"


def test_a_pointer_of_parts_that_are_not_there_is_named_and_nothing_is_swept(race):
    race.put(1, numbered(0, 3))
    asyncio.run(compact_hour(race.lake(), HOUR))
    (part,) = race.parts
    race.store.objects[ORPHAN] = race.store.objects.pop(part)
    asyncio.run(race.store.listing("lake/"))
    race.later(49 * 3600)
    result = swept(race)
    assert (result.removed, race.parts) == (0, {ORPHAN})
    assert f"names {part}, which is not listed" in result.doubts[0]


def test_inputs_are_known_by_keys_and_events_whatever_their_order():
    one, two = Source("a", 1), Source("b", 2)
    assert Inputs.of([one, two]) == Inputs.of([two, one])
    assert Inputs.of([one, two]) != Inputs.of([one, Source("b", 3)])
    assert Inputs.of([one]) != Inputs.of([Source("c", 1)])


def test_how_far_a_range_of_hours_has_come_is_shown(compact, monkeypatch):
    monkeypatch.setattr("ingest.commands.report.TOLD_EVERY", 0.0)
    _, document = compact(hour="dt=2025-12-02/hr=12..dt=2025-12-02/hr=14")
    assert "compact: 2 of 3 hours" in document["told"]
