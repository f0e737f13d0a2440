"""How many instructions an event costs in the process itself, all of the hot path but the kernel: the same in each run.

    python loadtest/instructions.py [CHECKOUT ...] [--events 10000] [--connections 20] [--closing]
                                    [--durability journal] [--clock ROUNDS] [--keep FOLDER]

Each checkout (this one unless others are named) is driven by turns.py under valgrind's callgrind, which counts what
every thread executes outside the kernel. A busy machine changes nothing in that count, so a difference of one per cent
is a difference; what it does not show is the kernel's part and the caches'. Printed are the instructions an event, by
the library they were executed in, and with two checkouts the ratio of the last to the first. --clock drives without
valgrind and prints CPU time an event, the checkouts in turns, the median of so many rounds. --keep leaves callgrind's
files there, for `callgrind_annotate`. Needs valgrind with its headers, and a C compiler (Debian: valgrind, gcc,
libc6-dev).
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
SWITCH = """
#include <valgrind/callgrind.h>
void counting_on(void) { CALLGRIND_START_INSTRUMENTATION; }
void counting_off(void) { CALLGRIND_STOP_INSTRUMENTATION; }
"""


def build_switch(folder):
    source, library = folder / "switch.c", folder / "switch.so"
    source.write_text(SWITCH)
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or shutil.which("valgrind") is None:
        raise SystemExit("needs valgrind and a C compiler (Debian: apt-get install valgrind gcc libc6-dev)")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


def drive(tree, arguments, *, before=(), words=()):
    """Run turns.py on a checkout; return what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAW_", "DLQ_"))}
    with tempfile.TemporaryDirectory(prefix="turns-") as folder:
        environment |= {
            "PYTHONPATH": str(tree),
            "PYTHONHASHSEED": "0",
            "STORE_DIR": f"{folder}/objects",
            "DLQ_DIR": f"{folder}/dlq",
            "HTTP_ADDR": "127.0.0.1:0",
            "BATCH_SIZE": "5000",
            "FLUSH_INTERVAL": "1h",
            "READ_TIMEOUT": "1h",
            "DURABILITY": arguments.durability,
            "LOG_LEVEL": "error",
        }
        command = [*before, sys.executable, str(HERE / "turns.py"), "--events", str(arguments.events), *words]
        command += ["--connections", str(arguments.connections), *(["--closing"] if arguments.closing else [])]
        finished = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"{tree}: exit {finished.returncode}\n{finished.stderr}{finished.stdout}")
    return json.loads(finished.stdout.splitlines()[0])


def count(tree, arguments, switch, out):
    """Return the instructions an event, by the name of the library."""
    valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}", "--quiet"]
    drive(tree, arguments, before=valgrind, words=["--switch", str(switch)])
    executed = Counter()
    for path in out.parent.glob(f"{out.name}*"):
        executed += by_library(path.read_text().splitlines())
    return {name: executed[name] / arguments.events for name in executed}


def by_library(lines):
    """Sum what each library executed itself, from the lines of a callgrind file."""
    executed, names, library, called = Counter(), {}, "?", False
    for line in lines:
        if line.startswith("ob="):
            number, _, path = line[3:].partition(" ")
            names.setdefault(number, Path(path).name.partition(".cpython")[0])
            library = names[number]
        elif line.startswith("cob="):  # a library may be named for the first time where it is called
            number, _, path = line[4:].partition(" ")
            names.setdefault(number, Path(path).name.partition(".cpython")[0])
        elif line.startswith("calls="):  # the next line is what the called function spent, which has lines of its own
            called = True
        elif line[:1] in "0123456789+-*" and line:
            cost = line.split()
            if not called and len(cost) > 1:
                executed[library] += int(cost[1])
            called = False
    return executed


def print_counts(counted):
    names = sorted(
        {name for one in counted.values() for name in one},
        key=lambda name: -max(c.get(name, 0) for c in counted.values()),
    )
    totals = {tree: sum(one.values()) for tree, one in counted.items()}
    width = max(18, *(len(str(tree)) for tree in counted))
    for tree, one in counted.items():
        print(f"{tree!s:<{width}} {totals[tree]:10,.0f} instructions an event")
        for name in names:
            if one.get(name, 0) >= totals[tree] / 200:
                print(f"  {name:<{width - 2}} {one[name]:10,.0f}")
    trees = list(counted)
    if len(trees) > 1:
        print(f"last / first: {totals[trees[-1]] / totals[trees[0]]:.3f}")


def print_clocks(trees, arguments):
    taken = {tree: [] for tree in trees}
    for number in range(arguments.clock):
        for tree in trees if number % 2 == 0 else trees[::-1]:
            taken[tree].append(drive(tree, arguments)["cpu_us"])
    for tree, readings in taken.items():
        print(f"{tree}  {statistics.median(readings):.2f} µs CPU an event ({min(readings):.2f}-{max(readings):.2f})")
    if len(trees) > 1:
        ratios = [after / before for before, after in zip(taken[trees[0]], taken[trees[-1]], strict=True)]
        print(f"last / first: {statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})")


def main():
    parser = argparse.ArgumentParser(description="Count the instructions an event costs.")
    parser.add_argument("trees", metavar="checkout", type=Path, nargs="*", default=[HERE.parent])
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=20, help="that have an event each in a turn")
    parser.add_argument("--closing", action="store_true", help="each event on a connection of its own")
    parser.add_argument("--durability", choices=["memory", "journal"], default="journal")
    parser.add_argument("--clock", type=int, metavar="ROUNDS", help="CPU time in place of instructions")
    parser.add_argument("--keep", type=Path, help="leave callgrind's files there")
    arguments = parser.parse_args()
    trees = [tree.resolve() for tree in arguments.trees]
    if arguments.clock:
        print_clocks(trees, arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        switch = build_switch(Path(folder))
        out = (arguments.keep or Path(folder)).resolve()
        out.mkdir(parents=True, exist_ok=True)
        print_counts({tree: count(tree, arguments, switch, out / f"callgrind.{n}") for n, tree in enumerate(trees)})


if __name__ == "__main__":
    main()
