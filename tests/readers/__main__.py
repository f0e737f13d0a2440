"""What `make readers` runs: each reader of docs/reading.md, with the recipes of the page, on the hardest objects.

    python -m tests.readers [--write] [NAME]

Real collectors make the objects (`hardest`). Each reader reads them in a process of its own: all hours, with bodies of
text and with bodies of JSON; the same with the body cut out of the line; and one hour while every object of the others
is damaged, which a reader that opens them does not survive. Each field of each row is compared with what was sent. Then
`estat-ingest compact` makes Parquet of the hours, and the readers read that by the recipes of docs/compact.md, through
the pointers.

It ends with 1 if a reader misses a row, alters a field of a text event, opens an hour that it was not asked for, or
does not do what the table of the page says. --write puts the table into the page.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.process.collector import bare_environment
from tests.readers import hardest
from tests.readers.read import READERS, REPOSITORY, WITHOUT_LINES

if TYPE_CHECKING:
    from tests.readers.hardest import Stored

PAGE = REPOSITORY / "docs" / "reading.md"
BEGIN, END = "<!-- readers:begin -->\n", "<!-- readers:end -->"
SECONDS = 300
EMPTY_MAPS = {("headers", None, "{}")}
"""Where a reader's map cannot be null."""
KEPT = "byte for byte"


class Wrong(Exception):  # noqa: N818 - a finding, not an error
    """A reader does not give back what was stored."""


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.readers")
    options.add_argument("--write", action="store_true")
    options.add_argument("name", nargs="?", choices=list(READERS))
    given = options.parse_args()
    lines, bad = {}, False
    with tempfile.TemporaryDirectory(prefix="estat-readers-") as folder:
        text = hardest.text(Path(folder) / "text")
        bodies = hardest.bodies_of_json(Path(folder) / "json")
        _say(f"{len(text.rows)} events of text in hours {text.hours}, {len(bodies.rows)} of JSON")
        for stored in (text, bodies):
            compact(stored)
        for name in [given.name] if given.name else READERS:
            try:
                line = examine(name, text, bodies)
            except Wrong as finding:
                _say(f"{READERS[name][0]}: {finding}")
                bad = True
            else:
                lines[READERS[name][0]] = line
                _say(line)
        try:
            if not given.name:
                through_the_pointer("athena", text, bodies)
        except Wrong as finding:
            _say(f"Athena's lists: {finding}")
            bad = True
    return 1 if _compare(lines, write=given.write) or bad else 0


def examine(name: str, text: Stored, bodies: Stored) -> str:
    """Return the reader's line of the table."""
    altered = differences(text, rows(name, text), hardest.COLUMNS)
    if left := altered - EMPTY_MAPS:
        raise Wrong(f"it alters fields: {sorted(left, key=str)[:5]}")
    cells = [READERS[name][0], f"{KEPT}, no `headers` as `{{}}`" if altered else KEPT]
    cells.append(of_json(name, bodies))
    if name in WITHOUT_LINES:
        cells.append("no recipe: read Parquet")
    else:
        cut = differences(bodies, rows(name, bodies, "lines"), ("dt", "hr", "cookie", "body"))
        if cut:
            raise Wrong(f"the body cut out of the line differs: {sorted(cut, key=str)[:5]}")
        cells.append(KEPT)
    prunes(name, text)
    cells.append("its own objects only")
    through_the_pointer(name, text, bodies)
    return f"| {' | '.join(cells)} |"


def rows(
    name: str, stored: Stored, what: str = "events", hour: tuple[str, str] | None = None, page: str = PAGE.name
) -> list[dict[str, Any]]:
    answer = ask(name, stored, what, hour, page)
    if "error" in answer:
        raise Wrong(f"{what} of {page}: {answer['error']}")
    return list(answer["rows"])


def ask(name: str, stored: Stored, what: str, hour: tuple[str, str] | None, page: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.readers.read", name, page, str(stored.folder), what, *(hour or ())],
        cwd=REPOSITORY,
        env=bare_environment({"JAVA_TOOL_OPTIONS": "-Duser.timezone=UTC"}, measured=False),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if not done.stdout:
        return {"error": f"it ended with {done.returncode}: {done.stderr[-500:]}"}
    return dict(json.loads(done.stdout))


def differences(stored: Stored, found: list[dict[str, Any]], columns: tuple[str, ...]) -> set[tuple[str, Any, Any]]:
    """Find each event by its cookie, and return (column, wanted, found) wherever the two are not the same bytes."""
    if sorted(row["cookie"] for row in found) != sorted(row["cookie"] for row in stored.rows):
        raise Wrong(f"{len(found)} rows for {len(stored.rows)} events")
    by_cookie = {row["cookie"]: row for row in found}
    return {
        (column, _short(wanted[column]), _short(by_cookie[wanted["cookie"]].get(column)))
        for wanted in stored.rows
        for column in columns
        if wanted[column] != by_cookie[wanted["cookie"]].get(column)
    }


def of_json(name: str, bodies: Stored) -> str:
    """Say what the plain recipe makes of bodies of JSON."""
    answer = ask(name, bodies, "events", None, PAGE.name)
    if "error" in answer:
        return f"fails: {re.sub(r' (at|in) (character|row) .*', '', answer['error'].split(': ')[-1])}"
    by_cookie = {row["cookie"]: row["body"] for row in answer["rows"]}
    if len(by_cookie) != len(bodies.rows):
        raise Wrong(f"{len(by_cookie)} rows for {len(bodies.rows)} events of JSON")
    made = {_made(row["body"], by_cookie[row["cookie"]]) for row in bodies.rows} - {""}
    return ", ".join(sorted(made)) or KEPT


def _made(wanted: str, found: str | None) -> str:
    if found == wanted:
        return ""
    value = json.loads(wanted)
    if found is None and value is None:
        return "null as null"
    return "strings without quotes" if found == value else "**numbers and blanks anew**"


def prunes(name: str, text: Stored) -> None:
    """Damage all hours but one, in a copy: that one is read all the same, and all of them are not."""
    hour = max(text.hours, key=lambda one: len(text.of(one)))
    damaged = type(text)(text.folder.with_name(f"damaged-{name}"), text.of(hour))
    shutil.copytree(text.folder / "data", damaged.folder / "data")
    for other in set(text.hours) - {hour}:
        for path in damaged.objects(other):
            path.write_bytes(b"no gzip")
    if altered := differences(damaged, rows(name, damaged, hour=hour), ("ts", "cookie", "body")):
        raise Wrong(f"of one hour: {altered}")
    control = ask(name, damaged, "events", None, PAGE.name)
    if "rows" in control and len(control["rows"]) == len(text.rows):
        raise Wrong("damaged objects are read: what proves that they are not opened proves nothing")
    shutil.rmtree(damaged.folder)


def through_the_pointer(name: str, text: Stored, bodies: Stored) -> None:
    """Read the Parquet of both, as docs/compact.md says."""
    for stored in (text, bodies):
        wanted = [
            {**row, "body": None if row["body"] == "null" and stored is bodies else row["body"]} for row in stored.rows
        ]
        compacted = type(stored)(stored.folder, wanted)
        if altered := differences(compacted, rows(name, compacted, page="compact.md"), hardest.COLUMNS) - EMPTY_MAPS:
            raise Wrong(f"through the pointer: {sorted(altered, key=str)[:5]}")


def compact(stored: Stored) -> None:
    """Make Parquet of each hour, twice: the second generation is what a pointer is for."""
    for hour in [*stored.hours, stored.hours[0]]:
        done = subprocess.run(
            [sys.executable, "-m", "ingest", "compact", "--force", "--hour", f"dt={hour[0]}/hr={hour[1]}"],
            cwd=stored.folder,
            env=bare_environment({"BODY_FORMAT": stored.folder.name}, measured=False),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def _short(value: object) -> object:
    text = value if isinstance(value, str | None) else json.dumps(value)
    return text if text is None or len(text) < 80 else f"{text[:40]}… ({len(text)})"


def _compare(lines: dict[str, str], *, write: bool) -> bool:
    """Hold the table of the page against the lines; True if they differ."""
    before, rest = PAGE.read_text().split(BEGIN)
    table, after = rest.split(END)
    head, said = table.splitlines()[:2], {line[2:].split(" |")[0]: line for line in table.splitlines()[2:]}
    differ = {reader: line for reader, line in lines.items() if said.get(reader) != line}
    if write:
        PAGE.write_text(before + BEGIN + "\n".join([*head, *(said | lines).values()]) + "\n" + END + after)
        return False
    for reader, line in differ.items():
        _say(f"docs/reading.md says {said.get(reader)}\n         it is now {line}")
    return bool(differ)


def _say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
