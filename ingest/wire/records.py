"""The records of one TLS connection, as they came: what OpenSSL has not been given yet.

Owns where a record ends, and how many make one step. Promises that a step is bounded in records and in bytes, because
each record costs as much as a small event, whether it says something or not (RFC 8446 §4.6.3 allows any number of key
updates, of 27 bytes each); and that only whole records are given out, so that what is left here is all that is held.
Never looks into a record. Bytes that are no record go to OpenSSL as they are: it says what is wrong with them.
"""

from __future__ import annotations

from typing import Final

RECORD: Final = 16384
"""Bytes that a record says at most (RFC 8446 §5.1)."""
LONGEST_RECORD: Final = 5 + RECORD + 2048
"""Bytes that it takes at most (RFC 5246 §6.2.3; TLS 1.3 allows less)."""
STEP_RECORDS: Final = 64
STEP_BYTES: Final = 65536
"""A connection has so much read in a step, at most. Bytes cost little: 64 KiB in long records as much as eight short
ones."""

_HEADER: Final = 5
_FIRST_TYPE, _LAST_TYPE = 20, 24


def is_one_record(data: bytes) -> bool:
    """Tell whether a read is one whole record, which most are."""
    return len(data) > _HEADER and len(data) == _HEADER + (data[3] << 8 | data[4])


class Records:
    """Bytes of whole records that wait for their step, and of one that has not come whole."""

    __slots__ = ("_at", "_data")

    def __init__(self) -> None:
        self._data = b""
        self._at = 0
        """How much of it has been given out. The rest is not copied for that."""

    def __len__(self) -> int:
        return len(self._data) - self._at

    def __repr__(self) -> str:
        return f"<Records {len(self)} bytes{', whole' * self.is_whole}>"

    @property
    def is_whole(self) -> bool:
        """There is something for a step."""
        return self._end(self._at) > 0

    def add(self, data: bytes) -> None:
        """Take in what came."""
        self._data = self._data[self._at :] + data if self._data else data
        self._at = 0

    def take(self) -> tuple[bytes, int]:
        """Give out the records of a step, and how many they are."""
        begin = end = self._at
        count = 0
        while count < STEP_RECORDS:
            after = self._end(end)
            if not after or (count and after - begin > STEP_BYTES):
                break
            end = after
            count += 1
        taken = self._data[begin:end]
        self._at = end
        if end == len(self._data):
            self.clear()
        return taken, count

    def clear(self) -> None:
        """Let go of everything."""
        self._data = b""
        self._at = 0

    def _end(self, begin: int) -> int:
        """Return where the record ends that begins there; 0 if that has not come."""
        data = self._data
        size = len(data)
        if size - begin < _HEADER:
            return 0
        length = _HEADER + (data[begin + 3] << 8 | data[begin + 4])
        if length > LONGEST_RECORD or not _FIRST_TYPE <= data[begin] <= _LAST_TYPE:
            return size
        return begin + length if begin + length <= size else 0
