"""Parts that nobody needs any more: those of runs that lost or died, and of former generations.

Owns the rule by which a part goes: its hour has a pointer, which does not name it; it is older than `KEPT`, by the
store's clock; and so is the pointer's generation, so that a reader who had just read the pointer before has all of that
time to read what it named. An hour without a pointer is left alone, because its first generation may be on its way.
Promises to look at the pointers of those hours only of which there are two runs, and of those just compacted. Never
removes anything else.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from ingest.lake.generation import PARTS, decode, hour_of_part, pointer_key

if TYPE_CHECKING:
    from collections.abc import Collection

    from ingest.lake.compact import Lake

KEPT: Final = 48 * 3600.0


async def sweep(lake: Lake, hours_done: Collection[str] = ()) -> int:
    """Remove what may go; return how many parts that were."""
    hours: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for listed in await lake.store.listing(f"{lake.prefix}/{PARTS}/"):
        hour = hour_of_part(lake.prefix, listed.key)
        if hour is not None:
            hours[hour].append((listed.key, listed.modified))
    before = lake.clock() - KEPT
    removed = 0
    for hour, parts in hours.items():
        old = [key for key, modified in parts if modified < before]
        if not old or (hour not in hours_done and len({key.split("/")[-3] for key, _ in parts}) == 1):
            continue
        found = await lake.store.find(pointer_key(lake.prefix, hour))
        if found is None:
            continue
        try:
            generation = decode(found.body)
        except ValueError:
            continue
        if generation.published >= before:
            continue
        named = {part.key for part in generation.parts}
        for key in old:
            if key not in named:
                await lake.store.delete(key)
                removed += 1
    return removed
