"""The health check asks where the settings listen, and ends whatever answers."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ingest.__main__ import main
from ingest.commands import health


@pytest.fixture
def answering(monkeypatch):
    """`answering(bytes)` listens and answers everybody so; None: it never does."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked = []
    ended = threading.Event()

    def start(answer):
        def serve():
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(1000))
                if answer is None:
                    ended.wait(30)
                else:
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        monkeypatch.setenv("HTTP_ADDR", f":{listener.getsockname()[1]}")
        return asked

    monkeypatch.delenv("ADMIN_ADDR", raising=False)
    yield start
    ended.set()
    listener.close()


def test_a_server_that_answers_200_is_well(answering, capsys):
    asked = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")
    assert main(["health"]) == 0
    assert asked[0].startswith(b"GET /health HTTP/1.1\r\n")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "HTTP/1.1 503 Service Unavailable"),
        (b"", "closed without an answer"),
        (b"SSH-2.0-OpenSSH \xff 200 \r\n", "SSH-2.0-OpenSSH \\xff 200 "),
    ],
)
def test_any_other_answer_is_told_in_one_line(answering, capsys, answer, told):
    answering(answer)
    assert main(["health"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f" is not healthy: {told}")


def test_a_server_that_hangs_is_not_waited_for(answering, capsys, monkeypatch):
    monkeypatch.setattr(health, "PATIENCE", 0.1)
    answering(None)
    assert main(["health"]) == 1
    assert "timed out" in capsys.readouterr().err


def test_a_name_that_nobody_resolves_is_not_waited_for(capsys, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(health, "PATIENCE", 0.1)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [] if ended.wait(30) else None)
    monkeypatch.setenv("ADMIN_ADDR", "collector.example:9090")
    try:
        assert main(["health"]) == 1
    finally:
        ended.set()
    assert "the name collector.example was not resolved in time" in capsys.readouterr().err


def test_each_address_of_a_name_is_asked(answering, monkeypatch):
    asked = answering(b"HTTP/1.1 200 OK\r\n\r\n")
    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("127.0.0.2", "127.0.0.1")]
    found = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **b: addresses if host == "collector" else found(host, *a, **b)
    )
    monkeypatch.setenv("HTTP_ADDR", os.environ["HTTP_ADDR"].replace(":", "collector:"))
    assert main(["health"]) == 0
    assert asked


def test_nobody_who_listens_is_told(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("HTTP_ADDR", f"0.0.0.0:{port}")
    assert main(["health"]) == 1
    assert capsys.readouterr().err == f"127.0.0.1:{port} is not healthy: Connection refused\n"


def test_f7_an_empty_address_is_the_default_one(monkeypatch, capsys):
    monkeypatch.setattr(health, "PATIENCE", 0.5)
    monkeypatch.setenv("HTTP_ADDR", "")
    main(["health"])
    assert "Traceback" not in capsys.readouterr().err


def test_settings_that_are_wrong_are_told_as_ever(monkeypatch, capsys):
    monkeypatch.setenv("HTTP_ADDR", "nowhere")
    assert main(["health"]) == 2
    assert capsys.readouterr().err.startswith("HTTP_ADDR: accepted ")


def test_with_a_door_for_operators_it_asks_there(answering, monkeypatch, tmp_path, capsys):
    asked = answering(b"HTTP/1.1 200 OK\r\n\r\n")
    monkeypatch.setenv("ADMIN_ADDR", f"0.0.0.0{os.environ['HTTP_ADDR']}")
    monkeypatch.setenv("HTTP_ADDR", ":1")
    assert main(["health"]) == 0
    assert len(asked) == 1
    path = tmp_path / "admin.sock"
    monkeypatch.setenv("ADMIN_ADDR", f"unix:{path}")
    assert main(["health"]) == 1
    assert capsys.readouterr().err == f"unix:{path} is not healthy: No such file or directory\n"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def answer():
            with listener.accept()[0] as connection:
                assert connection.recv(1000)
                connection.sendall(b"HTTP/1.1 200 OK\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert main(["health"]) == 0
        thread.join()


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"HTTP_ADDR": " "},
        {"HTTP_ADDR": ":1"},
        {"HTTP_ADDR": "0.0.0.0:80"},
        {"HTTP_ADDR": " a-b.example:65535 "},
        {"HTTP_ADDR": ":1", "ADMIN_ADDR": "10.0.0.1:9090"},
    ],
)
def test_the_plain_reading_of_an_address_is_that_of_the_settings(given):
    assert health._question(given) == health.Question(health.plain_address(given))


def test_a_server_behind_proxies_is_asked_as_one_of_them_if_it_takes_us_for_one(answering, monkeypatch):
    monkeypatch.setenv("PROXY_PROTOCOL", "true")
    for trusted, begins in (("127.0.0.0/8", b"PROXY UNKNOWN\r\nGET /health "), ("10.0.0.0/8", b"GET /health ")):
        monkeypatch.setenv("TRUSTED_PROXIES", trusted)
        asked = answering(b"HTTP/1.1 200 OK\r\n\r\n")
        assert main(["health"]) == 0
        assert asked[-1].startswith(begins)


@pytest.mark.parametrize(
    "where", ["8080", ":0", ":65536", ":\u0661", "[::1]:80", "a b:80", "\u00e9:80", "http://a:80", "unix:/x", "a_b:1"]
)
def test_any_other_form_is_left_to_the_settings(where):
    assert health.plain_address({"HTTP_ADDR": where}) is None


def test_it_loads_next_to_nothing():
    code = "import sys; from ingest.__main__ import main; main(['health']); print(*sys.modules)"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2]), "HTTP_ADDR": "127.0.0.1:1"}
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    loaded = set(ended.stdout.split())
    assert loaded & {"ingest.config", "ingest.signals", "argparse", "ssl", "dataclasses", "asyncio", "pathlib"} == set()
    assert "ingest.commands.health" in loaded
