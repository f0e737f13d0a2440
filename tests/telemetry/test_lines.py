"""Nobody waits for the reader of the log, and what it did not read in time is counted."""

import os
import resource
import signal
import threading
import time

from ingest.telemetry.lines import WAITING, WAITING_BYTES, Lines


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def read_all(descriptor):
    """Read until the other end is closed."""
    found = bytearray()
    while piece := os.read(descriptor, 1 << 16):
        found += piece
    return bytes(found)


def test_before_it_is_started_a_line_is_written_at_once():
    reader, writer = os.pipe()
    Lines(writer).msg(b"one\n")
    assert os.read(reader, 100) == b"one\n"


def test_what_was_logged_is_written_in_order_before_the_end():
    reader, writer = os.pipe()
    lines = Lines(writer)
    lines.start()
    lines.start()
    for number in range(500):
        lines.info(b"%d\n" % number)
    assert lines.finish(30)
    os.close(writer)
    assert read_all(reader).split() == [b"%d" % number for number in range(500)]
    assert lines.dropped == 0


def test_d1_a_reader_that_does_not_read_keeps_nobody_waiting_and_the_gap_is_told():
    reader, writer = os.pipe()
    gaps = []
    lines = Lines(writer, on_gap=gaps.append)
    lines.start()
    line = b"x" * 4095 + b"\n"
    logged = 3000
    for _ in range(logged):
        lines.msg(line)
    assert lines.dropped >= logged - WAITING - 100, "the pipe takes a few lines, the queue a thousand"
    assert not lines.finish(0.01), "the reader reads nothing"
    assert f"{lines.dropped} dropped" in repr(lines)
    dropped = lines.dropped
    found = []
    thread = threading.Thread(target=lambda: found.append(read_all(reader)))
    thread.start()
    assert lines.finish(30)
    os.close(writer)
    thread.join(30)
    assert found[0].count(line) == logged - dropped
    assert sum(gaps) == dropped


def test_the_bytes_that_wait_are_bounded_too():
    reader, writer = os.pipe()
    lines = Lines(writer)
    lines.start()
    line = b"x" * (1 << 18)
    for _ in range(100):
        lines.msg(line)
    assert 100 - lines.dropped <= WAITING_BYTES // len(line) + 1, "one is on its way"
    threading.Thread(target=lambda: read_all(reader), daemon=True).start()
    assert lines.finish(30)
    before = lines.dropped
    lines.msg(line)
    assert lines.finish(30)
    assert lines.dropped == before, "what was written waits no more"
    os.close(writer)


def test_several_threads_mix_no_lines_and_lose_no_count():
    reader, writer = os.pipe()
    lines = Lines(writer)
    lines.start()
    each = 2000

    def log(number):
        for _ in range(each):
            lines.msg(b"%d" % number * 40 + b"\n")

    threads = [threading.Thread(target=log, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    found = []
    reading = threading.Thread(target=lambda: found.append(read_all(reader)))
    for thread in threads:
        thread.join(30)
    reading.start()
    assert lines.finish(30)
    os.close(writer)
    reading.join(30)
    written = found[0].splitlines()
    assert set(written) <= {b"%d" % number * 40 for number in range(4)}
    assert len(written) + lines.dropped == 4 * each


def test_a_descriptor_that_does_not_block_loses_no_line():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    lines = Lines(writer)
    lines.start()
    line = b"y" * 4095 + b"\n"
    for _ in range(100):
        lines.msg(line)
    found = []
    reading = threading.Thread(target=lambda: found.append(read_all(reader)))
    until(lambda: lines._queue.qsize() < 100)
    reading.start()
    assert lines.finish(30)
    os.close(writer)
    reading.join(30)
    assert found[0] == line * 100


def test_a_descriptor_that_is_gone_loses_lines_and_nothing_else():
    reader, writer = os.pipe()
    os.close(reader)
    lines = Lines(writer)
    lines.start()
    lines.msg(b"lost\n")
    assert lines.finish(30)
    assert lines.dropped == 1


def test_what_a_full_disk_does_not_take_is_counted_and_told_once_there_is_room(tmp_path):
    told = []
    log = tmp_path / "log"
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    lines = Lines(descriptor, on_gap=told.append)
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    ours = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    lines.start()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8, most))
        for line in (b"1234\n", b"cut off\n", b"lost\n", b"lost\n"):
            lines.msg(line)
        assert lines.finish(30)
        assert (lines.dropped, told) == (3, [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
        signal.signal(signal.SIGXFSZ, ours)
    lines.msg(b"taken\n")
    lines.msg(b"taken\n")
    assert lines.finish(30)
    os.close(descriptor)
    assert told == [3]
    assert log.read_bytes() == b"1234\ncut\ntaken\ntaken\n"
