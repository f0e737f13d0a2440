"""The journal is a part of what waits: what the operator's commands say, put and remove of it (F1)."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import pytest
from structlog.testing import capture_logs

from ingest.__main__ import main
from ingest.commands import dlq, replay
from ingest.config.variables import VARIABLES
from ingest.disk.filesystem import Filesystem
from ingest.disk.slots import Slot
from ingest.format import codec
from tests.process.collector import Collector
from tests.stand_ins.disk import Disk
from tests.stand_ins.letters import Store, bodies, body, files, key, leave, lines

REPOSITORY = Path(__file__).parents[2]
HOUR, OTHER_HOUR = "dt=2025-12-02/hr=14", "dt=2025-12-03/hr=00"
NOTHING = "0 events stored in {}, 0 corrupt files quarantined, 0 events lost in them, 0 expired; "


@pytest.fixture
def place(tmp_path, monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("STORE_DIR", str(tmp_path / "objects"))
    monkeypatch.setenv("DLQ_DIR", str(tmp_path / "dlq"))
    monkeypatch.setattr("ingest.telemetry.log.configure", lambda _: None)
    (tmp_path / "dlq").mkdir()
    (tmp_path / "objects").mkdir()
    with capture_logs():
        yield tmp_path


@pytest.fixture
def faulty(monkeypatch):
    """The commands' disk, with faults as rules; root may read everything, so that modes would prove nothing."""
    disk = Disk()
    monkeypatch.setattr(dlq, "Filesystem", lambda: disk)
    return disk


def letters(place, number=0):
    return place / "dlq" / str(number)


def journal(place, number=0):
    return place / "dlq/journal" / str(number)


def segment(place, sequence, data, number=0, **how):
    """A segment as a process that was killed left it."""
    root = journal(place, number)
    root.mkdir(parents=True, exist_ok=True)
    (root / "lock").touch()
    return leave(root, key(sequence, **how).removesuffix(".gz"), data)


def held(base):
    return Slot.take_first_free(Filesystem(), base)


def document(capsys, *words):
    """Run with `--json`; returns the exit code, the document and what was told beside it."""
    code = main(["dlq", *words, "--json"])
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["exit"] == code
    return code, found, err


# ------------------------------------------------------------------------------------------- a server that is killed


@pytest.mark.parametrize("durability", ["journal", "fsync"])
def test_f1_what_a_killed_server_left_in_its_journal_is_listed_exported_and_replayed(tmp_path, durability):
    env = {"DURABILITY": durability, "FLUSH_INTERVAL": "1h"}
    with Collector(tmp_path / "run", env, measured=False) as server:
        send(server, 7)
        running = command(server, "replay")
        where = server.folder / "data/objects"
        assert (running.returncode, running.stdout.strip()) == (1, f"{NOTHING.format(where)}0 files with 0 events stay")
        root = server.dlq_folder / "journal/0"
        assert f"{root} is held by a running process, which recovers its files itself: left alone" in running.stderr
        listed = command(server, "ls")
        assert (listed.returncode, listed.stdout.splitlines()[-1].split()) == (0, ["total", "0", "0", "0"])
        assert listed.stderr == f"{root} is held by a running process: left alone\n"
        server.kill()
    listed = command(server, "ls")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert listed.stdout.splitlines()[1].split()[2:5] == ["journal", "1", "7"]
    assert command(server, "verify").stdout == "1 sound, 0 corrupt, 0 unreadable\n"
    exported = command(server, "export", "-", text=False)
    assert bodies(exported.stdout) == [f"n={n}" for n in range(7)]
    put = command(server, "replay", "--json")
    assert (put.returncode, json.loads(put.stdout)["events_stored"]) == (0, 7)
    objects = [path for path in (tmp_path / "run").rglob("*.jsonl.gz") if server.dlq_folder not in path.parents]
    assert [bodies(path.read_bytes()) for path in objects] == [[f"n={n}" for n in range(7)]]
    again = command(server, "replay")
    assert (again.returncode, again.stdout) == (0, "nothing to replay\n")


def test_f1_a_killed_server_that_keeps_events_in_memory_leaves_nothing_to_replay(tmp_path):
    with Collector(tmp_path / "run", {"DURABILITY": "memory", "FLUSH_INTERVAL": "1h"}, measured=False) as server:
        send(server, 7)
        server.wait_until(lambda _: server.dlq_folder.is_dir())  # it answers before
        server.kill()
    done = command(server, "replay")
    assert (done.returncode, done.stdout) == (0, "nothing to replay\n")


def send(server, events):
    post = build_opener(ProxyHandler({}))
    for n in range(events):
        with post.open(f"{server.url}/collect", data=b"n=%d" % n, timeout=20) as answer:
            assert answer.status < 300


def command(server, *words, text=True):
    base = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "DLQ_DIR": str(server.dlq_folder)}
    return subprocess.run(
        [sys.executable, "-m", "ingest", "dlq", *words],
        env=base,
        cwd=server.folder,
        capture_output=True,
        text=text,
        timeout=60,
        check=False,
    )


# ------------------------------------------------------------------------------------------------ slots that are held


def test_f1_of_two_slots_the_one_that_a_process_holds_is_left_alone(place, capsys):
    process = held(place / "dlq/journal")
    leave(process.path, key(1).removesuffix(".gz"), lines(3) + b'{"half')
    segment(place, 2, lines(4), number=1)
    said = f"{process.path} is held by a running process"
    code, listed, err = document(capsys, "ls")
    assert (code, listed["total"]["events"], listed["held"]) == (0, 4, [str(process.path)])
    assert said in err
    code, verified, err = document(capsys, "verify")
    assert (code, verified["sound"], verified["corrupt"]) == (0, 1, [])
    code, exported, err = document(capsys, "export", str(place / "out"))
    assert (code, exported["events"], files(place / "out")) == (0, 4, [key(2)])
    code, rehearsed, err = document(capsys, "replay", "--dry-run")
    assert (code, rehearsed["events"]) == (1, 4)
    code, put, err = document(capsys, "replay")
    assert (code, put["events_stored"], put["files_left"], put["held"]) == (1, 4, 0, [str(process.path)])
    assert said in err
    assert files(place / "objects") == [key(2)]
    assert files(process.path) == [key(1).removesuffix(".gz")]
    process.release()
    assert main(["dlq", "replay"]) == 0
    assert files(place / "objects") == [key(1), key(2)]


def test_f1_looking_makes_no_file_and_keeps_no_lock(place, capsys):
    leave(letters(place), key(1), body(3))
    leave(journal(place), key(2).removesuffix(".gz"), lines(3))
    before = sorted(path for path in (place / "dlq").rglob("*"))
    for words in (["ls"], ["verify"], ["replay", "--dry-run"], ["discard", key(1), "--dry-run"]):
        assert main(["dlq", *words]) == 0
    assert sorted(path for path in (place / "dlq").rglob("*")) == before
    capsys.readouterr()
    assert held(place / "dlq").number == 0


# ------------------------------------------------------------------------------------------------------- damage


def test_f1_a_torn_tail_was_never_acknowledged_and_is_no_damage(place, capsys):
    torn = segment(place, 1, lines(3) + b'{"half')
    assert main(["dlq", "verify"]) == 0
    out, err = capsys.readouterr()
    assert out == "1 sound, 0 corrupt, 0 unreadable\n"
    assert err == f"{torn}: sound; its last line was cut off before it was acknowledged\n"
    code, put, _ = document(capsys, "replay")
    assert (code, put["events_stored"], put["files_quarantined"], put["events_lost"]) == (0, 3, 0, 0)
    assert bodies((place / "objects" / key(1)).read_bytes()) == ["0", "1", "2"]


def test_f1_a_corrupt_segment_is_told_and_quarantined_by_replay(place, capsys):
    bad = segment(place, 1, lines(2) + b"bad\n" + lines(1, 2))
    code, verified, err = document(capsys, "verify")
    assert (code, verified["sound"]) == (1, 0)
    assert verified["corrupt"] == [{"path": str(bad), "key": key(1), "events": 3, "bad_lines": 1, "torn_tail": False}]
    assert err == f"{bad}: corrupt, 3 sound lines, 1 bad ones\n"
    code, put, _ = document(capsys, "replay")
    assert (code, put["events_stored"], put["files_quarantined"], put["events_lost"]) == (0, 3, 1, 1)
    assert files(place / "objects") == [key(1), key(1, prefix="raw_dlq").removesuffix(".gz")]


@pytest.mark.parametrize(
    ("letter", "header", "events"),
    [(body(7), 7, 7), (body(3), 3, 5), (body(3)[:-4], 3, 5), (b"garbage", 0, 5)],
    ids=["the letter is longer", "the letter verifies", "the segment is longer", "the letter has nothing"],
)
def test_f1_two_copies_of_a_key_are_one_batch(place, capsys, letter, header, events):
    copy = leave(letters(place), key(1), letter)
    segment(place, 1, lines(5))
    _, listed, _ = document(capsys, "ls")
    assert listed["total"]["files"] == 2
    assert listed["total"]["events"] == header
    _, exported, _ = document(capsys, "export", str(place / "out"))
    assert (exported["files"], exported["events"]) == (1, events)
    _, rehearsed, _ = document(capsys, "replay", "--dry-run")
    assert (rehearsed["files"], rehearsed["events"]) == (2, events)
    code, put, _ = document(capsys, "replay")
    assert (code, put["files_left"]) == (0, 0)
    assert (place / "out" / key(1)).read_bytes() == (place / "objects" / key(1)).read_bytes()
    assert len(bodies((place / "objects" / key(1)).read_bytes())) == events
    assert not copy.exists()
    assert files(place / "dlq") == []


def test_f1_a_segment_never_replaces_an_object(place):
    segment(place, 1, lines(3))
    leave(place / "objects", key(1), body(9))
    assert main(["dlq", "replay"]) == 0
    assert (place / "objects" / key(1)).read_bytes() == body(9)
    assert files(place / "dlq") == []


def test_f1_a_temporary_that_is_all_there_is_of_a_batch_is_told_and_replayed(place, capsys):
    path = segment(place, 1, lines(3))
    temporary = path.with_name(f".{path.name}.0123456789ab.tmp")
    path.rename(temporary)
    code, listed, err = document(capsys, "ls")
    assert (code, listed["unfinished"]) == (0, [str(temporary)])
    assert str(temporary) in err
    assert main(["dlq", "replay", "--dry-run"]) == 0
    assert "nothing to replay" not in capsys.readouterr().out
    code, put, _ = document(capsys, "replay")
    assert (code, put["events_stored"]) == (0, 3)
    assert files(place / "dlq") == []


# ------------------------------------------------------------------------------------------------- what cannot be read


@pytest.mark.parametrize("words", [["ls"], ["verify"], ["export"], ["replay", "--dry-run"], ["replay"]], ids=" ".join)
@pytest.mark.parametrize("where", ["dlq", "journal"])
def test_f1_a_folder_that_cannot_be_read_is_told_and_hides_nothing_beside_it(place, faulty, capsys, words, where):
    base = {"dlq": letters, "journal": journal}[where]
    for number in (0, 1):
        leave(letters(place, number), key(1 + number), body(3))
        segment(place, 3 + number, lines(4), number)
    closed = base(place, 1) / "raw"
    faulty.on("scandir", under=closed).fail(errno.EACCES)
    code, found, err = document(capsys, *words, *([str(place / "out")] if words == ["export"] else []))
    assert code == 1
    assert [told["path"] for told in found["unreadable"]] == [str(closed)]
    assert f"scandir {closed} [EACCES]" in err
    events = {"dlq": 3 + 4 + 4, "journal": 3 + 3 + 4}[where]
    seen = found.get("total", found).get("events", found.get("events_stored", found.get("sound")))
    assert seen == (3 if words == ["verify"] else events)


@pytest.mark.parametrize("words", [["verify"], ["export"], ["replay", "--dry-run"], ["replay"], ["ls"]], ids=" ".join)
def test_f1_a_segment_that_cannot_be_read_is_told_and_stays(place, faulty, capsys, words):
    bad = segment(place, 1, lines(3))
    segment(place, 2, lines(4))
    faulty.on("open_read", under=bad).fail(errno.EIO)
    code, found, err = document(capsys, *words, *([str(place / "out")] if words == ["export"] else []))
    assert code == 1
    assert str(bad) in [told["path"] for told in found["unreadable"]]
    assert f"read {bad} [EIO]" in err
    assert bad.exists()


def test_f1_a_lock_that_cannot_be_opened_is_told_and_is_no_process_that_runs(place, faulty, capsys):
    segment(place, 1, lines(3))
    faulty.on("open", "open_read", under=journal(place) / "lock").fail(errno.EACCES)
    for words in (["ls"], ["replay", "--dry-run"], ["replay"]):
        code, found, err = document(capsys, *words)
        assert (code, found["held"]) == (1, [])
        assert f"open {journal(place) / 'lock'} [EACCES]" in err


# ------------------------------------------------------------------------------------------------------- one hour


def test_each_command_can_be_kept_to_one_hour(place, capsys):
    for hour, events in ((HOUR, 3), (OTHER_HOUR, 5)):
        leave(letters(place), key(events, hour=hour), body(events))
        segment(place, 10 + events, lines(events), hour=hour)
    asked = ["--hour", HOUR]
    assert document(capsys, "ls", *asked)[1]["total"]["events"] == 6
    assert document(capsys, "verify", *asked)[1]["sound"] == 2
    assert document(capsys, "export", str(place / "out"), *asked)[1]["events"] == 6
    assert document(capsys, "replay", "--dry-run", *asked)[1]["events"] == 6
    code, put, _ = document(capsys, "replay", *asked)
    assert (code, put["hour"], put["events_stored"], put["files_left"]) == (0, HOUR, 6, 0)
    assert files(place / "objects") == [key(3), key(13)]
    assert files(place / "dlq/0") == [key(5, hour=OTHER_HOUR)]
    assert document(capsys, "replay")[1]["events_stored"] == 10


@pytest.mark.parametrize(
    "hour",
    [
        "2025-12-02",
        "dt=2025-12-02",
        "dt=2025-12-02/hr=1",
        "raw/dt=2025-12-02/hr=14",
        "dt=2025-02-30/hr=14",
        "dt=2025-12-02/hr=24",
    ],
)
def test_an_hour_that_is_none_is_a_wrong_word(capsys, hour):
    with pytest.raises(SystemExit) as ended:
        main(["dlq", "ls", "--hour", hour])
    assert ended.value.code == 2
    assert "is not dt=YYYY-MM-DD/hr=HH" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- what the store refuses


class Refusing(Store):
    async def start(self):
        pass

    async def close(self):
        pass


def test_replay_names_what_the_store_refused_with_its_cause(place, monkeypatch, capsys):
    leave(letters(place), key(1), body(3))
    leave(letters(place), key(2, prefix="denied"), body(4))
    segment(place, 3, lines(5), prefix="denied")
    store = Refusing()
    store.denied.add("denied")
    monkeypatch.setattr(replay, "create_store", lambda *_, **__: store)
    code, put, err = document(capsys, "replay")
    assert (code, put["events_stored"], put["files_left"], put["events_left"]) == (1, 3, 2, 9)
    refused = {told["key"]: told["error"] for told in put["refused"]}
    assert refused.keys() == {key(2, prefix="denied"), key(3, prefix="denied")}
    assert all("not allowed (AccessDenied)" in error for error in refused.values())
    assert f"{key(2, prefix='denied')}: refused: create {key(2, prefix='denied')}" in err
    assert put["not_put"] == []


def test_replay_tells_why_a_store_that_is_away_took_nothing(place, monkeypatch, capsys):
    leave(letters(place), key(1), body(3))
    monkeypatch.setattr(replay, "create_store", lambda *_, **__: Refusing(then="fail"))
    code, put, err = document(capsys, "replay")
    assert (code, put["refused"], [told["key"] for told in put["not_put"]]) == (1, [], [key(1)])
    assert f"{key(1)}: not put: create {key(1)}: as told" in err


def test_a_rehearsal_asks_no_store(place, monkeypatch, capsys):
    leave(letters(place), key(1), codec.encode(lines(2) + b"bad\n", 3))
    monkeypatch.setattr(replay, "create_store", lambda *_, **__: pytest.fail("a store was made"))
    code, rehearsed, err = document(capsys, "replay", "--dry-run")
    assert (code, rehearsed["files_to_quarantine"], rehearsed["events_lost"]) == (0, 1, 1)
    assert err == f"{letters(place) / key(1)}: 2 events\n"


# ------------------------------------------------------------------------------------------------------- discard


@pytest.mark.parametrize("has", [("letter",), ("segment",), ("letter", "segment")], ids="+".join)
def test_discard_removes_every_copy_of_one_key_and_says_what_is_lost(place, capsys, has):
    left = leave(letters(place), key(9), body(2))
    paths = []
    if "letter" in has:
        paths.append(leave(letters(place, 1), key(1), body(3)))
    if "segment" in has:
        paths.append(segment(place, 1, lines(3), number=2))
    assert main(["dlq", "discard", key(1), "--dry-run"]) == 0
    assert capsys.readouterr().out == f"dry run: would drop 3 events in {len(has)} files\n"
    assert all(path.exists() for path in paths)
    code, dropped, err = document(capsys, "discard", key(1))
    assert (code, dropped["events"], dropped["files"]) == (0, 3, [str(path) for path in paths])
    assert err.splitlines() == [f"removed: {path}" for path in paths]
    assert not any(path.exists() or path.parent.exists() for path in paths)
    assert left.exists()
    assert main(["dlq", "discard", key(1)]) == 1
    assert "has this key" in capsys.readouterr().err


def test_discard_takes_the_temporary_that_would_become_the_file_again(place, capsys):
    path = segment(place, 1, lines(3))
    path.with_name(f".{path.name}.0123456789ab.tmp").write_bytes(lines(3))
    assert main(["dlq", "discard", key(1)]) == 0
    assert files(place / "dlq") == []
    assert main(["dlq", "replay"]) == 0
    assert capsys.readouterr().out.endswith("nothing to replay\n")


@pytest.mark.parametrize("where", ["dlq", "dlq/journal"])
@pytest.mark.parametrize("words", [[], ["--dry-run"]], ids=["", "dry run"])
def test_discard_removes_nothing_while_a_process_holds_one_of_the_slots(place, capsys, where, words):
    process = held(place / where)
    letter, copy = leave(letters(place), key(1), body(3)), segment(place, 1, lines(3))
    assert main(["dlq", "discard", key(1), *words]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == (
        "",
        f"{process.path} is held by a running process: stop it first, or let it recover the file\n",
    )
    assert letter.exists()
    assert copy.exists()
    process.release()
    assert main(["dlq", "discard", key(1)]) == 0


def test_discard_holds_the_slot_while_it_removes(place, faulty):
    leave(letters(place), key(1), body(3))
    seen = []

    def look(*_):
        taken = held(place / "dlq")
        seen.append(taken.number)
        taken.release()

    real = faulty.unlink
    faulty.unlink = lambda path: (look(), real(path))[1]
    assert main(["dlq", "discard", key(1)]) == 0
    assert seen == [1]


@pytest.mark.parametrize("word", [key(1)[:-3], Path(key(1)).name, "raw", "*"])
def test_discard_takes_a_whole_key_only(place, capsys, word):
    path = leave(letters(place), key(1), body(3))
    assert main(["dlq", "discard", word]) == 2
    assert "no whole key" in capsys.readouterr().err
    assert path.exists()


@pytest.mark.parametrize("call", ["stat", "unlink", "listdir"])
def test_discard_says_what_the_disk_did_not_let_it_do(place, faulty, capsys, call):
    path = leave(letters(place), key(1), body(3))
    faulty.on(call, under=path.parent if call != "stat" else path).fail(errno.EACCES)
    assert main(["dlq", "discard", key(1)]) == 1
    assert "[EACCES]" in capsys.readouterr().err
    assert path.exists()


# ------------------------------------------------------------------------------------------------ what is documented


def documented_keys():
    """`{command: keys}` by the table of docs/dlq.md."""
    text = (REPOSITORY / "docs/dlq.md").read_text()
    (table,) = re.findall(r"(?m)^\| Command \| Keys .*\n\| --- .*\n((?:\|.*\n)+)", text)
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
    return {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1])) for row in rows}


def test_the_documents_have_the_keys_that_the_page_lists(place, capsys):
    keys = documented_keys()
    common = keys.pop("all")
    runs = {
        "ls": ["ls"],
        "verify": ["verify"],
        "export": ["export", str(place / "out")],
        "replay --dry-run": ["replay", "--dry-run"],
        "replay": ["replay"],
        "adopt --dry-run": ["adopt", str(place / "dlq"), "--dry-run"],
        "adopt": ["adopt", str(place / "dlq")],
        "discard": ["discard", key(2)],
    }
    assert keys.keys() == runs.keys()
    for name, words in runs.items():
        leave(letters(place), key(1), body(3))
        leave(letters(place), key(2), body(3))
        assert document(capsys, *words)[1].keys() == common | keys[name], name


def test_a_document_on_standard_output_leaves_no_room_for_an_export(place, capsys):
    leave(letters(place), key(1), body(3))
    assert main(["dlq", "export", "-", "--json"]) == 2
    assert capsys.readouterr().out == ""


# ------------------------------------------------------------------------------------------------- half-written files


def half_letter(place):
    whole = body(2000)
    folder, _, name = key(1).rpartition("/")
    return leave(letters(place), f"{folder}/.{name}.0123456789ab.tmp", whole[: len(whole) // 2])


@pytest.mark.parametrize("words", [["replay"], ["adopt", "dlq"]], ids=["replay", "adopt"])
def test_e12_half_a_dead_letter_is_put_only_when_it_is_said_that_its_journal_is_gone(place, monkeypatch, capsys, words):
    monkeypatch.chdir(place)
    torn = half_letter(place)
    code, left, err = document(capsys, *words)
    assert (code, left["unfinished"], left["events_stored"]) == (1, [str(torn)], 0)
    assert "--salvage puts what is sound in it" in err
    code, put, _ = document(capsys, *words, "--salvage")
    assert (code, put["unfinished"]) == (0, [])
    assert 0 < put["events_stored"] < 2000
    assert files(place / "dlq") == []


def test_e12_replay_removes_half_a_dead_letter_whose_batch_is_stored(place, capsys):
    half_letter(place)
    leave(place / "objects", key(1), body(2000))
    code, left, _ = document(capsys, "replay")
    assert (code, left["unfinished"]) == (0, [])
    assert files(place / "dlq") == []
    assert (place / "objects" / key(1)).read_bytes() == body(2000)


def test_discard_takes_half_a_dead_letter_alone(place, capsys):
    torn = half_letter(place)
    code, dropped, _ = document(capsys, "discard", key(1))
    assert (code, dropped["files"]) == (0, [str(torn)])
    assert files(place / "dlq") == []
