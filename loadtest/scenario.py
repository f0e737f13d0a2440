"""Runs locust scenarios against a collector in a CPU limit with an S3-speaking store, and plots what happened.

    .venv-bench/bin/python loadtest/scenario.py spike outage [--seconds 60] [--rate 150] [--cpu 0.25]

For each scenario, in a folder of its own below --out: locust's HTML report and CSV, counts.json (acknowledged, stored,
lost, doubled), samples.json and timeline.png: TPS, p50 and p99, CPU, RSS, the upload queue and the DLQ over time.
`outage` kills the store a third of the way in and starts it again after another third. After the count the collector
is stopped with SIGTERM and its books are read. Exit code 1 if a scenario lost or doubled an event, left the books
unbalanced, or did not exit with 0.

locust is Python and makes some 1,500 requests a second on the core it has: these scenarios show that the counts are
right and how it behaves, not how fast it is (that is bench.py). `ramp` therefore limits the collector to 0.05 vCPU
unless told otherwise.
"""

import argparse
import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import matplotlib as mpl
import subjects
from subjects import JOURNAL_S3, Running

mpl.use("Agg")
import matplotlib.pyplot as plt

SCENARIOS = ["steady", "ramp", "spike", "outage", "soak"]
KNEE_P99_MS = 500
"""For `ramp`: at 0.05 vCPU the limit's own pause is 95 ms, and several add up behind each other."""
WATCHED = {
    "queue": "estat_queued_batches",
    "dlq_files": 'estat_spool_files{place="dlq"}',
    "accepted": "estat_events_accepted_total",
    "stored": "estat_events_stored_total",
    "unaccounted": "estat_events_unaccounted",
}


class Sampler(threading.Thread):
    """Once a second: CPU, RSS and the collector's own metrics."""

    def __init__(self, running):
        super().__init__(daemon=True)
        self.running = running
        self.samples = []
        self.ended = threading.Event()

    def run(self):
        last, spent = time.time(), self.running.limit.cpu_seconds()
        while not self.ended.wait(1):
            now, spent_now = time.time(), self.running.limit.cpu_seconds()
            sample = {"at": now, "cpu": (spent_now - spent) / (now - last), "rss": self.running.limit.resident()[0]}
            last, spent = now, spent_now
            self.samples.append(sample | read_metrics(self.running.port))


def read_metrics(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    values = dict(re.findall(r"^([a-z0-9_]+(?:\{[^}]*\})?) ([-+0-9.e]+)$", text, re.MULTILINE))
    return {name: float(values[metric]) for name, metric in WATCHED.items() if metric in values}


def run(scenario, arguments, out):
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    store = out / "objects"
    sink, port = subjects.start_sink(keep=store)
    share = arguments.cpu or (0.05 if scenario == "ramp" else 0.25)
    settings = (("DURABILITY", arguments.durability), ("FLUSH_INTERVAL", "2s"), ("LOG_LEVEL", "info"))
    subject = dataclasses.replace(JOURNAL_S3, environment=(*JOURNAL_S3.environment, *settings))
    print(
        f"{scenario}: {arguments.seconds:.0f} s from {arguments.rate:.0f}/s at {share} vCPU, {arguments.durability}",
        flush=True,
    )
    with Running(subject, out, share=share, s3_port=port) as running:
        sampler = Sampler(running)
        sampler.start()
        locust = start_locust(scenario, arguments, out, store, running.port)
        if scenario == "outage":
            time.sleep(arguments.seconds / 3)
            sink.kill()
            sink.wait()
            print("  the store is gone", flush=True)
            time.sleep(arguments.seconds / 3)
            sink, _ = subjects.start_sink(keep=store, port=port)
            print("  the store is back", flush=True)
        locust_code = locust.wait()
        sampler.ended.set()
        sampler.join()
        books = read_metrics(running.port)
        running.process.send_signal(signal.SIGTERM)
        exit_code = running.process.wait(60)
        shutil.copy(running.folder / "output", out / "collector.log")
    sink.kill()
    sink.wait()
    counts = json.loads((out / "counts.json").read_text()) | {"exit_code": exit_code, "books": books}
    (out / "counts.json").write_text(json.dumps(counts, indent=1))
    (out / "samples.json").write_text(json.dumps(sampler.samples))
    history = read_history(out / "locust_stats_history.csv")
    if scenario == "ramp":
        counts["knee"] = knee(history)
    plot(scenario, sampler.samples, history, out / "timeline.png")
    shutil.rmtree(store, ignore_errors=True)
    print(f"  {json.dumps(counts)}", flush=True)
    return not locust_code and not exit_code and not books.get("unaccounted", 1)


def start_locust(scenario, arguments, out, store, port):
    command = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        str(subjects.HERE / "locustfile.py"),
        "--headless",
        "--only-summary",
    ]
    command += ["--host", f"http://127.0.0.1:{port}", "--scenario", scenario, "--rate", str(arguments.rate)]
    command += ["--seconds", str(arguments.seconds), "--store", str(store), "--counts", str(out / "counts.json")]
    command += [
        "--html",
        str(out / "locust.html"),
        "--csv",
        str(out / "locust"),
        "--csv-full-history",
        "--loglevel",
        "WARNING",
    ]
    with (out / "locust.log").open("wb") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, subjects.GENERATOR_CORE),
        )


def read_history(path):
    """Locust's own second-by-second history of all requests together."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["Name"] == "Aggregated"]
    return [
        {
            "at": float(row["Timestamp"]),
            "tps": float(row["Requests/s"]),
            "users": int(row["User Count"]),
            "p50": _number(row["50%"]),
            "p99": _number(row["99%"]),
            "failures": float(row["Failures/s"]),
        }
        for row in rows
    ]


def knee(history):
    """Where the ramp bent: p99 above KNEE_P99_MS for good, or failures (percentiles are of the last ten seconds)."""
    bent = [row for row in history if row["failures"] or (row["p99"] or 0) > KNEE_P99_MS]
    last_good = max((number for number, row in enumerate(history) if row not in bent), default=0)
    rates = [row["tps"] for row in history]
    return {"held": max(rates[: last_good + 1], default=0), "bent": last_good < len(history) - 1, "highest": max(rates)}


def _number(text):
    return float(text) if text not in ("", "N/A") else None


def plot(scenario, samples, history, path):
    start = samples[0]["at"]
    figure, axes = plt.subplots(5, 1, figsize=(8, 10), sharex=True)
    at = [row["at"] - start for row in history]
    axes[0].plot(at, [row["tps"] for row in history], label="requests/s")
    axes[0].plot(at, [row["failures"] for row in history], color="#a33", label="failures/s")
    axes[1].plot(at, [row["p50"] for row in history], label="p50 ms")
    axes[1].plot(at, [row["p99"] for row in history], label="p99 ms")
    at = [sample["at"] - start for sample in samples]
    axes[2].plot(at, [sample["cpu"] for sample in samples], label="CPU, cores")
    axes[3].plot(at, [sample["rss"] / 1024 / 1024 for sample in samples], label="RSS, MiB")
    axes[4].plot(at, [sample.get("queue") for sample in samples], label="upload queue, batches")
    axes[4].plot(at, [sample.get("dlq_files") for sample in samples], label="DLQ, files")
    axes[4].set_xlabel("seconds")
    axes[0].set_title(scenario)
    for one in axes:
        one.legend(fontsize=8, loc="upper left")
        one.set_ylim(bottom=0)
        one.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100, bbox_inches="tight")
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description="Locust scenarios against a collector in a CPU limit.")
    parser.add_argument(
        "scenarios", nargs="*", default=["steady", "ramp", "spike", "outage"], help=", ".join(SCENARIOS)
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=150)
    parser.add_argument("--cpu", type=float, help="0.25, and 0.05 for ramp")
    parser.add_argument("--durability", choices=["memory", "journal", "fsync"], default="journal")
    parser.add_argument("--out", type=Path, default=Path("bench-out/scenarios"))
    arguments = parser.parse_args()
    unknown = set(arguments.scenarios) - set(SCENARIOS)
    if unknown:
        parser.error(f"no such scenario: {', '.join(unknown)}")
    passed = [run(scenario, arguments, arguments.out.resolve() / scenario) for scenario in arguments.scenarios]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
