"""The pointer of an hour: one small document that says which files are the hour.

Owns its form and its place, `<COMPACT_PREFIX>/_hours/dt=…/hr=….json`, and where the files lie that it names,
`<COMPACT_PREFIX>/_parts/<random run>/YYYY-MM-DD-HH/` (`_table/<UUID of the table>` for those of a table). A folder of
parts belongs to one run and is never used again. No part of its path looks like a partition's, because readers would
take `dt` and `hr` from there, as other types.
Promises that what `encode` writes `decode` reads, and that a document of a later form is an error, not a guess.
Never touches a store.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

import orjson

from ingest.lake.columns import COLUMNS, RECIPE_VERSION, of_partition

if TYPE_CHECKING:
    from collections.abc import Iterable

HOURS: Final = "_hours"
PARTS: Final = "_parts"
TABLE: Final = "_table"
PARQUET: Final = "application/vnd.apache.parquet"
JSON: Final = "application/json"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How lines become rows. An hour that was made by another recipe is made anew."""

    version: int
    body: str
    """`BODY_FORMAT`: with `text` a string is its text, with `json` a body is the JSON that stood in the line."""
    columns: tuple[str, ...]

    @classmethod
    def of(cls, body_format: str) -> Recipe:
        """Return the recipe of this version of the program."""
        return cls(RECIPE_VERSION, body_format, tuple(column.name for column in COLUMNS))


@dataclass(frozen=True, slots=True)
class Source:
    """An object of the hour, and how many events its head declares."""

    key: str
    events: int


@dataclass(frozen=True, slots=True)
class Inputs:
    """The objects that a generation was made of."""

    objects: int
    events: int
    sha256: str
    """Over a line `key events` of each object, sorted."""

    @classmethod
    def of(cls, sources: Iterable[Source]) -> Inputs:
        """Sum up a list of objects."""
        lines = sorted(f"{source.key} {source.events}\n" for source in sources)
        events = sum(int(line.rpartition(" ")[2]) for line in lines)
        return cls(len(lines), events, hashlib.sha256("".join(lines).encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class Part:
    """One Parquet file."""

    key: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Generation:
    """The pointer's words."""

    generation: int
    hour: str
    recipe: Recipe
    inputs: Inputs
    parts: tuple[Part, ...]
    rows: int
    published: int
    """Unix time, by the clock of the one who published it."""

    def is_made_of(self, recipe: Recipe, inputs: Inputs) -> bool:
        """Tell whether the same recipe and the same objects would give the same rows again."""
        return (self.recipe, self.inputs) == (recipe, inputs)

    def encode(self) -> bytes:
        """Return the document."""
        return orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def decode(document: bytes) -> Generation:
    """Read a document; a ValueError if it is none of ours."""
    try:
        told = orjson.loads(document)
        recipe, inputs = told["recipe"], told["inputs"]
        return Generation(
            told["generation"],
            told["hour"],
            Recipe(recipe["version"], recipe["body"], tuple(recipe["columns"])),
            Inputs(inputs["objects"], inputs["events"], inputs["sha256"]),
            tuple(Part(part["key"], part["rows"], part["bytes"]) for part in told["parts"]),
            told["rows"],
            told["published"],
        )
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"no pointer of an hour: {type(error).__name__} {error}") from error


def pointer_key(prefix: str, hour: str) -> str:
    """Return where the pointer of an hour is."""
    return f"{prefix}/{HOURS}/{hour}.json"


def part_folder(prefix: str, folder: str, run: str, hour: str) -> str:
    """Return where the parts of a run are."""
    return f"{prefix}/{folder}/{run}/{'-'.join(of_partition(hour))}"


def part_key(prefix: str, folder: str, run: str, hour: str, number: int) -> str:
    """Return where a part of a run is."""
    return f"{part_folder(prefix, folder, run, hour)}/part-{number:05d}.parquet"


def hour_of_part(prefix: str, folder: str, key: str) -> str | None:
    """Return the hour that a part is of; None if it is no part."""
    found = re.fullmatch(
        rf"{re.escape(prefix)}/{folder}/[0-9a-f]{{16}}/([0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})-([0-9]{{2}})/part-[0-9]{{5,}}[A-Za-z0-9.-]*\.parquet",
        key,
    )
    return f"dt={found[1]}/hr={found[2]}" if found else None
