"""An Iceberg table as the place where hours are published, through PyIceberg and any catalog that it knows.

Owns the table's schema, its partitions (`dt`, `hr`), and the pointer of an hour: properties of the snapshot by which it
was committed. Promises one commit an hour, which takes the hour's former files out and the new ones in; and that it
holds only if nobody has committed since the table was read, because PyIceberg's own tries would put the files of an
hour beside those that another run has committed meanwhile. The files are the parts in the store: nothing is written
twice. They lie in a folder that is named by the table's UUID, so that no table is asked about another's. Older
snapshots go on naming theirs until the table's own upkeep expires them. All of PyIceberg blocks: it runs in a thread.
"""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING, Any, Final, TypeVar

import orjson

from ingest.lake.columns import COLUMNS, Kind, of_partition
from ingest.lake.engine import EngineError
from ingest.lake.generation import TABLE, Generation, Inputs, Recipe, decode
from ingest.lake.shelf import Unneeded
from ingest.lake.sources import Differs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from ingest.store import Listed

_Result = TypeVar("_Result")

POINTER: Final = "estat.pointer"
HOUR: Final = "estat.hour"
_NO_TRIES: Final = {"commit.retry.num-retries": "0"}


class Table:
    """A `Shelf`. `base` is the URL to which the keys of the store are added."""

    def __init__(self, catalog: str, name: str, base: str) -> None:
        self._catalog_name = catalog
        self._name = name
        self._base = base.rstrip("/")
        self._catalog: Any = None

    def folder(self, version: Any) -> str:  # noqa: ANN401 - PyIceberg's own
        """Return the table's own folder, by the UUID that no name, catalog or place changes."""
        return f"{TABLE}/{version.metadata.table_uuid}"

    async def folder_to_sweep(self) -> str | None:
        """Return the folder; None if there is no such table. It is not made for this."""
        table = await asyncio.to_thread(self._told, self._find)
        return None if table is None else self.folder(table)

    async def current(self, hour: str) -> tuple[Generation | None, Any]:
        """Read the table; its version is the table as it was read."""
        return await asyncio.to_thread(self._told, self._current, hour)

    async def publish(self, made: Generation, version: Any) -> bool:  # noqa: ANN401 - PyIceberg's own
        """Commit the hour."""
        return await asyncio.to_thread(self._told, self._publish, made, version)

    async def is_whole(self, generation: Generation) -> bool:  # noqa: ARG002 - see below
        """Leave it to the table, whose upkeep may have written the same rows to other files."""
        return True

    async def unneeded(
        self,
        parts: Mapping[str, Sequence[Listed]],
        before: float,
        hours_done: Collection[str],  # noqa: ARG002 - the table tells of all hours at once
    ) -> Unneeded:
        """Tell which parts no snapshot names: of runs that died, and of snapshots that the table's upkeep expired.

        A part is known by the end of its path, which holds the table's UUID and a random run: a table may name the same
        file by another mount, link or scheme. If it names none of what lies in its folder, it is not believed.
        """
        every = [one for listed in parts.values() for one in listed]
        old = [one.key for one in every if one.modified < before]
        if not old:
            return Unneeded([], [])
        named = await asyncio.to_thread(self._told, self._named)
        if named.isdisjoint(_place(one.key) for one in every):
            return Unneeded([], [f"{self._name} names none of the {len(every)} parts in its folder: none is removed"])
        return Unneeded([key for key in old if _place(key) not in named], [])

    def _told(self, call: Callable[..., _Result], *arguments: Any) -> _Result:  # noqa: ANN401 - `call`'s
        """Call PyIceberg, whose catalogs raise whatever the libraries below them raise."""
        try:
            return call(*arguments)
        except Differs:
            raise
        except Exception as error:
            raise EngineError(f"{self._name}: {type(error).__name__}: {' '.join(str(error).split())[:500]}") from error

    def _named(self) -> set[str]:
        """Return the places of all files that any snapshot names."""
        table = self._find()
        return set() if table is None else set(map(_place, table.inspect.all_files()["file_path"].to_pylist()))

    def _current(self, hour: str) -> tuple[Generation | None, Any]:
        table = self._load()
        for snapshot in _history(table):
            properties = {} if snapshot.summary is None else snapshot.summary.additional_properties
            if properties.get(HOUR) == hour:
                try:
                    return decode(properties[POINTER].encode(), hour), table
                except (KeyError, ValueError) as error:
                    raise Differs(f"{self._name}, snapshot {snapshot.snapshot_id}: {error}") from error
        rows = sum(task.file.record_count for task in table.scan(row_filter=_of(hour)).plan_files())
        return (_of_unknown_make(hour, rows) if rows else None), table

    def _publish(self, made: Generation, table: Any) -> bool:  # noqa: ANN401 - PyIceberg's own
        from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException

        of_hour = _of(made.hour)
        pointer = {HOUR: made.hour, POINTER: orjson.dumps(orjson.loads(made.encode())).decode()}
        # Of this copy of the table's properties only: it is read when a commit fails, and never committed.
        table.metadata.properties.update(_NO_TRIES)
        change = table.transaction()
        if any(True for _ in table.scan(row_filter=of_hour).plan_files()):
            change.delete(of_hour)
        change.add_files(
            [f"{self._base}/{part.key}" for part in made.parts],
            snapshot_properties=pointer,
            check_duplicate_files=False,
        )
        try:
            change.commit_transaction()
        except (CommitFailedException, CommitStateUnknownException):
            # The next look at the table tells what holds.
            return False
        return True

    def _load(self) -> Any:  # noqa: ANN401 - PyIceberg's own
        """Return the table as it is now, and make it if it is not there."""
        from pyiceberg.exceptions import TableAlreadyExistsError

        table = self._find()
        if table is not None:
            return table
        self._catalog.create_namespace_if_not_exists(self._name.rpartition(".")[0])
        try:
            return self._catalog.create_table(self._name, schema(), partition_spec=partitions())
        except TableAlreadyExistsError:
            return self._catalog.load_table(self._name)

    def _find(self) -> Any:  # noqa: ANN401 - PyIceberg's own
        """Return the table as it is now; None if it is not there."""
        from pyiceberg.catalog import load_catalog
        from pyiceberg.exceptions import NoSuchTableError

        if self._catalog is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of PyIceberg to its own users, about what it will do some day
                self._catalog = load_catalog(self._catalog_name)
        try:
            return self._catalog.load_table(self._name)
        except NoSuchTableError:
            return None


def schema() -> Any:  # noqa: ANN401 - PyIceberg's own
    """Return the table's schema; no field is required, because files of Parquet do not say so."""
    from pyiceberg.schema import Schema
    from pyiceberg.types import LongType, MapType, NestedField, StringType

    fields = []
    for number, column in enumerate(COLUMNS, 1):
        kind: Any = StringType() if column.kind is Kind.TEXT else LongType()
        if column.kind is Kind.TEXTS:
            inner = 100 + 2 * number
            kind = MapType(inner, StringType(), inner + 1, StringType(), value_required=False)
        fields.append(NestedField(number, column.name, kind, required=False))
    return Schema(*fields)


def partitions() -> Any:  # noqa: ANN401 - PyIceberg's own
    """Return how the table is divided: an hour is a partition."""
    from pyiceberg.partitioning import PartitionField, PartitionSpec
    from pyiceberg.transforms import IdentityTransform

    return PartitionSpec(
        PartitionField(1, 1000, IdentityTransform(), "dt"), PartitionField(2, 1001, IdentityTransform(), "hr")
    )


def _of(hour: str) -> Any:  # noqa: ANN401 - PyIceberg's own
    """Return the filter that only the rows of an hour pass."""
    from pyiceberg.expressions import And, EqualTo

    dt, hr = of_partition(hour)
    return And(EqualTo("dt", dt), EqualTo("hr", hr))


def _of_unknown_make(hour: str, rows: int) -> Generation:
    """Return what is known of an hour in the table whose snapshot is expired: how many rows fewer events would end."""
    return Generation(0, hour, Recipe(0, "", ()), Inputs(0, rows, ""), (), rows, 0)


def _place(path: str) -> str:
    """Return by what a part of a table is known: table, run, hour and name, whatever stands before."""
    return "/".join(path.rsplit("/", 4)[1:])


def _history(table: Any) -> Iterator[Any]:  # noqa: ANN401 - PyIceberg's own
    """Yield the snapshots that led to the current one, newest first."""
    snapshot = table.current_snapshot()
    while snapshot is not None:
        yield snapshot
        parent = snapshot.parent_snapshot_id
        snapshot = None if parent is None else table.snapshot_by_id(parent)
