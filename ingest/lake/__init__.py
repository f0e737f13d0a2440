"""The reader's end: whole hours as Parquet, which no collector ever loads."""

from ingest.lake.compact import Contended, Done, Lake, Result, compact
from ingest.lake.engine import Engine, EngineError
from ingest.lake.generation import Generation, Recipe, decode, pointer_key
from ingest.lake.patience import Patient
from ingest.lake.sources import Differs
from ingest.lake.sweep import sweep

__all__ = [
    "Contended",
    "Differs",
    "Done",
    "Engine",
    "EngineError",
    "Generation",
    "Lake",
    "Patient",
    "Recipe",
    "Result",
    "compact",
    "decode",
    "pointer_key",
    "sweep",
]
