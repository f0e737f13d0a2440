"""The page of memory that a supervisor and its workers share: how far each worker is, and what it has counted.

Owns where everything stands in it, and the order in which it is written, so that it can be read at any instant and
after any death. Promises that a reader gets the figures of one instant of a worker, the last whole ones of one that was
killed; and that what an ended worker has counted stays in the page for good. Never knows what a figure means: a rule
beside each says what becomes of it when its worker ends. Imports nothing of ours, because the supervisor is small.

    head      the folding (odd while what ended workers leave is moved), workers started anew, when it was made
    regions   one a process, each with
              head      state, phase, beats, layout, the three counts of writings
              rules     one a figure: what becomes of it at the end
              quick     the figures that are written once a turn, twice
              slow      the others, written twice a second, twice
              status    a text, twice

Each of the last three is written into the copy that is not read, and then its count of writings goes up by one, which
makes that copy the one to be read: a process that is killed in the middle leaves the copy before. All words are
doubles, which hold whole numbers up to 2^53; one word is written in one piece.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WORD: Final = 8
FIGURES: Final = 512
"""Figures of a worker, at most."""
QUICK: Final = 64
"""So many of them at most are quick; they come first."""
STATUS_BYTES: Final = 8192

FREE: Final = 0
TAKEN: Final = 1
ENDED: Final = 2
"""The states of a region: nobody's; a process's; what processes of one layout have left, for good."""

STARTING: Final = 0
SERVING: Final = 1
LEAVING: Final = 2
"""The phases of a worker: not listening yet; listening; not listening any more."""

STAYS: Final = 0
ADDS: Final = 1
OPENS: Final = 2
HANDED_ON: Final = 3
"""The rules of a figure when its worker has ended: it is gone; it adds to what others have left; it adds to the one
that is `HANDED_ON`, being events that somebody will find on disk; it adds, and takes those."""

_FOLDING, _RESTARTS, _STARTED = range(3)
_HEAD: Final = 16
_STATE, _PHASE, _BEATS, _LAYOUT, _QUICK_COUNT, _QUICK_SIZE, _SLOW_COUNT, _SLOW_SIZE, _STATUS_COUNT = range(9)
_REGION_HEAD: Final = 16
_RULES: Final = _REGION_HEAD
_QUICK: Final = _RULES + FIGURES
_SLOW: Final = _QUICK + 2 * QUICK
_STATUS: Final = _SLOW + 2 * FIGURES
_REGION: Final = _STATUS + 2 * STATUS_BYTES // WORD
_TRIES: Final = 100
"""A writer that runs on another core is through within microseconds; one that was killed never stands in the way."""
_A_MOMENT: Final = 0.0005
"""Seconds between two tries to read while the supervisor moves figures, in which it may run: 0.05 of them in all."""


class SharedPage:
    """The page, opened by its descriptor."""

    __slots__ = ("_last", "_words", "descriptor", "memory", "regions")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._last = 0
        """The layout of the process that ended last."""
        size = os.fstat(descriptor).st_size
        self.memory = mmap.mmap(descriptor, size)
        self._words = memoryview(self.memory).cast("d")
        count = (size // WORD - _HEAD) // _REGION
        self.regions = [Region(self.memory, self._words, _HEAD + number * _REGION) for number in range(count)]

    @classmethod
    def make(cls, regions: int) -> SharedPage:
        """Make a page with room for so many processes, those that have ended included."""
        descriptor = os.memfd_create("estat-figures")
        os.truncate(descriptor, (_HEAD + regions * _REGION) * WORD)
        made = cls(descriptor)
        made._words[_STARTED] = time.time()
        return made

    def __repr__(self) -> str:
        return f"<SharedPage {self.regions}>"

    @property
    def restarts(self) -> int:
        """How many workers were started because one had ended."""
        return int(self._words[_RESTARTS])

    @property
    def started(self) -> float:
        """When the page was made, which is when the supervisor started, unix time."""
        return self._words[_STARTED]

    def restarted(self) -> None:
        """Count one more."""
        self._words[_RESTARTS] += 1

    def take(self) -> tuple[int, Region] | None:
        """Give a region to a process that is to be started, with its number; None if there is none."""
        free = next((at for at in enumerate(self.regions) if at[1].state == FREE), None)
        if free is None:  # what an earlier program has left makes room: nobody can read it
            read = {self._last, *(region.layout for region in self.regions if region.state == TAKEN)}
            free = next((at for at in enumerate(self.regions) if at[1].layout not in read), None)
        if free is not None:
            free[1].clear(TAKEN)
        return free

    def end(self, region: Region) -> None:
        """Keep what a process has counted that is gone, and let go of its region."""
        if not region.layout:
            region.clear(FREE)
            return
        self._last = region.layout
        self._words[_FOLDING] += 1
        others = (other for other in self.regions if other.state == ENDED and other.layout == region.layout)
        region.leave_to(next(others, region))
        self._words[_FOLDING] += 1

    def readable(self, layout: int) -> Iterator[tuple[Region, list[float]]]:
        """Yield the regions of one layout with their figures; one that has none yet is left out."""
        found: list[tuple[Region, list[float]]] = []
        for _ in range(_TRIES):
            before = self._words[_FOLDING]
            found = [
                (region, region.figures())
                for region in self.regions
                if region.state != FREE and region.layout == layout
            ]
            if before % 2 == 0 and self._words[_FOLDING] == before:
                break
            time.sleep(_A_MOMENT)  # the supervisor may have been put aside in the midst of it
        yield from found


class Region:
    """The part of the page that is one process's; only that process writes it, and the supervisor once it is gone."""

    __slots__ = ("_at", "_memory", "_pack_quick", "_quick_at", "_quick_count", "_quick_counted", "_slow", "_words")

    def __init__(self, memory: mmap.mmap, words: memoryview[float], at: int) -> None:
        self._memory = memory
        self._words = words
        self._at = at
        self._slow = struct.Struct("0d")

        # What is written for every turn, at hand.
        self._pack_quick = struct.Struct("0d").pack_into
        self._quick_at = ((at + _QUICK) * WORD, (at + _QUICK + QUICK) * WORD)
        self._quick_count = 0
        """The count of writings of this process, which the page has too."""
        self._quick_counted = at + _QUICK_COUNT

    def __repr__(self) -> str:
        return f"<Region state {self.state}, phase {self.phase}, {self.beats} beats>"

    # How far it is.

    @property
    def state(self) -> int:
        """`FREE`, `TAKEN` or `ENDED`."""
        return int(self._words[self._at + _STATE])

    @property
    def phase(self) -> int:
        """`STARTING`, `SERVING` or `LEAVING`."""
        return int(self._words[self._at + _PHASE])

    def enter(self, phase: int) -> None:
        """Say how far we are."""
        self._words[self._at + _PHASE] = phase

    @property
    def beats(self) -> int:
        """How often its loop came by."""
        return int(self._words[self._at + _BEATS])

    def beat(self) -> None:
        """Say that our loop comes by."""
        self._words[self._at + _BEATS] += 1

    def clear(self, state: int) -> None:
        """Make it a region in which nothing is written."""
        at = self._at * WORD
        self._memory[at : at + _RULES * WORD] = bytes(_RULES * WORD)
        self._words[self._at + _STATE] = state
        self._quick_count = 0

    # What it has counted.

    @property
    def layout(self) -> int:
        """Which figures stand where: a hash; 0 until there are any."""
        return int(self._words[self._at + _LAYOUT])

    def lay_out(self, layout: int, rules: Sequence[int], quick: Sequence[float], slow: Sequence[float]) -> None:
        """Say what the figures are, and the first ones; to be called once. Nobody reads them before."""
        if len(quick) > QUICK or len(quick) + len(slow) > FIGURES:
            raise ValueError(f"{len(quick)} and {len(slow)} figures are too many")
        words, at = self._words, self._at
        for number, rule in enumerate(rules):
            words[at + _RULES + number] = rule
        words[at + _QUICK_SIZE] = len(quick)
        words[at + _SLOW_SIZE] = len(slow)
        self._pack_quick = struct.Struct(f"{len(quick)}d").pack_into
        self._slow = struct.Struct(f"{len(slow)}d")
        self.write_quick(quick)
        self.write_slow(slow)
        words[at + _LAYOUT] = layout

    def write_quick(self, figures: Sequence[float]) -> None:
        """Have these be the quick figures."""
        count = self._quick_count = self._quick_count + 1
        self._pack_quick(self._memory, self._quick_at[count & 1], *figures)
        self._words[self._quick_counted] = count

    def write_slow(self, figures: Sequence[float]) -> None:
        """Have these be the others."""
        count = int(self._words[self._at + _SLOW_COUNT]) + 1
        self._slow.pack_into(self._memory, (self._at + _SLOW + count % 2 * FIGURES) * WORD, *figures)
        self._words[self._at + _SLOW_COUNT] = count

    def figures(self) -> list[float]:
        """Return all figures, the quick ones first."""
        return self._read(_QUICK, QUICK, _QUICK_COUNT, _QUICK_SIZE) + self._read(
            _SLOW, FIGURES, _SLOW_COUNT, _SLOW_SIZE
        )

    def write_status(self, text: bytes) -> None:
        """Have this be the status; one that is too long is left out."""
        if len(text) <= STATUS_BYTES - WORD:
            count = int(self._words[self._at + _STATUS_COUNT]) + 1
            at = self._at + _STATUS + count % 2 * STATUS_BYTES // WORD
            self._memory[(at + 1) * WORD : (at + 1) * WORD + len(text)] = text
            self._words[at] = len(text)
            self._words[self._at + _STATUS_COUNT] = count

    def status(self) -> bytes:
        """Return the status; nothing before the first."""
        text = b""
        for _ in range(_TRIES):
            count = self._words[self._at + _STATUS_COUNT]
            at = self._at + _STATUS + int(count) % 2 * STATUS_BYTES // WORD
            text = self._memory[(at + 1) * WORD : (at + 1) * WORD + int(self._words[at])]
            if self._words[self._at + _STATUS_COUNT] == count:
                break
        return text if count else b""

    def leave_to(self, heir: Region) -> None:
        """Add what stays of an ended process's figures to those of `heir`, which may be this region itself."""
        rules = [int(rule) for rule in self._words[self._at + _RULES :][: self._size]]
        ours = self.figures()
        before = heir.figures() if heir is not self else [0.0] * len(ours)
        handed_on = sum(figure for figure, rule in zip(ours, rules, strict=True) if rule == OPENS)
        more = {STAYS: 0, OPENS: 0, ADDS: 1, HANDED_ON: 1}
        kept = [
            other + more[rule] * figure + (handed_on if rule == HANDED_ON else 0)
            for other, figure, rule in zip(before, ours, rules, strict=True)
        ]
        quick = int(self._words[self._at + _QUICK_SIZE])
        heir._pack_quick = struct.Struct(f"{quick}d").pack_into
        heir._slow = struct.Struct(f"{len(ours) - quick}d")
        heir._quick_count = int(heir._words[heir._quick_counted])
        heir.write_quick(kept[:quick])
        heir.write_slow(kept[quick:])
        heir._words[heir._at + _STATE] = ENDED
        if heir is not self:
            self.clear(FREE)

    @property
    def _size(self) -> int:
        return int(self._words[self._at + _QUICK_SIZE] + self._words[self._at + _SLOW_SIZE])

    def _read(self, place: int, copy: int, counted: int, size: int) -> list[float]:
        words, memory, at = self._words, self._memory, self._at
        begins = [(at + place + number * copy) * WORD for number in range(2)]
        length = int(words[at + size]) * WORD
        found = b""
        for _ in range(_TRIES):
            count = words[at + counted]
            begin = begins[int(count) & 1]
            found = memory[begin : begin + length]  # at one go: a writer comes round again within microseconds
            if words[at + counted] == count:
                break
        return [figure for (figure,) in struct.iter_unpack("d", found)] if count else [0.0] * (length // WORD)
