"""Every wait of a supervisor ends, whatever a worker does."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.process.collector import bare_environment
from tests.process.odd_workers import LEFT, ODD, STANDS
from tests.process.test_workers import is_gone, pids_of, wait_for


@pytest.fixture
def odd(collectors, tmp_path):
    """`odd(**modes)` starts a supervisor whose workers behave so; `odd.become` changes it for the next ones."""

    def become(**modes):
        for name, mode in modes.items():
            (folder / f"mode.{name[1:]}").write_text(mode)

    def start(**modes):
        become(**modes)
        return collectors({}, command=ODD, measured=False).spawn()

    folder = tmp_path / "run"
    folder.mkdir()
    start.become = become
    start.folder = folder
    return start


def ends(supervisor, pid):
    """How a worker ended, once it has."""
    wait_for(lambda: any(line["pid"] == pid for line in supervisor.said("worker_ended")))
    (line,) = [line for line in supervisor.said("worker_ended") if line["pid"] == pid]
    return line.get("signal", line.get("code"))


def stop(supervisor):
    supervisor.terminate()
    assert supervisor.wait(10) == 0, supervisor.tail()


def test_a_bug_in_the_opening_is_told(tmp_path):
    program = "from ingest import supervisor; supervisor.supervise(lambda to: 1 / 0)"
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=bare_environment({}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize(
    ("modes", "code"),
    [
        ({"w0": "deaf", "w1": "deaf"}, 1),
        ({"w0": "exit 3", "w1": "exit 3"}, 3),
        ({"w0": "exit 2", "w1": "deaf"}, 2),
    ],
)
def test_workers_that_never_serve_end_the_supervisor_with_their_code(odd, modes, code):
    supervisor = odd(**modes)
    assert supervisor.wait(20) == code
    assert bool(supervisor.said("no_worker_serves")) is (code != 2)


def test_a_system_that_starts_no_process_is_told(odd):
    (odd.folder / "no-command").touch()
    supervisor = odd()
    assert supervisor.wait(20) == 1
    assert supervisor.said("worker_not_started")[0]["error"] == "No such file or directory"


@pytest.mark.parametrize("mode", ["crashes", "exit 2"])
def test_a_worker_that_ends_again_and_again_is_started_ever_more_seldom_and_heals(odd, mode):
    supervisor = odd()
    first, second = pids_of(supervisor)
    odd.become(w0=mode)
    os.kill(first, signal.SIGKILL)
    supervisor.wait_said("worker_ended", 6)
    starts = [line["timestamp"] for line in supervisor.said("worker_started") if line["worker"] == 0]
    odd.become(w0="well")
    wait_for(lambda: not is_gone(pids_of(supervisor)[0]))
    ended = [line for line in supervisor.said("worker_ended") if line["worker"] == 0]
    assert ended[0]["signal"] == "SIGKILL"
    seconds = [float(stamp[17:-1]) for stamp in starts]
    pauses = [(after - before) % 60 for before, after in pairwise(seconds)]
    assert max(pauses) >= 0.4
    assert pids_of(supervisor)[1] == second, "nobody else noticed"
    stop(supervisor)


def test_a_worker_whose_loop_stands_is_killed_and_followed(odd):
    supervisor = odd(w0="stands")
    (killed,) = supervisor.wait_said("worker_killed")
    assert (killed["worker"], killed["why"]) == (0, "its loop stands")
    odd.become(w0="well")
    _, second = pids_of(supervisor)
    os.kill(second, signal.SIGSTOP)
    assert ends(supervisor, second) == "SIGKILL"
    wait_for(lambda: pids_of(supervisor)[1] != second)
    stop(supervisor)


def test_what_stopped_the_supervisor_too_is_held_against_nobody(odd):
    supervisor = odd()
    everybody = [supervisor.pid, *pids_of(supervisor)]
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in everybody:
            os.kill(pid, number)
        time.sleep(1.5 * STANDS)
    assert not supervisor.said("worker_killed")
    stop(supervisor)


def test_a_worker_that_does_not_end_is_killed_in_time(odd):
    supervisor = odd(w0="stubborn")
    first, _ = pids_of(supervisor)
    began = time.monotonic()
    supervisor.terminate()
    assert supervisor.wait(10) == 1
    assert time.monotonic() - began <= LEFT + 1.0
    assert ends(supervisor, first) == "SIGKILL"
    assert is_gone(first)


@pytest.mark.parametrize(("mode", "why"), [("deaf", "did not serve"), ("exit 2", "ended before it served")])
def test_a_successor_that_does_not_serve_changes_nothing(odd, mode, why):
    supervisor = odd()
    before = pids_of(supervisor)
    odd.become(w0=mode)
    os.kill(supervisor.pid, signal.SIGHUP)
    (told,) = supervisor.wait_said("roll_given_up")
    assert (told["worker"], told["why"]) == (0, f"its successor {why}")
    assert pids_of(supervisor) == before
    odd.become(w0="well")
    os.kill(supervisor.pid, signal.SIGHUP)
    supervisor.wait_said("rolled")
    assert set(pids_of(supervisor)).isdisjoint(before)
    stop(supervisor)


def test_a_hangup_while_workers_are_replaced_has_it_done_once_more(odd):
    supervisor = odd()
    pids_of(supervisor)
    for _ in range(3):
        os.kill(supervisor.pid, signal.SIGHUP)
        supervisor.wait_said("rolling")
    supervisor.wait_said("rolled", 2)
    stop(supervisor)
    assert len(supervisor.said("rolling")) == 2


def test_a_worker_that_does_not_go_holds_up_no_roll(odd):
    supervisor = odd(w0="stubborn")
    first, _ = pids_of(supervisor)
    odd.become(w0="well")
    os.kill(supervisor.pid, signal.SIGHUP)
    supervisor.wait_said("rolled")
    assert ends(supervisor, first) == "SIGKILL"
    stop(supervisor)


def test_a_signal_to_stop_ends_a_roll(odd):
    supervisor = odd()
    pids_of(supervisor)
    odd.become(w0="deaf")
    os.kill(supervisor.pid, signal.SIGHUP)
    supervisor.wait_said("worker_started", 3)
    pids = [line["pid"] for line in supervisor.said("worker_started")]
    supervisor.terminate()
    assert supervisor.wait(10) == 1, "the successor had to be killed"
    assert all(map(is_gone, pids))


def test_the_first_process_of_a_container_reaps_what_others_left(odd):
    supervisor = odd(w0="leaves an orphan")
    pids_of(supervisor)
    wait_for((odd.folder / "orphan").exists)
    orphan = int((odd.folder / "orphan").read_text() or 0)
    wait_for(lambda: not Path(f"/proc/{orphan}").exists())
    assert not supervisor.said("worker_ended")
    stop(supervisor)
