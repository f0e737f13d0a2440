"""How a log line looks, which are left out, and that logging never fails its caller."""

import json
import logging
import subprocess
import sys

import pytest
import structlog

from ingest.config.settings import load, warnings
from ingest.telemetry import log


@pytest.fixture
def lines(capfd):
    """`lines(env)` configures; each further call returns what was logged since, parsed."""

    def lines(environ=None):
        if environ is not None:
            log.configure(load(environ))
        return [json.loads(line) for line in capfd.readouterr().err.splitlines()]

    yield lines
    structlog.reset_defaults()
    logging.getLogger().removeHandler(log._LIBRARIES)


logger = structlog.get_logger()


def test_a_line_is_json_with_time_level_service_and_event_in_front(lines):
    lines({"SERVICE_NAME": "edge"})
    logger.info("batch_stored", key="raw/x", events=3)
    (line,) = lines()
    assert list(line) == ["timestamp", "level", "service", "event", "key", "events"]
    assert line["timestamp"].endswith("Z")
    assert {**line, "timestamp": ""} == {
        "timestamp": "",
        "level": "info",
        "service": "edge",
        "event": "batch_stored",
        "key": "raw/x",
        "events": 3,
    }


@pytest.mark.parametrize(
    ("level", "heard"),
    [
        ("debug", ["debug", "info", "warning", "error", "critical"]),
        ("info", ["info", "warning", "error", "critical"]),
        ("warn", ["warning", "error", "critical"]),
        ("error", ["error", "critical"]),
        ("critical", ["critical"]),
    ],
)
def test_the_level_is_the_least_that_is_logged(lines, level, heard):
    lines({"LOG_LEVEL": level})
    for name in ("debug", "info", "warning", "error", "critical"):
        getattr(logger, name)("said")
    assert [line["level"] for line in lines()] == heard


def test_of_each_routine_event_one_in_n_is_logged_the_first_included(lines):
    lines({"LOG_SAMPLE_N": "3", "LOG_LEVEL": "debug"})
    for number in range(7):
        logger.info("batch_stored", number=number)
        logger.debug("batch_sealed", number=number)
    logger.info("listening")
    said = [(line["event"], line.get("number")) for line in lines()]
    assert [number for event, number in said if event == "batch_stored"] == [0, 3, 6]
    assert [number for event, number in said if event == "batch_sealed"] == [0, 3, 6]
    assert said[-1] == ("listening", None)


def test_warnings_and_errors_are_never_sampled(lines):
    lines({"LOG_SAMPLE_N": "1000"})
    for _ in range(5):
        logger.warning("dlq_evicted")
        logger.error("put_failed")
    assert len(lines()) == 10


def fail():
    secret = "".join(["hun", "ter2"])
    raise RuntimeError(len(secret))


def test_a_traceback_is_one_line_without_local_variables(lines):
    lines({})
    try:
        fail()
    except RuntimeError:
        logger.exception("failed")
    (line,) = lines()
    assert "RuntimeError: 7" in line["exception"]
    assert "hunter2" not in line["exception"]


def test_a_traceback_for_people_has_no_local_variables_either(capfd, lines):
    lines({"LOG_PRETTY": "true"})
    try:
        fail()
    except RuntimeError:
        logger.exception("failed", key="raw/x")
    text = capfd.readouterr().err
    assert "RuntimeError: 7" in text
    assert "key=raw/x" in text
    assert "hunter2" not in text


class Odd:
    def __str__(self):
        return "odd"

    __repr__ = __str__


itself: list = []
itself.append(itself)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (Odd(), "odd"),
        (b"raw", "b'raw'"),
        (1 << 70, 1 << 70),
        ("\udc80", "\udc80"),
        (float("nan"), None),
        ({1: 2}, "{1: 2}"),
        (itself, "[[...]]"),
        ("two\nlines", "two\nlines"),
    ],
)
def test_any_value_is_written_on_one_line(lines, value, written):
    lines({})
    logger.info("said", value=value)
    (line,) = lines()
    assert line["value"] == written


@pytest.mark.parametrize("pretty", ["true", "false"])
def test_a_line_that_cannot_be_written_stops_nobody(pretty):
    program = (
        "import os; from ingest.telemetry import log; from ingest.config import load; import structlog\n"
        f"log.configure(load({{'LOG_PRETTY': '{pretty}'}}))\n"
        "os.dup2(os.open('/dev/full', os.O_WRONLY), 2); structlog.get_logger().error('lost', path='\\udc80')\n"
        "os.close(2); structlog.get_logger().error('lost'); print('alive')"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "alive\n"


def test_what_libraries_warn_of_arrives_in_the_same_form(lines):
    lines({})
    library = logging.getLogger("asyncio")
    library.warning("slow %s", "task")
    library.error("broken", exc_info=ValueError("why"))
    log._LIBRARIES.handle(logging.LogRecord("asyncio", logging.CRITICAL, "", 0, "bad %d", ("format",), None))
    told = [(line["level"], line["event"], line["logger"], line["message"]) for line in lines()]
    assert told == [
        ("warning", "library_log", "asyncio", "slow task"),
        ("error", "library_log", "asyncio", "broken"),
        ("error", "library_log", "asyncio", "bad %d"),
    ]


def test_what_libraries_say_below_a_warning_is_not_passed_on_even_at_debug(lines):
    lines({"LOG_LEVEL": "debug"})
    noisy = logging.getLogger("botocore.auth")
    noisy.setLevel(logging.DEBUG)
    noisy.debug("Signature: hunter2")
    noisy.info("Found credentials")
    assert lines() == []


def test_to_configure_again_replaces_what_was(lines):
    lines({"SERVICE_NAME": "one"})
    assert lines({"SERVICE_NAME": "two"}) == []
    logger.info("said")
    logging.getLogger("asyncio").warning("said")
    assert [line["service"] for line in lines()] == ["two", "two"]


def test_questionable_settings_are_logged_by_variable(lines, tmp_path):
    environ = {"DRAIN_TIMEOUT": "60s", "DISK_RESERVE": "0", "DLQ_MAX_SIZE_BYTES": "16MiB", "DLQ_DIR": str(tmp_path)}
    environ["ADMIN_ADDR"] = "127.0.0.1:9090"
    lines(environ)
    log.tell_warnings(warnings(load(environ), {}))
    (line,) = lines()
    assert (line["level"], line["event"]) == ("warning", "setting_questionable")
    assert line["variable"] == "DRAIN_DELAY and DRAIN_TIMEOUT"
    assert line["hint"].startswith("1m together is longer than the 30 s")
