"""What lies on disk is damaged: what is sound in it is delivered, the original is put aside, and the queue goes on.

The files are real: a collector without S3 wrote them. Then they are cut, overwritten and scribbled in, S3 comes up, and
a successor recovers. What must be stored is computed here, by other means than the product's.
"""

from __future__ import annotations

import gzip
import json
import random
import zlib

import pytest

from tests.process.client import Sent, send
from tests.process.ledger import audit, read_bucket
from tests.process.s3 import s3_environment

BUCKET = "late"


@pytest.fixture
def without_s3(s3_process):
    return s3_environment(s3_process.url, BUCKET, S3_TIMEOUT="500ms", S3_APP_RETRIES="1")


def dead_letters(collectors, env, sent, count):
    """`count` files in the DLQ, oldest first."""
    collector = collectors({**env, "BATCH_SIZE": "200"}, name="before").start()
    send(sent, collector.port, 200 * count, pipeline=4)
    collector.stop(20)
    files = sorted((collector.folder / "data/dlq").rglob("*.jsonl.gz"))
    assert len(files) == count
    return files


def segments(collectors, env, sent, count):
    """`count` journal segments, one of each killed predecessor."""
    for _ in range(count):
        collector = collectors({**env, "FLUSH_INTERVAL": "1h"}, name="before", measured=False).start()
        send(sent, collector.port, 200, pipeline=4)
        collector.kill()
    files = sorted((collector.folder / "data/dlq/journal").rglob("*.jsonl"))
    assert len(files) == count
    return files


def recovered(collectors, env, s3_process, quarantined=0):
    """The figures of a process that has recovered all there is, and put so many dead letters aside."""
    s3_process.start(BUCKET)
    last = collectors(env, name="last").start()
    last.wait_delivered(60)
    # A scrape may be a second old, and what is on the disk is not.
    seen = last.wait_until(lambda m: m.value("estat_spool_files_quarantined_total") >= quarantined)
    last.stop(10)
    return seen


def numbers_in(lines):
    """The events among whole lines, by their number; what is no JSON object is none."""
    numbers = set()
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            numbers.add(int(event["body"][3:12]))
    return numbers


def whole_lines(data):
    return [line for line in data.splitlines(keepends=True) if line.endswith(b"\n")]


def readable(data):
    """As much of a damaged gzip as comes out, byte by byte."""
    stream, out = zlib.decompressobj(wbits=31), b""
    for at in range(len(data)):
        try:
            out += stream.decompress(data[at : at + 1])
        except zlib.error:
            break
    return out


def name_of(path):
    """Where the original goes below the prefix: its own name, in its own hour."""
    return "/".join(path.parts[-3:])


def assert_recovered(s3_process, sent, expected, originals):
    client = s3_process.client()
    found = audit(sent, read_bucket(client, BUCKET))
    assert found.doubled == found.foreign == found.altered == found.wrong_hour == 0, found
    assert not found.broken, found
    assert set(found.stored_numbers) - {n for n, copies in found.stored_numbers.items() if not copies} == expected
    aside = {o.key.removeprefix("raw_dlq/"): o.data for o in read_bucket(client, BUCKET, "raw_dlq")}
    assert aside.keys() == originals.keys()
    for name, data in originals.items():
        assert aside[name] == data, f"{name} is not the original"
    return found


def test_damaged_dead_letters_give_what_is_sound_and_are_put_aside(collectors, s3_process, without_s3, figure):
    sent = Sent()
    files = dead_letters(collectors, without_s3, sent, 8)
    truncated, garbage, bad_line, trailing, flipped, array_line, *intact = files
    assert len(intact) == 2
    expected, originals = set(), {}
    whole = {path: path.read_bytes() for path in files}
    lines = {path: gzip.decompress(data).splitlines(keepends=True) for path, data in whole.items()}

    strange = [*lines[array_line][:50], b"[1,2]\n", b"\xff\xfe\n", *lines[array_line][50:]]
    damaged = {
        truncated: whole[truncated][: len(whole[truncated]) * 2 // 3],
        garbage: random.Random(1).randbytes(5000),
        bad_line: gzip.compress(b"".join([*lines[bad_line][:90], b'{"ts":17647,"ip":\n', *lines[bad_line][91:]])),
        trailing: whole[trailing] + b"\0not a member",
        flipped: whole[flipped][:-6] + bytes([whole[flipped][-6] ^ 0xFF]) + whole[flipped][-5:],
        array_line: gzip.compress(b"".join(strange)),
    }
    for path, data in damaged.items():
        path.write_bytes(data)
        originals[name_of(path)] = data
        expected |= numbers_in(whole_lines(readable(data)))
    for path in intact:
        expected |= numbers_in(lines[path])
    assert 8 * 200 - 400 < len(expected) < 8 * 200

    seen = recovered(collectors, without_s3, s3_process, quarantined=len(damaged))
    found = assert_recovered(s3_process, sent, expected, originals)
    assert seen.value("estat_spool_files_quarantined_total") == len(damaged)
    assert seen.value("estat_events_dropped_total", reason="corrupt") > 0
    figure("damaged dead letters", found)


def test_damaged_segments_give_what_is_sound_and_are_put_aside(collectors, s3_process, without_s3, figure):
    sent = Sent()
    torn, cut, bad_line, garbage, empty, intact = files = segments(collectors, without_s3, sent, 6)
    whole = {path: path.read_bytes() for path in files}
    lines = {path: data.splitlines(keepends=True) for path, data in whole.items()}
    damaged = {
        torn: whole[torn] + b'{"ts":1764721594,"ip":"203.0.1',
        cut: whole[cut][: len(whole[cut]) // 2],
        bad_line: b"".join([*lines[bad_line][:90], b"\0" * 300 + b"\n", *lines[bad_line][91:]]),
        garbage: random.Random(2).randbytes(5000) + b"\n",
        empty: b"",
    }
    assert not damaged[cut].endswith(b"\n")
    expected = numbers_in(lines[intact])
    for path, data in damaged.items():
        path.write_bytes(data)
        expected |= numbers_in(whole_lines(data))
    # A torn last line was never acknowledged: it is dropped, and its segment is no damaged one.
    originals = {name_of(path): damaged[path] for path in (bad_line, garbage)}

    recovered(collectors, without_s3, s3_process)
    figure("damaged segments", assert_recovered(s3_process, sent, expected, originals))


def test_strange_files_among_them_stop_nothing(collectors, s3_process, without_s3):
    """A file that is no key's, a folder where a file should be, an empty dead letter, left temporaries."""
    sent = Sent()
    files = dead_letters(collectors, without_s3, sent, 3)
    hour = files[0].parent
    slot = hour.parents[2]
    (hour / "notes.txt").write_text("somebody was here")
    (hour / "a-folder.jsonl.gz").mkdir()
    (slot / "elsewhere").mkdir()
    (hour / f".{files[1].name}.0123456789ab.tmp").write_bytes(files[1].read_bytes()[:100])
    orphan = files[2].with_name(f".{files[2].name}.0123456789ab.tmp")
    files[2].rename(orphan)
    files[0].with_name(files[0].name.replace("_0000", "_9999")).write_bytes(b"")

    s3_process.start(BUCKET)
    last = collectors(without_s3, name="last").start()
    last.wait_until(lambda m: m.value("estat_events_stored_total") == 600, 30, "the sound ones are not stored")
    last.stop(10)
    audit(sent, read_bucket(s3_process.client(), BUCKET)).assert_kept()
    assert (hour / "notes.txt").read_text() == "somebody was here"
