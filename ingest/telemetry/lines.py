"""The way of a finished log line to standard error: a bounded queue, and a thread that writes.

Owns the writes, the queue of `WAITING` lines or `WAITING_BYTES`, and the count of lines that found it full, or that the
descriptor did not take.
Promises that whoever logs never waits for the reader of the log once `start` was called: a line goes into the queue or
is dropped and counted, and the log says how many were when the reader is back. Lines leave in the order in which they
came, each in one piece; where a full disk has cut one off, the next one begins on a line of its own.
Never ends the process: a descriptor that does not take a line loses it.

Before `start`, and in commands, which have nobody to keep waiting, a line is written at once.
"""

from __future__ import annotations

import os
import select
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

from ingest.threads import start

if TYPE_CHECKING:
    from collections.abc import Callable

WAITING: Final = 1000
"""Lines that wait for the reader at most; one more is dropped."""
WAITING_BYTES: Final = 4 << 20
"""Their bytes at most, because a line with a traceback may have many."""
STDERR: Final = 2


class Lines:
    """See the module's text. It is the logger that structlog calls, one method a level."""

    def __init__(self, descriptor: int = STDERR, on_gap: Callable[[int], None] = lambda _: None) -> None:
        self.dropped = 0
        """Lines dropped since the start."""
        self._is_torn = False
        """From a line that was written in part until another is written whole."""
        self._descriptor = descriptor
        self._on_gap = on_gap
        self._queue: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        self._bytes = 0
        """Bytes of the lines in the queue."""
        # Reentrant, because the collector of cycles may log while a line is being counted.
        self._counting = threading.RLock()
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<Lines {self._queue.qsize()} waiting, {self.dropped} dropped>"

    def start(self) -> None:
        """From now on leave the writing to a thread. To be called after any fork."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="log", daemon=True)
            start(thread)
            self._thread = thread

    def finish(self, within: float) -> bool:
        """Wait for what was logged so far to be written, `within` seconds at most; False if that was too short."""
        if self._thread is None:
            return True
        written = threading.Event()
        self._queue.put(written)
        return written.wait(within)

    def msg(self, line: bytes) -> None:
        """Have one line written."""
        if self._thread is None:
            self._write(line)
            return
        with self._counting:
            if self._queue.qsize() < WAITING and self._bytes + len(line) <= WAITING_BYTES:
                self._bytes += len(line)
                self._queue.put(line)
            else:
                self.dropped += 1

    debug = info = warning = error = critical = msg

    def _run(self) -> None:
        told = 0
        while True:
            line = self._queue.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            with self._counting:
                self._bytes -= len(line)
            # Only behind a line that was taken: else the line about the gap would be the next one to be lost.
            if self._write(line) and self.dropped > told and self._queue.qsize() < WAITING // 2:
                missing, told = self.dropped - told, self.dropped
                self._on_gap(missing)

    def _write(self, line: bytes) -> bool:
        """Write to the end, also when a descriptor that others share does not block; False if that cannot be."""
        left = b"\n" + line if self._is_torn else line
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
                self._is_torn = bool(left)
            except BlockingIOError:
                if self._thread is None:
                    break
                select.select([], [self._descriptor], [])
            except OSError:
                break
        else:
            return True
        with self._counting:
            self.dropped += 1
        return False
