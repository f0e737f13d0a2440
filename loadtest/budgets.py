"""What the figures are held against: one entry a row of the table "Budgets".

Owns the limits and where in the results of bench.py each figure stands. Promises that a row whose section was not
measured is left out, and that no other row is. Measures nothing.

A figure is a function of the results that returns `Figure`, or None where it was not measured. To add a row, add an
entry to `BUDGETS`.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

MIB = 1024 * 1024


class Figure(NamedTuple):
    value: float
    note: str = ""
    """Printed behind it: the range, or what it is a ratio of."""


@dataclass(frozen=True)
class Budget:
    what: str
    limit: float
    figure: Callable[[dict], Figure | None]
    goal: float | None = None
    at_least: bool = False
    form: str = "{:.2f}"

    def row(self, figure):
        what, goal = self.what, "" if self.goal is None else f" (goal {self.form.format(self.goal)})"
        return {
            "what": what,
            "figure": self.form.format(figure.value) + (f" ({figure.note})" if figure.note else ""),
            "value": figure.value,
            "budget": ("≥ " if self.at_least else "≤ ") + self.form.format(self.limit) + goal,
            "met": figure.value >= self.limit if self.at_least else figure.value <= self.limit,
        }


def rows(results):
    """Return each row that was measured."""
    figures = ((budget, budget.figure(results)) for budget in BUDGETS)
    return [budget.row(figure) for budget, figure in figures if figure is not None]


# Where the figures stand.


def found(results, *path):
    """Return what stands at a path in the results, None where that was not measured."""
    for name in path:
        if name not in results:
            return None
        results = results[name]
    return results


def cpu(load, *, over="floor"):
    """CPU an event of the collector over that of another subject, in the rounds of one load."""

    def figure(results):
        subjects = found(results, "cpu_per_event", load)
        if subjects is None:
            return None
        ours, other = subjects["journal"], subjects[over]
        if over == "floor":  # of which there are two readings a round: the ratios were formed with their mean
            ratios = ours["ratio_all"]
        else:
            ratios = [a / b for a, b in zip(ours["cpu_us_all"], other["cpu_us_all"], strict=True)]
        return Figure(statistics.median(ratios), f"{min(ratios):.2f}-{max(ratios):.2f}")

    return figure


def p50(load):
    def figure(results):
        ours = found(results, "cpu_per_event", load, "journal")
        return ours and Figure(ours["p50_us"] / 1000)

    return figure


def front(load, which):
    """`rate_ratio` or `ratio` (of CPU) of a load that fronts send, over the floor's."""

    def figure(results):
        ours = found(results, "fronts", load, "subjects", "journal")
        if ours is None:
            return None
        return Figure(ours[which], f"{ours['rate']:,.0f}/s" if which == "rate_ratio" else f"{ours['cpu_us']:.1f} µs")

    return figure


def batch(load):
    """CPU of an event that came with others over that of one that came alone."""

    def figure(results):
        taken = found(results, "batches", load)
        return taken and Figure(taken["ratio"], f"{taken['cpu_us']:.1f} µs")

    return figure


def workers():
    """Events/s of two workers over those of one process with half of their CPU."""

    def figure(results):
        two = found(results, "workers", "journal-2")
        return two and Figure(two["rate_ratio"], f"{two['rate']:,.0f}/s")

    return figure


def held(share):
    def figure(results):
        both = found(results, "held", share)
        if both is None or not both["floor"]["held"]:
            return None
        ours = both["journal"]["held"]
        rate = ours["rate"] if ours else 0
        return Figure(rate / both["floor"]["held"]["rate"], f"{rate:,}/s")

    return figure


def held_p99(share):
    def figure(results):
        ours = found(results, "held", share, "journal")
        return ours and Figure(ours["held"]["p99"] / 1000 if ours["held"] else float("inf"))

    return figure


def memory(subject, when):
    def figure(results):
        taken = found(results, "memory", subject)
        return taken and Figure(taken[when] / MIB)

    return figure


def start(subject):
    def figure(results):
        taken = found(results, "start_up", subject)
        return taken and Figure(taken["whole core"])

    return figure


def recovery(*, drained):
    """A step among the most files that were laid, full or after most were drained, over one among 1,000."""

    def figure(results):
        taken = found(results, "recovery")
        if not taken:
            return None
        few, many = (taken[files] for files in sorted(taken))
        step = many["after_99_percent_drained"] if drained else many
        return step and Figure(step["step_us"] / few["step_us"], f"{many['files']:,} files")

    return figure


def lake(engine):
    def figure(results):
        taken = found(results, "lake")
        if taken is None or engine not in taken[0]:
            return None
        small, *_, large = (hour[engine]["cpu_seconds"] / hour[engine]["rows"] for hour in taken)
        times = taken[-1]["objects"] / taken[0]["objects"]
        return Figure(large / small, f"{times:g} x the objects")

    return figure


BUDGETS = (
    Budget("CPU per event, x floor", 2.0, cpu("saturation"), goal=1.5),
    Budget("CPU per event, x Starlette", 0.25, cpu("saturation", over="starlette"), form="{:.3f}"),
    Budget("held at 0.25 vCPU, x floor", 0.42, held("0.25"), goal=0.62, at_least=True),
    Budget("its p99, ms", 110, held_p99("0.25"), form="{:.0f}"),
    Budget("1 connection that waits, events/s x floor", 0.5, front("waits-1", "rate_ratio"), at_least=True),
    Budget("4 connections that wait, events/s x floor", 0.5, front("waits-4", "rate_ratio"), at_least=True),
    Budget("4 beside 20 with 100/s, events/s x floor", 0.5, front("waits-4-beside", "rate_ratio"), at_least=True),
    Budget("8 connections that wait, events/s x floor", 0.5, front("waits-8", "rate_ratio"), at_least=True),
    Budget("one event a connection, HTTP/1.0, events/s x floor", 0.6, front("closes-1.0", "rate_ratio"), at_least=True),
    Budget("one event a connection, HTTP/1.0, CPU x floor", 1.75, front("closes-1.0", "ratio")),
    Budget("one event a connection, HTTP/1.1, events/s x floor", 0.6, front("closes-1.1", "rate_ratio"), at_least=True),
    Budget("one event a connection, HTTP/1.1, CPU x floor", 1.75, front("closes-1.1", "ratio")),
    Budget("2,000/s offered, CPU x floor", 1.0, cpu("2,000/s")),
    Budget("2,000/s offered, p50 ms", 1.5, p50("2,000/s")),
    Budget("10,000/s offered, CPU x floor", 0.8, cpu("10,000/s")),
    Budget("10,000/s offered, p50 ms", 1.5, p50("10,000/s")),
    Budget("a batch of 100, NDJSON, CPU x one event", 0.25, batch("lines-100")),
    Budget("2 workers with 0.5 vCPU, events/s x 1 with 0.25", 1.85, workers(), at_least=True),
    Budget("journal, x memory", 1.10, cpu("saturation", over="memory")),
    Budget("RSS idle, MiB", 75, memory("journal", "idle"), form="{:.0f}"),
    Budget("RSS at full load, MiB", 128, memory("journal", "full"), form="{:.0f}"),
    Budget("RSS idle, S3, MiB", 75, memory("journal-s3", "idle"), form="{:.0f}"),
    Budget("RSS at full load, S3, MiB", 128, memory("journal-s3", "full"), form="{:.0f}"),
    Budget("start to first 200, a whole core, s", 0.5, start("journal")),
    Budget("start to first 200, S3, a whole core, s", 0.5, start("journal-s3")),
    Budget("recovery step, x 1,000 files", 1.2, recovery(drained=False)),
    Budget("recovery step after 99 % drained, x 1,000 files", 1.2, recovery(drained=True)),
    Budget("an hour to Parquet, DuckDB, CPU an event x a small hour", 1.1, lake("duckdb")),
    Budget("an hour to Parquet, Spark, CPU an event x a small hour", 1.1, lake("spark")),
)
