"""A run's own folder goes with the run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ingest.disk import Filesystem, StorageError, scratch_folder

HOLDS = """
import sys, time, pathlib
from ingest.disk import Filesystem, scratch_folder
with scratch_folder(Filesystem(), pathlib.Path(sys.argv[1])) as folder:
    (folder / "copy").write_bytes(b"x")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_it_goes_with_all_that_is_in_it_also_when_the_run_fails(tmp_path):
    def fail():
        with scratch_folder(Filesystem(), tmp_path) as folder:
            (folder / "deep").mkdir()
            (folder / "deep/copy").write_bytes(b"x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_run_that_was_killed_goes_with_the_next_run_and_no_other(tmp_path):
    (tmp_path / "estat-ingest-notes").mkdir()
    runs = [
        subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        dead, alive = (run.stdout.readline().strip() for run in runs)
        runs[0].kill()
        runs[0].wait()
        with scratch_folder(Filesystem(), tmp_path) as folder:
            assert folder.is_dir()
            assert not os.path.exists(dead)
            assert os.path.exists(f"{alive}/copy")
    finally:
        for run in runs:
            run.kill()
            run.wait()
            run.stdout.close()
    assert (tmp_path / "estat-ingest-notes").is_dir()


def test_a_sweep_that_takes_the_lock_of_one_just_made_does_no_harm(tmp_path):
    taken = []

    class Swept(Filesystem):
        def flock(self, fd, operation):
            if not taken:
                taken.extend(tmp_path.glob("*.lock"))
                taken[0].unlink()
            super().flock(fd, operation)

    with scratch_folder(Swept(), tmp_path) as folder:
        assert folder.with_suffix(".lock") != taken[0]
        assert sorted(tmp_path.iterdir()) == [folder, folder.with_suffix(".lock")]


def test_a_base_that_is_not_there_is_told(tmp_path):
    with pytest.raises(StorageError, match="list"), scratch_folder(Filesystem(), tmp_path / "missing"):
        pass
