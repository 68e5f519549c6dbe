"""The other form of the cache: it looks up and computes at the same time."""

import asyncio

from .cache import Cache, Compute, Found

# How many computations may go on after their calls have returned.
MAX_UNAWAITED = 16
unawaited: set[asyncio.Task[list[bytes]]] = set()


async def get_many(cache: Cache, keys: list[bytes], compute: Compute) -> Found:
    """Returns values as `Cache.get_many` does, but sooner after a miss, and computes all of them.

    Once the values are found, computing them goes on for nobody.
    """
    wanted = list(dict.fromkeys(keys))
    computing = asyncio.create_task(compute(wanted))
    values, counts = await cache.look_up(keys)
    counts["computed"] = len(wanted)
    if len(values) == len(wanted) and len(unawaited) < MAX_UNAWAITED:
        unawaited.add(computing)
        computing.add_done_callback(unawaited.discard)
    else:
        computed = dict(zip(wanted, await computing, strict=True))
        missing = {key: computed[key] for key in wanted if key not in values}
        counts["stored"] = await cache.store(missing)
        values |= missing
    cache.counts.update(counts)
    return Found([values[key] for key in keys], counts)
