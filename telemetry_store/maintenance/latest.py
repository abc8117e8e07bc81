"""The checkpoint of every series' latest sample, kept near the newest commit."""

import asyncpg

from telemetry_store.latest import advance_checkpoint

# A worker long away catches up over several turns, and does its other steps in between.
_READS_PER_TURN = 20


async def keep_latest(pool: asyncpg.Pool) -> None:
    """Take the checkpoint over the commits that are new, at most some thousands of them.

    Raises:
        FeedExpiredError: the checkpoint is too far behind.
    """
    for _ in range(_READS_PER_TURN):
        if not await advance_checkpoint(pool):
            return
