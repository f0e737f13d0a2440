"""The status from a shell is the server's own, and nothing else passes for it."""

import os
import socket
import threading

import orjson
import pytest

from ingest.__main__ import main
from tests.stand_ins.wire import WELL

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"


def told(**other):
    return HEAD + orjson.dumps({"sentence": WELL.sentence()} | WELL.figures() | other)


@pytest.fixture
def answering(monkeypatch):
    """`answering(bytes)` listens and answers one client so."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("HTTP_ADDR", f":{listener.getsockname()[1]}")
        monkeypatch.delenv("ADMIN_ADDR", raising=False)
        threads = []

        def start(answer):
            def serve():
                with listener.accept()[0] as connection:
                    asked.append(connection.recv(1000))
                    connection.sendall(answer)

            threads.append(threading.Thread(target=serve, daemon=True))
            threads[-1].start()
            return asked

        yield start
        for thread in threads:
            thread.join(10)


@pytest.mark.parametrize(("is_well", "code"), [(True, 0), (False, 1), ("yes", 1)])
def test_the_sentence_is_printed_and_the_exit_code_says_whether_it_is_well(answering, capsys, is_well, code):
    asked = answering(told(is_well=is_well))
    assert main(["status"]) == code
    assert asked[0].startswith(b"GET /status HTTP/1.1\r\n")
    assert capsys.readouterr() == (f"{WELL.sentence()}\n", "")


def test_with_json_the_answer_is_printed_as_it_came(answering, capsys):
    answering(told() + b"\n")
    assert main(["status", "--json"]) == 0
    assert orjson.loads(capsys.readouterr().out)["phase"] == "serving"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "404 Not Found; it tells only a client on this machine"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "503 Service Unavailable"),
        (b"", "closed without an answer"),
        (told()[:-5], "no status, or was cut off"),
        (HEAD + b"[]", "no status, or was cut off"),
        (HEAD + b"{}", "no status, or was cut off"),
        (HEAD + b"\xff", "no status, or was cut off"),
    ],
)
def test_what_is_no_status_is_told_in_one_line(answering, capsys, answer, why):
    answering(answer)
    assert main(["status"]) == 1
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert not out
    assert line.startswith(f"127.0.0.1{os.environ['HTTP_ADDR']} does not tell how it is: ")
    assert why in line


def test_nobody_who_listens_and_wrong_settings_are_told(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("HTTP_ADDR", f":{port}")
    assert main(["status"]) == 1
    assert capsys.readouterr().err == f"127.0.0.1:{port} does not tell how it is: Connection refused\n"
    monkeypatch.setenv("HTTP_ADDR", "nowhere")
    assert main(["status"]) == 2
    assert capsys.readouterr().err.startswith("HTTP_ADDR: accepted ")


def test_its_help_says_what_the_exit_codes_mean(capsys):
    with pytest.raises(SystemExit):
        main(["status", "--help"])
    assert "exit codes: 0 it is well" in capsys.readouterr().out
