"""The collector over a disk with faults as rules: `tests.stand_ins.disk` in a real process.

    collectors(env, command=faulty(Fault(("fdatasync",), "hang", room="journal", armed=True)))

A fault with `armed=True` befalls calls only while a file `armed` is in the process's working directory, so that a test
switches it on and off at any time; what hangs goes on when the file is gone. The first line that a process says of a
hang is `hangs`, with the path, and that of a death `dies`. The product knows nothing of this: it uses its `Filesystem`.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.config.settings import load
from ingest.server import serve
from tests.process.hasty_server import hurry
from tests.stand_ins.disk import Disk

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.config.settings import Settings

ARMED = "armed"


@dataclass(frozen=True, slots=True)
class Fault:
    """Which calls, and what befalls them."""

    on: tuple[str, ...]
    do: str
    """fail, hang, die, shorten or slow."""
    amount: float = errno.EIO
    """The error, the bytes or the seconds."""
    room: str = ""
    """Where the path lies: store, dlq or journal."""
    under: str = ""
    """A text that the path contains."""
    nth: int = 1
    times: int | None = None
    after: bool = False
    armed: bool = False


def faulty(*faults: Fault) -> tuple[str, ...]:
    """Return the command of a server with these faults."""
    return (sys.executable, "-m", "tests.process.faulty_server", json.dumps([asdict(fault) for fault in faults]))


def room_of(settings: Settings) -> Callable[[Path], str]:
    """Return what tells in which room a path lies; "" if in none."""
    # The journal lies below the DLQ unless it is told otherwise, so it is asked first.
    rooms = [
        ("journal", _absolute(settings.journal_dir)),
        ("dlq", _absolute(settings.dlq_dir)),
        ("store", _absolute(settings.store_dir)),
    ]
    return lambda path: next((room for room, root in rooms if _absolute(path).is_relative_to(root)), "")


def disk_with(faults: list[Fault], settings: Settings) -> Disk:
    """Make the disk."""
    disk = Disk()
    room = room_of(settings)
    for fault in faults:
        rule = disk.on(
            *fault.on,
            under=fault.under,
            when=_when(fault, room),
            nth=fault.nth,
            times=fault.times,
            after=fault.after,
        )
        match fault.do:
            case "fail":
                rule.fail(int(fault.amount))
            case "shorten":
                rule.shorten(int(fault.amount))
            case "slow":
                rule.slow(fault.amount)
            case "hang":
                rule.call(_hang(fault))
            case "die":
                rule.call(lambda path: die(event="dies", path=str(path)))
            case unknown:
                raise ValueError(unknown)
    return disk


def armed() -> bool:
    """The test has put the file there."""
    return os.path.exists(ARMED)


def die(**line: str) -> None:
    """Say so, and be killed."""
    say(**line)
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def say(**line: str) -> None:
    """Write a line to standard error past the log, which a process that dies or hangs would not write."""
    os.write(2, json.dumps(line).encode() + b"\n")


def _when(fault: Fault, room: Callable[[Path], str]) -> Callable[[Path], bool]:
    return lambda path: fault.room in ("", room(path)) and (not fault.armed or armed())


def _hang(fault: Fault) -> Callable[[Path], None]:
    def hang(path: Path) -> None:
        say(event="hangs", path=str(path))
        while not fault.armed or armed():
            time.sleep(0.02)

    return hang


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def main() -> None:
    settings = load(os.environ)
    faults = [Fault(**fault) for fault in json.loads(sys.argv[1])]
    hurry()
    serve(settings, fs=disk_with(faults, settings))


if __name__ == "__main__":
    main()
