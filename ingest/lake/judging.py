"""The verdict upon one hour: complete, open, or other than it was told.

Owns `judge`, a function of what was listed and told. Never reads anything. Promises that a verdict is never better than
what it rests on:

    no news        is not completeness: an hour is complete only if every process that is known to have been there has
                   said, or had its successor say of both of its slots, that it holds nothing more of the hour
    a name         is known though its document cannot be read. A manifest that cannot be read keeps its hour open,
                   because it may tell of what is missing; a word of the registry does, unless others close the hour
    the last word  of a process counts: its end, or else that it takes events. An hour that it calls open is open,
                   whatever the instants in it say, until successors have spoken of both slots. A successor that spoke
                   before the process did once more is none: the process lives
    who was gone   before an hour began has nothing to close of it: a successor had found its slot free `GONE` seconds
                   before, by every clock, and neither an object nor a word tells of it in that hour

An hour differs when an object and what was told of it do not agree:

    missing     told as stored, and not there
    short       there, with fewer events than were told; or, told or not, it does not begin as an object of ours does
    altered     (with `--deep`) there, and its lines do not begin with those that were told, or are not as many as its
                head declares, or are damaged
    unexpected  there, and its process, which has closed the hour, did not tell of it; or it is no object of ours
    gap         numbers, or events, of a process that has closed the hour, of which nothing is told
    doubled     two objects of one number; or more events told than were accepted
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ingest.format import ledger, parse_key
from ingest.format.manifest import PLACES, Name
from ingest.format.manifest import Kind as Word

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ingest.format.codec import Extent

Document = dict[str, Any]

NOT_OVER: Final = "it is not over: who starts before its end takes events of it"
NOBODY: Final = "no process has told anything: no manifest is there"
UNKNOWN: Final = "it is not registered, and nobody has told that its hour is over"
STILL_TAKES: Final = "it takes events of this hour, or nobody has recovered what it left"
UNREADABLE: Final = "its word cannot be read: "
"""The key of the document follows."""
GONE: Final = 2 * 3600.0
"""More than clocks of machines that share a disk differ by, and than a process that lives is silent in the registry."""
_NOT_OURS: Final = "it does not begin as an object of ours"
_VOID: Final = "void"


class Kind(Enum):
    """See the module's text."""

    MISSING = "missing"
    SHORT = "short"
    ALTERED = "altered"
    UNEXPECTED = "unexpected"
    GAP = "gap"
    DOUBLED = "doubled"


class Finding(NamedTuple):
    """One thing that is other than it was told."""

    kind: Kind
    key: str
    """The object's; of a gap `<host>-<token> number <n>` or `<host>-<token>`."""
    says: str


class Open(NamedTuple):
    """A process that has not closed the hour."""

    instance: str
    why: str


@dataclass(frozen=True, slots=True)
class Said:
    """A document as it was found. `document` is None if it cannot be read, `stored` 0 if the store tells no time."""

    key: str
    document: Document | None
    stored: float = 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """An object as it was found. `events`: by its head, None if that is none of ours. `read`: only when it was read."""

    size: int
    events: int | None
    read: Extent | None = None


@dataclass(slots=True)
class Verdict:
    """The verdict upon an hour."""

    hour: str
    objects: int = 0
    events: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    still_open: list[Open] = field(default_factory=list)
    abandoned: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def code(self) -> int:
        """0 complete, 1 open, 3 it differs."""
        return 3 if self.findings else 1 if self.still_open else 0

    @property
    def word(self) -> str:
        """The same in a word."""
        return {0: "complete", 1: "open", 3: "differs"}[self.code]


def judge(
    hour: str,
    objects: Mapping[str, Seen],
    manifests: Mapping[Name, Said],
    registry: Mapping[Name, Said],
    start: float = 0.0,
) -> Verdict:
    """Hold what is there against what was told. `start`: when the hour began, unix time, as far as that is known."""
    verdict = Verdict(hour, len(objects), sum(seen.events or 0 for seen in objects.values()))
    by_instance: dict[str, dict[str, Seen]] = {}
    for key, seen in objects.items():
        instance = _maker(key, hour)
        if instance:
            by_instance.setdefault(instance, {})[key] = seen
        else:
            verdict.findings.append(Finding(Kind.UNEXPECTED, key, "its name is none of ours"))
    words = _by_instance(registry)
    told = _by_instance(manifests)
    for instance in sorted(words.keys() | told.keys() | by_instance.keys()):
        one = _Instance(instance, hour, words.get(instance, {}), told.get(instance, {}), by_instance.get(instance, {}))
        one.judge(verdict, start)
    if not words and not told and not objects:
        verdict.still_open.append(Open("", NOBODY))
    verdict.findings.sort(key=lambda found: (found.kind.value, found.key))
    return verdict


def told_objects(manifests: Iterable[Document]) -> dict[str, Document]:
    """Return what is told of each object; the longer one counts, because files of one key are prefixes of one batch."""
    told: dict[str, Document] = {}
    for manifest in manifests:
        for one in manifest["objects"]:
            before = told.get(one["key"])
            if before is None or before["events"] < one["events"]:
                told[one["key"]] = one
    return told


def _dropped(manifests: Iterable[Document]) -> dict[str, dict[str, int]]:
    """Return what was given up of each key, by reason: once, however many manifests tell of it."""

    def entries() -> Iterator[ledger.Entry]:
        for manifest in manifests:
            for one in manifest["objects"]:
                yield ledger.Entry(one["key"], one["events"], stored=True)
            for one in manifest["none"]:
                yield ledger.Entry(one["key"], one["events"], reason=one["reason"].removeprefix(_VOID))

    return {key: fate.dropped for key, fate in ledger.settle(entries()).items()}


def _maker(key: str, hour: str) -> str:
    """Return the process that put it for this very hour, or "": a folder in the hour may hold copies of other keys."""
    try:
        parsed = parse_key(key)
    except ValueError:
        return ""
    return parsed.instance if parsed.partition == hour and f"/{hour}/" not in f"/{parsed.prefix}/" else ""


def _by_instance(documents: Mapping[Name, Said]) -> dict[str, dict[Name, Said]]:
    found: dict[str, dict[Name, Said]] = {}
    for name, said in documents.items():
        found.setdefault(name.instance, {})[name] = said
    return found


class _Instance:
    """One process, and one hour."""

    def __init__(
        self,
        instance: str,
        hour: str,
        words: Mapping[Name, Said],
        told: Mapping[Name, Said],
        objects: Mapping[str, Seen],
    ) -> None:
        self.instance = instance
        self.hour = hour
        self.token = instance.rpartition("-")[2]
        self.objects = objects
        self.told = {
            name: said.document for name, said in told.items() if name.kind is None and said.document is not None
        }
        self.untold = [said.key for name, said in told.items() if name.kind is None and said.document is None]
        """Manifests that cannot be read."""
        self.dropped = _dropped(self.told.values())
        """Events that were given up, by key and reason."""
        self.opened = words.get(Name(instance, "", kind=Word.OPEN))
        self.drained = words.get(Name(instance, "", kind=Word.ENDED))
        self.succeeded = [
            said
            for name, said in words.items()
            if name.kind is Word.ENDED and name.writer and not self._has_spoken_since(said)
        ]
        self.outlived = {name for name, said in told.items() if name.kind is None and self._has_spoken_since(said)}
        """Manifests that are older than the process's own last word."""
        self.given_up = [said for name, said in (*words.items(), *told.items()) if name.kind is Word.ABANDONED]
        self.unread = [said.key for said in (*words.values(), *self.given_up) if said.document is None]

    def judge(self, verdict: Verdict, start: float) -> None:
        """Add to the verdict what is to be said of this process."""
        why = self._why_open(start)
        is_given_up = any(self._is_given_up(said) for said in self.given_up)
        if is_given_up:
            verdict.abandoned.append(self.instance)
        elif why:
            verdict.still_open.append(Open(self.instance, why))
        verdict.findings += self._compare(closed=not why, vouched=not why and not is_given_up)
        for by_reason in self.dropped.values():
            for reason, events in by_reason.items():
                verdict.dropped[reason] = verdict.dropped.get(reason, 0) + events

    # Whether it has closed the hour.

    def _is_given_up(self, by: Said) -> bool:
        """Tell whether an operator gave up this hour of it, and it has said nothing since.

        The store's clock decides where it is known, because the operator's may be ahead of the process's.
        """
        if by.document is None or by.document["hour"] not in (None, self.hour):
            return False
        return all(not _is_after(said, by) for said in (self.opened, self.drained) if said is not None)

    def _why_open(self, start: float) -> str:
        if self.untold:
            return f"{UNREADABLE}{min(self.untold)}"
        why, is_closed = self._own_word()
        if is_closed:
            return ""
        # Once the process itself has called the hour open, its own manifest is the older word.
        counted = [
            document
            for name, document in self.told.items()
            if (name not in self.outlived if self._theirs(name) else not why)
        ]
        words = [said.document for said in self.succeeded if said.document is not None]
        never = next((said["why"] for said in words if said.get("why")), "")
        for place in PLACES:
            if any(place in document["places"] for document in counted):
                continue
            reasons = [_why(said["open"], self.hour) for said in words if place in said["places"]]
            if "" not in reasons and (reasons or why or not self._was_gone_before(start)):
                return next(iter(reasons), "") or never or why or self._what_is_known()
        return ""

    def _was_gone_before(self, start: float) -> bool:
        """Tell whether a successor had found it gone long before an hour of which nothing of it is known."""
        if self.objects or self.told or self.unread:
            return False
        gone = [max(said.document["at"], said.stored) for said in self.succeeded if said.document is not None]
        return bool(gone) and min(gone) + GONE <= start

    def _own_word(self) -> tuple[str, bool]:
        """Return why the process calls the hour open, as its last word goes, and whether it calls it closed."""
        if self.drained is not None and self.drained.document is not None:
            why = _why(self.drained.document["open"], self.hour)
            return why, not why
        said = None if self.opened is None else self.opened.document
        if said is not None:
            why = _why(said["open"], self.hour)
            return why, not why and self.hour < said["through"]
        return "", False

    def _has_spoken_since(self, said: Said) -> bool:
        """Tell whether the process spoke after this was said of it, by the store's clock and by their own.

        Both are asked, because a copy of a store has other times, and a machine's clock may be wrong.
        """
        return any(
            own is not None
            and own.stored > said.stored > 0
            and own.document is not None
            and said.document is not None
            and own.document["at"] > said.document["at"]
            for own in (self.opened, self.drained)
        )

    def _theirs(self, name: Name) -> bool:
        """Tell whether a successor made this manifest."""
        return name.writer.partition(".")[0] != self.token

    def _what_is_known(self) -> str:
        if self.unread:
            return f"{UNREADABLE}{min(self.unread)}"
        return UNKNOWN if self.opened is None else STILL_TAKES

    # What it told, and what is there.

    def _compare(self, *, closed: bool, vouched: bool) -> Iterator[Finding]:
        expected = told_objects(self.told.values())
        none = {one["key"] for document in self.told.values() for one in document["none"]}
        for key, one in expected.items():
            seen = self.objects.get(key)
            if seen is None:
                yield Finding(Kind.MISSING, key, f"{one['events']} events")
            else:
                yield from _held_against(key, seen, one)
        untold = [key for key in self.objects if key not in expected]
        for key in untold:
            seen = self.objects[key]
            if vouched and key not in none:
                yield Finding(Kind.UNEXPECTED, key, f"{seen.events or 'unknown'} events, of which nobody told")
            elif seen.events is None:
                yield Finding(Kind.SHORT, key, _NOT_OURS)
            elif why := _unlike_its_head(seen):
                yield Finding(Kind.ALTERED, key, why)
        yield from _doubled(self.objects)
        if closed and self.told:
            yield from self._gaps([*expected, *none], untold)
            yield from self._sums(expected)

    def _gaps(self, told: Sequence[str], untold: Sequence[str]) -> Iterator[Finding]:
        """Name each run of numbers of which nothing is known. Objects that nobody told of never widen the range."""
        here = {parse_key(key).sequence for key in told}
        if not here:
            return
        least, most = min(here), max(here)
        here.update(parse_key(key).sequence for key in untold)
        here.update(number for document in self.told.values() for number in document["elsewhere"])
        for before, after in pairwise(sorted(number for number in here if least <= number <= most)):
            if after - before > 1:
                run = f"number {before + 1}" if after - before == 2 else f"numbers {before + 1} to {after - 1}"
                yield Finding(Kind.GAP, f"{self.instance} {run}", "nothing is told of it")

    def _sums(self, expected: Mapping[str, Document]) -> Iterator[Finding]:
        own = [document for name, document in self.told.items() if not self._theirs(name)]
        if not own:
            return
        accepted = sum(document["accepted"] or 0 for document in own)
        lost = sum(sum(by_reason.values()) for by_reason in self.dropped.values())
        found = sum(one["events"] for one in expected.values()) + lost
        if accepted > found:
            yield Finding(Kind.GAP, self.instance, f"{accepted - found} accepted events, of which nothing is told")
        elif accepted < found and len(own) == len(self.told):
            yield Finding(Kind.DOUBLED, self.instance, f"{found - accepted} events more than were accepted")


def _is_after(said: Said, than: Said) -> bool:
    """Tell whether a document was stored after another one, which can be read; by their own words if need be."""
    if said.stored > 0 and than.stored > 0:
        return said.stored > than.stored
    return said.document is None or than.document is None or bool(said.document["at"] > than.document["at"])


def _why(still_open: Sequence[Document], hour: str) -> str:
    return next((one["why"] for one in still_open if one["hour"] == hour), "")


def _held_against(key: str, seen: Seen, told: Document) -> Iterator[Finding]:
    if seen.events is None:
        yield Finding(Kind.SHORT, key, _NOT_OURS)
    elif seen.events < told["events"]:
        yield Finding(Kind.SHORT, key, f"{seen.events} events of {told['events']}")
    elif why := _unlike_its_head(seen) or _unlike_told(seen, told):
        yield Finding(Kind.ALTERED, key, why)


def _unlike_its_head(seen: Seen) -> str:
    """Return how the lines that were read are not those which the head declares."""
    if seen.read is None or seen.events is None:
        return ""
    if not seen.read.is_whole:
        return "it is no whole gzip of lines"
    if seen.read.lines == seen.events:
        return ""
    found = "more" if seen.read.lines > seen.events else str(seen.read.lines)
    return f"its head declares {seen.events} lines, and it has {found}"


def _unlike_told(seen: Seen, told: Document) -> str:
    """Return how the lines that were read do not begin with those that were told."""
    read, size, crc32 = seen.read, told["size"], told["crc32"]
    if read is None:
        return ""
    if read.size < size or (seen.events == told["events"] and read.size > size):
        return f"lines of {read.size} bytes; told {size}"
    return "" if f"{read.crc32:08x}" == crc32 else f"lines of CRC-32 {read.crc32:08x}; told {crc32}"


def _doubled(objects: Mapping[str, Seen]) -> Iterator[Finding]:
    by_number: dict[int, str] = {}
    for key in sorted(objects):
        first = by_number.setdefault(parse_key(key).sequence, key)
        if first != key:
            yield Finding(Kind.DOUBLED, key, f"{first} has the same number")
