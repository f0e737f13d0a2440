"""The words of a command, to people or to a program.

Owns the two voices. Lines about single files, folders and slots go to standard error, always. The result goes to
standard output: as text, or with `--json` as one document, whose keys are in docs/dlq.md. Promises that nothing else is
on standard output, and that a progress bar is shown on a terminal only, a line now and then elsewhere. Never reads a
disk.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TOLD_EVERY: Final = 5.0


class Report:
    """One command's words."""

    def __init__(
        self, command: str, dlq_dir: Path | None, journal_dir: Path | None, hour: str | None, *, as_json: bool
    ) -> None:
        self.as_json = as_json
        self._facts: dict[str, object] = {
            "command": command,
            "dlq_dir": None if dlq_dir is None else str(dlq_dir),
            "journal_dir": None if journal_dir is None else str(journal_dir),
            "hour": hour,
        }

    def say(self, line: str) -> None:
        """Tell people about one thing."""
        sys.stderr.write(f"{line}\n")

    def end(self, code: int, text: str, **facts: object) -> int:
        """Give the result, as `text` or as a document of `facts`, and return the exit code."""
        if self.as_json:
            json.dump({**self._facts, **facts, "exit": code}, sys.stdout)
            text = ""
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
        return code


def shown(text: str) -> str:
    """Return what came from outside as one line that does nothing to a terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


@contextmanager
def progress(
    what: str, total: int | None, clock: Callable[[], float] = time.monotonic, unit: str = "file"
) -> Iterator[Callable[[int], None]]:
    """Yield what takes the number of files that are done, out of `total`, or of None if nobody has counted them.

    `unit` is said in place of a file. On a terminal it is a bar, else a line every `TOLD_EVERY` seconds: so the log of
    a job shows that it goes on.
    """
    if total != 0 and sys.stderr.isatty():
        with _bar(what, total, unit) as show:
            yield show
        return
    began = told = clock()
    of_all = "" if total is None else f" of {total:,}"

    def tell(done: int) -> None:
        nonlocal told
        now = clock()
        if now - told >= TOLD_EVERY:
            told = now
            sys.stderr.write(f"{what}: {done:,}{of_all} {unit}s, {now - began:.0f} s\n")
            sys.stderr.flush()

    yield tell


@contextmanager
def _bar(what: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    from tqdm import tqdm

    # Asked here, because tqdm takes a terminal that tells no size for one without room.
    columns, lines = shutil.get_terminal_size()
    with tqdm(desc=what, total=total, unit=unit, ncols=columns, nrows=lines, file=sys.stderr) as shown:

        def show(done: int) -> None:
            shown.update(done - shown.n)

        yield show
