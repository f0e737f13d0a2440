"""The table of disk faults: each call of the seam that the journal makes, by each error that a disk is known to give.

Whatever fails, and whether it fails once or until the disk is well: nothing acknowledged is lost, nothing refused is
stored, the books balance, and once the disk is well events are taken again with nobody doing anything. `recover` holds
the store against what the clients were told.
"""

from __future__ import annotations

import errno

import pytest

from tests.intake.test_journal import in_journal, said
from tests.intake.test_names import remove
from tests.model.world import World

ONCE, UNTIL_WELL = 1, 10_000
FAULTS = [
    pytest.param(errno.EIO, ONCE, id="EIO once"),
    *[
        pytest.param(error, UNTIL_WELL, id=f"{errno.errorcode[error]} until it is well")
        for error in (errno.EIO, errno.EACCES)
    ],
    *[
        pytest.param(error, UNTIL_WELL, id=f"{errno.errorcode[error]} until it is well", marks=pytest.mark.proof)
        for error in (errno.ENOSPC, errno.ESTALE)
    ],
]


def torn_write(world):
    world.fs.on("write", under="journal", times=1).shorten(30)
    world.fs.fail("write", when=in_journal)
    world.fs.fail("truncate", when=in_journal)


def failed_sync(world):
    world.fs.fail("fdatasync", when=in_journal)


def lost_folder(world):
    remove(world, world.root / "dlq" / "journal")


def nothing(_world):
    """The fault of the row is the only one."""


BOTH, FSYNC = ("journal", "fsync"), ("fsync",)
CALLS = (
    (nothing, BOTH, ("open", "mkdir", "write", "close", "unlink", "rmdir", "stat")),
    (nothing, FSYNC, ("fdatasync", "fsync_dir")),
    # The roll-back, and the rewrite that follows when that fails too.
    (torn_write, BOTH, ("truncate", "open", "write", "fdatasync", "rename", "fsync_dir", "close", "stat")),
    (failed_sync, FSYNC, ("truncate", "open", "write", "rename", "fsync_dir", "close", "stat")),
    # Taking the slot again, and the rewrite.
    (lost_folder, BOTH, ("mkdir", "open", "flock", "write", "fdatasync", "rename", "fsync_dir", "close", "stat")),
)
ROWS = [
    pytest.param(operation, before, durability, id=f"{operation}-{before.__name__}-{durability}")
    for before, modes, operations in CALLS
    for operation in operations
    for durability in modes
]


@pytest.mark.parametrize(("error", "times"), FAULTS)
@pytest.mark.parametrize(("operation", "before", "durability"), ROWS)
def test_no_fault_of_the_journals_disk_loses_or_doubles_or_stays(tmp_path, operation, before, error, times, durability):
    world = World(tmp_path, durability=durability, flush_interval="1h", batch_size=6)
    try:
        process = world.start()
        process.commit(3)
        process.seal()
        process.commit(4)
        before(world)
        rule = world.fs.on(operation, under="/journal/", times=times).fail(error)
        world.advance(1)
        # After the look: events into the batch that is open, over its end, and into a new hour, where folders are made.
        process.commit(1)
        process.commit(5)
        world.time.step(3600)
        process.commit(2)
        world.advance(3)
        world.check()
        assert rule.reached.is_set(), "nothing made that call"
        world.fs.heal()
        world.advance(3)
        assert not process.journal.latched
        assert process.metrics.journal_failed == 0
        assert len(said(world, "journal_refused")) == len(said(world, "journal_resumed"))
        taken = process.commit(7)
        assert process.answers[-7:] == [(number, True) for number in taken]
        world.check()
        world.kill(process)
        world.recover()
    finally:
        world.close()
