"""What `encode` writes everything can read, and what damage leaves of it `inspect` finds, in bounded memory."""

from __future__ import annotations

import gzip
import io
import random
import shutil
import subprocess
import tracemalloc
import zlib

import duckdb
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.disk import Filesystem, Reader
from ingest.format import codec
from ingest.format.codec import HEAD_BYTES, Inspection, LinesInspection, encode, event_count, inspect_gzip

EVENTS = 3000


def make_lines(n: int = EVENTS, *, seed: int = 1) -> list[bytes]:
    chance = random.Random(seed)
    return [b'{"ts":%d,"ip":"::1","body":"%x"}\n' % (1_764_720_000 + i, chance.getrandbits(256)) for i in range(n)]


LINES = make_lines()
TEXT = b"".join(LINES)
MEMBER = encode(TEXT, EVENTS)


@pytest.fixture
def inspect():
    def inspect(data: bytes, *, salvage: bool = True) -> Inspection:
        return inspect_gzip(io.BytesIO(data), salvage=salvage)

    return inspect


def salvaged(inspection: Inspection) -> list[bytes]:
    """The lines of a salvaged body, which must be a sound file of its own."""
    assert inspection.body is not None
    lines = gzip.decompress(inspection.body).splitlines(keepends=True)
    assert event_count(inspection.body) == len(lines) == inspection.events
    return lines


# ------------------------------------------------------------------------------------------------ what is written


def test_zcat_reads_it():
    zcat = shutil.which("zcat")
    assert zcat
    assert subprocess.run([zcat], input=MEMBER, capture_output=True, check=True).stdout == TEXT


def test_gzip_t_finds_it_whole():
    assert subprocess.run(["gzip", "-t"], input=MEMBER, capture_output=True, check=False).returncode == 0


def test_python_reads_it():
    assert gzip.decompress(MEMBER) == TEXT


@pytest.mark.parametrize("files", [1, 2])
def test_duckdb_reads_it(tmp_path, files):
    for number in range(files):
        (tmp_path / f"{number}.jsonl.gz").write_bytes(MEMBER)
    with duckdb.connect() as database:
        query = f"select count(*), min(ts), count(distinct body) from read_json('{tmp_path}/*.jsonl.gz')"
        assert database.sql(query).fetchall() == [(files * EVENTS, 1_764_720_000, EVENTS)]


def test_the_head_declares_the_number_of_events():
    assert event_count(MEMBER[:HEAD_BYTES]) == EVENTS
    assert event_count(encode(b"", 0)) == 0
    assert event_count(encode(b"", 0xFFFFFFFF)) == 0xFFFFFFFF


def test_the_head_is_what_rfc_1952_calls_an_extra_field():
    magic, method, flags = MEMBER[:2], MEMBER[2], MEMBER[3]
    assert (magic, method, flags) == (b"\x1f\x8b", 8, 4)
    length = int.from_bytes(MEMBER[10:12], "little")
    assert 12 + length == HEAD_BYTES
    assert MEMBER[12:14] == b"EI"
    assert int.from_bytes(MEMBER[14:16], "little") == length - 4


@pytest.mark.parametrize(
    "head",
    [b"", MEMBER[: HEAD_BYTES - 1], gzip.compress(TEXT)[:HEAD_BYTES], b"\0" * HEAD_BYTES, MEMBER[1 : HEAD_BYTES + 1]],
    ids=["empty", "short", "another program's gzip", "zeros", "shifted"],
)
def test_only_our_own_head_declares_a_number(head):
    assert event_count(head) is None


@pytest.mark.parametrize("text", [TEXT, bytearray(TEXT), memoryview(TEXT + b"rest")[: len(TEXT)]])
def test_the_same_lines_have_the_same_head_and_end_in_whatever_buffer(text):
    member = encode(text, EVENTS)
    assert (member[:HEAD_BYTES], member[-8:]) == (MEMBER[:HEAD_BYTES], MEMBER[-8:])
    assert gzip.decompress(member) == TEXT


@given(data=st.binary(max_size=5000), level=st.integers(0, 3))
def test_every_text_comes_back(data, level):
    assert gzip.decompress(encode(data, 0, level)) == data


# ------------------------------------------------------------------------------------------------ sound files


def test_a_sound_file_is_sound(inspect):
    assert inspect(MEMBER) == Inspection(
        sound=True,
        events=EVENTS,
        bad_lines=0,
        torn_tail=False,
        first_ts=1_764_720_000,
        last_ts=1_764_720_000 + EVENTS - 1,
        body=None,
    )


def test_several_members_are_one_file(inspect):
    found = inspect(MEMBER + MEMBER)
    assert (found.sound, found.events) == (True, 2 * EVENTS)


def test_a_line_may_run_from_one_member_into_the_next(inspect):
    middle = len(TEXT) // 2
    assert TEXT[middle - 1 : middle] != b"\n"
    found = inspect(encode(TEXT[:middle], 0) + encode(TEXT[middle:], 0))
    assert (found.sound, found.events) == (True, EVENTS)


def test_another_programs_gzip_with_a_name_is_sound(inspect):
    buffer = io.BytesIO()
    with gzip.GzipFile("name", "wb", fileobj=buffer) as file:
        file.write(TEXT)
    assert inspect(buffer.getvalue()).sound


def test_a_whole_file_may_lack_the_last_newline(inspect):
    found = inspect(gzip.compress(TEXT[:-1]))
    assert (found.sound, found.events, found.torn_tail) == (True, EVENTS, False)


def test_a_file_of_no_lines_is_sound_and_holds_nothing(inspect):
    found = inspect(encode(b"", 0))
    assert (found.sound, found.events, found.first_ts, found.body) == (True, 0, 0, None)


def test_a_line_longer_than_any_chunk_is_sound(inspect):
    line = orjson.dumps({"ts": 5, "body": random.Random(1).randbytes(3_000_000).hex()}) + b"\n"
    found = inspect(encode(line * 2, 2))
    assert (found.sound, found.events, found.first_ts) == (True, 2, 5)


# ------------------------------------------------------------------------------------------------ damaged files


@pytest.mark.parametrize("left", [0, 1, 10, HEAD_BYTES, 100, len(MEMBER) // 2, len(MEMBER) - 9, len(MEMBER) - 8])
def test_of_a_truncated_file_the_lines_before_the_cut_are_salvaged(inspect, left):
    found = inspect(MEMBER[:left])
    assert not found.sound
    # What raw deflate gives out of the same bytes is all there is to have.
    there = zlib.decompressobj(wbits=-15).decompress(MEMBER[HEAD_BYTES:left])
    whole = there[: there.rfind(b"\n") + 1]
    assert found.events == whole.count(b"\n")
    assert found.torn_tail is (whole != there)
    assert found.bad_lines == found.torn_tail
    if found.events:
        assert b"".join(salvaged(found)) == whole
    else:
        assert found.body is None


@pytest.mark.parametrize("left", [len(MEMBER) - 1, len(MEMBER) - 4, len(MEMBER) - 7])
def test_a_file_that_lacks_only_its_end_is_not_sound_and_loses_no_line(inspect, left):
    found = inspect(MEMBER[:left])
    assert (found.sound, found.events, found.bad_lines, found.torn_tail) == (False, EVENTS, 0, False)
    assert salvaged(found) == LINES


@pytest.mark.parametrize("at", [-8, -5, -4, -1], ids=["crc", "crc", "length", "length"])
def test_a_wrong_crc_or_length_is_not_sound(inspect, at):
    damaged = bytearray(MEMBER)
    damaged[at] ^= 1
    found = inspect(bytes(damaged))
    assert not found.sound
    assert salvaged(found) == LINES


@pytest.mark.parametrize(
    "garbage", [b"", b"\0" * 5000, b"garbage" * 9999, b"\x1f\x8b", b"\x1f\x8b\x08\x04" + b"\xff" * 99]
)
def test_garbage_is_not_sound_and_gives_no_line(inspect, garbage):
    found = inspect(garbage)
    assert (found.sound, found.events, found.body) == (False, 0, None)


def test_a_bad_line_in_the_middle_is_left_out(inspect):
    lines = [*LINES[:10], b'{"ts":1,"body":\n', b"[1]\n", b"null\n", b"7\n", b"\n", b'{"a":"\xff"}\n', *LINES[10:]]
    found = inspect(encode(b"".join(lines), len(lines)))
    assert (found.sound, found.events, found.bad_lines, found.torn_tail) == (False, EVENTS, 6, False)
    assert salvaged(found) == LINES


def test_what_follows_damage_is_found_at_the_next_member(inspect):
    found = inspect(MEMBER + MEMBER[:1000] + MEMBER)
    there = zlib.decompressobj(wbits=-15).decompress(MEMBER[HEAD_BYTES:1000])
    assert found.events == 2 * EVENTS + there.count(b"\n")
    lines = salvaged(found)
    assert lines[:EVENTS] == LINES
    assert lines[-EVENTS:] == LINES


def test_a_member_behind_garbage_is_found_across_the_edge_of_a_chunk(inspect):
    for size in range(codec._CHUNK - HEAD_BYTES - 2, codec._CHUNK + 2):
        found = inspect(b"x" * size + encode(LINES[0], 1))
        assert (found.sound, found.events) == (False, 1)


def test_zeros_behind_a_whole_member_are_not_sound_and_cost_no_line(inspect):
    found = inspect(MEMBER + b"\0" * 4096)
    assert (found.sound, found.events, found.bad_lines) == (False, EVENTS, 0)


def test_without_salvage_there_is_a_verdict_and_no_body(inspect):
    found = inspect(MEMBER[:-1], salvage=False)
    assert (found.sound, found.events, found.body) == (False, EVENTS, None)


def test_a_salvaged_body_is_sound(inspect):
    body = inspect(MEMBER[: len(MEMBER) // 2]).body
    assert body is not None
    again = inspect(body)
    assert again.sound
    assert again.events == event_count(body)


def test_a_salvaged_body_is_what_encode_makes_of_its_lines(inspect):
    assert gzip.decompress(inspect(MEMBER[:-1]).body or b"") == TEXT


@settings(max_examples=300)
@given(data=st.data(), kept=st.integers(0, 40))
def test_no_damage_makes_up_a_line_or_passes_for_sound(data, kept):
    text = b"".join(LINES[:kept])
    member = bytearray(encode(text, kept))
    at = data.draw(st.integers(0, len(member) - 1))
    member[at] ^= data.draw(st.integers(1, 255))
    found = inspect_gzip(io.BytesIO(member))
    if found.sound:
        # Some bits mean nothing: the time, the kind of compressor, the count, the padding behind the last symbol.
        assert gzip.decompress(bytes(member)) == text
        assert subprocess.run(["gzip", "-t"], input=bytes(member), capture_output=True, check=False).returncode == 0
        assert found.events == kept
    elif found.body is not None:
        assert gzip.decompress(found.body).count(b"\n") == found.events


@pytest.mark.parametrize("members", [1, 2])
def test_reserved_flags_which_gzip_refuses_are_not_sound_and_cost_no_line(inspect, members):
    damaged = bytearray(MEMBER)
    damaged[3] |= 0x40
    assert subprocess.run(["gzip", "-t"], input=bytes(damaged), capture_output=True, check=False).returncode != 0
    found = inspect(MEMBER * (members - 1) + bytes(damaged))
    assert (found.sound, found.events) == (False, members * EVENTS)
    assert salvaged(found) == LINES * members


@settings(max_examples=200)
@given(
    lines=st.lists(
        st.one_of(
            st.dictionaries(st.text(max_size=5), st.integers(-9, 9), max_size=3).map(orjson.dumps),
            st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")),
        ),
        max_size=30,
    ),
    members=st.integers(1, 4),
)
def test_lines_are_judged_one_by_one(lines, members):
    sound = []
    for line in lines:
        try:
            if type(orjson.loads(line)) is dict:
                sound.append(line + b"\n")
        except orjson.JSONDecodeError:
            pass
    text = b"".join(line + b"\n" for line in lines)
    step = len(text) // members + 1
    member = b"".join(encode(text[at : at + step], 0) for at in range(0, max(len(text), 1), step))
    found = inspect_gzip(io.BytesIO(member))
    assert (found.events, found.bad_lines) == (len(sound), len(lines) - len(sound))
    assert found.sound is (len(sound) == len(lines))
    if found.body is not None:
        assert salvaged(found) == sound


# ------------------------------------------------------------------------------------------------ journal segments


def inspect_lines(file) -> Inspection:
    inspection = LinesInspection()
    while piece := file.read(256 * 1024):
        inspection.feed(piece)
    return inspection.end()


@pytest.fixture
def segment():
    def inspect(data: bytes) -> Inspection:
        return inspect_lines(io.BytesIO(data))

    return inspect


def test_a_whole_segment_gives_what_the_batch_would_have_given(segment):
    found = segment(TEXT)
    assert (found.sound, found.events, found.bad_lines, found.torn_tail) == (True, EVENTS, 0, False)
    assert (found.first_ts, found.last_ts) == (1_764_720_000, 1_764_720_000 + EVENTS - 1)
    assert salvaged(found) == LINES


@pytest.mark.parametrize("tail", [b"{", b'{"ts":1,"body":"x"}', b"\0" * 4096, LINES[0][:-1]])
def test_a_torn_last_line_is_dropped_and_is_no_bad_line(segment, tail):
    found = segment(TEXT + tail)
    assert (found.sound, found.events, found.bad_lines, found.torn_tail) == (True, EVENTS, 0, True)
    assert salvaged(found) == LINES


def test_another_bad_line_is_counted_and_left_out(segment):
    found = segment(b"".join(LINES[:5]) + b"\0\0\0\n" + b"".join(LINES[5:]))
    assert (found.sound, found.events, found.bad_lines, found.torn_tail) == (False, EVENTS, 1, False)
    assert salvaged(found) == LINES


@pytest.mark.parametrize("text", [b"", b"{", b"\0" * 100, b"\n\n"])
def test_a_segment_without_a_sound_line_has_no_body(segment, text):
    found = segment(text)
    assert (found.events, found.body) == (0, None)


def test_times_are_those_of_the_sound_lines(segment):
    found = segment(b'{"a":1}\n{"ts":"x"}\n{"ts":7}\n[9]\n{"ts":3}\n{"ts":true}\n{"ts":99')
    assert (found.first_ts, found.last_ts, found.events) == (7, 3, 5)


@settings(max_examples=100)
@given(cut=st.integers(0, len(b"".join(LINES[:50]))))
def test_a_segment_cut_anywhere_keeps_its_whole_lines(cut):
    text = b"".join(LINES[:50])[:cut]
    found = inspect_lines(io.BytesIO(text))
    assert (found.events, found.bad_lines) == (text.count(b"\n"), 0)
    assert found.torn_tail is not (text.endswith(b"\n") or not text)


# ------------------------------------------------------------------------------------------------ bounds, errors


@pytest.mark.parametrize("kind", ["segment", "gzip"])
def test_a_line_beyond_the_limit_is_bad_and_does_not_hide_the_next(monkeypatch, segment, inspect, kind):
    monkeypatch.setattr(codec, "MAX_LINE_BYTES", 10_000)
    long = b'{"body":"' + b"x" * 1_000_000 + b'"}\n'
    text = LINES[0] + long + LINES[1] + long + long + LINES[2]
    found = segment(text) if kind == "segment" else inspect(encode(text, 6))
    assert (found.sound, found.events, found.bad_lines, found.torn_tail) == (False, 3, 3, False)


@pytest.mark.parametrize("kind", ["sound", "damaged"])
def test_memory_does_not_grow_with_the_file(tmp_path, kind):
    path = tmp_path / "large"
    text = b'{"ts":1,"body":"' + b"x" * 1000 + b'"}\n'
    member = encode(text * 20_000, 20_000)
    path.write_bytes(member * 5 if kind == "sound" else member * 5 + b"\0")
    tracemalloc.start()
    try:
        with path.open("rb") as file:
            found = inspect_gzip(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.events == 100_000
    assert peak < 8 * 1024 * 1024  # of 100 MB of lines


def test_a_file_that_cannot_be_read_is_no_verdict(tmp_path):
    with pytest.raises(IsADirectoryError), Reader(Filesystem(), tmp_path) as file:
        inspect_gzip(file)


@pytest.mark.parametrize("reads", range(4))
def test_an_error_of_the_disk_in_the_middle_is_no_verdict(reads):
    class Failing(io.BytesIO):
        left = reads

        def read(self, size: int | None = -1, /) -> bytes:
            if not self.left:
                raise OSError(5, "Input/output error")
            self.left -= 1
            return super().read(size)

    data = random.Random(1).randbytes(1_000_000)
    with pytest.raises(OSError, match="Input/output"):
        inspect_gzip(Failing(data))


@pytest.mark.parametrize("end", [b"", b"\n"], ids=["no newline at the end", "a newline"])
@pytest.mark.parametrize("lengths", [[1], [0, 0, 5], [300_000, 3, 300_000], [70_000] * 9, [1] * 5000])
def test_each_line_comes_as_it_was_written_and_one_too_long_as_none(monkeypatch, lengths, end):
    monkeypatch.setattr(codec, "MAX_LINE_BYTES", 280_000)
    lines = [b"%c" % (97 + number % 26) * length for number, length in enumerate(lengths)]
    body = b"\n".join(lines) + end
    half = len(body) // 2
    members = gzip.compress(body[:half]) + gzip.compress(body[half:])
    for data in (encode(body, len(lines)), members):
        told = list(codec.each_line(io.BytesIO(data)))
        assert told == [None if len(line) > 280_000 else line for line in lines]
        assert len(told) == codec.tally(io.BytesIO(data)).lines
    with pytest.raises((codec.BadGzip, EOFError)):
        list(codec.each_line(io.BytesIO(members[:-1])))
