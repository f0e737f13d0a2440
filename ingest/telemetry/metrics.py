"""Metrics: what the process counts about itself, and the table of what each figure means.

Owns the counters as plain integers (`metrics.puts += 1` is all that counting takes), the figures that somebody else
keeps (`Gauges`), the books, and the table `METRICS`, whose rows read them.
Promises that a figure somebody keeps anyway is read from there at the scrape, so that no copy of it can be stale, and
that no figure is found by its name: a slip is found by the type checker.
Never locks, allocates or calls anything to count; never imports prometheus_client before the first scrape, which costs
40 ms that the start does not have.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ingest import __version__
from ingest.telemetry.books import Books, Place
from ingest.telemetry.counters import Counters, Histogram, Overdue, Reason, SealReason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Figure: TypeAlias = float | Histogram | Mapping[str, float]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_EVENTS: Final = (1, 10, 100, 500, 1000, 2500, 5000, 10_000, 50_000)
_BYTES: Final = (1 << 10, 1 << 14, 1 << 17, 1 << 20, 1 << 21, 1 << 22, 1 << 23, 1 << 24, 1 << 26)


def _nothing() -> int:
    return 0


@dataclass(slots=True, eq=False)
class Gauges:
    """Who knows each figure that is not counted here; 0 until somebody does."""

    buffered_bytes: Callable[[], float] = _nothing
    queued_batches: Callable[[], float] = _nothing
    dlq_files: Callable[[], float] = _nothing
    dlq_bytes: Callable[[], float] = _nothing
    dlq_full: Callable[[], float] = _nothing
    backlog_files: Callable[[], float] = _nothing
    backlog_bytes: Callable[[], float] = _nothing


@dataclass(slots=True, eq=False)
class Metrics:
    """Every figure that is counted, each at zero when the process starts."""

    books: Books = field(default_factory=Books)
    gauges: Gauges = field(default_factory=Gauges)

    requests: int = 0
    rejected: Counters[Reason] = field(default_factory=lambda: Counters(Reason))
    connections: int = 0
    connections_refused: int = 0
    timed_out: Counters[Overdue] = field(default_factory=lambda: Counters(Overdue))

    sealed: Counters[SealReason] = field(default_factory=lambda: Counters(SealReason))
    batch_events: Histogram = field(default_factory=lambda: Histogram(_EVENTS))
    batch_bytes: Histogram = field(default_factory=lambda: Histogram(_BYTES))
    encoded_bytes: int = 0
    compressed_bytes: int = 0
    batches_spilled: int = 0

    journal_writes: int = 0
    journal_errors: int = 0
    journal_failed: int = 0
    journal_sync_seconds: Histogram = field(default_factory=lambda: Histogram(_SECONDS))

    puts: int = 0
    put_errors: int = 0
    puts_already_stored: int = 0
    put_seconds: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    breaker_state: int = 0

    enqueued: int = 0
    reuploaded: int = 0
    save_errors: int = 0
    files_evicted: int = 0
    files_expired: int = 0
    files_quarantined: int = 0

    started: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table that the exposition and the documentation share."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    read: Callable[[Metrics], Figure]
    label: str = ""
    """With a label, `read` gives a figure for each of its values."""


def _rejected(name: str, meaning: str, reason: Reason) -> Metric:
    return Metric(f"http_requests_rejected_{name}_total", "counter", meaning, lambda m: m.rejected[reason])


def _compression_ratio(metrics: Metrics) -> float:
    return metrics.encoded_bytes / (metrics.compressed_bytes or 1)


def _resident_bytes(_: Metrics) -> float:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no /proc: the peak is the nearest thing, in KiB but for macOS
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


METRICS: Final[tuple[Metric, ...]] = (
    Metric("http_requests_total", "counter", "Requests answered, whatever the answer", lambda m: m.requests),
    Metric(
        "http_requests_accepted_total",
        "counter",
        "Events accepted, durable as DURABILITY promises",
        lambda m: m.books.events_accepted,
    ),
    _rejected("body_too_large", "Requests refused with 413: body or query above MAX_BODY_SIZE", Reason.BODY_TOO_LARGE),
    _rejected("head_too_large", "Requests refused with 431: head above MAX_HEADER_BYTES", Reason.HEAD_TOO_LARGE),
    _rejected("malformed", "Requests refused with 400: not HTTP/1.1 as it must be", Reason.MALFORMED),
    _rejected("not_json", "Requests refused with 400: BODY_FORMAT is json and the body is not", Reason.NOT_JSON),
    _rejected(
        "queue_full",
        "Events refused with 503: neither memory nor the dead-letter queue can take more",
        Reason.QUEUE_FULL,
    ),
    _rejected("disk_full", "Events refused with 503: the journal's disk is full or failing", Reason.DISK_FULL),
    _rejected("other", "Requests refused with 404 or 405", Reason.OTHER),
    Metric("http_connections_current", "gauge", "Open connections", lambda m: m.connections),
    Metric(
        "http_connections_refused_total",
        "counter",
        "Connections closed at once: MAX_CONNECTIONS were open",
        lambda m: m.connections_refused,
    ),
    Metric(
        "http_connections_timed_out_total",
        "counter",
        "Connections closed at a deadline: idle, in the middle of a request, or with an answer nobody reads",
        lambda m: m.timed_out.by_label(),
        label="state",
    ),
    Metric(
        "events_recovered_total",
        "counter",
        "Events of earlier runs, found on disk and taken over",
        lambda m: m.books.events_recovered,
    ),
    Metric(
        "events_pending",
        "gauge",
        "Events accepted or recovered, and neither stored nor dropped",
        lambda m: {place.value: m.books.pending(place) for place in Place},
        label="place",
    ),
    Metric(
        "events_unaccounted",
        "gauge",
        "Events the books cannot place; anything but 0 is a bug of ours",
        lambda m: m.books.unaccounted(),
    ),
    Metric(
        "buffered_bytes",
        "gauge",
        "Bytes held in memory, which MAX_BUFFER_BYTES bounds",
        lambda m: m.gauges.buffered_bytes(),
    ),
    Metric(
        "batch_sealed_total",
        "counter",
        "Batches sealed, by what sealed them",
        lambda m: m.sealed.by_label(),
        label="reason",
    ),
    Metric("batch_events", "histogram", "Events in a sealed batch", lambda m: m.batch_events),
    Metric("batch_bytes", "histogram", "Bytes in a sealed batch, before gzip", lambda m: m.batch_bytes),
    Metric("batch_encoded_bytes_total", "counter", "Bytes that went into gzip", lambda m: m.encoded_bytes),
    Metric("batch_compressed_bytes_total", "counter", "Bytes that came out of it", lambda m: m.compressed_bytes),
    Metric("batch_compression_ratio", "gauge", "The one divided by the other, since the start", _compression_ratio),
    Metric(
        "journal_writes_total",
        "counter",
        "Writes to the journal, each for all events of a tick",
        lambda m: m.journal_writes,
    ),
    Metric(
        "journal_write_errors_total",
        "counter",
        "Writes or syncs that failed; their events were refused",
        lambda m: m.journal_errors,
    ),
    Metric(
        "journal_failed",
        "gauge",
        "1 while the disk takes no events and all are refused",
        lambda m: m.journal_failed,
    ),
    Metric(
        "journal_sync_seconds",
        "histogram",
        "How long an fdatasync took (DURABILITY=fsync)",
        lambda m: m.journal_sync_seconds,
    ),
    Metric(
        "upload_queue_length",
        "gauge",
        "Sealed batches in memory, up to UPLOAD_QUEUE",
        lambda m: m.gauges.queued_batches(),
    ),
    Metric(
        "upload_batches_spilled_total",
        "counter",
        "Batches sent to the dead-letter queue to make room in a full upload queue",
        lambda m: m.batches_spilled,
    ),
    Metric(
        "s3_events_stored_total",
        "counter",
        "Events whose object the store has confirmed",
        lambda m: m.books.events_stored,
    ),
    Metric("s3_puts_total", "counter", "Tries to put an object, whatever came of them", lambda m: m.puts),
    Metric("s3_put_errors_total", "counter", "Tries that failed", lambda m: m.put_errors),
    Metric(
        "s3_puts_already_stored_total",
        "counter",
        "Tries that found the object stored by an earlier one whose answer was lost",
        lambda m: m.puts_already_stored,
    ),
    Metric("s3_put_seconds", "histogram", "How long one try took", lambda m: m.put_seconds),
    Metric(
        "upload_breaker_state",
        "gauge",
        "0 closed, 1 half-open (probing), 2 open (the store is down)",
        lambda m: m.breaker_state,
    ),
    Metric("dlq_events_enqueued_total", "counter", "Events saved to the dead-letter queue", lambda m: m.enqueued),
    Metric(
        "dlq_events_reuploaded_total",
        "counter",
        "Events stored from it or from the backlog",
        lambda m: m.reuploaded,
    ),
    Metric(
        "dlq_events_dropped_total",
        "counter",
        "Events lost, by why",
        lambda m: m.books.events_dropped.by_label(),
        label="reason",
    ),
    Metric("dlq_save_errors_total", "counter", "Batches the disk did not take", lambda m: m.save_errors),
    Metric("dlq_files_evicted_total", "counter", "Files dropped to make room", lambda m: m.files_evicted),
    Metric("dlq_files_expired_total", "counter", "Files dropped as older than DLQ_MAX_AGE", lambda m: m.files_expired),
    Metric(
        "dlq_files_quarantined_total",
        "counter",
        "Corrupt files: sound lines salvaged, the original put under DLQ_PREFIX",
        lambda m: m.files_quarantined,
    ),
    Metric("dlq_files_current", "gauge", "Files in the dead-letter queue", lambda m: m.gauges.dlq_files()),
    Metric("dlq_size_bytes", "gauge", "Their bytes", lambda m: m.gauges.dlq_bytes()),
    Metric(
        "dlq_full",
        "gauge",
        "1 while the queue takes no more: DLQ_MAX_SIZE_BYTES or DISK_RESERVE",
        lambda m: m.gauges.dlq_full(),
    ),
    Metric(
        "backlog_files_current",
        "gauge",
        "Journal segments that wait for the store like dead-letter files",
        lambda m: m.gauges.backlog_files(),
    ),
    Metric("backlog_size_bytes", "gauge", "Their bytes", lambda m: m.gauges.backlog_bytes()),
    Metric(
        "process_cpu_seconds_total",
        "counter",
        "CPU time, user and system, of all threads",
        lambda _: time.process_time(),
    ),
    Metric("process_resident_memory_bytes", "gauge", "Resident memory", _resident_bytes),
    Metric("process_start_time_seconds", "gauge", "When the process started, unix time", lambda m: m.started),
    Metric(
        "build_info",
        "gauge",
        "Always 1; the labels say what runs",
        lambda _: {__version__: 1},
        label="version",
    ),
)
