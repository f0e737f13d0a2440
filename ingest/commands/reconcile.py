"""`reconcile` and `abandon`: whether hours are complete, and the word of an operator that nothing more will come.

Owns the words, the exit codes and what is printed. `reconcile` reads only: 0 every hour is complete, 1 one is open, 3
one differs from what was told of it, 64 the words are wrong, 69 the store failed. `abandon` writes one document, and
nothing else. Promises that what is told of a process that nobody knows is no word: `abandon` refuses one, so that a
slip is no completeness.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from ingest.commands.hours import FORM, WRONG_WORDS, hours_of
from ingest.commands.opened import opened, to_the_end
from ingest.commands.report import Report, progress, shown
from ingest.format import manifest
from ingest.format.manifest import CONTENT_TYPE
from ingest.lake.looking import Looking
from ingest.store import ObjectMetadata

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ingest.config import Settings
    from ingest.lake.judging import Verdict
    from ingest.store import ObjectStore


def add_reconcile(parser: argparse.ArgumentParser) -> None:
    """Add the words of `reconcile`."""
    parser.add_argument("--hour", nargs="?", metavar="HOURS", help=FORM)
    parser.add_argument("--deep", action="store_true", help="read every object: count its lines, hold size and CRC")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of text")


def add_abandon(parser: argparse.ArgumentParser) -> None:
    """Add the words of `abandon`."""
    parser.add_argument("instance", nargs="?", metavar="HOST-TOKEN", help="the process, as reconcile names it")
    parser.add_argument(
        "--hour", nargs="?", const="", metavar="HOUR", help="of this hour only; without it, of all its hours"
    )
    parser.add_argument(
        "--why", nargs="?", default="", const="", help="what happened to its disk, for whoever reads it later"
    )


def run_reconcile(arguments: argparse.Namespace, settings: Settings) -> int:
    """Judge hours; 0 complete, 1 open, 3 they differ, 64 wrong words, 69 the store failed."""
    try:
        hours = [hour.path for hour in hours_of(arguments.hour or "", settings.partition_tz)]
    except ValueError as error:
        return _wrong(f"--hour: {error}")
    report = Report("reconcile", None, None, arguments.hour, as_json=arguments.json)
    return to_the_end(_reconcile(settings, report, hours, deep=arguments.deep), report)


def run_abandon(arguments: argparse.Namespace, settings: Settings) -> int:
    """Say that nothing more will come of a process; 1 nobody knows it, 64 wrong words, 69 the store failed."""
    if arguments.instance is None:
        return _wrong("abandon: name the process, as reconcile does")
    hour = None
    if arguments.hour is not None:
        try:
            (hour,) = (found.path for found in hours_of(arguments.hour, settings.partition_tz))
        except ValueError:
            return _wrong(f"--hour: {arguments.hour!r} is not dt=YYYY-MM-DD/hr=HH")
    report = Report("abandon", None, None, hour, as_json=False)
    return to_the_end(_abandon(settings, report, arguments.instance, hour, arguments.why), report)


async def _reconcile(settings: Settings, report: Report, hours: list[str], *, deep: bool) -> int:
    verdicts = []
    async with opened(settings, long_tries=deep) as store:
        looking = Looking(settings, store, report.say)
        if len(hours) == 1:
            verdicts.append(await looking.verdict(hours[0], deep=deep))
        else:
            with progress("reconcile", len(hours), unit="hour") as show:
                for done, hour in enumerate(hours, 1):
                    verdicts.append(await looking.verdict(hour, deep=deep))
                    show(done)
    code = max(verdict.code for verdict in verdicts)
    return report.end(
        code,
        "\n".join(line for verdict in verdicts for line in _lines(verdict)),
        hours=[_facts(verdict) for verdict in verdicts],
    )


async def _abandon(settings: Settings, report: Report, instance: str, hour: str | None, why: str) -> int:
    async with opened(settings) as store:
        known = {name.instance for name in await Looking(settings, store, report.say).registry()}
        if instance not in known and not (hour and await _is_seen(settings, store, instance, hour)):
            report.say(f"{instance}: no process of this name has registered: reconcile names those that are open")
            return 1
        key = manifest.abandoned_key(settings.manifest_prefix, instance, hour)
        body = manifest.abandoned(instance=instance, at=time.time(), hour=hour, why=why)
        await store.put(key, body, ObjectMetadata(0, 0, 0, instance, CONTENT_TYPE))
    return report.end(0, f"{instance}: abandoned, {hour or 'all its hours'}; {key}")


async def _is_seen(settings: Settings, store: ObjectStore, instance: str, hour: str) -> bool:
    """Tell whether the hour has an object of a process, or a manifest, be that one that cannot be read."""
    prefix = settings.manifest_prefix
    told = [manifest.parse_name(prefix, one.key) for one in await store.listing(f"{prefix}/{hour}/")]
    if any(name is not None and name.instance == instance for name in told):
        return True
    listed = await store.listing(f"{settings.raw_prefix}/{hour}/")
    return any(f"_{instance}_" in one.key for one in listed)


def _lines(verdict: Verdict) -> Iterator[str]:
    dropped = "".join(
        f", {events or 'an unknown number'} {reason}" for reason, events in sorted(verdict.dropped.items())
    )
    yield f"{verdict.hour}: {verdict.word}, {verdict.objects} objects, {verdict.events} events{dropped}"
    for one in verdict.still_open:
        yield f"  open: {one.instance or '-'}: {shown(one.why)}"
    for instance in verdict.abandoned:
        yield f"  abandoned: {instance}"
    for found in verdict.findings:
        yield f"  {found.kind.value}: {shown(found.key)}: {found.says}"


def _facts(verdict: Verdict) -> dict[str, Any]:
    return {
        "hour": verdict.hour,
        "verdict": verdict.word,
        "exit": verdict.code,
        "objects": verdict.objects,
        "events": verdict.events,
        "dropped": verdict.dropped,
        "open": [{"instance": one.instance, "why": one.why} for one in verdict.still_open],
        "abandoned": verdict.abandoned,
        "findings": [{"kind": found.kind.value, "key": found.key, "says": found.says} for found in verdict.findings],
    }


def _wrong(problem: str) -> int:
    sys.stderr.write(f"{problem}\n")
    return WRONG_WORDS
