"""Every put there is: a batch's way to the store, and the way of what waits on disk."""

from ingest.delivery.attempt import Attempts, Result
from ingest.delivery.breaker import State
from ingest.delivery.recovery import Recovery
from ingest.delivery.upload import Drained, Uploader

__all__ = [
    "Attempts",
    "Drained",
    "Recovery",
    "Result",
    "State",
    "Uploader",
]
