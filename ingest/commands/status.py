"""The status from a shell: how the server that these settings start is, in one sentence.

Owns one question, `GET /status`, put where and as `health` puts its own. Prints the sentence, or with `--json` the
answer as it came. Exit 0 if events are taken and the store takes them, else 1; what cannot be told is one line on
standard error. Promises an end within `PATIENCE` of `health`. Never prints what is no answer of ours as if it were one.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from orjson import JSONDecodeError, loads

from ingest.commands import health

if TYPE_CHECKING:
    from collections.abc import Mapping


def run(environ: Mapping[str, str], *, as_json: bool) -> int:
    """Ask, print what is told, and return the exit code; 2 if the settings are wrong."""
    try:
        question = health.question_of(environ)
    except ValueError as problems:
        sys.stderr.write(f"{problems}\n")
        return 2
    try:
        answer = health.exchange(question, b"/status")
    except OSError as error:
        return _untold(question, error.strerror or str(error))
    if not health.is_good(answer):
        told = health.first_line(answer)
        if answer.startswith(b"HTTP/1.1 404 "):
            told += "; it tells only a client on this machine that no proxy stands before: set ADMIN_ADDR"
        return _untold(question, told)
    body = answer.partition(b"\r\n\r\n")[2]
    try:
        told = loads(body)
        sentence, is_well = told["sentence"], told["is_well"]
    except (JSONDecodeError, KeyError, TypeError):
        return _untold(question, "its answer is no status, or was cut off")
    if as_json:
        sys.stdout.buffer.write(body)
    else:
        sys.stdout.write(f"{sentence}\n")
    return 0 if is_well is True else 1


def _untold(question: health.Question, why: str) -> int:
    sys.stderr.write(f"{question.where} does not tell how it is: {why}\n")
    return 1
