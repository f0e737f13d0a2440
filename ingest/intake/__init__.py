"""Admission to the open batch, and the journal that makes it durable."""

from ingest.intake.admission import Intake
from ingest.intake.batch import Batch
from ingest.intake.journal import Journal, NoJournal

__all__ = [
    "Batch",
    "Intake",
    "Journal",
    "NoJournal",
]
