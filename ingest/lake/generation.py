"""The pointer of an hour: one small document that says which files are the hour.

Owns its form and its place, `<COMPACT_PREFIX>/_hours/dt=…/hr=….json`, and where the files lie that it names,
`<COMPACT_PREFIX>/_parts/<random run>/YYYY-MM-DD-HH/` (`_table/<UUID of the table>` for those of a table). A folder of
parts belongs to one run and is never used again. No part of its path looks like a partition's, because readers would
take `dt` and `hr` from there, as other types.
Promises that what `encode` writes `decode` reads, and that all else is an error, not a guess: a document of a later
form, of another hour, with a part in another place, or whose counts do not agree.
Never touches a store.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final

import orjson

from ingest.lake.columns import COLUMNS, RECIPE_VERSION, of_partition

if TYPE_CHECKING:
    from collections.abc import Iterable

HOURS: Final = "_hours"
PARTS: Final = "_parts"
TABLE: Final = "_table"
PARQUET: Final = "application/vnd.apache.parquet"
JSON: Final = "application/json"
_PLAIN: Final = {"int": int, "str": str}


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


def decode(document: bytes, hour: str, below: str | None = None) -> Generation:
    """Read the document of an hour; a ValueError if it is none of ours, or of another hour.

    Its parts lie `below` a folder; None: wherever a table's lie.
    """
    try:
        told = _members(Generation, orjson.loads(document), "the document")
        generation = Generation(
            **told
            | {
                "recipe": Recipe(**_members(Recipe, told["recipe"], "recipe") | {"columns": _texts(told["recipe"])}),
                "inputs": Inputs(**_members(Inputs, told["inputs"], "inputs")),
                "parts": tuple(Part(**_members(Part, part, "a part")) for part in _list(told["parts"], "parts")),
            }
        )
        _check(generation, hour, below)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"no pointer of an hour: no JSON: {error}") from error
    except ValueError as error:
        raise ValueError(f"no pointer of an hour: {error}") from error
    return generation


def _members(kind: type, told: object, what: str) -> dict[str, Any]:
    """Return the members of an object of JSON, if they are those of the class, with its very types."""
    expected = {field.name: _PLAIN.get(str(field.type)) for field in fields(kind)}
    if type(told) is not dict or told.keys() != expected.keys():
        raise ValueError(f"{what} has other members than {', '.join(expected)}")
    for name, plain in expected.items():
        # A truth value is an int to Python.
        if plain is not None and type(told[name]) is not plain:
            raise ValueError(f"{name} is {told[name]!r:.100}")
        if plain is int and told[name] < 0:
            raise ValueError(f"{name} is {told[name]}")
    return told


def _list(told: object, what: str) -> list[Any]:
    if type(told) is not list:
        raise ValueError(f"{what} is no list")
    return told


def _texts(recipe: dict[str, Any]) -> tuple[str, ...]:
    columns = _list(recipe["columns"], "columns")
    if not all(type(column) is str for column in columns):
        raise ValueError("columns are no names")
    return tuple(columns)


def _check(generation: Generation, hour: str, below: str | None) -> None:
    """Hold the facts of a document against each other, and against the hour whose it should be."""
    if generation.hour != hour:
        raise ValueError(f"it is of {generation.hour!r:.100}")
    if generation.generation == 0:
        raise ValueError("generation is 0")
    rows = sum(part.rows for part in generation.parts)
    if not generation.rows == generation.inputs.events == rows:
        raise ValueError(f"{generation.rows} rows of {generation.inputs.events} events, {rows} in its parts")
    if not re.fullmatch("[0-9a-f]{64}", generation.inputs.sha256):
        raise ValueError(f"sha256 is {generation.inputs.sha256!r:.100}")
    for part in generation.parts:
        if hour_of_part(below, part.key) != hour:
            raise ValueError(f"{part.key!r:.300} is no part of {hour}" + (f" below {below}/" if below else ""))
    if len({part.key for part in generation.parts}) != len(generation.parts):
        raise ValueError("a part is named twice")


def pointer_key(prefix: str, hour: str) -> str:
    """Return where the pointer of an hour is."""
    return f"{prefix}/{HOURS}/{hour}.json"


def part_folder(prefix: str, folder: str, run: str, hour: str) -> str:
    """Return where the parts of a run are."""
    return f"{prefix}/{folder}/{run}/{'-'.join(of_partition(hour))}"


def part_key(prefix: str, folder: str, run: str, hour: str, number: int) -> str:
    """Return where a part of a run is."""
    return f"{part_folder(prefix, folder, run, hour)}/part-{number:05d}.parquet"


def hour_of_part(below: str | None, key: str) -> str | None:
    """Return the hour that a part is of which lies below a folder, a table's if that is None; None if it is no part."""
    found = _PART.fullmatch(key)
    if not found or not (_OF_TABLE.fullmatch(found["below"]) if below is None else found["below"] == below):
        return None
    return f"dt={found['dt']}/hr={found['hr']}"


def is_left_over(below: str, key: str) -> bool:
    """Tell whether a key lies in a run's folder and is no part: an engine that was killed leaves what it had begun."""
    return key.startswith(f"{below}/") and _IN_RUN.fullmatch(key, len(below) + 1) is not None


_IN_RUN: Final = re.compile(r"[0-9a-f]{16}/[0-9]{4}-[0-9]{2}-[0-9]{2}-[0-9]{2}/.*")
_PART: Final = re.compile(
    r"(?P<below>.+)/[0-9a-f]{16}/(?P<dt>[0-9]{4}-[0-9]{2}-[0-9]{2})-(?P<hr>[0-9]{2})"
    r"/part-[0-9]{5,}[A-Za-z0-9.-]*\.parquet"
)
# Early parts lie in no folder of their table.
_OF_TABLE: Final = re.compile(rf".+/{TABLE}(?:/[0-9a-f-]{{36}})?")
