"""`dlq adopt DIR`: what the volume of a host that is gone holds is put once, under its own keys."""

from __future__ import annotations

import json

import pytest
from structlog.testing import capture_logs

from ingest.__main__ import main
from ingest.config.variables import VARIABLES
from ingest.disk.filesystem import Filesystem
from ingest.disk.slots import Slot
from tests.stand_ins.letters import bodies, body, files, key, leave, lines


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A host with a store and directories of its own, and beside it the mounted volume of another."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("STORE_DIR", str(tmp_path / "objects"))
    monkeypatch.setenv("DLQ_DIR", str(tmp_path / "ours"))
    monkeypatch.setenv("DLQ_MAX_AGE", "1s")
    monkeypatch.setattr("ingest.telemetry.log.configure", lambda _: None)
    (tmp_path / "objects").mkdir()
    with capture_logs():
        yield tmp_path


def letter(base, sequence, data, number=0, **how):
    root = base / str(number)
    root.mkdir(parents=True, exist_ok=True)
    (root / "lock").touch()
    return leave(root, key(sequence, **how), data)


def segment(base, sequence, data, number=0, **how):
    path = letter(base, sequence, data, number, **how)
    return path.rename(path.with_suffix(""))


def adopted(capsys, *words):
    """Run it; returns the exit code, the document, and what was told beside it."""
    code = main(["dlq", "adopt", *map(str, words), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


def test_dead_letters_and_segments_come_home_under_their_own_keys_and_ours_are_left_alone(home, capsys):
    dead = home / "mnt/dlq"
    letter(dead, 1, body(3), prefix="theirs")
    letter(dead, 2, body(2, 3), number=1)
    segment(dead / "journal", 3, lines(4, 5) + b'{"ts":17646')
    mine = letter(home / "ours", 4, body(1))
    code, told, err = adopted(capsys, dead)
    assert (code, err) == (0, "")
    counts = ("files_stored", "events_stored", "files_stored_before", "events_left")
    assert [told[name] for name in counts] == [3, 9, 0, 0]
    assert files(home / "objects") == sorted([key(1, prefix="theirs"), key(2), key(3)])
    found = [event for name in files(home / "objects") for event in bodies((home / "objects" / name).read_bytes())]
    assert sorted(found) == [str(n) for n in range(9)]
    assert files(dead) == []
    assert mine.exists()
    assert adopted(capsys, dead)[0] == 0
    assert main(["dlq", "adopt", str(dead)]) == 0
    assert capsys.readouterr().out == "nothing to adopt\n"


def test_what_the_dead_host_had_stored_is_not_stored_again(home, capsys):
    dead = home / "mnt/dlq"
    letter(dead, 1, body(3))
    stored = leave(home / "objects", key(1), body(3))
    before = stored.stat()
    letter(dead, 2, body(2, 3))
    code, told, _ = adopted(capsys, dead)
    assert code == 0
    assert (told["files_stored"], told["files_stored_before"]) == (2, 1)
    assert (stored.stat().st_ino, stored.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert files(dead) == []


def test_a_batch_that_lies_in_both_places_counts_once(home, capsys):
    dead = home / "mnt/dlq"
    letter(dead, 1, body(3))
    segment(dead / "journal", 1, lines(3))
    code, told, _ = adopted(capsys, dead)
    assert (code, told["events_stored"], files(home / "objects"), files(dead)) == (0, 3, [key(1)], [])


@pytest.mark.parametrize("words", [("journal",), ("dlq", "--journal-dir", "journal")])
def test_a_journal_on_a_volume_of_its_own_is_found(home, capsys, words):
    dead = home / "mnt"
    letter(dead / "dlq", 1, body(3))
    segment(dead / "journal", 2, lines(2))
    code, told, _ = adopted(capsys, *(dead / word if word[0] != "-" else word for word in words))
    assert code == 0
    assert told["journal_dir"] == str(dead / "journal")
    assert told["dlq_dir"] == (str(dead / "dlq") if len(words) > 1 else None)
    assert files(home / "objects") == ([key(1), key(2)] if len(words) > 1 else [key(2)])
    assert files(dead / "journal") == []


@pytest.mark.parametrize("base", ["dlq", "dlq/journal"])
def test_a_volume_of_which_a_process_holds_a_slot_is_left_alone_as_a_whole(home, capsys, base):
    dead = home / "mnt/dlq"
    letter(dead, 1, body(3), number=3)
    segment(dead / "journal", 2, lines(2), number=3)
    held = Slot.take_first_free(Filesystem(), home / "mnt" / base)
    code, told, err = adopted(capsys, dead)
    assert (code, told) == (1, None)
    assert err == f"{held.path} is held by a running process, which brings its files home itself: nothing is done\n"
    assert files(home / "objects") == []
    held.release()
    assert adopted(capsys, dead)[0] == 0


def test_a_dry_run_says_what_would_be_put_and_changes_nothing(home, capsys):
    dead = home / "mnt/dlq"
    letter(dead, 1, body(3))
    segment(dead / "journal", 2, lines(2))
    before = files(dead)
    code, told, err = adopted(capsys, dead, "--dry-run")
    assert (code, told["files"], told["events"], told["dry_run"]) == (0, 2, 5, True)
    assert len(err.splitlines()) == 2
    assert files(dead) == before
    assert files(home / "objects") == []


def test_what_the_store_does_not_take_stays_and_never_expires_there(home, capsys):
    dead = home / "mnt/dlq"
    letter(dead, 1, body(3))
    (home / "objects/raw").write_bytes(b"a file where the folder should be")
    code, told, _ = adopted(capsys, dead)
    assert (code, told["files_left"], told["events_left"], told["events_expired"]) == (1, 1, 3, 0)
    assert [one["key"] for one in told["not_put"]] == [key(1)]
    assert key(1) in str(files(dead))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["mnt/none"], "mnt/none: there is no such directory; is the volume mounted?"),
        (["mnt"], "mnt: no slot is in it; did you mean {home}/mnt/dlq?"),
        (["mnt/dlq", "--journal-dir", "mnt"], "mnt: no slot is in it; name the JOURNAL_DIR that the server had"),
        (["mnt/lost+found"], "mnt/lost+found: no slot is in it; name the DLQ_DIR that the server had"),
        (["mnt/dlq/journal", "--journal-dir", "mnt/dlq/journal"], "segments are in it, so it is a JOURNAL_DIR itself"),
    ],
)
def test_what_is_no_volume_of_a_collector_is_an_error_in_one_line(home, capsys, words, told):
    letter(home / "mnt/dlq", 1, body(3))
    segment(home / "mnt/dlq/journal", 2, lines(2))
    (home / "mnt/lost+found").mkdir()
    code, document, err = adopted(capsys, *(home / word if word[0] != "-" else word for word in words))
    assert (code, document, err.count("\n")) == (2, None, 1)
    assert told.format(home=home) in err


def test_a_volume_without_a_journal_is_told_because_it_may_have_been_elsewhere(home, capsys):
    letter(home / "mnt/dlq", 1, body(3))
    code, _, err = adopted(capsys, home / "mnt/dlq")
    assert code == 0
    assert err.endswith("if that server had a JOURNAL_DIR, name it with --journal-dir\n")


@pytest.mark.parametrize("name", ["2", "journal", "journal/0", "0/more"])
def test_a_link_that_leads_off_the_volume_is_not_followed(home, capsys, name):
    """A path of the host that is gone means something else here."""
    dead = home / "mnt/dlq"
    letter(dead, 1, body(3))
    mine = segment(home / "ours", 4, lines(1))
    (dead / name).parent.mkdir(exist_ok=True)
    (dead / name).symlink_to(home / "ours" / ("" if name == "journal" else "0"))
    code, _, err = adopted(capsys, dead)
    assert (code, files(home / "objects"), mine.exists()) == (2, [], True)
    assert err.startswith(f"{dead / name} is a symbolic link")
