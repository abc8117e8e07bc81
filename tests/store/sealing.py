"""Sealing for tests: rounds to their end, and what is stored where."""

from datetime import timedelta

import asyncpg

from telemetry_store.latest import advance_checkpoint
from telemetry_store.rollups.keeping import advance_rollups, register_rollups
from telemetry_store.tiers.due import due_batches
from telemetry_store.tiers.floor import Bound, SettledOrders, find_bound, raise_floors
from telemetry_store.tiers.sealing import Moved, seal

AT_ONCE = timedelta(0)


async def take_all(pool: asyncpg.Pool) -> None:
    """Have the consumers that sealing waits for take everything.

    Args:
        pool: of the maintenance role.
    """
    while await advance_checkpoint(pool):
        pass
    await register_rollups(pool, minutes_kept=timedelta(days=7))
    while await advance_rollups(pool, archive=None):
        pass


async def bound_now(pool: asyncpg.Pool, *, with_rollups: bool = True) -> Bound | None:
    """Return up to where may be sealed now, the checkpoint having taken all and the floors being raised.

    Args:
        pool: of the maintenance role.
        with_rollups: they have taken all as well; otherwise they are as they are.
    """
    while await advance_checkpoint(pool):
        pass
    if with_rollups:
        await register_rollups(pool, minutes_kept=timedelta(days=7))
        while await advance_rollups(pool, archive=None):
            pass
    settled = await SettledOrders(pool=pool).find(patience_s=60.0)
    assert settled is not None
    bound = await find_bound(pool, settled, seal_after=AT_ONCE)
    if bound is not None:
        await raise_floors(pool, bound)
    return bound


async def seal_all(pool: asyncpg.Pool, bound: Bound) -> Moved:
    """Seal what is due up to a bound."""
    moved = Moved()
    async for batch in due_batches(pool, bound):
        sealed = await seal(pool, batch, order_no=bound.order_no)
        assert sealed is not None
        moved.add(sealed)
    return moved
