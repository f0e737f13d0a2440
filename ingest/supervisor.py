"""The supervisor: several workers behind one address, each a process of its own.

Owns the listening sockets, for its whole life, and the processes that accept on them: when one is started, told to go,
or killed. Promises that a worker which ends is followed by another on the same accept queue; that a signal ends all of
them with every acknowledged event in the store or on disk, in the time that one has for it; and that it ends with what
an operator has to mend, if that is why no worker serves. Never takes a connection or an event, and imports nothing of
the rest: it stays small, so that the kernel, short of memory, takes a worker.

A worker is told by signals alone, and tells how far it is on the shared page:

| phase    | of a worker         | what the supervisor does                                          |
| -------- | ------------------- | ----------------------------------------------------------------- |
| starting | not listening yet   | kills it after START_SECONDS                                      |
| serving  | accepts             | kills it when its loop stands for STANDS_SECONDS                  |
| leaving  | accepts no more     | has another accept if nobody asked it to go; kills it in the end  |

One that ends by itself is followed at once if it had served for STEADY_SECONDS, else after a pause that doubles up to
LONGEST_PAUSE. The supervisor ends with 2 if a worker does so before any of its number has served, or while no other
serves; and with the code of the last one if none has served for START_SECONDS.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from ingest import shared_page
from ingest.shared_page import SharedPage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

COMMAND: Sequence[str] = (sys.executable, "-m", "ingest", "worker")
START_SECONDS: Final = 30.0
"""So long a worker may take until it serves, and all of them may not serve."""
STANDS_SECONDS: Final = 30.0
STEADY_SECONDS: Final = 10.0
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 15.0
LEAST_PARTING: Final = 5.0
"""Seconds that a worker which is replaced takes for silent clients, unless DRAIN_DELAY is longer."""
LONGEST_STEP: Final = 2.0
"""No more than this counts from one look to the next: what stopped us has stopped the workers, too."""
ENDS_AFTER: Final = 0.7
"""Seconds after DRAIN_DELAY and DRAIN_TIMEOUT; a worker ends by itself 0.5 s after them."""
ENDS_BESIDE: Final = 0.2
"""Seconds after that in which one that was killed may still be in the hands of a disk; nobody waits for it longer."""
SOON: Final = 0.02
SELDOM: Final = 1.0
"""Seconds between two looks, while something is under way and else; a signal or an end is heard at once."""
LAST_LINES_SECONDS: Final = 0.2
_DESCRIPTORS_AT_ONCE: Final = 200
_LEVELS: Final = ("debug", "info", "warning", "error", "critical")
_STOPS: Final = frozenset({signal.SIGTERM, signal.SIGINT})
_IGNORED: Final = frozenset({signal.SIGUSR1, signal.SIGUSR2})


class Log:
    """Lines like those of a worker, written by a thread, because whoever reads them may not."""

    def __init__(self) -> None:
        self._front: dict[str, str] = {}
        self._least = 0
        self._pretty = False
        self._lines: queue.SimpleQueue[bytes | threading.Event] = queue.SimpleQueue()

    def start(self, service: str, level: str, *, pretty: bool) -> None:
        """Begin to write as the settings say."""
        self._front = {"service": service}
        self._least = _LEVELS.index(level)
        self._pretty = pretty
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def finish(self) -> None:
        """Have the rest written, if somebody reads it soon."""
        written = threading.Event()
        self._lines.put(written)
        written.wait(LAST_LINES_SECONDS)

    def info(self, event: str, **fields: object) -> None:
        """Tell what is as it should be."""
        self._put("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Tell what heals by itself."""
        self._put("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Tell what an operator should look at."""
        self._put("error", event, fields)

    def _put(self, level: str, event: str, fields: Mapping[str, object]) -> None:
        if _LEVELS.index(level) < self._least or self._lines.qsize() >= 1000:
            return
        now = time.time()
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1e6):06d}Z"
        if self._pretty:
            line = " ".join([stamp, f"[{level}]", event, *(f"{name}={value}" for name, value in fields.items())])
        else:
            line = json.dumps({"timestamp": stamp, "level": level, **self._front, "event": event, **fields})
        self._lines.put(line.encode("utf-8", "backslashreplace") + b"\n")

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            with suppress(OSError):
                while line:
                    line = line[os.write(2, line) :]


log = Log()


class Plan(NamedTuple):
    """The settings that concern a supervisor; somebody else has looked for their problems."""

    workers: int
    drain_delay: float
    drain_timeout: float
    service: str
    log_level: str
    log_pretty: bool
    admin_file: tuple[str, int, int] | None
    """The name of a Unix socket, with its device and inode, by which it is known to be ours."""
    for_operators: int
    """How many sockets are for `ADMIN_ADDR`, which all workers share."""
    for_events: int
    """How many each worker has for `HTTP_ADDR`."""


def supervise(opening: Callable[[socket.socket], None]) -> None:
    """Run workers until a signal, and end the process; return if the settings ask for no more than one process.

    `opening` is called in a process of its own. It sends what `receive` takes; or it exits, having said why.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _heeded() | _IGNORED)
    plan, sockets = receive(opening)
    if plan is None:
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        log.start(plan.service, plan.log_level, pretty=plan.log_pretty)
        supervisor = Supervisor(plan, sockets)
        supervisor.begin()
    except (OSError, RuntimeError) as error:  # no thread to be had is a RuntimeError
        _refuse(f"WORKERS: cannot supervise {plan.workers}: {getattr(error, 'strerror', None) or error}")
    code = supervisor.run()
    log.finish()
    os._exit(code)


def receive(opening: Callable[[socket.socket], None]) -> tuple[Plan | None, list[int]]:
    """Return the plan and the listening sockets; end the process as the opening does, or at a signal."""
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child = os.fork()
    except OSError as error:
        _refuse(f"WORKERS: cannot start a process: {error.strerror or error}")
    if child == 0:
        ours.close()
        _open(opening, theirs)
    theirs.close()
    with ours:
        ours.settimeout(SOON)
        message, sockets = _first(ours, child)
        if not message:
            _, status = os.waitpid(child, 0)
            os._exit(max(os.waitstatus_to_exitcode(status), 1))
        told = json.loads(message)
        while len(sockets) < told["for_operators"] + told["workers"] * told["for_events"]:
            ours.settimeout(START_SECONDS)
            piece, more, _, _ = socket.recv_fds(ours, 1, _DESCRIPTORS_AT_ONCE, socket.MSG_CMSG_CLOEXEC)
            if not piece:  # the kernel leaves out those for which we have no room, and says no word
                _refuse(f"WORKERS: cannot supervise {told['workers']}: {os.strerror(errno.EMFILE)}")
            sockets += more
    os.waitpid(child, 0)
    plan = Plan(**told)
    return (plan if plan.workers > 1 else None), sockets


def _refuse(problem: str) -> NoReturn:
    with suppress(OSError):
        sys.stderr.write(f"{problem}\n")
        sys.stderr.flush()
    os._exit(2)


def _open(opening: Callable[[socket.socket], None], to: socket.socket) -> None:
    code = 1
    try:
        opening(to)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - a bug of ours; nobody above would tell of it, for the process ends here
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(OSError):
            sys.stderr.flush()
        os._exit(code)


def _first(ours: socket.socket, child: int) -> tuple[bytes, list[int]]:
    """Return the first message; none when the child has ended, or was too slow. A signal ends both of us."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        with suppress(TimeoutError):
            message, sockets, _, _ = socket.recv_fds(ours, 1 << 16, _DESCRIPTORS_AT_ONCE, socket.MSG_CMSG_CLOEXEC)
            return message, sockets
        if signal.sigpending() & _STOPS:
            os.kill(child, signal.SIGKILL)
            os._exit(0)
    sys.stderr.write(f"the addresses to listen on were not found within {START_SECONDS:.0f} s\n")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os._exit(1)


def send(to: socket.socket, plan: Plan, sockets: Sequence[int]) -> None:
    """Send what `receive` takes: the sockets for operators first, then those of each worker."""
    message = json.dumps(plan._asdict()).encode()
    for begin in range(0, max(len(sockets), 1), _DESCRIPTORS_AT_ONCE):
        socket.send_fds(to, [message if begin == 0 else b"+"], sockets[begin : begin + _DESCRIPTORS_AT_ONCE])


class Process:
    """One worker, from its start to its end."""

    __slots__ = ("beats", "ends_at", "is_killed", "number", "pid", "region", "served_at", "started_at", "stood")

    def __init__(self, number: int, pid: int, region: shared_page.Region, now: float) -> None:
        self.number = number
        self.pid = pid
        self.region = region
        self.started_at = now
        self.served_at: float | None = None
        """When it was first seen to serve."""
        self.beats = 0
        self.stood = 0.0
        """Seconds for which its loop has not come by."""
        self.ends_at: float | None = None
        """From when it is to go: when it is killed for being there."""
        self.is_killed = False
        """A disk that hangs may hold it yet."""

    def __repr__(self) -> str:
        return f"<Process {self.pid} of {self.number}: {self.region!r}>"

    def tell(self, number: signal.Signals) -> None:
        """Send a signal; it is our child and not reaped, so that the number is its own."""
        os.kill(self.pid, number)

    @property
    def serves(self) -> bool:
        """Whether it accepts, and is not to go."""
        return self.region.phase == shared_page.SERVING and self.ends_at is None


class Place:
    """One of the workers that there should be: the process that is it, and those that come and go."""

    __slots__ = (
        "again_at",
        "current",
        "leaving",
        "number",
        "pause",
        "sockets",
        "successor",
        "was_handed_over",
        "was_served",
    )

    def __init__(self, number: int, sockets: Sequence[int]) -> None:
        self.number = number
        self.sockets = sockets
        """Its accept queues, which are the same for all processes that follow each other here."""
        self.current: Process | None = None
        self.successor: Process | None = None
        """While the place is handed over: who will be `current` as soon as it serves."""
        self.leaving: list[Process] = []
        """Those that accept here no more, until they have gone."""
        self.was_served = False
        """A process has served here."""
        self.was_handed_over = False
        """From when a successor is `current` until the one before has gone."""
        self.pause = 0.0
        self.again_at = 0.0
        """When the next process is started, if there is no current one."""

    @property
    def processes(self) -> list[Process]:
        """All that there are."""
        return [process for process in (self.current, self.successor, *self.leaving) if process is not None]


class Supervisor:
    """See the module's text."""

    def __init__(self, plan: Plan, sockets: Sequence[int], command: Sequence[str] | None = None) -> None:
        self._plan = plan
        self._command = COMMAND if command is None else command
        self._page = SharedPage.make(3 * plan.workers + 4)
        self._lifeline, self._our_end = os.pipe()
        """Workers have the first end; they drain when it ends, because the other one is ours alone."""
        self._for_operators = list(sockets[: plan.for_operators])
        rest = sockets[plan.for_operators :]
        self._places = [
            Place(number, rest[number * plan.for_events : (number + 1) * plan.for_events])
            for number in range(plan.workers)
        ]
        self._listens = True
        self._stops_at: float | None = None
        """From the first signal to stop: when all that is left is killed."""
        self._code = 0
        self._last_code = 1
        """The code of the process that ended last by itself."""
        self._to_roll: list[Place] = []
        """The places that are still to be handed over, the first of them being so now."""
        self._rolls_again = False
        """From a SIGHUP while places are handed over until all have been: then once more."""
        self._unserved = 0.0
        """Seconds for which nobody has served."""
        self._looked_at = time.monotonic()
        self._signals: queue.SimpleQueue[signal.Signals] = queue.SimpleQueue()

    def begin(self) -> None:
        """Begin to hear signals."""
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    def run(self) -> int:
        """Supervise until all workers have gone; return the exit code."""
        log.info("supervising", workers=self._plan.workers)
        while True:
            now = time.monotonic()
            step = min(now - self._looked_at, LONGEST_STEP)
            self._looked_at = now
            self._reap(now)
            for place in self._places:
                self._look_at(place, now, step)
            self._hand_over(now)
            self._look_at_all(step)
            if self._stops_at is not None and (now >= self._stops_at + ENDS_BESIDE or not self._processes()):
                self._close()
                self._code = self._code or int(bool(self._processes()))
                log.info("supervised", code=self._code)
                return self._code
            with suppress(queue.Empty):
                self._heard(self._signals.get(timeout=self._patience(now)))

    # What comes from outside.

    def _listen(self) -> None:
        """Hear signals, in a thread because CPython's wait with a limit (`sigtimedwait`) tells of some that never came.

        It does so when a process that was stopped goes on only after the limit.
        """
        awaited = _heeded() | _IGNORED | {signal.SIGCHLD}
        while True:
            self._signals.put(signal.Signals(signal.sigwaitinfo(awaited).si_signo))

    def _heard(self, number: signal.Signals) -> None:
        if number in _STOPS:
            log.info("signal", signal=number.name)
            self._stop(0)
        elif number is signal.SIGHUP and self._stops_at is None:
            log.info("signal", signal=number.name)
            if self._to_roll:
                self._rolls_again = True
            else:
                self._begin_roll()

    def _stop(self, code: int) -> None:
        """Have all workers drain at once. A second signal is passed on, and they decide what it means."""
        if self._stops_at is None:
            self._code = code
            self._stops_at = time.monotonic() + self._plan.drain_delay + self._plan.drain_timeout + ENDS_AFTER
        for process in self._processes():
            process.ends_at = self._stops_at
            process.tell(signal.SIGTERM)

    def _reap(self, now: float) -> None:
        """Take note of every child that has ended: as the first process of a container we are given those of others."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for place in self._places:
                for process in place.processes:
                    if process.pid == pid:
                        self._ended(place, process, os.waitstatus_to_exitcode(status), now)

    # The workers.

    def _ended(self, place: Place, process: Process, code: int, now: float) -> None:
        self._page.end(process.region)
        was_leaving = process.ends_at is not None
        served_for = 0.0 if process.served_at is None else now - process.served_at
        tell = log.info if was_leaving and code == 0 else log.warning
        tell("worker_ended", worker=place.number, pid=process.pid, served_for=round(served_for, 1), **_why(code))
        if self._stops_at is not None:
            self._code = self._code or (code if code >= 0 else 1)
        if process in place.leaving:
            place.leaving.remove(process)
        elif process is place.successor:
            place.successor = None
            self._give_up_roll(place, "its successor ended before it served")
        else:
            place.current = None
            self._has_lost(place, code, served_for, now)

    def _has_lost(self, place: Place, code: int, served_for: float, now: float) -> None:
        """Decide what follows when a worker is none any more, and nobody told it to go."""
        if self._stops_at is not None:
            return
        self._last_code = code if code > 0 else 1
        if code == 2 and not (place.was_served and any(one.serves for one in self._processes())):
            self._stop(2)
            return
        self._page.restarted()
        self._put_off(place, now, served_for)

    def _let_go(self, place: Place, process: Process, ends_at: float, now: float) -> None:
        """Have somebody else accept where one drains by itself, or was killed: its clients wait in the queue."""
        process.ends_at = ends_at
        place.leaving.append(process)
        if process is place.successor:
            place.successor = None
            self._give_up_roll(place, "its successor did not serve")
        else:
            place.current = None
            self._has_lost(place, 1, now - (process.served_at or now), now)

    def _put_off(self, place: Place, now: float, served_for: float) -> None:
        """Have another process started in this place, after a pause unless the last one has served for long."""
        place.pause = 0.0 if served_for >= STEADY_SECONDS else min(max(2 * place.pause, FIRST_PAUSE), LONGEST_PAUSE)
        place.again_at = now + place.pause

    def _look_at(self, place: Place, now: float, step: float) -> None:
        waits = place.current is None and place.successor is None
        if waits and self._stops_at is None and now >= place.again_at:
            place.current = self._start(place, now)
            if place.current is None:
                self._put_off(place, now, 0.0)
        for process in place.processes:
            self._look_at_process(place, process, now, step)

    def _look_at_process(self, place: Place, process: Process, now: float, step: float) -> None:
        beats = process.region.beats
        process.stood = process.stood + step if beats == process.beats else 0.0
        process.beats = beats
        if process.served_at is None and process.serves:
            process.served_at = now
            place.was_served = True
            log.info("worker_serves", worker=place.number, pid=process.pid, after=round(now - process.started_at, 2))
        if process.ends_at is not None:
            if now >= process.ends_at and not process.is_killed:
                self._kill(process, "it has not ended in time")
        elif process.region.phase == shared_page.LEAVING:
            log.warning("worker_leaves", worker=place.number, pid=process.pid)
            self._let_go(place, process, now + self._plan.drain_timeout + ENDS_AFTER, now)
        elif process.stood >= (STANDS_SECONDS if process.served_at is not None else START_SECONDS):
            self._kill(process, "its loop stands" if process.served_at is not None else "it does not serve")
            self._let_go(place, process, now, now)

    # Handing over.

    def _begin_roll(self) -> None:
        self._to_roll = list(self._places)
        self._rolls_again = False
        log.info("rolling", workers=len(self._places))

    def _hand_over(self, now: float) -> None:
        """Take the next step of a roll: one place after the other, so that there is one process more at the most.

        The successor accepts beside the one it follows, and only when it does that one is told to go.
        """
        if not self._to_roll or self._stops_at is not None:
            return
        place = self._to_roll[0]
        successor = place.successor
        if successor is not None and successor.served_at is None:
            return
        if successor is not None:
            before, place.current, place.successor = place.current, successor, None
            if before is not None:
                place.leaving.append(before)
                before.ends_at = now + self._parting_seconds + self._plan.drain_timeout + ENDS_AFTER
                before.tell(signal.SIGHUP)
            place.was_handed_over = True
        elif not place.was_handed_over:
            place.successor = self._start(place, now)
            if place.successor is None:
                self._give_up_roll(place, "its successor could not be started")
        elif all(process.is_killed for process in place.leaving):
            place.was_handed_over = False
            del self._to_roll[0]
            if not self._to_roll:
                log.info("rolled", workers=len(self._places))
                if self._rolls_again:
                    self._begin_roll()

    def _give_up_roll(self, place: Place, why: str) -> None:
        """Leave what serves where it is: who could not follow here could not follow elsewhere."""
        if self._stops_at is not None:
            return
        log.error("roll_given_up", worker=place.number, why=why)
        again, self._to_roll = self._rolls_again, []
        if again:
            self._begin_roll()

    @property
    def _parting_seconds(self) -> float:
        return max(self._plan.drain_delay, LEAST_PARTING)

    def _look_at_all(self, step: float) -> None:
        processes = self._processes()
        self._unserved = 0.0 if any(process.serves for process in processes) else self._unserved + step
        if self._stops_at is None:
            if self._unserved >= START_SECONDS:
                log.error("no_worker_serves", code=self._last_code)
                self._stop(self._last_code)
        elif self._listens and all(process.region.phase == shared_page.LEAVING for process in processes):
            self._close()

    def _start(self, place: Place, now: float) -> Process | None:
        """Start a process that takes the sockets of this place; None if the system does not let us."""
        taken = self._page.take()
        if taken is None:
            log.error("worker_not_started", worker=place.number, error="no room on the shared page")
            return None
        number, region = taken
        passed = [self._page.descriptor, self._lifeline, *place.sockets, *self._for_operators]
        words = [
            *(place.number, number, self._page.descriptor, self._lifeline),
            *(",".join(map(str, sockets)) or "-" for sockets in (place.sockets, self._for_operators)),
        ]
        try:
            pid = os.posix_spawn(
                self._command[0],
                [*self._command, *map(str, words)],
                os.environ,
                # The same number once more: that is how a descriptor is left open there, and in no other process.
                file_actions=[(os.POSIX_SPAWN_DUP2, one, one) for one in passed],
                # A terminal's Ctrl-C reaches us alone, so that each worker hears of it once.
                setpgroup=0,
                # SIGTTOU is held for a terminal that stops who writes to it from the background.
                setsigmask=_heeded() | _IGNORED | {signal.SIGTTOU},
            )
        except OSError as error:
            region.clear(shared_page.FREE)
            log.error("worker_not_started", worker=place.number, error=error.strerror or str(error))
            return None
        log.info("worker_started", worker=place.number, pid=pid)
        return Process(place.number, pid, region, now)

    def _kill(self, process: Process, why: str) -> None:
        log.error("worker_killed", worker=process.number, pid=process.pid, why=why)
        process.is_killed = True
        process.tell(signal.SIGKILL)

    def _processes(self) -> list[Process]:
        return [process for place in self._places for process in place.processes]

    # The sockets.

    def _close(self) -> None:
        """Let go of the sockets: nobody accepts any more, and who comes is to be refused by the kernel at once."""
        if not self._listens:
            return
        self._listens = False
        for descriptor in (*self._for_operators, *(one for place in self._places for one in place.sockets)):
            os.close(descriptor)
        if self._plan.admin_file is not None:
            path, device, inode = self._plan.admin_file
            with suppress(OSError):
                found = os.lstat(path)
                if (found.st_dev, found.st_ino) == (device, inode):
                    os.unlink(path)  # noqa: PTH108 - pathlib is not worth its memory here

    def _patience(self, now: float) -> float:
        """Return how long nothing but a signal or an end needs to be looked at."""
        processes = self._processes()
        if self._to_roll or self._stops_at is not None or any(process.served_at is None for process in processes):
            return SOON
        due = [place.again_at - now for place in self._places if place.current is None]
        return max(min([SELDOM, *due]), 0.0)


def _heeded() -> frozenset[signal.Signals]:
    heeded = set(_STOPS)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        heeded.add(signal.SIGHUP)
    return frozenset(heeded)


def _why(code: int) -> dict[str, Any]:
    """Return how a process ended, as fields of a line."""
    if code >= 0:
        return {"code": code}
    with suppress(ValueError):
        return {"signal": signal.Signals(-code).name}
    return {"signal": str(-code)}
