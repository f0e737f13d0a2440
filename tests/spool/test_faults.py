"""The dead letters on a disk that fails in the middle, hangs, or fills up: what the books say, and what is refused."""

from __future__ import annotations

import asyncio
import errno
import resource
import sys
import threading
import time

import pytest

from ingest.disk.errors import StorageError
from ingest.disk.slots import Slot
from ingest.spool import census, letters, settling
from ingest.spool.letters import DlqFull
from ingest.spool.waiting import Whereabouts
from ingest.telemetry import DropReason, Place
from tests.stand_ins.disk import Disk
from tests.stand_ins.letters import OWN, Bench, body, files, key, leave

NUMBERS = [errno.EIO, errno.EACCES, errno.ESTALE]


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, Disk())


# ------------------------------------------------------------------------------------------------------ in the middle


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("read", [1, 7, 25, 39])
def test_c13_a_folder_whose_end_cannot_be_read_counts_each_file_once_when_it_can(bench, monkeypatch, number, read):
    """Chunks of 10: some of the hour is in the books, and some of that is stored, before the rest can be read."""
    monkeypatch.setattr(census, "COUNT_CHUNK", 10)
    for n in range(40):
        leave(bench.root, key(n), body(2))
    fault = bench.fs.on("readdir", under="hr=14", nth=read + 1).fail(number)

    async def main():
        async with bench.open() as dlq:
            counted = dlq.files
            assert (counted, dlq.unknown) == (read // 10 * 10, 1)
            assert await bench.all_keys() == [], "a folder that is not known is lent from"
            assert await dlq.find(key(3)) is Whereabouts.UNKNOWN
            await dlq.adopt([])
            assert (dlq.files, dlq.unknown) == (counted, 1)
            fault.lift()
            await dlq.adopt([])
            assert (dlq.files, dlq.events, dlq.size, dlq.unknown) == (40, 80, 40 * len(body(2)), 0)
            assert bench.metrics.books.events_recovered == 80
            for _ in range(40):
                await bench.store(await dlq.next())
            assert (dlq.files, dlq.events, dlq.size, files(bench.root)) == (0, 0, 0, [])
            assert bench.metrics.books.events_stored == 80

    asyncio.run(main())


def test_c13_what_is_stored_from_an_hour_before_it_fails_is_counted_once(bench, monkeypatch):
    monkeypatch.setattr(census, "COUNT_CHUNK", 10)
    for n in range(30):
        leave(bench.root, key(n), body(2))
    fault = bench.fs.on("readdir", under="hr=14", nth=25).fail()

    async def main():
        async with bench.open(scan=False) as dlq:
            held, on = asyncio.Event(), asyncio.Event()

            async def sleep(_):
                on.set()
                await held.wait()

            dlq._scan._sleep = sleep
            scanning = asyncio.ensure_future(dlq.scan())
            await on.wait()
            early = [await dlq.next() for _ in range(3)]
            await bench.store(early[0])
            held.set()
            await scanning
            assert (dlq.files, dlq.unknown) == (19, 1)
            fault.lift()
            await dlq.adopt([])
            assert dlq.unknown == 1, "counted anew while a file of it is lent"
            await bench.store(early[1])
            await dlq.take_back(early[2])
            await dlq.adopt([])
            assert (dlq.files, dlq.events, dlq.unknown) == (28, 56, 0)
            assert bench.metrics.books.events_recovered == 60

    asyncio.run(main())


def test_c1_a_folder_in_which_hardly_a_file_can_be_read_is_one_unknown_folder(bench, monkeypatch):
    """Or each of a million files would be remembered."""
    monkeypatch.setattr(census, "COUNT_CHUNK", 10)
    monkeypatch.setattr(census, "UNREAD_MAX", 15)
    for n in range(60):
        leave(bench.root, key(n), body(2))
    fault = bench.fs.on("open_read", under=".jsonl.gz").fail(errno.EIO)

    async def main():
        async with bench.open() as dlq:
            assert dlq.events == 0
            assert dlq.unknown <= 16
            assert len(dlq._letters.marks) <= 30
            fault.lift()
            await dlq.adopt([])
            assert (dlq.files, dlq.events, dlq.unknown) == (60, 120, 0)
            assert len(await bench.all_keys()) == 60

    asyncio.run(main())


@pytest.mark.parametrize("number", NUMBERS)
def test_c2_an_hour_that_cannot_be_read_hides_nothing_and_a_dead_process_s_slot_is_adopted(bench, number):
    leave(bench.root, key(1), body(4))
    leave(bench.root, key(2, hour="dt=2025-12-02/hr=15"), body(3))
    gone = Slot.take_first_free(bench.fs, bench.settings.dlq_dir)
    leave(gone.path, key(3), body(2))
    gone.release()
    bench.fs.on("scandir", under="0/raw/dt=2025-12-02/hr=14").fail(number)

    async def main():
        async with bench.open() as dlq:
            assert (dlq.events, dlq.unknown, dlq.scanning) == (3, 1, False)
            await dlq.adopt(Slot.adopt_free(bench.fs, bench.settings.dlq_dir).slots)
            assert (dlq.events, dlq.unknown, dlq.scanning) == (5, 1, False)
            assert await bench.all_keys() == [key(3), key(2, hour="dt=2025-12-02/hr=15")]

    asyncio.run(main())


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("operation", ["scandir", "readdir"])
def test_a_folder_that_cannot_be_read_later_costs_its_files_one_pass(bench, operation, number):
    async def main():
        async with bench.open() as dlq:
            await bench.save(1)
            await bench.save(2, hour="dt=2025-12-02/hr=15")
            fault = bench.fs.on(operation, under="hr=14").fail(number)
            assert await bench.all_keys() == [key(2, token=OWN, hour="dt=2025-12-02/hr=15")]
            assert (dlq.files, dlq.events) == (2, 6)
            fault.lift()
            assert len(await bench.all_keys()) == 2
            assert (dlq.files, dlq.events) == (2, 6)

    asyncio.run(main())


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("operation", ["rename", "open_read", "stat"])
def test_a_temporary_that_cannot_be_seen_to_is_unknown_and_seen_to_later(bench, operation, number):
    folder, _, name = key(1).rpartition("/")
    leave(bench.root, f"{folder}/.{name}.0a1b2c.tmp", body(5))
    fault = bench.fs.on(operation, when=lambda path: key(1).rpartition("/")[2] in path.name).fail(number)

    async def main():
        async with bench.open() as dlq:
            assert (dlq.events, dlq.unknown) == (0, 1)
            fault.lift()
            await dlq.adopt([])
            assert (files(bench.root), dlq.events, dlq.unknown) == ([key(1)], 5, 0)
            assert await bench.all_keys() == [key(1)]

    asyncio.run(main())


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("content", ["whole", "torn", "nothing"])
def test_a_temporary_that_cannot_be_removed_is_unknown_and_removed_later_and_its_lines_count_once(
    bench, content, number
):
    folder, _, name = key(1).rpartition("/")
    left = {"whole": body(5), "torn": body(5)[:-4], "nothing": b""}[content]
    leave(bench.root, f"{folder}/.{name}.only-0a1b2c.tmp", left)
    fault = bench.fs.on("unlink", when=lambda path: path.name.endswith(".tmp")).fail(number)

    async def main():
        async with bench.open() as dlq:
            assert dlq.unknown == 1
            events, lent = dlq.events, await bench.all_keys()
            await dlq.adopt([])
            assert (dlq.unknown, dlq.events, await bench.all_keys()) == (1, events, lent)
            fault.lift()
            await dlq.adopt([])
            assert (dlq.unknown, dlq.events, await bench.all_keys()) == (0, events, lent)
            assert files(bench.root) == lent

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------ hanging


def test_c6_a_save_on_a_disk_that_hangs_is_given_up_and_its_file_removed_when_the_disk_is_back(tmp_path):
    bench = Bench(tmp_path, Disk(), wait=0.5)

    async def main():
        async with bench.open() as dlq:
            hang = bench.fs.on("rename").hang()
            with pytest.raises(StorageError) as failure:
                await bench.save(1)
            assert failure.value.operation == "wait"
            assert not isinstance(failure.value, DlqFull)
            assert (dlq.files, dlq.events) == (0, 0)
            hang.lift()
            async with asyncio.timeout(5):
                while dlq._late or dlq.hangs:  # noqa: ASYNC110 - a thread removes it
                    await asyncio.sleep(0.01)
                while files(bench.root):  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.01)
            assert await bench.all_keys() == []
            await bench.save(1)
            assert await bench.all_keys() == [key(1, token=OWN)]
            assert (dlq.files, dlq.events) == (1, 3)

    asyncio.run(main())


def test_c6_a_file_that_is_published_too_late_is_lent_to_nobody(tmp_path):
    """Its batch is somewhere else, and no book has it here."""
    bench = Bench(tmp_path, Disk(), wait=0.5)

    async def main():
        async with bench.open() as dlq:
            hang = bench.fs.on("rename", times=1).hang()
            with pytest.raises(StorageError):
                await bench.save(1)
            held = bench.fs.on("unlink").hang()
            behind = [asyncio.ensure_future(work) for work in (dlq.find(key(1, token=OWN)), dlq.next())]
            await asyncio.sleep(0)
            hang.release()
            assert await behind[0] is Whereabouts.UNKNOWN
            assert await behind[1] is None
            held.lift()
            async with asyncio.timeout(5):
                while files(bench.root):  # noqa: ASYNC110 - a thread removes it
                    await asyncio.sleep(0.01)
            assert (dlq.files, dlq.events) == (0, 0)

    asyncio.run(main())


def test_c6_a_batch_saved_again_after_its_first_save_came_too_late_has_one_file_that_stays(tmp_path):
    bench = Bench(tmp_path, Disk(), wait=0.5)

    async def main():
        async with bench.open() as dlq:
            hang = bench.fs.on("rename", times=1).hang()
            with pytest.raises(StorageError):
                await bench.save(1)
            hang.release()
            async with asyncio.timeout(5):
                while True:
                    try:
                        await bench.save(1)
                    except StorageError:
                        await asyncio.sleep(0.01)
                    else:
                        break
            assert await bench.all_keys() == [key(1, token=OWN)]
            assert await bench.all_keys() == [key(1, token=OWN)]
            assert (dlq.files, dlq.events) == (1, 3)

    asyncio.run(main())


def test_c6_a_batch_saved_again_before_its_late_save_is_heard_of_has_one_file_that_stays(tmp_path):
    bench = Bench(tmp_path, Disk(), wait=0.5)

    async def main():
        async with bench.open() as dlq:
            hang = bench.fs.on("rename", times=1).hang()
            with pytest.raises(StorageError):
                await bench.save(1)
            hang.release()
            # The thread is through, and the loop has not heard of it: that is the moment to save again.
            for _ in range(5_000):
                if dlq._calls._lane.busy_since is None:
                    break
                time.sleep(0.001)  # noqa: ASYNC251 - the loop is to hear nothing meanwhile
            await bench.save(1)
            assert await bench.all_keys() == [key(1, token=OWN)]
            assert (dlq.files, dlq.events) == (1, 3)

    asyncio.run(main())


def test_c6_while_the_disk_hangs_a_save_is_refused_at_once_and_the_queue_says_that_it_takes_none(tmp_path):
    bench = Bench(tmp_path, Disk(), wait=0.5)

    async def main():
        async with bench.open() as dlq:
            hang = bench.fs.on("open").hang()
            with pytest.raises(StorageError):
                await bench.save(1)
            assert dlq.full
            assert dlq.hangs
            before = len(bench.fs.calls)
            for n in range(20):
                with pytest.raises(StorageError):
                    await bench.save(n + 2)
            assert len(bench.fs.calls) == before, "a call was queued behind the one that hangs"
            hang.lift()
            async with asyncio.timeout(5):
                while dlq.full:  # noqa: ASYNC110 - a thread goes on
                    await asyncio.sleep(0.01)
            await bench.save(30)

    asyncio.run(main())


@pytest.mark.parametrize("when", ["before", "under way"])
def test_a_save_that_is_cancelled_leaves_no_file(tmp_path, when):
    bench = Bench(tmp_path, Disk())

    async def main():
        async with bench.open() as dlq:
            if when == "before":
                first = bench.fs.on("stat", "statvfs").hang()
                dlq._spawn(dlq._measure())
                await asyncio.sleep(0)
            hang = bench.fs.on("rename").hang()
            saving = asyncio.ensure_future(bench.save(1))
            if when == "under way":
                await asyncio.get_running_loop().run_in_executor(None, hang.reached.wait)
            else:
                await asyncio.sleep(0)
            saving.cancel()
            await asyncio.gather(saving, return_exceptions=True)
            if when == "before":
                first.lift()
            hang.lift()
            await bench.save(2)
            async with asyncio.timeout(5):
                while files(bench.root) != [key(2, token=OWN)]:  # noqa: ASYNC110 - a thread removes it
                    await asyncio.sleep(0.01)
            assert await bench.all_keys() == [key(2, token=OWN)]
            assert (dlq.files, dlq.events) == (1, 3)

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------ full


def test_f3_the_queue_says_that_it_is_full_while_it_refuses_though_a_smaller_batch_would_fit(tmp_path):
    size = len(body(3000))
    bench = Bench(tmp_path, Disk(), dlq_max_size_bytes=2 * size - 1)

    async def main():
        async with bench.open() as dlq:
            await bench.save(1, 3000)
            assert not dlq.full
            with pytest.raises(DlqFull):
                await bench.save(2, 3000)
            assert dlq.full, "a batch was refused, and the gauge says that there is room"
            await bench.store(await dlq.next())
            assert not dlq.full
            await bench.save(2, 3000)
            assert not dlq.full

    asyncio.run(main())


def test_f3_a_batch_that_is_saved_ends_what_a_refusal_began(tmp_path):
    size = len(body(3000))
    bench = Bench(tmp_path, Disk(), dlq_max_size_bytes=2 * size - 1)

    async def main():
        async with bench.open() as dlq:
            await bench.save(1, 3000)
            with pytest.raises(DlqFull):
                await bench.save(2, 3000)
            await bench.save(3, 1)
            assert not dlq.full

    asyncio.run(main())


def test_a4_the_files_that_the_store_refuses_are_evicted_first(tmp_path):
    size = len(body(3))
    bench = Bench(tmp_path, Disk(), dlq_max_size_bytes=3 * size, dlq_on_full="evict")

    async def main():
        async with bench.open() as dlq:
            for n in range(1, 4):
                await bench.save(n)
            refused = [await dlq.next() for _ in range(3)]
            refused[1].refused = True
            for letter in refused:
                await dlq.take_back(letter)
            await bench.save(4)
            assert files(bench.root) == [key(n, token=OWN) for n in (1, 3, 4)]
            await bench.save(5)
            assert files(bench.root) == [key(n, token=OWN) for n in (3, 4, 5)]
            assert bench.metrics.books.events_dropped[DropReason.EVICTED] == 6

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------ very many


@pytest.mark.proof
def test_c8_nothing_grows_with_the_files_in_our_slot(tmp_path):
    """Hard links of one file, in hours of 5,000."""
    bench = Bench(tmp_path, Disk())
    count, source = 200_000, tmp_path
    for n in range(count):
        path = bench.root / key(n, hour=f"dt=2025-12-{1 + n // 120_000:02d}/hr={n // 5000 % 24:02d}")
        if n % 5000 == 0:
            path.parent.mkdir(parents=True)
        if n % 50_000 == 0:  # ext4 allows 65,000 links of one file
            path.write_bytes(body(1))
            source = path
        else:
            path.hardlink_to(source)

    async def main():
        async with bench.open() as dlq:
            assert dlq.files == count
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for _ in range(3):
                await dlq.adopt(Slot.adopt_free(bench.fs, bench.settings.dlq_dir).slots)
                await dlq.take_back(await dlq.next())
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            assert grown < 4 << 20
            letters = dlq._letters
            kept = [*vars(letters).values(), *vars(letters.counting).values()]
            for part in (letters.marks, letters.holdings, letters.temporaries, letters.slots):
                kept += [getattr(part, name) for name in part.__slots__]
            assert sum(map(sys.getsizeof, kept)) < 1 << 20

    asyncio.run(main())


def test_c6_no_thread_of_a_disk_keeps_the_process_alive(tmp_path):
    bench = Bench(tmp_path, Disk(), wait=0.5)

    async def main():
        async with bench.open():
            bench.fs.on("rename").hang()
            with pytest.raises(StorageError):
                await bench.save(1)
            assert all(thread.daemon for thread in threading.enumerate() if thread.name == "dlq")
            bench.fs.heal()

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------ removing


@pytest.mark.parametrize("operation", ["mkdir", "open", "write", "fdatasync"])
@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOTDIR])
def test_a_save_that_gave_no_name_leaves_nothing_to_be_removed(bench, operation, number):
    async def main():
        async with bench.open() as dlq:
            bench.fs.on(operation, "unlink", "rmdir").fail(number)
            for n in range(3):
                with pytest.raises(StorageError):
                    await bench.save(n)
            assert await bench.all_keys() == []
            assert dlq.unremoved == 0

    asyncio.run(main())


def test_a_file_that_could_not_be_removed_is_done_with_once_it_is_gone(bench):
    async def main():
        async with bench.open() as dlq:
            for n in range(3):
                await bench.save(n)
            stuck = bench.fs.on("unlink").fail(errno.EROFS)
            for _ in range(3):
                await bench.store(await dlq.next())
            assert await dlq.next() is None
            assert dlq.unremoved == 3
            (bench.root / "raw").rename(bench.root.parent / "moved")
            stuck.lift()
            (bench.root / "raw").write_bytes(b"")  # the names lead nowhere now: ENOTDIR
            assert await dlq.next() is None
            assert dlq.unremoved == 0

    asyncio.run(main())


def test_very_many_files_that_cannot_be_removed_stop_the_recovery_of_their_hour_alone(bench, monkeypatch):
    monkeypatch.setattr(letters, "MARKS_MAX", 3)
    monkeypatch.setattr(letters, "AGAIN_AT_ONCE", 1)
    later = "dt=2025-12-02/hr=15"

    async def main():
        async with bench.open() as dlq:
            for n in range(8):
                await bench.save(n)
                await bench.save(n, hour=later)
            stuck = bench.fs.on("unlink", under="hr=14").fail(errno.EACCES)
            for _ in range(3):
                while (letter := await dlq.next()) is not None:
                    await bench.store(letter)
            assert dlq.unremoved == 4, "what cannot be removed is remembered without bound"
            assert (dlq.files, len(files(bench.root))) == (4, 8)
            stuck.lift()
            for _ in range(3):
                while (letter := await dlq.next()) is not None:
                    await bench.store(letter)
            assert (dlq.files, dlq.unremoved, files(bench.root)) == (0, 0, [])

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------ evicting


def evicting(tmp_path, files):
    noted = []
    bench = Bench(tmp_path, Disk(), dlq_max_size_bytes=files * len(body(3)), dlq_on_full="evict")

    def note(root, line):
        name = line.split()[0]
        assert (root / name.decode()).exists(), "the ledger was not told before the file went"
        noted.append(name)

    bench.note = note
    return bench, noted


def test_evict_passes_over_a_folder_that_lets_nothing_go_and_tells_of_each_file_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(settling, "COMPARE_EVERY", 0.0)
    bench, noted = evicting(tmp_path, 8)

    async def main():
        async with bench.open() as dlq:
            for n in range(6):
                await bench.save(n, hour="dt=2025-12-02/hr=13")
            for n in range(6, 8):
                await bench.save(n)
            stuck = bench.fs.on("unlink", under="hr=13").fail(errno.EACCES)
            for n in range(8, 14):
                await bench.save(n)
            assert dlq.files == 8
            assert bench.metrics.files_evicted == 6
            assert len(noted) == len(set(noted))
            assert capsys.readouterr().out.count("dlq_file_not_removed") == stuck_files(noted)
            stuck.lift()
            for n in range(14, 20):
                await bench.save(n)
            assert not (bench.root / "raw/dt=2025-12-02/hr=13").exists()

    asyncio.run(main())


def stuck_files(noted):
    return sum(b"hr=13" in name for name in noted)


@pytest.mark.parametrize("fixed", [1, 3, 5])
def test_evict_finds_the_files_that_can_go_behind_those_that_cannot(tmp_path, monkeypatch, fixed):
    monkeypatch.setattr(settling, "COMPARE_EVERY", 0.0)
    bench, noted = evicting(tmp_path, 8)

    async def main():
        async with bench.open() as dlq:
            for n in range(8):
                await bench.save(n)
            names = {f"{n:010d}.jsonl.gz" for n in range(fixed)}
            bench.fs.on("unlink", when=lambda path: path.name[-19:] in names).fail(errno.EPERM)
            refused = 0
            for n in range(8, 12):
                while True:
                    try:
                        await dlq.save(key(n, token=OWN), body(3), 3)
                    except DlqFull:
                        refused += 1
                        assert refused <= fixed
                    else:
                        bench.metrics.books.accepted(3, Place.DLQ)
                        break
            assert (dlq.files, bench.metrics.files_evicted) == (8, 4)
            assert len(noted) == len(set(noted)) == fixed + 4

    asyncio.run(main())
