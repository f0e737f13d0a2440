"""Puts the figures of a run into the docs: the tables and plots of docs/benchmarks.md, the sentences that quote them.

    .venv-bench/bin/python loadtest/publish.py [bench-out]

Owns where else a figure is quoted: `SENTENCES`. Promises that all of them are of one run. A run of `--only lake` goes
to docs/compact.md instead. Refuses a run that was quick, not whole, or not quiet, because nobody should quote it.
Measures nothing.
"""

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- measured:begin -->\n", "<!-- measured:end -->\n"
QUIET = 0.1
"""Cores that others may spend, in the median."""
LAKE = "lake"
SECTIONS = {"cpu_per_event", "fronts", "variants", "batches", "workers", "held", "memory", "start_up", "recovery"}
SENTENCES = (
    ("README.md", "it held {held_quarter} events/s for 30 s, p99 {p99_quarter} ms, no error"),
    ("README.ko.md", "30초 동안 초당 {held_quarter}건, p99 {p99_quarter} ms, 오류 없음"),
    ("docs/tuning.md", "{held_quarter} events/s held on 0.25 vCPU and {held_half} on 0.5"),
)
SHARES = {"quarter": "0.25", "half": "0.5"}


class NotPublishedError(Exception):
    """Why these figures do not go into the docs; one line."""


def is_of_lake(results):
    """Tell whether a run measured hours to Parquet and nothing else."""
    return LAKE in results and not SECTIONS & set(results)


def refuse_unfit(results):
    """Raise for a run that nobody should quote."""
    missing = [] if is_of_lake(results) else sorted(SECTIONS - set(results))
    foreign = results["noise"]["foreign_cpu_median"]
    if results["plan"] == "quick" or missing:
        raise NotPublishedError(f"a {results['plan']} run" + (f" without {', '.join(missing)}" if missing else ""))
    if foreign is None or foreign > QUIET:
        spent = "nobody knows how many" if foreign is None else f"{foreign:.2f}"
        raise NotPublishedError(f"the machine was not quiet: others spent {spent} cores")
    if not is_of_lake(results) and not all(results["held"][share]["journal"]["held"] for share in SHARES.values()):
        raise NotPublishedError("no rate was held, which the sentences quote")


def quoted(results):
    """Return the figures of `SENTENCES`, as they are written."""
    figures = {}
    for name, share in SHARES.items():
        held = results["held"][share]["journal"]["held"]
        figures |= {f"held_{name}": f"{held['rate']:,}", f"p99_{name}": f"{held['p99'] / 1000:.0f}"}
    return figures


def pattern(sentence):
    """Return what finds a sentence, whatever its figures are and wherever its lines break (in a quotation too)."""
    field = re.compile(r"\\\{(\w+)\\\}")
    return re.compile(field.sub(r"(?P<\1>[\\d,.]*\\d)", re.escape(sentence)).replace(r"\ ", r"[\s>]+"))


def with_figures(text, sentence, figures):
    """Return the text with the figures of one sentence in it."""
    match = pattern(sentence).search(text)
    if match is None:
        raise NotPublishedError(f"no such sentence: {sentence}")
    for name in sorted(match.groupdict(), key=match.start, reverse=True):  # from the end: the places before it stay
        text = text[: match.start(name)] + figures[name] + text[match.end(name) :]
    return text


def with_tables(page, tables):
    """Return the text of a page with the tables of a run in it."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise NotPublishedError(f"{page}: no {BEGIN.strip()} with its end")
    return f"{before}{BEGIN}\n{tables.strip()}\n\n{END}{after}"


def publish_lake(tables, root):
    """Write the tables of hours to Parquet into the docs below `root`."""
    page = root / "docs" / "compact.md"
    page.write_text(with_tables(page, tables))


def publish(tables, figures, root):
    """Write the tables and the sentences into the docs below `root`."""
    page = root / "docs" / "benchmarks.md"
    texts = {page: with_tables(page, tables)}
    for name, sentence in SENTENCES:
        path = root / name
        texts[path] = with_figures(texts.get(path) or path.read_text(), sentence, figures)
    for path, text in texts.items():
        path.write_text(text)


def main():
    import report

    folder = Path(sys.argv[1] if sys.argv[1:] else ROOT / "bench-out")
    results = report.read(folder)
    try:
        refuse_unfit(results)
        if is_of_lake(results):
            publish_lake(report.tables(results), ROOT)
            return 0
        publish(report.tables(results), quoted(results), ROOT)
    except NotPublishedError as error:
        print(f"not published: {error}", file=sys.stderr)
        return 1
    for plot in folder.glob("*.png"):
        shutil.copy(plot, ROOT / "docs" / "benchmarks" / plot.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
