"""The status for eyes: one page, whole in itself.

Owns the words and the looks of the page. Promises that it asks for nothing else, no script, font or image; that every
value in it is escaped; and that a browser asks for it anew every `REFRESH` seconds. Never looks anything up: a `Status`
has it all.
"""

from __future__ import annotations

import math
import time
from html import escape
from typing import TYPE_CHECKING, Final

from ingest.telemetry.status import Phase, clock_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ingest.telemetry import Status

    Row = tuple[str, str]

REFRESH: Final = 5
_COLOURS: Final = {Phase.SERVING: "good", Phase.RECOVERING: "busy", Phase.STORE_AWAY: "bad", Phase.REFUSING: "bad"}
_PLACES: Final = {"open": "open batch", "queue": "upload queue", "dlq": "dead-letter queue", "backlog": "backlog"}
_STYLE: Final = """
:root{color-scheme:light dark;--ink:#1c2024;--dim:#5b6570;--back:#f4f5f7;--card:#fff;--line:#dfe3e8;--good:#1a7f4b;
--busy:#8a5a00;--bad:#c02626}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--dim:#9aa4af;--back:#14171a;--card:#1d2125;--line:#32383f;
--good:#4cc38a;--busy:#e2a336;--bad:#ff6b6b}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:70rem;padding:1.25rem;background:var(--back);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.25rem;margin:0 0 1.25rem;padding:1rem;border-left:.4rem solid;background:var(--card);
overflow-wrap:anywhere}
.good{border-color:var(--good)}.busy{border-color:var(--busy)}.bad{border-color:var(--bad)}
main{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr))}
section{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:1rem}
.wide{grid-column:1/-1}
h2{font-size:.85rem;margin:0 0 .5rem;color:var(--dim);font-weight:600}
dl{margin:0;display:grid;grid-template-columns:minmax(0,1fr) fit-content(70%);gap:.25rem 1rem}
dt{color:var(--dim);overflow-wrap:anywhere}
dd{margin:0;text-align:right;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.wide dl{grid-template-columns:minmax(0,1fr) minmax(0,3fr)}
.wide dd{text-align:left}
@media(max-width:40rem){.wide dl{grid-template-columns:minmax(0,1fr);gap:0}.wide dd{margin-bottom:.5rem}}
footer{color:var(--dim);font-size:.85rem;margin-top:1rem}
"""


def glance(status: Status) -> bytes:
    """Return the page, in UTF-8."""
    sentence = escape(status.sentence())
    sections = "".join(_section(title, list(rows), wide=wide) for title, rows, wide in _sections(status))
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(status.phase.value)}: estat-ingest'
        f'</title><meta http-equiv="refresh" content="{REFRESH}"><meta name="robots" content="noindex">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head><body>'
        f'<h1 class="{_COLOURS[status.phase]}">{sentence}</h1><main>{sections}</main>'
        f"<footer>Asked anew every {REFRESH} seconds. The same as JSON: ask with Accept: application/json.</footer>"
        "</body></html>\n"
    )
    return page.encode("utf-8", "replace")


def _section(title: str, rows: list[Row], *, wide: bool) -> str:
    if not rows:
        return ""
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    return f"<section{' class=wide' if wide else ''}><h2>{escape(title)}</h2><dl>{listed}</dl></section>"


def _sections(status: Status) -> Iterator[tuple[str, Iterator[Row], bool]]:
    yield "Last minute", _last_minute(status), False
    yield "Events since the start", _events(status), False
    yield "Where events wait", _waiting(status), False
    yield "Disk", _disk(status), False
    yield "Store", _store(status), True
    yield "Process", _process(status), True
    yield "Settings that differ from their defaults", iter(status.about.settings.items()), True


def _last_minute(status: Status) -> Iterator[Row]:
    pace = status.last_minute
    yield "accepted", f"{pace.accepted_per_second:,.1f}/s"
    yield "stored", f"{pace.stored_per_second:,.1f}/s"
    yield "half answered within", _answered(pace.p50)
    yield "99 % answered within", _answered(pace.p99)


def _events(status: Status) -> Iterator[Row]:
    yield "accepted", f"{status.accepted:,}"
    yield "stored", f"{status.stored:,}"
    yield "refused for want of room", f"{status.refused:,}"
    yield "dropped", f"{status.dropped:,}"


def _waiting(status: Status) -> Iterator[Row]:
    for place, events in status.pending.items():
        yield _PLACES.get(place, place), f"{events:,}"
    yield "the oldest came", clock_time(status.oldest_pending) if status.oldest_pending else "none waits"
    yield "files on disk", f"{status.waiting_files:,}"
    yield "files that the store refuses", f"{status.refused_files:,}"


def _disk(status: Status) -> Iterator[Row]:
    full = status.seconds_to_full
    yield "taken by what waits", _bytes(status.disk.used)
    yield "it may take", _bytes(status.disk.limit)
    yield "free on the volume", _bytes(status.disk.free) if status.disk.free else "not measured yet"
    yield "room left", _bytes(status.room_left)
    yield "full at this pace in", "it does not grow" if full is None else _duration(full)


def _store(status: Status) -> Iterator[Row]:
    yield "store", status.about.store
    yield "breaker", status.breaker
    if status.next_try is not None:
        yield "next try in", _duration(status.next_try)
    if (error := status.last_error) is None:
        yield "last error", "none"
    else:
        yield "last error", f"{error.error} ({error.code})" if error.code else error.error
        yield "at", clock_time(error.at)


def _process(status: Status) -> Iterator[Row]:
    about = status.about
    yield "version", about.version
    yield "running since", clock_time(about.started)
    if about.workers > 1:
        yield "workers", f"{about.workers:,}"
    yield "durability", about.durability
    for place, path in about.slots.items():
        yield f"slot of the {place}", path
    yield "slots adopted", f"{about.adopted:,}"
    yield "time of this page", clock_time(time.time())


def _answered(seconds: float | None) -> str:
    if seconds is None:
        return "no event came"
    return "longer than any bucket" if math.isinf(seconds) else f"{seconds * 1000:,.0f} ms"


def _bytes(size: float) -> str:
    """Three figures are enough for eyes."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def _duration(seconds: float) -> str:
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:,.0f} s"
