"""A Unix socket's name is never taken from who listens on it, and is left when its process goes."""

import errno
import fcntl
import os
import socket
import stat
import threading

import pytest

from ingest.disk import Filesystem, SocketFile
from ingest.disk import socket_file as module

FS = Filesystem()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "admin.sock"


def test_the_name_is_for_owner_and_group_and_goes_with_its_process(path):
    os.umask(before := os.umask(0o022))
    held = SocketFile(FS, path, 8)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o660
    assert os.umask(before) == before, "the mask of the process is back"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    held.remove()
    assert not path.exists()
    held.remove()
    held.socket.close()


def test_one_whose_process_is_gone_is_replaced(path):
    SocketFile(FS, path, 8).socket.close()  # as a kill leaves it
    held = SocketFile(FS, path, 8)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    held.socket.close()


@pytest.mark.parametrize("backlog", [8, 0])
def test_a_live_one_is_not_stolen_its_backlog_full_or_not(path, backlog):
    held = SocketFile(FS, path, backlog)
    clients = []
    while not backlog:
        clients.append(client := socket.socket(socket.AF_UNIX))
        client.setblocking(False)
        try:
            client.connect(str(path))
        except BlockingIOError:
            break
    with pytest.raises(OSError, match="in use") as caught:
        SocketFile(FS, path, 8)
    assert caught.value.errno == errno.EADDRINUSE
    assert path.exists()
    for one in (*clients, held.socket):
        one.close()


def test_a_file_that_is_no_socket_stays(path):
    path.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        SocketFile(FS, path, 8)
    assert path.read_text() == "precious"


def test_of_two_that_start_at_once_over_a_dead_one_one_listens(path):
    SocketFile(FS, path, 8).socket.close()
    held, refused = [], []

    def take(fs):
        try:
            held.append(SocketFile(fs, path, 8))
        except OSError as error:
            refused.append(error.errno)

    class Interrupted(Filesystem):
        """Lets the rival go on when the dead one's name is about to be taken away."""

        def unlink(self, name):
            rival.start()
            rival.join(0.3)  # with the folder's lock it cannot end before we do
            super().unlink(name)

    rival = threading.Thread(target=take, args=(FS,))
    os.umask(before := os.umask(0o022))
    take(Interrupted())
    rival.join()
    os.umask(before)  # unlike two processes, two threads share one mask, and the later one gives back the earlier one's
    assert (len(held), refused) == (1, [errno.EADDRINUSE])
    held[0].socket.close()


def test_what_another_put_in_its_place_is_not_removed(path):
    held = SocketFile(FS, path, 8)
    path.unlink()
    other = SocketFile(FS, path, 8)
    held.remove()
    assert path.exists()
    for one in (held, other):
        one.socket.close()


def test_a_folder_that_somebody_keeps_locked_is_not_waited_for_without_end(path, monkeypatch):
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.05)
    holder = os.open(path.parent, os.O_RDONLY)
    FS.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(BlockingIOError):
        SocketFile(FS, path, 8)
    os.close(holder)
    assert not path.exists()
