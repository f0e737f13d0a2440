"""The promises of docs/durability.md under any order of events, faults and deaths, in lockstep with a simple model.

`Collectors` is a state machine whose rules are what can happen to one or two processes on one disk: ticks of events,
time, a store that fails, hangs or loses its answers, a disk that fails in each of its calls or is full, clock steps,
signals, SIGKILL and power cuts before any call to the file system, restarts. After each rule the books balance and no
object has been replaced by less; in the end everything is made well, what is on the disk is recovered, and the store
is held against the model (`ledger.Ledger`): what was acknowledged is stored exactly once, what was refused is not.

What it found is kept in `test_journal`, as tests with the fewest steps that show it.
"""

from __future__ import annotations

import errno
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.model.store import PutFate
from tests.model.time import START
from tests.model.world import World
from tests.stand_ins.disk import LOOKS

MODES = ("memory", "journal", "fsync")

SEEDS = st.integers(0, 5)
FINISH = st.sampled_from([True, True, False])
WHICH = st.integers(0, 3)


def choice(seed: int):
    """What a power cut keeps of that which was not synced: nothing, all, or what chance has it."""
    return [lambda _: 0, lambda n: n - 1][seed] if seed < 2 else random.Random(seed).randrange


class Collectors(RuleBasedStateMachine):
    """What can happen, one rule each. `finish`: whether the threads end their work before the next thing happens."""

    mode = "journal"
    reached: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="estat-model-"))
        self.world: World | None = None
        self.disturbed = False
        """Something happened that may be a reason for 503."""

    def teardown(self) -> None:
        try:
            if self.world is not None and sys.exc_info()[0] is None:
                self.world.take_events()
                self.world.recover()
        finally:
            if self.world is not None:
                self.world.close()
                self.reached.update(self.world.reached)
            shutil.rmtree(self.folder)

    @initialize(
        batch_size=st.integers(1, 6),
        channel_size=st.integers(0, 3),
        upload_queue=st.integers(1, 2),
        upload_concurrency=st.integers(1, 2),
        s3_app_retries=st.integers(1, 2),
        dlq_max_size_bytes=st.sampled_from([1 << 30, 1 << 30, 400]),
        dlq_on_full=st.sampled_from(["reject", "evict"]),
        dlq_max_age=st.sampled_from(["0", "90s"]),
        max_buffer_bytes=st.sampled_from([1 << 26, 1 << 26, 1000]),
        wall=st.sampled_from([START + 100, START + 3580]),
    )
    def begin(self, wall, **variables):
        self.disturbed = variables["dlq_max_size_bytes"] == 400 or variables["max_buffer_bytes"] == 1000
        self.world = World(self.folder, wall=wall, durability=self.mode, flush_interval="10s", **variables)
        self.world.start()

    def process(self, which):
        """One of those that live; if none does, a new one is tried to be started."""
        processes = self.world.processes or [self.world.start()]
        return processes[which % len(processes)]

    def run(self, finish):
        if finish:
            self.world.run()
        else:
            self.world.run_loops()

    # Clients.

    @rule(
        which=WHICH,
        events=st.integers(1, 7),
        padding=st.sampled_from([0, 0, 150]),
        blanks=st.sampled_from([(), (), (0,), (1, 3), (7,)]),
        together=st.sampled_from([1, 1, 2, 5]),
        finish=FINISH,
    )
    def commit(self, which, events, padding, blanks, together, finish):
        if process := self.process(which):
            process.commit(events, padding=padding, blanks=blanks, together=together, run=finish)

    @rule(which=WHICH, events=st.integers(0, 2), finish=FINISH)
    def commit_a_few_and_an_answer_to_no_event(self, which, events, finish):
        if process := self.process(which):
            process.commit(events, blanks=(events,), run=finish)

    @rule(which=WHICH, finish=FINISH)
    def seal(self, which, finish):
        if process := self.process(which):
            process.seal(run=finish)

    # Time and threads.

    @rule(seconds=st.sampled_from([1.5, 0.01, 0.3, 3.5, 11.0, 40.0, 100.0]), finish=FINISH)
    def advance(self, seconds, finish):
        self.world.advance(seconds, threads=finish)

    @rule(seconds=st.sampled_from([-3600, 3600, -1, 1]))
    def step_the_clock(self, seconds):
        self.world.time.step(seconds)

    @precondition(lambda self: any(process.jobs for process in self.world.processes))
    @rule(which=st.integers(0, 7))
    def a_thread_goes_on(self, which):
        self.world.run_job(which)

    @precondition(lambda self: any(process.jobs for process in self.world.processes))
    @rule()
    def all_threads_go_on(self):
        self.world.run()

    # The store.

    @rule(fate=st.sampled_from(["fail", "lose the answer", "hang, and land late", *PutFate]), calls=st.integers(1, 4))
    def puts_will(self, fate, calls):
        if isinstance(fate, PutFate):
            self.world.put_fates.extend([fate] * calls)
        elif fate == "fail":
            self.world.store.fail_next(calls)
        elif fate == "lose the answer":
            self.world.store.lose_next_answers(calls)
        else:
            self.world.late_puts += calls

    @precondition(lambda self: bool(self.world.landing))
    @rule(which=WHICH)
    def a_late_put_lands(self, which):
        self.world.land(which)

    @rule(down=st.booleans())
    def the_store_is(self, down):
        self.world.store.down = down

    # The disk.

    @rule(
        operation=st.sampled_from(
            [
                "write",
                "fdatasync",
                "fsync_dir",
                "truncate",
                "close",
                "rename",
                "unlink",
                "open",
                "mkdir",
                "link",
                "rmdir",
            ]
        ),
        where=st.sampled_from(["journal", "dlq", "both"]),
        error=st.sampled_from([errno.EIO, errno.ENOSPC]),
        nth=st.integers(1, 3),
        times=st.sampled_from([1, 2, 1000]),
    )
    def the_disk_will_fail(self, operation, where, error, nth, times):
        self.fail(operation, where, error, nth, times)

    def fail(self, operation, where, error, nth, times):
        self.disturbed = True

        def concerns(path):
            return where == "both" or ("/journal/" in f"{path}/") == (where == "journal")

        self.world.fs.fail(operation, error, nth=nth, times=times, when=concerns)

    @rule(
        operation=st.sampled_from(LOOKS),
        where=st.sampled_from(["journal", "dlq", "both"]),
        error=st.sampled_from([errno.EIO, errno.EACCES, errno.ESTALE]),
        nth=st.integers(1, 3),
        times=st.sampled_from([1, 2, 1000]),
    )
    def the_disk_will_not_be_read(self, operation, where, error, nth, times):
        self.fail(operation, where, error, nth, times)

    @rule()
    def the_disk_hangs(self):
        """No thread goes on; what the loop itself calls does."""
        self.disturbed = True
        self.world.hung = True

    @precondition(lambda self: self.world is not None and self.world.hung)
    @rule(finish=FINISH)
    def the_disk_goes_on(self, finish):
        self.world.hung = False
        self.run(finish)

    @rule(
        takes=st.integers(0, 90),
        error=st.sampled_from([None, errno.EIO, errno.ENOSPC]),
        truncate=st.booleans(),
        which=WHICH,
        events=st.integers(1, 4),
        finish=FINISH,
    )
    def a_tick_is_written_in_part(self, takes, error, truncate, which, events, finish):
        """The first write of a tick is short, and what should follow it fails, as may the cut back."""
        self.disturbed = True
        if (process := self.process(which)) is None:
            return
        self.world.fs.on("write", times=1).shorten(takes)
        if error is not None:
            self.world.fs.fail("write", error)
        if not truncate:
            self.world.fs.fail("truncate")
        process.commit(events, run=finish)

    @rule(room=st.sampled_from([0, 30, 100, 300]))
    def the_disk_is_nearly_full(self, room):
        self.disturbed = self.world.lines_may_be_lost = True
        used = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        self.world.fs.capacity = used + room

    @precondition(lambda self: self.disturbed)
    @rule(finish=FINISH)
    def the_disk_is_well_again(self, finish):
        self.world.fs.heal()
        self.world.fs.capacity = None
        self.world.advance(1.5, threads=finish)

    # Death, and a new life.

    @rule(which=WHICH, calls=st.integers(-1, 15), power=st.none() | SEEDS)
    def die(self, which, calls, power):
        """Now, or before a call to the file system that is still to come."""
        power = None if power is None else choice(power)
        if calls >= 0:
            self.world.burn(calls, power=power)
        elif power is not None:
            self.world.power_cut(power)
        elif process := self.process(which):
            self.world.kill(process)

    @rule(which=WHICH, skip=st.booleans())
    def stop(self, which, skip):
        if process := self.process(which):
            process.stop(skip=skip)

    @precondition(lambda self: len(self.world.processes) < 2)
    @rule(finish=FINISH)
    def start(self, finish):
        self.world.start(run=finish)

    # What holds at every step.

    @invariant()
    def the_books_balance_and_nothing_was_replaced_by_less(self):
        if self.world is not None:
            self.world.check()

    @invariant()
    def a_store_that_fails_is_no_reason_to_refuse(self):
        if self.world is not None and not self.disturbed:
            assert not self.world.ledger.refused


ALWAYS = {"dead letters", "refused", "scanning", "batch_stored"}
REACHED = {
    "memory": ALWAYS | {"breaker open", "dlq_save_failed"},
    "journal": ALWAYS | {"journal latched", "backlog"},
    "fsync": ALWAYS | {"breaker open", "journal latched", "backlog", "sealed, not synced"},
}
"""The states without which a run has proven little."""
RARE = {"batch_spilled", "breaker open", "slot_adopted", "dlq_not_answering"}
"""And those that a long run reaches too."""
ROUNDS = 4


def model(mode, figure, *, reaches, **how):
    machine = type(f"Collectors_{mode}", (Collectors,), {"mode": mode, "reached": Counter()})
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    # The states that a few examples reach are chance, so a run that missed one is followed by a longer run.
    for more in range(ROUNDS):
        examples = {**how, "max_examples": how["max_examples"] + 20 * more}
        run_state_machine_as_test(machine, settings=settings(database=None, suppress_health_check=checks, **examples))
        if machine.reached.keys() >= reaches:
            break
    figure(f"model, {mode}, reached", ", ".join(f"{name} {times}" for name, times in machine.reached.most_common()))
    assert machine.reached.keys() >= reaches


@pytest.mark.parametrize("mode", MODES)
def test_what_is_acknowledged_is_stored_once_and_what_is_refused_is_not(mode, figure):
    # The same examples in every run: what is new is looked for by the soak.
    model(
        mode,
        figure,
        reaches=REACHED[mode],
        max_examples=40,
        stateful_step_count=40,
        derandomize=True,
        phases=[Phase.generate, Phase.shrink],
    )


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("mode", MODES)
def test_soak_what_is_acknowledged_is_stored_once_and_what_is_refused_is_not(mode, figure):
    drawn = {"derandomize": False, "print_blob": True}
    model(mode, figure, reaches=REACHED[mode] | RARE, max_examples=5000, stateful_step_count=60, **drawn)
