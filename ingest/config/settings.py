"""The settings: one environment, read once, checked as a whole, frozen.

Owns `Settings`, all that the rest of the program sees of the environment, and what must hold between two variables; the
variables one by one are the table `VARIABLES`.
Promises that `load` reports every problem at once, each in one line that names the variable and what it accepts; that
no secret is ever part of such a line; and that settings it returns need no second check.
Never reads `os.environ` by itself, opens a file or a socket. Only `warnings` looks at the machine: at the disk's size.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

from ingest.config import paths
from ingest.config.forms import Rate, format_duration, format_size
from ingest.config.slips import meant_name
from ingest.config.variables import VARIABLES, Variable


class ConfigError(ValueError):
    """One variable whose value cannot be used; `str()` of it is one line, fit for an operator's terminal."""

    def __init__(
        self, variable: str, accepted: str, got: str | None, *, secret: bool = False, do: str | None = None
    ) -> None:
        if got is not None:
            got = "***" if secret else _one_line(_without_credentials(got))
        super().__init__(variable, accepted, got)
        self.variable = variable
        self.accepted = accepted
        self.got = got
        """The text that was found, fit to be shown; None: nothing."""
        self.do = None if secret or do is None else _one_line(_without_credentials(do))
        """The next step, where it is known."""

    def __str__(self) -> str:
        got = "nothing" if self.got is None else f"'{self.got}'"
        do = "" if self.do is None else f"; {self.do}"
        return f"{self.variable}: accepted {self.accepted}, got {got}{do}"


class ConfigErrors(Exception):  # noqa: N818 -- it is not one more error: it is all of them
    """Every problem of one environment, in the order of `VARIABLES`, then what is wrong between variables."""

    def __init__(self, problems: tuple[ConfigError, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


@dataclass(frozen=True, slots=True)
class Settings:
    """The environment after `load`: a field is a variable's name in lower case; durations are seconds, sizes bytes."""

    http_host: str
    """Empty: every interface."""
    http_port: int
    admin_addr: tuple[str, int] | Path | None
    """Host and port, or the path of a Unix socket."""
    workers: int
    """Zero: as many as there are processors for."""
    tls_cert: Path | None
    tls_key: Path | None
    read_timeout: float
    idle_timeout: float
    max_connections: int
    max_header_bytes: int
    max_body_size: int
    max_batch_body_size: int
    body_format: Literal["text", "json"]
    cors_origins: tuple[str, ...]
    """`("*",)`, or the origins that are answered."""
    collect_paths: tuple[str, ...]
    script_path: str | None
    sdk_routes: tuple[str, ...]
    """Words of `SDK_PATHS`."""
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...]
    proxy_protocol: bool
    client_ip_headers: tuple[str, ...]

    write_keys: tuple[tuple[str, str], ...] | None = field(repr=False)
    """Names and secrets. None: nobody needs a key."""
    rate_limit: Rate | None
    rate_burst: int | None
    """None: twice the events of `rate_limit`."""
    max_connections_per_ip: int
    """Zero: no limit."""

    ip_mode: Literal["full", "mask", "none"]
    cookies: tuple[str, ...]
    """`("all",)`, or the names of those that are stored."""
    respect_gpc: bool
    extra_headers: tuple[str, ...]
    """In lower case; one that ends in `*` is the beginning of names."""
    ts_ms: bool

    raw_bucket: str | None
    """None: the directory store under `store_dir`."""
    aws_region: str | None
    store_dir: Path
    raw_prefix: str
    dlq_prefix: str
    manifests: bool
    manifest_prefix: str
    compact_prefix: str
    partition_tz: ZoneInfo
    s3_endpoint_url: str | None
    s3_timeout: float
    s3_app_retries: int
    s3_conditional_puts: bool
    s3_sse: str | None
    s3_sse_kms_key_id: str | None
    s3_storage_class: str | None
    s3_tags: str | None
    """In the form S3 takes them: a URL-encoded query string."""

    batch_size: int
    batch_bytes: int
    flush_interval: float
    upload_queue: int
    upload_concurrency: int
    channel_size: int
    max_buffer_bytes: int

    durability: Literal["memory", "journal", "fsync"]
    dlq_dir: Path
    journal_dir: Path
    dlq_max_size_bytes: int
    dlq_on_full: Literal["reject", "evict"]
    dlq_max_age: float
    """Zero: never."""
    disk_reserve: int

    drain_delay: float
    drain_timeout: float
    log_level: str
    log_pretty: bool
    log_sample_n: int
    service_name: str
    debug_checks: bool

    @property
    def http_addr(self) -> tuple[str, int]:
        """Host and port as `HTTP_ADDR` gave them."""
        return self.http_host, self.http_port

    @property
    def store_shown(self) -> str:
        """Where objects go, as a log line names it."""
        return f"s3://{self.raw_bucket}" if self.raw_bucket else str(self.store_dir)


def load(environ: Mapping[str, str]) -> Settings:
    """Return the settings in `environ`, or raise `ConfigErrors` with all problems; a blank value counts as unset."""
    values, problems = _read(environ)
    problems.extend(_contradictions(values))
    if problems:
        raise ConfigErrors(tuple(problems))
    return _made(values)


def _made(values: dict[str, Any]) -> Settings:
    host, port = values["http_addr"]
    others = {name: value for name, value in values.items() if name != "http_addr"}
    return Settings(**others, http_host=host, http_port=port)


def _read(environ: Mapping[str, str]) -> tuple[dict[str, Any], list[ConfigError]]:
    """Return the value of each variable that can be read, and a problem for each that cannot."""
    values: dict[str, Any] = {}
    problems: list[ConfigError] = []
    for variable in VARIABLES:
        name, text = _found(variable, environ)
        try:
            values[variable.field] = variable.form.parse(text) if text else None
        except ValueError:
            # A guess repeats the text, and with it what may be a secret.
            meant = variable.form.meant(text) if text == _without_credentials(text) else None
            do = None if meant is None else f"write {name}={meant}"
            problems.append(ConfigError(name, variable.accepted, text, secret=variable.secret, do=do))
    if values.get("dlq_dir") and values.get("journal_dir", ...) is None:
        values["journal_dir"] = values["dlq_dir"] / "journal"
    if values.get("tls_cert") and not environ.get("MAX_CONNECTIONS", "").strip():
        values["max_connections"] = _TLS_CONNECTIONS
    for name, end in (("manifest_prefix", "manifest"), ("compact_prefix", "parquet")):
        if values.get("raw_prefix") and values.get(name, ...) is None:
            values[name] = f"{values['raw_prefix']}_{end}"
    return values, problems


def warnings(settings: Settings, environ: Mapping[str, str], *, here: bool = True) -> list[str]:
    """Return what will run but is probably not what was meant, one line each; without `here` on any machine."""
    return [*_unread(environ), *_warnings(settings), *(_disk_warnings(settings) if here else ())]


def shown(variable: Variable, settings: Settings) -> str:
    """Return the value in force, as one would write it; of a secret only whether it is set."""
    value = getattr(settings, variable.field)
    if value is None:
        return "(unset)"
    return "(set, not shown)" if variable.secret else variable.form.show(value)


def shown_value(name: str, settings: Settings) -> str:
    """Return what `shown` does for the variable of this name."""
    return shown(next(variable for variable in VARIABLES if variable.name == name), settings)


def differing(settings: Settings) -> dict[str, str]:
    """Return the settings that differ from their defaults, by name, each as `shown`."""
    plain = _defaults()
    values = {variable.name: (shown(variable, settings), shown(variable, plain)) for variable in VARIABLES}
    return {name: value for name, (value, default) in values.items() if value != default}


@cache
def _defaults() -> Settings:
    return _made(_read({})[0])  # what is wrong with them here, without a working directory, is nobody's problem


def overlap(one: Path, other: Path) -> bool:
    """Tell whether two folders are one, or one lies below the other, links followed."""
    return _nested(Path(os.path.realpath(one)), Path(os.path.realpath(other)))


def _found(variable: Variable, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return the name that gave the value, and its text; no text when an optional one is unset."""
    for name in (variable.name, *variable.fallbacks):
        if text := environ.get(name, "").strip():
            return name, text
    return variable.name, "" if variable.optional else variable.default


def _one_line(text: str) -> str:
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= 200 else f"{shown[:200]}…"


def _without_credentials(text: str) -> str:
    """`text` without what a URL carries before its `@` and after its `?`: that is where people put secrets."""
    text = re.sub(r"(?s)^([A-Za-z][A-Za-z0-9+.-]*://)?.*@", r"\1***@", text)
    return re.sub(r"(?s)(://.*?\?).*", r"\1***", text)


# --- what is wrong between variables ---------------------------------------------------------------------------------


def _contradictions(values: Mapping[str, Any]) -> Iterator[ConfigError]:
    """Between the values that could be read; one that could not is missing here and is a problem already."""
    if values.get("raw_bucket") and values.get("aws_region", ...) is None:
        yield ConfigError("AWS_REGION", _accepted("AWS_REGION"), None, do="set it to the region of RAW_BUCKET")
    key, sse = values.get("s3_sse_kms_key_id"), values.get("s3_sse", ...)
    if key and sse in {None, "AES256"}:
        yield ConfigError("S3_SSE_KMS_KEY_ID", _accepted("S3_SSE_KMS_KEY_ID"), key, secret=True)
    addresses = {name.lower() for name in values.get("client_ip_headers") or ()}
    if extra := addresses.intersection(values.get("extra_headers") or ()):
        yield ConfigError("EXTRA_HEADERS", _accepted("EXTRA_HEADERS"), ",".join(sorted(extra)))
    for variable, path, user in paths.doubled(values):
        yield ConfigError(variable, "paths that nothing else has", path, do=f"{user} has it")
    admin = values.get("admin_addr")
    events = values.get("http_addr")
    if isinstance(admin, tuple) and events and admin[1] and admin[1] == events[1] and _meet(admin[0], events[0]):
        do = f"HTTP_ADDR={_shown_address(events)} has it: take another port"
        yield ConfigError("ADMIN_ADDR", "an address other than HTTP_ADDR", _shown_address(admin), do=do)
    for name, other in (("TLS_CERT", "TLS_KEY"), ("TLS_KEY", "TLS_CERT")):
        if values.get(name.lower(), ...) is None and values.get(other.lower()):
            yield ConfigError(name, _accepted(name), None, do=f"{other} needs it")
    if values.get("tls_cert") and values.get("proxy_protocol"):
        yield ConfigError(
            "PROXY_PROTOCOL", "false with TLS_CERT", "true", do="end TLS at the proxy, or have it send no header"
        )
    yield from _shared_prefixes(values)
    yield from _shared_directories(values)


def _shared_prefixes(values: Mapping[str, Any]) -> Iterator[ConfigError]:
    taken: dict[str, str] = {}
    for name in ("RAW_PREFIX", "DLQ_PREFIX", "MANIFEST_PREFIX", "COMPACT_PREFIX"):
        prefix = values.get(name.lower())
        for other, used in taken.items():
            if prefix and _nested(Path(used), Path(prefix)):
                yield ConfigError(name, f"a prefix that is neither {other} ('{used}') nor above or below it", prefix)
                return
        if prefix:
            taken[name] = prefix


def _shared_directories(values: Mapping[str, Any]) -> Iterator[ConfigError]:
    folders: dict[str, Path] = {}
    for name in ("STORE_DIR", "DLQ_DIR", "JOURNAL_DIR"):
        folder = values.get(name.lower())
        if not folder or (name == "STORE_DIR" and values.get("raw_bucket")):
            continue
        try:
            real = Path(os.path.realpath(folder))
        except OSError:
            if name != "JOURNAL_DIR" or not values.get("dlq_dir") or folder != values["dlq_dir"] / "journal":
                yield ConfigError(name, "an absolute path, because the working directory is gone", str(folder))
            continue
        for other, taken in folders.items():
            if name == "JOURNAL_DIR" and other == "DLQ_DIR" and real == taken / "journal":
                continue
            if _nested(taken, real):
                yield ConfigError(name, f"a directory that is neither {other} nor above or below it", str(folder))
        folders[name] = real


def _nested(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _accepted(name: str) -> str:
    return next(variable.accepted for variable in VARIABLES if variable.name == name)


def _shown_address(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _meet(one: str, other: str) -> bool:
    """Tell whether two hosts have an address in common. A name that only a resolver knows meets itself and all."""
    ours, theirs = _reach(one), _reach(other)
    if not ours or not theirs:
        return one.lower() == other.lower() or any(network.prefixlen == 0 for network in (*ours, *theirs))
    return any(a.version == b.version and a.overlaps(b) for a in ours for b in theirs)


def _reach(host: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Return the addresses of a host as it is written; none for a name that only a resolver knows."""
    words = _REACHES.get(host.lower(), (host,))
    try:
        return tuple(map(ip_network, words))
    except ValueError:
        return ()


# --- what is probably not meant --------------------------------------------------------------------------------------


def _unread(environ: Mapping[str, str]) -> Iterator[str]:
    """Name variables that nobody reads and somebody may think we do."""
    known = [variable.name for variable in VARIABLES]
    read = {*known, *(name for variable in VARIABLES for name in variable.fallbacks)}
    for name in sorted(environ.keys() - read):
        meant = meant_name(name, known, _PREFIXES)
        if meant is not None:
            do = f"{meant} was probably meant" if meant else "docs/configuration.md lists what is"
            yield f"{_one_line(name)}: it is not read; {do}"


def _warnings(settings: Settings) -> Iterator[str]:
    drain = settings.drain_delay + settings.drain_timeout
    if drain > _STOP_GRACE:
        yield (
            f"DRAIN_DELAY and DRAIN_TIMEOUT: {format_duration(drain)} together is longer than the {_STOP_GRACE} s "
            "that an orchestrator usually waits before it kills; raise its stop grace (ECS: stopTimeout), or lower them"
        )
    if settings.idle_timeout <= _LOAD_BALANCER_IDLE:
        yield (
            f"IDLE_TIMEOUT: {format_duration(settings.idle_timeout)} is not above the {_LOAD_BALANCER_IDLE} s "
            "after which a load balancer usually closes; a request sent in that moment is answered with 502"
        )
    held = settings.batch_bytes * (1 + settings.upload_queue + settings.upload_concurrency)
    if held > settings.max_buffer_bytes:
        yield (
            f"MAX_BUFFER_BYTES: {format_size(settings.max_buffer_bytes)} is less than the {format_size(held)} that "
            "1 + UPLOAD_QUEUE + UPLOAD_CONCURRENCY batches of BATCH_BYTES take; 503 may come before the queue is full"
        )
    largest = max(settings.max_body_size, settings.max_batch_body_size)
    if largest + settings.max_header_bytes > settings.max_buffer_bytes // _UNFINISHED_PART:
        yield (
            f"MAX_BUFFER_BYTES: a request of {format_size(largest)} is never taken, though MAX_BODY_SIZE or "
            "MAX_BATCH_BODY_SIZE allows it, because unfinished requests have a quarter of "
            f"{format_size(settings.max_buffer_bytes)}"
        )
    if settings.admin_addr is None:
        yield (
            "ADMIN_ADDR: it is unset, so /metrics and /status answer a client on this machine only, and one that comes "
            "through no proxy; set it to a port that the internet does not reach, and scrape that"
        )
    if settings.batch_bytes < settings.max_batch_body_size:
        yield (
            f"MAX_BATCH_BODY_SIZE: {format_size(settings.max_batch_body_size)} is more than BATCH_BYTES, "
            f"{format_size(settings.batch_bytes)}; a request whose lines come to more than that is refused with 413"
        )
    if settings.dlq_max_size_bytes < settings.batch_bytes // _COMPRESSED_AT_BEST:
        yield (
            f"DLQ_MAX_SIZE_BYTES: {format_size(settings.dlq_max_size_bytes)} is too little for one compressed batch of "
            f"BATCH_BYTES, {format_size(settings.batch_bytes)}; no batch is kept on disk while the store is away"
        )
    if settings.proxy_protocol and not settings.trusted_proxies:
        yield "PROXY_PROTOCOL: TRUSTED_PROXIES is none, so that no header is read, and who sends one gets 400"
    if settings.rate_burst is not None and settings.rate_limit is None:
        yield "RATE_BURST: without RATE_LIMIT it has no effect"
    yield from _store_warnings(settings)


def _store_warnings(settings: Settings) -> Iterator[str]:
    if settings.raw_bucket is None:
        for name in ("S3_ENDPOINT_URL", "S3_SSE", "S3_STORAGE_CLASS", "S3_TAGS"):
            if getattr(settings, name.lower()) is not None:
                yield f"{name}: without RAW_BUCKET it has no effect; objects go to STORE_DIR"
    elif settings.s3_storage_class in _ARCHIVES:
        yield f"S3_STORAGE_CLASS: objects in {settings.s3_storage_class} must be restored before they can be read"


def _disk_warnings(settings: Settings) -> Iterator[str]:
    folder = settings.dlq_dir.absolute()
    try:
        disk = os.statvfs(next(path for path in (folder, *folder.parents) if path.exists()))
    except OSError:
        return  # the start says what is wrong with the directory
    size = disk.f_blocks * disk.f_frsize
    wanted = settings.dlq_max_size_bytes * max(settings.workers, 1)
    if wanted > size:
        of_all = f" for all of WORKERS={settings.workers}" if settings.workers > 1 else ""
        yield (
            f"DLQ_MAX_SIZE_BYTES: {format_size(wanted)}{of_all} is more than the disk of DLQ_DIR "
            f"({size} bytes); DISK_RESERVE is what will stop it"
        )
    if settings.disk_reserve > size // 10:
        reserve = format_size(settings.disk_reserve)
        yield f"DISK_RESERVE: {reserve} is more than a tenth of the disk; {size // 10} bytes are kept free"


_PREFIXES: Final = tuple({f"{variable.name.split('_')[0]}_" for variable in VARIABLES} - {"AWS_"})
_TLS_CONNECTIONS: Final = 2000
"""MAX_CONNECTIONS by default with TLS, where each takes several times the memory."""
_REACHES: Final[Mapping[str, tuple[str, ...]]] = {
    "": ("0.0.0.0/0", "::/0"),
    str(IPv4Address(0)): ("0.0.0.0/0",),
    str(IPv6Address(0)): ("::/0",),
    "localhost": ("127.0.0.1", "::1"),
}
"""The addresses that a host to listen at stands for; one of IPv6 takes none of IPv4."""
_STOP_GRACE: Final = 30
_LOAD_BALANCER_IDLE: Final = 60
_UNFINISHED_PART: Final = 4
"""Which part of MAX_BUFFER_BYTES unfinished requests have."""
_COMPRESSED_AT_BEST: Final = 20
"""Events compress to a fifth as a rule, and hardly ever to less than this part."""
_ARCHIVES: Final = ("GLACIER", "DEEP_ARCHIVE")
