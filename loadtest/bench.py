"""Every figure of docs/benchmarks.md in one run, beside the floor and the peers; started by ./bench.sh.

How it measures:

    limit      each subject runs in a real CPU limit (limits.py); without one nothing is measured and the exit is 1
    cores      the subject on one core, the generator (and the S3 sink) on another
    CPU        user + system time of the subject's cgroup, all threads and children, from before the load until after it
    pairs      all subjects are started once, then take turns, in rounds; ratios are formed within a round against the
               floor's readings of that round, and the median of the rounds is reported, with the range
    budgets    which figure is held against which limit is the table of budgets.py
    held rate  open loop, latency from when an event was due; bisected in short steps, then confirmed for 30 s: no
               error, no event unsent, p99 within the budget
    proof      what the collector acknowledged while it was measured is counted in its objects afterwards; what was
               still under way when a load ended may be stored too, so that it is a few more, never fewer
    noise      CPU time that neither the subject nor the generator spent is shown, and so is the generator's own share:
               a reading in which it was busy for more than 85 % is marked as its limit, not the subject's

It prints tables, and writes bench.json, bench.md and the plots into the output folder.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import time
from contextlib import ExitStack
from pathlib import Path

import compiled
import load as loads
import report
import subjects
from isal import igzip
from limits import NoLimitError, open_limit
from load import LOADS, PLAIN
from subjects import FLOOR, FSYNC, JOURNAL, JOURNAL_S3, MEMORY, STARLETTE, TWO_WORKERS, Running

P99_BUDGET_US = 110_000
FRONTS = ["waits-1", "waits-4", "waits-4-beside", "waits-8", "closes-1.0", "closes-1.1"]
FRONTS_OF_PEERS = ["waits-4", "closes-1.0"]
VARIANTS = ["plain", "fresh-ip", "split", "pipelined", "origin", "mixed", "warm"]
BATCHES = ["lines-10", "lines-100", "array-100", "gzip-100"]
LEARNING_SECONDS = 8  # in which the collector meets every layout of the mixed load
BUSY_GENERATOR = 0.85


class Plan:
    """How long everything takes; the quick plan is for a look, not for a figure to quote."""

    def __init__(self, *, quick, full, compiled=()):
        self.name = "quick" if quick else "full" if full else "standard"
        self.rounds = 3 if quick else 5
        self.more_rounds = 0 if quick else 4
        """At saturation, of those that budgets are about."""
        self.seconds = 1.0 if quick else 1.6
        self.ours = [MEMORY, JOURNAL] if quick else [MEMORY, JOURNAL, FSYNC, JOURNAL_S3]
        self.peers = [STARLETTE] if quick else [*subjects.PEERS, *compiled]
        self.fronts = ["waits-4", "closes-1.0"] if quick else FRONTS
        self.fronts_of_peers = {} if quick else {load: [*compiled, STARLETTE] for load in FRONTS_OF_PEERS}
        self.fronts_rounds = 3 if quick else 5
        self.fronts_seconds = 1.0 if quick else 1.2
        self.shares = [0.25] if quick else [0.25, 0.5]
        self.held = [FLOOR, JOURNAL] if quick else [FLOOR, JOURNAL, STARLETTE]
        self.search_steps = 4 if quick else 5
        self.search_seconds = 2.5 if quick else 3.5
        self.confirm_seconds = 10 if quick else 30
        self.confirm_others = 5 if quick else 8
        self.starts = 3 if quick else 5
        self.variants = VARIANTS[:2] if quick else VARIANTS
        self.variants_rounds = 1 if quick else 3
        self.dlq_files = 20_000 if quick else 1_000_000 if full else 100_000


class Bench:
    def __init__(self, plan, generator, out):
        self.plan = plan
        self.generator = generator
        self.work = out / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        self.sink, self.sink_port = subjects.start_sink()
        self.foreign = []
        self.generator_bound = []

    def close(self):
        self.sink.kill()
        self.sink.wait()
        shutil.rmtree(self.work, ignore_errors=True)

    def start(self, subject, **options):
        return Running(subject, self.work, s3_port=self.sink_port, **options)

    def load(self, running, seconds, load=PLAIN):
        """One run of the generator; its noise is remembered."""
        reading = loads.run(self.generator, running, load, seconds)
        self.foreign.append(reading["foreign_cpu"])
        if reading["generator_cpu"] > BUSY_GENERATOR:
            self.generator_bound.append(f"{running.subject.name}, {load.title}")
        return reading

    # ---- CPU per event ----

    def cpu_per_event(self):
        """All subjects take turns, at saturation and below it, under half a vCPU."""
        everyone = [FLOOR, *self.plan.ours, *self.plan.peers]
        few = [FLOOR, *self.plan.ours, STARLETTE]
        turns = {"saturation": everyone, "2,000/s": few}
        if self.plan.name != "quick":
            turns["10,000/s"] = few[:-1]
        running = {}
        results = {}
        try:
            for subject in everyone:
                running[subject] = self.start(subject, share=0.5)
                self.load(running[subject], 0.5)
            for load, who in turns.items():
                readings = {subject: [] for subject in who}
                ratios = {subject: [] for subject in who}
                rounds = self.plan.rounds + (self.plan.more_rounds if load == "saturation" else 0)
                for number in range(rounds):
                    say(f"CPU per event, {load}: round {number + 1} of {rounds}")
                    turn = who if number < self.plan.rounds else [MEMORY, JOURNAL, STARLETTE]
                    turn = [subject for subject in turn if subject is not FLOOR]
                    turn = turn if number % 2 == 0 else turn[::-1]
                    turn.insert(len(turn) // 2, FLOOR)
                    taken = {}
                    for subject in [FLOOR, *turn]:
                        reading = self.load(running[subject], self.plan.seconds, LOADS[load])
                        taken.setdefault(subject, []).append(reading)
                    floor = statistics.mean(reading["cpu_us"] for reading in taken[FLOOR])
                    for subject, taken_readings in taken.items():
                        readings[subject] += taken_readings
                        ratios[subject] += [reading["cpu_us"] / floor for reading in taken_readings]
                results[load] = {subject.name: _summary(subject, readings[subject], ratios[subject]) for subject in who}
        finally:
            for one in running.values():
                one.end()
        return results

    # ---- the loads that are not the plain one ----

    def fronts(self):
        """What stands before a collector: few connections that wait for each answer, or one event on each."""
        return self._beside_floor("front", self.plan.fronts, self.plan.fronts_rounds, self.plan.fronts_of_peers)

    def variants(self):
        """Other requests, at saturation."""
        return self._beside_floor("variant", self.plan.variants, self.plan.variants_rounds, {})

    def _beside_floor(self, kind, names, rounds, peers):
        """Collector against floor (and peers) under each load, half a vCPU; ratios are within a round."""
        results = {}
        for name in names:
            say(f"{kind}, {LOADS[name].title}")
            with ExitStack() as stack:
                running = {}
                for subject in [FLOOR, JOURNAL, *peers.get(name, [])]:
                    running[subject] = stack.enter_context(self.start(subject, share=0.5, kind=LOADS[name].floor))
                    learning = LEARNING_SECONDS if name == "mixed" and subject is JOURNAL else 0.3
                    self.load(running[subject], learning, LOADS[name])
                readings = {subject: [] for subject in running}
                for number in range(rounds):
                    for subject in [*running][:: 1 if number % 2 == 0 else -1]:
                        readings[subject].append(self.load(running[subject], self.plan.fronts_seconds, LOADS[name]))
            floor = readings[FLOOR]
            results[name] = {"title": LOADS[name].title, "subjects": {}}
            for subject, taken in readings.items():
                of_cpu, of_rate = (
                    [reading[figure] / other[figure] for reading, other in zip(taken, floor, strict=True)]
                    for figure in ("cpu_us", "achieved_rate")
                )
                summary = _summary(subject, taken, of_cpu) | {"rate_ratio": statistics.median(of_rate)}
                results[name]["subjects"][subject.name] = summary
        return results

    # ---- many events in one request ----

    def batches(self):
        """CPU an event of the collector, half a vCPU, over that of an event that comes alone; and the rate held."""
        results = {}
        with self.start(JOURNAL, share=0.5) as running:
            readings = {name: [] for name in ["plain", *BATCHES]}
            for name in readings:
                self.load(running, 0.3, LOADS[name])
            for number in range(self.plan.fronts_rounds):
                for name in [*readings][:: 1 if number % 2 == 0 else -1]:
                    readings[name].append(self.load(running, self.plan.fronts_seconds, LOADS[name]))
        for name, taken in readings.items():
            ratios = [one["cpu_us"] / alone["cpu_us"] for one, alone in zip(taken, readings["plain"], strict=True)]
            results[name] = _summary(JOURNAL, taken, ratios) | {"title": LOADS[name].title}
        results["held"] = self.hold(JOURNAL, 0.25, LOADS["lines-100"])
        return results

    # ---- several processes ----

    def workers(self):
        """Two workers with half a vCPU against one process with a quarter, at saturation; ratios are within a round."""
        shares = {JOURNAL: 0.25, TWO_WORKERS: 0.5}
        results = {}
        with ExitStack() as stack:
            running = {subject: stack.enter_context(self.start(subject, share=shares[subject])) for subject in shares}
            readings = {subject: [] for subject in shares}
            for subject in shares:
                self.load(running[subject], 1, LOADS["workers"])
            for number in range(self.plan.fronts_rounds):
                say(f"workers: round {number + 1} of {self.plan.fronts_rounds}")
                for subject in [*shares][:: 1 if number % 2 == 0 else -1]:
                    readings[subject].append(
                        self.load(running[subject], 2 * self.plan.fronts_seconds, LOADS["workers"])
                    )
            alone = readings[JOURNAL]
            for subject, taken in readings.items():
                of_cpu, of_rate = (
                    [reading[figure] / other[figure] for reading, other in zip(taken, alone, strict=True)]
                    for figure in ("cpu_us", "achieved_rate")
                )
                results[subject.name] = _summary(subject, taken, of_cpu) | {
                    "share": shares[subject],
                    "rate_ratio": statistics.median(of_rate),
                    "rss_peak": running[subject].limit.resident()[1],
                    "proof": self.stop_and_count(running[subject]),
                }
        return results

    # ---- the highest rate held ----

    def held(self):
        results = {}
        for share in self.plan.shares:
            results[f"{share}"] = {}
            for subject in self.plan.held:
                results[f"{share}"][subject.name] = self.hold(subject, share)
        return results

    def hold(self, subject, share, load=PLAIN):
        """Bisect, then confirm; on the way down by 8 % as long as the confirmation fails."""
        with self.start(subject, share=share) as running:
            self.load(running, 1, load)
            saturation = self.load(running, 3, load)["achieved_rate"]
            say(f"{subject.name} at {share} vCPU: saturated at {saturation:,.0f}/s")
            low, high, points = 0.5 * saturation, 1.1 * saturation, []
            for _ in range(self.plan.search_steps):
                rate = (low + high) / 2
                reading = self.load(running, self.plan.search_seconds, load.at(rate))
                points.append(_point(reading))
                low, high = (rate, high) if _is_held(reading) else (low, rate)
            rate, confirmed = low, None
            seconds = self.plan.confirm_seconds if subject.ours else self.plan.confirm_others
            for _ in range(6):
                reading = self.load(running, seconds, load.at(rate))
                points.append(_point(reading))
                if _is_held(reading):
                    confirmed = _point(reading)
                    break
                rate *= 0.92
            say(f"{subject.name} at {share} vCPU: held {confirmed and confirmed['rate']}/s for {seconds} s")
            memory = running.limit.resident()
            result = {"saturation": saturation, "held": confirmed, "seconds": seconds, "points": points}
            result["rss_now"], result["rss_peak"] = memory
            if subject.ours:
                result["proof"] = self.stop_and_count(running)
        return result

    def stop_and_count(self, running):
        """SIGTERM the collector and count the events in its objects."""
        running.limit.set_cpu(None)
        running.process.send_signal(signal.SIGTERM)
        code = running.process.wait(60)
        events = 0
        for path in (running.folder / "objects").rglob("*.jsonl.gz"):
            with igzip.open(path, "rb") as lines:
                while block := lines.read(1 << 20):
                    events += block.count(b"\n")
        return {"acknowledged": running.acknowledged, "stored": events, "exit_code": code}

    # ---- memory, start, recovery ----

    def memory(self):
        """Resident memory idle, then under saturation on a whole core, with either store."""
        results = {}
        for subject in (JOURNAL, JOURNAL_S3):
            with self.start(subject) as running:
                time.sleep(1 if self.plan.name == "quick" else 3)
                idle, _ = running.limit.resident()
                self.load(running, 3 if self.plan.name == "quick" else 8)
                results[subject.name] = {"idle": idle, "full": running.limit.resident()[1]}
        return results

    def start_up(self):
        results = {}
        for subject in (JOURNAL, JOURNAL_S3, STARLETTE):
            for share in (None, 0.25):
                say(f"start of {subject.name}, {share or 'a whole core'}")
                times = []
                for _ in range(self.plan.starts):
                    with self.start(subject, share=share) as running:
                        times.append(running.first_answer)
                where = "whole core" if share is None else f"{share} vCPU"
                results.setdefault(subject.name, {})[where] = statistics.median(times)
        return results

    def recovery(self):
        results = {}
        for files in (1_000, self.plan.dlq_files):
            say(f"recovery step among {files:,} files")
            command = [sys.executable, str(subjects.HERE / "recovery.py"), str(files), str(self.work)]
            environment = {**os.environ, "PYTHONPATH": str(subjects.HERE.parent)}
            finished = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            results[files] = json.loads(finished.stdout)
        return results

    def lake(self):
        say("hours to Parquet, by DuckDB and by Spark")
        command = [str(LAKE_PYTHON), str(subjects.HERE / "lake.py"), str(self.work)]
        command += ["--objects", *(map(str, [30, 60] if self.plan.name == "quick" else [30, 60, 120, 240]))]
        environment = {**os.environ, "PYTHONPATH": str(subjects.HERE.parent)}
        limit = open_limit("lake", memory=None)  # limits nothing: it counts what Spark's Java spends, too
        busy, started = loads.machine_busy(), time.monotonic()
        process = limit.start(command, stdout=subprocess.PIPE, text=True, env=environment)
        told, _ = process.communicate()
        spent, elapsed = loads.machine_busy() - busy - limit.cpu_seconds(), time.monotonic() - started
        limit.end()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        self.foreign.append(max(0.0, spent) / elapsed)
        return json.loads(told)


def _summary(subject, readings, ratios):
    spent = [reading["cpu_us"] for reading in readings]
    return {
        "title": subject.title,
        "cpu_us": statistics.median(spent),
        "cpu_us_all": spent,
        "ratio": statistics.median(ratios),
        "ratio_all": ratios,
        "rate": statistics.median(reading["achieved_rate"] for reading in readings),
        "p50_us": statistics.median(reading["latency_us"]["p50"] for reading in readings),
        "p99_us": statistics.median(reading["latency_us"]["p99"] for reading in readings),
        "errors": sum(reading["sent"] - reading["ok"] for reading in readings),
        "generator_cpu": max(reading["generator_cpu"] for reading in readings),
    }


def _is_held(reading):
    clean = reading["ok"] == reading["sent"] and not reading["unsent"] and not reading["broken_connections"]
    return clean and reading["latency_us"]["p99"] <= P99_BUDGET_US


def _point(reading):
    return {
        "rate": round(reading["offered_rate"]),
        "held": _is_held(reading),
        "errors": reading["sent"] - reading["ok"],
        "unsent": reading["unsent"],
        "cpu_us": reading["cpu_us"],
        **reading["latency_us"],
    }


def machine(limit_kind):
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "?",
    )
    optimised = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    system_python = Path("/etc/debian_version").exists() and str(Path(sys.executable).resolve()).startswith("/usr/bin/")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "profile_guided_python": optimised or system_python,
        "limit": limit_kind,
        "load_average": os.getloadavg(),
    }


def say(text):
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}", file=sys.stderr, flush=True)


STARTED = time.monotonic()
SECTIONS = ["cpu_per_event", "fronts", "variants", "batches", "workers", "held", "memory", "start_up", "recovery"]
ON_REQUEST = ["lake"]
"""Sections that `--only` names, because they need a virtual environment of their own."""
LAKE_PYTHON = subjects.HERE.parent / ".venv-lake/bin/python"


def main():
    parser = argparse.ArgumentParser(description="Measure the collector beside the floor and the peers.")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--quick", action="store_true", help="two minutes: few rounds, few peers")
    parser.add_argument("--full", action="store_true", help="as standard, with 1,000,000 dead-letter files")
    parser.add_argument(
        "--only", choices=[*SECTIONS, *ON_REQUEST], action="append", help="this section only (again for more)"
    )
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    try:
        probe = open_limit("probe")
    except NoLimitError as error:
        print(error, file=sys.stderr)
        return 1
    kind = probe.kind
    probe.end()
    say(f"CPU limit: {kind}")
    if len(subjects.CORES) < 2:
        print("one core: the generator would share it with what it measures; nothing measured", file=sys.stderr)
        return 1
    built = out / "built"
    compiled_peers, left_out = ([], []) if arguments.quick else compiled.peers(built)
    for line in left_out:
        say(line)
    plan = Plan(quick=arguments.quick, full=arguments.full, compiled=compiled_peers)
    results = {"plan": plan.name, "machine": machine(kind), "p99_budget_us": P99_BUDGET_US, "left_out": left_out}
    bench = Bench(plan, loads.build_generator(built), out)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # by a way that ends what it has started
    try:
        for section in arguments.only or SECTIONS:
            results[section] = getattr(bench, section)()
    finally:
        bench.close()
    results["noise"] = {
        "foreign_cpu_median": statistics.median(bench.foreign) if bench.foreign else None,
        "foreign_cpu_max": max(bench.foreign, default=None),
        "generator_bound": bench.generator_bound,
    }
    results["seconds"] = round(time.monotonic() - STARTED)
    report.write(results, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
