"""Metrics: what the process counts about itself, and the books that must balance.

Owns the counters as plain integers (`metrics.accepted += n` is all the hot path does), the table `METRICS` that says
what each figure means, and the books: accepted + recovered = stored + pending + dropped, in events.
Promises that a scrape between two ticks finds the books balanced, `events_unaccounted` 0, and that a figure somebody
keeps anyway is read from there at the scrape, so that no copy of it can be stale.
Never locks, allocates or calls anything to count; never imports prometheus_client before the first scrape, which costs
40 ms that the start does not have.
"""

import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

PLACES: Final = ("open", "queue", "dlq", "backlog")
"""Where an accepted event may wait; each registers in `Metrics.pending` who knows how many."""

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_EVENTS: Final = (1, 10, 100, 500, 1000, 2500, 5000, 10_000, 50_000)
_BYTES: Final = (1 << 10, 1 << 14, 1 << 17, 1 << 20, 1 << 21, 1 << 22, 1 << 23, 1 << 24, 1 << 26)


class Histogram:
    """Counts of observations by upper bound; the last bucket has none."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total: float = 0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass(slots=True, eq=False)
class Metrics:
    """Every figure that is counted, each at zero when the process starts.

    A name is that of the metric in `METRICS`, or a short one where the code counts often or under one label's value.
    """

    requests: int = 0
    http_requests_rejected_body_too_large_total: int = 0
    http_requests_rejected_head_too_large_total: int = 0
    http_requests_rejected_malformed_total: int = 0
    http_requests_rejected_not_json_total: int = 0
    http_requests_rejected_queue_full_total: int = 0
    http_requests_rejected_disk_full_total: int = 0
    http_requests_rejected_other_total: int = 0
    connections: int = 0
    http_connections_refused_total: int = 0
    timed_out_idle: int = 0
    timed_out_request: int = 0
    timed_out_answer: int = 0

    accepted: int = 0
    recovered: int = 0
    stored: int = 0
    dropped_evicted: int = 0
    dropped_expired: int = 0
    dropped_corrupt: int = 0
    pending: dict[str, Callable[[], int]] = field(default_factory=dict)
    """The events that each place in `PLACES` holds now."""

    sealed_size: int = 0
    sealed_bytes: int = 0
    sealed_interval: int = 0
    sealed_partition: int = 0
    sealed_drain: int = 0
    sealed_storage: int = 0
    batch_events: Histogram = field(default_factory=lambda: Histogram(_EVENTS))
    batch_bytes: Histogram = field(default_factory=lambda: Histogram(_BYTES))
    batch_encoded_bytes_total: int = 0
    batch_compressed_bytes_total: int = 0

    journal_writes_total: int = 0
    journal_write_errors_total: int = 0
    journal_failed: int = 0
    journal_sync_seconds: Histogram = field(default_factory=lambda: Histogram(_SECONDS))

    s3_puts_total: int = 0
    s3_put_errors_total: int = 0
    s3_puts_already_stored_total: int = 0
    s3_put_seconds: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    breaker_state: int = 0
    upload_batches_spilled_total: int = 0

    dlq_enqueued: int = 0
    dlq_reuploaded: int = 0
    dlq_save_errors_total: int = 0
    dlq_files_evicted_total: int = 0
    dlq_files_expired_total: int = 0
    dlq_files_quarantined_total: int = 0

    gauges: dict[str, Callable[[], float]] = field(default_factory=dict)
    """Who knows the value of a gauge of `METRICS` that is not counted here, by its name; 0 until somebody does."""
    started: float = field(default_factory=time.time)

    def unaccounted(self) -> int:
        """Return the events the books cannot place: 0, or we have lost (above) or doubled (below) some."""
        taken = self.accepted + self.recovered
        dropped = self.dropped_evicted + self.dropped_expired + self.dropped_corrupt
        return taken - self.stored - dropped - sum(count() for count in self.pending.values())


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table that the exposition and the documentation share."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    attribute: str = ""
    """Where `Metrics` counts it; empty for what is read at the scrape."""
    label: str = ""
    series: tuple[tuple[str, str], ...] = ()
    """The values of a metric's label, each with the attribute that counts it."""


METRICS: Final[tuple[Metric, ...]] = (
    Metric("http_requests_total", "counter", "Requests answered, whatever the answer", "requests"),
    Metric("http_requests_accepted_total", "counter", "Events accepted, durable as DURABILITY promises", "accepted"),
    *(
        Metric(f"http_requests_rejected_{reason}_total", "counter", meaning, f"http_requests_rejected_{reason}_total")
        for reason, meaning in (
            ("body_too_large", "Requests refused with 413: body or query above MAX_BODY_SIZE"),
            ("head_too_large", "Requests refused with 431: head above MAX_HEADER_BYTES"),
            ("malformed", "Requests refused with 400: not HTTP/1.1 as it must be"),
            ("not_json", "Requests refused with 400: BODY_FORMAT is json and the body is not"),
            ("queue_full", "Events refused with 503: neither memory nor the dead-letter queue can take more"),
            ("disk_full", "Events refused with 503: the journal's disk is full or failing"),
            ("other", "Requests refused with 404 or 405"),
        )
    ),
    Metric("http_connections_current", "gauge", "Open connections", "connections"),
    Metric(
        "http_connections_refused_total",
        "counter",
        "Connections closed at once: MAX_CONNECTIONS were open",
        "http_connections_refused_total",
    ),
    Metric(
        "http_connections_timed_out_total",
        "counter",
        "Connections closed at a deadline: idle, in the middle of a request, or with an answer nobody reads",
        label="state",
        series=tuple((state, f"timed_out_{state}") for state in ("idle", "request", "answer")),
    ),
    Metric("events_recovered_total", "counter", "Events of earlier runs, found on disk and taken over", "recovered"),
    Metric("events_pending", "gauge", "Events accepted or recovered, and neither stored nor dropped", label="place"),
    Metric("events_unaccounted", "gauge", "Events the books cannot place; anything but 0 is a bug of ours"),
    Metric("buffered_bytes", "gauge", "Bytes held in memory, which MAX_BUFFER_BYTES bounds"),
    Metric(
        "batch_sealed_total",
        "counter",
        "Batches sealed, by what sealed them",
        label="reason",
        series=tuple(
            (reason, f"sealed_{reason}") for reason in ("size", "bytes", "interval", "partition", "drain", "storage")
        ),
    ),
    Metric("batch_events", "histogram", "Events in a sealed batch", "batch_events"),
    Metric("batch_bytes", "histogram", "Bytes in a sealed batch, before gzip", "batch_bytes"),
    Metric("batch_encoded_bytes_total", "counter", "Bytes that went into gzip", "batch_encoded_bytes_total"),
    Metric("batch_compressed_bytes_total", "counter", "Bytes that came out of it", "batch_compressed_bytes_total"),
    Metric("batch_compression_ratio", "gauge", "The one divided by the other, since the start"),
    Metric(
        "journal_writes_total",
        "counter",
        "Writes to the journal, each for all events of a tick",
        "journal_writes_total",
    ),
    Metric(
        "journal_write_errors_total",
        "counter",
        "Writes or syncs that failed; their events were refused",
        "journal_write_errors_total",
    ),
    Metric("journal_failed", "gauge", "1 while the disk takes no events and all are refused", "journal_failed"),
    Metric(
        "journal_sync_seconds", "histogram", "How long an fdatasync took (DURABILITY=fsync)", "journal_sync_seconds"
    ),
    Metric("upload_queue_length", "gauge", "Sealed batches in memory, up to UPLOAD_QUEUE"),
    Metric(
        "upload_batches_spilled_total",
        "counter",
        "Batches sent to the dead-letter queue to make room in a full upload queue",
        "upload_batches_spilled_total",
    ),
    Metric("s3_events_stored_total", "counter", "Events whose object the store has confirmed", "stored"),
    Metric("s3_puts_total", "counter", "Tries to put an object, whatever came of them", "s3_puts_total"),
    Metric("s3_put_errors_total", "counter", "Tries that failed", "s3_put_errors_total"),
    Metric(
        "s3_puts_already_stored_total",
        "counter",
        "Tries that found the object stored by an earlier one whose answer was lost",
        "s3_puts_already_stored_total",
    ),
    Metric("s3_put_seconds", "histogram", "How long one try took", "s3_put_seconds"),
    Metric(
        "upload_breaker_state", "gauge", "0 closed, 1 half-open (probing), 2 open (the store is down)", "breaker_state"
    ),
    Metric("dlq_events_enqueued_total", "counter", "Events saved to the dead-letter queue", "dlq_enqueued"),
    Metric("dlq_events_reuploaded_total", "counter", "Events stored from it or from the backlog", "dlq_reuploaded"),
    Metric(
        "dlq_events_dropped_total",
        "counter",
        "Events lost, by why",
        label="reason",
        series=tuple((reason, f"dropped_{reason}") for reason in ("evicted", "expired", "corrupt")),
    ),
    Metric("dlq_save_errors_total", "counter", "Batches the disk did not take", "dlq_save_errors_total"),
    Metric("dlq_files_evicted_total", "counter", "Files dropped to make room", "dlq_files_evicted_total"),
    Metric("dlq_files_expired_total", "counter", "Files dropped as older than DLQ_MAX_AGE", "dlq_files_expired_total"),
    Metric(
        "dlq_files_quarantined_total",
        "counter",
        "Corrupt files: sound lines salvaged, the original put under DLQ_PREFIX",
        "dlq_files_quarantined_total",
    ),
    Metric("dlq_files_current", "gauge", "Files in the dead-letter queue"),
    Metric("dlq_size_bytes", "gauge", "Their bytes"),
    Metric("dlq_full", "gauge", "1 while the queue takes no more: DLQ_MAX_SIZE_BYTES or DISK_RESERVE"),
    Metric("backlog_files_current", "gauge", "Journal segments that wait for the store like dead-letter files"),
    Metric("backlog_size_bytes", "gauge", "Their bytes"),
    Metric("process_cpu_seconds_total", "counter", "CPU time, user and system, of all threads"),
    Metric("process_resident_memory_bytes", "gauge", "Resident memory"),
    Metric("process_start_time_seconds", "gauge", "When the process started, unix time"),
    Metric("build_info", "gauge", "Always 1; the labels say what runs", label="version"),
)
