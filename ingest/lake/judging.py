"""The verdict upon one hour: complete, open, or other than it was told.

Owns `judge`, a function of what was listed and told. Promises that no news is not completeness: an hour is complete
only if every process that is known to have been there has said, or had its successor say of both of its slots, that it
holds nothing more of the hour. Never reads anything.

An hour differs when an object and what was told of it do not agree:

    missing     told as stored, and not there
    short       there, with fewer events than were told, or it does not begin as an object of ours does
    altered     (with `--deep`) there, and its lines are not those that were told
    unexpected  there, and its process, which has closed the hour, did not tell of it; or it is no object of ours
    gap         a number, or events, of a process that has closed the hour, of which nothing is told
    doubled     two objects of one number; or more events told than were accepted
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ingest.format import parse_key
from ingest.format.keys import partition_of
from ingest.format.manifest import PLACES, Name
from ingest.format.manifest import Kind as Word

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from zoneinfo import ZoneInfo

Document = dict[str, Any]

NOBODY: Final = "no process has told anything: no manifest is there"
UNKNOWN: Final = "it is not registered, and nobody has told that its hour is over"
STILL_TAKES: Final = "it takes events of this hour, or nobody has recovered what it left"


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
class Seen:
    """An object as it was found. `events`: by its head, None if that is none of ours. The rest: when it was read."""

    size: int
    events: int | None
    lines: int | None = None
    crc32: int | None = None


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
    manifests: Mapping[Name, Document],
    registry: Mapping[Name, Document],
    *,
    tz: ZoneInfo,
) -> Verdict:
    """Hold what is there against what was told."""
    verdict = Verdict(hour, len(objects), sum(seen.events or 0 for seen in objects.values()))
    by_instance: dict[str, dict[str, Seen]] = {}
    for key, seen in objects.items():
        try:
            by_instance.setdefault(parse_key(key).instance, {})[key] = seen
        except ValueError:
            verdict.findings.append(Finding(Kind.UNEXPECTED, key, "its name is none of ours"))
    words = _by_instance(registry)
    told = _by_instance(manifests)
    for instance in sorted(words.keys() | told.keys() | by_instance.keys()):
        one = _Instance(instance, hour, words.get(instance, {}), told.get(instance, {}), by_instance.get(instance, {}))
        if one.is_elsewhere(tz):
            continue
        one.judge(verdict)
    if not words and not told and not objects:
        verdict.still_open.append(Open("", NOBODY))
    verdict.findings.sort(key=lambda found: (found.kind.value, found.key))
    return verdict


def _by_instance(documents: Mapping[Name, Document]) -> dict[str, dict[Name, Document]]:
    found: dict[str, dict[Name, Document]] = {}
    for name, document in documents.items():
        found.setdefault(name.instance, {})[name] = document
    return found


class _Instance:
    """One process, and one hour."""

    def __init__(
        self,
        instance: str,
        hour: str,
        words: Mapping[Name, Document],
        told: Mapping[Name, Document],
        objects: Mapping[str, Seen],
    ) -> None:
        self.instance = instance
        self.hour = hour
        self.token = instance.rpartition("-")[2]
        self.told = {name: document for name, document in told.items() if name.kind is None}
        self.objects = objects
        self.opened = next((said for name, said in words.items() if name.kind is Word.OPEN), None)
        self.ended = {name: said for name, said in words.items() if name.kind is Word.ENDED}
        self.given_up = [said for name, said in (*words.items(), *told.items()) if name.kind is Word.ABANDONED]

    def is_elsewhere(self, tz: ZoneInfo) -> bool:
        """Tell whether the process began after the hour, or drained before it."""
        if self.told or self.objects or self.given_up:
            return False
        if self.opened is not None and self.hour < partition_of(self.opened["started"], tz).path:
            return True
        own = next((said for name, said in self.ended.items() if not name.writer), None)
        return own is not None and self.hour > partition_of(own["at"], tz).path

    def judge(self, verdict: Verdict) -> None:
        """Add to the verdict what is to be said of this process."""
        why = self._why_open()
        is_given_up = any(self._is_given_up(said) for said in self.given_up)
        if is_given_up:
            verdict.abandoned.append(self.instance)
        elif why:
            verdict.still_open.append(Open(self.instance, why))
        verdict.findings += self._compare(closed=not why, vouched=not why and not is_given_up)
        for document in self.told.values():
            for reason, events in document["dropped"].items():
                verdict.dropped[reason] = verdict.dropped.get(reason, 0) + events

    # Whether it has closed the hour.

    def _is_given_up(self, said: Document) -> bool:
        """Tell whether an operator gave up this hour of it, and it has said nothing since."""
        return said["hour"] in (None, self.hour) and (self.opened is None or said["at"] >= self.opened["at"])

    def _why_open(self) -> str:
        opened = self.opened
        if opened is not None and self.hour < opened["through"]:
            why = _why(opened["open"], self.hour)
            if not why:
                return ""
        else:
            why = ""
        ended = list(self.ended.values())
        for place in PLACES:
            if any(
                place in document["places"] for name, document in self.told.items() if not why or self._theirs(name)
            ):
                continue
            words = [said for said in ended if place in said["places"]]
            if any(not _why(said["open"], self.hour) for said in words):
                continue
            return next(
                (reason for said in words if (reason := _why(said["open"], self.hour))),
                next((said["why"] for said in ended if said.get("why")), why or self._what_is_known()),
            )
        return ""

    def _theirs(self, name: Name) -> bool:
        """Tell whether a successor made this manifest: of its own, the process may have said otherwise since."""
        return name.writer.partition(".")[0] != self.token

    def _what_is_known(self) -> str:
        return UNKNOWN if self.opened is None else STILL_TAKES

    # What it told, and what is there.

    def _compare(self, *, closed: bool, vouched: bool) -> Iterator[Finding]:
        expected: dict[str, Document] = {}
        none: dict[str, int] = {}
        for document in self.told.values():
            for one in document["objects"]:
                before = expected.get(one["key"])
                if before is None or before["events"] < one["events"]:
                    expected[one["key"]] = one
            for one in document["none"]:
                none[one["key"]] = max(none.get(one["key"], 0), one["events"])
        for key, one in expected.items():
            seen = self.objects.get(key)
            if seen is None:
                yield Finding(Kind.MISSING, key, f"{one['events']} events")
            else:
                yield from _held_against(key, seen, one)
        untold = [key for key in self.objects if key not in expected and key not in none]
        if vouched:
            for key in untold:
                yield Finding(Kind.UNEXPECTED, key, f"{self.objects[key].events} events, of which nobody told")
        yield from _doubled(self.objects)
        if closed and self.told:
            yield from self._gaps([*expected, *none, *untold])
            yield from self._sums(expected, none)

    def _gaps(self, keys: Sequence[str]) -> Iterator[Finding]:
        numbers = {parse_key(key).sequence for key in keys}
        if not numbers:
            return
        numbers.update(number for document in self.told.values() for number in document["elsewhere"])
        here = [parse_key(key).sequence for key in keys]
        for number in range(min(here), max(here)):
            if number not in numbers:
                yield Finding(Kind.GAP, f"{self.instance} number {number}", "nothing is told of it")

    def _sums(self, expected: Mapping[str, Document], none: Mapping[str, int]) -> Iterator[Finding]:
        own = [document for name, document in self.told.items() if not self._theirs(name)]
        if not own:
            return
        accepted = sum(document["accepted"] or 0 for document in own)
        found = sum(one["events"] for one in expected.values()) + sum(none.values())
        if accepted > found:
            yield Finding(Kind.GAP, self.instance, f"{accepted - found} accepted events, of which nothing is told")
        elif accepted < found and len(own) == len(self.told):
            yield Finding(Kind.DOUBLED, self.instance, f"{found - accepted} events more than were accepted")


def _why(still_open: Sequence[Document], hour: str) -> str:
    return next((one["why"] for one in still_open if one["hour"] == hour), "")


def _held_against(key: str, seen: Seen, told: Document) -> Iterator[Finding]:
    if seen.events is None:
        yield Finding(Kind.SHORT, key, "it does not begin as an object of ours")
    elif seen.events < told["events"]:
        yield Finding(Kind.SHORT, key, f"{seen.events} events of {told['events']}")
    elif seen.lines is not None and seen.events == told["events"]:
        found = seen.lines, f"{seen.crc32 or 0:08x}"
        if found != (told["size"], told["crc32"]):
            yield Finding(
                Kind.ALTERED, key, f"lines of {found[0]} bytes, CRC-32 {found[1]}; told {told['size']}, {told['crc32']}"
            )


def _doubled(objects: Mapping[str, Seen]) -> Iterator[Finding]:
    by_number: dict[int, str] = {}
    for key in sorted(objects):
        first = by_number.setdefault(parse_key(key).sequence, key)
        if first != key:
            yield Finding(Kind.DOUBLED, key, f"{first} has the same number")
