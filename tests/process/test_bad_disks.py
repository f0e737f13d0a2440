"""A disk that will not be looked at: the process serves on, loses nothing, and takes up what it could not read.

Every look of the seam fails, in each room, with one error after the other; what a killed process left is there, in two
slots of its own, and batches go to the dead letters while the store's folder fails.
"""

from __future__ import annotations

import errno
from itertools import product

import pytest

from tests.process.client import Sent, send
from tests.process.faulty_server import ARMED, Fault, faulty
from tests.process.ledger import audit, read_directory

SMALL = {"BATCH_SIZE": "50", "FLUSH_INTERVAL": "100ms"}
WHOLE = {**SMALL, "BATCH_SIZE": "100000", "FLUSH_INTERVAL": "1h"}
LOOKS = ("stat", "open_read", "read", "scandir", "readdir", "listdir", "statvfs", "flock")
ERRORS = (errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE)
CASES = [
    (look, room, ERRORS[number % len(ERRORS)]) for number, (room, look) in enumerate(product(("dlq", "journal"), LOOKS))
] + [("stat", "store", errno.EIO), ("listdir", "store", errno.EACCES), ("open", "store", errno.ESTALE)]

SHORT = {
    ("stat", "journal"),
    ("readdir", "journal"),
    ("flock", "journal"),
    ("scandir", "dlq"),
    ("statvfs", "dlq"),
    ("open", "store"),
}


def left_by_two_killed(collectors, sent):
    """Leave 100 acknowledged events in each of two slots of the journal."""
    both = [collectors(WHOLE, name=name).start() for name in ("first", "second")]
    for collector in both:
        send(sent, collector.port, 100)
    for collector in both:
        collector.kill()


@pytest.mark.parametrize(
    ("look", "room", "error"),
    [pytest.param(*case, marks=() if case[:2] in SHORT else pytest.mark.proof) for case in CASES],
    ids=lambda value: str(errno.errorcode.get(value, value)),
)
def test_c3_c4_a_look_that_fails_ends_nothing_and_what_could_not_be_read_is_read_later(collectors, look, room, error):
    sent = Sent()
    left_by_two_killed(collectors, sent)
    fault = Fault((look,), "fail", error, room=room, armed=True)
    third = collectors(SMALL, command=faulty(fault), name="third").start()
    (third.folder / ARMED).touch()
    send(sent, third.port, 200)
    if (look, room) == ("stat", "journal"):
        # Whether the folder of a new segment is there cannot be told, so that nothing may be acknowledged.
        assert sent.acknowledged + sent.refused == 400
    else:
        assert sent.statuses == {200: 400}
    third.wait_until(lambda m: m.value("estat_events_accepted_total") == sent.acknowledged - 200, 10, "not counted")
    third.stop(30)
    (third.folder / ARMED).unlink()
    last = collectors(SMALL, name="last").start()
    last.wait_delivered()
    last.stop(10)
    assert audit(sent, read_directory(last.folder / "data/objects")).assert_kept().stored == sent.acknowledged


@pytest.mark.parametrize(
    ("room", "operation"),
    [
        ("dlq", "flock"),
        ("journal", "scandir"),
        *(
            pytest.param(*case, marks=pytest.mark.proof)
            for case in (("dlq", "open"), ("dlq", "scandir"), ("journal", "open"), ("journal", "flock"))
        ),
    ],
)
def test_c3_a_bad_slot_hides_no_other_one(collectors, operation, room):
    """Slot 0 is the first's, slot 1 the second's: from the start on nothing can be known of slot 1."""
    sent = Sent()
    left_by_two_killed(collectors, sent)
    fault = Fault((operation,), "fail", errno.EACCES, room=room, under=f"{room}/1")
    third = collectors(SMALL, command=faulty(fault), name="third").start()
    send(sent, third.port, 100)
    expected = 200 if room == "journal" else 300
    third.wait_until(lambda m: m.value("estat_events_stored_total") >= expected, 20, "the others were not recovered")
    third.stop(30)
    last = collectors(SMALL, name="last").start()
    last.wait_delivered()
    last.stop(10)
    assert audit(sent, read_directory(last.folder / "data/objects")).assert_kept().stored == 300
