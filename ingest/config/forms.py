"""Forms: what the text of one variable may look like, told in words, read, and shown again.

Owns the notation of durations (`250ms`, `3s`, `1m30s`, `24h`) and sizes (`16384`, `16KiB`), and the checks of
addresses, URLs, prefixes, zones, tags and lists.
Promises that what a form shows it reads again as the same value, and that a text it does not take is a ValueError,
whatever the text is.
Never knows a variable's name or its default: that is `variables`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path, PurePath
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit
from zoneinfo import ZoneInfo

from ingest.config import slips

_Number = TypeVar("_Number", int, float)


def parse_duration(text: str) -> float:
    """Return the seconds of `250ms`, `3s`, `1.5h`, `1m30s` or `0`, to the millisecond; a unit is needed."""
    if text == "0":
        return 0.0
    if not _DURATION.fullmatch(text):
        raise ValueError(text)
    return round(sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text)), 3)


def format_duration(seconds: float) -> str:
    """Return the shortest text of one unit that `parse_duration` turns into `seconds` again."""
    milliseconds = round(seconds * 1000)
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds % size == 0:
            return f"{milliseconds // size}{unit}" if milliseconds else "0s"
    return f"{milliseconds}ms"


def parse_size(text: str) -> int:
    """Return the bytes of `16384`, `512B`, `16KiB`, `8MiB`, `2GiB` or `1TiB`."""
    if not (match := _SIZE.fullmatch(text)):
        raise ValueError(text)
    return int(match[1]) * _BYTES[match[2] or "B"]


def format_size(size: int) -> str:
    """Return the shortest text that `parse_size` turns into `size` again."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]}{unit}"
    return str(size)


_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(ms|s|m|h)")
_DURATION: Final = re.compile(rf"(?:{_DURATION_PART.pattern})+")
_BYTES: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE: Final = re.compile(r"([0-9]{1,18})(B|KiB|MiB|GiB|TiB)?")
_LONGEST: Final = "87600h"
_LONGEST_SOCKET: Final = 107  # what a `sockaddr_un` holds, its end left out
_LONGEST_PREFIX: Final = 512  # S3 keys end at 1,024 bytes; partition and name need less than 200
_LONGEST_GUESSED: Final = 200  # no slip of the pen is longer; a number of more digits than that has no float


@dataclass(frozen=True, slots=True)
class Form:
    """The shape that the text of a variable may have."""

    accepted: str
    """In words, to follow "accepted"."""
    parse: Callable[[str], Any]
    """The value of a text; a ValueError when it has another form."""
    show: Callable[[Any], str] = str
    """A text of the value."""
    guesses: Callable[[str], Iterable[str]] = lambda _: ()
    """Texts that may have been meant by one that is not taken."""

    def meant(self, text: str) -> str | None:
        """Return what was probably meant by a text that is not taken, if that would be taken."""
        if len(text) > _LONGEST_GUESSED:
            return None
        plain = slips.unquoted(text)
        for guess in (plain, *self.guesses(plain)):
            try:
                self.parse(guess)
            except ValueError:
                continue
            return guess
        return None


def count(minimum: int, maximum: int) -> Form:
    """Take a whole number within bounds."""

    def parse(text: str) -> int:
        return _within(int(_matching(r"[0-9]{1,18}", text)), minimum, maximum)

    return Form(f"a whole number from {minimum} to {maximum}", parse, guesses=slips.counts)


def count_or_auto(minimum: int, maximum: int) -> Form:
    """Take what `count` takes, or `auto`, which is 0."""
    plain = count(minimum, maximum)

    def parse(text: str) -> int:
        if text.lower() == "auto":
            return 0
        number: int = plain.parse(text)
        return number

    return Form(f"{plain.accepted}, or auto", parse, lambda number: str(number or "auto"), plain.guesses)


def size(minimum: int, maximum: int) -> Form:
    """Take a size within bounds."""

    def parse(text: str) -> int:
        return _within(parse_size(text), minimum, maximum)

    accepted = f"bytes or a size such as 16KiB or 8MiB, from {format_size(minimum)} to {format_size(maximum)}"
    return Form(accepted, parse, format_size, slips.sizes)


def duration(minimum: str) -> Form:
    """Take a duration from `minimum` up."""

    def parse(text: str) -> float:
        return _within(parse_duration(text), parse_duration(minimum), parse_duration(_LONGEST))

    accepted = f"a duration such as 250ms, 3s, 2m or 24h, from {minimum} to {_LONGEST}"
    return Form(accepted, parse, format_duration, slips.durations)


def choice(*words: str, aliases: Mapping[str, str] | None = None) -> Form:
    """Take one of `words` in any case; `aliases` are other spellings of them."""
    spelled = {word.lower(): word for word in words} | dict(aliases or {})

    def parse(text: str) -> str:
        return spelled[_matching("|".join(map(re.escape, spelled)), text.lower())]

    accepted = " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
    return Form(accepted, parse, guesses=partial(slips.one_of, words))


def choices(*words: str) -> Form:
    """Take some of `words`, each once, in any case."""
    one = choice(*words)

    def parse(text: str) -> tuple[str, ...]:
        return _once(tuple(map(one.parse, _parts(text))))

    return Form(f"some of {', '.join(words)}, separated by commas, or none", parse, _show_parts, slips.lists)


def path(example: str) -> Form:
    """Take one path as it stands in a request, or none."""

    def parse(text: str) -> str | None:
        return None if text.lower() == "none" else _matching(_PATH, text)

    def show(value: str | None) -> str:
        return value or "none"

    return Form(f"a path such as {example}, without a / at the end, or none", parse, show, slips.paths)


def paths() -> Form:
    """Take paths as they stand in a request: they are compared byte for byte."""

    def parse(text: str) -> tuple[str, ...]:
        found = tuple(_matching(_PATH, part) for part in _parts(text))
        _within(len(found), 1, _MOST_PATHS)
        return _once(found)

    accepted = f"up to {_MOST_PATHS} paths such as /collect separated by commas, without a / at the end"
    return Form(accepted, parse, _show_parts, slips.paths)


def label() -> Form:
    """Take printable ASCII, without quotes around it."""
    accepted = "up to 128 printable ASCII characters, without quotes around them"
    return pattern(accepted, rf"{_UNQUOTED}[ -~]{{1,128}}{_NO_QUOTE}")


def pattern(accepted: str, regex: str, guesses: Callable[[str], Iterable[str]] = lambda _: ()) -> Form:
    """Take what the whole of `regex` matches."""
    return Form(accepted, lambda text: _matching(regex, text), guesses=guesses)


def bucket() -> Form:
    """Take the name of a bucket, or what stands for one."""
    regex = r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,255}|arn:aws[a-z-]*:s3[A-Za-z0-9:/._-]{1,255}"
    return pattern("a bucket name or an access point ARN", regex, slips.buckets)


def flag() -> Form:
    """Take a truth value."""

    def parse(text: str) -> bool:
        return {
            "true": True,
            "1": True,
            "yes": True,
            "on": True,
            "false": False,
            "0": False,
            "no": False,
            "off": False,
        }[_matching("true|1|yes|on|false|0|no|off", text.lower())]

    return Form("true or false", parse, lambda value: str(value).lower(), slips.flags)


def address() -> Form:
    """Take where to listen: the host, empty for all, and the port."""
    regex = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]*)):([0-9]{1,5})")

    def parse(text: str) -> tuple[str, int]:
        if not (match := regex.fullmatch(text)):
            raise ValueError(text)
        ipv6, name, port = match.groups()
        return str(IPv6Address(ipv6)) if ipv6 else name, _within(int(port), 0, 65535)

    def show(value: tuple[str, int]) -> str:
        host, port = value
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    return Form("host:port, :port or [IPv6]:port, the port from 0 to 65535", parse, show, slips.addresses)


def address_or_socket() -> Form:
    """Take where to listen: what `address` takes, or `unix:` and the absolute path of a socket."""
    tcp = address()

    def parse(text: str) -> tuple[str, int] | Path:
        if not text.startswith("unix:"):
            where: tuple[str, int] = tcp.parse(text)
            return where
        path = _matching(rf"/{_IN_PATH}*(?<!/){_NO_QUOTE}", text.removeprefix("unix:"))
        _within(len(path.encode()), 1, _LONGEST_SOCKET)
        return Path(path)

    def show(value: tuple[str, int] | Path) -> str:
        return f"unix:{value}" if isinstance(value, PurePath) else tcp.show(value)

    accepted = f"{tcp.accepted}; or unix:/path, at most {_LONGEST_SOCKET} bytes long"
    return Form(accepted, parse, show, tcp.guesses)


def directory() -> Form:
    """Take a path; whether it can be used is for the one who opens it to say.

    Quotes around it, `~` and `$` are what a shell takes away. Where no shell reads the value they would name a folder.
    A control character is a slip, and what shows it shows another path.
    """
    accepted = "a path as it is, without control characters, quotes around it, `~` or `$` in front"
    return Form(accepted, lambda text: Path(_matching(rf"(?![~$]){_UNQUOTED}{_IN_PATH}+{_NO_QUOTE}", text)))


def prefix() -> Form:
    """Take the head of a key, which is a path below a slot on disk too.

    So no part may hide itself or climb, and the first may not be the name of the slot's lock file. A part shaped like
    a partition's would make every file below it one of that partition.
    """
    part = r"[A-Za-z0-9_][A-Za-z0-9_.=-]{0,127}"

    def parse(text: str) -> str:
        taken = _matching(rf"(?!lock(?:/|$)){part}(?:/{part})*", text.strip("/"))
        _within(len(taken), 1, _LONGEST_PREFIX)
        if re.search(r"(?:^|/)(?:dt|hr)=", taken):
            raise ValueError(text)
        return taken

    accepted = "path segments of letters, digits and any of `_.=-`, the first of them not `lock`, none `dt=…` or `hr=…`"
    return Form(accepted, parse, guesses=slips.prefixes)


def zone() -> Form:
    """Take a time zone of the IANA database."""

    def parse(text: str) -> ZoneInfo:
        try:
            return ZoneInfo(text)
        except (KeyError, OSError) as error:  # not found; or the name of a folder of zones
            raise ValueError(text) from error

    return Form("a time zone such as UTC or Europe/Berlin", parse)


def endpoint() -> Form:
    """Take the URL of a server; credentials in it would show up in logs, so they are refused."""

    def parse(text: str) -> str:
        url = urlsplit(_matching(r"https?://[^\s@?#\"']+", text))
        if not url.hostname or url.port == 0:  # reading the port refuses one that is no number, too
            raise ValueError(text)
        if ":" in url.hostname:
            IPv6Address(url.hostname.partition("%")[0])
        else:
            _matching(_HOST, url.hostname)  # the SDK takes no other
        return text.rstrip("/")

    accepted = (
        "an http:// or https:// URL without credentials, query or fragment, of an address or a host name of letters, "
        "digits and `-`"
    )
    return Form(accepted, parse, guesses=slips.endpoints)


def tags() -> Form:
    """Take S3 object tags, as S3 does: a URL-encoded query string."""

    def parse(text: str) -> str:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, errors="strict")
        if len(dict(pairs)) < len(pairs):
            raise ValueError(text)
        _within(len(pairs), 1, 10)
        for key, value in pairs:
            _matching(r"(?!aws:)[\w .:/=+@-]{1,128}", key)
            _matching(r"[\w .:/=+@-]{0,256}", value)
        return urlencode(pairs)

    return Form("at most 10 tags as key=value&key=value, URL-encoded", parse, guesses=slips.tags)


def origins() -> Form:
    """Take the origins of a browser, in the lower case that browsers send; they never send a default port."""

    def parse(text: str) -> tuple[str, ...]:
        if text == "*":
            return ("*",)
        return tuple(_matching(rf"(?!{_DEFAULT_PORT}\Z)(?:{_ORIGIN})", part.lower()) for part in _parts(text))

    accepted = (
        "`*`, or origins such as https://www.example.com or https://*.example.com separated by commas, "
        "without :443 of https and :80 of http, or none"
    )
    return Form(accepted, parse, _show_parts, slips.origins)


def networks() -> Form:
    """Take IP addresses and networks; those of IPv4 written as IPv6 are what they are as IPv4, as peers are."""

    def parse(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
        return tuple(_unmapped(ip_network(part)) for part in _parts(text))

    accepted = "addresses and networks such as 10.0.0.0/8 separated by commas, or none"
    return Form(accepted, parse, _show_parts, slips.lists)


def headers() -> Form:
    """Take the names of header fields."""

    def parse(text: str) -> tuple[str, ...]:
        return tuple(_matching(_FIELD_NAME, part) for part in _parts(text))

    accepted = "header names separated by commas, in full (`*` matches nothing), or none"
    return Form(accepted, parse, _show_parts, slips.lists)


class Rate(NamedTuple):
    """So many events in so many seconds."""

    events: int
    seconds: int


def rate() -> Form:
    """Take how many events in a second, or in a minute."""
    units = {"s": 1, "m": 60}

    def parse(text: str) -> Rate:
        events, _, unit = _matching(r"[0-9]{1,18}/[sm]", text).partition("/")
        return Rate(_within(int(events), 1, 1_000_000), units[unit])

    def show(value: Rate) -> str:
        return f"{value.events}/{'s' if value.seconds == 1 else 'm'}"

    return Form("events a second or a minute such as 100/s or 600/m, up to 1000000", parse, show, slips.rates)


def write_keys() -> Form:
    """Take names with their secrets. A name may stand twice, with an old and a new secret; a secret may not."""

    def parse(text: str) -> tuple[tuple[str, str], ...]:
        pairs = [_matching(r"[A-Za-z0-9._-]{1,64}:[!-+\--~]{1,256}", part.strip()) for part in text.split(",")]
        keys = tuple((name, secret) for name, _, secret in (pair.partition(":") for pair in pairs))
        if any(slips.unquoted(secret) != secret for _, secret in keys):
            raise ValueError(text)
        if len({secret for _, secret in keys}) < len(keys):
            raise ValueError(text)
        return keys

    def show(value: tuple[tuple[str, str], ...]) -> str:
        return ",".join(f"{name}:{secret}" for name, secret in value)

    accepted = (
        "name:secret pairs separated by commas, each secret once, of printable ASCII without blanks or quotes around it"
    )
    return Form(accepted, parse, show)


def cookies() -> Form:
    """Take the names of cookies, or a word for all of them; RFC 6265 compares names byte by byte."""

    def parse(text: str) -> tuple[str, ...]:
        if text.lower() == ALL:
            return (ALL,)
        names = tuple(_matching(_FIELD_NAME, part) for part in _parts(text))
        if ALL in names:
            raise ValueError(text)
        return names

    accepted = "all, or names of cookies separated by commas, in full (`*` matches nothing), or none"
    return Form(accepted, parse, _show_parts, slips.cookies)


def extra_headers() -> Form:
    """Take the names of header fields that may be stored, in lower case, or what such names begin with."""

    def parse(text: str) -> tuple[str, ...]:
        form = rf"{_UNQUOTED}{_NAME_CHARACTER}{{1,64}}{_NO_QUOTE}\*?{_NO_QUOTE}"
        names = tuple(_matching(form, part.lower()) for part in _parts(text))
        if any(is_private(name.removesuffix("*")) for name in names):
            raise ValueError(text)
        return names

    accepted = (
        "header names separated by commas, `*` at the end of one for all that begin so, or none; "
        "never a key's, a cookie's, an address's or host"
    )
    return Form(accepted, parse, _show_parts, slips.lists)


def is_private(header: str) -> bool:
    """Tell whether a header, in lower case, is never stored under its own name.

    It carries a key, a cookie or an address, which have settings of their own, or the host, which nobody needs.
    """
    return header in _PRIVATE or header.startswith(_PRIVATE_BEGINNINGS)


ALL: Final = "all"
_ORIGIN: Final = r"[a-z][a-z0-9+.-]*://(?:(?:\*\.)?[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?|null"
_HOST: Final = r"(?=.{1,255}\Z)(?:(?!-)[a-z0-9-]{1,63}(?<!-)(?:\.(?!\Z)|\.?\Z))+"
_MAPPED_BITS: Final = 96
_DEFAULT_PORT: Final = r"(?:https://.*:443|http://.*:80)"
_NAME_CHARACTER: Final = r"[A-Za-z0-9!#$%&'+.^_`|~-]"
"""RFC 9110's, but for `*`, which no name has and people write for any end."""
_IN_PATH: Final = r"[^\x00-\x1f\x7f-\x9f]"
_UNQUOTED: Final = r"(?![\"'])"
_NO_QUOTE: Final = r"(?<![\"'])"
_FIELD_NAME: Final = rf"{_UNQUOTED}{_NAME_CHARACTER}{{1,64}}{_NO_QUOTE}"
_PATH: Final = r"(?=.{2,128}\Z)(?:/[A-Za-z0-9._~@:+-]+)+"
_MOST_PATHS: Final = 16
_PRIVATE: Final = frozenset(
    {
        "authorization",
        "x-write-key",
        "x-api-key",
        "host",
        "forwarded",
        "via",
        "client-ip",
        "x-client-ip",
        "x-cluster-client-ip",
        "x-real-ip",
        "x-original-forwarded-for",
        "x-envoy-external-address",
        "x-appengine-user-ip",
        "x-azure-clientip",
        "x-azure-socketip",
        "true-client-ip",
        "fastly-client-ip",
        "fly-client-ip",
        "cf-pseudo-ipv4",
        "cloudfront-viewer-address",
    }
)
_PRIVATE_BEGINNINGS: Final = ("cookie", "set-cookie", "proxy-auth", "x-forwarded", "cf-connecting-ip")


def _parts(text: str) -> list[str]:
    # An empty value would mean the default, so an empty list has a word.
    return [] if text.lower() == "none" else [part.strip() for part in text.split(",")]


def _unmapped(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """Return the IPv4 network of one below `::ffff:0:0/96`."""
    if isinstance(network, IPv4Network) or network.prefixlen < _MAPPED_BITS:
        return network
    first = network.network_address.ipv4_mapped
    return network if first is None else IPv4Network((int(first), network.prefixlen - _MAPPED_BITS))


def _once(parts: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(parts)) < len(parts):
        raise ValueError(parts)
    return parts


def _show_parts(parts: tuple[object, ...]) -> str:
    return ",".join(map(str, parts)) or "none"


def _matching(regex: str, text: str) -> str:
    if not re.fullmatch(regex, text):
        raise ValueError(text)
    return text


def _within(number: _Number, minimum: _Number, maximum: _Number) -> _Number:
    if not minimum <= number <= maximum:
        raise ValueError(number)
    return number
