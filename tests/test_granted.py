"""`WORKERS=auto` follows the CPU quota, and `check` the limit on memory, whoever set them."""

import os

import pytest

from ingest import granted

MANY = 1 << 10


@pytest.mark.parametrize(
    ("ours", "files", "count"),
    [
        ("0::/task\n", {"task/cpu.max": "200000 100000"}, 2),
        ("0::/task\n", {"task/cpu.max": "25000 100000"}, 1),
        ("0::/task\n", {"task/cpu.max": "390000 100000"}, 3),
        ("0::/task\n", {"task/cpu.max": "max 100000"}, MANY),
        ("0::/pod/task\n", {"pod/cpu.max": "200000 100000", "pod/task/cpu.max": "max 100000"}, 2),
        ("0::/\n", {"cpu.max": "400000 100000"}, 4),
        (
            "5:cpu,cpuacct:/task\n1:name=systemd:/task\n",
            {"cpu,cpuacct/task/cpu.cfs_quota_us": "300000", "cpu,cpuacct/task/cpu.cfs_period_us": "100000"},
            3,
        ),
        (
            "5:cpuacct,cpu:/task\n",
            {"cpu/task/cpu.cfs_quota_us": "-1", "cpu/task/cpu.cfs_period_us": "100000"},
            MANY,
        ),
        ("0::/task\n", {"task/cpu.max": "nonsense"}, MANY),
        ("0::/task\n", {"task/cpu.max": "200000"}, MANY),
        ("0::/task\n", {}, MANY),
        ("1:name=\udcff:/\udcff\n0::/task\n", {"task/cpu.max": "200000 100000"}, 2),
        (None, {}, MANY),
    ],
)
def test_the_count_is_the_least_quota_in_whole_processors(tmp_path, monkeypatch, ours, files, count):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(MANY))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    file = tmp_path / "ours"
    if ours is not None:
        file.write_bytes(os.fsencode(ours))
    assert granted.processors(tmp_path, file) == count


def test_no_more_than_the_processors_that_we_may_run_on(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    (tmp_path / "cpu.max").write_text("400000 100000\n")
    (tmp_path / "ours").write_text("0::/\n")
    assert granted.processors(tmp_path, tmp_path / "ours") == 1


@pytest.mark.parametrize(
    ("ours", "files", "least"),
    [
        ("0::/task\n", {"task/memory.max": "1048576"}, 1 << 20),
        ("0::/pod/task\n", {"pod/memory.max": "1048576", "pod/task/memory.max": "max"}, 1 << 20),
        ("4:memory:/task\n", {"memory/task/memory.limit_in_bytes": "1048576"}, 1 << 20),
        ("4:memory:/task\n", {"memory/task/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("0::/task\n", {"task/memory.max": "1 2"}, None),
        ("0::/task\n", {"task/memory.max": ""}, None),
        ("0::/task\n", {}, None),
    ],
)
def test_the_memory_is_the_least_limit_or_all_that_there_is(tmp_path, ours, files, least):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    file = tmp_path / "ours"
    file.write_text(ours)
    assert granted.memory(tmp_path, file) == (least or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
