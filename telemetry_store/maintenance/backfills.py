"""Declared backfills that have run out."""

import asyncpg
import structlog

_log = structlog.get_logger()


async def expire_backfills(pool: asyncpg.Pool) -> None:
    """Forget backfills that may no longer be used; what they loaded stays."""
    rows = await pool.fetch(
        """
        DELETE FROM telemetry.backfill
        WHERE expire_time <= now()
        RETURNING tenant_id, backfill_id
        """
    )
    for row in rows:
        _log.info("backfill expired", tenant=row["tenant_id"], backfill=row["backfill_id"])
