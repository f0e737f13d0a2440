"""The variables: every name the environment is asked for, with its default, form and meaning, as one table.

Owns what `load`, `check` and the documentation say of a variable; docs/configuration.md is this table, and a test holds
both equal.
Promises one row a variable, in groups, in the order in which they are shown.
Never reads an environment: that is `settings`.
"""

from dataclasses import dataclass
from typing import Final

from ingest.config import forms, paths
from ingest.config.forms import Form


@dataclass(frozen=True, slots=True)
class Variable:
    """One row of the table."""

    name: str
    default: str
    """As one would write it; of an optional one, what holds when it is unset."""
    form: Form
    meaning: str
    optional: bool = False
    """Unset is a state of its own, and `default` only describes it."""
    secret: bool = False
    fallbacks: tuple[str, ...] = ()
    """Other names, the first that is set is read when this one is unset."""

    @property
    def field(self) -> str:
        """Its name in `Settings`."""
        return self.name.lower()

    @property
    def accepted(self) -> str:
        """The form a value must have, in words."""
        return self.form.accepted


GROUPS: Final[dict[str, tuple[Variable, ...]]] = {
    "HTTP": (
        Variable(
            "HTTP_ADDR",
            ":8080",
            forms.address(),
            "Where to listen; no host means every interface, port 0 a free port",
        ),
        Variable(
            "ADMIN_ADDR",
            "unset",
            forms.address_or_socket(),
            "Where `/metrics`, `/status`, `/health` and `/ready` answer, and no event is taken; unset, `/metrics` and "
            "`/status` answer on `HTTP_ADDR`, only to a client on this machine",
            optional=True,
        ),
        Variable(
            "WORKERS",
            "1",
            forms.count_or_auto(1, 64),
            "How many processes share `HTTP_ADDR`; `auto` is one a whole CPU of the quota. Each has limits of its own",
        ),
        Variable(
            "TLS_CERT",
            "unset",
            forms.directory(),
            "The PEM file with the certificate and those between it and its root; `HTTP_ADDR` speaks HTTPS alone then",
            optional=True,
        ),
        Variable(
            "TLS_KEY",
            "unset",
            forms.directory(),
            "The PEM file with its private key, without a passphrase",
            optional=True,
        ),
        Variable(
            "READ_TIMEOUT",
            "8s",
            forms.duration("1ms"),
            "How long a request may take to arrive, head and body",
        ),
        Variable(
            "IDLE_TIMEOUT",
            "65s",
            forms.duration("1ms"),
            "When an idle or silent connection is closed; keep it above the load balancer's own (often 60 s)",
        ),
        Variable(
            "MAX_CONNECTIONS",
            "10000",
            forms.count(1, 1_000_000),
            "Open connections at once, with `TLS_CERT` 2000 by default; at most what the limit on open files allows",
        ),
        # The upper bounds of these two, and of a query, keep an event's line below the 64 MiB at which recovery takes a
        # line for damage: JSON may write six bytes for one.
        Variable(
            "MAX_HEADER_BYTES",
            "16384",
            forms.size(64, 1 << 20),
            "The header fields of a request in raw bytes, with trailers, and with chunk sizes beyond the bytes of the "
            "body between them; above it 431. Its first line has room of its own, for a query of `MAX_BODY_SIZE`",
        ),
        Variable(
            "MAX_BODY_SIZE",
            "65536",
            forms.size(1, 8 << 20),
            "The body, or the query string of an event (up to 1 MiB); above it 413. `sendBeacon` goes to 64 KiB",
        ),
        Variable(
            "MAX_BATCH_BODY_SIZE",
            "1MiB",
            forms.size(1, 16 << 20),
            "The body of a `POST /collect/batch`, as it came and decoded; above it 413. Each event has "
            "`MAX_BODY_SIZE`. It holds for `SDK_ROUTES` too, up to 8 MiB",
        ),
        Variable(
            "BODY_FORMAT",
            "text",
            forms.choice("text", "json"),
            "`text` stores the body as it came; `json` demands JSON, else 400, and embeds it as a value",
        ),
        Variable(
            "CORS_ORIGINS",
            "*",
            forms.origins(),
            "Who may send from a browser, others get 403; `*` echoes the origin and allows credentials",
        ),
        Variable(
            "COLLECT_PATHS",
            paths.COLLECT,
            forms.paths(),
            "Where events are taken, each with its `/batch`; the first is where most should go",
        ),
        Variable(
            "SCRIPT_PATH",
            paths.SCRIPT,
            forms.path(paths.SCRIPT),
            "Where browsers find the script that sends to the first of `COLLECT_PATHS`",
        ),
        Variable(
            "SDK_ROUTES",
            "none",
            forms.choices(*paths.SDK_PATHS),
            "The SDKs whose own paths are served, each answered as it expects",
        ),
    ),
    "Client address": (
        Variable(
            "TRUSTED_PROXIES",
            "127.0.0.0/8,::1/128,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7",
            forms.networks(),
            "Peers whose headers are believed; by default loopback and the private ranges",
        ),
        Variable(
            "PROXY_PROTOCOL",
            "false",
            forms.flag(),
            "Whether each connection of a trusted peer begins with a header of the PROXY protocol, version 1 or 2",
        ),
        Variable(
            "CLIENT_IP_HEADERS",
            "X-Forwarded-For,CloudFront-Viewer-Address",
            forms.headers(),
            "Where a trusted peer tells the client's address, in this order; behind CloudFront put its header first",
        ),
    ),
    "Access": (
        Variable(
            "WRITE_KEYS",
            "unset",
            forms.write_keys(),
            "The keys that events need, each with the name that is stored as `key`; without one 401",
            optional=True,
            secret=True,
        ),
        Variable(
            "RATE_LIMIT",
            "unset",
            forms.rate(),
            "How many events an address may send, an IPv6 /64 as one; above it 429",
            optional=True,
        ),
        Variable(
            "RATE_BURST",
            "twice the limit",
            forms.count(1, 10_000_000),
            "How many it may send at once after a rest",
            optional=True,
        ),
        Variable(
            "MAX_CONNECTIONS_PER_IP",
            "0",
            forms.count(0, 1_000_000),
            "Open connections of one peer that is not in `TRUSTED_PROXIES`, an IPv6 /64 as one; 0 is no limit",
        ),
    ),
    "Privacy": (
        Variable(
            "IP_MODE",
            "full",
            forms.choice("full", "mask", "none"),
            "How much of the client's address is stored: all, its network (/24, IPv6 /48), or nothing",
        ),
        Variable(
            "COOKIES",
            "all",
            forms.cookies(),
            "The cookies that are stored",
        ),
        Variable(
            "RESPECT_GPC",
            "false",
            forms.flag(),
            "Whether `Sec-GPC: 1` and `SP-Anonymous: *` keep address and cookies from being stored",
        ),
        Variable(
            "EXTRA_HEADERS",
            "none",
            forms.extra_headers(),
            "Headers that are stored too, in `headers`; a `*` at the end of a name stands for any end, and costs CPU",
        ),
        Variable(
            "TS_MS",
            "false",
            forms.flag(),
            "Whether `ts_ms`, the time in milliseconds, is stored too",
        ),
    ),
    "Object store": (
        Variable(
            "RAW_BUCKET",
            "unset",
            forms.bucket(),
            "The bucket; unset, objects go to `STORE_DIR`",
            optional=True,
        ),
        Variable(
            "AWS_REGION",
            "required with a bucket",
            forms.pattern(
                "a region such as eu-west-1 (required with RAW_BUCKET)",
                r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?",
            ),
            "The bucket's region; unset, `AWS_DEFAULT_REGION` is read",
            optional=True,
            fallbacks=("AWS_DEFAULT_REGION",),
        ),
        Variable(
            "STORE_DIR",
            "./data/objects",
            forms.directory(),
            "The directory store, used without `RAW_BUCKET`",
        ),
        Variable(
            "RAW_PREFIX",
            "raw",
            forms.prefix(),
            "What the key of every batch begins with",
        ),
        Variable(
            "DLQ_PREFIX",
            "raw_dlq",
            forms.prefix(),
            "What the key of a corrupt original begins with; neither above nor below `RAW_PREFIX`",
        ),
        Variable(
            "MANIFESTS",
            "true",
            forms.flag(),
            "Whether it is told which hours are complete: by ledgers on disk, and what is put below `MANIFEST_PREFIX`",
        ),
        Variable(
            "MANIFEST_PREFIX",
            "<RAW_PREFIX>_manifest",
            forms.prefix(),
            "What the key of a manifest begins with; neither above nor below the other prefixes",
            optional=True,
        ),
        Variable(
            "COMPACT_PREFIX",
            "<RAW_PREFIX>_parquet",
            forms.prefix(),
            "What the key of all that `compact` writes begins with; neither above nor below the other prefixes",
            optional=True,
        ),
        Variable(
            "PARTITION_TZ",
            "UTC",
            forms.zone(),
            "The clock behind `dt=` and `hr=`",
        ),
        Variable(
            "S3_ENDPOINT_URL",
            "unset",
            forms.endpoint(),
            "A store that speaks S3, instead of AWS; unset, `AWS_ENDPOINT_URL_S3` is read, then `AWS_ENDPOINT_URL`",
            optional=True,
            fallbacks=("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        ),
        Variable(
            "S3_TIMEOUT",
            "3s",
            forms.duration("1ms"),
            "When one try of a put is given up",
        ),
        Variable(
            "S3_APP_RETRIES",
            "2",
            forms.count(0, 100),
            "Tries of one put before its batch goes to the dead-letter queue; 0 is one try too",
        ),
        Variable(
            "S3_CONDITIONAL_PUTS",
            "true",
            forms.flag(),
            "Whether the store honours `If-None-Match: *`; `false` looks first, which leaves a race",
        ),
        Variable(
            "S3_SSE",
            "unset",
            forms.choice("AES256", "aws:kms", "aws:kms:dsse"),
            "The encryption asked for with each put",
            optional=True,
        ),
        Variable(
            "S3_SSE_KMS_KEY_ID",
            "unset",
            forms.pattern(
                "a KMS key id, alias or ARN (with S3_SSE aws:kms or aws:kms:dsse)", r"[A-Za-z0-9:/_-]{1,2048}"
            ),
            "The KMS key to encrypt with, instead of the account's own",
            optional=True,
            secret=True,
        ),
        Variable(
            "S3_STORAGE_CLASS",
            "unset",
            forms.choice(
                "STANDARD",
                "STANDARD_IA",
                "ONEZONE_IA",
                "INTELLIGENT_TIERING",
                "REDUCED_REDUNDANCY",
                "EXPRESS_ONEZONE",
                "OUTPOSTS",
                "SNOW",
                "GLACIER_IR",
                "GLACIER",
                "DEEP_ARCHIVE",
            ),
            "The storage class of each object",
            optional=True,
        ),
        Variable(
            "S3_TAGS",
            "unset",
            forms.tags(),
            "Tags put on each object",
            optional=True,
        ),
    ),
    "Batches and upload": (
        Variable(
            "BATCH_SIZE",
            "5000",
            forms.count(1, 10_000_000),
            "Events in a batch, at most",
        ),
        Variable(
            "BATCH_BYTES",
            "8MiB",
            forms.size(1, 1 << 30),
            "Bytes in a batch, before gzip, at which it is sealed",
        ),
        Variable(
            "FLUSH_INTERVAL",
            "120s",
            forms.duration("1ms"),
            "How old an open batch may become",
        ),
        Variable(
            "UPLOAD_QUEUE",
            "4",
            forms.count(1, 10_000),
            "Sealed batches that wait in memory; one more sends the oldest to the dead-letter queue",
        ),
        Variable(
            "UPLOAD_CONCURRENCY",
            "2",
            forms.count(1, 256),
            "Puts at once",
        ),
        Variable(
            "CHANNEL_SIZE",
            "4000",
            forms.count(0, 10_000_000),
            "Events the open batch may still take when neither store nor disk can; then 503",
        ),
        Variable(
            "MAX_BUFFER_BYTES",
            "64MiB",
            forms.size(1, 1 << 40),
            "All bytes held in memory, batches and requests under way; above it 503",
        ),
    ),
    "Durability and disk": (
        Variable(
            "DURABILITY",
            "journal",
            forms.choice("memory", "journal", "fsync"),
            "What an acknowledged event survives: a stop (`memory`), a kill (`journal`), a power loss (`fsync`)",
        ),
        Variable(
            "DLQ_DIR",
            "./data/dlq",
            forms.directory(),
            "The dead-letter queue: batches that wait on disk for the store",
        ),
        Variable(
            "JOURNAL_DIR",
            "<DLQ_DIR>/journal",
            forms.directory(),
            "The journal: the events of batches that are not stored yet",
            optional=True,
        ),
        Variable(
            "DLQ_MAX_SIZE_BYTES",
            "19327352832",
            forms.size(1, 1 << 60),
            "What may wait on disk, backlog of the journal included",
        ),
        Variable(
            "DLQ_ON_FULL",
            "reject",
            forms.choice("reject", "evict"),
            "When that is reached: save no more (`reject`), or drop the oldest file (`evict`)",
        ),
        Variable(
            "DLQ_MAX_AGE",
            "0",
            forms.duration("0"),
            "When a file is dropped whose put failed in this run too; 0 is never",
        ),
        Variable(
            "DISK_RESERVE",
            "64MiB",
            forms.size(0, 1 << 60),
            "What stays free on the disk; at most a tenth of it",
        ),
    ),
    "Stopping and logs": (
        Variable(
            "DRAIN_DELAY",
            "0s",
            forms.duration("0"),
            "On SIGTERM, how long `/ready` says 503 while requests are still taken",
        ),
        Variable(
            "DRAIN_TIMEOUT",
            "25s",
            forms.duration("0"),
            "How long the drain may take; its last 5 s are kept for the disk",
        ),
        Variable(
            "LOG_LEVEL",
            "info",
            forms.choice("debug", "info", "warning", "error", "critical", aliases={"warn": "warning"}),
            "The least level that is logged",
        ),
        Variable(
            "LOG_PRETTY",
            "false",
            forms.flag(),
            "Lines for people instead of JSON",
        ),
        Variable(
            "LOG_SAMPLE_N",
            "1",
            forms.count(1, 1_000_000_000),
            "Of each routine event (info, debug) one in so many is logged; warnings and errors always",
        ),
        Variable(
            "SERVICE_NAME",
            "estat-ingest",
            forms.label(),
            "The `service` field of each log line",
        ),
        Variable(
            "DEBUG_CHECKS",
            "false",
            forms.flag(),
            "Whether the program checks itself at every step and ends at a slip; for tests, not for production",
        ),
    ),
}

VARIABLES: Final[tuple[Variable, ...]] = tuple(variable for group in GROUPS.values() for variable in group)
