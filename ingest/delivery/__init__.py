"""Every put there is: a batch's way to the store, and the way of what waits on disk."""

from ingest.delivery.aside import Aside
from ingest.delivery.attempt import Attempts
from ingest.delivery.breaker import State
from ingest.delivery.carrying import Carrier
from ingest.delivery.drain import Drain, Drained
from ingest.delivery.phase import Course, Phase
from ingest.delivery.recovery import Recovery
from ingest.delivery.saving import Fate
from ingest.delivery.upload import Uploader

__all__ = [
    "Aside",
    "Attempts",
    "Carrier",
    "Course",
    "Drain",
    "Drained",
    "Fate",
    "Phase",
    "Recovery",
    "State",
    "Uploader",
]
