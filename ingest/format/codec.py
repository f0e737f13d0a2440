"""Lines to gzip, and the verdict upon a file of lines that a crash, a disk or a hand may have damaged.

Owns: the gzip member that every object is, with the number of its events in the header, and the inspection of such
members (`inspect_gzip`, which reads a stream; `tally` and `extent` only count, `each_line` leaves judging to others)
and of journal segments (`LinesInspection`, fed piece by piece).

Promises: what `encode` makes is read by zcat, Python, DuckDB and everything else that knows RFC 1952. The same lines
have the same head and the same last eight bytes, and nearly always the same between them. Inspection calls a file sound
only if it was read to its end, its CRC and length agree, and every line is a JSON object; of any other it gives what
whole lines there are. It needs memory for a few chunks, the longest line, and the compressed result, whatever the size
of the file.

Never: opens a file; takes an unreadable stream for a damaged one (`OSError` passes, it is no verdict).
All of it blocks: run it in an executor.

The file, offsets in bytes:

     0  1f 8b 08 04   gzip, deflate, FLG = FEXTRA
     4  00 00 00 00   no time of modification: the name has it
     8  04 ff         made by the fastest method, on no particular system
    10  08 00         length of the extra field
    12  45 49 04 00   subfield "EI", 4 bytes (RFC 1952, 2.3.1.1)
    16  .. .. .. ..   number of events, little endian
    20  raw deflate, then CRC-32 and length of the lines
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

import orjson
from isal import isal_zlib

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


Bytes: TypeAlias = bytes | bytearray | memoryview

HEAD_BYTES = 20
LEVEL = 1
MAX_LINE_BYTES = 64 * 1024 * 1024
MOST_INFLATED = 0xFFFFFFFF
"""Bytes of lines that the trailer of a member can tell."""

_SIGNATURE = b"\x1f\x8b\x08\x04\x00\x00\x00\x00\x04\xff\x08\x00EI\x04\x00"
_COUNT = struct.Struct("<I")
_TRAILER = struct.Struct("<II")
_RAW = -15
_GZIP = 31
_CHUNK = 64 * 1024
_INFLATED = 256 * 1024
_UINT32 = 0xFFFFFFFF
_FLAGS_AT = 3
_KNOWN_FLAGS = b"\x1f"
BadGzip: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # the stub takes the class for an instance


def encode(data: Bytes, events: int, level: int = LEVEL) -> bytes:
    """Compress `events` lines to one gzip member."""
    return b"".join(
        (
            _SIGNATURE,
            _COUNT.pack(events),
            isal_zlib.compress(data, level, wbits=_RAW),
            _TRAILER.pack(isal_zlib.crc32(data), len(data) & _UINT32),
        )
    )


def lines_of(body: bytes) -> bytes:
    """Return the lines that `encode` was given; `BadGzip` if they are damaged."""
    lines: bytes = isal_zlib.decompress(body, _GZIP)
    return lines


def event_count(head: bytes) -> int | None:
    """Return how many events a file's first `HEAD_BYTES` declare; None if `encode` did not write them."""
    if len(head) < HEAD_BYTES or not head.startswith(_SIGNATURE):
        return None
    count: int = _COUNT.unpack_from(head, len(_SIGNATURE))[0]
    return count


class Tally(NamedTuple):
    """The lines of a file, and how many bytes the longest of them has."""

    lines: int
    longest: int


class Extent(NamedTuple):
    """The lines of an object as a reader gets them, of all its members.

    `crc32` is that of the first bytes, as many as were asked for. Not `is_whole`: gzip that is damaged, or a line or
    lines that no batch could hold; the rest says nothing then.
    """

    lines: int
    size: int
    crc32: int
    is_whole: bool


class Stream(Protocol):
    """Bytes to read, a file's or an object's."""

    def read(self, size: int, /) -> bytes:
        """Read at most `size` bytes; nothing at the end."""

    def seek(self, offset: int, /) -> object:
        """Read on from `offset`, counted from the beginning."""

    def tell(self) -> int:
        """Return where the next read begins."""


@dataclass(slots=True)
class Inspection:
    """The content of a file. `events` counts its sound lines; `first_ts` and `last_ts` are theirs, 0 without any.

    `body` holds these lines encoded anew; None if there are none, or the file is as `encode` would make it.
    """

    sound: bool
    events: int
    bad_lines: int
    torn_tail: bool
    first_ts: int
    last_ts: int
    body: bytes | None

    @property
    def is_good_as_it_is(self) -> bool:
        """Whether the bytes of a gzip file, as they lie there, are what is to be stored."""
        return self.body is None and self.events > 0


def inspect_gzip(file: Stream, *, salvage: bool = True) -> Inspection:
    """Verify a gzip stream whole. With `salvage`, `body` holds its sound lines, encoded anew, if it is not sound.

    So it does if the file is sound, and its head does not tell how many lines there are: nothing guards a head. A line
    cut off by damage is a bad line; `torn_tail` is set when that is how the file ends. Behind damage, reading goes on
    at the next member that `encode` wrote.
    """
    head = file.read(HEAD_BYTES)
    file.seek(0)
    lines = _Lines(keep=False)
    try:
        for inflated in _verified(file):
            lines.feed(inflated)
    except (BadGzip, EOFError):
        whole = False
    else:
        whole = True
        lines.end()
    events, sound = lines.events, whole and lines.bad == 0
    if sound and (event_count(head) == events or not salvage):
        return lines.result(sound=True, torn_tail=False)

    # Damaged files are rare, so only they pay for the second, slower reading that gets out all there is.
    lines = _Lines(keep=salvage)
    torn_tail = False
    for salvaged in _salvaged(file):
        if salvaged is None:
            torn_tail = lines.cut()
        else:
            torn_tail = False
            lines.feed(salvaged)
    lines.end()
    return lines.result(sound=sound and lines.events == events, torn_tail=torn_tail)


def tally(file: Stream) -> Tally | None:
    """Read a gzip stream whole and count its lines, whatever is in them; None if it is not whole gzip."""
    lines = longest = carried = 0
    try:
        for inflated in _verified(file):
            first, *others = inflated.split(b"\n")
            carried += len(first)
            if others:
                longest = max(longest, carried, *map(len, others))
                lines += len(others)
                carried = len(others[-1])
    except (BadGzip, EOFError):
        return None
    return Tally(lines + (carried > 0), max(longest, carried))


def each_line(file: Stream) -> Iterator[bytes | None]:
    """Yield the lines of a gzip stream, one after the other; None for one of more than `MAX_LINE_BYTES`.

    Raises `BadGzip` or `EOFError` where the stream is not whole gzip.
    """
    carry = bytearray()
    overlong = False
    for inflated in _verified(file):
        first, *others = inflated.split(b"\n")
        if overlong or len(carry) + len(first) > MAX_LINE_BYTES:
            overlong = True
            carry.clear()
        else:
            carry += first
        if not others:
            continue
        yield None if overlong else bytes(carry)
        yield from others[:-1]
        carry, overlong = bytearray(others[-1]), False
    if overlong or carry:
        yield None if overlong else bytes(carry)


def extent(file: Stream, begin: int, most_lines: int, most_bytes: int = MOST_INFLATED) -> Extent:
    """Inflate a stream, and tell how far its lines go and the CRC-32 of their first `begin` bytes.

    Reading ends as soon as there are more lines, or more bytes, than there may be: what inflates to a thousand times
    its size costs no more than what was expected of it. Nothing but one piece is held.
    """
    lines = size = crc32 = carried = 0
    try:
        for inflated in _verified(file):
            if size < begin:
                crc32 = isal_zlib.crc32(memoryview(inflated)[: begin - size], crc32)
            size += len(inflated)
            lines += inflated.count(b"\n")
            at = inflated.rfind(b"\n")
            carried = carried + len(inflated) if at < 0 else len(inflated) - at - 1
            if carried > MAX_LINE_BYTES or size > MOST_INFLATED:
                return Extent(lines, size, crc32, is_whole=False)
            if lines + (carried > 0) > most_lines or size > most_bytes:
                break
    except (BadGzip, EOFError):
        return Extent(lines, size, crc32, is_whole=False)
    return Extent(lines + (carried > 0), size, crc32, is_whole=True)


class LinesInspection:
    """Verifies a journal segment that comes in pieces; `body` holds its sound lines, encoded, None if there are none.

    A last line without its newline was never acknowledged: it is no bad line, and `torn_tail` tells of it.
    """

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines = _Lines(keep=True)

    def feed(self, data: bytes) -> None:
        """Judge the lines that end in `data`."""
        self._lines.feed(data)

    def end(self) -> Inspection:
        """Give the verdict; to be called once."""
        torn_tail = self._lines.drop_tail()
        return self._lines.result(sound=self._lines.bad == 0, torn_tail=torn_tail)


class _Lines:
    """Takes a stream in pieces, judges each line as it ends, and keeps the sound ones compressed."""

    __slots__ = ("_carry", "_crc", "_deflate", "_overlong", "_parts", "_size", "bad", "events", "first_ts", "last_ts")

    def __init__(self, *, keep: bool) -> None:
        self.events = 0
        self.bad = 0
        self.first_ts: int | None = None
        self.last_ts = 0
        self._carry = bytearray()
        self._overlong = False
        self._deflate = isal_zlib.compressobj(LEVEL, wbits=_RAW) if keep else None
        self._parts: list[bytes] = []
        self._crc = 0
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Judge the lines that end in `data`; carry what follows the last newline."""
        head, newline, rest = data.partition(b"\n")
        self._extend(head)
        if not newline:
            return
        sound = self._finish([])
        *lines, tail = rest.split(b"\n")
        for line in lines:
            self._judge(line, sound)
        self._keep(sound)
        self._extend(tail)

    def end(self) -> None:
        """Close a stream that is whole: what follows the last newline is a line like any other."""
        if self._carry or self._overlong:
            self._keep(self._finish([]))

    def cut(self) -> bool:
        """Note that the stream breaks here: what follows the last newline is a bad line. True if there was anything."""
        torn = self.drop_tail()
        self.bad += torn
        return torn

    def drop_tail(self) -> bool:
        """Forget what follows the last newline; True if there was anything."""
        dropped = bool(self._carry) or self._overlong
        self._carry.clear()
        self._overlong = False
        return dropped

    def result(self, *, sound: bool, torn_tail: bool) -> Inspection:
        """Give the verdict; to be called once, at the end."""
        return Inspection(
            sound=sound,
            events=self.events,
            bad_lines=self.bad,
            torn_tail=torn_tail,
            first_ts=self.first_ts or 0,
            last_ts=self.last_ts,
            body=self._body(),
        )

    def _extend(self, part: bytes) -> None:
        if len(self._carry) + len(part) > MAX_LINE_BYTES:
            self._overlong = True
            self._carry.clear()
        elif not self._overlong:
            self._carry += part

    def _finish(self, sound: list[bytes]) -> list[bytes]:
        if self._overlong:
            self.bad += 1
            self._overlong = False
        else:
            self._judge(bytes(self._carry), sound)
        self._carry.clear()
        return sound

    def _judge(self, line: bytes, sound: list[bytes]) -> None:
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError:
            self.bad += 1
            return
        if type(event) is not dict:
            self.bad += 1
            return
        self.events += 1
        sound.append(line)
        ts = event.get("ts")
        if type(ts) is int:
            self.last_ts = ts
            if self.first_ts is None:
                self.first_ts = ts

    def _keep(self, sound: list[bytes]) -> None:
        if self._deflate is None or not sound:
            return
        sound.append(b"")
        data = b"\n".join(sound)
        self._crc = isal_zlib.crc32(data, self._crc)
        self._size += len(data)
        self._parts.append(self._deflate.compress(data))

    def _body(self) -> bytes | None:
        if self._deflate is None or self.events == 0:
            return None
        head = _SIGNATURE + _COUNT.pack(self.events)
        trailer = _TRAILER.pack(self._crc, self._size & _UINT32)
        return b"".join((head, *self._parts, self._deflate.flush(), trailer))


def _verified(file: Stream) -> Iterator[bytes]:
    """Inflate every member; raise `BadGzip` or `EOFError` at the first byte that is not whole gzip."""
    pending = file.read(_CHUNK)
    while True:
        # isal lets reserved flags pass; gzip and others, rightly, do not (RFC 1952, 2.3.1.2).
        if len(pending) <= _FLAGS_AT:
            pending += file.read(_CHUNK)
        if pending[_FLAGS_AT : _FLAGS_AT + 1] > _KNOWN_FLAGS:
            raise BadGzip
        pending = yield from _verified_member(file, pending)
        pending = pending or file.read(_CHUNK)
        if not pending:
            return


def _verified_member(file: Stream, chunk: bytes) -> Generator[bytes, None, bytes]:
    """Inflate one member that begins with `chunk`; return what was read beyond it."""
    inflate = isal_zlib.decompressobj(wbits=_GZIP)
    while True:
        inflated = inflate.decompress(chunk, _INFLATED)
        if inflated:
            yield inflated
        if inflate.eof:
            return inflate.unused_data
        # With no input left the decompressor may still hold output; only when it gives none is the member cut off.
        if not chunk and not inflated:
            raise EOFError
        chunk = inflate.unconsumed_tail or file.read(_CHUNK)


def _salvaged(file: Stream) -> Iterator[bytes | None]:
    """Inflate what can be inflated; None marks each place where the stream breaks."""
    start: int | None = 0
    while start is not None:
        damaged = yield from _salvaged_members(file, start)
        if damaged is None:
            return
        yield None
        if _is_whole_behind_its_head(file, damaged):
            yield from _deflated(file, damaged + HEAD_BYTES)
        # A member that was cut off may have swallowed the next one's head as its own data, so look from its own start.
        start = _find_member(file, damaged + 1)


def _is_whole_behind_its_head(file: Stream, start: int) -> bool:
    """Tell whether what follows the head of a member, were it as long as ours, agrees with its CRC-32 and length."""
    crc32 = size = 0
    inflating = _deflated(file, start + HEAD_BYTES)
    while True:
        try:
            inflated = next(inflating)
        except StopIteration as end:
            trailer: bytes = end.value
            return trailer == _TRAILER.pack(crc32, size & _UINT32)
        crc32 = isal_zlib.crc32(inflated, crc32)
        size += len(inflated)


def _deflated(file: Stream, start: int) -> Generator[bytes, None, bytes]:
    """Inflate raw deflate from `start` on, as far as it can be; return the trailer behind it, if there is one."""
    file.seek(start)
    inflate = zlib.decompressobj(wbits=_RAW)
    chunk = b""
    while not inflate.eof:
        chunk = inflate.unconsumed_tail or file.read(_CHUNK)
        try:
            inflated = inflate.decompress(chunk, _INFLATED)
        except zlib.error:
            return b""
        if inflated:
            yield inflated
        elif not chunk:
            return b""
    rest = inflate.unused_data
    return (rest + file.read(_TRAILER.size))[: _TRAILER.size]


def _salvaged_members(file: Stream, start: int) -> Generator[bytes, None, int | None]:
    """Inflate from `start` on; return where the member begins that is damaged, or None if none is."""
    file.seek(start)
    inflate = zlib.decompressobj(wbits=_GZIP)
    pending = b""
    while True:
        chunk = pending or file.read(_CHUNK)
        before = inflate.copy()
        try:
            inflated = inflate.decompress(chunk, _INFLATED)
        except zlib.error:
            yield from _bytewise(before, chunk)
            return start
        if inflated:
            yield inflated
        if inflate.eof:
            pending = inflate.unused_data
            start = file.tell() - len(pending)
            pending = pending or file.read(_CHUNK)
            if not pending:
                return None
            inflate = zlib.decompressobj(wbits=_GZIP)
            continue
        pending = inflate.unconsumed_tail
        if not chunk and not inflated:
            return start


def _bytewise(inflate: zlib._Decompress, chunk: bytes) -> Iterator[bytes]:
    """Inflate up to the very byte that cannot be: an error throws away the output of the call it is raised by."""
    for at in range(len(chunk)):
        try:
            yield inflate.decompress(chunk[at : at + 1])
        except zlib.error:
            return


def _find_member(file: Stream, start: int) -> int | None:
    """Offset of the first head written by `encode` at or behind `start`."""
    file.seek(start)
    offset, window = start, b""
    while chunk := file.read(_CHUNK):
        window += chunk
        found = window.find(_SIGNATURE)
        if found >= 0:
            return offset + found
        keep = len(_SIGNATURE) - 1
        offset += max(len(window) - keep, 0)
        window = window[-keep:]
    return None
