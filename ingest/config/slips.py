"""Slips of the pen: what was probably meant by a name or a value that is not ours.

Owns the guesses: how people write durations, sizes, addresses and lists elsewhere, what other programs call our
variables, and how far a misspelt name may be from a real one.
Promises that a guess is only ever shown; nothing is read as something other than what it says.
Never knows which value is right: a form keeps those guesses that it would take.
"""

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Final

# --- names -----------------------------------------------------------------------------------------------------------


def meant_name(name: str, known: Iterable[str], prefixes: Iterable[str]) -> str | None:
    """Return which of the `known` names was meant, "" if only the prefix is ours; None if it is no name of ours."""
    known = list(known)
    spelled = re.sub(r"[^A-Z0-9]+", "_", name.upper())
    if name in known:
        return None
    if (alias := _ALIASES.get(spelled)) in known:
        return alias
    if _KUBERNETES.search(spelled) or spelled in _FOREIGN:
        return None
    near = [(distance(spelled, other), other) for other in known if _may_be_near(spelled, other)]
    off, best = min(near, default=(len(spelled), ""))
    if best and off <= (1 if len(best) < _SHORT else _FAR):
        return best
    if not spelled.startswith(tuple(prefixes)):
        return None
    return next(iter(get_close_matches(spelled, known, 1, 0.75)), "")


def _may_be_near(one: str, other: str) -> bool:
    """Tell most names apart by their length and their letters: the distance of each pair would hold up every start."""
    return abs(len(one) - len(other)) <= _FAR and len(set(one) ^ set(other)) <= 2 * _FAR


def distance(one: str, other: str) -> int:
    """Return how many letters have to be added, left out, changed or swapped with their neighbour."""
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and b == one[i - 2]:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]


_FAR: Final = 2
"""Letters in which a misspelt name may be off."""
_SHORT: Final = 8
"""A name with fewer letters may be wrong in one, for two make it another word."""
_KUBERNETES: Final = re.compile(r"_(?:SERVICE_(?:HOST|PORT)|PORT(?:_\d+_(?:TCP|UDP))?)(?:_|$)")
"""The names that Kubernetes gives every container for every service beside it."""
_FOREIGN: Final = frozenset({"HTTP_PROXY", "LOG_DIRS", "S3_USE_SIGV4"})
_ALIASES: Final = {
    "S3_BUCKET": "RAW_BUCKET",
    "S3_BUCKET_NAME": "RAW_BUCKET",
    "AWS_S3_BUCKET": "RAW_BUCKET",
    "AWS_BUCKET": "RAW_BUCKET",
    "BUCKET": "RAW_BUCKET",
    "BUCKET_NAME": "RAW_BUCKET",
    "S3_PREFIX": "RAW_PREFIX",
    "S3_REGION": "AWS_REGION",
    "S3_ENDPOINT": "S3_ENDPOINT_URL",
    "S3_URL": "S3_ENDPOINT_URL",
    "S3_KMS_KEY_ID": "S3_SSE_KMS_KEY_ID",
    "S3_MAX_RETRIES": "S3_APP_RETRIES",
    "S3_RETRIES": "S3_APP_RETRIES",
    "HTTP_PORT": "HTTP_ADDR",
    "HTTP_HOST": "HTTP_ADDR",
    "LISTEN_ADDR": "HTTP_ADDR",
    "HTTP_LISTEN_ADDR": "HTTP_ADDR",
    "BATCH_INTERVAL": "FLUSH_INTERVAL",
    "BATCH_TIMEOUT": "FLUSH_INTERVAL",
    "BATCH_MAX_BYTES": "BATCH_BYTES",
    "BATCH_MAX_EVENTS": "BATCH_SIZE",
    "DLQ_MAX_BYTES": "DLQ_MAX_SIZE_BYTES",
    "DLQ_MAX_SIZE": "DLQ_MAX_SIZE_BYTES",
    "DLQ_PATH": "DLQ_DIR",
    "JOURNAL_PATH": "JOURNAL_DIR",
    "MAX_BODY_BYTES": "MAX_BODY_SIZE",
    "MAX_HEADER_SIZE": "MAX_HEADER_BYTES",
    "LOG_FORMAT": "LOG_PRETTY",
    "UPLOAD_WORKERS": "UPLOAD_CONCURRENCY",
    "UPLOAD_TIMEOUT": "S3_TIMEOUT",
}
"""Names that other programs have for what is ours."""

# --- values ----------------------------------------------------------------------------------------------------------


def unquoted(text: str) -> str:
    """Return the text without the quotes around it, which a shell takes away and an env file of Docker keeps."""
    match = _QUOTED.fullmatch(text)
    return match[2].strip() if match else text


def durations(text: str) -> Iterator[str]:
    """Guess at `5sec`, `7d`, `8`, `1 min`."""
    if match := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", text.strip().lower()):
        number, word = match.groups()
        if not word:
            yield f"{number}s"
        for unit, words in _UNITS.items():
            if word in words:
                yield f"{number}{unit}"
        for words, hours in ((_DAYS, 24), (_WEEKS, 24 * 7)):
            if word in words:
                yield f"{float(number) * hours:g}h"


def sizes(text: str) -> Iterator[str]:
    """Guess at `1MB`, `16k`, `1.5 MiB`, `64_000`."""
    if match := re.fullmatch(r"([0-9][0-9_,]*(?:\.[0-9]+)?)\s*([kmgt]?)(?:i?b?|bytes?)", text.strip().lower()):
        number, unit = match[1].replace("_", "").replace(",", ""), match[2]
        if "." not in number:
            yield f"{number}{unit.upper()}iB" if unit else number
        elif unit:
            smaller = {"k": "", "m": "K", "g": "M", "t": "G"}[unit]
            yield f"{round(float(number) * 1024)}{smaller}{'iB' if smaller else ''}"


def counts(text: str) -> Iterator[str]:
    """Guess at `5_000`, `5,000`, `5k`, `5000.0`."""
    plain = re.sub(r"[_,\s]", "", text.lower())
    if match := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([km]?)", plain):
        yield f"{float(match[1]) * {'': 1, 'k': 1000, 'm': 1_000_000}[match[2]]:.0f}"


def rates(text: str) -> Iterator[str]:
    """Guess at `100`, `100/sec`, `100 per minute`, `100rps`."""
    if match := re.fullmatch(r"([0-9]+)\s*(?:rps|(?:/|per|a|p)?\s*(s|m)?[a-z]*)", text.strip().lower()):
        yield f"{match[1]}/{match[2] or 's'}"


def flags(text: str) -> Iterator[str]:
    """Guess at `y`, `enabled`."""
    word = text.strip().lower()
    if word in {"y", "t", "enable", "enabled"}:
        yield "true"
    elif word in {"n", "f", "disable", "disabled", "none"}:
        yield "false"


def addresses(text: str) -> Iterator[str]:
    """Guess at `8080`, `http://0.0.0.0:8080/`, `*:8080`, `localhost`, `::1`."""
    plain = re.sub(r"^[a-z]+://", "", text.strip()).rstrip("/")
    if re.fullmatch(r"[0-9]{1,5}", plain):
        yield f":{plain}"
    yield plain
    yield plain.removeprefix("*")
    if ":" not in plain:
        yield f"{plain}:8080"
    else:
        host, _, port = plain.rpartition(":")
        yield f"[{host}]:{port}" if port.isdigit() and len(port) > 3 else f"[{plain}]:8080"


def buckets(text: str) -> Iterator[str]:
    """Guess at `s3://events`, `https://events.s3.amazonaws.com`."""
    plain = re.sub(r"^(?:s3|s3a|s3n)://", "", text.strip())
    yield plain.strip("/").split("/")[0]
    if match := re.match(r"https?://([A-Za-z0-9._-]+)\.s3[.-]", plain):
        yield match[1]


def prefixes(text: str) -> Iterator[str]:
    """Guess at `s3://events/raw/`, `raw//web`, `raw web`."""
    plain = re.sub(r"^(?:s3|s3a|s3n)://[^/]+/", "", text.strip())
    yield re.sub(r"/+", "/", plain).strip("/")
    yield re.sub(r"[^A-Za-z0-9_.=/-]+", "-", plain).strip("/")
    yield "/".join(part for part in plain.split("/") if not re.match(r"(?i)(?:dt|hr)=", part))


def endpoints(text: str) -> Iterator[str]:
    """Guess at `minio:9000`, and at an address with more than it needs."""
    plain = text.strip()
    if "@" in plain:
        return
    if "://" not in plain:
        yield f"{'http' if re.search(r':[0-9]+$', plain) else 'https'}://{plain}"
    yield re.sub(r"[?#].*", "", plain)


def origins(text: str) -> Iterator[str]:
    """Guess at `https://a.example/`, `a.example`, `https://a.example:443`."""
    parts = [part.strip().rstrip("/") for part in re.split(r"[\s,]+", text.strip()) if part.strip()]
    whole = [part if "://" in part else f"https://{part}" for part in parts]
    yield ",".join(whole)
    yield ",".join(re.sub(r"(?i)^(https://.*):443$|^(http://.*):80$", r"\1\2", part) for part in whole)


def lists(text: str) -> Iterator[str]:
    """Guess at names with blanks or semicolons between them."""
    yield ",".join(part for part in re.split(r"[\s,;]+", text.strip()) if part)


def cookies(text: str) -> Iterator[str]:
    """Guess at `*`, and at names with blanks or semicolons between them."""
    if text.strip() == "*":
        yield "all"
    yield from lists(text)


def paths(text: str) -> Iterator[str]:
    """Guess at `collect`, `/collect/`, `/a /b`."""
    yield ",".join(f"/{part.strip('/')}" for part in re.split(r"[\s,;]+", text.strip()) if part)


def tags(text: str) -> Iterator[str]:
    """Guess at `team=data,env=prod`, `team:data`."""
    parts = [part.strip() for part in re.split(r"[,;&]", text) if part.strip()]
    yield "&".join(parts)
    yield "&".join(part.replace(":", "=", 1) for part in parts)


def one_of(words: Iterable[str], text: str) -> Iterator[str]:
    """Guess at a word that is nearly one of these."""
    spelled = {word.lower(): word for word in words}
    yield from (spelled[near] for near in get_close_matches(text.strip().lower(), spelled, 1, 0.7))


_QUOTED: Final = re.compile(r"(?s)([\"'])(.+)\1")
_UNITS: Final = {
    "ms": {"ms", "msec", "msecs", "millis", "millisecond", "milliseconds"},
    "s": {"s", "sec", "secs", "second", "seconds"},
    "m": {"m", "min", "mins", "minute", "minutes"},
    "h": {"h", "hr", "hrs", "hour", "hours"},
}
_DAYS: Final = {"d", "day", "days"}
_WEEKS: Final = {"w", "week", "weeks"}
