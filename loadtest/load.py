"""One run of the generator against a subject: what it reports, what the subject spent, what others spent meanwhile.

Owns the loads by name, `LOADS`, the building of loadtest/generator.c, and the reading that a run ends in.
Promises that the CPU time of a reading is the subject's alone, from before the load until after it.
Never starts or stops a subject (that is `subjects`), never compares two (that is `bench` and `pair`).
"""

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

import subjects
import traffic


@dataclass(frozen=True)
class Load:
    """What the generator is asked for. `rate` 0: as fast as the answers come."""

    title: str
    connections: int = 32
    rate: float = 0.0
    variant: str = "plain"
    close: str = ""
    """The HTTP version of a load that sends one event a connection; empty: connections are kept."""
    form: str = ""
    """How many events stand in one request, as `traffic.batch` knows it; empty: each has one of its own."""
    events: int = 1
    """Of a request."""
    beside: float = 0.0
    """Events a second that `OTHERS` connections more send whether or not they are answered; 0: nobody else is there."""

    @property
    def floor(self):
        """The kind of floor that answers it."""
        return "closing" if self.close else self.variant if self.variant in ("split", "pipelined") else "plain"

    def words(self, seconds):
        words = ["--connections", self.connections, "--rate", self.rate / self.events, "--variant", self.variant]
        words += ["--close", self.close] if self.close else []
        return [*map(str, words), "--duration", str(seconds)]

    def at(self, rate):
        return replace(self, rate=rate, title=f"{rate:,.0f}/s")


OTHERS = 20
PLAIN = Load("32 connections, saturated")
LOADS = {
    "saturation": PLAIN,
    "waits-1": Load("1 connection that waits", connections=1),
    "waits-4": Load("4 connections that wait", connections=4),
    "waits-8": Load("8 connections that wait", connections=8),
    "waits-4-beside": Load("4 connections that wait, beside 20 with 100/s", connections=4, beside=100.0),
    "closes-1.0": Load("one event a connection, HTTP/1.0", close="1.0"),
    "closes-1.1": Load("one event a connection, HTTP/1.1", close="1.1"),
    "workers": Load("64 connections, saturated", connections=64),
    "2,000/s": PLAIN.at(2_000.0),
    "10,000/s": PLAIN.at(10_000.0),
    "lines-10": Load("batch of 10, NDJSON", form="lines", events=10),
    "lines-100": Load("batch of 100, NDJSON", form="lines", events=100),
    "array-100": Load("batch of 100, JSON array", form="array", events=100),
    "gzip-100": Load("batch of 100, NDJSON, gzip", form="gzip", events=100),
    **{
        variant: replace(PLAIN, title=variant, variant=variant)
        for variant in ("plain", "fresh-ip", "split", "pipelined", "origin", "mixed", "warm")
    },
}


def build_generator(folder):
    """Compile the generator into `folder`; exit with one line where there is no compiler."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise SystemExit(
            "no C compiler found, which loadtest/generator.c needs (Debian: apt-get install gcc libc6-dev)"
        )
    built = Path(folder) / "generator"
    subprocess.run([compiler, "-O2", "-Wall", "-o", str(built), str(subjects.HERE / "generator.c")], check=True)
    return built


def run(generator, running, load, seconds):
    """Load a subject that runs; return the generator's report with `cpu_us` an event and `foreign_cpu` in cores.

    What others send beside the load is no part of the report, but shares its CPU time.
    """
    more = []
    if load.form:
        requests = Path(generator).with_name(f"{load.form}-{load.events}")
        if not requests.exists():
            traffic.write_batches(requests, load.form, load.events)
        more = ["--from", str(requests)]
    busy, spent, started = machine_busy(), running.limit.cpu_seconds(), time.monotonic()
    others = Load("others", connections=OTHERS, rate=load.beside)
    beside = [_started(generator, running, others.words(seconds))] if load.beside else []
    own = _started(generator, running, [*load.words(seconds), *more])
    reading, *reports = [_report(process, running, load) for process in (own, *beside)]
    for figure in ("offered_rate", "achieved_rate", "sent", "ok", "unsent"):
        reading[figure] *= load.events
    elapsed = time.monotonic() - started
    answered = reading["ok"] + sum(report["ok"] for report in reports)
    reading["cpu_seconds"] = running.limit.cpu_seconds() - spent
    reading["cpu_us"] = reading["cpu_seconds"] / max(1, answered) * 1e6
    generator_seconds = sum(report["generator_cpu"] * report["duration"] for report in (reading, *reports))
    reading["foreign_cpu"] = max(0.0, machine_busy() - busy - reading["cpu_seconds"] - generator_seconds) / elapsed
    running.acknowledged += answered
    return reading


def _started(generator, running, words):
    return subprocess.Popen(
        [str(generator), "--port", str(running.port), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, subjects.GENERATOR_CORE),
    )


def _report(process, running, load):
    output, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"generator against {running.subject.name}, {load.title}: {errors}")
    return json.loads(output)


def machine_busy():
    """Return the CPU seconds that the machine has spent since it was started, by whomever."""
    user, nice, system, _, _, irq, soft, steal, *_ = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
