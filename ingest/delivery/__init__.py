"""Every put there is: a batch's way to the store, and the way of what waits on disk."""

from ingest.delivery.aside import Aside
from ingest.delivery.attempt import Attempts
from ingest.delivery.carrying import Carrier
from ingest.delivery.drain import Drain
from ingest.delivery.phase import Course, Phase
from ingest.delivery.recovery import Recovery
from ingest.delivery.torn import TornLetters
from ingest.delivery.upload import Uploader

__all__ = [
    "Aside",
    "Attempts",
    "Carrier",
    "Course",
    "Drain",
    "Phase",
    "Recovery",
    "TornLetters",
    "Uploader",
]
