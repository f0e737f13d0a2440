"""The reader's end, which no collector ever loads: whether an hour is complete, and whole hours as Parquet."""

from ingest.lake.compact import Compactor, Contended, Done, Result, compact
from ingest.lake.engine import Engine, EngineError
from ingest.lake.generation import Generation, Recipe, decode, pointer_key
from ingest.lake.judging import Finding, Kind, Open, Seen, Verdict, judge
from ingest.lake.looking import Looking
from ingest.lake.patience import Patient
from ingest.lake.shelf import Pointers, Shelf
from ingest.lake.sources import Differs
from ingest.lake.sweep import Swept, sweep

__all__ = [
    "Compactor",
    "Contended",
    "Differs",
    "Done",
    "Engine",
    "EngineError",
    "Finding",
    "Generation",
    "Kind",
    "Looking",
    "Open",
    "Patient",
    "Pointers",
    "Recipe",
    "Result",
    "Seen",
    "Shelf",
    "Swept",
    "Verdict",
    "compact",
    "decode",
    "judge",
    "pointer_key",
    "sweep",
]
