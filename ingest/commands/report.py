"""The words of a command, to people or to a program.

Owns the two voices. Lines about single files, folders and slots go to standard error, always. The result goes to
standard output: as text, or with `--json` as one document, whose keys are in docs/dlq.md. Promises that nothing else is
on standard output, and that a progress bar is shown on a terminal only. Never reads a disk.
"""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ingest.config import Settings


class Report:
    """One command's words."""

    def __init__(self, command: str, settings: Settings, hour: str | None, *, as_json: bool) -> None:
        self.as_json = as_json
        self._facts: dict[str, object] = {
            "command": command,
            "dlq_dir": str(settings.dlq_dir),
            "journal_dir": str(settings.journal_dir),
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


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield what takes the number of files that are left."""
    if not total or not sys.stderr.isatty():
        yield lambda _: None
        return
    from tqdm import tqdm

    # Asked here, because tqdm takes a terminal that tells no size for one without room.
    columns, lines = shutil.get_terminal_size()
    with tqdm(desc=what, total=total, unit="file", ncols=columns, nrows=lines, file=sys.stderr) as progress:

        def show(left: int) -> None:
            progress.update(total - left - progress.n)

        yield show
