"""Instants, keys and files: what is named once is found again, whatever the clock does."""

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.format.keys import (
    KeyFactory,
    Partition,
    dlq_key,
    dlq_path,
    parse_key,
    partition_of,
    quarantine_key,
    segment_key,
    segment_path,
    unix_of,
)

TOKEN = "0123456789abcdef"
UTC_ZONE = ZoneInfo("UTC")
KEY = f"raw/dt=2025-12-02/hr=14/1764684000_edge-1-{TOKEN}_0000000001.jsonl.gz"

# Every kind of offset: none, whole hours, half and quarter hours, half-hour DST, DST at one minute past midnight, a
# skipped day, a permanent shift.
ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "America/St_Johns",
    "Pacific/Apia",
    "Asia/Pyongyang",
    "Africa/Monrovia",
    "Africa/Casablanca",
]


def at(text):
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def label(unix, tz):
    return f"{datetime.fromtimestamp(unix, tz):dt=%Y-%m-%d/hr=%H}"


@pytest.mark.parametrize(
    ("zone", "instant", "path", "start", "end"),
    [
        ("UTC", "2025-12-02 14:59:59", "dt=2025-12-02/hr=14", "2025-12-02 14:00", "2025-12-02 15:00"),
        ("UTC", "2025-12-02 15:00:00", "dt=2025-12-02/hr=15", "2025-12-02 15:00", "2025-12-02 16:00"),
        ("UTC", "1969-12-31 23:59:59", "dt=1969-12-31/hr=23", "1969-12-31 23:00", "1970-01-01 00:00"),
        ("Asia/Kolkata", "2025-12-02 18:29:59", "dt=2025-12-02/hr=23", "2025-12-02 17:30", "2025-12-02 18:30"),
        ("Asia/Kathmandu", "2025-12-02 18:15:00", "dt=2025-12-03/hr=00", "2025-12-02 18:15", "2025-12-02 19:15"),
        # The clocks go forward: 02:00 is followed by 03:00, and no hour is short.
        ("Europe/Berlin", "2025-03-30 00:59:59", "dt=2025-03-30/hr=01", "2025-03-30 00:00", "2025-03-30 01:00"),
        ("Europe/Berlin", "2025-03-30 01:00:00", "dt=2025-03-30/hr=03", "2025-03-30 01:00", "2025-03-30 02:00"),
        # They go back: 02:00 to 03:00 is shown twice in a row, which is one partition of two hours.
        ("Europe/Berlin", "2025-10-26 00:30:00", "dt=2025-10-26/hr=02", "2025-10-26 00:00", "2025-10-26 02:00"),
        ("Europe/Berlin", "2025-10-26 01:30:00", "dt=2025-10-26/hr=02", "2025-10-26 00:00", "2025-10-26 02:00"),
        # By half an hour: 01:30 to 02:00 is shown twice, and 02:00 to 02:30 is left out.
        ("Australia/Lord_Howe", "2025-04-05 14:45:00", "dt=2025-04-06/hr=01", "2025-04-05 14:00", "2025-04-05 15:30"),
        ("Australia/Lord_Howe", "2025-10-04 15:40:00", "dt=2025-10-05/hr=02", "2025-10-04 15:30", "2025-10-04 16:00"),
        # Back by an hour at 00:01: that first minute of the day is a partition, left and come back to.
        ("America/St_Johns", "2010-11-07 02:30:30", "dt=2010-11-07/hr=00", "2010-11-07 02:30", "2010-11-07 02:31"),
        ("America/St_Johns", "2010-11-07 02:31:00", "dt=2010-11-06/hr=23", "2010-11-07 02:31", "2010-11-07 03:30"),
        ("America/St_Johns", "2010-11-07 03:30:00", "dt=2010-11-07/hr=00", "2010-11-07 03:30", "2010-11-07 04:30"),
        # A day that never was.
        ("Pacific/Apia", "2011-12-30 10:00:00", "dt=2011-12-31/hr=00", "2011-12-30 10:00", "2011-12-30 11:00"),
    ],
)
def test_a_partition_is_the_hour_its_own_clock_shows(zone, instant, path, start, end):
    assert partition_of(at(instant), ZoneInfo(zone)) == Partition(path, at(start), at(end))


changes = [at("2025-10-26 01:00"), at("2025-04-05 15:00"), at("2010-11-07 02:31"), at("2018-05-04 15:00")]
instants = st.integers(0, 1 << 32) | st.builds(int.__add__, st.sampled_from(changes), st.integers(-7200, 7200))


@given(instants, st.sampled_from(ZONES))
@example(at("2010-11-07 02:31:30"), "America/St_Johns")
def test_the_window_is_exactly_where_date_and_hour_stay_the_same(unix, zone):
    tz = ZoneInfo(zone)
    partition = partition_of(unix, tz)
    assert partition.start <= unix < partition.end
    assert partition.path == label(unix, tz)
    assert label(partition.start, tz) == label(partition.end - 1, tz) == partition.path
    assert label(partition.start - 1, tz) != partition.path != label(partition.end, tz)
    for inside in range(partition.start, partition.end, 300):
        assert label(inside, tz) == partition.path
    assert partition_of(partition.start, tz) == partition_of(partition.end - 1, tz) == partition


def test_a_key_has_the_shape_that_readers_rely_on():
    factory = KeyFactory("raw", UTC_ZONE, host="edge-1", token=TOKEN)
    unix = at("2025-12-02 14:00")
    assert factory.new_key(unix, factory.partition_of(unix)) == KEY
    assert factory.instance == f"edge-1-{TOKEN}"


def test_the_sequence_counts_up_and_outgrows_its_padding():
    factory = KeyFactory("raw", UTC_ZONE, host="h", token=TOKEN)
    partition = factory.partition_of(0)
    assert [parse_key(factory.new_key(0, partition)).sequence for _ in range(3)] == [1, 2, 3]
    factory._sequence = 9_999_999_999
    assert parse_key(factory.new_key(0, partition)).sequence == 10_000_000_000


@pytest.mark.parametrize("number", ["1", "000000001", "00000000001", "000000000001", "1000000000000", "9" * 5000])
def test_a_number_that_no_process_writes_so_or_comes_to_is_no_key(number):
    with pytest.raises(ValueError, match="not a key"):
        parse_key(KEY.replace("0000000001", number))


def test_each_process_draws_a_token_of_64_random_bits():
    tokens = {KeyFactory("raw", UTC_ZONE).token for _ in range(100)}
    assert len(tokens) == 100
    assert all(re.fullmatch("[0-9a-f]{16}", token) for token in tokens)


def test_the_token_is_drawn_after_a_fork():
    program = (
        "import os; from zoneinfo import ZoneInfo; from ingest.format import KeyFactory\n"
        "child = os.fork()\n"
        "os.write(1, KeyFactory('raw', ZoneInfo('UTC')).token.encode() + b' ')\n"
        "child and os.waitpid(child, 0)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert len(set(run.stdout.split())) == 2


@pytest.mark.parametrize("token", ["", "0123", TOKEN.upper(), f"{TOKEN}0", "../../../../etc/"])
def test_a_token_of_another_shape_is_refused(token):
    with pytest.raises(ValueError, match="token"):
        KeyFactory("raw", UTC_ZONE, token=token)


@pytest.mark.parametrize(
    ("host", "reduced"),
    [
        ("ip-10-0-3-7.eu-west-1.compute.internal", "ip-10-0-3-7-eu-west-1-compute-internal"),
        ("edge_1", "edge-1"),
        ("../../etc", "etc"),
        ("höst", "h-st"),
        ("", "host"),
        ("___", "host"),
        ("h" * 300, "h" * 63),
    ],
)
def test_a_host_is_reduced_to_letters_digits_and_hyphens_and_never_empty(host, reduced):
    assert KeyFactory("raw", UTC_ZONE, host=host, token=TOKEN).instance == f"{reduced}-{TOKEN}"


prefixes = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.=-]{0,20}(/[A-Za-z0-9_][A-Za-z0-9_.=-]{0,20}){0,2}", fullmatch=True)


@given(prefixes, st.text(), instants, st.sampled_from(ZONES))
@example("dt=2025-01-01/hr=00", "a-0123456789abcdef", 0, "UTC")
def test_every_key_is_taken_apart_into_what_it_was_made_of(prefix, host, unix, zone):
    factory = KeyFactory(prefix, ZoneInfo(zone), host=host)
    partition = factory.partition_of(unix)
    key = factory.new_key(unix, partition)
    parsed = parse_key(key)
    assert (parsed.prefix, parsed.partition, parsed.unix) == (prefix, partition.path, unix)
    assert (f"{parsed.host}-{parsed.token}", parsed.sequence) == (factory.instance, 1)
    assert re.fullmatch("[A-Za-z0-9-]+", parsed.host)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "lock",
        KEY.removesuffix(".gz"),
        KEY.removeprefix("raw/"),
        f"/{KEY}",
        f"../{KEY}",
        f"a/../{KEY}",
        f"a//{KEY}",
        f".{KEY}",
        f"{KEY}\n",
        KEY.replace("hr=14/", "hr=14/.") + ".x.tmp",
        KEY.replace(TOKEN, "0123"),
        KEY.replace("hr=14", "hr=1"),
        KEY.replace("edge-1", "edge_1"),
        KEY.replace("1764684000", "\u0661"),
        # No clock and no calendar shows these.
        KEY.replace("1764684000", "-99999999999999"),
        KEY.replace("1764684000", "-1"),
        KEY.replace("1764684000", "01764684000"),
        KEY.replace("1764684000", "253402300800"),
        KEY.replace("1764684000", "9" * 200),
        KEY.replace("hr=14", "hr=24"),
        KEY.replace("2025-12-02", "2026-02-31"),
        KEY.replace("2025-12-02", "2025-13-01"),
        KEY.replace("2025-12-02", "0000-12-02"),
    ],
)
def test_what_no_process_can_have_named_is_no_key(key):
    with pytest.raises(ValueError, match="not a key"):
        parse_key(key)


@pytest.mark.parametrize(("clock", "named"), [(-1, 0), (0, 0), (253402300799, 253402300799), (1 << 60, 253402300799)])
def test_a_key_is_taken_apart_wherever_the_clock_stands(clock, named):
    factory = KeyFactory("raw", UTC_ZONE, host="h", token=TOKEN)
    assert parse_key(factory.new_key(clock, factory.partition_of(0))).unix == named


@pytest.mark.parametrize("name", ["-99999999999999_h", "253402300800_h", "9" * 200 + "_h", "_h", "x"])
def test_a_name_without_an_instant_has_no_first_second(name):
    assert unix_of(name) == 0
    assert unix_of("1764684000_h") == 1764684000


@given(st.lists(st.sampled_from(["raw", "..", ".", "", ".git", "a.b", "dt=x"]), max_size=4).map("/".join))
@example("raw/a.b")
def test_the_file_of_a_key_lies_within_its_slot(prefix):
    key = KEY.replace("raw", prefix, 1)
    if {"", ".", "..", ".git"}.intersection(prefix.split("/")):
        with pytest.raises(ValueError, match="not a key"):
            parse_key(key)
    else:
        assert parse_key(key).prefix == prefix
        assert os.path.normpath(dlq_path(Path("/slots/0"), key)) == f"/slots/0/{key}"


def test_below_its_slot_the_path_of_a_dead_letter_file_is_its_key():
    root = Path("/var/dlq/0")
    assert dlq_path(root, KEY) == Path(f"/var/dlq/0/{KEY}")
    assert dlq_key(root, dlq_path(root, KEY)) == KEY
    for other in (root / "lock", root / f"{KEY}.tmp", Path("/elsewhere") / KEY):
        with pytest.raises(ValueError, match=r"not a key|subpath"):
            dlq_key(root, other)


def test_below_its_slot_the_path_of_a_segment_is_its_key_without_gz():
    root = Path("/var/journal/0")
    assert segment_path(root, KEY) == Path(f"/var/journal/0/{KEY.removesuffix('.gz')}")
    assert segment_key(root, segment_path(root, KEY)) == KEY
    for other in (root / "lock", root / KEY, Path("/elsewhere") / KEY):
        with pytest.raises(ValueError, match=r"not a key|subpath"):
            segment_key(root, other)


def test_a_corrupt_original_keeps_partition_and_name_under_the_other_prefix():
    assert quarantine_key(KEY, "raw_dlq") == KEY.replace("raw/", "raw_dlq/", 1)
    assert quarantine_key(f"env=prod/{KEY}", "bad/files") == KEY.replace("raw/", "bad/files/", 1)
