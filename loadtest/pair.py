"""Two checkouts of the collector, or two settings of one, against each other, in turns: does a change pay?

    python loadtest/pair.py BEFORE [AFTER] [--load saturation --load waits-4 ...] [--rounds 9] [--seconds 1.2]
                            [--cpu 0.5] [--durability journal] [--floor] [--json FILE]
                            [--set NAME=VALUE ...] [--set-before NAME=VALUE ...]

Both run as fresh processes in CPU limits of the same size, started once for each load. Then they take turns: before,
after, after, before, ..., and a ratio is formed within each pair of neighbours, so that what slows the machine down
slows both. Printed are the medians of the ratios after / before of CPU time an event and of events/s, with the middle
half of them: a difference within that range is not established. With --floor the floor takes its turn in each round,
and the ratios to it are printed too. AFTER is this checkout unless it is named. `--set` is in the environment of both
sides, `--set-before` in that of BEFORE alone: `pair.py . --set-before MANIFESTS=false` tells what the manifests cost.
The peak of the resident memory is of the whole run. Both run with the interpreter that runs this file, which needs the
runtime's packages and nothing else.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import load as loads
import subjects
from limits import NoLimitError
from load import LOADS
from subjects import FLOOR, JOURNAL, Running

USUAL = ["saturation", "waits-4", "closes-1.0"]


@dataclass(frozen=True)
class Ratio:
    """The ratios of a set of pairs: their median and the middle half."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, over, under):
        ratios = sorted(a / b for a, b in zip(over, under, strict=True))
        quarter = len(ratios) // 4
        return cls(statistics.median(ratios), ratios[quarter], ratios[-1 - quarter])

    def __str__(self):
        return f"{self.median:5.3f} ({self.low:.3f}-{self.high:.3f})"


def measure(generator, load, trees, arguments):
    """Return the readings of each side under one load, in rounds, and the most memory that each had, in bytes."""
    common = (*JOURNAL.environment, ("DURABILITY", arguments.durability), *arguments.set)
    subjects_of = {
        "before": replace(JOURNAL, environment=(*common, *arguments.set_before)),
        "after": replace(JOURNAL, environment=common),
        "floor": FLOOR,
    }
    folder = Path(tempfile.mkdtemp(prefix="pair-"))
    readings = {side: [] for side in (*trees, *(["floor"] if arguments.floor else []))}
    try:
        with ExitStack() as stack:
            running = {}
            for side in readings:
                tree = trees.get(side, subjects.HERE.parent)
                one = Running(subjects_of[side], folder / side, share=arguments.cpu, kind=load.floor, tree=tree)
                running[side] = stack.enter_context(one)
                loads.run(generator, one, load, 1.0)
            for number in range(arguments.rounds):
                for side in list(readings)[:: 1 if number % 2 == 0 else -1]:
                    readings[side].append(loads.run(generator, running[side], load, arguments.seconds))
            memory = {side: one.limit.resident()[1] for side, one in running.items()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return readings, memory


def compare(load, readings, memory):
    """Print what a load came to; return it too."""
    cpu = {side: [reading["cpu_us"] for reading in taken] for side, taken in readings.items()}
    rate = {side: [reading["achieved_rate"] for reading in taken] for side, taken in readings.items()}
    foreign = statistics.median(reading["foreign_cpu"] for taken in readings.values() for reading in taken)
    print(f"\n{load.title}; others spent {foreign:.2f} cores")
    for side, taken in readings.items():
        errors = sum(reading["sent"] - reading["ok"] for reading in taken)
        p50, p99 = (statistics.median(reading["latency_us"][p] for reading in taken) / 1000 for p in ("p50", "p99"))
        print(
            f"  {side:<7} {statistics.median(cpu[side]):7.2f} µs an event"
            f" {statistics.median(rate[side]):9,.0f} events/s  p50 {p50:.2f} ms  p99 {p99:.2f} ms  errors {errors}"
            f"  at most {memory[side] / 1024 / 1024:.1f} MiB"
        )
    pairs = [("after", "before"), *((side, "floor") for side in ("before", "after") if "floor" in readings)]
    ratios = {
        f"{over} / {under}": (Ratio.of(cpu[over], cpu[under]), Ratio.of(rate[over], rate[under]))
        for over, under in pairs
    }
    for name, (of_cpu, of_rate) in ratios.items():
        print(f"  {name:<15} CPU {of_cpu}   events/s {of_rate}", flush=True)
    return {
        "load": load.title,
        "readings": readings,
        "memory": memory,
        "ratios": {name: {"cpu": of_cpu.median, "rate": of_rate.median} for name, (of_cpu, of_rate) in ratios.items()},
    }


def setting(text):
    """Return name and value of `NAME=VALUE`. Raise ValueError for anything else."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(text)
    return name, value


def main():
    parser = argparse.ArgumentParser(description="Compare two checkouts of the collector, or two settings, in turns.")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path, nargs="?", default=subjects.HERE.parent)
    parser.add_argument("--load", choices=LOADS, action="append", help=f"again for more; default: {', '.join(USUAL)}")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.2, help="of one reading")
    parser.add_argument("--cpu", type=float, default=0.5, help="of a core, for each")
    parser.add_argument("--durability", choices=["memory", "journal", "fsync"], default="journal")
    parser.add_argument("--floor", action="store_true", help="let the floor take its turn too")
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="NAME=VALUE", help="for both")
    parser.add_argument("--set-before", type=setting, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--json", type=Path, help="write all readings there")
    arguments = parser.parse_args()
    trees = {"before": arguments.before.resolve(), "after": arguments.after.resolve()}
    for tree in trees.values():
        if not (tree / "ingest" / "__main__.py").exists():
            parser.error(f"no checkout of the collector: {tree}")
    with tempfile.TemporaryDirectory() as built:
        generator = loads.build_generator(built)
        try:
            results = [
                compare(LOADS[name], *measure(generator, LOADS[name], trees, arguments))
                for name in arguments.load or USUAL
            ]
        except NoLimitError as error:
            print(error, file=sys.stderr)
            return 1
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
