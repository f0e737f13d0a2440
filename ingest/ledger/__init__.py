"""The end of every object, told beside the data: ledgers on disk, manifests of hours, the registry of processes."""

from ingest.ledger.closing import Closing
from ingest.ledger.files import FOLDER, Ledger, entries_in, is_of_ledger, is_strange, path_of
from ingest.ledger.post import Post
from ingest.ledger.sides import Side
from ingest.ledger.writing import Writing

__all__ = [
    "FOLDER",
    "Closing",
    "Ledger",
    "Post",
    "Side",
    "Writing",
    "entries_in",
    "is_of_ledger",
    "is_strange",
    "path_of",
]
