"""The end of every object, told beside the data: the ledger of each slot."""

from ingest.ledger.files import FOLDER, Ledger, entries_in, is_of_ledger, path_of
from ingest.ledger.writing import Writing

__all__ = ["FOLDER", "Ledger", "Writing", "entries_in", "is_of_ledger", "path_of"]
