"""`estat-ingest compact`: whole hours to Parquet, for readers that read more than once.

Owns the words and the exit codes, which are those of `reconcile`, and the question whether an hour is over. Promises
that what becomes of each hour is told, that one hour which cannot be done keeps no other from being done, and that the
exit code is that of the worst. Needs the extra `estat-ingest[lake]`. Never loads it before it is asked to work.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ingest.commands.hours import FAILED, FORM, WRONG_WORDS, Hour, hours_of
from ingest.commands.opened import opened, to_the_end
from ingest.commands.report import Report, progress, shown
from ingest.disk import Filesystem, StorageError, sync_file, usual_base

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ingest.config import Settings
    from ingest.lake import Compactor, Patient, Shelf
    from ingest.lake import Verdict as Told
    from ingest.lake.cluster import Spark
    from ingest.lake.embedded import DuckDB

_ENGINES: Final = {"duckdb": "duckdb", "spark": "pyspark"}
"""Which module each needs."""
DONE: Final = 0
OPEN: Final = 1
DIFFERS: Final = 3
_GRAVITY: Final = (DONE, OPEN, DIFFERS, FAILED)
_MEMORY_MOST: Final = 1 << 20
LEEWAY: Final = 60.0
"""Seconds after FLUSH_INTERVAL in which a collector stores the last batch of an hour, if all is well."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an hour has all of its events: an exit code, and in words why not."""

    code: int
    why: str = ""
    events: int = 0
    """So many are there, as far as that is known."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `compact` takes."""
    parser.add_argument("--hour", required=True, metavar="HOUR", help=FORM)
    parser.add_argument(
        "--engine", choices=list(_ENGINES), default="duckdb", help="what makes the rows; default: duckdb"
    )
    parser.add_argument("--master", metavar="URL", help="where Spark runs; default: as it is configured, or local[*]")
    parser.add_argument(
        "--store-url", metavar="URL", help="how Spark reaches the store; default: s3a://<RAW_BUCKET>, or STORE_DIR"
    )
    parser.add_argument("--table", choices=["iceberg"], help="commit to a table, through PyIceberg")
    parser.add_argument("--catalog", default="default", metavar="NAME", help="PyIceberg's catalog; default: default")
    parser.add_argument(
        "--name", type=_table_name, default="estat.events", metavar="NAMESPACE.TABLE", help="default: estat.events"
    )
    parser.add_argument("--force", action="store_true", help="also an hour that is open, or has lost events")
    parser.add_argument("--memory", type=_mebibytes, metavar="MIB", help="what DuckDB may take; default: 256")
    parser.add_argument("--local", type=Path, metavar="DIR", help="holds copies while they are read; default: TMPDIR")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Compact the hours and return the exit code."""
    report = Report("compact", None, None, arguments.hour, as_json=arguments.json)
    try:
        hours = hours_of(arguments.hour, settings.partition_tz)
    except ValueError as error:
        report.say(f"--hour: {error}")
        return WRONG_WORDS
    for module in (_ENGINES[arguments.engine], *(("pyiceberg",) if arguments.table else ())):
        if find_spec(module) is None:
            report.say(f"{module} is not installed: pip install 'estat-ingest[lake,spark]'")
            return FAILED
    return to_the_end(_run(arguments, settings, hours, report), report)


async def _run(arguments: argparse.Namespace, settings: Settings, hours: Sequence[Hour], report: Report) -> int:
    from ingest.lake import Compactor, Looking, Patient, Recipe
    from ingest.lake.cluster import Spark

    fs = Filesystem()
    async with opened(settings, long_tries=True) as store:
        patient = Patient(store)
        with ExitStack() as closing:
            engine = _engine(arguments, settings, fs)
            if isinstance(engine, Spark):
                closing.callback(engine.close)
            by = Compactor(
                patient,
                fs,
                settings.raw_prefix,
                settings.compact_prefix,
                Recipe.of(settings.body_format),
                engine,
                _shelf(arguments, settings, patient),
                (arguments.local or usual_base()).absolute(),
                works_on_store=isinstance(engine, Spark),
            )
            looking = Looking(settings, store, report.say)

            async def verdict(hour: Hour) -> Verdict:
                if settings.manifests:
                    return by_manifests(await looking.verdict(hour.path))
                return by_the_clock(hour, settings, time.time())

            return await compact_hours(by, hours, report, verdict, force=arguments.force)


async def compact_hours(
    by: Compactor,
    hours: Sequence[Hour],
    report: Report,
    verdict: Callable[[Hour], Awaitable[Verdict]],
    *,
    force: bool,
) -> int:
    """Compact each hour, tell what became of it, sweep, and give the result."""
    told: list[dict[str, Any]] = []
    with progress("compact", len(hours), unit="hour") as show:
        for number, hour in enumerate(hours, 1):
            told.append(await _compact(by, hour, report, verdict, force=force))
            if len(hours) > 1:
                show(number)
    from ingest.lake import EngineError, Swept, sweep

    swept, code = Swept(0), max((row["exit"] for row in told), key=_GRAVITY.index)
    try:
        swept = await sweep(by, [row["hour"] for row in told])
    except (StorageError, EngineError) as error:
        report.say(f"not swept: {error}")
        code = FAILED
    for doubt in swept.doubts:
        report.say(f"not swept: {doubt}")
    published = [row for row in told if row["result"] == "published"]
    text = (
        f"{len(published)} of {len(told)} hours published with {sum(row['rows'] for row in published)} rows, "
        f"{sum(row['result'] == 'nothing to do' for row in told)} were up to date; {swept.removed} old parts removed"
    )
    return report.end(code, text, hours=told, parts_removed=swept.removed, not_swept=list(swept.doubts))


async def _compact(
    by: Compactor,
    hour: Hour,
    report: Report,
    verdict: Callable[[Hour], Awaitable[Verdict]],
    *,
    force: bool,
) -> dict[str, Any]:
    from ingest.lake import Contended, Differs, EngineError, Result, compact

    def row(code: int, result: str, why: str = "", **facts: object) -> dict[str, Any]:
        if why:
            report.say(f"{hour.path}: {why}" if hour.path not in why else why)
        return {"hour": hour.path, "result": result, "why": why, **facts, "exit": code}

    try:
        judged = await verdict(hour)
        if judged.code != DONE and not force:
            return row(judged.code, "open" if judged.code == OPEN else "differs", judged.why)
        began = time.monotonic()
        done = await compact(by, hour.path, force=force, at_least=judged.events)
    except Differs as error:
        return row(DIFFERS, "differs", str(error))
    except (StorageError, EngineError, Contended, OSError) as error:
        return row(FAILED, "failed", str(error))
    except ExceptionGroup as group:
        failure = StorageError.first_of(group)
        if failure is None:
            raise
        return row(FAILED, "failed", str(failure))
    for key in done.strange:
        report.say(f"{key}: it is left out, because no collector makes such a key")
    made = done.generation
    return row(
        DONE,
        "published" if done.result is Result.PUBLISHED else "nothing to do",
        generation=made.generation,
        objects=made.inputs.objects,
        rows=made.rows,
        parts=[part.key for part in made.parts],
        bytes=sum(part.bytes for part in made.parts),
        seconds=round(time.monotonic() - began, 3),
        left_out=list(done.strange),
    )


def by_manifests(told: Told) -> Verdict:
    """Judge an hour by what `reconcile` says of it."""
    more = "`reconcile` tells all, and --force goes on"
    if told.findings:
        kind, key, says = told.findings[0]
        return Verdict(DIFFERS, f"{told.hour} differs: {kind.value} {shown(key)}: {says}; {more}")
    if told.still_open:
        instance, why = told.still_open[0]
        return Verdict(OPEN, f"{told.hour} is open: {instance or '-'}: {shown(why)}; {more}")
    return Verdict(DONE, events=told.events)


def by_the_clock(hour: Hour, settings: Settings, now: float) -> Verdict:
    """Judge an hour by the time alone: for stores in which nobody keeps manifests."""
    left = hour.end + settings.flush_interval + LEEWAY - now
    if left > 0:
        return Verdict(OPEN, f"{hour.path} is open: its last batch may come for another {left:.0f} s; or use --force")
    return Verdict(DONE)


def _engine(arguments: argparse.Namespace, settings: Settings, fs: Filesystem) -> DuckDB | Spark:
    from ingest.lake.cluster import Spark
    from ingest.lake.embedded import MEMORY, DuckDB

    if arguments.engine == "duckdb":
        memory: int = arguments.memory or MEMORY
        return DuckDB(settings.body_format, memory)
    if settings.raw_bucket:
        return Spark(settings.body_format, arguments.store_url or f"s3a://{settings.raw_bucket}", arguments.master)
    root = settings.store_dir.absolute()
    base = arguments.store_url or _url_of(root)
    return Spark(settings.body_format, base, arguments.master, lambda key: sync_file(fs, root / key, root))


def _shelf(arguments: argparse.Namespace, settings: Settings, patient: Patient) -> Shelf:
    from ingest.lake import Pointers
    from ingest.lake.iceberg import Table

    if arguments.table is None:
        return Pointers(patient, settings.compact_prefix)
    base = f"s3://{settings.raw_bucket}" if settings.raw_bucket else _url_of(settings.store_dir.absolute())
    return Table(arguments.catalog, arguments.name, base)


def _url_of(folder: Path) -> str:
    """Return the folder as Hadoop and PyArrow take it: they decode nothing, so that a blank must stay one."""
    return f"file://{folder}"


def _table_name(text: str) -> str:
    if not all(part.isidentifier() for part in text.split(".")) or "." not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAMESPACE.TABLE")
    return text


def _mebibytes(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 64 <= int(text[:12]) <= _MEMORY_MOST):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of MiB from 64 to {_MEMORY_MOST}")
    return int(text) * 1024 * 1024
