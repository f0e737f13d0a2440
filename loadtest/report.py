"""From what bench.py measured: the tables, bench.json, bench.md and the plots. Reads figures only, measures nothing."""

import json
from pathlib import Path

import budgets
import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

MIB = 1024 * 1024
OURS, THEIRS, FLOOR = "#1f6f78", "#b0b7bd", "#d9a441"


def write(results, out):
    results["budgets"] = budgets.rows(results)
    (out / "bench.json").write_text(json.dumps(results, indent=1))
    text = tables(results)
    (out / "bench.md").write_text(text)
    print(text)
    for name, plot in (("cpu", _plot_cpu), ("held", _plot_held), ("latency", _plot_latency)):
        figure = plot(results)
        if figure is not None:
            figure.savefig(out / f"{name}.png", dpi=110, bbox_inches="tight")
            plt.close(figure)
    print(f"\nWritten: {out}/bench.json, bench.md and the plots.")


def tables(results):
    return "\n".join(_tables(results))


def _noise(results):
    noise = results["noise"]
    plan = f"Plan {results['plan']}, {results['seconds']} s."
    if noise["foreign_cpu_median"] is None:
        yield f"{plan} Nobody measured what others spent meanwhile."
    else:
        median, most = noise["foreign_cpu_median"], noise["foreign_cpu_max"]
        yield f"{plan} CPU spent by others meanwhile: median {median:.2f} cores, at most {most:.2f}."
        if median > 0.1:
            yield "**The machine was not quiet: take no figure from this run.**"


def _tables(results):
    machine = results["machine"]
    python = f"Python {machine['python']}" + (", profile-guided" if machine["profile_guided_python"] else "")
    system = f"{machine['cores']} cores, Linux {'.'.join(machine['kernel'].split('.')[:2])}"
    yield f"\n{machine['cpu']}, {system}, {python}; limit: {machine['limit']}."
    noise = results["noise"]
    yield from _noise(results)
    if noise["generator_bound"]:
        yield f"**The generator was the limit in: {', '.join(noise['generator_bound'])}.**"
    yield from results.get("left_out", [])
    if results["budgets"]:
        yield from _table(
            "Budgets",
            ["what", "figure", "budget", ""],
            [
                [row["what"], row["figure"], row["budget"], "met" if row["met"] else "**MISSED**"]
                for row in results["budgets"]
            ],
        )
    for load, subjects in results.get("cpu_per_event", {}).items():
        yield from _table(
            f"CPU per event, {load}, half a vCPU",
            ["", "µs", "x floor", "range", "events/s", "p50 ms", "p99 ms", "errors"],
            [
                [
                    one["title"],
                    f"{one['cpu_us']:.1f}",
                    f"{one['ratio']:.2f}",
                    f"{min(one['ratio_all']):.2f}-{max(one['ratio_all']):.2f}",
                    f"{one['rate']:,.0f}",
                    f"{one['p50_us'] / 1000:.1f}",
                    f"{one['p99_us'] / 1000:.1f}",
                    str(one["errors"]),
                ]
                for one in subjects.values()
            ],
        )
    for front in results.get("fronts", {}).values():
        yield from _table(
            f"{front['title'][0].upper()}{front['title'][1:]}, half a vCPU",
            ["", "events/s", "x floor", "CPU µs", "x floor", "p50 ms", "p99 ms", "errors"],
            [
                [
                    one["title"],
                    f"{one['rate']:,.0f}",
                    f"{one['rate_ratio']:.2f}",
                    f"{one['cpu_us']:.1f}",
                    f"{one['ratio']:.2f}",
                    f"{one['p50_us'] / 1000:.2f}",
                    f"{one['p99_us'] / 1000:.2f}",
                    str(one["errors"]),
                ]
                for one in front["subjects"].values()
            ],
        )
    if "variants" in results:
        both = {name: one["subjects"] for name, one in results["variants"].items()}
        yield from _table(
            "Other requests, saturation, half a vCPU",
            ["", "collector µs", "floor µs", "ratio", "errors"],
            [
                [
                    name,
                    f"{one['journal']['cpu_us']:.1f}",
                    f"{one['floor']['cpu_us']:.1f}",
                    f"{one['journal']['ratio']:.2f}",
                    str(one["journal"]["errors"]),
                ]
                for name, one in both.items()
            ],
        )
    yield from _batches(results.get("batches"))
    yield from _workers(results.get("workers"))
    for share, subjects in results.get("held", {}).items():
        yield from _table(
            f"Highest rate held, {share} vCPU",
            ["", "events/s", "for", "p50 ms", "p99 ms", "p99.9 ms", "saturation", "peak MiB", "stored / acknowledged"],
            [
                [
                    name,
                    f"{one['held']['rate']:,}" if one["held"] else "none",
                    f"{one['seconds']} s",
                    *(f"{one['held'][p] / 1000:.1f}" if one["held"] else "-" for p in ("p50", "p99", "p999")),
                    f"{one['saturation']:,.0f}",
                    f"{one['rss_peak'] / MIB:.0f}",
                    f"{one['proof']['stored']:,} / {one['proof']['acknowledged']:,}" if "proof" in one else "-",
                ]
                for name, one in subjects.items()
            ],
        )
    if "start_up" in results:
        yield from _table(
            "Start to first 200, ms",
            ["", "a whole core", "0.25 vCPU"],
            [
                [name, f"{one['whole core'] * 1000:.0f}", f"{one['0.25 vCPU'] * 1000:.0f}"]
                for name, one in results["start_up"].items()
            ],
        )
    if "recovery" in results:
        rows = []
        for one in results["recovery"].values():
            rows.append([f"{one['files']:,} files", f"{one['step_us']:.0f}", f"{one['first_step_us'] / 1000:.1f}"])
            drained = one["after_99_percent_drained"]
            if drained:
                rows.append(
                    ["after 99 % were drained", f"{drained['step_us']:.0f}", f"{drained['first_step_us'] / 1000:.1f}"]
                )
        yield from _table("A step of recovery", ["", "µs", "the first, ms"], rows)
    yield from _lake(results.get("lake"))


def _lake(taken):
    if taken is None:
        return
    engines = [name for name in ("duckdb", "spark") if name in taken[0]]
    rows = []
    for hour in taken:
        for engine in engines:
            one = hour[engine]
            rows.append(
                [
                    f"{hour['acknowledged']:,} events, {hour['objects']} objects, {engine}",
                    f"{one['seconds']:.1f}",
                    f"{one['cpu_seconds']:.1f}",
                    f"{1e6 * one['cpu_seconds'] / one['rows']:.1f}",
                    f"{one['mib']:.0f}",
                    f"{hour['raw_bytes'] / MIB:.1f}",
                    f"{one['bytes'] / MIB:.1f}",
                    f"{one['iceberg']['seconds']:.1f}" if "iceberg" in one else "-",
                ]
            )
    yield from _table(
        "An hour to Parquet, the whole process, two cores",
        ["", "s", "CPU s", "µs an event", "peak MiB", "raw MiB", "Parquet MiB", "to Iceberg s"],
        rows,
    )
    yield from _table(
        "Events of that hour, counted by number",
        ["", "acknowledged", "raw lines", "Parquet rows", "Iceberg rows"],
        [
            [
                engine,
                f"{hour['acknowledged']:,}",
                f"{hour['lines']:,}",
                f"{hour[engine]['distinct']:,}",
                f"{hour[engine]['scanned_distinct']:,}" if "scanned" in hour[engine] else "-",
            ]
            for hour in taken
            for engine in engines
        ],
    )
    yield from _table(
        "A query that groups by a field of the body, DuckDB, ms",
        ["", "raw", "Parquet"],
        [
            [f"{hour['acknowledged']:,} events", *(f"{hour['query'][when] * 1000:.0f}" for when in ("before", "after"))]
            for hour in taken
        ],
    )


def _batches(taken):
    if taken is None:
        return
    held = taken["held"]["held"]
    rows = {name: one for name, one in taken.items() if name != "held"}
    yield from _table(
        "Many events in one request, saturation, half a vCPU",
        ["", "CPU µs an event", "x one alone", "events/s", "p99 ms", "errors"],
        [
            [
                one["title"],
                f"{one['cpu_us']:.2f}",
                f"{one['ratio']:.2f}",
                f"{one['rate']:,.0f}",
                f"{one['p99_us'] / 1000:.1f}",
                str(one["errors"]),
            ]
            for one in rows.values()
        ],
    )
    held = f"{held['rate']:,} events/s, p99 {held['p99'] / 1000:.0f} ms" if held else "no rate"
    yield f"\nHeld at 0.25 vCPU in batches of 100, NDJSON: {held}."


def _workers(taken):
    if taken is None:
        return
    yield from _table(
        "Workers, saturation, 64 connections",
        ["", "vCPU", "events/s", "x one", "CPU µs", "x one", "p99 ms", "peak MiB", "stored / acknowledged"],
        [
            [
                one["title"],
                f"{one['share']}",
                f"{one['rate']:,.0f}",
                f"{one['rate_ratio']:.2f}",
                f"{one['cpu_us']:.1f}",
                f"{one['ratio']:.2f}",
                f"{one['p99_us'] / 1000:.1f}",
                f"{one['rss_peak'] / MIB:.0f}",
                f"{one['proof']['stored']:,} / {one['proof']['acknowledged']:,}",
            ]
            for one in taken.values()
        ],
    )


def _table(title, heads, rows):
    yield f"\n### {title}\n"
    widths = [max(len(str(row[i])) for row in [heads, *rows]) for i in range(len(heads))]
    for number, row in enumerate([heads, *rows]):
        cells = [
            str(cell).ljust(width) if i == 0 else str(cell).rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "| " + " | ".join(cells) + " |"
        if number == 0:
            yield (
                "| "
                + " | ".join("-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths))
                + " |"
            )


def _color(name):
    return FLOOR if name == "floor" else OURS if name in ("memory", "journal", "fsync", "journal-s3") else THEIRS


def _plot_cpu(results):
    subjects = results.get("cpu_per_event", {}).get("saturation")
    if not subjects:
        return None
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(subjects) + 1.2))
    ordered = sorted(subjects.items(), key=lambda item: -item[1]["cpu_us"])
    for name, one in ordered:
        bar = axes.barh(one["title"], one["cpu_us"], color=_color(name))
        axes.bar_label(bar, [f" {one['cpu_us']:.1f}  ({one['ratio']:.2f} x)"], fontsize=8)
    axes.set_xlabel("CPU µs per event, user + system, at saturation under half a vCPU (x floor)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.2)
    return figure


def _plot_held(results):
    held = results.get("held")
    if not held:
        return None
    figure, axes = plt.subplots(figsize=(7, 3.2))
    names = list(next(iter(held.values())))
    for number, (share, subjects) in enumerate(held.items()):
        rates = [one["held"]["rate"] if one["held"] else 0 for one in subjects.values()]
        at = [position + number * 0.38 for position in range(len(names))]
        bars = axes.bar(at, rates, 0.36, color=[_color(name) for name in names], alpha=0.65 + 0.35 * number)
        axes.bar_label(bars, [f"{rate:,}\n{share} vCPU" for rate in rates], fontsize=8)
    axes.set_xticks([position + 0.19 * (len(held) - 1) for position in range(len(names))], names)
    axes.set_ylabel("events/s held, no error, p99 in budget")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.2)
    return figure


def _plot_latency(results):
    held = results.get("held", {}).get("0.25")
    if not held:
        return None
    figure, axes = plt.subplots(figsize=(7, 3.6))
    for name, one in held.items():
        points = sorted(one["points"], key=lambda point: point["rate"])
        for percentile, style in (("p99", "-o"), ("p50", ":")):
            axes.plot(
                [point["rate"] for point in points],
                [point[percentile] / 1000 for point in points],
                style,
                color=_color(name),
                label=f"{name} {percentile}",
                markersize=3,
            )
    axes.axhline(results["p99_budget_us"] / 1000, color="#a33", linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("offered events/s at 0.25 vCPU")
    axes.set_ylabel("latency from when due, ms")
    axes.legend(fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def read(folder):
    """Return the results of an earlier run."""
    results = json.loads((folder / "bench.json").read_text())
    if "recovery" in results:
        results["recovery"] = {int(files): one for files, one in results["recovery"].items()}
    return results


if __name__ == "__main__":  # the tables and plots anew from a bench.json
    import sys

    write(read(Path(sys.argv[1])), Path(sys.argv[1]))
