"""The certificate of this server: read at the start, and again when somebody has renewed it.

Owns `TLS_CERT` and `TLS_KEY`: the context that new handshakes are made with, and what is wrong with a pair that cannot
be used. Promises that a pair which cannot be loaded changes nothing: the old one stays until a new one is whole, and
both edges are told once; and that a pair which was not loaded is tried again, also if its files stay as they are. Never
reads a file on the event loop, nor asks for a passphrase.

A renewal is noticed by what the two names lead to: device, inode, size and times, so that a symlink that is turned
(Kubernetes, certbot) counts as well as a file that is written anew. Two files are never renewed in one step: a look in
between finds a key that is not the certificate's, and the next look finds the rest. The cause of a failure may lie
outside the files (no descriptors, no memory, a disk that is away for a moment), and it may go without a trace in them:
therefore the same files are tried again after 2, 4, 8 … 60 s. A connection keeps the context of its handshake.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import stat
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import structlog

from ingest.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ingest.telemetry import Metrics

LOOK_SECONDS: Final = 2.0
LONGEST_PAUSE: Final = 60.0
"""The most between two tries of files that stay the same and could not be loaded."""
NEVER: Final = float("inf")
PROTOCOLS: Final = ["http/1.1"]
_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_CERTIFICATE: Final = "a PEM file with the certificate, and those between it and its root"
_KEY: Final = "a PEM file with the private key of TLS_CERT, without a passphrase"
_VERSION_TAG: Final = 0xA0
_UTC_TIME: Final = 0x17

Identity: TypeAlias = "tuple[tuple[int, ...] | None, ...]"

log = structlog.get_logger()


class Pair(NamedTuple):
    """A certificate and its key, as they were found."""

    context: ssl.SSLContext
    not_after: float
    """When it expires, unix time."""

    @property
    def is_expired(self) -> bool:
        """Clients refuse it by now."""
        return self.not_after <= time.time()

    def until(self) -> str:
        """Return in words when it expires."""
        return datetime.fromtimestamp(self.not_after, UTC).isoformat().replace("+00:00", "Z")


class Certificates:
    """The pair in use."""

    def __init__(
        self,
        certificate: Path,
        key: Path,
        metrics: Metrics,
        *,
        wall_clock: Callable[[], float] = time.time,
        stopwatch: Callable[[], float] = time.monotonic,
    ) -> None:
        """Load the pair; a `ConfigError` if it cannot be used."""
        self._paths = (certificate, key)
        self._metrics = metrics
        self._wall_clock = wall_clock
        self._stopwatch = stopwatch
        self._looked_at = _identity(*self._paths)
        self._pause = 0.0
        """Seconds from the last failure to the next try."""
        self._again_at = NEVER
        """From a failure until a pair is loaded: when the same files are tried again, on the stopwatch."""
        self._use(load_pair(*self._paths))

    @property
    def context(self) -> ssl.SSLContext:
        """The context for a handshake that begins now."""
        return self._pair.context

    async def watch(self) -> None:
        """Look after the files until cancelled. A disk that hangs holds up this alone."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Load the pair if it has changed since the last look, or if it is due to be tried again."""
        self._tell_if_expired()
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(None, _identity, *self._paths)
            if found != self._looked_at:
                self._looked_at = found
                self._pause = 0.0
            elif self._stopwatch() < self._again_at:
                return
            pair = await loop.run_in_executor(None, load_pair, *self._paths)
        except (ConfigError, OSError, RuntimeError, MemoryError) as error:  # no thread to start is a RuntimeError
            self._failed(error)
            return
        self._use(pair)
        log.info("certificate_loaded", until=pair.until())

    def _failed(self, error: Exception) -> None:
        self._pause = min(max(2 * self._pause, LOOK_SECONDS), LONGEST_PAUSE)
        self._again_at = self._stopwatch() + self._pause
        if not self._metrics.tls_reload_failed:
            self._metrics.tls_reload_failed = 1
            hint = "the pair before it is still in use; the files are tried again when they change, or in a minute"
            what = str(error) or type(error).__name__
            log.error("certificate_not_loaded", error=what, until=self._pair.until(), hint=hint)

    def _use(self, pair: Pair) -> None:
        self._pair = pair
        self._again_at = NEVER
        self._metrics.tls_reload_failed = 0
        self._metrics.tls_not_after = pair.not_after
        self._expiry_told = False
        self._tell_if_expired()

    def _tell_if_expired(self) -> None:
        """Warn once of each pair in use, also of one that expires meanwhile."""
        if not self._expiry_told and self._pair.not_after <= self._wall_clock():
            self._expiry_told = True
            until = self._pair.until()
            log.warning("certificate_expired", until=until, hint="clients refuse it; renew what TLS_CERT names")


def load_pair(certificate: Path, key: Path) -> Pair:
    """Return the pair; a `ConfigError` that says which of the files cannot be used, why, and what to do."""
    pem = _read("TLS_CERT", _CERTIFICATE, certificate)
    _read("TLS_KEY", _KEY, key)
    try:
        not_after = _not_after(_first_certificate(pem))
    except (ValueError, LookupError, StopIteration):
        raise ConfigError(
            "TLS_CERT", _CERTIFICATE, str(certificate), do="it has no certificate in PEM; was the key meant?"
        ) from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(PROTOCOLS)
    try:
        context.load_cert_chain(certificate, key, _refuse_passphrase)
    except _PassphraseError:
        do = f"it is encrypted; write it without a passphrase: openssl pkey -in {key} -out plain.pem"
        raise ConfigError("TLS_KEY", _KEY, str(key), do=do) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError("TLS_KEY", _KEY, str(key), do="it belongs to another certificate") from None
        raise ConfigError("TLS_KEY", _KEY, str(key), do=f"OpenSSL: {error.reason or error}") from None
    except OSError as error:  # it was there a moment ago
        raise ConfigError("TLS_KEY", _KEY, str(key), do=error.strerror or str(error)) from None
    return Pair(context, not_after)


class _PassphraseError(Exception):
    pass


def _refuse_passphrase() -> str:
    """Keep OpenSSL from asking on the terminal."""
    raise _PassphraseError


def _read(variable: str, accepted: str, path: Path) -> bytes:
    try:
        if stat.S_IFMT(path.stat().st_mode) not in {stat.S_IFREG, stat.S_IFDIR}:  # a pipe may never end
            raise ConfigError(variable, accepted, str(path), do="it is no file")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(variable, accepted, str(path), do=error.strerror or str(error)) from None


def _identity(*paths: Path) -> Identity:
    return tuple(map(_identity_of, paths))


def _identity_of(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


# The date in a certificate, which Python shows of a peer's only: DER (X.690), read no further than needed (RFC 5280
# §4.1): Certificate > tbsCertificate > [version] serial signature issuer validity > notBefore notAfter.


def _first_certificate(pem: bytes) -> bytes:
    found = _PEM.search(pem)
    if found is None:
        raise ValueError(pem)
    return ssl.PEM_cert_to_DER_cert(found[0].decode("ascii"))


def _not_after(der: bytes) -> float:
    certificate = next(_members(der))[1]
    signed = next(_members(certificate))[1]
    members = [content for tag, content in _members(signed) if tag != _VERSION_TAG]
    (_, _), (tag, text) = _members(members[3])
    digits = text.decode("ascii")
    if tag == _UTC_TIME:
        digits = ("19" if digits >= "50" else "20") + digits
    return datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _members(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        tag, size = data[at], data[at + 1]
        at += 2
        if size & 0x80:
            more = size & 0x7F
            size = int.from_bytes(data[at : at + more], "big")
            at += more
        yield tag, data[at : at + size]
        at += size
