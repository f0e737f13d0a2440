"""Encoding: a batch's lines to the gzip body that is put, or saved.

Promises that a batch is compressed once; that its lines are in its buffer or `packed` at any time, because its segment
may have to be written anew; and that the buffer goes back when the executor call that reads it has returned, whoever
was cancelled meanwhile. Never blocks the loop.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from ingest.format import codec

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from ingest.delivery.queue import Queue, Upload
    from ingest.telemetry import Metrics


class Encoding:
    """See the module's text. The queue hears how much memory a batch takes."""

    __slots__ = ("_executor", "_metrics", "_queue")

    def __init__(self, executor: Executor, queue: Queue, metrics: Metrics) -> None:
        self._executor = executor
        self._queue = queue
        self._metrics = metrics

    async def body(self, upload: Upload) -> bytes:
        """Compress a batch. A task that is cancelled here does not stop the thread, nor what follows it."""
        if upload.encoding is None:
            view = upload.batch.view()
            loop = asyncio.get_running_loop()
            upload.encoding = loop.run_in_executor(self._executor, codec.encode, view, upload.events)
            upload.encoding.add_done_callback(partial(self._encoded, upload, view))
        return await asyncio.shield(upload.encoding)

    def _encoded(self, upload: Upload, view: memoryview, encoding: asyncio.Future[bytes]) -> None:
        view.release()
        if encoding.cancelled() or encoding.exception() is not None:
            upload.encoding = None
            return
        batch = upload.batch
        batch.packed = encoding.result()
        batch.release_buffer()
        size = len(batch.packed)
        self._metrics.encoded_bytes += upload.held
        self._metrics.compressed_bytes += size
        self._queue.resize(upload, size)
