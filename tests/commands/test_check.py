"""The command line, and what `check` tells before anybody relies on the settings."""

import asyncio
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ingest import __version__, granted
from ingest.__main__ import _parser, main
from ingest.commands import check
from ingest.config.settings import load
from ingest.config.variables import GROUPS, VARIABLES
from ingest.disk.errors import StorageError
from ingest.store import Found
from tests.process.s3 import S3Process, s3_environment
from tests.stand_ins.tls import issue

REPOSITORY = str(Path(__file__).parents[2])


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """An environment of ours only, with every directory in the test's folder, and a disk large enough."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    ours = {
        "STORE_DIR": str(tmp_path / "objects"),
        "DLQ_DIR": str(tmp_path / "dlq"),
        "DLQ_MAX_SIZE_BYTES": "1MiB",
        "DISK_RESERVE": "0",
        "ADMIN_ADDR": "127.0.0.1:9090",
    }
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def run(*words, cwd, **environ):
    """Runs the command as a process with an environment of nothing but `environ`."""
    base = {"PATH": os.environ["PATH"], "PYTHONPATH": REPOSITORY}
    return subprocess.run(
        [sys.executable, "-m", "ingest", *words],
        env={**base, **environ},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_check_prints_every_setting_in_force_as_an_env_file(environment, capsys):
    environment.setenv("FLUSH_INTERVAL", "90000ms")
    assert main(["check"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\nFLUSH_INTERVAL=90s\n" in out
    assert "\n# RAW_BUCKET (unset)\n" in out
    words = [
        line.removeprefix("# ").replace("=", " ").split()[0] for line in out.splitlines() if line[2:] not in GROUPS
    ]
    assert words == [variable.name for variable in VARIABLES]
    given = dict(line.split("=", 1) for line in out.splitlines() if not line.startswith("#"))
    assert load(given) == load(os.environ)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("workers", "shown"),
    [
        ("1", []),
        ("3", ["# 3 workers, all in all:", "#   MAX_CONNECTIONS 30000", "#   MAX_BUFFER_BYTES 192MiB"]),
        ("auto", ["# 2 workers, all in all:", "#   MAX_CONNECTIONS 20000", "#   DLQ_MAX_SIZE_BYTES 2MiB"]),
    ],
)
def test_check_says_what_the_limits_of_workers_come_to(environment, capsys, workers, shown):
    environment.setenv("WORKERS", workers)
    environment.setattr(granted, "processors", lambda: 2)
    assert main(["check"]) == 0
    out, err = capsys.readouterr()
    assert f"\nWORKERS={workers}\n" in out
    lines = [line for line in out.splitlines() if "worker" in line or line.startswith("#   ")]
    assert bool(lines) is bool(shown)
    assert set(shown) <= set(lines)
    assert ("WORKERS: 3 are more than the 2 whole CPUs" in err) is (workers == "3")


def test_check_changes_nothing(tmp_path):
    assert main(["check"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_check_prints_warnings_and_still_succeeds(environment, capsys):
    environment.setenv("DRAIN_TIMEOUT", "1m")
    assert main(["check"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: DRAIN_DELAY and DRAIN_TIMEOUT: ")


def test_an_env_file_counts_in_place_of_the_environment(environment, tmp_path, capsys):
    """And so do the lines that `check` prints: given back, they say the same."""
    environment.setenv("FLUSH_INTERVAL", "90s")
    assert main(["check"]) == 0
    shown = capsys.readouterr().out
    file = tmp_path / "estat.env"
    file.write_text(f"\n  # as it was\n{shown}", encoding="utf-8-sig")
    environment.setenv("FLUSH_INTERVAL", "no duration")
    assert main(["check", "--strict", "--env-file", str(file)]) == 0
    assert capsys.readouterr() == (shown, "")


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("LOG_LEVEL='debug'", "write LOG_LEVEL without quotes"),
        ("SERVICE_NAME=a\\", "backslash"),
        ("SERVICE_NAME=a\\b", "backslash"),
        ("WRITE_KEYS=web:pa$$word", "WRITE_KEYS has '$'"),
        ("SERVICE_NAME=a #b", "' #'"),
        ("LOG_LEVEL=info\nLOG_LEVEL=debug", "set twice"),
        ("BATCH_SZIE=1", "BATCH_SIZE was probably meant"),
    ],
)
def test_a_line_of_an_env_file_that_is_read_in_two_ways_is_a_warning(tmp_path, capsys, line, told):
    file = tmp_path / "estat.env"
    main(["check"])
    file.write_text(f"{capsys.readouterr().out}{line}\n")
    assert main(["check", "--env-file", str(file)]) == 0
    *_, warning = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: ")
    assert told in warning
    assert main(["check", "--strict", "--env-file", str(file)]) == 2


@pytest.mark.parametrize(
    "line", ["export WRITE_KEYS=web:hidden-secret", "WRITE_KEYS = web:hidden-secret", "hidden-secret"]
)
def test_every_line_of_an_env_file_that_is_none_is_a_problem_without_its_value(tmp_path, capsys, line):
    file = tmp_path / "estat.env"
    file.write_text(f"{line}\nLOG_LEVEL=info\n{line}\n")
    assert main(["check", "--env-file", str(file)]) == 2
    out, err = capsys.readouterr()
    assert [told.partition(": accepted NAME=value")[0] for told in err.splitlines()] == [f"{file}:1", f"{file}:3"]
    assert "hidden" not in out + err


def test_an_env_file_for_another_machine_is_sound_here(tmp_path, capsys):
    """CI has neither its disk, nor the rights to its directories, nor its certificate."""
    file = tmp_path / "estat.env"
    lines = (
        "DLQ_DIR=/proc/dlq",
        "DLQ_MAX_SIZE_BYTES=1000TiB",
        "TLS_CERT=/no/cert",
        "TLS_KEY=/no/key",
        "ADMIN_ADDR=:9090",
    )
    file.write_text("\n".join(lines))
    assert main(["check", "--env-file", str(file), "--strict"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("content", [None, b"LOG_LEVEL=\xff"])
def test_an_env_file_that_cannot_be_read_is_one_line(tmp_path, capsys, content):
    file = tmp_path / "estat.env"
    if content is not None:
        file.write_bytes(content)
    assert main(["check", "--env-file", str(file)]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert str(file) in told


def commands(parser, *words):
    """Every command there is, as its words, this one included."""
    yield words
    for action in parser._actions:
        for word, below in (action.choices or {}).items() if isinstance(action.choices, dict) else ():
            yield from commands(below, *words, word)


@pytest.mark.parametrize("words", list(commands(_parser(["dlq"]))), ids=" ".join)
def test_help_has_the_exit_codes_and_an_example_that_is_understood(capsys, words):
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert re.search(r"(?m)^exit codes: 0 .*; (1|2) ", told)
    joined = told.replace("\\\n", "")
    (example,) = re.findall(r"(?m)^example: (?:[A-Z_]+=\S+ )*estat-ingest ?([^|\n]*)", joined)
    assert shlex.split(example)[: len(words)] == list(words)
    _parser(shlex.split(example)).parse_args(shlex.split(example))


def test_f2_a_misspelt_name_is_a_warning_and_with_strict_a_problem(environment, capsys):
    environment.setenv("BATCH_SZIE", "100")
    for words, code in ((["check"], 0), (["check", "--strict"], 2)):
        assert main(words) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert line == "warning: BATCH_SZIE: it is not read; BATCH_SIZE was probably meant"
    environment.delenv("BATCH_SZIE")
    assert main(["check", "--strict"]) == 0


@pytest.mark.parametrize("words", [["check"], ["check", "--store"], ["serve"], []])
def test_every_problem_is_one_line_and_the_exit_code_is_2(words, tmp_path):
    ended = run(*words, cwd=tmp_path, HTTP_ADDR="8080", BATCH_SIZE="many\nmore", RAW_BUCKET="events")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert [line.split(":")[0] for line in ended.stderr.splitlines()] == ["HTTP_ADDR", "BATCH_SIZE", "AWS_REGION"]


def test_a_variable_that_is_not_text_is_a_problem_and_no_traceback(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "ingest", "check"],
        env={
            b"PATH": os.fsencode(os.environ["PATH"]),
            b"PYTHONPATH": os.fsencode(REPOSITORY),
            b"BATCH_SIZE": b"\xff\xfe",
        },
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert ended.stderr == b"BATCH_SIZE: accepted a whole number from 1 to 10000000, got '\\udcff\\udcfe'\n"


@pytest.mark.parametrize("directory", ["nowhere", "loop", "loop/objects", "n" * 300])
def test_c4_a_directory_that_cannot_be_one_is_a_problem(environment, tmp_path, capsys, directory):
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to("loop")
    environment.setenv("DLQ_DIR", str(tmp_path / "file" / "dlq"))
    environment.setenv("STORE_DIR", str(tmp_path / directory))
    assert main(["check"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.split(": accepted a directory that user ")[0] for line in lines) == [
        "DLQ_DIR",
        "JOURNAL_DIR",
        "STORE_DIR",
    ]


@pytest.mark.parametrize("folder", ["gone", "file", "loop"])
def test_a_socket_in_no_folder_is_a_problem_as_it_is_to_the_server(environment, tmp_path, capsys, folder):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    environment.setenv("ADMIN_ADDR", f"unix:{tmp_path}/{folder}/admin.sock")
    assert main(["check"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ADMIN_ADDR: accepted a socket in a folder that is there")
    environment.setenv("ADMIN_ADDR", f"unix:{tmp_path}/admin.sock")
    assert main(["check"]) == 0


@pytest.mark.parametrize(("workers", "buffers", "told"), [("1", "64MiB", 0), ("1", "417MiB", 1), ("4", "64MiB", 1)])
def test_more_than_the_memory_that_there_is_for_us_is_warned_of(environment, capsys, workers, buffers, told):
    environment.setattr(granted, "memory", lambda: 512 << 20)
    environment.setattr(granted, "processors", lambda: 4)
    environment.setenv("WORKERS", workers)
    environment.setenv("MAX_BUFFER_BYTES", buffers)
    assert main(["check"]) == 0
    assert capsys.readouterr().err.count("warning: MAX_BUFFER_BYTES: ") == told


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "iso8859-1"])
@pytest.mark.parametrize("name", [b"caf\xe9", "데이터".encode()])
def test_a_path_that_the_terminal_cannot_show_is_shown_some_way(tmp_path, encoding, name):
    folder = os.fsencode(tmp_path) + b"/" + name
    ended = subprocess.run(
        [sys.executable, "-m", "ingest", "check"],
        env={
            b"PATH": os.fsencode(os.environ["PATH"]),
            b"PYTHONPATH": os.fsencode(REPOSITORY),
            b"PYTHONIOENCODING": encoding.encode(),
            b"DLQ_DIR": folder,
        },
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(b"\nDLQ_DIR=") == 1


def test_check_looks_into_the_certificate(environment, tmp_path, capsys):
    made = issue(tmp_path, days=-1)
    environment.setenv("TLS_CERT", str(made.certificate))
    environment.setenv("TLS_KEY", str(made.key))
    for words, code in ((["check"], 0), (["check", "--strict"], 2)):
        assert main(words) == code
        assert capsys.readouterr().err.startswith("warning: TLS_CERT: it has expired at ")
    made.key.write_text("")
    assert main(["check"]) == 2
    assert capsys.readouterr().err.startswith("TLS_KEY: accepted ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_may_not_be_written_is_a_problem(environment, tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0o555)
    environment.setenv("STORE_DIR", str(tmp_path / "locked" / "objects"))
    assert main(["check"]) == 2
    assert capsys.readouterr().err.startswith("STORE_DIR: ")


@pytest.mark.parametrize("broken", [{}, {"HTTP_ADDR": "x"}])
def test_check_never_prints_a_secret(tmp_path, broken):
    secrets = {
        "AWS_ACCESS_KEY_ID": "hunter-id",
        "AWS_SECRET_ACCESS_KEY": "hunter-key",
        "AWS_SESSION_TOKEN": "hunter-token",
        "S3_SSE_KMS_KEY_ID": "hunter-kms",
    }
    for sse in ("aws:kms", "AES256"):
        environ = {"RAW_BUCKET": "events", "AWS_REGION": "eu-west-1", "S3_SSE": sse, **secrets, **broken}
        ended = run("check", cwd=tmp_path, **environ)
        assert ended.stdout + ended.stderr
        assert "hunter" not in ended.stdout + ended.stderr


@pytest.mark.usefixtures("environment")
def test_f8_check_store_tries_a_directory_outside_the_hours_and_leaves_no_file(tmp_path, capsys):
    assert main(["check", "--store"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for prefix in ("raw", "raw_dlq"):
        for step in ("put", "read", "removed"):
            assert f"\n# {step} {prefix}/_canary/" in out
    assert "dt=" not in out
    assert out.count("# create-only puts are honoured\n") == 2
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    process = S3Process(tmp_path_factory.mktemp("s3")).start("events")
    yield process
    process.close()


def test_check_store_tries_a_bucket_and_leaves_no_object(s3, tmp_path):
    ended = run("check", "--store", cwd=tmp_path, **s3_environment(s3.url, "events", IDLE_TIMEOUT="1s"))
    assert ended.returncode == 0, ended.stderr
    assert [line.split(":")[1].strip() for line in ended.stderr.splitlines()][:1] == ["IDLE_TIMEOUT"]
    assert ended.stdout.count("\n# put raw") == ended.stdout.count("\n# removed raw") == 3
    assert "# create-only puts are honoured\n" in ended.stdout
    assert s3.client().list_objects_v2(Bucket="events")["KeyCount"] == 0


def test_check_store_says_when_create_only_puts_are_not_asked_for(s3, tmp_path):
    environ = s3_environment(s3.url, "events", S3_CONDITIONAL_PUTS="false")
    ended = run("check", "--store", cwd=tmp_path, **environ)
    assert ended.returncode == 0, ended.stderr
    assert "# create-only puts are not asked for" in ended.stdout
    assert "honoured" not in ended.stdout


def test_check_store_names_what_is_wrong_with_the_bucket(s3, tmp_path):
    ended = run("check", "--store", cwd=tmp_path, **s3_environment(s3.url, "no-such-bucket"))
    assert ended.returncode == 2
    problems = [line for line in ended.stderr.splitlines() if not line.startswith("warning: ")]
    assert len(problems) == 2
    assert all(line.startswith("put raw") and "RAW_BUCKET" in line for line in problems)


def test_check_store_names_a_store_that_is_away(tmp_path):
    away = S3Process(tmp_path)
    ended = run("check", "--store", cwd=tmp_path, **s3_environment(away.url, "events", S3_TIMEOUT="1s"))
    away.close()
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "put raw" in ended.stderr


class Shelf:
    """A store that forgets conditions, refuses or alters, as told."""

    def __init__(self, *, honours=True, denies=(), alters=False, taken=False, matches=None):
        self.objects = {}
        self.honours = honours
        self.taken = taken
        self.matches = matches
        self.denies = denies
        self.alters = alters

    def _allow(self, operation, key):
        if operation in self.denies:
            raise StorageError(operation, key, "not\nallowed", transient=False)

    async def put(self, key, body, metadata):
        self._allow("put", key)
        assert metadata.events == 0
        self.objects[key] = body

    async def create(self, key, body, metadata):
        self._allow("create", key)
        if self.taken or (self.honours and key in self.objects):
            return False
        await self.put(key, body, metadata)
        return True

    async def get(self, key):
        self._allow("get", key)
        return self.objects[key] + b"x" * self.alters

    async def delete(self, key):
        self._allow("delete", key)
        self.objects.pop(key, None)

    async def find(self, key):
        self._allow("find", key)
        return Found(self.objects[key], self.objects[key].hex()) if key in self.objects else None

    async def replace(self, key, body, version, content_type):
        assert content_type == "application/json"
        self._allow("replace", key)
        found = await self.find(key)
        if version is not None and self.matches is not None:
            is_right = self.matches
        else:
            is_right = version == (None if found is None else found.version)
        if is_right:
            self.objects[key] = body
        return is_right


def tried(shelf, settings=None):
    return asyncio.run(check._try_prefix(shelf, settings or load({}), "raw"))


def test_a_sound_store_has_no_problem_and_keeps_nothing():
    shelf = Shelf()
    assert tried(shelf) == []
    assert shelf.objects == {}


def test_a_store_that_replaces_despite_the_condition_is_a_problem_that_names_the_setting():
    shelf = Shelf(honours=False)
    (problem,) = tried(shelf)
    assert problem.startswith("S3_CONDITIONAL_PUTS: accepted false ")
    assert problem.endswith("got 'true'; write S3_CONDITIONAL_PUTS=false")
    assert shelf.objects == {}


def test_a_store_that_tells_no_free_key_from_a_taken_one_is_a_problem():
    """Nothing that lies on a disk would ever reach it."""
    shelf = Shelf(taken=True)
    (problem,) = tried(shelf)
    assert problem.startswith("create raw/_canary/: the store says that a key is taken ")
    assert shelf.objects == {}


@pytest.mark.parametrize(
    ("matches", "denies", "told"),
    [
        (None, (), ""),
        (True, (), "ignores If-Match; run one compact at a time"),
        (False, (), "refuses If-Match with the object's own ETag; run compact with S3_CONDITIONAL_PUTS=false"),
        (None, ("find",), "not allowed (only compact replaces an object)"),
    ],
)
def test_what_only_compact_needs_of_a_store_is_a_warning(matches, denies, told, capsys):
    shelf = Shelf(matches=matches, denies=denies)
    asyncio.run(check._try_replace(shelf, load({})))
    out, err = capsys.readouterr()
    assert told in err
    assert err.count("\n") == bool(told)
    assert ("# replacing on condition is honoured" in out) is not bool(told)
    assert shelf.objects == {}


@pytest.mark.parametrize(("denies", "told"), [((), ""), (("put",), "put raw_manifest/_canary/")])
def test_that_manifests_may_not_be_put_is_a_warning(denies, told, capsys):
    shelf = Shelf(denies=denies)
    asyncio.run(check._try_manifest(shelf, load({})))
    out, err = capsys.readouterr()
    assert err.startswith(f"warning: {told}" if told else "")
    assert err.count("\n") == bool(told)
    assert ("# put raw_manifest/_canary/" in out) is not bool(told)
    assert shelf.objects == {}


def test_a_store_that_gives_back_something_else_is_a_problem():
    shelf = Shelf(alters=True)
    (problem,) = tried(shelf)
    assert problem.startswith("get raw/")
    assert shelf.objects == {}


@pytest.mark.parametrize("operation", ["put", "create"])
def test_what_the_server_needs_and_may_not_is_a_problem(operation):
    shelf = Shelf(denies=(operation,))
    (problem,) = tried(shelf)
    assert problem.startswith(f"{operation} raw/")
    assert "\n" not in problem
    assert shelf.objects == {}


@pytest.mark.parametrize("operation", ["get", "delete"])
def test_what_only_the_check_needs_and_may_not_is_a_warning(operation, capsys):
    shelf = Shelf(denies=(operation,))
    assert tried(shelf) == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {operation} raw/")
    assert set(shelf.objects.values()) == ({check._FIRST} if operation == "delete" else set())


def test_an_unknown_word_is_exit_2(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["sevre"])
    assert ended.value.code == 2
    assert "sevre" in capsys.readouterr().err


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"estat-ingest {__version__}\n"


def test_a_reader_that_has_seen_enough_ends_the_output_quietly(tmp_path):
    command = f"{sys.executable} -m ingest check | head -c 0; exit ${{PIPESTATUS[0]}}"
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": REPOSITORY}
    ended = subprocess.run(
        ["bash", "-c", command], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert ended.stderr == ""


def test_the_command_line_does_not_load_what_serve_needs_not():
    program = "import sys; import ingest.__main__; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    loaded = set(run.stdout.split())
    assert "ingest.__main__" in loaded
    assert not loaded & {
        "aiobotocore",
        "botocore",
        "prometheus_client",
        "structlog",
        "tqdm",
        "ingest.commands.check",
        "ingest.commands.dlq",
        "gzip",
    }
