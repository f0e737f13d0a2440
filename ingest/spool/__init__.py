"""All that waits on disk for the store: dead letters, and the journal's backlog."""

from ingest.spool.adoption import Adoption
from ingest.spool.backlog import Backlog, Segments
from ingest.spool.hours import Walk, hour_folders, look
from ingest.spool.letters import DlqFull
from ingest.spool.places import Places
from ingest.spool.spool import Spool
from ingest.spool.temporaries import Torn
from ingest.spool.waiting import Contents, Held, Letter, Waiting, Whereabouts

__all__ = [
    "Adoption",
    "Backlog",
    "Contents",
    "DlqFull",
    "Held",
    "Letter",
    "Places",
    "Segments",
    "Spool",
    "Torn",
    "Waiting",
    "Walk",
    "Whereabouts",
    "hour_folders",
    "look",
]
