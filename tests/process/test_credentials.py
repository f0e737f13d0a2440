"""Credentials that are late, expired or malformed are an outage: nothing ends, nothing is lost, all is stored later."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from tests.faults.proxy import Fault
from tests.process.client import Sent, send
from tests.process.ledger import audit, read_bucket
from tests.process.s3 import s3_client, s3_environment
from tests.stand_ins.s3_server import CREDENTIALS

if TYPE_CHECKING:
    from collections.abc import Iterator

EVENTS = 300


class Source(ThreadingHTTPServer):
    """A container's endpoint for credentials. It answers what `document` is at the moment, None with a 500."""

    document: bytes | None = None
    asked = 0


class _Handler(BaseHTTPRequestHandler):
    server: Source

    def do_GET(self) -> None:
        self.server.asked += 1
        document = self.server.document
        self.send_response(500 if document is None else 200)
        self.send_header("Content-Length", str(len(document or b"")))
        self.end_headers()
        self.wfile.write(document or b"")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def credentials_source(port: int = 0) -> Iterator[Source]:
    server = Source(("127.0.0.1", port), _Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def document(seconds: float = 86400, **changes: str | None) -> bytes:
    """A document of credentials that expire in so many seconds; a change to None leaves the field out."""
    fields = {
        "AccessKeyId": CREDENTIALS["AWS_ACCESS_KEY_ID"],
        "SecretAccessKey": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        "Token": "token",
        "Expiration": (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **changes,
    }
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


BAD = {
    "b1_expired": document(-3600),
    "b2_errors": None,
    "b3_without_keys": document(AccessKeyId=None, SecretAccessKey=None),
    "b3_no_date": document(Expiration="tomorrow or so"),
    "b3_no_json": b"<html>Sign in</html>",
    "b3_empty": b"",
    "b3_nulls": b'{"AccessKeyId": null, "SecretAccessKey": null, "Token": null, "Expiration": null}',
    "b3_a_list": b"[]",
}
SHORT = {
    "at the start": {"b1_expired", "b2_errors", "b3_without_keys"},
    "while serving": {"b1_expired", "b2_errors", "b3_no_date"},
}


def sources(when: str) -> list:
    """Every bad source; `make test` has those that differ in kind, as `tests/store/test_s3.py` has them all."""
    return [pytest.param(bad, marks=() if bad in SHORT[when] else pytest.mark.proof) for bad in BAD]


def environment(s3_server: str, bucket: str, **more: str) -> dict[str, str]:
    env = s3_environment(s3_server, bucket, S3_TIMEOUT="1s", BATCH_SIZE="100", FLUSH_INTERVAL="200ms", **more)
    return {name: value for name, value in env.items() if name not in CREDENTIALS}


def wait_for_failures(collector, number: int) -> list[dict]:
    """Wait until so many tries have failed for a reason that the log has, and none was stored."""

    def failed() -> list[dict]:
        told = [line for line in collector.said("put_failed") if line.get("error")]
        return told + [line for line in collector.said("store_not_started") if line.get("error")]

    collector.wait_until(lambda _: len(failed()) >= number, 60, "no try failed with a cause")
    return failed()


@pytest.mark.parametrize("bad", sources("at the start"))
def test_bad_credentials_at_the_start_are_an_outage(collectors, s3_server, bucket, figure, bad):
    sent = Sent()
    with credentials_source() as source:
        source.document = BAD[bad]
        uri = f"http://127.0.0.1:{source.server_port}/"
        collector = collectors(environment(s3_server, bucket, AWS_CONTAINER_CREDENTIALS_FULL_URI=uri)).start()
        send(sent, collector.port, EVENTS)
        wait_for_failures(collector, 2)
        seen = collector.wait_until(lambda m: m.pending == EVENTS)
        assert seen.value("estat_events_stored_total") == 0
        source.document = document()
        end_well(collector, sent, s3_server, bucket)
    figure(bad, f"asked {source.asked} times")


@pytest.mark.parametrize("bad", sources("while serving"))
def test_credentials_that_turn_bad_while_serving_are_an_outage(collectors, s3_server, bucket, bad):
    sent = Sent()
    with credentials_source() as source:
        source.document = document(60)  # so near its end that each put asks again
        uri = f"http://127.0.0.1:{source.server_port}/"
        collector = collectors(environment(s3_server, bucket, AWS_CONTAINER_CREDENTIALS_FULL_URI=uri)).start()
        send(sent, collector.port, EVENTS)
        collector.wait_delivered()
        source.document = BAD[bad]
        send(sent, collector.port, EVENTS)
        collector.wait_until(lambda m: m.value("estat_put_errors_total") >= 2, 60, "no put failed")
        assert collector.metrics().value("estat_events_stored_total") == EVENTS
        source.document = document()
        end_well(collector, sent, s3_server, bucket)


CONFIGS = {
    "no_json": "[default]\ncredential_process = /bin/echo no JSON\n",
    "s3_is_a_word": "[default]\ns3 = foo\naws_access_key_id = testing\naws_secret_access_key = testing\n",
    "no_config_file": "credential_process\n",
}


@pytest.mark.parametrize(
    "config", [pytest.param(name, marks=pytest.mark.proof if name == "no_config_file" else ()) for name in CONFIGS]
)
def test_b4_a_bad_aws_config_file_is_an_outage_until_it_is_mended(collectors, s3_server, bucket, tmp_path, config):
    sent = Sent()
    file = tmp_path / "aws_config"
    file.write_text(CONFIGS[config])
    collector = collectors(environment(s3_server, bucket, AWS_CONFIG_FILE=str(file))).start()
    send(sent, collector.port, EVENTS)
    wait_for_failures(collector, 2)
    assert collector.metrics().value("estat_events_stored_total") == 0
    file.write_text("[default]\naws_access_key_id = testing\naws_secret_access_key = testing\n")
    end_well(collector, sent, s3_server, bucket)


def test_a_source_that_refuses_connections_is_an_outage(collectors, s3_server, bucket):
    sent = Sent()
    with credentials_source() as source:
        port = source.server_port
    uri = f"http://127.0.0.1:{port}/"
    collector = collectors(environment(s3_server, bucket, AWS_CONTAINER_CREDENTIALS_FULL_URI=uri)).start()
    send(sent, collector.port, EVENTS)
    wait_for_failures(collector, 2)
    with credentials_source(port) as source:
        source.document = document()
        end_well(collector, sent, s3_server, bucket)


HELPER = """#!/bin/sh
echo started >> "$0.log"
sleep {seconds}
echo '{{"Version": 1, "AccessKeyId": "testing", "SecretAccessKey": "testing"}}'
"""


UNUSABLE = {
    "nulls": {"AccessKeyId": None, "SecretAccessKey": None},
    "numbers": {"AccessKeyId": 1, "SecretAccessKey": 2},
    "a_line_end": {"AccessKeyId": "testing\n", "SecretAccessKey": "testing"},
    "half_a_character": {"AccessKeyId": "testing", "SecretAccessKey": "\ud800"},
    "a_list": {"AccessKeyId": "testing", "SecretAccessKey": "testing", "SessionToken": [1]},
}


@pytest.mark.parametrize(
    "keys", [pytest.param(name, marks=() if name == "half_a_character" else pytest.mark.proof) for name in UNUSABLE]
)
def test_b3_keys_that_cannot_sign_are_asked_for_again_though_they_never_expire(
    collectors, s3_server, bucket, tmp_path, keys
):
    sent = Sent()
    told, config = tmp_path / "told", tmp_path / "aws_config"
    told.write_text(json.dumps({"Version": 1, **UNUSABLE[keys]}))
    config.write_text(f"[default]\ncredential_process = /bin/cat {told}\n")
    collector = collectors(environment(s3_server, bucket, AWS_CONFIG_FILE=str(config))).start()
    send(sent, collector.port, EVENTS)
    failures = wait_for_failures(collector, 2)
    assert all("no plain text" in line["error"] or "no text" in line["error"] for line in failures)
    told.write_text(json.dumps({"Version": 1, "AccessKeyId": "testing", "SecretAccessKey": "testing"}))
    end_well(collector, sent, s3_server, bucket)


def test_b5_a_helper_that_is_slower_than_a_put_may_be_is_waited_for(collectors, s3_server, bucket, tmp_path):
    sent = Sent()
    helper, config = tmp_path / "helper", tmp_path / "aws_config"
    helper.write_text(HELPER.format(seconds=2))
    helper.chmod(0o755)
    config.write_text(f"[default]\ncredential_process = {helper}\n")
    env = environment(s3_server, bucket, AWS_CONFIG_FILE=str(config)) | {"S3_TIMEOUT": "1s"}
    collector = collectors(env).start()
    send(sent, collector.port, EVENTS)
    end_well(collector, sent, s3_server, bucket)
    assert collector.said("put_failed") == []
    assert (tmp_path / "helper.log").read_text() == "started\n"


PYTHON_HELPER = f"""#!{sys.executable} -S
import json, signal
held = signal.pthread_sigmask(signal.SIG_BLOCK, ())
with open(__file__ + ".log", "w") as log:
    log.write(f"{{len(held)}} held, {{signal.getsignal(signal.SIGTERM).name}}")
print(json.dumps(dict(Version=1, AccessKeyId="testing", SecretAccessKey="testing")))
"""


def test_d4_a_helper_does_not_hold_the_signals_that_the_collector_holds(collectors, s3_server, bucket, tmp_path):
    sent = Sent()
    helper, config = tmp_path / "helper", tmp_path / "aws_config"
    helper.write_text(PYTHON_HELPER)
    helper.chmod(0o755)
    config.write_text(f"[default]\ncredential_process = {helper}\n")
    collector = collectors(environment(s3_server, bucket, AWS_CONFIG_FILE=str(config))).start()
    send(sent, collector.port, EVENTS)
    end_well(collector, sent, s3_server, bucket)
    assert (tmp_path / "helper.log").read_text() == "0 held, SIG_DFL"


KEYS = "[default]\naws_access_key_id = {}\naws_secret_access_key = testing\n"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "ExpiredToken"),
        pytest.param(400, "InvalidToken", marks=pytest.mark.proof),
        pytest.param(403, "InvalidAccessKeyId", marks=pytest.mark.proof),
    ],
)
def test_b6_a_credentials_file_that_is_rewritten_is_read_again(
    collectors, s3_server, proxy, bucket, tmp_path, status, code
):
    sent = Sent()
    file = tmp_path / "credentials"
    file.write_text(KEYS.format("old"))
    env = environment(proxy.url, bucket, AWS_SHARED_CREDENTIALS_FILE=str(file))
    collector = collectors(env).start()
    send(sent, collector.port, EVENTS)
    collector.wait_delivered()
    proxy.fault = Fault(answer=(status, code), head=b"Credential=old/")
    send(sent, collector.port, EVENTS)
    wait_for_failures(collector, 1)
    file.write_text(KEYS.format("testing"))
    end_well(collector, sent, s3_server, bucket)
    assert {line["code"] for line in collector.said("put_failed")} == {code}


def end_well(collector, sent: Sent, s3_server: str, bucket: str) -> None:
    """Everything that was acknowledged is stored, once, and the process ends as it should."""
    collector.wait_delivered(60)
    assert sent.refused == 0, sent.statuses
    assert audit(sent, read_bucket(s3_client(s3_server), bucket)).assert_kept().stored == len(sent)
    assert collector.said("unhandled") == collector.said("failed") == []
    collector.stop(10)
    assert collector.left_on_disk() == []
