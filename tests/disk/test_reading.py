"""Reading through the seam: what is not there is told from what the disk would not say."""

import errno
import os

import pytest

from ingest.disk import Filesystem, Reader, StorageError, exists, files_below, is_folder, read_file
from tests.stand_ins.disk import Disk


def refusing(error):
    """A disk that will not look at what is below one name."""
    disk = Disk()
    disk.on("stat", "scandir", under="bad").fail(error)
    return disk


def test_a_name_that_leads_nowhere_is_an_answer(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nothing")
    fs = Filesystem()
    assert exists(fs, tmp_path)
    assert is_folder(fs, tmp_path)
    assert exists(fs, tmp_path / "file")
    assert not is_folder(fs, tmp_path / "file")
    for absent in ("absent", "absent/below", "file/below", "dangling"):
        assert not exists(fs, tmp_path / absent)
        assert not is_folder(fs, tmp_path / absent)


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ELOOP, errno.ENAMETOOLONG])
@pytest.mark.parametrize("look", [exists, is_folder])
def test_c4_a_disk_that_would_not_say_is_a_storage_error(tmp_path, look, error):
    with pytest.raises(StorageError) as caught:
        look(refusing(error), tmp_path / "bad")
    assert (caught.value.operation, caught.value.subject) == ("stat", str(tmp_path / "bad"))
    assert caught.value.errno == error


def test_a_folder_that_cannot_be_read_is_told_and_hides_nothing_beside_it(tmp_path):
    for name in ("a/1", "a/b/2", "bad/3", "c/4", "5"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    unread = []
    found = {path.name for path in files_below(refusing(errno.EACCES), tmp_path, unread)}
    assert found == {"1", "2", "4", "5"}
    assert [(error.operation, error.subject) for error in unread] == [("scandir", str(tmp_path / "bad"))]
    unread.clear()
    assert list(files_below(Filesystem(), tmp_path / "absent", unread)) == []
    assert unread == []


def test_c13_an_error_in_the_middle_of_a_folder_is_told_and_what_was_read_counts(tmp_path):
    for number in range(5):
        (tmp_path / str(number)).touch()

    disk = Disk()
    disk.on("readdir", nth=3).fail(errno.EIO)
    unread = []
    assert len(list(files_below(disk, tmp_path, unread))) == 2
    assert [error.errno for error in unread] == [errno.EIO]


def test_a_reader_reads_seeks_and_lets_go_of_its_descriptor(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    descriptors = len(os.listdir("/proc/self/fd"))
    with Reader(Filesystem(), path) as file:
        assert file.size == 10
        assert (file.read(4), file.tell()) == (b"0123", 4)
        assert file.read_all() == b"456789"
        assert file.read(1) == b""
        file.seek(2)
        assert file.read(3) == b"234"
    file.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    with pytest.raises(ValueError, match="closed"):
        file.read(1)
    assert read_file(Filesystem(), path) == b"0123456789"


def test_a_large_file_is_read_whole(tmp_path):
    data = os.urandom(3_000_001)
    (tmp_path / "file").write_bytes(data)
    assert read_file(Filesystem(), tmp_path / "file") == data
