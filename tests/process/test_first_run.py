"""The first thing anybody does: start it, send with an ordinary HTTP client, stop it, look at the objects."""

from __future__ import annotations

import http.client
import threading

from tests.process.client import Sent
from tests.process.collector import SERVE
from tests.process.ledger import audit, read_bucket, read_directory
from tests.stand_ins.s3_server import CREDENTIALS

EVENTS = 4_000
CLIENTS = 4


def send_ordinarily(sent, port, count):
    """The standard library's client, one keep-alive connection a thread."""
    turn = threading.Lock()
    errors = []

    def work():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            for _ in range(count // CLIENTS):
                with turn:
                    number = sent.new()
                connection.request("POST", "/collect", sent.body(number).encode(), {"User-Agent": "ordinary/1.0"})
                answer = connection.getresponse()
                answer.read()
                with turn:
                    sent.settle(number, answer.status)
        except OSError as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors


def test_without_any_variable_every_event_is_once_in_the_directory(collectors, figure):
    sent = Sent(gets=False)
    collector = collectors({}, command=SERVE).start()
    send_ordinarily(sent, collector.port, EVENTS)
    assert sent.acknowledged == EVENTS
    took = collector.stop(5)
    objects = list(read_directory(collector.folder / "data/objects"))
    assert all(o.key.endswith(".jsonl.gz") and o.key.startswith("raw/dt=") for o in objects)
    found = audit(sent, objects).assert_kept()
    assert found.stored == EVENTS
    assert collector.left_on_disk() == []
    figure(f"first run, directory, stopped in {took:.2f} s", found)


def test_with_the_operators_variables_every_event_is_once_on_s3(collectors, s3_process, tmp_path, figure):
    s3_process.start("estat-raw-data")
    env = {
        "AWS_REGION": "ap-northeast-2",
        "RAW_BUCKET": "estat-raw-data",
        "RAW_PREFIX": "raw",
        "DLQ_PREFIX": "raw_dlq",
        "HTTP_ADDR": ":0",
        "MAX_BODY_SIZE": "16384",
        "CHANNEL_SIZE": "4000",
        "UPLOAD_QUEUE": "4",
        "BATCH_SIZE": "5000",
        "FLUSH_INTERVAL": "120s",
        "S3_TIMEOUT": "3s",
        "S3_APP_RETRIES": "2",
        "DLQ_DIR": str(tmp_path / "dlq"),
        "DLQ_MAX_AGE": "24h",
        "DLQ_MAX_SIZE_BYTES": "19327352832",
        "AWS_ENDPOINT_URL": s3_process.url,
        **CREDENTIALS,
    }
    sent = Sent(gets=False)
    collector = collectors(env, command=SERVE).start()
    send_ordinarily(sent, collector.port, EVENTS)
    assert sent.acknowledged == EVENTS
    took = collector.stop(5)
    found = audit(sent, read_bucket(s3_process.client(), "estat-raw-data")).assert_kept()
    assert found.stored == EVENTS
    assert read_bucket(s3_process.client(), "estat-raw-data", "raw_dlq") == []
    assert [p for p in (tmp_path / "dlq").rglob("*") if p.is_file() and p.name != "lock"] == []
    figure(f"first run, S3, stopped in {took:.2f} s", found)
