"""What tenants say about how long is kept what is theirs."""

from datetime import timedelta

import asyncpg


async def raw_retentions(pool: asyncpg.Pool) -> dict[str, timedelta]:
    """Return how long those tenants keep raw messages that say so."""
    rows = await pool.fetch(
        "SELECT tenant_id, raw_retention FROM telemetry.ingest_policy WHERE raw_retention IS NOT NULL"
    )
    return {row["tenant_id"]: row["raw_retention"] for row in rows}
