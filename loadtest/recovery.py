"""What one step of recovery costs with few and with very many dead-letter files, and after most of them were drained.

    python loadtest/recovery.py FILES FOLDER [--rounds N]

A step is `Spool.next` and `take_back`: find a file, read its header, take it out of the books and off the disk.
The put between them is left out, since it would hide what is measured. The files lie in folders of an hour each, 5,000
in each: an outage at some 7,000 events/s; a folder that is emptied goes, as it does when it is recovered. They are hard
links to a few real ones, which changes neither how a name is found nor how it is removed. After the
first reading 99 % of the names are removed, and a new process's queue (a new instance) starts on what is left. It
prints one JSON object, in microseconds a step; the rounds are of 1,000 steps each.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

import uvloop

from ingest import disk, spool
from ingest.config import settings as config
from ingest.format import codec
from ingest.format import keys as names
from ingest.telemetry import metrics

FILES_AN_HOUR = 5_000
LINKS = 50_000  # ext4 allows 65,000 links of one file
STEPS = 1_000


def lay(slot_path, count):
    """Make `count` dead-letter files; return the paths, oldest first."""
    zone = config.load({}).partition_tz
    body = codec.encode(b'{"ts":1764721594,"ip":"","user_agent":"","cookie":"","body":""}\n', 1)
    keys = names.KeyFactory("raw", zone, host="gone", token="0123456789abcdef")
    paths, source = [], slot_path
    for number in range(count):
        if number % FILES_AN_HOUR == 0:
            unix = 1_764_721_594 + number // FILES_AN_HOUR * 3600
            partition = names.partition_of(unix, zone)
        path = names.dlq_path(slot_path, keys.new_key(unix, partition))
        if number % FILES_AN_HOUR == 0:
            path.parent.mkdir(parents=True)
        if number % LINKS:
            os.link(source, path)
        else:
            source = path
            source.write_bytes(body)
        paths.append(path)
    return paths


async def measure(base, rounds):
    """Mean microseconds a step, for each round of STEPS, and of the first step alone."""
    fs = disk.Filesystem()
    slot = disk.Slot.take_first_free(fs, base)
    settings = config.load(MappingProxyType({"DLQ_DIR": str(base)}))
    with ThreadPoolExecutor(4) as executor:
        lane, queue_metrics = disk.Lane("dlq"), metrics.Metrics()
        places = spool.Places(fs, (settings.journal_dir, lane), (settings.dlq_dir, lane))
        queue = spool.Spool(settings, fs, [slot], queue_metrics, lane, executor, places, token="f" * 16, sleep=no_sleep)
        await queue.scan()
        first, means = None, []
        for _ in range(rounds):
            done = 0
            started = time.perf_counter()
            while done < STEPS and queue.files:
                step_started = time.perf_counter()
                file = await queue.next()
                if file is None:
                    continue
                async with file:
                    queue_metrics.books.stored(file.events, queue.place)
                    file.settle()
                done += 1
                if first is None:
                    first = (time.perf_counter() - step_started) * 1e6
            if done:
                means.append((time.perf_counter() - started) / done * 1e6)
        queue.close()
        lane.abandon()
    return {"step_us": statistics.median(means), "rounds_us": means, "first_step_us": first}


async def no_sleep(_):
    await asyncio.sleep(0)


def drain_to(paths, left):
    """Remove the oldest, as recovery does; the last folder keeps what a partial drain makes of it."""
    for path in paths[: len(paths) - left]:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def main():
    parser = argparse.ArgumentParser(description="The cost of a recovery step.")
    parser.add_argument("files", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    base = arguments.folder / f"dlq-{arguments.files}"
    many = arguments.files > arguments.rounds * STEPS
    full, drained = [], None
    try:
        for _ in range(1 if many else arguments.rounds):
            paths = lay(base / "0", arguments.files)
            full.append(uvloop.run(measure(base, arguments.rounds if many else 1)))
            if many:
                drain_to(paths, arguments.files // 100)
                drained = uvloop.run(measure(base, arguments.rounds))
            shutil.rmtree(base)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    rounds = [mean for reading in full for mean in reading["rounds_us"]]
    firsts = [reading["first_step_us"] for reading in full]
    report = {
        "files": arguments.files,
        "step_us": statistics.median(rounds),
        "rounds_us": rounds,
        "first_step_us": statistics.median(firsts),
        "after_99_percent_drained": drained,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
