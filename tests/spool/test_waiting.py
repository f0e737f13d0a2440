"""The promises of `Waiting`, for all that lends letters: the dead letters, and the journal's backlog.

What the command's view of the journal keeps of them is at the end: it never lends, and tells where a key is.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest

from ingest.disk.lane import Lane
from ingest.disk.slots import Slot
from ingest.spool import adoption
from ingest.spool.backlog import Backlog
from ingest.spool.places import Places
from ingest.spool.spool import Spool
from ingest.spool.waiting import Whereabouts
from ingest.telemetry import DropReason
from ingest.telemetry.metrics import Metrics
from tests.stand_ins.disk import Disk
from tests.stand_ins.letters import OWN, Books, bodies, body, files, key, leave, lines, settings

NUMBERS = [errno.EIO, errno.EACCES, errno.ESTALE]


class Bench:
    """A slot that earlier processes left, and what lends its files."""

    def __init__(self, tmp_path):
        self.settings = settings(tmp_path)
        self.disk = Disk()
        self.metrics = Metrics()
        self.lane = Lane("disk")
        self.executor = ThreadPoolExecutor(2)
        self.wait = 10.0
        self.slot = Slot.take_first_free(self.disk, self.base)
        self.slept = 0

    @asynccontextmanager
    async def open(self):
        journal, dlq = (self.settings.journal_dir, self.lane), (self.settings.dlq_dir, self.lane)
        self.places = Places(self.disk, journal, dlq, wait=self.wait)
        self.waiting = waiting = self.make()
        self.metrics.books.ask(waiting.place, lambda: waiting.events)
        try:
            async with Books(self.metrics):
                await waiting.scan()
                yield waiting
        finally:
            self.disk.heal()
            self.lane.abandon()
            self.executor.shutdown()

    async def one_pass(self):
        """The keys of one whole pass, after the one that is under way."""
        for _ in range(2):
            found = []
            while (letter := await self.waiting.next()) is not None:
                async with letter:
                    found.append(letter.key)
        return found

    async def store(self, letter):
        async with letter:
            self.metrics.books.stored(letter.events, letter.lender.place)
            letter.settle()

    def figures(self):
        return (self.waiting.files, self.waiting.events, self.waiting.size, self.waiting.unknown)


class DeadLetters(Bench):
    name = "letters"

    @property
    def base(self):
        return self.settings.dlq_dir

    def make(self):
        return Spool(
            self.settings,
            self.disk,
            [self.slot],
            self.metrics,
            self.lane,
            self.executor,
            self.places,
            token=OWN,
            wait=self.wait,
            sleep=lambda _: asyncio.sleep(0),
        )

    def path(self, name, slot=None):
        return (slot or self.slot.path) / name

    def data(self, events):
        return body(events)


class Segments(Bench):
    name = "backlog"

    @property
    def base(self):
        return self.settings.journal_dir

    def make(self):
        return Backlog(
            self.disk, self.slot, self.metrics, self.lane, self.executor, self.places, token=OWN, wait=self.wait
        )

    def path(self, name, slot=None):
        return (slot or self.slot.path) / name.removesuffix(".gz")

    def data(self, events):
        return lines(events)


@pytest.fixture(params=[DeadLetters, Segments], ids=lambda kind: kind.name)
def bench(request, tmp_path):
    made = request.param(tmp_path)

    def left(name, events, slot=None):
        data = made.data(events)
        path = made.path(name, slot)
        leave(path.parent, path.name, data)
        return len(data)

    made.leave = left
    return made


# ------------------------------------------------------------------------------------------------------ lending


def test_each_pass_lends_every_file_once_the_oldest_first_and_ends(bench):
    names = [key(n, hour=f"dt=2025-12-02/hr={n:02d}", unix=1764633600 + 3600 * n) for n in range(5)]
    for name in reversed(names):
        bench.leave(name, 2)

    async def main():
        async with bench.open():
            assert await bench.one_pass() == names
            assert await bench.one_pass() == names

    asyncio.run(main())


def test_what_was_left_is_in_the_books_when_the_scan_is_done(bench):
    sizes = [bench.leave(key(n), n + 1) for n in range(4)]

    async def main():
        async with bench.open() as waiting:
            assert bench.figures() == (4, 10, sum(sizes), 0)
            assert bench.metrics.books.events_recovered == 10
            assert not waiting.scanning

    asyncio.run(main())


def test_a_lent_file_is_nobody_else_s(bench):
    bench.leave(key(1), 2)

    async def main():
        async with bench.open() as waiting, await waiting.next():
            assert await waiting.next() is None
            assert await waiting.next() is None
            assert await waiting.find(key(1)) is Whereabouts.UNKNOWN

    asyncio.run(main())


@pytest.mark.parametrize("failure", [None, ValueError, OSError, asyncio.CancelledError])
@pytest.mark.parametrize("by", ["next", "find"])
def test_a_file_is_in_its_queue_again_when_the_block_ends_however_it_ends(bench, by, failure):
    size = bench.leave(key(1), 2)

    async def main():
        async with bench.open() as waiting:
            letter = await waiting.next() if by == "next" else await waiting.find(key(1))
            with contextlib.suppress(ValueError, OSError, asyncio.CancelledError):
                async with letter:
                    if failure is not None:
                        raise failure
            assert bench.figures() == (1, 2, size, 0)
            assert await bench.one_pass() == [key(1)]

    asyncio.run(main())


@pytest.mark.parametrize("failure", [None, ValueError, asyncio.CancelledError])
def test_a_settled_file_leaves_the_books_at_once_and_the_disk_when_the_block_ends(bench, failure):
    bench.leave(key(1), 2)

    async def main():
        async with bench.open() as waiting:
            with contextlib.suppress(ValueError, asyncio.CancelledError):
                async with await waiting.next() as letter:
                    bench.metrics.books.stored(letter.events, waiting.place)
                    letter.settle()
                    assert bench.figures() == (0, 0, 0, 0)
                    assert files(bench.base) != []
                    if failure is not None:
                        raise failure
            assert files(bench.base) == []
            assert sorted(path.name for path in bench.slot.path.iterdir()) == ["lock"], "an emptied hour stays"
            assert await bench.one_pass() == []

    asyncio.run(main())


def test_a_settled_file_that_cannot_be_removed_leaves_the_books_once_and_is_lent_no_more(bench):
    bench.leave(key(1), 2)

    async def main():
        async with bench.open() as waiting:
            bench.disk.on("unlink").fail(errno.EROFS)
            await bench.store(await waiting.next())
            assert bench.figures()[:3] == (0, 0, 0)
            assert await bench.one_pass() == []
            assert await waiting.next() is None

    asyncio.run(main())


def test_a_settled_file_that_cannot_be_removed_is_not_found_again_with_what_could_not_be_read_beside_it(bench):
    bench.leave(key(1), 2)
    bench.leave(key(2, prefix="other"), 3)
    unread = bench.disk.on("open_read", when=lambda path: "other" in path.parts).fail(errno.EIO)

    async def main():
        async with bench.open() as waiting:
            bench.disk.on("unlink").fail(errno.EROFS)
            await bench.store(await waiting.next() or await waiting.next())
            await waiting.adopt([])
            assert (bench.metrics.books.events_recovered, waiting.events) == (2, 0)
            unread.lift()
            await waiting.adopt([])
            assert (bench.metrics.books.events_recovered, waiting.events) == (5, 3)
            assert await bench.one_pass() == [key(2, prefix="other")]

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------ contents


def test_one_reading_gives_the_verdict_and_what_is_to_be_put(bench):
    size = bench.leave(key(1), 3000)

    async def main():
        async with bench.open() as waiting, await waiting.next() as letter:
            read = bench.disk.on("read")
            contents = await letter.contents()
            assert (contents.found.sound, contents.found.events, contents.found.bad_lines) == (True, 3000, 0)
            assert bodies(contents.body) == [str(n) for n in range(3000)]
            assert await letter.original() == bench.path(key(1)).read_bytes()
            assert read.count <= 2 * (size // (1 << 20) + 2), "it was read more than once by contents"

    asyncio.run(main())


def test_without_a_sound_line_there_is_nothing_to_put(bench):
    bench.leave(key(1), 2)
    bench.path(key(1)).write_bytes(b"no line of ours\n")

    async def main():
        async with bench.open() as waiting, await waiting.next() as letter:
            contents = await letter.contents()
            assert (contents.body, contents.found.events, contents.found.sound) == (None, 0, False)

    asyncio.run(main())


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("operation", ["open_read", "read"])
def test_a_file_that_cannot_be_read_is_no_damaged_one_and_stays(bench, operation, number):
    size = bench.leave(key(1), 2)

    async def main():
        async with bench.open() as waiting:
            async with await waiting.next() as letter:
                fault = bench.disk.on(operation, under="hr=14").fail(number)
                with pytest.raises(OSError) as failure:  # noqa: PT011 - any number of these
                    await letter.contents()
                assert failure.value.errno == number
                fault.lift()
            assert bench.figures() == (1, 2, size, 0)
            assert await bench.one_pass() == [key(1)]

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------ where a key is


def test_a_key_that_nobody_has_is_not_there(bench):
    bench.leave(key(1), 2)

    async def main():
        async with bench.open() as waiting:
            assert await waiting.find(key(2)) is Whereabouts.NOT_THERE

    asyncio.run(main())


def test_a11_a_key_in_a_slot_of_another_process_is_unknown(bench):
    bench.leave(key(1), 2, bench.base / "7")

    async def main():
        async with bench.open() as waiting:
            assert await waiting.find(key(1)) is Whereabouts.UNKNOWN

    asyncio.run(main())


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("slot", ["0", "7"])
def test_a11_a_key_is_unknown_while_a_place_that_may_hold_it_cannot_be_read(bench, slot, number):
    bench.leave(key(1), 2)
    bench.leave(key(9), 2, bench.base / "7")

    async def main():
        async with bench.open() as waiting:
            fault = bench.disk.on("stat", under=bench.base / slot).fail(number)
            assert await waiting.find(key(2)) is Whereabouts.UNKNOWN
            fault.lift()
            assert await waiting.find(key(2)) is Whereabouts.NOT_THERE

    asyncio.run(main())


@pytest.mark.parametrize("number", NUMBERS)
def test_a11_a_key_is_unknown_while_the_slots_cannot_be_listed(bench, number):
    async def main():
        async with bench.open() as waiting:
            fault = bench.disk.on("listdir", under=bench.base).fail(number)
            assert await waiting.find(key(2)) is Whereabouts.UNKNOWN
            fault.lift()
            assert await waiting.find(key(2)) is Whereabouts.NOT_THERE

    asyncio.run(main())


# -------------------------------------------------------------------------------------------------- what cannot be read


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    ("operation", "under"),
    [("open_read", "000000001"), ("read", "000000001"), ("scandir", "hr=14"), ("readdir", "hr=14"), ("scandir", "dt=")],
)
def test_c1_what_cannot_be_read_at_the_start_is_unknown_and_enters_the_books_while_the_process_lives(
    bench, operation, under, number
):
    sizes = [bench.leave(key(n), 2) for n in (1, 2)]
    bench.leave(key(3, prefix="other"), 5)
    fault = bench.disk.on(operation, when=lambda path: "raw" in path.parts and under in str(path)).fail(number)

    async def main():
        async with bench.open() as waiting:
            assert waiting.unknown == 1
            assert not waiting.scanning
            assert key(3, prefix="other") in await bench.one_pass(), "it hides what lies beside it"
            await waiting.adopt([])
            assert waiting.unknown == 1
            fault.lift()
            await waiting.adopt([])
            assert waiting.unknown == 0
            assert bench.metrics.books.events_recovered == waiting.events == 9
            assert sorted(await bench.one_pass()) == sorted([key(1), key(2), key(3, prefix="other")])
            assert waiting.size >= sum(sizes)

    asyncio.run(main())


@pytest.mark.parametrize("number", NUMBERS)
def test_c1_a_slot_whose_own_folder_cannot_be_read_is_unknown_until_it_can(bench, number):
    bench.leave(key(1), 2)
    fault = bench.disk.on("scandir", when=lambda path: path == bench.slot.path).fail(number)

    async def main():
        async with bench.open() as waiting:
            assert (waiting.files, waiting.unknown, waiting.scanning) == (0, 1, False)
            assert await bench.one_pass() == []
            fault.lift()
            await waiting.adopt([])
            assert (waiting.files, waiting.events, waiting.unknown) == (1, 2, 0)
            assert await bench.one_pass() == [key(1)]

    asyncio.run(main())


def test_c1_an_adopted_slot_is_kept_while_something_in_it_is_unknown(bench):
    gone = Slot.take_first_free(bench.disk, bench.base)
    bench.leave(key(1), 2, gone.path)
    bench.leave(key(2, prefix="other"), 2, gone.path)
    gone.release()
    fault = bench.disk.on("scandir", under=gone.path / "raw").fail(errno.EIO)

    async def main():
        async with bench.open() as waiting:
            await waiting.adopt(Slot.adopt_free(bench.disk, bench.base).slots)
            assert (waiting.adopted, waiting.unknown, waiting.files) == (1, 1, 1)
            await bench.store(await waiting.next())
            assert await bench.one_pass() == []
            assert (waiting.adopted, waiting.unknown, waiting.files) == (1, 1, 0)
            fault.lift()
            await waiting.adopt([])
            await bench.store(await waiting.next() or await waiting.next())
            assert await bench.one_pass() == []
            assert (waiting.adopted, waiting.unknown) == (0, 0)

    asyncio.run(main())


@pytest.fixture
def few_slots(monkeypatch):
    """Of slots of dead processes two are held, one more is taken at a time, and after two looks room is made."""
    for name, value in (("ADOPTED_MAX", 2), ("ADOPT_AT_ONCE", 1), ("STANDS_AFTER", 2), ("limit", lambda: 3)):
        monkeypatch.setattr(adoption, name, value)


@pytest.mark.usefixtures("few_slots")
def test_slots_that_do_not_become_empty_take_turns_and_what_lies_behind_them_is_found(bench):
    held = [Slot.take_first_free(bench.disk, bench.base) for _ in range(5)]
    for number, slot in enumerate(held):
        bench.leave(key(number), 2, slot.path)
        slot.release()

    async def main():
        async with bench.open() as waiting:
            adopting = adoption.Adoption(bench.disk, bench.base, bench.lane, waiting)
            await adopting.look()
            lent = await waiting.next()
            seen = set()
            for _ in range(20):
                await adopting.look()
                assert waiting.adopted <= 3
                assert waiting.unknown == 0
                seen.update(await bench.one_pass())
            assert seen == {key(number) for number in range(1, 5)}, "all but the one that is lent, and stays held"
            books = bench.metrics.books
            assert books.events_handed_on == books.events_recovered - waiting.events > 8
            await bench.store(lent)
            while books.events_stored < 10:
                if (letter := await waiting.next()) is not None:
                    await bench.store(letter)
                else:
                    await adopting.look()
            assert await bench.one_pass() == []
            assert (waiting.adopted, waiting.files, waiting.size) == (0, 0, 0)

    asyncio.run(main())


@pytest.mark.usefixtures("few_slots")
def test_slots_are_let_go_only_where_others_wait(bench):
    held = [Slot.take_first_free(bench.disk, bench.base) for _ in range(2)]
    for number, slot in enumerate(held):
        bench.leave(key(number), 2, slot.path)
        slot.release()

    async def main():
        async with bench.open() as waiting:
            adopting = adoption.Adoption(bench.disk, bench.base, bench.lane, waiting)
            for _ in range(12):
                await adopting.look()
            assert waiting.adopted == 2
            assert (bench.metrics.books.events_recovered, bench.metrics.books.events_handed_on) == (4, 0)

    asyncio.run(main())


def test_c11_a_file_that_something_else_removed_is_pending_no_more(bench):
    bench.leave(key(1), 5)
    bench.leave(key(2), 3)

    async def main():
        async with bench.open() as waiting:
            bench.path(key(1)).unlink()
            await bench.store(await waiting.next())
            assert await bench.one_pass() == []
            assert await bench.one_pass() == []
            assert bench.figures() == (0, 0, 0, 0)
            assert bench.metrics.books.events_dropped[DropReason.CORRUPT] == 5

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------- a disk that hangs


def test_c6_nobody_waits_for_a_disk_that_hangs_and_what_it_lent_too_late_is_lent_again(bench):
    bench.wait = 0.05
    bench.leave(key(1), 2)

    async def main():
        async with bench.open() as waiting:
            hang = bench.disk.on("open_read", "stat").hang()
            async with asyncio.timeout(5):
                assert await waiting.next() is None
                assert await waiting.find(key(2)) is Whereabouts.UNKNOWN
            hang.lift()
            async with asyncio.timeout(5):
                while await bench.one_pass() != [key(1)]:  # noqa: ASYNC110 - a thread gives it back
                    await asyncio.sleep(0.01)
            assert (waiting.files, waiting.events) == (1, 2)

    asyncio.run(main())


def test_c6_a_file_settled_while_the_disk_hangs_is_out_of_the_books_and_goes_when_it_is_back(bench):
    bench.wait = 0.05
    bench.leave(key(1), 2)

    async def main():
        async with bench.open() as waiting:
            letter = await waiting.next()
            hang = bench.disk.on("unlink").hang()
            async with asyncio.timeout(5):
                await bench.store(letter)
            assert (waiting.files, waiting.events) == (0, 0)
            hang.lift()
            async with asyncio.timeout(5):
                while files(bench.base):  # noqa: ASYNC110 - a thread removes it
                    await asyncio.sleep(0.01)

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------ the command's
