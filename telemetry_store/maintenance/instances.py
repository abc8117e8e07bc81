"""Dead ingest instances: closed, so that no zombie commits under them."""

import asyncpg
import structlog

from telemetry_store.instances import LOCK_CLASS

_log = structlog.get_logger()


async def close_dead_instances(pool: asyncpg.Pool) -> list[int]:
    """Close instances whose advisory lock is free; returns which.

    A commit under way holds the instance's row, so closing waits for its end, and a
    later one finds the row closed.
    """
    closed = []
    async with pool.acquire() as connection:
        rows = await connection.fetch("SELECT instance FROM telemetry.ingest_instance WHERE NOT closed")
        for row in rows:
            async with connection.transaction():
                # Held until the row is closed. An instance takes its lock once, before
                # its row is seen, so a free lock never comes alive again.
                free = await connection.fetchval(
                    "SELECT pg_try_advisory_xact_lock($1, $2)", LOCK_CLASS, row["instance"]
                )
                if not free:
                    continue
                await connection.execute(
                    """
                    UPDATE telemetry.ingest_instance SET closed = true, closed_at = now()
                    WHERE instance = $1 AND NOT closed
                    """,
                    row["instance"],
                )
            closed.append(row["instance"])
    if closed:
        _log.info("dead instances closed", instances=closed)
    return closed
