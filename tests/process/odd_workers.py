"""Workers that do what a test wants, under a supervisor that hurries.

`python -m tests.process.odd_workers` is the supervisor; the file `mode.<number>` in its folder says what the next
worker of that number does. Its bounds are a hundredth of the product's, so that each is reached within a second.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from ingest import supervisor
from ingest.shared_page import LEAVING, SERVING, SharedPage
from ingest.supervisor import Plan, Supervisor

ODD = (sys.executable, "-m", "tests.process.odd_workers")
STANDS = 0.8
LEFT = 0.6
HEARD = {signal.SIGTERM, signal.SIGHUP}


def supervise() -> None:
    supervisor.START_SECONDS = 1.5
    supervisor.STANDS_SECONDS = STANDS
    supervisor.STEADY_SECONDS = 1.0
    supervisor.FIRST_PAUSE = 0.05
    supervisor.LONGEST_PAUSE = 0.4
    supervisor.SELDOM = 0.05
    supervisor.LONGEST_STEP = 0.1
    supervisor.LEAST_PARTING = 0.1
    supervisor.ENDS_AFTER = 0.2
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: as the first process of a container
    signal.pthread_sigmask(signal.SIG_BLOCK, {*HEARD, signal.SIGINT, signal.SIGCHLD})
    supervisor.log.start("odd", "info", pretty=False)
    plan = Plan(2, 0.0, LEFT, "odd", "info", False, None, 0, 0)
    command = ("/none",) if Path("no-command").exists() else (*ODD, "worker")
    supervising = Supervisor(plan, [], command)
    supervising.begin()
    code = supervising.run()
    supervisor.log.finish()
    os._exit(code)


def work(words: list[str]) -> None:
    number, at, page = map(int, words[:3])
    region = SharedPage(page).regions[at]
    mode = Path(f"mode.{number}")
    wanted = mode.read_text() if mode.exists() else "well"
    if wanted.startswith("exit "):
        os._exit(int(wanted.split()[1]))
    if wanted == "deaf":
        time.sleep(60)
    region.enter(SERVING)
    if wanted == "stands":
        time.sleep(60)
    if wanted == "leaves an orphan" and os.fork() == 0:
        if os.fork() == 0:
            Path("orphan").write_text(str(os.getpid()))
            time.sleep(0.2)
        os._exit(0)
    until = time.monotonic() + 0.2
    while True:
        region.beat()
        if wanted == "crashes" and time.monotonic() > until:
            os._exit(1)
        heard = signal.sigtimedwait(HEARD, 0.02)
        if heard is not None and wanted != "stubborn":
            region.enter(LEAVING)
            os._exit(0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        work(sys.argv[2:])
    else:
        supervise()
