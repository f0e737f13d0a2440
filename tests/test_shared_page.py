"""The page that workers share: whole figures at every instant, and what an ended worker has counted stays."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from ingest import shared_page
from ingest.shared_page import ADDS, ENDED, FREE, HANDED_ON, LEAVING, OPENS, SERVING, STAYS, TAKEN, SharedPage

RULES = (ADDS, OPENS, OPENS, HANDED_ON, STAYS, ADDS)
LAYOUT = 7
REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def page():
    made = SharedPage.make(4)
    yield made
    os.close(made.descriptor)


def worker(page, figures, layout=LAYOUT):
    _, region = page.take()
    region.lay_out(layout, RULES, figures[:4], figures[4:])
    return region


def shown(page, layout=LAYOUT):
    return [(region.state, figures) for region, figures in page.readable(layout)]


def test_a_process_that_opens_the_page_sees_what_another_one_wrote(page):
    region = worker(page, [1, 2, 3, 4, 5, 6])
    region.enter(SERVING)
    region.beat()
    region.write_status(b"well")
    page.restarted()
    other = SharedPage(page.descriptor)
    assert shown(other) == [(TAKEN, [1, 2, 3, 4, 5, 6])]
    assert (other.regions[0].phase, other.regions[0].beats, other.restarts) == (SERVING, 1, 1)
    assert other.regions[0].status() == b"well"


def test_nothing_is_read_of_a_worker_before_its_first_figures(page):
    number, region = page.take()
    assert (number, region.state, region.status()) == (0, TAKEN, b"")
    assert shown(page) == []


def test_what_an_ended_worker_has_counted_stays_and_what_it_left_open_is_handed_on(page):
    region = worker(page, [10, 2, 1, 0, 99, 3])
    region.enter(LEAVING)
    page.end(region)
    assert shown(page) == [(ENDED, [10, 0, 0, 3, 0, 3])]
    again = worker(page, [5, 1, 0, 1, 98, 1])
    page.end(again)
    assert shown(page) == [(ENDED, [15, 0, 0, 5, 0, 4])]
    assert again.state == FREE


def test_regions_do_not_run_out_however_many_workers_end(page):
    for number in range(1, 20):
        page.end(worker(page, [1, 0, 0, 0, 0, 0]))
        assert shown(page) == [(ENDED, [number, 0, 0, 0, 0, 0])]


def test_a_worker_that_ended_before_it_counted_leaves_nothing(page):
    _, region = page.take()
    page.end(region)
    assert {region.state for region in page.regions} == {FREE}


def test_figures_of_another_layout_are_not_taken_for_ours_and_make_room(page):
    for layout in range(1, 9):
        page.end(worker(page, [1, 0, 0, 0, 0, 0], layout))
    assert shown(page, 8) == [(ENDED, [1, 0, 0, 0, 0, 0])]
    living = [worker(page, [1, 0, 0, 0, 0, 0], 8) for _ in range(3)]
    assert page.take() is None
    page.end(living[0])
    assert page.take() is not None


def test_a_writer_killed_in_the_middle_leaves_the_figures_before(page):
    region = worker(page, [1, 2, 3, 4, 5, 6])

    def pack_and_die(buffer, offset, *figures):
        struct.pack_into("4d", buffer, offset, *(-1.0 for _ in figures))
        raise KeyboardInterrupt

    region._pack_quick = pack_and_die
    with pytest.raises(KeyboardInterrupt):
        region.write_quick([7, 8, 9, 10])
    assert shown(page) == [(TAKEN, [1, 2, 3, 4, 5, 6])]
    page.end(region)
    assert shown(page) == [(ENDED, [1, 0, 0, 9, 0, 6])]


def test_a_status_that_is_too_long_leaves_the_one_before(page):
    region = worker(page, [0] * 6)
    region.write_status(b"short")
    region.write_status(b"x" * shared_page.STATUS_BYTES)
    assert region.status() == b"short"


def test_more_figures_than_there_is_room_for_are_a_slip(page):
    _, region = page.take()
    with pytest.raises(ValueError, match="too many"):
        region.lay_out(LAYOUT, RULES, [0] * (shared_page.QUICK + 1), [])


WRITER = """
import sys
from ingest.shared_page import SharedPage
page = SharedPage(int(sys.argv[1]))
region = page.regions[0]
region.lay_out(7, [1] * 60, [0] * 40, [0] * 20)
for number in range(1, 150_000):
    region.write_quick([number] * 40)
"""


def test_a_reader_never_sees_the_figures_of_two_instants(page):
    page.take()
    command = [sys.executable, "-c", WRITER, str(page.descriptor)]
    with subprocess.Popen(command, pass_fds=[page.descriptor], cwd=REPOSITORY) as writer:
        seen = set()
        while writer.poll() is None:
            for _, figures in page.readable(LAYOUT):
                assert len(set(figures[:40])) == 1
                seen.add(figures[0])
    assert writer.returncode == 0
    assert len(seen) > 5


def test_what_a_worker_leaves_is_never_seen_twice_or_not_at_all(page):
    """A reader in another process looks while the supervisor moves it."""
    reader = """
import sys
from ingest.shared_page import SharedPage
page = SharedPage(int(sys.argv[1]))
print(flush=True)
last = 0
while last < 2000:
    total = sum(figures[0] for _, figures in page.readable(7))
    assert last <= total <= 2000, (last, total)
    last = total
"""
    page.end(worker(page, [0, 0, 0, 0, 0, 0]))
    command = [sys.executable, "-c", reader, str(page.descriptor)]
    with subprocess.Popen(command, pass_fds=[page.descriptor], cwd=REPOSITORY, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        for _ in range(2000):
            page.end(worker(page, [1, 0, 0, 0, 0, 0]))
        assert other.wait(60) == 0
