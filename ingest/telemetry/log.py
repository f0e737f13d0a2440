"""Logs: structlog set up once, one line an event on standard error.

Owns how a line looks (JSON, or for people with LOG_PRETTY), which lines are left out (LOG_LEVEL, LOG_SAMPLE_N), and
that what libraries say through `logging` arrives in the same form.
Promises that a call to a logger never raises and never stops an event: a value JSON cannot hold is written as its text,
a line the descriptor does not take is lost; and that nobody waits for the reader of the log once `start` was called
(`lines`). Warnings and errors are never sampled away.
Never decides what is worth a line; never passes on what libraries log below a warning, for botocore's debug lines hold
signed requests.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import orjson
import structlog

from ingest.telemetry.lines import STDERR, Lines

if TYPE_CHECKING:
    from collections.abc import Iterable

    from structlog.typing import EventDict, Processor, WrappedLogger

    from ingest.config import Settings

LAST_LINES_SECONDS: Final = 0.2
"""How long a process that ends waits for the reader of its log."""


def configure(settings: Settings, worker: int | None = None) -> None:
    """Have every logger of this process, ours and those of libraries, write as `settings` say.

    The lines of one of several workers have its number.
    """
    processors: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _Service(settings.service_name, worker),
    ]
    if settings.log_sample_n > 1:
        processors.insert(0, _Sampler(settings.log_sample_n))
    if settings.log_pretty:
        # The plain formatter: others show the local variables of each frame, and with them events and keys.
        renderer = structlog.dev.ConsoleRenderer(
            colors=os.isatty(STDERR), exception_formatter=structlog.dev.plain_traceback
        )
        processors += [renderer, _encoded]
    else:
        processors += [structlog.processors.format_exc_info, _json]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[settings.log_level.upper()]),
        logger_factory=lambda *_: _LINES,
        cache_logger_on_first_use=False,
    )
    logging.getLogger().addHandler(_LIBRARIES)


def start() -> None:
    """Leave the writing to a thread from now on: a server must not wait for the reader of its log."""
    _LINES.start()


def finish(within: float = LAST_LINES_SECONDS) -> bool:
    """Have what was logged so far written, as the last step of a process; False if the reader took too long."""
    return _LINES.finish(within)


def dropped() -> int:
    """Return how many lines nobody read in time."""
    return _LINES.dropped


def _tell_gap(missing: int) -> None:
    log = structlog.get_logger()
    log.warning(
        "log_lines_dropped",
        lines=missing,
        hint="standard error was not read in time, or took nothing: is its disk full?",
    )


def tell_warnings(warnings: Iterable[str]) -> None:
    """Log what `config.warnings` found: an operator reads the log of a start before the output of a check."""
    log = structlog.get_logger()
    for warning in warnings:
        variable, _, hint = warning.partition(": ")
        log.warning("setting_questionable", variable=variable, hint=hint)


class _Sampler:
    """Lets one in `n` of each routine event pass, the first of them included."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._seen: Counter[str] = Counter()

    def __call__(self, _: WrappedLogger, method: str, event: EventDict) -> EventDict:
        if method in {"debug", "info"}:
            name = str(event.get("event"))
            self._seen[name] += 1
            if self._seen[name] % self._n != 1:
                raise structlog.DropEvent
        return event


class _Service:
    """Puts what a reader looks for first at the front of the line."""

    def __init__(self, name: str, worker: int | None) -> None:
        self._front: dict[str, object] = {"service": name}
        if worker is not None:
            self._front["worker"] = worker

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        front = {name: event.pop(name) for name in ("timestamp", "level")}
        return {**front, **self._front, "event": event.pop("event", None), **event}


def _json(_: WrappedLogger, __: str, event: EventDict) -> bytes:
    try:
        return orjson.dumps(event, default=str, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # an int beyond 64 bits, a path that is not UTF-8, something that holds itself
        texts = {name: value if isinstance(value, str | int) else repr(value) for name, value in event.items()}
        return json.dumps(texts).encode() + b"\n"


def _encoded(_: WrappedLogger, __: str, line: Any) -> bytes:  # noqa: ANN401 -- what the renderer before it returned
    return f"{line}\n".encode(errors="backslashreplace")


class _Libraries(logging.Handler):
    """Passes what asyncio and the AWS SDK log from a warning up on to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit their format
            message = str(record.msg)
        log = structlog.get_logger()
        write = log.error if record.levelno >= logging.ERROR else log.warning
        write("library_log", logger=record.name, message=message, exc_info=record.exc_info)


_LINES: Final = Lines(on_gap=_tell_gap)
_LIBRARIES: Final = _Libraries(logging.WARNING)
