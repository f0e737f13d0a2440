"""The dead-letter queue on a real disk that fails where it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import threading
import time

import pytest

from ingest.disk import is_only_copy, published_path
from ingest.disk.errors import StorageError
from ingest.disk.filesystem import Filesystem
from ingest.disk.slots import Slot
from ingest.spool import census
from ingest.spool.letters import SCAN_LIMIT, DlqFull
from ingest.spool.places import Copy
from ingest.spool.waiting import Whereabouts
from ingest.telemetry import DropReason, Place
from tests.stand_ins.letters import HOUR, OWN, Bench, Elsewhere, bodies, body, files, key, leave


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def temporary(name):
    folder, _, last = name.rpartition("/")
    return f"{folder}/.{last}.0a1b2c.tmp"


# ------------------------------------------------------------------------------------------------------ saving


def test_a_saved_batch_lies_under_its_key_and_is_in_the_books(bench):
    async def main():
        async with bench.open() as dlq:
            name = await bench.save(1, 7)
            assert files(bench.root) == [name]
            assert (bench.root / name).read_bytes() == body(7)
            assert (dlq.files, dlq.events, dlq.size) == (1, 7, len(body(7)))
            assert bench.metrics.enqueued == 7

    asyncio.run(main())


def test_a_save_is_published_temporary_synced_renamed_folder_synced(bench):
    async def main():
        async with bench.open():
            bench.fs.calls.clear()
            name = await bench.save(1)
            path, folder = bench.root / name, (bench.root / name).parent
            steps = [call for call in bench.fs.calls if call[0] in {"fdatasync", "rename", "fsync_dir"}]
            assert steps[-3][0] == "fdatasync"
            assert steps[-2:] == [("rename", path), ("fsync_dir", folder)]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("operation", "number"),
    [("open", errno.EACCES), ("write", errno.ENOSPC), ("fdatasync", errno.EIO), ("rename", errno.EIO)],
)
def test_a_save_that_fails_leaves_nothing_behind_and_the_next_one_works(bench, operation, number):
    async def main():
        async with bench.open() as dlq:
            bench.fs.on(operation).fail(number)
            with pytest.raises(StorageError) as failure:
                await bench.save(1)
            assert failure.value.errno == number
            assert not isinstance(failure.value, DlqFull)
            assert (files(bench.root), dlq.files, dlq.events, dlq.size) == ([], 0, 0, 0)
            bench.fs.heal()
            await bench.save(1)
            assert await bench.all_keys() == [key(1, token=OWN)]

    asyncio.run(main())


def test_a_save_whose_folder_cannot_be_synced_is_not_lent_even_if_it_cannot_be_removed(bench):
    async def main():
        async with bench.open() as dlq:
            await bench.save(1)
            bench.fs.on("fsync_dir", "unlink").fail(errno.EIO)
            with pytest.raises(StorageError):
                await bench.save(2)
            assert len(files(bench.root)) == 2
            assert await bench.all_keys() == [key(1, token=OWN)]
            bench.fs.heal()
            assert await bench.all_keys() == [key(1, token=OWN)]
            assert files(bench.root) == [key(1, token=OWN)], "the stray was not removed when the disk let it"
            await bench.save(2)
            assert await bench.all_keys() == [key(1, token=OWN), key(2, token=OWN)]
            assert dlq.events == 6

    asyncio.run(main())


def test_a_full_disk_is_an_error_that_names_the_operation_and_the_way_out(tmp_path):
    """Real ENOSPC cannot be had without a volume of one's own; a file in the folder's place is a real failure."""
    bench = Bench(tmp_path)

    async def main():
        async with bench.open():
            (bench.root / "raw").write_bytes(b"")
            with pytest.raises(StorageError) as failure:
                await bench.save(1)
            assert failure.value.errno == errno.ENOTDIR
            assert "a file is where a folder should be" in str(failure.value)

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------ lending


def test_the_oldest_hour_comes_first_whatever_its_prefix(bench):
    hours_and_prefixes = [
        ("dt=2025-12-02/hr=14", "raw"),
        ("dt=2025-12-01/hr=23", "some/deeper/prefix"),
        ("dt=2025-12-02/hr=03", "raw"),
        ("dt=2024-01-01/hr=00", "old"),
    ]
    names = [key(n, hour=hour, prefix=prefix) for n, (hour, prefix) in enumerate(hours_and_prefixes)]
    for name in names:
        leave(bench.root, name, body(1))

    async def main():
        async with bench.open():
            assert await bench.all_keys() == sorted(names, key=lambda name: name.split("/")[-3:-1])

    asyncio.run(main())


def test_a_pass_ends_with_none_and_a_deferred_file_comes_again_in_the_next(bench):
    async def main():
        async with bench.open() as dlq:
            for n in range(3):
                await bench.save(n)
            first = await dlq.next()
            await bench.store(first)
            second, third = await dlq.next(), await dlq.next()
            await dlq.take_back(second)
            await dlq.take_back(third)
            assert await dlq.next() is None
            assert [(await dlq.next()).key, (await dlq.next()).key] == [second.key, third.key]

    asyncio.run(main())


def test_a_file_is_lent_to_one_at_a_time(bench):
    async def main():
        async with bench.open() as dlq:
            await bench.save(1)
            assert await dlq.next() is not None
            assert await dlq.next() is None
            assert await dlq.find(key(1, token=OWN)) is Whereabouts.UNKNOWN

    asyncio.run(main())


def test_a_done_file_is_gone_with_its_hour_and_its_day_and_the_slot_stays_locked(bench):
    async def main():
        async with bench.open() as dlq:
            await bench.save(1)
            await bench.store(await dlq.next())
            assert sorted(path.name for path in bench.root.iterdir()) == ["lock"]
            assert (dlq.files, dlq.events, dlq.size) == (0, 0, 0)
            await bench.save(2)
            assert await bench.all_keys() == [key(2, token=OWN)]

    asyncio.run(main())


def test_a_done_file_that_cannot_be_removed_leaves_the_books_once_and_the_disk_later(bench):
    async def main():
        async with bench.open() as dlq:
            await bench.save(1)
            bench.fs.on("unlink").fail(errno.EROFS)
            await bench.store(await dlq.next())
            assert dlq.events == 0
            assert await bench.all_keys() == []
            assert files(bench.root)
            bench.fs.heal()
            assert await bench.all_keys() == []
            assert files(bench.root) == []

    asyncio.run(main())


def test_what_is_no_file_of_ours_stays_and_is_neither_counted_nor_lent(bench):
    for name in ("raw/dt=2025-12-02/hr=14/notes.txt", "raw/README", "raw/dt=2025-12-02/loose.jsonl.gz"):
        leave(bench.root, name, b"?")

    async def main():
        async with bench.open() as dlq:
            await bench.save(1)
            assert await bench.all_keys() == [key(1, token=OWN)]
            await bench.store(await dlq.next())
            assert (dlq.files, dlq.events, len(files(bench.root))) == (0, 0, 3)

    asyncio.run(main())


def test_a_file_that_cannot_be_opened_does_not_stop_the_others(bench):
    blocked = leave(bench.root, key(1), body(2))
    leave(bench.root, key(2), body(2))

    async def main():
        async with bench.open() as dlq:
            blocked.unlink()
            blocked.mkdir()
            for _ in range(2):
                assert await bench.all_keys() == [key(2)]
            assert dlq.events == 4
            blocked.rmdir()
            blocked.write_bytes(body(2))
            assert await bench.all_keys() == [key(1), key(2)]

    asyncio.run(main())


def test_a_file_somebody_removed_is_passed_over_and_its_events_are_dropped_with_its_hour(bench):
    async def main():
        async with bench.open() as dlq:
            await bench.save(1, 5)
            await bench.save(2, 3)
            (bench.root / key(1, token=OWN)).unlink()
            file = await dlq.next()
            assert file.key == key(2, token=OWN)
            await bench.store(file)
            assert await dlq.next() is None
            assert await dlq.next() is None
            assert (dlq.files, dlq.events, dlq.size) == (0, 0, 0)
            assert bench.metrics.books.events_dropped[DropReason.CORRUPT] == 5

    asyncio.run(main())


def test_a_header_that_rots_after_it_was_counted_is_settled_with_its_hour(bench):
    async def main():
        async with bench.open() as dlq:
            await bench.save(1, 5)
            (bench.root / key(1, token=OWN)).write_bytes(b"garbage")
            file = await dlq.next()
            assert file.events == 0
            await bench.store(file)
            assert (dlq.files, dlq.events, dlq.size) == (0, 0, 0)
            assert bench.metrics.books.events_dropped[DropReason.CORRUPT] == 5

    asyncio.run(main())


def test_saves_and_removals_in_one_hour_never_lose_a_file(bench):
    """The hour is emptied, removed and made again all the time."""

    async def main():
        async with bench.open() as dlq:
            saved = done = 0

            async def save():
                nonlocal saved
                for n in range(150):
                    await bench.save(n, 1)
                    saved += 1

            async def recover():
                nonlocal done
                while done < 300:
                    file = await dlq.next()
                    if file is None:
                        await asyncio.sleep(0)
                        continue
                    await bench.store(file)
                    done += 1

            async def save_more():
                for n in range(1000, 1150):
                    await bench.save(n, 1)

            async with asyncio.TaskGroup() as tasks:
                for work in (save, save_more, recover):
                    tasks.create_task(work())
            assert (dlq.files, dlq.events, bench.metrics.books.events_stored) == (0, 0, 300)
            assert ("rmdir", bench.root / "raw/dt=2025-12-02/hr=14") in bench.fs.calls

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------ cost


@pytest.mark.parametrize("count", [10, 4 * SCAN_LIMIT])
def test_a_step_reads_at_most_k_entries_and_most_steps_none(bench, count):
    """Also after 99 % were drained: no entry is read twice in a pass, so none is stepped over again either."""
    one = body(1)
    for n in range(count):
        leave(bench.root, key(n), one)

    async def main():
        async with bench.open() as dlq:
            scan = bench.fs.on("readdir")
            steps = []
            for _ in range(count):
                before = scan.count
                file = await dlq.next()
                steps.append(scan.count - before)
                if random.Random(count).random() < 0.99:
                    await bench.store(file)
                else:
                    await dlq.take_back(file)
            listing = 9  # lock, raw, dt=, hr=, one more for the day of another prefix, and the ends of four folders
            assert max(steps) <= min(count, SCAN_LIMIT) + listing
            assert sum(steps) <= count + listing
            assert sum(1 for step in steps if step) <= count // SCAN_LIMIT + 1

    asyncio.run(main())


def test_the_names_of_a_step_are_lent_in_order(bench):
    names = [key(n) for n in range(300)]
    for name in random.Random(1).sample(names, len(names)):
        leave(bench.root, name, body(1))

    async def main():
        async with bench.open():
            assert await bench.all_keys() == names

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------ counting


def test_what_earlier_runs_left_is_counted_from_the_headers_and_own_files_only_once(bench):
    for n in range(5):
        leave(bench.root, key(n), body(10 + n))

    async def main():
        async with bench.open(scan=False) as dlq:
            await bench.save(100, 3)
            await dlq.scan()
            assert bench.metrics.books.events_recovered == 60
            assert (dlq.files, dlq.events) == (6, 63)
            assert dlq.size == sum(path.stat().st_size for path in bench.root.rglob("*.gz"))
            assert not dlq.scanning

    asyncio.run(main())


def test_nothing_is_lent_before_it_is_counted(bench):
    for n in range(5):
        leave(bench.root, key(n), body(1))

    async def main():
        async with bench.open(scan=False) as dlq:
            assert dlq.scanning
            assert await dlq.next() is None
            assert await dlq.find(key(1)) is Whereabouts.UNKNOWN
            await dlq.scan()
            assert len(await bench.all_keys()) == 5
            assert (await dlq.find(key(1))).events == 1

    asyncio.run(main())


def test_recovery_and_saves_beside_the_scan_keep_the_books_balanced_at_every_step(bench, monkeypatch):
    """Small chunks, so that files of the hour that is being counted are lent, too."""
    monkeypatch.setattr(census, "COUNT_CHUNK", 20)
    for n in range(400):
        leave(bench.root, key(n, hour=f"dt=2025-12-02/hr={10 + n % 3:02d}"), body(1 + n % 4))
    expected = sum(1 + n % 4 for n in range(400))

    async def main():
        async with bench.open(scan=False) as dlq:
            lent_while_scanning = 0
            scanning = asyncio.ensure_future(dlq.scan())

            async def recover():
                nonlocal lent_while_scanning
                while not scanning.done() or dlq.files:
                    file = await dlq.next()
                    if file is None:
                        await asyncio.sleep(0)
                        continue
                    lent_while_scanning += not scanning.done()
                    await bench.store(file)

            async def save():
                for n in range(60):
                    await bench.save(n, 2, hour=f"dt=2025-12-02/hr={10 + n % 4:02d}")

            await asyncio.gather(recover(), save(), scanning)
            await recover()
            assert lent_while_scanning > 0
            assert (dlq.files, dlq.events, dlq.size) == (0, 0, 0)
            assert bench.metrics.books.events_recovered == expected
            assert bench.metrics.books.events_stored == expected + 120
            assert bench.metrics.books.events_dropped[DropReason.CORRUPT] == 0
            assert files(bench.root) == []

    asyncio.run(main())


def test_the_first_files_of_an_hour_are_lent_while_the_rest_of_it_is_counted(bench, monkeypatch):
    monkeypatch.setattr(census, "COUNT_CHUNK", 10)
    for n in range(40):
        leave(bench.root, key(n), body(1))

    async def main():
        async with bench.open(scan=False) as dlq:
            held, on = asyncio.Event(), asyncio.Event()
            real = dlq._scan._sleep

            async def sleep(seconds):
                on.set()
                await held.wait()
                await real(seconds)

            dlq._scan._sleep = sleep
            scanning = asyncio.ensure_future(dlq.scan())
            await on.wait()
            assert dlq.events == bench.metrics.books.events_recovered == 10
            early = [await dlq.next() for _ in range(10)]
            assert await dlq.next() is None
            for file in early:
                await bench.store(file)
            held.set()
            await scanning
            assert len(await bench.all_keys()) == 30

    asyncio.run(main())


def test_the_scan_sleeps_three_times_as_long_as_it_works(bench, monkeypatch):
    monkeypatch.setattr(census, "COUNT_CHUNK", 10)
    for n in range(100):
        leave(bench.root, key(n), body(1))

    async def main():
        async with bench.open(scan=False) as dlq:
            worked = []
            real = dlq._letters.counting.step

            def slow():
                began = time.monotonic()
                time.sleep(0.005)
                try:
                    return real()
                finally:
                    worked.append(time.monotonic() - began)

            dlq._letters.counting.step = slow
            await dlq.scan()
            assert len(bench.slept) >= 10
            assert sum(bench.slept) >= 3 * sum(worked[: len(bench.slept)])

    asyncio.run(main())


def test_c1_a_file_that_cannot_be_read_when_it_is_counted_is_unknown_and_enters_the_books_once_it_is_read(bench):
    blocked = leave(bench.root, key(1), b"")
    blocked.unlink()
    blocked.mkdir()

    async def main():
        async with bench.open() as dlq:
            assert (dlq.files, dlq.events, dlq.unknown, bench.metrics.books.events_recovered) == (1, 0, 1, 0)
            assert await bench.all_keys() == []
            blocked.rmdir()
            blocked.write_bytes(body(5))
            letter = await dlq.next()
            assert (dlq.files, dlq.events, dlq.size) == (1, 5, len(body(5)))
            assert (dlq.unknown, bench.metrics.books.events_recovered, letter.events) == (0, 5, 5)
            await bench.store(letter)
            assert (dlq.files, dlq.events, dlq.size) == (0, 0, 0)

    asyncio.run(main())


def test_a_file_of_an_earlier_run_is_as_old_as_its_name_says(bench):
    leave(bench.root, key(5), body(3))

    async def main():
        async with bench.open() as dlq:
            assert dlq.oldest == int(key(5).rsplit("/", 1)[1].split("_")[0])
            await bench.store(await dlq.next())
            assert dlq.oldest == 0

    asyncio.run(main())


def test_slots_that_are_adopted_while_others_are_counted_are_counted_once(tmp_path, monkeypatch):
    monkeypatch.setattr(census, "COUNT_CHUNK", 5)
    bench = Bench(tmp_path)
    for n in range(30):
        leave(bench.root, key(n), body(1))
    gone = Slot.take_first_free(bench.fs, bench.settings.dlq_dir)
    leave(gone.path, key(100), body(4))
    gone.release()

    async def main():
        async with bench.open(scan=False) as dlq:
            adopted = Slot.adopt_free(bench.fs, bench.settings.dlq_dir).slots
            await asyncio.gather(dlq.scan(), dlq.adopt(adopted), dlq.scan())
            assert bench.metrics.books.events_recovered == dlq.events == 34

    asyncio.run(main())


def test_files_without_a_header_of_ours_count_for_nothing_and_are_lent(bench):
    leave(bench.root, key(1), b"")
    leave(bench.root, key(2), b"garbage that is longer than a header of ours")

    async def main():
        async with bench.open() as dlq:
            assert (dlq.files, dlq.events) == (2, 0)
            assert (await dlq.next()).events == 0

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------ temporaries


def test_a_temporary_whose_key_is_published_is_removed(bench):
    leave(bench.root, key(1), body(5))
    leave(bench.root, temporary(key(1)), body(5))

    async def main():
        async with bench.open() as dlq:
            assert files(bench.root) == [key(1)]
            assert bench.metrics.books.events_recovered == dlq.events == 5

    asyncio.run(main())


def test_a_temporary_whose_key_has_a_segment_is_removed(tmp_path):
    bench = Bench(tmp_path, places=Elsewhere(segment=Copy.KNOWN))
    leave(bench.root, temporary(key(1)), body(5))

    async def main():
        async with bench.open() as dlq:
            assert files(bench.root) == []
            assert bench.places.asked == [key(1)]
            assert bench.metrics.books.events_recovered == dlq.events == 0

    asyncio.run(main())


def test_a_whole_temporary_that_is_the_only_copy_is_published_under_its_key(bench):
    leave(bench.root, temporary(key(1)), body(5))

    async def main():
        async with bench.open() as dlq:
            assert files(bench.root) == [key(1)]
            assert (bench.root / key(1)).read_bytes() == body(5)
            assert bench.metrics.books.events_recovered == dlq.events == 5
            assert await bench.all_keys() == [key(1)]

    asyncio.run(main())


def half():
    return body(2000)[: len(body(2000)) // 2]


@pytest.mark.parametrize(
    ("name", "salvages", "is_published"),
    [("0a1b2c", False, False), ("only-0a1b2c", False, True), ("0a1b2c", True, True)],
    ids=["a journal has its batch", "it is the only copy", "no journal is left"],
)
def test_e12_a_torn_temporary_is_published_only_where_nothing_can_have_more(tmp_path, name, salvages, is_published):
    bench = Bench(tmp_path, salvages=salvages)
    torn = temporary(key(1)).replace("0a1b2c", name)
    leave(bench.root, torn, half())

    async def main():
        async with bench.open() as dlq:
            for _ in range(3):
                await dlq.adopt([])
            if not is_published:
                assert (files(bench.root), dlq.events, dlq.unknown) == ([torn], 0, 1)
                assert [(file.key, file.declared) for file in await dlq.torn()] == [(key(1), 2000)]
                return
            assert (files(bench.root), dlq.unknown) == ([key(1)], 0)
            found = bodies((bench.root / key(1)).read_bytes())
            assert 0 < len(found) < 2000
            assert found == [str(n) for n in range(len(found))]
            assert bench.metrics.books.events_recovered == dlq.events == len(found)

    asyncio.run(main())


@pytest.mark.parametrize("ends", ["its segment is found", "its segment went", "it is given up", "somebody removes it"])
def test_e12_a_torn_temporary_waits_until_its_batch_is_found_or_it_is_given_up(bench, ends):
    path = leave(bench.root, temporary(key(1)), half())

    async def main():
        async with bench.open() as dlq:
            held = await dlq.held()
            assert (held[bench.root].hours, held[bench.root].sure) == ({HOUR}, True), "its hour stays open"
            match ends:
                case "its segment is found":
                    bench.places.answers["segment"] = Copy.KNOWN
                case "its segment went":
                    bench.places.settled(key(1))
                case "it is given up":
                    await dlq.give_up(*await dlq.torn())
                case _:
                    path.unlink()
            await dlq.adopt([])
            assert (files(bench.root), await dlq.torn(), dlq.events, dlq.unknown) == ([], [], 0, 0)
            assert (await dlq.held())[bench.root].hours == set()

    asyncio.run(main())


@pytest.mark.parametrize(("durability", "mark"), [("memory", True), ("journal", False), ("fsync", False)])
def test_a_temporary_tells_whether_it_is_the_only_copy(tmp_path, durability, mark):
    bench = Bench(tmp_path, durability=durability)
    seen = []
    bench.fs.on("open", when=lambda path: seen.append(path) or False).fail()

    async def main():
        async with bench.open():
            await bench.save(1)

    asyncio.run(main())
    assert [is_only_copy(path) for path in seen if published_path(path) is not None] == [mark]


def test_a_temporary_without_a_sound_line_is_removed(bench):
    leave(bench.root, temporary(key(1)), b"")
    leave(bench.root, temporary(key(2)), body(3)[:15])

    async def main():
        async with bench.open() as dlq:
            assert files(bench.root) == []
            assert dlq.files == 0

    asyncio.run(main())


def test_a_temporary_of_this_run_is_left_alone(bench):
    leave(bench.root, temporary(key(1, token=OWN)), body(5))

    async def main():
        async with bench.open() as dlq:
            assert files(bench.root) == [temporary(key(1, token=OWN))]
            assert dlq.files == 0

    asyncio.run(main())


def test_a_temporary_that_cannot_be_published_stays_for_the_next_start(bench):
    leave(bench.root, temporary(key(1)), body(5))
    bench.fs.on("rename").fail(errno.EIO)

    async def main():
        async with bench.open() as dlq:
            assert files(bench.root) == [temporary(key(1))]
            assert dlq.events == 0

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------ room


def test_reject_saves_no_more_at_the_limit_and_counts_the_backlog(tmp_path):
    size = len(body(3))
    backlog = 0
    bench = Bench(tmp_path, dlq_max_size_bytes=3 * size, backlog_bytes=lambda: backlog)

    async def main():
        nonlocal backlog
        async with bench.open() as dlq:
            await bench.save(1)
            backlog = size
            await bench.save(2)
            assert dlq.full
            with pytest.raises(DlqFull) as refusal:
                await bench.save(3)
            assert "DLQ_MAX_SIZE_BYTES" in refusal.value.hint
            backlog = 0
            assert not dlq.full
            await bench.save(3)
            assert dlq.full
            assert dlq.files == 3

    asyncio.run(main())


def test_saves_at_once_do_not_pass_the_limit_together(tmp_path):
    size = len(body(3))
    bench = Bench(tmp_path, dlq_max_size_bytes=3 * size)

    async def main():
        async with bench.open() as dlq:
            outcomes = await asyncio.gather(*(bench.save(n) for n in range(8)), return_exceptions=True)
            assert sum(isinstance(outcome, DlqFull) for outcome in outcomes) == 5
            assert dlq.size == 3 * size

    asyncio.run(main())


def test_force_saves_beyond_the_limit(tmp_path):
    bench = Bench(tmp_path, dlq_max_size_bytes=1)

    async def main():
        async with bench.open() as dlq:
            bench.metrics.books.accepted(3, Place.QUEUE)
            bench.metrics.books.ask(Place.QUEUE, lambda: 3 - dlq.events)
            await dlq.save(key(1, token=OWN), body(3), 3, force=True)
            assert dlq.files == 1

    asyncio.run(main())


class Volume:
    """`os.statvfs` of a volume of our choice."""

    def __init__(self, monkeypatch, *, total, free):
        self.total, self.free, self.asked = total, free, 0
        monkeypatch.setattr(Filesystem, "statvfs", lambda _, path: self(path))

    def __call__(self, _):
        self.asked += 1
        return os.statvfs_result((1, 1, self.total, self.free, self.free, 0, 0, 0, 0, 255))


def test_reject_saves_no_more_when_less_than_the_reserve_would_be_free(tmp_path, monkeypatch):
    volume = Volume(monkeypatch, total=10_000_000, free=50_000 + len(body(3)))
    bench = Bench(tmp_path, disk_reserve=50_000)

    async def main():
        async with bench.open() as dlq:
            await bench.save(1)
            assert dlq.full
            with pytest.raises(DlqFull):
                await bench.save(2)
            volume.free = 1_000_000
            dlq._room._measured_at -= 1.0
            await bench.save(2)
            assert not dlq.full

    asyncio.run(main())


def test_the_reserve_is_at_most_a_tenth_of_the_volume(tmp_path, monkeypatch):
    Volume(monkeypatch, total=1_000_000, free=200_000)
    bench = Bench(tmp_path, disk_reserve="1GiB")

    async def main():
        async with bench.open():
            await bench.save(1)

    asyncio.run(main())


def test_the_disk_is_measured_from_the_scan_on_at_most_once_a_second_and_never_on_the_loop(tmp_path, monkeypatch):
    volume = Volume(monkeypatch, total=10_000_000, free=9_000_000)
    bench = Bench(tmp_path)
    threads = set()
    now = time.monotonic()

    async def main():
        nonlocal now
        async with bench.open(scan=False) as dlq:
            real = volume.__call__
            dlq._room._clock = lambda: now
            monkeypatch.setattr(Filesystem, "statvfs", lambda _, path: threads.add(threading.get_ident()) or real(path))
            await dlq.scan()
            async with asyncio.timeout(10):
                while not dlq.disk_free:  # noqa: ASYNC110 - a thread asks
                    await asyncio.sleep(0)
            assert dlq.disk_free == 9_000_000
            for n in range(20):
                await bench.save(n)
                assert not dlq.full
            assert volume.asked == 1
            now += 1.0
            assert not dlq.full
            async with asyncio.timeout(10):
                while volume.asked < 2:  # noqa: ASYNC110 - a thread asks
                    await asyncio.sleep(0)
            assert threading.get_ident() not in threads

    asyncio.run(main())


def test_evict_drops_the_oldest_file_and_counts_it(tmp_path):
    size = len(body(3))
    bench = Bench(tmp_path, dlq_max_size_bytes=3 * size, dlq_on_full="evict")
    leave(bench.root, key(1, hour="dt=2025-12-01/hr=01"), body(3))
    leave(bench.root, key(2, hour="dt=2025-12-01/hr=02"), body(3))

    async def main():
        async with bench.open() as dlq:
            for n in range(10, 13):
                await bench.save(n)
                assert not dlq.full
            assert files(bench.root) == [key(n, token=OWN) for n in (10, 11, 12)]
            assert (bench.metrics.books.events_dropped[DropReason.EVICTED], bench.metrics.files_evicted) == (6, 2)
            await bench.save(13)
            assert await bench.all_keys() == [key(n, token=OWN) for n in (11, 12, 13)]

    asyncio.run(main())


def test_evict_leaves_the_file_that_is_being_put(tmp_path):
    size = len(body(3))
    bench = Bench(tmp_path, dlq_max_size_bytes=2 * size, dlq_on_full="evict")

    async def main():
        async with bench.open() as dlq:
            await bench.save(1)
            await bench.save(2)
            lent = await dlq.next()
            assert lent.key == key(1, token=OWN)
            await bench.save(3)
            assert (bench.root / lent.key).exists()
            assert files(bench.root) == [key(1, token=OWN), key(3, token=OWN)]
            await bench.store(lent)
            assert bench.metrics.books.events_dropped[DropReason.EVICTED] == 3

    asyncio.run(main())


def test_evict_drops_nothing_for_a_batch_that_can_never_fit(tmp_path):
    bench = Bench(tmp_path, dlq_max_size_bytes=len(body(3)), dlq_on_full="evict")

    async def main():
        async with bench.open() as dlq:
            await bench.save(1, 3)
            with pytest.raises(DlqFull):
                await bench.save(2, 3000)
            assert (dlq.files, bench.metrics.books.events_dropped[DropReason.EVICTED]) == (1, 0)

    asyncio.run(main())


def test_evict_passes_over_what_is_gone_already(tmp_path):
    bench = Bench(tmp_path, dlq_max_size_bytes=3 * len(body(3)), dlq_on_full="evict")

    async def main():
        async with bench.open() as dlq:
            for n in range(3):
                await bench.save(n)
            await bench.save(3)  # drops 0, and knows the names of 1 and 2
            await bench.store(await dlq.next())
            await bench.save(4)
            await bench.save(5)
            assert files(bench.root) == [key(n, token=OWN) for n in (3, 4, 5)]
            assert bench.metrics.books.events_dropped[DropReason.EVICTED] == 6

    asyncio.run(main())


def test_a_volume_that_cannot_be_measured_is_taken_to_have_room(tmp_path, monkeypatch):
    def statvfs(_):
        raise OSError(errno.EIO, "as told")

    monkeypatch.setattr(Filesystem, "statvfs", lambda _, path: statvfs(path))
    bench = Bench(tmp_path, disk_reserve="1GiB")

    async def main():
        async with bench.open() as dlq:
            await bench.save(1)
            assert not dlq.full

    asyncio.run(main())


def test_evict_refuses_when_there_is_nothing_left_to_drop(tmp_path):
    bench = Bench(tmp_path, dlq_max_size_bytes=10, dlq_on_full="evict")

    async def main():
        async with bench.open() as dlq:
            with pytest.raises(DlqFull):
                await bench.save(1)
            assert dlq.files == 0

    asyncio.run(main())


def test_evict_refuses_when_the_oldest_cannot_be_removed(tmp_path):
    bench = Bench(tmp_path, dlq_max_size_bytes=len(body(3)), dlq_on_full="evict")

    async def main():
        async with bench.open() as dlq:
            await bench.save(1)
            bench.fs.on("unlink").fail(errno.EIO)
            with pytest.raises(DlqFull):
                await bench.save(2)
            assert (dlq.events, bench.metrics.books.events_dropped[DropReason.EVICTED]) == (3, 0)

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------ slots


def test_an_adopted_slot_is_recovered_and_then_released(tmp_path):
    bench = Bench(tmp_path)
    gone = Slot.take_first_free(bench.fs, bench.settings.dlq_dir)
    leave(gone.path, key(1), body(4))
    gone.release()

    async def main():
        async with bench.open() as dlq:
            await dlq.adopt(Slot.adopt_free(bench.fs, bench.settings.dlq_dir).slots)
            assert bench.metrics.books.events_recovered == dlq.events == 4
            file = await dlq.next()
            assert file.path == gone.path / key(1)
            assert Slot.adopt_free(bench.fs, bench.settings.dlq_dir).slots == []
            await bench.store(file)
            assert await dlq.next() is None
            again = Slot.take_first_free(bench.fs, bench.settings.dlq_dir)
            assert again.path == gone.path
            again.release()
            await bench.save(1)
            assert (bench.root / key(1, token=OWN)).exists()

    asyncio.run(main())


def test_c1_a_folder_that_cannot_be_read_when_it_is_counted_is_unknown_until_a_later_count_reads_it(bench):
    leave(bench.root, key(1), body(4))
    failing = bench.fs.on("scandir", under="hr=14", times=2).fail(errno.EIO)

    async def main():
        async with bench.open() as dlq:
            assert (dlq.events, dlq.unknown, dlq.scanning) == (0, 1, False)
            await dlq.adopt([])
            assert (dlq.events, dlq.unknown, dlq.scanning) == (0, 1, False)
            await dlq.adopt([])
            assert (failing.reached.is_set(), dlq.unknown) == (True, 0)
            assert bench.metrics.books.events_recovered == dlq.events == 4
            assert len(await bench.all_keys()) == 1

    asyncio.run(main())


def test_the_loop_is_never_blocked_by_a_disk_that_hangs(bench):
    leave(bench.root, key(1), body(4))

    async def main():
        async with bench.open() as dlq:
            letter = await dlq.next()
            hang = bench.fs.on("fdatasync", "unlink").hang()
            saving = asyncio.ensure_future(bench.save(2))
            removing = asyncio.ensure_future(bench.store(letter))
            began = time.monotonic()
            for _ in range(50):
                await asyncio.sleep(0)
            assert time.monotonic() - began < 1.0
            assert not saving.done()
            assert not removing.done()
            hang.release()
            await asyncio.gather(saving, removing)

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------ letters


@pytest.mark.parametrize("failure", [None, ValueError, asyncio.CancelledError])
def test_a_letter_is_in_its_queue_again_whatever_happens_while_it_is_lent(bench, failure):
    async def main():
        async with bench.open() as dlq:
            await bench.save(1)
            with contextlib.suppress(ValueError, asyncio.CancelledError):
                async with await dlq.next() as letter:
                    assert (await letter.contents()).body == body(3)
                    assert await dlq.find(letter.key) is Whereabouts.UNKNOWN
                    if failure is not None:
                        raise failure
            assert await bench.all_keys() == [key(1, token=OWN)]

    asyncio.run(main())


@pytest.mark.parametrize("failure", [None, ValueError, asyncio.CancelledError])
def test_a_settled_letter_is_out_of_the_books_at_once_and_off_the_disk_whatever_happens_then(bench, failure):
    async def main():
        async with bench.open() as dlq:
            await bench.save(1)
            with contextlib.suppress(ValueError, asyncio.CancelledError):
                async with await dlq.next() as letter:
                    bench.metrics.books.stored(letter.events, Place.DLQ)
                    letter.settle()
                    letter.settle()
                    assert (dlq.files, dlq.events, dlq.size) == (0, 0, 0)
                    if failure is not None:
                        raise failure
            assert files(bench.root) == []

    asyncio.run(main())
