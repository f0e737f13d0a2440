"""The operator's commands on the dead-letter queue, beside servers that hold slots and over files that are damaged."""

from __future__ import annotations

import gzip
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ingest.__main__ import main
from ingest.commands import replay
from ingest.config.variables import VARIABLES
from ingest.disk.filesystem import Filesystem
from ingest.disk.slots import Slot
from ingest.format import codec
from tests.process.collector import bare_environment
from tests.stand_ins.letters import bodies, body, files, key, leave, lines

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path, monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("STORE_DIR", str(tmp_path / "objects"))
    monkeypatch.setenv("DLQ_DIR", str(tmp_path / "dlq"))
    monkeypatch.setattr("ingest.telemetry.log.configure", lambda _: None)
    (tmp_path / "objects").mkdir()
    return tmp_path


def slot(place, number=0):
    """A slot as a process that is gone left it."""
    root = place / "dlq" / str(number)
    root.mkdir(parents=True, exist_ok=True)
    (root / "lock").touch()
    return root


def stored(place):
    return files(place / "objects")


LOOKING = [["ls"], ["verify"], ["replay"], ["replay", "--dry-run"], ["export", "out"]]
DISCARD = ["discard", key(1)]


@pytest.mark.parametrize("command", LOOKING, ids=" ".join)
def test_every_command_is_at_ease_where_there_is_nothing(place, command, monkeypatch, capsys):
    monkeypatch.chdir(place)
    (place / "dlq").mkdir()
    assert main(["dlq", *command]) == 0
    assert capsys.readouterr().err in {"", "0 files, 0 events exported\n"}
    assert files(place / "dlq") == []


@pytest.mark.parametrize("command", [*LOOKING, DISCARD], ids=" ".join)
def test_f1_a_directory_that_is_missing_is_an_error_in_one_line(place, command, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main(["dlq", *command]) == 2
    expected = f"DLQ_DIR={place / 'dlq'}: there is no such directory; name the one that the server has\n"
    assert capsys.readouterr() == ("", expected)
    (place / "dlq").mkdir()
    monkeypatch.setenv("JOURNAL_DIR", "elsewhere")
    assert main(["dlq", *command]) == 2
    assert capsys.readouterr().err.startswith(f"JOURNAL_DIR={place / 'elsewhere'}: there is no such directory")
    assert not (place / "elsewhere").exists()


def test_f1_a_file_in_the_place_of_the_directory_is_an_error_too(place, capsys):
    (place / "dlq").touch()
    assert main(["dlq", "ls"]) == 2
    assert capsys.readouterr().err.startswith("DLQ_DIR=")


# ---------------------------------------------------------------------------------------------------------- ls


def test_ls_shows_files_events_bytes_and_age_of_each_hour(place, capsys):
    now = int(time.time())
    sizes = [len(body(n)) for n in (3, 4, 5)]
    leave(slot(place), key(1, unix=now - 7200), body(3))
    leave(slot(place, 1), key(2, unix=now - 60), body(4))
    leave(slot(place), key(3, hour="dt=2025-12-03/hr=00", prefix="other", unix=now - 10 * 86400), body(5))
    assert main(["dlq", "ls"]) == 0
    out = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert out[0] == ["hour", "prefix", "place", "files", "events", "bytes", "age"]
    assert out[1] == ["dt=2025-12-02/hr=14", "raw", "dlq", "2", "7", str(sizes[0] + sizes[1]), "2h"]
    assert out[2] == ["dt=2025-12-03/hr=00", "other", "dlq", "1", "5", str(sizes[2]), "10d"]
    assert out[3] == ["total", "3", "12", str(sum(sizes))]


def test_ls_reads_nothing_but_headers_and_needs_no_lock(place, capsys):
    fs = Filesystem()
    held = Slot.take_first_free(fs, place / "dlq")
    leave(held.path, key(1), body(3)[: codec.HEAD_BYTES])
    assert main(["dlq", "ls"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:3] == ["total", "1", "3"]
    held.release()


# ------------------------------------------------------------------------------------------------------- verify


def test_verify_is_content_with_sound_files(place, capsys):
    leave(slot(place), key(1), body(300))
    assert main(["dlq", "verify"]) == 0
    assert capsys.readouterr().out == "1 sound, 0 corrupt, 0 unreadable\n"


def test_verify_names_each_corrupt_file_and_exits_1(place, capsys):
    leave(slot(place), key(1), body(300)[:-9])
    leave(slot(place), key(2), b"garbage")
    leave(slot(place), key(3), codec.encode(lines(2) + b"[]\n", 3))
    leave(slot(place), key(4), body(3))
    before = files(place / "dlq")
    assert main(["dlq", "verify"]) == 1
    out, err = capsys.readouterr()
    assert out == "1 sound, 3 corrupt, 0 unreadable\n"
    said = err.splitlines()
    assert [line.split(":")[0] for line in said] == [str(slot(place) / key(n)) for n in (1, 2, 3)]
    assert said[2].endswith("corrupt, 2 sound lines, 1 bad ones")
    assert files(place / "dlq") == before


def test_verify_exits_1_if_a_file_cannot_be_read(place, capsys):
    (slot(place) / key(1)).mkdir(parents=True)
    assert main(["dlq", "verify"]) == 1
    out, err = capsys.readouterr()
    assert out == "0 sound, 0 corrupt, 1 unreadable\n"
    assert err.startswith(f"read {slot(place) / key(1)} [EISDIR]: ")


def test_a_file_that_goes_between_its_listing_and_its_turn_was_stored_meanwhile(place, monkeypatch, capsys):
    for n in range(3):
        leave(slot(place), key(n), body(1))
    real = codec.inspect_gzip

    def inspect(path, **how):
        (slot(place) / key(1)).unlink(missing_ok=True)
        return real(path, **how)

    monkeypatch.setattr(codec, "inspect_gzip", inspect)
    assert main(["dlq", "verify"]) == 0
    assert capsys.readouterr().out == "2 sound, 0 corrupt, 0 unreadable\n"


# ------------------------------------------------------------------------------------------------------- export


def test_export_copies_the_sound_lines_to_a_directory_and_changes_nothing(place, capsys):
    leave(slot(place), key(1), body(3))
    leave(slot(place, 3), key(2, prefix="other"), codec.encode(lines(2) + b"bad\n" + lines(2, 2), 5))
    garbage = leave(slot(place), key(3), b"garbage")
    before = files(place / "dlq")
    assert main(["dlq", "export", str(place / "out" / "deep")]) == 1
    assert files(place / "out" / "deep") == sorted([key(1), key(2, prefix="other")])
    assert (place / "out/deep" / key(1)).read_bytes() == body(3)
    assert bodies((place / "out/deep" / key(2, prefix="other")).read_bytes()) == ["0", "1", "2", "3"]
    assert files(place / "dlq") == before
    err = capsys.readouterr().err
    assert f"{slot(place, 3) / key(2, prefix='other')}: corrupt, its 4 sound lines are exported" in err
    assert f"{garbage}: corrupt, no line of it is sound" in err
    assert err.splitlines()[-1] == "2 files, 7 events exported; 2 corrupt, 0 names taken by other bytes"
    assert main(["dlq", "export", str(place / "json"), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert sorted(one["events"] for one in told["corrupt"]) == [0, 4]
    assert (told["files"], told["different"]) == (2, [])


def test_export_to_standard_output_is_one_gzip_stream(place):
    for n in range(3):
        leave(slot(place), key(n), body(2, 2 * n))
    done = subprocess.run(
        [sys.executable, "-m", "ingest", "dlq", "export", "-"],
        capture_output=True,
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=60,
        check=True,
    )
    assert gzip.decompress(done.stdout) == lines(6)
    assert done.stderr == b"3 files, 6 events exported\n"


def test_export_replaces_nothing_and_says_which_names_have_other_bytes(place, capsys):
    for n in (1, 2, 3):
        leave(slot(place), key(n), body(3))
    out = place / "out"
    whole = leave(out, key(1), body(9))
    leave(out, key(2), body(3))
    before = (whole.stat().st_ino, whole.read_bytes())
    assert main(["dlq", "export", str(out)]) == 1
    err = capsys.readouterr().err.splitlines()
    assert err == [
        f"{whole}: it exists with other bytes, and stays; {slot(place) / key(1)} is not exported",
        "2 files, 6 events exported; 0 corrupt, 1 names taken by other bytes",
    ]
    assert (whole.stat().st_ino, whole.read_bytes()) == before
    assert (out / key(3)).read_bytes() == body(3)
    assert main(["dlq", "export", str(out), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["different"], told["files"]) == ([str(whole)], 2)


def test_export_passes_over_a_folder_in_the_place_of_a_name(place, capsys):
    for n in (1, 2):
        leave(slot(place), key(n), body(3))
    (place / "out" / key(1)).mkdir(parents=True)
    assert main(["dlq", "export", str(place / "out")]) == 1
    assert "1 files, 3 events exported; 0 corrupt, 1 names taken by other bytes" in capsys.readouterr().err
    assert (place / "out" / key(2)).read_bytes() == body(3)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("objects", "STORE_DIR"),
        ("objects/raw", "STORE_DIR"),
        ("link", "STORE_DIR"),
        (".", "DLQ_DIR"),
        ("dlq", "DLQ_DIR"),
        ("dlq/0", "DLQ_DIR"),
        ("link/../dlq/0", "DLQ_DIR"),
        ("elsewhere/journal/0", "JOURNAL_DIR"),
        ("elsewhere", "JOURNAL_DIR"),
    ],
)
def test_export_never_goes_where_the_server_has_its_files(place, monkeypatch, capsys, target, name):
    monkeypatch.chdir(place)
    monkeypatch.setenv("JOURNAL_DIR", "elsewhere/journal")
    (place / "elsewhere/journal").mkdir(parents=True)
    (place / "link").symlink_to("objects")
    leave(slot(place), key(1), b"garbage")
    leave(place / "objects", key(1), body(9))
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert main(["dlq", "export", target]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f" is {name}=" in err
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_export_that_cannot_write_says_why(place, capsys):
    leave(slot(place), key(1), body(3))
    (place / "out").write_bytes(b"")
    assert main(["dlq", "export", str(place / "out")]) == 2
    assert "a file is where a folder should be" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- replay


def test_replay_stores_what_is_left_and_quarantines_what_is_corrupt(place, capsys):
    leave(slot(place), key(1), body(3))
    leave(slot(place, 1), key(2), codec.encode(lines(2) + b"bad\n", 3))
    assert main(["dlq", "replay"]) == 0
    assert stored(place) == sorted([key(1), key(2), key(2, prefix="raw_dlq")])
    assert bodies((place / "objects" / key(2)).read_bytes()) == ["0", "1"]
    assert files(place / "dlq") == []
    out = capsys.readouterr().out.splitlines()[-1]
    assert out == (
        f"5 events stored in {place / 'objects'}, 1 corrupt files quarantined, 1 events lost in them, 0 expired; "
        "0 files with 0 events stay"
    )


@pytest.mark.parametrize("words", [["replay"], ["replay", "--dry-run"], ["adopt", "dlq"]], ids=" ".join)
@pytest.mark.parametrize("named", ["", "objects", "mnt/objects", "file"])
def test_a_queue_is_never_emptied_into_a_directory_that_is_not_there(place, monkeypatch, capsys, words, named):
    """A volume may not be mounted, and a rescue host may have no RAW_BUCKET."""
    monkeypatch.chdir(place)
    leave(slot(place), key(1), body(3))
    (place / "objects").rmdir()
    (place / "file").touch()
    monkeypatch.setenv("STORE_DIR", named)
    before = sorted(place.rglob("*"))
    assert main(["dlq", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "RAW_BUCKET or STORE_DIR" in err
    assert named == "" or str(place / named) in err
    assert sorted(place.rglob("*")) == before


def test_adopt_never_uses_a_store_that_nobody_named_though_the_default_is_there(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    leave(slot(place), key(1), body(3))
    default = place / "data/objects"
    default.mkdir(parents=True)
    monkeypatch.setenv("STORE_DIR", " ")
    assert main(["dlq", "adopt", "dlq"]) == 2
    assert capsys.readouterr().err.startswith("adopt: set RAW_BUCKET or STORE_DIR")
    assert (files(default), files(place / "dlq/0")) == ([], [key(1)])
    monkeypatch.setenv("STORE_DIR", "data/objects")
    assert main(["dlq", "adopt", "dlq"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"3 events stored in {default}, ")
    assert files(default) == [key(1)]


def test_replay_never_replaces_an_object(place):
    leave(slot(place), key(1), body(3))
    leave(place / "objects", key(1), body(9))
    assert main(["dlq", "replay"]) == 0
    assert (place / "objects" / key(1)).read_bytes() == body(9)


def test_replay_leaves_alone_what_a_running_process_holds_and_says_so_in_one_line(place, capsys):
    held = Slot.take_first_free(Filesystem(), place / "dlq")
    leave(held.path, key(1), body(3))
    leave(slot(place, 1), key(2), body(3))
    assert main(["dlq", "replay"]) == 1
    err = capsys.readouterr().err
    assert err == f"{held.path} is held by a running process, which recovers its files itself: left alone\n"
    assert stored(place) == [key(2)]
    assert files(held.path) == [key(1)]
    held.release()
    assert main(["dlq", "replay"]) == 0
    assert stored(place) == [key(1), key(2)]


def test_replay_holds_the_slot_while_it_works_and_lets_go_of_it(place, monkeypatch):
    leave(slot(place), key(1), body(3))
    seen = []
    real = replay.Recovery.run

    async def watched(self):
        taken = Slot.take_first_free(Filesystem(), place / "dlq")
        seen.append(taken.number)
        taken.release()
        await real(self)

    monkeypatch.setattr(replay.Recovery, "run", watched)
    assert main(["dlq", "replay"]) == 0
    taken = Slot.take_first_free(Filesystem(), place / "dlq")
    assert (seen, taken.number) == ([1], 0)
    taken.release()


def test_c7_replay_takes_no_more_slots_than_the_limit_of_descriptors_allows_and_says_so(place):
    names = [key(n) for n in range(40)]
    for n, name in enumerate(names):
        leave(slot(place, n), name, body(3))

    def replay():
        return subprocess.run(
            ["prlimit", "--nofile=64:64", "--", sys.executable, "-m", "ingest", "dlq", "replay"],
            env=bare_environment({"DLQ_DIR": str(place / "dlq"), "STORE_DIR": str(place / "objects")}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    first = replay()
    assert first.returncode == 1, first.stderr
    assert "32 slots are done" in first.stderr
    assert "held by" not in first.stderr
    assert len(stored(place)) == 32
    second = replay()
    assert second.returncode == 0, second.stderr
    assert stored(place) == names


def test_replay_leaves_a_corrupt_file_whose_segment_a_process_holds(place, capsys):
    """The segment may hold more lines, and what is created first stays."""
    leave(slot(place), key(1), body(300)[:-30])
    held = Slot.take_first_free(Filesystem(), place / "dlq/journal")
    leave(held.path, key(1).removesuffix(".gz"), lines(300))
    assert main(["dlq", "replay"]) == 1
    assert stored(place) == []
    out, err = capsys.readouterr()
    assert "1 files with 300 events stay" in out
    assert f"{held.path} is held by a running process" in err
    held.release()
    assert main(["dlq", "replay"]) == 0
    assert len(bodies((place / "objects" / key(1)).read_bytes())) == 300


def test_replay_gives_up_when_the_store_does_not_answer(place, capsys):
    for n in range(10):
        leave(slot(place), key(n), body(3))
    (place / "objects/raw").write_bytes(b"a file where the folder should be")
    assert main(["dlq", "replay"]) == 1
    assert "10 files with 30 events stay" in capsys.readouterr().out
    assert len([name for name in files(place / "dlq") if name.endswith(".gz")]) == 10


# --------------------------------------------------------------------------------------------------- the terminal


def on_terminal(place, *words):
    """Run with standard error on a terminal; returns what it showed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "ingest", "dlq", *words],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait(60) in (0, 1)
    return shown.decode()


@pytest.mark.parametrize("words", [["verify"], ["replay"], ["export", "out"]])
def test_long_work_shows_a_bar_on_a_terminal(place, words):
    for n in range(50):
        leave(slot(place), key(n), body(3))
    shown = on_terminal(place, *words)
    assert words[0] in shown
    assert "100%" in shown


def test_tqdm_is_not_imported_without_a_terminal(place):
    leave(slot(place), key(1), body(3))
    code = "import sys, ingest.__main__ as m; m.main(['dlq', 'verify']); sys.exit('tqdm' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"1 sound, 0 corrupt, 0 unreadable\n")
