"""The collector with its pauses cut short: what a test would only wait for.

`python -m tests.process.hasty_server` is `ingest serve`, and what `collectors` starts unless it is told otherwise; the
servers with faults hurry too. Owns which pauses are meant: those between two looks at a slot, two probes, two tries of
a file. The bounds of waits (`S3_TIMEOUT`, a disk's, the drain's) are the product's own.
"""

from __future__ import annotations

import sys

from ingest import collector, server, supervisor
from ingest.__main__ import main
from ingest.delivery import aside, breaker, recovery, upload
from ingest.ledger import closing

HASTY = (sys.executable, "-m", "tests.process.hasty_server")


def hurry() -> None:
    """Cut the pauses of this process short."""
    collector.ADOPT_SECONDS = 1.0
    collector.ADOPT_MORE_SECONDS = 0.2
    breaker.FIRST_PAUSE = 0.2
    breaker.LONGEST_PAUSE = 1.0
    aside.FIRST_AWAY = 0.5
    aside.LONGEST_AWAY = 2.0
    recovery.DUE_AFTER = 0.5
    recovery.IDLE_PAUSE = 0.1
    recovery.LONGEST_IDLE_PAUSE = 1.0
    recovery.LONGEST_AWAY_PAUSE = 1.0
    upload.KEEP_PAUSE = 0.2
    closing.LOOK_SECONDS = 0.5
    server.LEAST_PARTING = supervisor.LEAST_PARTING = 1.0
    supervisor.FIRST_PAUSE = 0.05
    supervisor.COMMAND = (*HASTY, "worker")


if __name__ == "__main__":
    hurry()
    sys.exit(main(sys.argv[1:] or ["serve"]))
