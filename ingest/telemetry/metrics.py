"""Metrics: what the process counts about itself, and the table of what each figure means.

Owns the counters as plain integers (`metrics.puts += 1` is all that counting takes), the figures that somebody else
keeps (`Gauges`), the books, and the table `METRICS`, whose rows read them.
Promises that a figure somebody keeps anyway is read from there at the scrape, so that no copy of it can be stale, and
that no figure is found by its name: a slip is found by the type checker. Each row says what stands for the figures of
several workers.
Never locks, allocates or calls anything to count; never imports prometheus_client before the first scrape, which costs
40 ms that the start does not have.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

from ingest import __version__
from ingest.telemetry.books import Books, Place
from ingest.telemetry.counters import (
    Answer,
    BreakerState,
    Counters,
    Handshake,
    Histogram,
    Overdue,
    PutError,
    Reason,
    SealReason,
)
from ingest.telemetry.health import StoreHealth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

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
    oldest_pending: Callable[[], float] = _nothing
    """Unix time of the oldest event that is neither stored nor dropped; 0 if there is none."""
    dlq_files: Callable[[], float] = _nothing
    dlq_bytes: Callable[[], float] = _nothing
    backlog_files: Callable[[], float] = _nothing
    backlog_bytes: Callable[[], float] = _nothing
    unknown_in_dlq: Callable[[], float] = _nothing
    unknown_in_journal: Callable[[], float] = _nothing
    unremoved_in_dlq: Callable[[], float] = _nothing
    unremoved_in_journal: Callable[[], float] = _nothing
    refused_files: Callable[[], float] = _nothing
    spool_limit: Callable[[], float] = _nothing
    disk_free: Callable[[], float] = _nothing
    log_lines_dropped: Callable[[], float] = _nothing
    worker_restarts: Callable[[], float] = _nothing


@dataclass(slots=True, eq=False)
class Metrics:
    """Every figure that is counted, each at zero when the process starts."""

    books: Books = field(default_factory=Books)
    gauges: Gauges = field(default_factory=Gauges)
    store: StoreHealth = field(default_factory=StoreHealth)

    requests: Counters[Answer] = field(default_factory=lambda: Counters(Answer))
    request_seconds: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    rejected: Counters[Reason] = field(default_factory=lambda: Counters(Reason))
    connections: int = 0
    connections_refused: int = 0
    handshakes: Counters[Handshake] = field(default_factory=lambda: Counters(Handshake))
    tls_not_after: float = 0
    tls_reload_failed: int = 0
    """1 from a changed pair that could not be loaded until one is."""
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
    put_errors: Counters[PutError] = field(default_factory=lambda: Counters(PutError))
    puts_already_stored: int = 0
    put_seconds: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    breaker: BreakerState = BreakerState.CLOSED

    enqueued: int = 0
    reuploaded: int = 0
    files_reuploaded: int = 0
    save_errors: int = 0
    spool_full: int = 0
    """1 from a save that was refused until one succeeds, or is needed no more."""
    files_evicted: int = 0
    files_expired: int = 0
    files_quarantined: int = 0

    workers: int = 1
    """Each process counts itself."""
    manifests_stored: int = 0
    manifest_errors: int = 0
    oldest_open_hour: float = 0
    """Unix time; 0 until the first look, and without MANIFESTS."""
    ledger_lines_waiting: int = 0

    started: float = field(default_factory=time.time)

    def figures(self) -> Iterator[tuple[Metric, Figure]]:
        """Yield each row of the table with its figure."""
        for metric in METRICS:
            yield metric, metric.read(self)


class Source(Protocol):
    """The owner of a figure for each row of the table: one process, or all workers."""

    def figures(self) -> Iterator[tuple[Metric, Figure]]:
        """Yield each row with its figure."""


class OfAll(Enum):
    """The one figure that stands for those of several workers."""

    SUM = "the sum"
    MOST = "the most"
    LEAST = "the least"
    LEAST_SET = "the least above 0"


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table that the exposition and the documentation share."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    read: Callable[[Metrics], Figure]
    label: str
    """With a label, `read` gives a figure for each of its values."""
    of_all: OfAll


def _resident_bytes(_: Metrics) -> float:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no /proc: the peak is the nearest thing, in KiB but for macOS
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _rows() -> Iterator[Metric]:
    def counter(
        name: str, meaning: str, read: Callable[[Metrics], Figure], label: str = "", of_all: OfAll = OfAll.SUM
    ) -> Metric:
        return Metric(f"estat_{name}_total", "counter", meaning, read, label, of_all)

    def gauge(name: str, of_all: OfAll, meaning: str, read: Callable[[Metrics], Figure], label: str = "") -> Metric:
        return Metric(f"estat_{name}", "gauge", meaning, read, label, of_all)

    def histogram(name: str, meaning: str, read: Callable[[Metrics], Figure]) -> Metric:
        return Metric(f"estat_{name}", "histogram", meaning, read, "", OfAll.SUM)

    total, most, least, least_set = OfAll.SUM, OfAll.MOST, OfAll.LEAST, OfAll.LEAST_SET

    yield counter(
        "requests", "Requests answered, by the class of the status", lambda m: m.requests.by_label(), "answer"
    )
    yield histogram(
        "request_duration_seconds",
        "From the arrival of an event to its answer, its commit included",
        lambda m: m.request_seconds,
    )
    yield counter("requests_rejected", "Requests and events refused, by why", lambda m: m.rejected.by_label(), "reason")
    yield gauge("connections", total, "Open connections", lambda m: m.connections)
    yield counter(
        "connections_refused", "Connections closed at once: MAX_CONNECTIONS were open", lambda m: m.connections_refused
    )
    yield counter(
        "connections_timed_out",
        "Connections closed at a deadline: idle, in the middle of a request, or with an answer nobody reads",
        lambda m: m.timed_out.by_label(),
        "state",
    )

    yield counter(
        "tls_handshakes",
        "TLS handshakes; failed: no TLS, no common version, cut off, or not done within READ_TIMEOUT",
        lambda m: m.handshakes.by_label(),
        "result",
    )
    yield gauge(
        "tls_not_after_timestamp_seconds",
        least_set,
        "When the certificate in use expires, unix time; 0 without TLS",
        lambda m: m.tls_not_after,
    )
    yield gauge(
        "tls_reload_failed",
        most,
        "1 from a changed TLS_CERT or TLS_KEY that cannot be used until a pair can",
        lambda m: m.tls_reload_failed,
    )

    yield counter(
        "events_accepted", "Events accepted, durable as DURABILITY promises", lambda m: m.books.events_accepted
    )
    yield counter(
        "events_recovered",
        "Events of earlier runs, found on disk and taken over",
        lambda m: m.books.events_recovered,
    )
    yield counter("events_stored", "Events whose object the store has confirmed", lambda m: m.books.events_stored)
    yield gauge(
        "events_pending",
        total,
        "Events accepted or recovered, and neither stored nor dropped",
        lambda m: {place.value: m.books.pending(place) for place in Place},
        "place",
    )
    yield counter(
        "events_dropped", "Acknowledged events lost, by why", lambda m: m.books.events_dropped.by_label(), "reason"
    )
    yield counter(
        "events_handed_on",
        "Events left on disk in a slot that was let go, by a worker that has ended or because others waited; recovered "
        "again later",
        lambda m: m.books.events_handed_on,
    )
    yield gauge(
        "events_unaccounted",
        total,
        "Events the books cannot place; anything but 0 is a bug of ours",
        lambda m: m.books.unaccounted(),
    )
    yield gauge(
        "oldest_pending_timestamp_seconds",
        least_set,
        "When the oldest event came that still waits, unix time; 0 if none does",
        lambda m: m.gauges.oldest_pending(),
    )
    yield gauge(
        "last_stored_timestamp_seconds",
        most,
        "When an object was last stored, unix time; 0 before the first",
        lambda m: m.store.last_stored,
    )
    yield gauge(
        "buffered_bytes",
        total,
        "Bytes held in memory, which MAX_BUFFER_BYTES bounds",
        lambda m: m.gauges.buffered_bytes(),
    )

    yield counter("batches_sealed", "Batches sealed, by what sealed them", lambda m: m.sealed.by_label(), "reason")
    yield histogram("batch_events", "Events in a sealed batch", lambda m: m.batch_events)
    yield histogram("batch_bytes", "Bytes in a sealed batch, before gzip", lambda m: m.batch_bytes)
    yield counter("encoded_bytes", "Bytes that went into gzip", lambda m: m.encoded_bytes)
    yield counter("compressed_bytes", "Bytes that came out of it", lambda m: m.compressed_bytes)
    yield counter("journal_writes", "Writes to the journal, each for all events of a tick", lambda m: m.journal_writes)
    yield counter(
        "journal_write_errors", "Writes or syncs that failed; their events were refused", lambda m: m.journal_errors
    )
    yield gauge(
        "journal_failed", most, "1 while the disk takes no events and all are refused", lambda m: m.journal_failed
    )
    yield histogram(
        "journal_sync_duration_seconds",
        "How long an fdatasync took (DURABILITY=fsync)",
        lambda m: m.journal_sync_seconds,
    )

    yield gauge(
        "queued_batches", total, "Sealed batches in memory, up to UPLOAD_QUEUE", lambda m: m.gauges.queued_batches()
    )
    yield counter(
        "batches_spilled",
        "Batches sent to the dead-letter queue to make room in a full upload queue",
        lambda m: m.batches_spilled,
    )
    yield counter("puts", "Tries to put an object, whatever came of them", lambda m: m.puts)
    yield counter("put_errors", "Tries that failed, by why", lambda m: m.put_errors.by_label(), "reason")
    yield counter(
        "puts_already_stored",
        "Tries that found the object stored by an earlier one whose answer was lost",
        lambda m: m.puts_already_stored,
    )
    yield histogram("put_duration_seconds", "How long one try took", lambda m: m.put_seconds)
    yield gauge("store_up", least, "0 from a try that failed until one succeeds, probes or not", lambda m: m.store.up)
    yield gauge(
        "breaker_state",
        most,
        "1 for the state the breaker is in: closed, half-open (probing), open (the store is down)",
        lambda m: {state.value: int(state is m.breaker) for state in BreakerState},
        "state",
    )

    yield counter("spool_events_saved", "Events saved to the dead-letter queue", lambda m: m.enqueued)
    yield counter("spool_events_stored", "Events stored from it or from the backlog", lambda m: m.reuploaded)
    yield counter("spool_files_stored", "Their files", lambda m: m.files_reuploaded)
    yield counter("spool_save_errors", "Batches the disk did not take", lambda m: m.save_errors)
    yield counter("spool_files_evicted", "Files dropped to make room", lambda m: m.files_evicted)
    yield counter("spool_files_expired", "Files dropped as older than DLQ_MAX_AGE", lambda m: m.files_expired)
    yield counter(
        "spool_files_quarantined",
        "Corrupt files: sound lines salvaged, the original put under DLQ_PREFIX",
        lambda m: m.files_quarantined,
    )
    yield gauge(
        "spool_files",
        total,
        "Files that wait for the store: dead letters, and the journal's segments of earlier processes (backlog)",
        lambda m: {Place.DLQ.value: m.gauges.dlq_files(), Place.BACKLOG.value: m.gauges.backlog_files()},
        "place",
    )
    yield gauge(
        "spool_bytes",
        total,
        "Their bytes, which DLQ_MAX_SIZE_BYTES bounds",
        lambda m: m.gauges.dlq_bytes() + m.gauges.backlog_bytes(),
    )
    yield gauge("spool_limit_bytes", total, "DLQ_MAX_SIZE_BYTES", lambda m: m.gauges.spool_limit())
    yield gauge(
        "spool_full",
        most,
        "1 from a save that was refused until one succeeds: the disk has no room",
        lambda m: m.spool_full,
    )
    yield gauge(
        "disk_free_bytes",
        least_set,
        "Bytes free on the disk of DLQ_DIR, as last measured",
        lambda m: m.gauges.disk_free(),
    )
    yield gauge(
        "refused_files",
        total,
        "Files that the store refuses for good while it takes others; each is tried at most once an hour",
        lambda m: m.gauges.refused_files(),
    )
    yield gauge(
        "unknown_files",
        total,
        "Files and folders that cannot be read and are not in the books",
        lambda m: {Place.DLQ.value: m.gauges.unknown_in_dlq(), Place.BACKLOG.value: m.gauges.unknown_in_journal()},
        "place",
    )
    yield gauge(
        "unremoved_files",
        total,
        "Files whose events are in the store or in another place, and that the disk does not let go",
        lambda m: {Place.DLQ.value: m.gauges.unremoved_in_dlq(), Place.BACKLOG.value: m.gauges.unremoved_in_journal()},
        "place",
    )

    yield gauge("workers", total, "Processes that there are to take events", lambda m: m.workers)
    yield counter(
        "worker_restarts",
        "Workers started because one had ended that nobody had told to",
        lambda m: m.gauges.worker_restarts(),
        of_all=most,
    )
    yield gauge(
        "oldest_open_hour_timestamp_seconds",
        least_set,
        "When the oldest hour began that is not told to be complete, unix time; 0 without MANIFESTS",
        lambda m: m.oldest_open_hour,
    )
    yield counter(
        "manifests_stored", "Manifests and words to the registry that the store took", lambda m: m.manifests_stored
    )
    yield counter("manifest_errors", "Those that it did not take; they are tried again", lambda m: m.manifest_errors)
    yield gauge(
        "ledger_lines_waiting",
        total,
        "Lines of the ledger that the disk has not taken",
        lambda m: m.ledger_lines_waiting,
    )

    yield counter(
        "log_lines_dropped",
        "Log lines that nobody read in time, or that standard error did not take",
        lambda m: m.gauges.log_lines_dropped(),
    )
    yield counter("process_cpu_seconds", "CPU time, user and system, of all threads", lambda _: time.process_time())
    yield gauge("process_resident_memory_bytes", total, "Resident memory", _resident_bytes)
    yield gauge(
        "process_start_time_seconds",
        least,
        "When the process started, or the supervisor of workers, unix time",
        lambda m: m.started,
    )
    yield gauge("build_info", most, "Always 1; the labels say what runs", lambda _: {__version__: 1}, "version")


METRICS: Final = tuple(_rows())
