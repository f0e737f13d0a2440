"""Parts that nobody needs any more: those of runs that lost or died, and of former generations.

Owns the age from which a part may go, `KEPT`, by the store's clock, as its youngest part shows it. Promises that a part
goes only if it lies in the folder of its own shelf, and that one does not need it: its generation is not in force, and
has not been for as long, so that a reader who read of it before has all of that time. Never removes anything else, and
nothing on a doubt. Files that a killed engine has left in its run's folder beside parts go at the same age.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from ingest.lake.generation import hour_of_part, is_left_over

if TYPE_CHECKING:
    from collections.abc import Collection

    from ingest.lake.compact import Compactor
    from ingest.store import Listed

KEPT: Final = 48 * 3600.0


class Swept(NamedTuple):
    """How many parts went, and in words why others stay of which it cannot be said whether anybody needs them."""

    removed: int
    doubts: tuple[str, ...] = ()


async def sweep(by: Compactor, hours_done: Collection[str] = ()) -> Swept:
    """Remove what may go, and look closely at the hours that were just compacted."""
    hours: dict[str, list[Listed]] = defaultdict(list)
    folder = await by.shelf.folder_to_sweep()
    if folder is None:
        return Swept(0)
    now, left = 0.0, []
    for listed in await by.store.listing(f"{by.prefix}/{folder}/"):
        hour = hour_of_part(f"{by.prefix}/{folder}", listed.key)
        if hour is not None:
            hours[hour].append(listed)
            now = max(now, listed.modified)
        elif is_left_over(f"{by.prefix}/{folder}", listed.key):
            left.append(listed)
    # The youngest part tells what the store's clock has reached. This machine's own can only keep parts longer: one of
    # them may bear a time to come.
    before = min(now, by.clock()) - KEPT
    unneeded = await by.shelf.unneeded(hours, before, hours_done)
    old = [] if unneeded.doubts else [one.key for one in left if one.modified < before]
    for key in (*unneeded.keys, *old):
        await by.store.delete(key)
    return Swept(len(unneeded.keys) + len(old), tuple(unneeded.doubts))
