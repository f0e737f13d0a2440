"""The check: what the settings mean on this machine, before anybody relies on them.

Owns what `estat-ingest check` prints: the settings in force as lines of an env file on standard output; warnings and
problems, one line each, on standard error. Exit 2 if there is a problem.
Promises that a secret is never printed, and that `--store` leaves no more behind than a process may that is not allowed
to delete: each canary is an object of no events below `_canary/` of its prefix, which is no hour and which no reader
of hours sees.
Never listens, takes a slot, or touches the dead-letter queue; without `--store` it changes nothing at all.
"""

import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from ingest import granted
from ingest.certificates import load_pair
from ingest.commands import interrupt
from ingest.commands.env_file import read as read_env_file
from ingest.config import GROUPS, VARIABLES, ConfigError, ConfigErrors, Settings, format_size, load, shown, warnings
from ingest.disk import Filesystem, StorageError, is_folder
from ingest.format import KeyFactory, codec
from ingest.store import Head, ObjectMetadata, ObjectStore, create_store
from ingest.threads import pool


def run(environ: Mapping[str, str], *, store: bool, strict: bool = False, env_file: Path | None = None) -> int:
    """Print what `environ` comes to, with `store` try the object store too, and return the exit code.

    With `strict` a warning is a problem. An `env_file` counts in place of `environ`; it is for another machine,
    so nothing of this one is held against it: no directory, disk or certificate.
    """
    questionable: list[str] = []
    try:
        if env_file is not None:
            environ, questionable = read_env_file(env_file)
        settings = load(environ)
    except ConfigErrors as found:
        return _verdict([str(problem) for problem in found.problems])
    for line in _effective(settings):
        _print(line)
    here = env_file is None
    workers = settings.workers or (granted.processors() if here else 0)
    for line in _all_in_all(settings, workers):
        _print(line)
    questionable += warnings(settings, environ, here=here)
    if here:
        questionable += _more_than_granted(settings, workers)
    problems: list[str] = []
    if env_file is None:
        problems += map(str, _unusable_directories(settings))
        try:
            questionable += _expired_certificate(settings)
        except ConfigError as problem:
            problems.append(str(problem))
    elif store:
        os.environ.update(environ)  # the SDK looks for credentials there
    for warning in questionable:
        _warn(warning)
    if store:
        problems += interrupt.run(_try_store(settings))
    code = _verdict(problems)
    return 2 if strict and questionable else code


def _verdict(problems: list[str]) -> int:
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return 2 if problems else 0


def _effective(settings: Settings) -> Iterator[str]:
    for group, variables in GROUPS.items():
        yield f"# {group}"
        for variable in variables:
            value = shown(variable, settings)
            yield f"# {variable.name} {value}" if value.startswith("(") else f"{variable.name}={value}"


def _all_in_all(settings: Settings, workers: int) -> Iterator[str]:
    """Say what limits come to that each of several workers has for itself."""
    if not workers:
        yield "# WORKERS=auto: each worker has these limits for itself; how many there are depends on the machine"
    elif workers > 1 or not settings.workers:
        yield f"# {workers} workers, all in all:" if workers > 1 else "# WORKERS=auto is 1 here"
    if workers > 1:
        many = replace(settings, **{name.lower(): workers * getattr(settings, name.lower()) for name in _A_WORKERS_OWN})
        for variable in VARIABLES:
            if variable.name in _A_WORKERS_OWN:
                yield f"#   {variable.name} {shown(variable, many)}"


def _more_than_granted(settings: Settings, workers: int) -> Iterator[str]:
    """Name what asks for more than the machine, or our control group on it, has for us."""
    if workers > (processors := granted.processors()):
        yield f"WORKERS: {workers} are more than the {processors} whole CPUs there are for us; write WORKERS=auto"
    if workers * (settings.max_buffer_bytes + _BESIDE_BUFFERS) > (memory := granted.memory()):
        of_all = f"{workers} workers with " if workers > 1 else ""
        yield (
            f"MAX_BUFFER_BYTES: {of_all}{format_size(settings.max_buffer_bytes)}, and "
            f"{format_size(_BESIDE_BUFFERS)} for the process itself, are more than the {memory} bytes of memory there "
            "are for us; the kernel ends who takes more"
        )


def _unusable_directories(settings: Settings) -> Iterator[ConfigError]:
    folders = {"DLQ_DIR": settings.dlq_dir, "JOURNAL_DIR": settings.journal_dir}
    if settings.raw_bucket is None:
        folders["STORE_DIR"] = settings.store_dir
    fs = Filesystem()
    for name, folder in folders.items():
        if not _is_usable(fs, folder.absolute()):
            yield ConfigError(name, f"a directory that user {os.geteuid()} can make and write", str(folder))
    socket = settings.admin_addr
    if isinstance(socket, Path) and not _is_open_to_us(fs, socket.parent, os.R_OK):
        accepted = f"a socket in a folder that is there, and that user {os.geteuid()} can read and write"
        yield ConfigError("ADMIN_ADDR", accepted, f"unix:{socket}")


def _is_usable(fs: Filesystem, folder: Path) -> bool:
    existing = _first_existing(fs, folder)
    return existing is not None and _is_open_to_us(fs, existing)


def _is_open_to_us(fs: Filesystem, folder: Path, more: int = 0) -> bool:
    try:
        return is_folder(fs, folder) and fs.access(folder, os.W_OK | os.X_OK | more)
    except StorageError:  # for instance a link that leads to itself
        return False


def _first_existing(fs: Filesystem, folder: Path) -> Path | None:
    """Return the folder, or the nearest above it that has a name; None if the disk would not say."""
    for path in (folder, *folder.parents):
        try:
            fs.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return None
        return path
    return None


def _expired_certificate(settings: Settings) -> Iterator[str]:
    if settings.tls_cert is None or settings.tls_key is None:
        return
    pair = load_pair(settings.tls_cert, settings.tls_key)
    if pair.is_expired:
        yield f"TLS_CERT: it has expired at {pair.until()}, and clients refuse it; renew it"


async def _try_store(settings: Settings) -> list[str]:
    """Put, read back and remove a canary under each prefix that the server writes to, and return what went wrong."""
    with pool(2) as executor:
        store = create_store(settings, Head(codec.HEAD_BYTES, codec.event_count), fs=Filesystem(), executor=executor)
        try:
            await store.start()
            # The second prefix is for the permission alone: policies that name a prefix tend to forget this one.
            problems = [
                problem
                for prefix in (settings.raw_prefix, settings.dlq_prefix)
                for problem in await _try_prefix(store, settings, prefix)
            ]
            if settings.manifests and not problems:
                await _try_manifest(store, settings)
            if settings.raw_bucket is not None and settings.s3_conditional_puts and not problems:
                await _try_replace(store, settings)
            return problems  # noqa: TRY300 - within `try`, so that the store is closed
        except StorageError as error:
            return [_one_line(error)]
        finally:
            await store.close()


async def _try_prefix(store: ObjectStore, settings: Settings, prefix: str) -> list[str]:
    unix = int(time.time())
    keys = KeyFactory(prefix, settings.partition_tz, host="canary")
    # Never in an hour: an object without events stays there when the role may not delete, and breaks some readers.
    key = f"{prefix}/_canary/{unix}_{keys.instance}.jsonl.gz"
    metadata = ObjectMetadata(events=0, first_ts=unix, last_ts=unix, instance=keys.instance)
    try:
        await store.put(key, _FIRST, metadata)
    except StorageError as error:
        return [_one_line(error)]
    _print(f"# put {key}")
    problems = []
    try:
        replaced = await store.create(key, _SECOND, metadata)
        body = await _read_back(store, key)
        if not replaced and not await _is_created(
            store, f"{prefix}/_canary/{unix}_{keys.instance}_1.jsonl.gz", metadata
        ):
            problems.append(f"create {prefix}/_canary/: {_TAKEN}")
    except StorageError as error:
        problems.append(_one_line(error))
    else:
        if replaced or body == _SECOND:
            accepted = "false with this store, which replaces an object despite If-None-Match: *"
            got = str(settings.s3_conditional_puts).lower()
            problems.append(
                str(ConfigError("S3_CONDITIONAL_PUTS", accepted, got, do="write S3_CONDITIONAL_PUTS=false"))
            )
        elif body not in {_FIRST, None}:
            problems.append(
                f"get {key}: {len(body or b'')} bytes came back that are not the {len(_FIRST)} that were put"
            )
        elif settings.raw_bucket is None or settings.s3_conditional_puts:
            _print("# create-only puts are honoured")
        else:
            _print("# create-only puts are not asked for: S3_CONDITIONAL_PUTS=false looks, then puts")
    await _remove(store, key)
    return problems


async def _is_created(store: ObjectStore, key: str, metadata: ObjectMetadata) -> bool:
    """Create a key that is free. Without conditional puts a look has to tell: by `NoSuchKey`."""
    created = await store.create(key, _FIRST, metadata)
    await _remove_quietly(store, key)
    return created


async def _try_manifest(store: ObjectStore, settings: Settings) -> None:
    """Put a canary where manifests go. A warning only, because events do without them."""
    unix = int(time.time())
    key = f"{settings.manifest_prefix}/_canary/{unix}_{secrets.token_hex(8)}.json"
    try:
        await store.put(key, _FIRST, ObjectMetadata(events=0, first_ts=unix, last_ts=unix, instance="canary"))
    except StorageError as error:
        _warn(f"{_one_line(error)} (without manifests every hour stays open; events are stored all the same)")
    else:
        _print(f"# put {key}")
        await _remove(store, key)


async def _try_replace(store: ObjectStore, settings: Settings) -> None:
    """Replace a canary as `compact` does an hour. A warning only, because no server ever replaces an object."""
    key = f"{settings.raw_prefix}/_canary/{int(time.time())}_{secrets.token_hex(8)}.json"
    try:
        if not await store.replace(key, _FIRST, None, _JSON):
            _warn(f"replace {key}: {_TAKEN}; compact cannot publish")
            return
        found = await store.find(key)
        version = found.version if found is not None else ""
        if not await store.replace(key, _SECOND, version, _JSON):
            _warn(
                f"replace {key}: the store refuses If-Match with the object's own ETag; run compact with "
                "S3_CONDITIONAL_PUTS=false, one at a time"
            )
        elif await store.replace(key, _FIRST, version, _JSON):
            _warn(f"replace {key}: the store ignores If-Match; run one compact at a time")
        else:
            _print("# replacing on condition is honoured")
    except StorageError as error:
        _warn(f"{_one_line(error)} (only compact replaces an object)")
    await _remove_quietly(store, key)


async def _read_back(store: ObjectStore, key: str) -> bytes | None:
    try:
        body = await store.get(key)
    except StorageError as error:
        _warn(f"{_one_line(error)} (the server itself never reads an object)")
        return None
    _print(f"# read {key}")
    return body


async def _remove(store: ObjectStore, key: str) -> None:
    try:
        await store.delete(key)
    except StorageError as error:
        _warn(f"{_one_line(error)} (the server itself never deletes an object; this empty one stays)")
    else:
        _print(f"# removed {key}")


async def _remove_quietly(store: ObjectStore, key: str) -> None:
    """Remove a further canary: that the role may not delete was told of the first."""
    with suppress(StorageError):
        await store.delete(key)


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _warn(line: str) -> None:
    sys.stderr.write(f"warning: {line}\n")


def _one_line(error: StorageError) -> str:
    return " ".join(str(error).split())


_BESIDE_BUFFERS: Final = 96 << 20
"""A process takes no more than that beside MAX_BUFFER_BYTES (docs/tuning.md)."""
_A_WORKERS_OWN: Final = (
    "MAX_CONNECTIONS",
    "UPLOAD_QUEUE",
    "UPLOAD_CONCURRENCY",
    "CHANNEL_SIZE",
    "MAX_BUFFER_BYTES",
    "DLQ_MAX_SIZE_BYTES",
)
"""Limits whose product says something. The others are of a request, a batch or a client."""

# Two bodies that differ, each gzip of no lines, with the head by which the store knows a file of ours.
_FIRST: Final = codec.encode(b"", 0)
_SECOND: Final = _FIRST * 2
_TAKEN: Final = "the store says that a key is taken which nobody has used"
_JSON: Final = "application/json"
