"""What a process cannot read when it starts, it tells, tries again, and stores once the disk lets it (C1, C2)."""

from __future__ import annotations

import errno

import pytest

from tests.process.client import Sent, send
from tests.process.faulty_server import ARMED, Fault, faulty
from tests.process.ledger import audit, read_directory

ENV = {"BATCH_SIZE": "50", "FLUSH_INTERVAL": "60s", "S3_APP_RETRIES": "1"}
FAULTS = [
    ("journal", "open_read", errno.EIO),
    ("journal", "scandir", errno.EACCES),
    pytest.param("journal", "readdir", errno.ESTALE, marks=pytest.mark.proof),
    pytest.param("dlq", "open_read", errno.EACCES, marks=pytest.mark.proof),
    pytest.param("dlq", "scandir", errno.EIO, marks=pytest.mark.proof),
    ("dlq", "readdir", errno.EIO),
]


@pytest.mark.parametrize(("room", "operation", "number"), FAULTS)
def test_c1_what_cannot_be_read_at_the_start_is_told_and_stored_later(collectors, room, operation, number):
    sent = Sent()
    first = collectors(
        ENV, command=faulty(Fault(("open",), "fail", room="store")), name="first", measured=False
    ).start()
    send(sent, first.port, 220)
    first.wait_until(
        lambda told: told.value("estat_spool_files", place="dlq") == 4, what="four dead letters, and a segment"
    )
    first.kill()

    folder = first.folder
    (folder / ARMED).touch()
    blind = faulty(Fault((operation,), "fail", number, room=room, under="hr=", armed=True))
    second = collectors(ENV, command=blind, name="second", measured=False).start()
    place = "backlog" if room == "journal" else "dlq"
    second.wait_until(lambda told: told.value("estat_unknown_files", place=place) >= 1, what="an unknown file")
    assert second.said(
        "segment_not_read" if room == "journal" else f"dlq_{'file' if 'open' in operation else 'folder'}_unreadable"
    )
    (folder / ARMED).unlink()
    told = second.wait_until(lambda told: not told.value("estat_unknown_files", place=place), what="all is known")
    told = second.wait_delivered()
    assert told.value("estat_unknown_files", place=place) == 0
    second.stop()
    audit(sent, read_directory(folder / "data/objects")).assert_kept()


def test_c1_a_process_that_ends_before_it_could_read_all_says_so(collectors):
    sent = Sent()
    first = collectors(
        ENV, command=faulty(Fault(("open",), "fail", room="store")), name="first", measured=False
    ).start()
    send(sent, first.port, 60)
    first.wait_until(lambda told: told.value("estat_spool_files", place="dlq") == 1)
    first.kill()
    (first.folder / ARMED).touch()
    blind = faulty(Fault(("scandir",), "fail", room="journal", under="hr=", armed=True))
    second = collectors(ENV, command=blind, name="second", measured=False).start()
    second.wait_until(lambda told: told.value("estat_unknown_files", place="backlog") >= 1)
    second.stop()
    (stopped,) = second.said("stopped")
    assert stopped["unknown_files"] == 1
    third = collectors({}, name="third").start()
    third.wait_delivered()
    third.stop()
    audit(sent, read_directory(third.folder / "data/objects")).assert_kept()
