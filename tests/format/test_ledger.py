"""A ledger's lines: made, taken apart, torn, and what all lines about one key come to."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.format import codec, ledger
from ingest.format.ledger import Entry, Fate
from tests.stand_ins.letters import body, key, lines

KEY = key(7)
STORED = ledger.stored(KEY, 5, body(5))


def test_a_line_has_size_and_crc_of_the_lines_and_not_of_their_gzip():
    text = lines(5)
    made = ledger.stored(KEY, 5, codec.encode(text, 5))
    assert made == ledger.stored(KEY, 5, codec.encode(text, 5, level=3))
    assert ledger.parse(made[:-1]) == Entry(KEY, 5, len(text), zlib.crc32(text), stored=True)


def test_a_number_that_became_none_says_why():
    assert ledger.parse(ledger.void(KEY)[:-1]) == Entry(KEY)
    assert ledger.parse(ledger.dropped(KEY, "evicted", 3)[:-1]) == Entry(KEY, 3, reason="evicted")
    assert ledger.dropped(KEY, "corrupt", 0) == ledger.void(KEY)
    assert ledger.parse(ledger.dropped(KEY, "discarded", None)[:-1]) == Entry(KEY, 0, reason="discarded")


@pytest.mark.parametrize(
    "line",
    [b"", b"\0\0\0\0", KEY.encode(), b"\xff void", b"%b stored 5" % KEY.encode(), b"%b 5 6 7" % KEY.encode(), STORED],
)
def test_what_is_no_line_is_not_taken_for_one(line):
    assert ledger.parse(line) is None


EVICTED, CORRUPT = Entry(KEY, 5, reason="evicted"), Entry(KEY, 2, reason="corrupt")
SHORT, LONG, VOID = Entry(KEY, 3, stored=True), Entry(KEY, 5, stored=True), Entry(KEY)


@pytest.mark.parametrize(
    ("told", "fate"),
    [
        ([VOID], Fate(None, {})),
        ([SHORT, LONG, SHORT], Fate(LONG, {})),
        ([EVICTED], Fate(None, {"evicted": 5})),
        ([EVICTED, LONG], Fate(LONG, {})),
        ([SHORT, CORRUPT, CORRUPT], Fate(SHORT, {"corrupt": 2})),
        ([EVICTED, CORRUPT], Fate(None, {"evicted": 5})),
        ([VOID, SHORT], Fate(SHORT, {})),
    ],
)
def test_all_lines_about_a_key_come_to_one_fate_in_whatever_order_they_are_read(told, fate):
    assert ledger.settle(told) == {KEY: fate}
    assert ledger.settle(reversed(told)) == {KEY: fate}


@given(st.integers(0, 400))
def test_a_file_cut_anywhere_says_nothing_that_was_not_written(at):
    whole = STORED + ledger.dropped(key(8), "evicted", 500) + ledger.void(key(9))
    *left, _ = whole[:at].split(b"\n")
    assert [ledger.parse(line) for line in left] == [ledger.parse(line) for line in whole.split(b"\n")[: len(left)]]
